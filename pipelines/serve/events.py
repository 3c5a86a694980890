"""Events in and out: ``POST /v1/events``, the log's pages, and the trace of one event."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

from starlette.responses import Response

from streamfold.core.errors import InvalidEvent
from streamfold.core.events import NewEvent, decode_http, encode
from streamfold.core.events.codecs import BATCH, NDJSON, STRUCTURED
from streamfold.core.fold.erasure import is_about
from streamfold.core.ledger.abc import ERASED, NORMAL, SUPERSEDED, Appended, DeadLetter, Erasure, Instance, LogRow
from streamfold.core.views import WorkspaceView
from streamfold.pipelines.serve import examples
from streamfold.pipelines.serve.call import PAGE_PARAMS, WRITE_PARAMS, Call, Endpoint, answer, page, rfc3339
from streamfold.pipelines.serve.problems import Problem, of_invalid, one
from streamfold.pipelines.serve.service import Service

_MAX_ERRORS = 100
_EFFECTS = {NORMAL: "folded", SUPERSEDED: "superseded", ERASED: "erased"}
_LOGGED_IDS = 5


async def post_events(call: Call) -> Response:
    """Take one event or a batch; 202 means logged, 200 means visible here too."""
    service, view = call.service, call.view
    wait, wait_ms = write_options(call)
    every = call.query.get("results") == "all"
    if "results" in call.query:
        call.choice("results", ("rejected", "all"))
    service.admit(view)
    body = await call.body()
    headers = call.request.headers
    content_type = headers.get("content-type", "")
    batch = _is_batch(content_type, "ce-specversion" in headers, body)
    events, done = await call.in_thread(
        service.intake_pool, _take, service, view, content_type, dict(headers), body, batch
    )
    results = outcomes(events, done)
    call.log["event_ids"] = [event.id for event in events[:_LOGGED_IDS] if isinstance(event, NewEvent)]
    call.log["events"] = len(events)
    refused = [i for i, (status, *_) in enumerate(results) if status == "rejected"]
    if refused:
        service.metrics.count(
            view.name, Counter({"rejected": sum(isinstance(event, InvalidEvent) for event in events)})
        )
    if not batch and refused:
        error = results[0][2]
        assert error is not None
        raise of_invalid(error)
    if len(refused) == len(results):
        raise _all_refused(events, results)
    position = max(p for _, p, _ in results if p is not None)
    call.log["position"] = position
    types = {event.type for event in events if isinstance(event, NewEvent)}
    visible = await service.visible(view, position, types, wait_ms if wait else 0)
    statuses = Counter(status for status, *_ in results)
    value = {
        "position": position,
        "accepted": statuses["accepted"],
        "duplicates": statuses["duplicate"],
        "rejected": statuses["rejected"],
        "visible": visible,
        "results": [
            _result(i, events[i], *result) for i, result in enumerate(results) if every or result[0] == "rejected"
        ],
    }
    return answer(value, 200 if wait and visible else 202)


def _take(
    service: Service, view: WorkspaceView, content_type: str, headers: dict[str, str], body: bytes, batch: bool
) -> tuple[list[NewEvent | InvalidEvent], Appended]:
    """Decode, validate and log, in one thread: the interpreter's lock is the bound, so hand-overs only cost."""
    raws = decode_http(content_type, headers, body)
    most = service.settings.limits.max_batch_events
    if len(raws) > most:
        raise InvalidEvent("too-large", f"the batch holds {len(raws)} events: at most {most} are allowed")
    if not raws:
        raise InvalidEvent("invalid-event", "the batch holds no event")
    service.charge_events(view.name, len(raws))
    events = service.accept(view.name, raws)
    good = [event for event in events if isinstance(event, NewEvent)]
    if not good:
        return events, Appended([], [], 0, view.head)
    return events, service.append(view, good)


def _is_batch(content_type: str, binary: bool, body: bytes) -> bool:
    media = content_type.partition(";")[0].strip().lower()
    if media == BATCH or media in NDJSON:
        return True
    return media != STRUCTURED and not binary and body.lstrip(b" \t\r\n")[:1] == b"["


