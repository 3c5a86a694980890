"""What an operator needs to see: status, policies, jobs, event types, plugins. Actions are in ``versions``."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import entry_points
from typing import Any

import msgspec
from starlette.responses import Response

from streamfold.core.arms import MILLION
from streamfold.core.errors import InvalidEvent
from streamfold.core.fold.extract import INTAKE
from streamfold.core.hooks import PROJECT
from streamfold.core.ledger.abc import ERASED, GroupState, Instance, IntakeEnd
from streamfold.core.policy import Budget
from streamfold.core.spending import Spending
from streamfold.pipelines.serve import examples
from streamfold.pipelines.serve.call import Call, Endpoint, answer, page, rfc3339
from streamfold.pipelines.serve.intake_lag import lag
from streamfold.pipelines.serve.merging import INTAKE as MERGES
from streamfold.pipelines.serve.problems import Problem
from streamfold.pipelines.serve.rules import INTAKE as RULES
from streamfold.pipelines.serve.versions import unname


# -- status --------------------------------------------------------------------------------------
async def status(call: Call) -> Response:
    """Where everything stands."""
    return answer(await call.ask(_status, call))


def _status(call: Call) -> dict[str, Any]:
    node, view, workspace = call.service.node, call.view, call.workspace
    head = node.ledger.head(workspace)
    visible = view.visible_position(None)
    return {
        "position": head,
        "intakes": [call.service.metrics.http_intake(workspace), *_kafka(call)],
        "policies": policies(call, head),
        "view": {"position": visible, "lag_ms": view.age_ms(visible)},
        "dead_letters": node.ledger.dead_letter_count(workspace),
    }


_OWN = {INTAKE: "extract", MERGES: "merge", RULES: "rule"}
"""Intakes that read the log itself, by how their names begin."""


def _kafka(call: Call) -> list[dict[str, Any]]:
    """Return the Kafka intakes, one line per topic, and how far extraction and merging are."""
    node, topics = call.service.node, dict[str, dict[str, Any]]()
    states, ends = node.ledger.intakes(call.workspace), dict[str, list[IntakeEnd]]()
    for end in node.ledger.intake_ends(call.workspace):
        topics.setdefault(end.topic, _line(end.topic))
        ends.setdefault(end.topic, []).append(end)
    for state in states:
        name = state.topic or state.intake.rpartition(":")[0]
        line = topics.setdefault(name, _line(name))
        if line["kind"] == "extract":
            line["spent"] = _spent(call)
        line["offsets"][state.intake.rpartition(":")[2]] = state.next_offset
        line["events"] += state.events
        line["duplicates"] += state.duplicates
        line["rejected"] += state.rejected
        line["updated_at"] = max(line["updated_at"] or "", rfc3339(state.updated_us) or "") or None
    offsets = {state.intake: state.next_offset for state in states}
    for name, line in topics.items():
        line["lag_events"], at_us = lag(ends.get(name, ()), offsets, node.context.clock.now_us())
        line["lag_at"] = rfc3339(at_us)
    return list(topics.values())


def _line(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "kind": next((kind for prefix, kind in _OWN.items() if name.startswith(prefix)), "kafka"),
        "offsets": {},
        "lag_events": None,
        "lag_at": None,
        "rate_per_s": None,
        "events": 0,
        "duplicates": 0,
        "rejected": 0,
        "updated_at": None,
    }


def _spent(call: Call) -> dict[str, int]:
    """What the workspace has spent on extraction, whichever model it was."""
    node = call.service.node
    return Spending(node.ledger, node.context.clock, call.workspace, "extractor", Budget()).spent()


def policies(call: Call, head: int) -> list[dict[str, Any]]:
    """Return all instances that are not retired, with their group's state."""
    node, workspace = call.service.node, call.workspace
    states = {state.group: state for state in node.ledger.groups(workspace)}
    missing = {instance.instance_id for instance in node.context.missing(workspace)}
    lines = []
    for instance in node.ledger.instances(workspace):
        state = states.get(instance.group)
        if instance.slot == "retired" or state is None:
            continue
        watermark = state.watermark
        held = call.service.takeovers.held(workspace, instance.group)
        lines.append(
            {
                "policy": instance.name,
                "version": str(instance.version),
                "label": instance.label,
                "use": instance.use,
                "slot": instance.slot,
                "state": _word(instance, state, head, instance.instance_id in missing),
                "watermark": watermark,
                "lag_events": max(0, head - watermark),
                "lag_s": _lag_s(call, watermark, head),
                "owner": state.owner,
                "last_error": state.halted,
                "halt": _halt(call, state),
                "state_bytes": state.state_bytes,
                "skips": state.skips,
                **_reach(call, instance),
                "missing_on": [node.context.owner] if instance.instance_id in missing else [],
                "group": instance.group,
                "rate": instance.rate or None,
                "replaces": state.replaces,
                "share": state.share_ppm / MILLION or None,
                "experiment": state.experiment or None,
                "answering": call.view.experiment_of(instance.group) == state.experiment if state.experiment else None,
                "takeover": None if held is None else held.as_json(),
                "retires_at": rfc3339(state.retire_us),
                "config": msgspec.json.decode(instance.config),
            }
        )
    return lines


