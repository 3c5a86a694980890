"""Is it alive, can it answer, is ingestion well; metrics, the OpenAPI document, and the front page."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import msgspec
from starlette.responses import Response

from streamfold.core.errors import LedgerError
from streamfold.pipelines.serve import examples
from streamfold.pipelines.serve.call import Call, Endpoint, answer
from streamfold.pipelines.serve.metrics import CONTENT_TYPE
from streamfold.pipelines.serve.pressure import answering_lag

QUIET = frozenset(("/healthz", "/readyz", "/metrics"))
"""Routes that probes call: logged at level debug."""
_STALE_S = 5.0
MAX_DEAD_LETTERS = 1000
"""More than this is a red health check."""


async def healthz(call: Call) -> Response:
    """The process answers."""
    return answer({"status": "ok"})


async def readyz(call: Call) -> Response:
    """This replica can answer: its views are recovered. Lag that all replicas share never makes it red."""
    service = call.service
    if service.ready:
        return answer({"status": "ready"})
    detail = "the views are being recovered" if service.failure is None else f"cannot start: {service.failure!r}"
    return answer({"status": "starting", "detail": detail}, 503, {"Retry-After": "1"})


async def health(call: Call) -> Response:
    """The truth about ingestion, for alerts."""
    checks = await call.ask(_checks, call)
    return answer({"checks": checks}, 200 if all(check["ok"] for check in checks) else 503)


def _checks(call: Call) -> list[dict[str, Any]]:
    service, fold = call.service, call.service.settings.fold
    if not service.ready:
        return [{"name": "view", "ok": False, "detail": "the views are being recovered"}]
    view = call.view
    free = shutil.disk_usage(service.settings.data).free
    lag, answering = answering_lag(view), [v for v in view.answerers() if not v.outdated]
    halted = {v.group.name: view.states[v.group.name].halted for v in answering if view.halted(v)}
    missing = [f"{i.name}@{i.version}" for i in service.node.context.missing(call.workspace) if i.slot == "live"]
    error = service.node.views.error if service.node.views is not None else None

    def ledger() -> tuple[bool, str]:
        return True, f"head at {service.node.ledger.head(call.workspace)}"

    def letters() -> tuple[bool, str]:
        count = service.node.ledger.dead_letter_count(call.workspace)
        return count <= MAX_DEAD_LETTERS, f"{count} (limit {MAX_DEAD_LETTERS})"

    def archive() -> tuple[bool, str]:
        lost = service.node.context.history.missing(call.workspace)
        return not lost, f"files are missing: {', '.join(lost)}"[:500] if lost else "no file is missing"

    found = [
        ("view", error is None, error or f"at position {view.visible_position(None)} of {view.head}"),
        ("ledger", *_asked(ledger)),
        ("fold", not halted, "; ".join(f"{k}: {str(v)[:500]}" for k, v in halted.items()) or "no group is halted"),
        ("lag", lag <= fold.max_lag_events, f"{lag} events (limit {fold.max_lag_events})"),
        ("dead_letters", *_asked(letters)),
        ("archive", *_asked(archive)),
        ("disk", free >= fold.min_free_bytes, f"{free} bytes free (limit {fold.min_free_bytes})"),
        ("policies", not missing, f"no code for {', '.join(missing)}" if missing else "all live policies have code"),
    ]
    return [{"name": name, "ok": ok, "detail": detail} for name, ok, detail in found]


def _asked(check: Callable[[], tuple[bool, str]]) -> tuple[bool, str]:
    try:
        return check()
    except LedgerError as error:
        return False, str(error)


async def metrics(call: Call) -> Response:
    """All metrics of this process; for a key that is not an operator's, only of its workspace."""
    only = None if call.principal.is_operator else call.workspace
    return Response(await call.ask(call.service.metrics.text, only), media_type=CONTENT_TYPE)


async def front(call: Call) -> Response:
    """Where to go from here."""
    return answer(
        {"name": "streamfold", "api": "/v1", "openapi": "/openapi.json", "status": "/v1/status", "health": "/v1/health"}
    )


def openapi_endpoint(document: dict[str, Any]) -> Endpoint:
    """Make the route that shows the OpenAPI document (made once)."""
    data = msgspec.json.encode(document)

    async def openapi(call: Call) -> Response:
        return Response(data, media_type="application/json")

    return Endpoint(method="GET", path="/openapi.json", run=openapi, scope=None, summary="This document")


ENDPOINTS = [
    Endpoint(method="GET", path="/", run=front, scope=None, summary="Where to go from here"),
    Endpoint(method="GET", path="/healthz", run=healthz, scope=None, summary="The process answers"),
    Endpoint(method="GET", path="/readyz", run=readyz, scope=None, summary="This replica can answer", errors=(503,)),
    Endpoint(
        method="GET", path="/v1/health", run=health, scope="", summary="The truth about ingestion",
        returns=examples.HEALTH, errors=(503,),
    ),
    Endpoint(
        method="GET", path="/metrics", run=metrics, scope="admin", view=False,
        summary="Metrics in Prometheus' text form",
    ),
]  # fmt: skip