def outcomes(
    events: Sequence[NewEvent | InvalidEvent], done: Appended
) -> list[tuple[str, int | None, InvalidEvent | None]]:
    """Join what was refused before the log with what the log said: (status, position, problem) per event."""
    logged = iter(zip(done.outcomes, done.positions, strict=True))
    results: list[tuple[str, int | None, InvalidEvent | None]] = []
    for event in events:
        if isinstance(event, InvalidEvent):
            results.append(("rejected", None, event))
            continue
        outcome, position = next(logged)
        if outcome == "reused":
            detail = f"an event with id '{event.id}' of source '{event.source}' was logged with another content"
            results.append(("rejected", None, InvalidEvent("event-id-reused", detail, "/id")))
        else:  # an erased event counts as seen before: it has no effect
            results.append(("accepted" if outcome == "accepted" else "duplicate", position, None))
    return results


def _result(
    index: int, event: NewEvent | InvalidEvent, status: str, position: int | None, error: InvalidEvent | None
) -> dict[str, Any]:
    problem = None if error is None else one(error, index=index) | {"detail": error.detail}
    return {
        "index": index,
        "id": event.id if isinstance(event, NewEvent) else None,
        "status": status,
        "position": position,
        "problem": problem,
    }


def _all_refused(events: Sequence[NewEvent | InvalidEvent], results: Sequence[Any]) -> Problem:
    errors = [one(error, index=i) for i, (_, _, error) in enumerate(results[:_MAX_ERRORS])]
    detail = f"none of the {len(results)} events was taken; the first: {errors[0]['message']}"
    extra = {
        "accepted": 0,
        "duplicates": 0,
        "rejected": len(results),
        "results": [_result(i, events[i], *result) for i, result in enumerate(results[:_MAX_ERRORS])],
    }
    return Problem("invalid-event", detail, errors=errors, extra=extra)


def write_options(call: Call) -> tuple[bool, int]:
    """Return whether to wait until visible, and how long."""
    return (
        call.choice("wait", ("accepted", "visible")) == "visible",
        call.integer("wait_ms", 5000, least=0, most=30_000),
    )


# -- reading the log -----------------------------------------------------------------------------
async def get_events(call: Call) -> Response:
    """A page of the log, in order of position."""
    limit = call.limit()
    after = call.cursor(int, call.integer("from", 1, least=0, most=2**63 - 1) - 1)
    ledger = call.service.node.ledger
    rows = await call.ask(
        lambda: ledger.page(
            call.workspace,
            after=after,
            limit=limit,
            type=call.query.get("type"),
            subject_id=call.query.get("subject"),
        )
    )
    erasing = await call.ask(ledger.erasures, call.workspace)
    items = [logged_row(call.service, row, erasing) for row in rows]
    return answer(page(items, rows[-1].seq if len(rows) == limit else None))


def logged_row(service: Service, row: LogRow, erasing: Sequence[Erasure]) -> dict[str, Any]:
    """Show a row of the log; what is being erased shows as erased at once."""
    event = None
    if is_erasing(service, row, erasing):
        row = dataclasses.replace(row, effect=ERASED)
    if row.effect != ERASED:
        try:
            event = encode(service.node.registry.event_types.decode(row))
        except InvalidEvent:
            event = None  # its plugin is gone, or it was erased
    return {
        "event": event,
        "position": row.seq,
        "type": row.type,
        "recordedtime": rfc3339(row.recorded_us),
        "retry_of": row.retry_of,
        "effect": {NORMAL: "normal"}.get(row.effect, _EFFECTS[row.effect]),
    }


def is_erasing(service: Service, row: LogRow, erasing: Sequence[Erasure]) -> bool:
    """Whether a row is about a subject whose erasure is logged and not complete."""
    types = service.node.registry.event_types
    return row.effect != ERASED and any(row.seq <= e.position and is_about(types, row, e.subject) for e in erasing)


async def get_event(call: Call) -> Response:
    """Trace one event: where every policy stands with it."""
    return answer(await call.ask(_trace, call, call.id(), call.query.get("source")))


