"""Documents in and out: each request is one append of events, and its track id leads to them.

A document's id is LightRAG's own, ``doc-`` and the MD5 of its source's name, so that what was imported from there and
what is sent here meet. The n-th document of a request has the event id ``TRACK.n``; a track id ends in their number.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from hashlib import md5
from pathlib import PurePath
from typing import Annotated, Any

import msgspec
from starlette.responses import Response

from streamfold.core.events import CloudEvent
from streamfold.pipelines.serve.call import Call, answer
from streamfold.pipelines.serve.compat.intake import log_all
from streamfold.pipelines.serve.compat.lightrag.dialect import Body, Refused, endpoint
from streamfold.pipelines.serve.compat.lightrag.form import read_form, required
from streamfold.pipelines.serve.compat.lightrag.shelf import SOURCE, Shelf, reading
from streamfold.pipelines.serve.problems import Problem, at
from streamfold.pipelines.texts import SUFFIXES, NotText, decode_text, media_type_of, title_of

MAX_TEXTS = 1000
_NO_SOURCES = ("", "unknown_source", "no-file-path", "unknown")
_RECEIVED = "successfully received. Processing will continue in background."


class InsertText(Body, kw_only=True):
    """Body of ``POST /documents/text``; ``chunking`` is taken and has no effect: the service has its chunker."""

    text: str
    file_source: str | None = None
    chunking: dict[str, Any] | None = None


class InsertTexts(Body, kw_only=True):
    """Body of ``POST /documents/texts``."""

    texts: Annotated[list[str], msgspec.Meta(min_length=1)]
    file_sources: list[str] | None = None
    chunking: dict[str, Any] | None = None


class ReplaceText(Body, kw_only=True):
    """Body of ``PUT /documents/{id}``."""

    text: str
    file_source: str | None = None
    title: str | None = None
    metadata: dict[str, Any] | None = None


class DeleteDocuments(Body, kw_only=True):
    """Body of ``DELETE /documents/delete_document``."""

    doc_ids: Annotated[list[str], msgspec.Meta(min_length=1)]
    delete_file: bool = False
    delete_llm_cache: bool = False


def document_id(file_source: str) -> str:
    """Return LightRAG's id of a document with a known source."""
    return "doc-" + md5(file_source.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()


def new_track(prefix: str, count: int) -> str:
    """Make a track id: LightRAG's form, and how many documents it stands for."""
    return f"{prefix}_{datetime.now(UTC):%Y%m%d_%H%M%S}_{secrets.token_hex(4)}_{count}"


# -- in ----------------------------------------------------------------------------------------------------------------
async def insert_text(call: Call) -> Response:
    """Log one document."""
    call.service.admit(call.view)
    body = await call.struct(InsertText)
    track = await _insert(call, "insert", [(_source(body.file_source), _text(body.text, "/text"))])
    return _inserted(f"Text {_RECEIVED}", track)


async def insert_texts(call: Call) -> Response:
    """Log several documents: all, or none where one is refused."""
    call.service.admit(call.view)
    body = await call.struct(InsertTexts)
    if len(body.texts) > MAX_TEXTS:
        detail = f"Too many texts in one request: {len(body.texts)} (maximum {MAX_TEXTS})."
        raise Refused(413, f"{detail} Split the batch into smaller requests.")
    sources = [_source(one) for one in body.file_sources or ()]
    if len(sources) != len(body.texts):
        raise Refused(400, "file_sources must have one valid entry for each text")
    if len(set(sources)) != len(sources):
        raise Refused(400, "file_sources must be unique by filename")
    texts = [_text(text, f"/texts/{i}") for i, text in enumerate(body.texts)]
    track = await _insert(call, "insert", list(zip(sources, texts, strict=True)))
    return _inserted(f"Texts {_RECEIVED}", track)


async def upload(call: Call) -> Response:
    """Log an uploaded text file as a document."""
    call.service.admit(call.view)
    file = required(await read_form(call), "file")
    name = (file.filename or "").strip()
    if not name or name != PurePath(name).name or any(ord(letter) < 32 or letter == "\\" for letter in name):
        raise Refused(400, "Filename cannot be empty, nor a path")
    if not name.lower().endswith(SUFFIXES):
        raise Refused(400, f"Unsupported file type. Supported types: {SUFFIXES}")
    try:
        text = decode_text(file.value)
    except NotText as error:
        raise Refused(400, f"{name}: {error}") from error
    if not text.strip():
        raise Refused(400, f"{name}: the file is empty")
    track = await _insert(call, "upload", [(name, text)])
    return _inserted(f"File '{name}' uploaded successfully. Processing will continue in background.", track)


async def replace(call: Call) -> Response:
    """Store a document in place of the one with this id, if there is one."""
    call.service.admit(call.view)
    id_, body = call.id(), await call.struct(ReplaceText)
    text = _text(body.text, "/text")
    source = _source(body.file_source) if body.file_source is not None else None
    if source is None:
        source = await reading(call, lambda shelf: shelf.file_path(id_))
    metadata = {**(body.metadata or {}), "file_path": source}
    track = new_track("update", 1)
    await _log(call, "document.upserted", [_data(id_, source, text, title=body.title, metadata=metadata)], track)
    return _inserted(f"Text {_RECEIVED}", track, doc_id=id_)


def _text(text: str, pointer: str) -> str:
    if not text.strip():
        raise at(pointer, "invalid-value", "text cannot be empty or whitespace-only")
    return text.strip()


def _source(given: str | None) -> str:
    source = (given or "").strip()
    if source in _NO_SOURCES:
        raise Refused(400, "A valid file_source is required for text insertion")
    return source


def _data(
    id_: str, source: str, text: str, *, title: str | None = None, metadata: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Make a document's data; a title where there is one: given, a heading, or the name of a text file."""
    if title is None and source.lower().endswith(SUFFIXES):
        title = title_of(text, source)
    data = {"document_id": id_, "text": text, "title": title, "media_type": media_type_of(source)}
    return data | {"metadata": metadata or {"file_path": source}}


async def _insert(call: Call, prefix: str, documents: Sequence[tuple[str, str]]) -> str:
    """Log new documents; 409 where one is there already, or is just being sent by another request."""
    track = new_track(prefix, len(documents))
    ids = {document_id(source): source for source, _ in documents}
    busy = call.service.inserting
    mine = {(call.workspace, id_) for id_ in ids}
    if both := busy & mine:
        raise _there(ids[min(both)[1]], "pending")
    busy |= mine
    try:

        def check(shelf: Shelf) -> None:
            for id_, source in ids.items():
                if state := shelf.state(id_):
                    raise _there(source, state)

        data = [_data(document_id(source), source, text) for source, text in documents]
        await reading(call, check)
        await _log(call, "document.upserted", data, track)
    finally:
        busy -= mine
    return track


def _there(source: str, state: str) -> Problem:
    detail = f"Document storage already contains '{source}' (Status: {state})."
    return Refused(409, f"{detail} Delete the existing record before re-inserting, or replace it: PUT /documents/ID.")


def _inserted(message: str, track: str, **more: str) -> Response:
    return answer({"status": "success", "message": message, "track_id": track, **more})


# -- out ---------------------------------------------------------------------------------------------------------------
async def delete_documents(call: Call) -> Response:
    """Log deletions: hidden at once, never busy."""
    call.service.admit(call.view)
    body = await call.struct(DeleteDocuments)
    ids = [one.strip() for one in body.doc_ids]
    if not all(ids):
        raise at("/doc_ids", "invalid-value", "Document ID cannot be empty")
    if len(set(ids)) != len(ids):
        raise at("/doc_ids", "invalid-value", "Document IDs must be unique")
    await _delete(call, ids)
    message = f"Document deletion for {len(ids)} documents has been initiated. Processing will continue in background."
    return answer({"status": "deletion_started", "message": message, "doc_id": ", ".join(ids)})


async def clear(call: Call) -> Response:
    """Log the deletion of every document; the log, and what else is in the workspace, stays."""
    call.service.admit(call.view)
    ids = await reading(call, lambda shelf: shelf.ids())
    most = call.service.settings.limits.max_batch_events
    for start in range(0, len(ids), most):
        await _delete(call, ids[start : start + most])
    message = f"All documents cleared successfully. Deleted {len(ids)} documents."
    return answer({"status": "success", "message": message})


async def _delete(call: Call, ids: Sequence[str]) -> None:
    most = call.service.settings.limits.max_batch_events
    if len(ids) > most:
        raise Refused(413, f"Too many documents in one request: {len(ids)} (maximum {most}).")
    await _log(call, "document.deleted", [{"document_id": id_} for id_ in ids], new_track("delete", len(ids)))


async def _log(call: Call, type_: str, data: Sequence[dict[str, Any]], track: str) -> None:
    """Append all events, or none where one is not valid."""
    raws = [
        CloudEvent(specversion="1.0", id=f"{track}.{i}", source=SOURCE, type=type_, data=_raw(one))
        for i, one in enumerate(data)
    ]
    await log_all(call, lambda: raws)
    call.log["event_ids"] = [raw.id for raw in raws[:5]]


def _raw(data: dict[str, Any]) -> msgspec.Raw:
    try:
        return msgspec.Raw(msgspec.json.encode(data))
    except UnicodeEncodeError:
        raise at("/text", "invalid-value", "the text contains a lone surrogate: send valid Unicode") from None


_INSERTED = {"status": "success", "message": f"Text {_RECEIVED}", "track_id": "insert_20260131_120000_5b0c1d2e_1"}
_Run = Callable[[Call], Awaitable[Response]]


def _write(method: str, path: str, run: _Run, summary: str, **more: Any) -> Any:
    return endpoint(method, path, run, summary, **({"scope": "ingest", "returns": _INSERTED} | more))


_DELETED = {
    "status": "deletion_started",
    "message": "Document deletion for 1 documents has been initiated.",
    "doc_id": "a",
}
ENDPOINTS = [
    _write(
        "POST", "/documents/text", insert_text, "Store a text", body=InsertText,
        example={"text": "The pump is started by the green lever.", "file_source": "pump.txt"},
    ),
    _write(
        "POST", "/documents/texts", insert_texts, "Store several texts", body=InsertTexts,
        example={"texts": ["The pump is started by the green lever."], "file_sources": ["pump.txt"]},
    ),
    _write(
        "POST", "/documents/upload", upload, "Store a text or Markdown file", media=("multipart/form-data",),
        example={"file": "(binary)"},
    ),
    _write(
        "PUT", "/documents/{id:path}", replace, "Store a document in place of the one with this id (not in LightRAG)",
        body=ReplaceText, example={"text": "The pump is started by the red lever.", "file_source": "pump.txt"},
    ),
    _write(
        "DELETE", "/documents/delete_document", delete_documents, "Delete documents", body=DeleteDocuments,
        example={"doc_ids": ["a"]}, returns=_DELETED,
    ),
    _write(
        "DELETE", "/documents", clear, "Delete every document",
        returns={"status": "success", "message": "All documents cleared successfully. Deleted 2 documents."},
    ),
]  # fmt: skip
