"""What an operator needs: status, policies and their actions, jobs, event types, plugins."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.metadata import entry_points
from typing import Any

import msgspec
from starlette.responses import Response

from streamfold.core.context import Group
from streamfold.core.errors import InvalidEvent, nearest
from streamfold.core.fold import verify_group
from streamfold.core.hooks import PROJECT
from streamfold.core.ledger.abc import GroupState, Instance
from streamfold.pipelines.serve import examples
from streamfold.pipelines.serve.call import Call, Endpoint, answer, page, rfc3339
from streamfold.pipelines.serve.jobs import Progress
from streamfold.pipelines.serve.problems import Problem, at

ACTIONS = ("pause", "resume", "verify", "rebuild")


class Action(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of ``POST /v1/policies/{name}/{action}``."""

    version: str | int | None = None
    reason: str | None = None
    event_id: str | None = None
    force: bool = False


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


def _kafka(call: Call) -> list[dict[str, Any]]:
    """Return the Kafka intakes, one line per topic; the broker's end offsets are known to the intake process only."""
    topics: dict[str, dict[str, Any]] = {}
    for state in call.service.node.ledger.intakes(call.workspace):
        name = state.topic or state.intake.rpartition(":")[0]
        line = topics.setdefault(
            name,
            {
                "name": name,
                "kind": "kafka",
                "offsets": {},
                "lag_events": None,
                "rate_per_s": None,
                "events": 0,
                "duplicates": 0,
                "rejected": 0,
                "updated_at": None,
            },
        )
        line["offsets"][state.intake.rpartition(":")[2]] = state.next_offset
        line["events"] += state.events
        line["duplicates"] += state.duplicates
        line["rejected"] += state.rejected
        line["updated_at"] = max(line["updated_at"] or "", rfc3339(state.updated_us) or "") or None
    return list(topics.values())


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
        lines.append(
            {
                "policy": instance.name,
                "version": str(instance.version),
                "use": instance.use,
                "slot": instance.slot,
                "state": _word(instance, state, head, instance.instance_id in missing),
                "watermark": watermark,
                "lag_events": max(0, head - watermark),
                "lag_s": _lag_s(call, watermark, head),
                "owner": state.owner,
                "last_error": state.halted,
                "state_bytes": state.state_bytes,
                "skips": state.skips,
                "rebuildable_from": instance.start_seq,
                "missing_on": [node.context.owner] if instance.instance_id in missing else [],
                "group": instance.group,
                "config": msgspec.json.decode(instance.config),
            }
        )
    return lines


def _word(instance: Instance, state: GroupState, head: int, missing: bool) -> str:
    if missing:
        return "missing"
    if state.halted is not None:
        return "failed"
    if state.paused:
        return "paused"
    return "backfilling" if instance.slot == "shadow" and state.watermark < head else "running"


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


# -- actions -------------------------------------------------------------------------------------
def _action(action: str) -> Callable[[Call], Awaitable[Response]]:
    async def act(call: Call) -> Response:
        body = await call.struct(Action, default=b"{}")
        if action != "verify" and not (body.reason or "").strip():
            raise at("/reason", "invalid-value", f"give a reason: {action} changes what is served, and is audited")
        group = await call.ask(_group, call, body)
        node, workspace = call.service.node, call.workspace
        name = call.path["name"]

        def work(step: Progress) -> Any:
            node.ledger.audit(
                workspace,
                actor=call.principal.name,
                action=action,
                target=f"policy:{name}:{group.name}",
                reason=body.reason or "",
                at_us=node.context.clock.now_us(),
            )
            if action == "verify":
                return msgspec.to_builtins(verify_group(node.context, workspace, group, step), str_keys=True)
            if action == "rebuild":
                node.ledger.reset_group(workspace, group.name, watermark=group.start_seq)
            else:
                node.ledger.set_paused(workspace, group.name, action == "pause")
            node.appended(workspace)
            return {"group": group.name}

        return answer({"job_id": call.service.jobs.start(action, workspace, work).job_id}, 202)

    return act


def _group(call: Call, body: Action) -> Group:
    """Return the group of a policy, live before shadow, or of the version named."""
    context, name = call.service.node.context, call.path["name"]
    groups = context.groups(call.workspace, fresh=True)
    wanted = name if body.version is None else f"{name.partition('@')[0]}@{body.version}"
    try:
        return context.group(call.workspace, wanted)
    except KeyError:
        names = {r.instance.name for g in groups for r in g.runtimes} | {r.key for g in groups for r in g.runtimes}
        raise Problem("not-found", f"no policy '{wanted[:64]}'{nearest(wanted[:64], names)}") from None


async def get_job(call: Call) -> Response:
    """A job's state."""
    job = call.service.jobs.get(call.workspace, call.path["id"])
    if job is None:
        raise Problem("not-found", "no such job in this process: jobs are kept until it stops")
    if call.request.method == "DELETE":
        call.service.jobs.cancel(job)
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
    *(
        Endpoint(
            method="POST", path=f"/v1/policies/{{name}}/{action}", run=_action(action), scope="admin", body=Action,
            summary=f"{action.capitalize()} a policy's group", example={"reason": "why"}, status=202,
            returns=examples.JOB_STARTED, errors=(404, 422),
        )
        for action in ACTIONS
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