def _reach(call: Call, instance: Instance) -> dict[str, Any]:
    """From where, and how well, its group could be folded afresh; not known where its code is missing."""
    context = call.service.node.context
    group = next((g for g in context.groups(call.workspace) if g.name == instance.group), None)
    if group is None:
        return {"rebuildable_from": instance.start_seq, "rebuild": None}
    reach = context.reach(call.workspace, group)
    return {"rebuildable_from": max(instance.start_seq, reach.rebuildable_from), "rebuild": reach.rebuild}


def _word(instance: Instance, state: GroupState, head: int, missing: bool) -> str:
    if missing:
        return "missing"
    if state.halted is not None:
        return "failed"
    if state.paused:
        return "paused"
    return "backfilling" if instance.slot == "shadow" and state.watermark < head else "running"


def _halt(call: Call, state: GroupState) -> dict[str, Any] | None:
    """Return which policy failed at which event, and what to do next; the traceback is in ``last_error``."""
    if state.halted is None:
        return None
    node, found = call.service.node, None
    if state.halted_at is not None:
        rows = node.context.history.rows(call.workspace, [state.halted_at])
        with suppress(InvalidEvent):  # erased, or of a plugin that is gone
            found = node.registry.event_types.decode(rows[0]) if rows and rows[0].effect != ERASED else None
    return {
        "policy": state.halted_by,
        "position": state.halted_at,
        "event_id": None if found is None else found.id,
        "source": None if found is None else found.source,
        "type": None if found is None else found.type,
        "next": "fix the policy and restart, or skip this one event: POST /v1/policies/{name}/skip {event_id, reason}"
        if found is not None
        else "see last_error",
    }


def _lag_s(call: Call, watermark: int, head: int) -> float:
    """How long the oldest event that is not folded has waited."""
    if watermark >= head:
        return 0.0
    node = call.service.node
    rows = node.ledger.read(call.workspace, watermark, 1).rows
    return round(max(0, node.context.clock.now_us() - rows[0].recorded_us) / 1e6, 3) if rows else 0.0


async def list_policies(call: Call) -> Response:
    """The policies, as in the status."""
    head = call.service.node.ledger.head
    return answer(page(await call.ask(lambda: policies(call, head(call.workspace))), None))


# -- jobs --------------------------------------------------------------------------------------
async def get_job(call: Call) -> Response:
    """A job's state."""
    job = call.service.jobs.get(call.workspace, call.path["id"])
    if job is None:
        raise Problem("not-found", "no such job in this process: jobs are kept until it stops")
    if call.request.method == "DELETE":
        call.service.jobs.cancel(job)
    await call.ask(unname, call.service.node.ledger, job)
    return answer(job.as_json())


# -- what is registered --------------------------------------------------------------------------
async def event_types(call: Call) -> Response:
    """All event types with their JSON Schemas."""
    types = call.service.node.registry.event_types
    return answer(page([{"type": name, "schema": types.json_schema(name)} for name in types.names()], None))


async def event_type(call: Call) -> Response:
    """The JSON Schema of one event type's data."""
    name = call.id("type")
    try:
        return answer({"type": name, "schema": call.service.node.registry.event_types.json_schema(name)})
    except InvalidEvent as error:
        raise Problem("not-found", error.detail) from error


async def plugins(call: Call) -> Response:
    """What is registered, and which installed plugins are enabled."""
    registry = call.service.node.registry
    enabled = set(call.service.settings.plugins)
    installed = [
        {
            "name": point.name,
            "value": point.value,
            "distribution": point.dist.name if point.dist else None,
            "version": point.dist.version if point.dist else None,
            "enabled": point.name in enabled,
        }
        for point in entry_points(group=PROJECT)
    ]
    return answer(
        {
            "items": installed,
            "next_cursor": None,
            "policies": [
                {"name": name, "version": str(kind.version), "handles": list(kind.handles), "doc": _first_line(kind)}
                for name, kind in sorted(registry.policies.items())
            ],
            "backends": [{"kind": b.kind, "name": b.name, "doc": b.doc} for _, b in sorted(registry.backends.items())],
            "decoders": sorted(registry.decoders),
        }
    )


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").strip().partition("\n")[0]


ENDPOINTS = [
    Endpoint(method="GET", path="/v1/status", run=status, summary="Where everything stands", returns=examples.STATUS),
    Endpoint(
        method="GET", path="/v1/policies", run=list_policies, summary="The policies and their state",
        returns={"items": examples.STATUS["policies"], "next_cursor": None},
    ),
    Endpoint(
        method="GET", path="/v1/jobs/{id}", run=get_job, summary="A job's state", returns=examples.JOB, errors=(404,)
    ),
    Endpoint(
        method="DELETE", path="/v1/jobs/{id}", run=get_job, scope="admin", summary="Cancel a job", returns=examples.JOB,
        errors=(404,),
    ),
    Endpoint(method="GET", path="/v1/event-types", run=event_types, summary="All event types"),
    Endpoint(
        method="GET", path="/v1/event-types/{type}", run=event_type, summary="JSON Schema of an event type",
        errors=(404,),
    ),
    Endpoint(method="GET", path="/v1/plugins", run=plugins, summary="What is registered"),
]  # fmt: skip
