"""Dead letters: what was not taken, and taking it again."""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.responses import Response

from streamfold.core.archive import History
from streamfold.core.errors import ArchiveMissing, InvalidEvent
from streamfold.core.events import (
    CloudEvent,
    Envelope,
    NewEvent,
    decode_http,
    decode_kafka,
)
from streamfold.core.fold.residue import mentions
from streamfold.core.ledger.abc import ERASED, DeadLetter, Erasure
from streamfold.core.views import WorkspaceView
from streamfold.pipelines.ingest.take import kept_record, topic_mapping
from streamfold.pipelines.serve import examples
from streamfold.pipelines.serve.call import PAGE_PARAMS, Call, Endpoint, answer, page, rfc3339
from streamfold.pipelines.serve.events import outcomes
from streamfold.pipelines.serve.jobs import Progress
from streamfold.pipelines.serve.problems import Problem, at, of_invalid

_envelope = msgspec.msgpack.Decoder(Envelope).decode
_STAGES = ("decode", "validate", "prepare", "fold")
RETRY_SOURCE = "streamfold:retry"
_LABEL = "label.observed"
"""Only another label of its head undoes one: what its target says meanwhile may be what it waited for."""
_PAGE = 2048


class _Labelled(msgspec.Struct):
    head: str


class RetryMany(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of ``POST /v1/dead-letters/retry``."""

    policy: str | None = None
    code: str | None = None


async def list_letters(call: Call) -> Response:
    """A page of dead letters, oldest first."""
    limit, after = call.limit(), call.cursor(int, 0)
    if "stage" in call.query:
        call.choice("stage", _STAGES)
    ledger = call.service.node.ledger
    found = await call.ask(
        lambda: ledger.dead_letters(
            call.workspace,
            after=after,
            limit=limit,
            policy=call.query.get("policy"),
            stage=call.query.get("stage"),
            code=call.query.get("code"),
        )
    )
    erasing = await call.ask(ledger.erasures, call.workspace)
    items = [_shown(letter) for letter in found if not _is_erasing(letter, erasing)]
    return answer(page(items, found[-1].dead_letter_id if len(found) == limit else None))


def _shown(letter: DeadLetter) -> dict[str, Any]:
    return {
        "dead_letter_id": letter.dead_letter_id,
        "stage": letter.stage,
        "policy": letter.policy,
        "position": letter.position,
        "code": letter.code,
        "detail": letter.detail,
        "attempts": letter.attempts,
        "at": rfc3339(letter.at_us),
        "source": letter.source,
        "offset": letter.offset,
        "event_id": letter.event_id,
    }


def _is_erasing(letter: DeadLetter, erasing: Sequence[Erasure]) -> bool:
    """Whether a letter names a subject that is being erased, or comes from one of its events."""
    return any(letter.position in (e.found or ()) or mentions(letter, e.subject) for e in erasing)


def _letter(call: Call) -> DeadLetter:
    text, ledger = call.path["id"], call.service.node.ledger
    found = None
    if text.isascii() and text.isdecimal() and len(text) < 19:
        found = ledger.dead_letter(call.workspace, int(text))
    if found is None or _is_erasing(found, ledger.erasures(call.workspace)):
        raise Problem("not-found", f"no dead letter '{text[:40]}'")
    return found


async def get_letter(call: Call) -> Response:
    """One dead letter with what came in."""
    letter = await call.ask(_letter, call)
    more = {"headers": dict(letter.headers), "payload_base64": base64.b64encode(letter.payload).decode()}
    return answer(_shown(letter) | more)


async def drop_letter(call: Call) -> Response:
    """Forget a dead letter; the skip itself stays recorded, replay honours it."""
    letter = await call.ask(_letter, call)
    await call.ask(call.service.node.ledger.drop_dead_letter, call.workspace, letter.dead_letter_id)
    await call.ask(_audit, call, "drop", str(letter.dead_letter_id))
    return Response(status_code=204)


async def retry_letter(call: Call) -> Response:
    """Append what was not taken anew."""
    view = call.view
    call.service.admit(view)

    def work() -> dict[str, Any]:
        letter = _letter(call)
        value = retry(call, view, letter)
        _audit(call, "retry", str(letter.dead_letter_id))
        return value

    value = await call.in_thread(call.service.intake_pool, work)
    call.log |= {"event_ids": [value["event_id"]], "position": value["position"]}
    return answer(value, 202)


async def retry_letters(call: Call) -> Response:
    """Retry all dead letters of a policy or code, as a job."""
    body, view = await call.struct(RetryMany), call.view
    if body.policy is None and body.code is None:
        raise at("/policy", "invalid-value", "name a policy or a code: retrying everything is rarely meant")

    def work(step: Progress) -> dict[str, Any]:
        _audit(call, "retry", f"policy={body.policy} code={body.code}")
        ledger = call.service.node.ledger
        after, retried, refused = 0, 0, []
        while letters := ledger.dead_letters(
            call.workspace, after=after, limit=200, policy=body.policy, code=body.code
        ):
            for letter in letters:
                try:
                    retry(call, view, letter)
                    retried += 1
                except Problem as problem:
                    refused.append(
                        {"dead_letter_id": letter.dead_letter_id, "code": problem.code, "detail": problem.detail}
                    )
                after = letter.dead_letter_id
            step(retried + len(refused), retried + len(refused) + 1)
        return {"retried": retried, "refused": len(refused), "errors": refused[:100]}

    return answer({"job_id": call.service.jobs.start("retry", call.workspace, work).job_id}, 202)


def _audit(call: Call, action: str, target: str) -> None:
    node = call.service.node
    node.ledger.audit(
        call.workspace,
        actor=call.principal.name,
        action=f"dead-letter.{action}",
        target=f"dead-letter:{target}",
        reason="",
        at_us=node.context.clock.now_us(),
    )


def retry(call: Call, view: WorkspaceView, letter: DeadLetter) -> dict[str, Any]:
    """Append a dead letter's event anew and drop the letter; raises ``Problem`` when it cannot be. Blocks."""
    service, ledger = call.service, call.service.node.ledger
    event = _skipped(call, letter) if letter.position is not None else _undecoded(call, letter)
    [(_, position, refused)] = outcomes([event], service.append(view, [event]))
    if refused is not None:
        raise of_invalid(refused)
    ledger.drop_dead_letter(call.workspace, letter.dead_letter_id)
    return {"event_id": event.id, "position": position, "retry_of": letter.position}


def _skipped(call: Call, letter: DeadLetter) -> NewEvent:
    """Make the new log entry of an event that an instance skipped: only those that skipped it will fold it.

    Its id comes from the letter, so a retry that was cut off after the append is not appended twice. It carries no
    ``sequence``: the original's was stored, and an equal one has no effect.
    """
    history, workspace = call.service.node.context.history, call.workspace
    assert letter.position is not None
    rows = history.rows(workspace, [letter.position])
    if not rows or rows[0].effect == ERASED:
        raise Problem("policy-conflict", f"the event at position {letter.position} is gone: drop this dead letter")
    envelope = _envelope(rows[0].body)
    newer = _newer(history, workspace, envelope, letter.position)
    if newer is not None:
        detail = (
            f"{envelope.subject_kind} '{envelope.subject_id[:100]}' has a newer event at position {newer}: a retry "
            f"would undo it; send a new event instead, or drop this dead letter"
        )
        raise Problem("policy-conflict", detail, extra={"position": newer})
    raw = CloudEvent(
        specversion="1.0",
        id=f"retry-{letter.dead_letter_id}-of-{letter.position}",
        source=RETRY_SOURCE,
        type=envelope.type,
        data=msgspec.Raw(envelope.data),
        traceparent=envelope.traceparent,
    )
    try:
        event = call.service.node.acceptor.accept(raw, was_logged=True)
    except InvalidEvent as error:
        raise of_invalid(error) from error
    body = msgspec.structs.replace(_envelope(event.body), time_us=envelope.time_us)
    return dataclasses.replace(
        event, retry_of=letter.position, body=msgspec.msgpack.encode(body), time_us=envelope.time_us
    )


def _newer(history: History, workspace: str, envelope: Envelope, position: int) -> int | None:
    """Position of a newer event that a retry would undo; of a label that is one of the same target and head."""
    kind, id_, type_ = envelope.subject_kind, envelope.subject_id, _LABEL if envelope.type == _LABEL else None
    newest = history.newest_seq(workspace, kind, id_, position, type=type_)
    if newest is None or type_ is None:
        return newest
    head, found, after = _head(envelope), None, position
    while after < newest:
        try:
            page = history.read(workspace, after, _PAGE, upto=newest, types=[_LABEL])
        except ArchiveMissing:
            return newest  # what is gone may have been of this head
        for row in page.rows:
            label = _envelope(row.body) if row.effect != ERASED else None
            if label is not None and (label.subject_kind, label.subject_id) == (kind, id_) and _head(label) == head:
                found = row.seq
        after = page.rows[-1].seq if len(page.rows) == _PAGE else newest
    return found


def _head(label: Envelope) -> str:
    return msgspec.json.decode(label.data, type=_Labelled).head


def _undecoded(call: Call, letter: DeadLetter) -> NewEvent:
    """Decode what came in again, by today's settings, types and plugins."""
    try:
        raw = _again(call, letter)
        if isinstance(raw, InvalidEvent):
            raise raw
        [event] = call.service.accept(call.workspace, [raw])
        if isinstance(event, InvalidEvent):
            raise event
    except InvalidEvent as error:
        raise of_invalid(error) from error
    return event


def _again(call: Call, letter: DeadLetter) -> CloudEvent | InvalidEvent:
    record = kept_record(letter)
    settings = None if record is None else call.service.settings.kafka.topics.get(record.topic)
    if record is None or settings is None:
        media = {name.lower(): value for name, value in letter.headers.items()}.get("content-type", "application/json")
        return decode_http(media, letter.headers, letter.payload)[0]
    again = decode_kafka(record, topic_mapping(settings), call.service.node.registry.decoders)
    return again or InvalidEvent("invalid-event", "by today's settings the record means nothing: drop it")


ENDPOINTS = [
    Endpoint(
        method="GET", path="/v1/dead-letters", run=list_letters, summary="A page of dead letters",
        params=(*PAGE_PARAMS, "policy", "stage", "code"), returns={"items": [examples.LETTER], "next_cursor": None},
        errors=(400, 422),
    ),
    Endpoint(
        method="POST", path="/v1/dead-letters/retry", run=retry_letters, scope="admin", body=RetryMany, status=202,
        summary="Retry the dead letters of a policy or code", example={"policy": "graph_index@1"},
        returns=examples.JOB_STARTED, errors=(422,),
    ),
    Endpoint(
        method="GET", path="/v1/dead-letters/{id}", run=get_letter, scope="admin", errors=(404,),
        summary="A dead letter with what came in",
        returns=examples.LETTER | {"headers": {}, "payload_base64": ""},
    ),
    Endpoint(
        method="POST", path="/v1/dead-letters/{id}/retry", run=retry_letter, scope="admin", status=202,
        summary="Append it anew", errors=(404, 409, 422, 429),
        returns={"event_id": "retry-3-of-977", "position": 1043, "retry_of": 977},
    ),
    Endpoint(
        method="POST", path="/v1/dead-letters/{id}/drop", run=drop_letter, scope="admin", status=204,
        summary="Forget it", errors=(404,),
    ),
]  # fmt: skip
