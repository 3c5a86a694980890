"""The OpenAPI document, made from the endpoints' declarations, with an example of each request and response."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec

from streamfold.pipelines.serve.call import Endpoint
from streamfold.pipelines.serve.problems import STATUS

_PARAMS: dict[str, tuple[dict[str, Any], str]] = {
    "wait": ({"type": "string", "enum": ["accepted", "visible"], "default": "accepted"}, "Answer when logged, or seen"),
    "wait_ms": ({"type": "integer", "minimum": 0, "maximum": 30000}, "How long to wait: 5000 (writes), 1000 (reads)"),
    "results": ({"type": "string", "enum": ["rejected", "all"]}, "Which events to list in the response"),
    "min_position": ({"type": "integer", "minimum": 0}, "Answer from this position or a later one"),
    "max_age_ms": ({"type": "integer", "minimum": 0}, "Answer from a view at most this old"),
    "limit": ({"type": "integer", "minimum": 1, "maximum": 1000, "default": 50}, "Items per page"),
    "cursor": ({"type": "string"}, "next_cursor of the page before"),
    "from": ({"type": "integer", "minimum": 0}, "First position"),
    "include": ({"type": "string", "enum": ["text"]}, "text: with the texts and chunks of documents"),
    "n": ({"type": "integer", "minimum": 1, "maximum": 1000, "default": 10}, "How many"),
    "half_life_s": ({"type": "number"}, "One of the configured half-lives"),
}
_PROBLEM = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code", "request_id", "errors"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string", "enum": sorted(STATUS)},
        "request_id": {"type": "string"},
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "pointer": {"type": "string"},
                    "code": {"type": "string"},
                    "message": {"type": "string"},
                    "index": {"type": "integer"},
                },
            },
        },
    },
}


_REFUSALS: dict[str, dict[str, Any]] = {
    "lightrag": {"application/json": {"schema": {"type": "object", "properties": {"detail": {}}}}},
    "gorse": {"text/plain": {"schema": {"type": "string"}}},
    "metarank": {
        "application/json": {
            "schema": {"type": "object", "properties": {"status": {"type": "string"}, "error": {"type": "string"}}}
        }
    },
}
"""How other services' routes refuse, by tag."""


def describe(endpoints: Iterable[Endpoint]) -> dict[str, Any]:
    """Make the document."""
    endpoints = list(endpoints)
    bodies = [endpoint.body for endpoint in endpoints if endpoint.body is not None]
    _, schemas = msgspec.json.schema_components(bodies, ref_template="#/components/schemas/{name}")
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path.replace(":path}", "}"), {})[endpoint.method.lower()] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {"title": "streamfold", "version": _version(), "description": "Fold event streams into fresh answers."},
        "paths": paths,
        "components": {
            "schemas": {**schemas, "Problem": _PROBLEM},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            },
        },
        "security": [{"bearer": []}, {"key": []}, {}],
    }


def _version() -> str:
    try:
        return version("streamfold")
    except PackageNotFoundError:
        return "0"


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    path_params = re.findall(r"{(\w+)", endpoint.path)
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in path_params
    ] + [_parameter(name) for name in endpoint.params]
    success: dict[str, Any] = {"description": "Success"}
    if endpoint.returns is not None:
        success["content"] = {"application/json": {"example": endpoint.returns}}
    if endpoint.stream:
        success["content"]["text/event-stream"] = {"schema": {"type": "string"}, "example": endpoint.stream}
    problem: dict[str, Any] = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    if endpoint.refuse is not None:
        problem = _REFUSALS[endpoint.tag]
    responses = {str(endpoint.status): success}
    if endpoint.status == 202 and "wait" in endpoint.params:
        responses["200"] = success | {"description": "Visible"}
    errors = {*endpoint.errors} | ({401, 403} if endpoint.scope is not None else set())
    for status in sorted(errors):
        codes = ", ".join(code for code, its in STATUS.items() if its == status)
        responses[str(status)] = {"description": codes, "content": problem}
    operation: dict[str, Any] = {
        "summary": endpoint.summary,
        "operationId": f"{endpoint.method.lower()}_{re.sub(r'[^a-z0-9]+', '_', endpoint.path.lower()).strip('_')}",
        "tags": [endpoint.tag],
        "parameters": parameters,
        "responses": responses,
    }
    if endpoint.scope is None:
        operation["security"] = []
    if endpoint.body is not None or endpoint.example is not None:
        content: dict[str, Any] = {}
        if endpoint.body is not None:
            content["schema"] = {"$ref": f"#/components/schemas/{endpoint.body.__name__}"}
        for media in endpoint.media:
            content_of = dict(content)
            if endpoint.example is not None:
                content_of["example"] = [endpoint.example] if "batch" in media else endpoint.example
            operation.setdefault("requestBody", {"content": {}})["content"][media] = content_of
    return operation


def _parameter(name: str) -> dict[str, Any]:
    schema, description = _PARAMS.get(name, ({"type": "string"}, ""))
    value: dict[str, Any] = {"name": name, "in": "query", "schema": schema}
    return value | ({"description": description} if description else {})
