"""Erasing a user, an item or a document, and what became of it."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response

from streamfold.core.errors import InvalidEvent
from streamfold.core.events import CloudEvent, check_text
from streamfold.core.ledger.abc import Erasure
from streamfold.pipelines.serve import examples
from streamfold.pipelines.serve.call import Call, Endpoint, answer, rfc3339
from streamfold.pipelines.serve.documents import SOURCE
from streamfold.pipelines.serve.events import outcomes
from streamfold.pipelines.serve.problems import Problem, at, of_invalid

KINDS = ("user", "item", "document")
_WHEN_COMPARED = (
    "compared when asked for, since it folds the whole log: POST /v1/policies/{name}/verify, "
    "or streamfold erase --verify"
)
_HIDDEN_WITHIN_S = 5.0
_SEEN_WITHIN_S = 20.0
NOT_COVERED = (
    "Kafka topics and whatever else sent the events: they can send them again, which has no effect here",
    "backups that were made before, and copies of the archive's files",
    "answers that clients have received, and log files that name ids",
)
NOT_COVERED_POSTGRES = (
    "PostgreSQL's write-ahead log, its archives and replicas, and dead rows' bytes until their pages are used again",
)
NOT_COVERED_SQLITE = ("blocks that the file system has given up and not overwritten",)


class Erase(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of ``POST /v1/erasures``: one of the three."""

    user_id: str | None = None
    item_id: str | None = None
    document_id: str | None = None


async def post_erasure(call: Call) -> Response:
    """Log the erasing event; the answer comes when this process hides the subject."""
    service, view = call.service, call.view
    body = await call.struct(Erase)
    given = [(kind, value) for kind in KINDS if (value := getattr(body, f"{kind}_id")) is not None]
    if len(given) != 1:
        raise at("", "invalid-value", "give one of user_id, item_id and document_id")
    [(kind, subject_id)] = given
    try:
        check_text(subject_id, f"/{kind}_id")
    except InvalidEvent as error:
        raise of_invalid(error) from error
    data = msgspec.Raw(msgspec.json.encode({f"{kind}_id": subject_id}))
    event_id = f"erase-{uuid.uuid4().hex}"
    raw = CloudEvent(specversion="1.0", id=event_id, source=SOURCE, type=f"{kind}.erased", data=data)

    def take() -> int:
        [event] = service.accept(view.name, [raw])
        if isinstance(event, InvalidEvent):
            raise of_invalid(event, strip="/data")
        [(_, position, refused)] = outcomes([event], service.append(view, [event]))
        if refused is not None or position is None:
            raise Problem("policy-conflict", "the erasure was not taken: try again")
        node = service.node
        node.ledger.audit(
            view.name,
            actor=call.principal.name,
            action="erase",
            target=f"erasure:{position}",
            reason=kind,
            at_us=node.context.clock.now_us(),
        )
        return position

    position = await call.in_thread(service.intake_pool, take)
    call.log["position"] = position
    hidden = await service.waiters(view).until(lambda: view.hides_upto >= position, _HIDDEN_WITHIN_S)
    if hidden and service.settings.is_embedded:  # elsewhere there are other views
        ledger, now_us = service.node.ledger, service.node.context.clock.now_us()
        await call.in_thread(service.intake_pool, ledger.set_hidden, view.name, position, now_us)
    return answer({"erasure_id": str(position), "position": position}, 202)


async def get_erasure(call: Call) -> Response:
    """How far an erasure is, and what was found when it was done."""
    return answer(await call.ask(_report, call))


