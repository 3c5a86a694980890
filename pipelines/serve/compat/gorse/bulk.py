"""Everything as lines of JSON, out and in, as Gorse's dashboard has it.

Out goes what is stored of users and items, and of feedback what is in the log: what has left it for the archive does
not. In comes a file as the field ``file`` of a form, or the lines as the body; feedback counts once.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import msgspec
from starlette.responses import Response, StreamingResponse

from streamfold.core.events import CloudEvent
from streamfold.pipelines.peers.gorse import Feedback, Item, User, item_event, shown_feedback, user_event
from streamfold.pipelines.serve.call import Call
from streamfold.pipelines.serve.compat.gorse.dialect import affected, asks, endpoint
from streamfold.pipelines.serve.compat.gorse.feedback import events
from streamfold.pipelines.serve.compat.gorse.things import page_of, upserts
from streamfold.pipelines.serve.compat.intake import log_all, nth, read
from streamfold.pipelines.serve.compat.lightrag.form import read_form, required
from streamfold.pipelines.serve.events import logged_row
from streamfold.pipelines.serve.problems import Problem
from streamfold.pipelines.serve.things import catalogue_of

_AT_ONCE = 20_000
"""Rows of a page: each looks through all ids, and is held while it is sent."""
_EVENTS = 1000
_Run = Callable[[Call], Awaitable[Response]]
_encode = msgspec.json.Encoder().encode_lines
_Page = Callable[[Call, Any], Awaitable[tuple[list[dict[str, Any]], Any]]]


def _export(name: str, page: _Page, first: Any) -> _Run:
    async def export(call: Call) -> Response:
        asks(call)
        if name != "feedback":
            catalogue_of(call, call.view)

        async def lines() -> AsyncIterator[bytes]:
            place = first
            while place is not None:
                async with call.service.using(call.workspace):
                    rows, place = await page(call, place)
                yield _encode(rows)

        headers = {"Content-Disposition": f"attachment;filename={name}.jsonl"}
        return StreamingResponse(lines(), media_type="application/jsonl", headers=headers)

    return export


async def _users(call: Call, after: str) -> tuple[list[dict[str, Any]], Any]:
    return await page_of(call, "user", after, _AT_ONCE)


async def _items(call: Call, after: str) -> tuple[list[dict[str, Any]], Any]:
    return await page_of(call, "item", after, _AT_ONCE)


async def _feedback(call: Call, after: int) -> tuple[list[dict[str, Any]], Any]:
    """A page of what users did; sessions are nobody that Gorse knows."""
    ledger = call.service.node.ledger

    def find() -> tuple[list[dict[str, Any]], int | None]:
        rows = ledger.page(call.workspace, after=after, limit=_EVENTS, type="interaction.observed")
        erasing = ledger.erasures(call.workspace)
        logged = [one["event"] for row in rows if (one := logged_row(call.service, row, erasing))["event"] is not None]
        told = [shown_feedback(one["data"], one.get("time")) for one in logged if one["data"].get("user_id")]
        return told, rows[-1].seq if len(rows) == _EVENTS else None

    return await call.ask(find)


def _import(made: Callable[[Call, Sequence[bytes]], list[CloudEvent]]) -> _Run:
    async def take(call: Call) -> Response:
        call.service.admit(call.view)
        form = call.request.headers.get("content-type", "").lower().startswith("multipart/")
        body = required(await read_form(call), "file").value if form else await call.body()
        logged = await log_all(call, lambda: made(call, [line for line in body.splitlines() if line.strip()]))
        return affected(logged.count)

    return take


def _rows(lines: Sequence[bytes], kind: Any) -> list[Any]:
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            rows.append(read(line, kind))
        except Problem as problem:
            raise nth(problem, number) from problem
    return rows


_IN: dict[str, Callable[[Call, Sequence[bytes]], list[CloudEvent]]] = {
    "users": lambda call, lines: upserts(_rows(lines, User), user_event),
    "items": lambda call, lines: upserts(_rows(lines, Item), item_event),
    "feedback": lambda call, lines: events(call, _rows(lines, Feedback), accumulate=False),
}
_OUT: dict[str, tuple[_Page, Any]] = {"users": (_users, ""), "items": (_items, ""), "feedback": (_feedback, 0)}
ENDPOINTS = [
    *(
        endpoint("GET", f"/bulk/{name}", _export(name, *_OUT[name]), f"All {name}, as lines of JSON", errors=(404,))
        for name in _OUT
    ),
    *(
        endpoint(
            "POST", f"/bulk/{name}", _import(_IN[name]), f"Store {name} from lines of JSON", scope="ingest",
            media=("multipart/form-data", "application/jsonl"), example={"file": "(binary)"},
            returns={"RowAffected": 1}, errors=(400, 413, 429),
        )
        for name in _IN
    ),
]  # fmt: skip
