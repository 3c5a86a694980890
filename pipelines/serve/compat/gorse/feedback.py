"""Feedback in. With a ``Timestamp`` the same row counts once, by POST or PUT.

Without one POST counts it each time, as of now (Gorse accumulates), and PUT once (Gorse overwrites). Of rows that
differ in their value the newest stands wherever one is kept, and counts have them all: a log takes nothing back.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from starlette.responses import Response

from streamfold.core.events import CloudEvent
from streamfold.pipelines.peers.gorse import SOURCE, Feedback, feedback_event
from streamfold.pipelines.serve.call import Call
from streamfold.pipelines.serve.compat.gorse.dialect import affected, endpoint, known_actions
from streamfold.pipelines.serve.compat.intake import event, log_all, make, read

_EXAMPLE = {"FeedbackType": "like", "UserId": "u-1", "ItemId": "lamp-9", "Timestamp": "2026-01-31T12:00:00Z"}


def _insert(*, accumulate: bool) -> Callable[[Call], Awaitable[Response]]:
    async def insert(call: Call) -> Response:
        call.service.admit(call.view)
        body = await call.json_body()
        logged = await log_all(call, lambda: events(call, read(body, list[Feedback]), accumulate=accumulate))
        return affected(logged.count)

    return insert


def events(call: Call, rows: Sequence[Feedback], *, accumulate: bool) -> list[CloudEvent]:
    """Make an event of each row; ``accumulate``: one without a time counts each time it is sent."""
    known = known_actions(call)
    made = make(rows, lambda row: feedback_event(row, known))
    return [event(one, SOURCE, unique=accumulate and one.time is None) for one in made]


ENDPOINTS = [
    endpoint(
        "POST", "/feedback", _insert(accumulate=True), "Log feedback; without a time it counts each time",
        scope="ingest", example=[_EXAMPLE], returns={"RowAffected": 1}, errors=(400, 413, 429),
    ),
    endpoint(
        "PUT", "/feedback", _insert(accumulate=False), "Log feedback; without a time it counts once",
        scope="ingest", example=[_EXAMPLE], returns={"RowAffected": 1}, errors=(400, 413, 429),
    ),
]  # fmt: skip
