"""Schemathesis over the OpenAPI document: whatever is asked, valid or not, is answered, and never by a 5xx.

Requests are made from the document alone, half of them as it allows, half not; some name things that exist. Every
refusal is a problem document that names one of the contract's codes; those of another service's routes have its shape.
"""

from __future__ import annotations

import os
import random
import string
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode

from streamfold.core.settings import Settings
from streamfold.pipelines.serve.app import ENDPOINTS
from streamfold.pipelines.serve.openapi import describe
from streamfold.pipelines.serve.problems import STATUS

sys.path.insert(0, str(Path(__file__).parent))
from test_rest import BACKENDS, serving, view_event

sys.path.pop(0)

EXAMPLES = int(os.environ.get("STREAMFOLD_FUZZ", "8"))
"""Requests per operation, kind and service."""
LAST = "POST /v1/keys"
"""The first key that may make keys closes an open service."""
NAMED: dict[str, list[str]] = {
    "name": ["trending", "vector_index", "default"], "type": ["interaction.observed"],
    "id": ["e1", "lamp", "doc", "1", "u", "a/b", ".."], "track_id": ["insert_20260131_120000_5b0c1d2e_1"],
    "category": ["light", "a/b"], "model": ["default", "trending"],
}  # fmt: skip
ASKED: dict[str, list[Any]] = {
    "wait": ["visible"],
    "policy": ["trending", "vector_index"],
    "half_life_s": ["60", "86400"],
}


@dataclass
class Service:
    """A running service, and the key to ask it with."""

    client: httpx.Client
    key: str | None

    def ask(self, case: Case) -> httpx.Response:
        """Send a generated request as it is; what is not a string for a header or a URL was never sent by anybody."""
        given = case.as_transport_kwargs(base_url=str(self.client.base_url))
        headers = {
            k: str(v) for k, v in given.get("headers", {}).items() if k.lower() not in ("content-length", "host")
        }
        if self.key is not None:
            headers = {k: v for k, v in headers.items() if k.lower() not in ("authorization", "x-api-key")}
            headers["X-API-Key"] = self.key
        body = {"json": given["json"]} if "json" in given else {"content": given["data"]} if given.get("data") else {}
        if isinstance(form := body.get("content"), dict):
            body = {"data": {str(k): str(v).encode("utf-8", "replace") for k, v in form.items()}}
        return self.client.request(
            given["method"], given["url"], params=given.get("params"), headers=_sendable(headers), **body
        )


def _sendable(headers: dict[str, str]) -> dict[str, str]:
    printable = set(string.printable) - set("\r\n\t\x0b\x0c")
    return {k: v for k, v in headers.items() if set(v) <= printable}


@pytest.fixture(scope="module", params=["open", "with keys"])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings = Settings(backends=BACKENDS, data=tmp_path_factory.mktemp("fuzz"))
    with serving(settings) as client:
        for number in range(5):
            client.post("/v1/events?wait=visible", json=view_event(f"e{number}"))
        client.put("/v1/documents/doc?wait=visible", json={"title": "A title", "text": "A text of two words."})
        key = None
        if request.param == "with keys":
            scopes = ["ingest", "query", "admin", "operator"]
            made = client.post("/v1/keys", json={"name": "all", "scopes": scopes})
            assert made.status_code == 201, made.text
            key = made.json()["key"]
            assert client.get("/v1/status").status_code == 401
        yield Service(client, key)


SCHEMA = schemathesis.openapi.from_dict(describe(ENDPOINTS))
OPERATIONS = {operation.ok().label: operation.ok() for operation in SCHEMA.get_all_operations()}


