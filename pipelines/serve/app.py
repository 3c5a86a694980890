"""Assemble the application: endpoints wrapped in keys, problems, request ids, metrics and the access log."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamfold.core.errors import InvalidEvent, LedgerError, nearest
from streamfold.pipelines.node import Node
from streamfold.pipelines.serve import (
    ask,
    backups,
    classify,
    compat,
    deadletters,
    documents,
    erasures,
    events,
    graph,
    health,
    keys,
    listing,
    operate,
    quality,
    recommend,
    retention,
    things,
    versions,
)
from streamfold.pipelines.serve.auth import LOCAL, require
from streamfold.pipelines.serve.call import Call, Endpoint
from streamfold.pipelines.serve.openapi import describe
from streamfold.pipelines.serve.problems import Problem, at, of_invalid, respond, unavailable
from streamfold.pipelines.serve.service import Service

_MODULES = (
    events, documents, things, ask, recommend, classify, graph, listing, deadletters, erasures, backups, retention,
    operate, versions, quality, keys, health, compat,
)  # fmt: skip
ENDPOINTS: tuple[Endpoint, ...] = tuple(endpoint for module in _MODULES for endpoint in module.ENDPOINTS)
"""All routes under ``/v1``, beside it and under ``/compat``, but ``/openapi.json``, which describes them."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_REFUSED_S = 0.1
"""A client above its quota that asks again at once waits so long for the answer: refusing it costs CPU too."""
_CODES = {404: "not-found", 405: "method-not-allowed", 413: "too-large", 415: "unsupported-media-type"}


def create_app(node: Node) -> FastAPI:
    """Make the application; its lifespan recovers the views and follows the feed. The caller closes the node."""
    service = Service(node)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        service.close()

    app = FastAPI(
        title="streamfold", version="1", lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None,
        redirect_slashes=False,
    )  # fmt: skip
    app.state.service = service
    for endpoint in (*ENDPOINTS, health.openapi_endpoint(describe(ENDPOINTS))):
        app.router.add_route(endpoint.path, _handler(service, endpoint), methods=[endpoint.method])
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_middleware(Outer, service=service)
    return app


def _handler(service: Service, endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    """Wrap a route: who asks, may they, are the parameters known, and every refusal becomes a problem."""
    route = endpoint.path.replace(":path}", "}")
    known = frozenset(endpoint.params)
    refuse = endpoint.refuse or respond

    async def handle(request: Request) -> Response:
        scope = request.scope
        scope["streamfold.route"] = route
        try:
            principal = LOCAL if endpoint.scope is None else service.keys.principal(request.headers)
            if endpoint.scope:
                require(principal, endpoint.scope)
            if endpoint.tag == "ask":
                service.charge(principal.workspace, "queries_per_s", 1)
            query = dict(request.query_params)
            for name in query:
                if name not in known and endpoint.refuse is None:
                    detail = f"unknown query parameter '{name[:64]}'{nearest(name[:64], known)}"
                    raise at(f"/{name[:64]}", "unknown-field", detail)
            log: dict[str, Any] = {"workspace": principal.workspace}
            scope["streamfold.log"] = log
            call = Call(request, service, principal, query, request.path_params, log)
            if not endpoint.opens:
                return await endpoint.run(call)
            async with service.using(principal.workspace):
                return await endpoint.run(call)
        except Problem as problem:
            if problem.code == "rate-limited":
                await asyncio.sleep(_REFUSED_S)
            return refuse(problem, scope["streamfold.request_id"])
        except InvalidEvent as error:
            return refuse(of_invalid(error), scope["streamfold.request_id"])
        except LedgerError as error:
            service.log.warning("ledger_unavailable", error=str(error))
            return refuse(unavailable(f"the ledger cannot be reached: {error}"), scope["streamfold.request_id"])

    return handle


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = _CODES.get(error.status_code, "internal" if error.status_code >= 500 else "invalid-value")
    detail = f"{request.method} {request.url.path[:200]}: {error.detail}"
    if error.status_code == 404:
        detail = f"there is nothing at {request.url.path[:200]}: see /openapi.json"
    return respond(Problem(code, detail, headers=error.headers), request.scope["streamfold.request_id"])


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = [
        {"pointer": "/" + "/".join(map(str, e["loc"][1:])), "code": "invalid-value", "message": e["msg"]}
        for e in error.errors()
    ]
    problem = Problem("invalid-value", "the request does not have the shape this route takes", errors=errors)
    return respond(problem, request.scope["streamfold.request_id"])


class Outer:
    """Request id, access log, request metrics, and the last net: an unexpected error is a problem too."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(scope)
        scope["streamfold.request_id"] = request_id
        started, status = time.perf_counter(), 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        structlog.contextvars.bind_contextvars(request_id=request_id)
        try:
            await self._app(scope, receive, sending)
        except Exception as error:
            self._service.log.error("request_failed", path=scope["path"], exc_info=error)
            if status:
                raise
            problem = Problem("internal", f"the server failed; its log has the cause under request id {request_id}")
            await respond(problem, request_id)(scope, receive, sending)
        finally:
            self._account(scope, status, time.perf_counter() - started)
            structlog.contextvars.unbind_contextvars("request_id")

    def _account(self, scope: Scope, status: int, seconds: float) -> None:
        route = scope.get("streamfold.route", "other")
        metrics = self._service.metrics
        metrics.requests.labels(scope["method"] if route != "other" else "other", route, str(status)).inc()
        metrics.request_seconds.labels(route).observe(seconds)
        say = self._service.log.debug if route in health.QUIET else self._service.log.info
        say(
            "request",
            method=scope["method"],
            path=scope["path"][:300],
            status=status,
            ms=round(seconds * 1000, 2),
            **scope.get("streamfold.log", {}),
        )


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            sent = value.decode("latin-1")
            if _REQUEST_ID.fullmatch(sent):
                return str(sent)
    return uuid.uuid4().hex