def _report(call: Call) -> dict[str, Any]:
    node, text = call.service.node, call.path["id"]
    found = None
    if text.isascii() and text.isdecimal() and len(text) < 19:
        found = node.ledger.erasure(call.workspace, int(text))
    if found is None:
        raise Problem("not-found", f"no erasure '{text[:40]}' in this workspace")
    is_open = not (found.completed_us and _is_seen(call))
    report = json.loads(found.report or "{}")
    return {
        "erasure_id": str(found.position),
        "position": found.position,
        "kind": found.subject.kind,
        "state": "hidden" if is_open and found.hidden_us else found.state,
        "requested_at": rfc3339(found.requested_us),
        "hidden_at": rfc3339(found.hidden_us),
        "completed_at": rfc3339(0 if is_open else found.completed_us),
        "policies": _policies(call, found, report.get("deltas", {})),
        "stores": report.get("stores", []),
        "looked_for": report.get("looked_for"),
        "removed": report.get("removed"),
        "not_covered": _not_covered(call),
    }


def _is_seen(call: Call) -> bool:
    """Have what answers here come to where the groups are: they have forgotten in the ledger, a moment before this
    process's view has read that and its servers have worked it in. Whoever is told so is answered without it."""
    view, marks = call.view, call.service.node.ledger.watermarks(call.workspace)
    deadline = time.monotonic() + _SEEN_WITHIN_S

    def is_behind() -> bool:
        here = {one.group.name: (one.watermark, one.commit_no) for one in view.answerers()}
        return any(here[name][0] < marks[name][0] or here[name][1] < marks[name][1] for name in here.keys() & marks)

    while is_behind() and time.monotonic() < deadline:
        if not view.follow():
            time.sleep(0.01)
    return not is_behind()


def _policies(call: Call, erasure: Erasure, deltas: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One line per instance: how it forgot; ``state`` pending, rebuilding, writing or done; and, once it was compared,
    how far its state is from the log folded afresh."""
    ledger, lines = call.service.node.ledger, []
    notes = {note.group: note for note in ledger.erased_groups(call.workspace, erasure.position)}
    words = {"done": "done", "checkpoint": "writing", "rebuild": "rebuilding"}
    for instance in ledger.instances(call.workspace):
        note = notes.get(instance.group)
        if note is None and erasure.completed_us:
            continue  # made after the erasure was complete
        key = f"{instance.name}@{instance.version}"
        lines.append(
            {
                "policy": key,
                "slot": instance.slot,
                "method": None if note is None else note.method,
                "state": "pending" if note is None else words[note.state],
                "removed": 0 if note is None else note.removed,
                **_compared(deltas.get(instance.group, {}).get(key), instance.slot, erasure),
            }
        )
    return lines


def _compared(delta: Mapping[str, Any] | None, slot: str, erasure: Erasure) -> dict[str, Any]:
    """How far a policy's state is from the log folded afresh without the subject, or why nobody knows.

    It is worked out when asked for: it costs a fold of the whole log, for each policy.
    """
    if delta is None:
        reason = _WHEN_COMPARED
        if not erasure.completed_us:
            reason = "the erasure is not complete"
        elif slot == "retired":
            reason = "it was retired: its state is gone"
        return {"max_abs_delta": None, "delta": None, "not_compared": reason}
    shown = {name: value for name, value in delta.items() if name not in ("max_abs", "at_us")}
    shown["at"] = rfc3339(delta["at_us"])
    return {"max_abs_delta": delta["max_abs"], "delta": shown, "not_compared": None}


def _not_covered(call: Call) -> list[str]:
    embedded = call.service.settings.is_embedded
    missing = call.service.node.context.history.missing(call.workspace)
    lost = [f"files of the archive that were not there: {', '.join(missing)}"] if missing else []
    return [*lost, *NOT_COVERED, *(NOT_COVERED_SQLITE if embedded else NOT_COVERED_POSTGRES)]


ENDPOINTS = [
    Endpoint(
        method="POST", path="/v1/erasures", run=post_erasure, scope="admin", body=Erase, status=202,
        summary="Remove all traces of a user, an item or a document", example={"user_id": "u-1"},
        returns={"erasure_id": "1042", "position": 1042}, errors=(400, 415, 422),
    ),
    Endpoint(
        method="GET", path="/v1/erasures/{id}", run=get_erasure, scope="admin", summary="What became of an erasure",
        returns=examples.ERASURE, errors=(404,),
    ),
]  # fmt: skip