def _trace(call: Call, event_id: str, source: str | None) -> dict[str, Any]:
    ledger, history = call.service.node.ledger, call.service.node.context.history
    erasing = ledger.erasures(call.workspace)
    rows = [r for r in history.find(call.workspace, event_id, source) if not is_erasing(call.service, r, erasing)]
    if not rows:
        raise Problem("not-found", f"no event with id '{event_id[:100]}' was logged in this workspace")
    row = rows[0]
    groups = {state.group: state for state in ledger.groups(call.workspace)}
    skips = set(ledger.skips_of(call.workspace, row.seq))
    only = None if row.retry_of is None else set(ledger.skips_of(call.workspace, row.retry_of))
    letters = _letters(call, row.seq) if skips else {}
    policies = []
    for instance in ledger.instances(call.workspace):
        if instance.slot == "retired":
            continue
        group = groups[instance.group]
        state = _state(call, instance, row, group.watermark, skips, only)
        letter = letters.get(instance.key) if state == "skipped" else None
        commit = ledger.commit_of(call.workspace, instance.group, row.seq) if state == "folded" else None
        error: dict[str, str | None] | None = None
        if letter is not None:
            error = {"code": letter.code, "detail": letter.detail}
        if group.halted_at == row.seq and group.halted_by == instance.key:
            error = {"code": "halted", "detail": group.halted}
        view = call.view.groups.get(instance.group)
        policies.append(
            {
                "policy": instance.key,
                "label": instance.label,
                "slot": instance.slot,
                "state": state,
                "at": rfc3339(letter.at_us) if letter is not None else rfc3339(commit[1]) if commit else None,
                "commit": commit[0] if commit else None,
                "visible": view is not None and view.watermark >= row.seq,
                "error": error,
                "dead_letter_id": None if letter is None else letter.dead_letter_id,
            }
        )
    logged = logged_row(call.service, row, ())
    others = [logged_row(call.service, other, ()) for other in rows[1:]]
    value = logged | {"policies": policies, "steps": _steps(logged, policies)}
    return value | ({"others": others} if others else {})


def _steps(logged: dict[str, Any], policies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what happened to an event in order, with times where they are known.

    A commit's time is known while the commit is in the feed, that is until the next checkpoint.
    """
    steps: list[dict[str, Any]] = []
    event = logged["event"]
    if event is not None and event.get("time"):
        steps.append({"step": "happened", "policy": None, "at": event["time"]})
    steps.append({"step": "logged", "policy": None, "at": logged["recordedtime"]})
    for line in policies:
        if line["state"] == "ignored":
            continue
        steps.append({"step": line["state"], "policy": line["policy"], "at": line["at"]})
        if line["state"] == "folded" and line["visible"]:
            steps.append({"step": "visible", "policy": line["policy"], "at": None})
        elif line["error"] is not None and line["error"]["code"] == "halted":
            steps.append({"step": "halted", "policy": line["policy"], "at": None})
    return steps


def _state(
    call: Call,
    instance: Instance,
    row: LogRow,
    watermark: int,
    skips: set[str],
    only: set[str] | None,
) -> str:
    if row.effect != NORMAL:
        return _EFFECTS[row.effect]
    found = next(
        (r for g in call.service.node.context.groups(call.workspace) for r in g.runtimes
         if r.instance.instance_id == instance.instance_id),
        None,
    )  # fmt: skip
    if instance.lineage in skips:
        return "skipped"
    if found is not None and (row.type not in found.handles or (only is not None and instance.lineage not in only)):
        return "ignored"
    if row.seq <= instance.start_seq:
        return "ignored"
    if watermark >= row.seq:
        return "folded"
    if found is not None and found.prepares:
        have = call.service.prepared().load(call.workspace, found, [row.seq])
        return "pending" if row.seq in have else "preparing"
    return "pending"


def _letters(call: Call, position: int) -> dict[str, DeadLetter]:
    """Return the dead letters of one position by policy; there is no index by position, so pages are looked through."""
    found: dict[str, DeadLetter] = {}
    after = 0
    for _ in range(20):
        letters = call.service.node.ledger.dead_letters(call.workspace, after=after, limit=1000)
        found |= {letter.policy: letter for letter in letters if letter.position == position and letter.policy}
        if len(letters) < 1000:
            break
        after = letters[-1].dead_letter_id
    return found


ENDPOINTS = [
    Endpoint(
        method="POST", path="/v1/events", run=post_events, scope="ingest", tag="ingest", status=202,
        summary="Log one event or a batch of CloudEvents",
        params=(*WRITE_PARAMS, "results"),
        media=("application/cloudevents+json", "application/cloudevents-batch+json", "application/x-ndjson",
               "application/json"),
        example=examples.EVENT, returns=examples.ACCEPTED, errors=(400, 409, 413, 415, 422, 429),
    ),
    Endpoint(
        method="GET", path="/v1/events", run=get_events, tag="ingest", summary="A page of the log",
        params=(*PAGE_PARAMS, "from", "type", "subject"), returns=examples.EVENTS, errors=(400, 422),
    ),
    Endpoint(
        method="GET", path="/v1/events/{id:path}", run=get_event, tag="ingest", params=("source",),
        summary="Trace an event: what every policy did with it", returns=examples.TRACE, errors=(404, 422),
    ),
]  # fmt: skip
