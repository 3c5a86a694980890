"""Where documents stand: a track, pages of all, counts, and whether anything is under way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from starlette.responses import Response

from streamfold.core.policy import StoredDocument
from streamfold.pipelines.serve.call import Call, answer
from streamfold.pipelines.serve.compat.lightrag.dialect import Body, Refused, endpoint
from streamfold.pipelines.serve.compat.lightrag.shelf import (
    STATES,
    Sent,
    Shelf,
    file_path,
    reading,
    shown,
    shown_sent,
)
from streamfold.pipelines.texts import SUFFIXES

State = Literal["pending", "parsing", "analyzing", "processing", "preprocessed", "processed", "failed"]


class Documents(Body, kw_only=True):
    """Body of ``POST /documents/paginated``."""

    status_filter: State | None = None
    status_filters: list[State] | None = None
    page: Annotated[int, msgspec.Meta(ge=1)] = 1
    page_size: Annotated[int, msgspec.Meta(ge=10, le=200)] = 50
    sort_field: Literal["created_at", "updated_at", "id", "file_path"] = "updated_at"
    sort_direction: Literal["asc", "desc"] = "desc"


async def track_status(call: Call) -> Response:
    """The documents of one request; an unknown track has none."""
    track_id = call.path["track_id"].strip()
    if not track_id:
        raise Refused(400, "Track ID cannot be empty")
    documents = await reading(call, lambda shelf: shelf.tracked(track_id))
    summary = Counter(one["status"] for one in documents)
    value = {"track_id": track_id, "documents": documents, "total_count": len(documents), "status_summary": summary}
    return answer(value)


async def paginated(call: Call) -> Response:
    """A page of documents in the order asked for. Sorts all of them: O(documents)."""
    body = await call.struct(Documents, default=b"{}")
    wanted = body.status_filters or ([body.status_filter] if body.status_filter else STATES)

    def work(shelf: Shelf) -> dict[str, Any]:
        everything = _everything(shelf)
        rows = [row for row in everything if _state(row) in wanted]
        rows.sort(key=lambda row: _order(row, body.sort_field), reverse=body.sort_direction == "desc")
        first = (body.page - 1) * body.page_size
        pages = -(-len(rows) // body.page_size)
        return {
            "documents": _page(shelf, rows[first : first + body.page_size]),
            "pagination": {
                "page": body.page,
                "page_size": body.page_size,
                "total_count": len(rows),
                "total_pages": pages,
                "has_next": body.page < pages,
                "has_prev": body.page > 1,
            },
            "status_counts": _counts(everything),
        }

    return answer(await reading(call, work))


async def status_counts(call: Call) -> Response:
    """How many documents are in each state."""
    return answer({"status_counts": await reading(call, lambda shelf: _counts(_everything(shelf)))})


async def pipeline_status(call: Call) -> Response:
    """Whether documents are under way; nothing else ever makes the service busy."""
    waiting = await reading(call, lambda shelf: shelf.waiting())
    message = f"{waiting} events about documents are under way" if waiting else "All documents are processed"
    value: dict[str, Any] = {
        "busy": waiting > 0,
        "job_name": "Folding" if waiting else "-",
        "job_start": None,
        "docs": waiting,
        "batchs": 1 if waiting else 0,
        "cur_batch": 1 if waiting else 0,
        "scanning": False,
        "scanning_exclusive": False,
        "destructive_busy": False,
        "pending_enqueues": 0,
        "cancellation_requested": False,
        "latest_message": message,
        "history_messages": [message],
        "update_status": {},
        "recovery_required": False,
        "recovery_kind": None,
        "recovery_message": None,
    }
    return answer(value)


async def supported_file_types(call: Call) -> Response:
    """What may be uploaded."""
    return answer({"supported_extensions": sorted(SUFFIXES), "engines": {"streamfold": sorted(SUFFIXES)}})


Row = StoredDocument | Sent


def _everything(shelf: Shelf) -> list[Row]:
    """All documents, each once: as it is under way, else as it is served, else as it failed."""
    under_way = shelf.under_way()  # first: what is folded meanwhile is still there below
    served = shelf.served()
    ids = {one.document_id for one in served}
    failed = shelf.failed(ids | under_way.keys())
    return [*under_way.values(), *(one for one in served if one.document_id not in under_way), *failed.values()]


def _counts(rows: Sequence[Row]) -> dict[str, int]:
    counts = Counter(map(_state, rows))
    return {"all": len(rows)} | {state: counts[state] for state in STATES}


def _state(row: Row) -> str:
    if isinstance(row, StoredDocument):
        return "processed"
    return "processing" if row.error is None else "failed"


def _order(row: Row, field: str) -> tuple[Any, str]:
    """The document's id decides between equals."""
    if isinstance(row, StoredDocument):
        at, path = row.updated_us, file_path(row.document_id, row.fields)
    else:
        at, path = row.sent_us, file_path(row.document_id, {"metadata": row.metadata})
    return {"id": row.document_id, "file_path": path}.get(field, at), row.document_id


def _page(shelf: Shelf, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Show rows; one that has gone since it was listed is left out."""
    found = []
    for row in rows:
        if isinstance(row, Sent):
            found.append(shown_sent(row))
        elif (whole := shelf.stored(row.document_id)) is not None:
            found.append(shown(whole))
    return found


_DOCUMENT = {
    "id": "doc-9f86d081884c7d659a2feaa0c55ad015",
    "content_summary": "The pump is started by the green lever.",
    "content_length": 39,
    "status": "processed",
    "created_at": "2026-01-31T12:00:00.120000Z",
    "updated_at": "2026-01-31T12:00:00.120000Z",
    "track_id": "insert_20260131_120000_5b0c1d2e_1",
    "chunks_count": 1,
    "error_msg": None,
    "metadata": {},
    "file_path": "pump.txt",
}
_COUNTS = {"all": 1} | dict.fromkeys(STATES, 0) | {"processed": 1}
_PAGINATION = {"page": 1, "page_size": 50, "total_count": 1, "total_pages": 1, "has_next": False, "has_prev": False}
ENDPOINTS = [
    endpoint(
        "GET", "/documents/track_status/{track_id}", track_status, "The documents of one request",
        returns={"track_id": _DOCUMENT["track_id"], "documents": [_DOCUMENT], "total_count": 1,
                 "status_summary": {"processed": 1}},
    ),
    endpoint(
        "POST", "/documents/paginated", paginated, "A page of documents", body=Documents,
        example={"page": 1, "page_size": 50, "sort_field": "updated_at", "sort_direction": "desc"},
        returns={"documents": [_DOCUMENT], "pagination": _PAGINATION, "status_counts": _COUNTS},
    ),
    endpoint(
        "GET", "/documents/status_counts", status_counts, "How many documents are in each state",
        returns={"status_counts": _COUNTS},
    ),
    endpoint("GET", "/documents/pipeline_status", pipeline_status, "Whether documents are under way"),
    endpoint("GET", "/documents/supported_file_types", supported_file_types, "What may be uploaded"),
]  # fmt: skip
