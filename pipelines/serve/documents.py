"""Documents, items and users as resources: PUT, PATCH and DELETE are events; GET shows what is stored."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.responses import Response

from streamfold.core.errors import InvalidEvent
from streamfold.core.events import CloudEvent, Subject, check_text
from streamfold.core.events.problems import DECODING_ERRORS
from streamfold.core.policy import Retriever, StoredDocument
from streamfold.core.views import GroupView, MemberView, WorkspaceView
from streamfold.pipelines.serve import examples
from streamfold.pipelines.serve.call import (
    PAGE_PARAMS,
    READ_PARAMS,
    WRITE_PARAMS,
    Call,
    Endpoint,
    answer,
    page,
    rfc3339,
)
from streamfold.pipelines.serve.events import outcomes, write_options
from streamfold.pipelines.serve.problems import Problem, at, of_invalid
from streamfold.pipelines.serve.reading import wait_fresh

SOURCE = "streamfold:rest"
"""``source`` of events made from PUT, PATCH and DELETE."""
KINDS = {"documents": "document", "items": "item", "users": "user"}
_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def _writer(plural: str, verb: str) -> Callable[[Call], Awaitable[Response]]:
    """Make the route that logs one event about a subject; deleting a user erases it."""
    kind = KINDS[plural]
    type_ = f"{kind}.{'erased' if (kind, verb) == ('user', 'deleted') else verb}"
    id_field = f"{kind}_id"

    async def write(call: Call) -> Response:
        service, view = call.service, call.view
        wait, wait_ms = write_options(call)
        subject_id = call.id()
        event_id = call.request.headers.get("idempotency-key") or f"rest-{uuid.uuid4().hex}"
        try:
            check_text(event_id, "/Idempotency-Key")
        except InvalidEvent as error:
            raise of_invalid(error) from error
        service.admit(view)
        body = b"{}" if verb == "deleted" else await call.json_body()
        data = _with_id(body, id_field, subject_id)
        raw = CloudEvent(specversion="1.0", id=event_id, source=SOURCE, type=type_, data=msgspec.Raw(data))

        def take() -> tuple[str, int | None, InvalidEvent | None]:
            service.charge_events(view.name, 1)
            [event] = service.accept(view.name, [raw])
            if isinstance(event, InvalidEvent):
                return "rejected", None, event
            [result] = outcomes([event], service.append(view, [event]))
            return result

        _, position, refused = await call.in_thread(service.intake_pool, take)
        if refused is not None:
            raise of_invalid(refused, strip="/data")
        assert position is not None
        call.log |= {"event_ids": [event_id], "position": position}
        visible = await service.visible(view, position, (type_,), wait_ms if wait else 0)
        value = {"event_id": event_id, "position": position, "visible": visible}
        return answer(value, 200 if wait and visible else 202)

    return write


def _with_id(body: bytes, field: str, subject_id: str) -> bytes:
    """Put the path's id into the data; a body may repeat it, not contradict it."""
    try:
        members = _members(body)
        given = members.pop(field, None)
        same = given is None or msgspec.json.decode(given) == subject_id
    except DECODING_ERRORS as error:
        deep = isinstance(error, RecursionError)
        detail = "the JSON is nested too deeply" if deep else f"the body is not a JSON object: {str(error)[:200]}"
        raise Problem("malformed", detail) from error
    if not same:
        raise at(f"/{field}", "invalid-value", f"{field} differs from the id in the path: leave it out")
    return msgspec.json.encode({field: subject_id, **members})


# -- reading -------------------------------------------------------------------------------------
def _retriever(call: Call, view: WorkspaceView) -> tuple[GroupView, MemberView]:
    for group, member in view.servers(Retriever, call.query.get("policy")):
        return group, member
    named = call.query.get("policy")
    raise Problem("not-found", f"no policy {f'{named[:64]!r} ' if named else ''}here stores documents")


async def get_document(call: Call) -> Response:
    """One stored document with its chunks."""
    view, document_id = call.view, call.id()
    group, _ = _retriever(call, view)
    await wait_fresh(call, view, [group])

    def read() -> dict[str, Any]:
        group, member = _retriever(call, view)
        with view.reading([group]) as cut:
            found = None
            if not view.hidden(group, [Subject("document", document_id)]):
                found = member.server.document(document_id)
            if found is None:
                raise Problem(
                    "not-found", f"no document '{document_id[:100]}' is stored", extra={"version": cut.as_json()}
                )
            return _shown(found, chunks=True) | {"version": cut.as_json()}

    return answer(await call.ask(view.asked, read))


async def get_documents(call: Call) -> Response:
    """A page of stored documents in order of id, without their texts unless they are asked for."""
    view, limit, after = call.view, call.limit(), call.cursor(str, "")
    full = "include" in call.query and call.choice("include", ("text",)) == "text"
    group, _ = _retriever(call, view)
    await wait_fresh(call, view, [group])

    def read() -> dict[str, Any]:
        group, member = _retriever(call, view)
        with view.reading([group]) as cut:
            found = member.server.documents(after=after, limit=limit)
            seen = [one for one in found if not view.hidden(group, [Subject("document", one.document_id)])]
            if full:
                seen = [whole for one in seen if (whole := member.server.document(one.document_id)) is not None]
            items = [_shown(one, chunks=full) for one in seen]
            place = found[-1].document_id if len(found) == limit else None
            return page(items, place) | {"version": cut.as_json()}

    return answer(await call.ask(view.asked, read))


def _shown(document: StoredDocument, *, chunks: bool) -> dict[str, Any]:
    value = {
        "document_id": document.document_id,
        **document.fields,
        "content_hash": document.content_hash,
        "event_id": document.event_id,
        "position": document.position,
        "updated_at": rfc3339(document.updated_us),
    }
    if document.text_position is not None:
        value["text_position"] = document.text_position
    if chunks:
        value["chunks"] = [
            {"chunk_id": chunk_id, "text": chunk.text, "start": chunk.start, "end": chunk.end}
            for chunk_id, chunk in zip(document.chunk_ids, document.chunks, strict=True)
        ]
    return value


def _writes() -> list[Endpoint]:
    found = []
    for plural, kind in KINDS.items():
        for method, verb, summary in (
            ("PUT", "upserted", f"Store the {kind} (replaces it)"),
            ("PATCH", "patched", f"Change fields of the {kind} (RFC 7396)"),
            ("DELETE", "deleted", f"{'Erase' if kind == 'user' else 'Delete'} the {kind}"),
        ):
            found.append(
                Endpoint(
                    method=method,
                    path=f"/v1/{plural}/{{id:path}}",
                    run=_writer(plural, verb),
                    scope="ingest",
                    tag="ingest",
                    summary=summary,
                    params=WRITE_PARAMS,
                    status=202,
                    example=None if method == "DELETE" else examples.DATA[method, kind],
                    returns=examples.WRITTEN,
                    errors=(400, 409, 413, 415, 422, 429),
                )
            )
    return found


ENDPOINTS = [
    *_writes(),
    Endpoint(
        method="GET", path="/v1/documents", run=get_documents, tag="ask", summary="A page of stored documents",
        params=(*PAGE_PARAMS, *READ_PARAMS, "include", "policy"), returns=examples.DOCUMENTS, errors=(400, 422, 503),
    ),
    Endpoint(
        method="GET", path="/v1/documents/{id:path}", run=get_document, tag="ask", summary="A stored document",
        params=(*READ_PARAMS, "policy"), returns=examples.DOCUMENT, errors=(404, 422, 503),
    ),
]  # fmt: skip
