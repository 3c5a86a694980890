"""Events in: one, an array, or lines of JSON, whatever the content type says, as ``curl -d`` sends it.

All or none of a request are logged. A ranking is what was shown, an exposure; an interaction that names it joins it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from starlette.responses import Response

from streamfold.core.events import CloudEvent
from streamfold.pipelines.peers.metarank import SOURCE, Event, made
from streamfold.pipelines.peers.rows import actions
from streamfold.pipelines.serve.call import Call, answer
from streamfold.pipelines.serve.compat.intake import event, log_all, make, nth, read
from streamfold.pipelines.serve.compat.metarank.dialect import endpoint, took_ms
from streamfold.pipelines.serve.problems import Problem

_EXAMPLE = {
    "event": "interaction", "id": "i-1", "timestamp": "1769860800000", "user": "u-1", "session": "s-1",
    "type": "click", "item": "lamp-9", "ranking": "r-1", "fields": [{"name": "page", "value": "home"}],
}  # fmt: skip


async def feedback(call: Call) -> Response:
    """Log events."""
    started = time.perf_counter()
    call.service.admit(call.view)
    body = await call.body()
    known = actions(call.service.settings.limits.actions)

    def events() -> list[CloudEvent]:
        return [event(one, SOURCE) for one in make(_rows(body), lambda row: made(row, known))]

    logged = await log_all(call, events)
    return answer({"accepted": logged.count, "status": "ok", "tookMillis": took_ms(started), "updated": logged.count})


def _rows(body: bytes) -> Sequence[Event]:
    text = body.strip()
    if not text:
        raise Problem("malformed", "the body holds no event")
    if text.startswith(b"["):
        return read(text, list[Event])
    try:
        return [read(text, Event)]  # one object may go over several lines
    except Problem as whole:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) == 1 or whole.code != "malformed":
            raise
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(read(line, Event))
        except Problem as problem:
            raise nth(problem, number) from problem
    return rows


ENDPOINTS = [
    endpoint(
        "POST", "/feedback", feedback, "Log item, user, ranking and interaction events", scope="ingest",
        example=_EXAMPLE, returns={"accepted": 1, "status": "ok", "tookMillis": 3, "updated": 1},
        errors=(400, 413, 429),
    ),
]  # fmt: skip