@pytest.mark.filterwarnings("ignore::Warning")
@pytest.mark.parametrize("label", [*(name for name in OPERATIONS if name != LAST), LAST])
def test_no_request_is_answered_by_a_5xx(service: Service, label: str) -> None:
    operation = OPERATIONS[label]

    def check(case: Case, name: bool, data: st.DataObject) -> None:
        if name:
            _name_what_exists(case, data)
            if (example := _example(operation, case.media_type)) is not None:
                case.body = data.draw(_bent(example))
        if "wait_ms" in (case.query or {}):
            case.query["wait_ms"] = random.Random(str(case.query["wait_ms"])).choice(
                ["0", "20", "-1", "x", "99999999999999"]
            )
        elif "wait_ms" in {p["name"] for p in operation.definition.raw.get("parameters", [])}:
            case.query = {**(case.query or {}), "wait_ms": "20"}
        response = service.ask(case)
        said = f"{case.method} {response.request.url} {case.body!r}: {response.status_code} {response.text[:500]}"
        assert response.status_code < 500 or _is_asked_for(label, response), said
        if response.status_code >= 400 and OPERATIONS[label].path.startswith("/compat/lightrag"):
            refusal = response.json()
            assert response.headers["content-type"] in ("application/json", "application/problem+json"), said
            assert "detail" in refusal or refusal.get("status") == "failure", said
        elif response.status_code >= 400 and "/compat/gorse" in label and not _is_unrouted(response):
            assert response.headers["content-type"].startswith("text/plain"), said
            assert response.text, said
        elif response.status_code >= 400 and "/compat/metarank" in label and not _is_unrouted(response):
            assert response.json()["status"] == "error", said
        elif response.status_code >= 400 and _is_ours(response):
            problem = response.json()
            assert response.headers["content-type"] == "application/problem+json", said
            assert STATUS[problem["code"]] == problem["status"] == response.status_code, said

    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
        cases = operation.as_strategy(generation_mode=mode)
        run = given(case=cases, name=st.booleans(), data=st.data())(check)
        limits = settings(
            max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.generate, Phase.shrink],
        )  # fmt: skip
        try:
            seed(1)(limits(run))()
        except Exception as error:
            if type(error).__name__ not in ("Unsatisfiable", "SkipTest"):  # nothing can be wrong with this one
                raise


ODD = st.one_of(
    st.sampled_from(
        [None, True, 0, -1, 2**63, 2**70, 1e308, "", "\x00", "x" * 70_000, "2026-01-02T03:04:05Z", [], {}, [{}]]
    ),
    st.text(max_size=20),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
)


def _example(operation: Any, media: str | None) -> Any:
    """The document's own example of a body."""
    content = operation.definition.raw.get("requestBody", {}).get("content", {})
    return content.get(media, {}).get("example")


@st.composite
def _bent(draw: st.DrawFn, example: Any) -> Any:
    """The example, with one member anywhere in it missing, or something odd in its place; or more of it."""
    if isinstance(example, list) and example:
        at = draw(st.integers(0, len(example) - 1))
        return [*example[:at], draw(_bent(example[at])), *example[at + 1 :]]
    if isinstance(example, dict) and example and draw(st.integers(0, 9)):
        at = draw(st.sampled_from(sorted(example)))
        what = draw(st.sampled_from(["bend", "bend", "bend", "leave out", "add"]))
        if what == "leave out":
            return {k: v for k, v in example.items() if k != at}
        if what == "add":
            return example | {draw(st.text(max_size=5)): draw(ODD)}
        return example | {at: draw(_bent(example[at]))}
    return draw(ODD)


def _name_what_exists(case: Case, data: st.DataObject) -> None:
    for name in case.path_parameters or {}:
        case.path_parameters[name] = data.draw(st.sampled_from(NAMED[name]))
    for name in case.query or {}:
        if name in ASKED:
            case.query[name] = data.draw(st.sampled_from(ASKED[name]))


def _is_asked_for(label: str, response: httpx.Response) -> bool:
    """503 is an answer where a position was asked for that is not there, and of ``/readyz`` if a policy is halted."""
    if response.status_code != 503:
        return False
    return label == "GET /readyz" or response.json()["code"] in ("position-not-reached", "too-stale")


def _is_unrouted(response: httpx.Response) -> bool:
    """A ``..`` in a path leads the client to another one."""
    return response.status_code in (404, 405) and response.headers["content-type"] == "application/problem+json"


def _is_ours(response: httpx.Response) -> bool:
    """The server's own refusals of what is no HTTP request have no body."""
    return bool(response.content) and response.status_code != 503
