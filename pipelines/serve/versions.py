"""Operations on policies and their versions: add, split, pause, skip, rebuild, promote, roll back, retire; the audit.

Whatever changes who serves is done in the ledger before the answer, so that its refusals are the answer (409); folding
that takes long goes on in the folds, and the job only follows it: it is not lost with this process.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated, Any, Literal

import msgspec
from starlette.responses import Response

from streamfold.core.context import Group
from streamfold.core.errors import (
    ConfigError,
    GateFailed,
    NotCaughtUp,
    OutOfReach,
    VersionConflict,
    WrongBase,
    nearest,
)
from streamfold.core.events import check_text
from streamfold.core.fold import note_deltas, verify_group, versions
from streamfold.core.fold.estimate import Estimate, estimate
from streamfold.core.hooks import GateRule
from streamfold.core.ledger.abc import AuditEntry, Ledger
from streamfold.core.views import WorkspaceView
from streamfold.pipelines.serve import examples
from streamfold.pipelines.serve.call import PAGE_PARAMS, Call, Endpoint, answer, page, rfc3339
from streamfold.pipelines.serve.jobs import Job, Progress
from streamfold.pipelines.serve.problems import Problem, at

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_LOOK_S = 0.1
_SWITCH_S = 20.0
_LEAST_SHARE = 0.001
_JUDGED = 3
"""So many times a candidate is judged anew where what is live changed while it was judged."""
_UNSEEN_S = 60.0
"""After so long without a step of this process's view the job of a backfill ends without having been seen here."""
_HALTED_S = 10.0
"""A backfill that is halted for so long fails its job; the folds go on trying."""


class Action(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of ``POST /v1/policies/{name}/{action}``."""

    version: str | int | None = None
    reason: Annotated[str, msgspec.Meta(max_length=4096)] | None = None
    event_id: str | None = None
    source: str | None = None
    force: bool = False
    share: float | None = None
    weighted: bool = True


class Add(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of ``POST /v1/policies``."""

    name: str
    reason: Annotated[str, msgspec.Meta(max_length=4096)] | None = None
    use: str | None = None
    config: dict[str, Any] = {}
    slot: Literal["shadow", "live"] = "shadow"
    start: Literal["start", "now"] = msgspec.field(default="start", name="from")
    rate: Annotated[int, msgspec.Meta(ge=1, le=10_000_000)] | None = None


# -- a new instance ------------------------------------------------------------------------------
async def add(call: Call) -> Response:
    """Fold a new instance beside what is live."""
    body = await call.struct(Add)
    reason = _reason(body.reason, "adding a policy")
    if not _NAME.fullmatch(body.name):
        raise at(
            "/name", "invalid-value", "name: 1 to 64 letters, digits, '_' or '-', beginning with a letter or digit"
        )

    def work() -> tuple[Group, Estimate]:
        context, workspace = call.service.node.context, call.workspace
        registered = context.registry.policies
        use = body.use or body.name
        check_text(use, "/use")
        if use not in registered:
            field = "/use" if body.use else "/name"
            raise at(field, "invalid-value", f"no policy '{use[:64]}' is registered{nearest(use[:64], registered)}")
        try:
            rows = versions.plan(
                context, workspace, name=body.name, use=use, values=body.config, slot=body.slot, start=body.start,
                rate=body.rate or 0,
            )  # fmt: skip
        except WrongBase as error:
            rule = GateRule(rule="same_base", passed=False, detail=str(error))
            raise VersionConflict(f"wrong base: {error}", [asdict(rule)]) from error
        except ConfigError as error:
            raise at("/config", "invalid-value", str(error)) from error
        cost = estimate(context, workspace, rows)
        return versions.add(context, workspace, rows, actor=call.principal.name, reason=reason), cost

    with _refusals():
        group, cost = await call.ask(work)
    _wake(call)
    job = _follow(call, "backfill", group)
    return answer({"job_id": job.job_id, "policy": group.name, "estimate": asdict(cost)}, 202)


# -- operations ----------------------------------------------------------------------------------
def _pause(call: Call, body: Action, group: Group, reason: str) -> Job:
    return _paused(call, group, reason, True)


def _resume(call: Call, body: Action, group: Group, reason: str) -> Job:
    return _paused(call, group, reason, False)


def _paused(call: Call, group: Group, reason: str, paused: bool) -> Job:
    action = "pause" if paused else "resume"
    call.service.node.ledger.set_paused(call.workspace, group.name, paused)
    _audit(call, action, group.name, reason)
    return _done(call, action, {"group": group.name})


def _verify(call: Call, body: Action, group: Group, reason: str) -> Job:
    context, workspace = call.service.node.context, call.workspace

    def work(step: Progress) -> Any:
        began_us = context.clock.now_us()
        verdict = verify_group(context, workspace, group, step)
        note_deltas(context, workspace, verdict, began_us=began_us)
        return msgspec.to_builtins(verdict, str_keys=True)

    _audit(call, "verify", group.name, reason)
    asked_us = context.clock.now_us()
    job = call.service.jobs.start("verify", workspace, work)
    job.asked_us = asked_us
    return job


def unname(ledger: Ledger, job: Job) -> None:
    """Drop the keys in what a verification found, for good, once a subject was erased: they may name it."""
    result = job.result
    if job.kind != "verify" or not result or not ledger.erased_since(job.workspace, job.asked_us):
        return
    deltas = {name: delta | {"key": None, "examples": []} for name, delta in result["deltas"].items()}
    job.result = result | {"deltas": deltas}


def _rebuild(call: Call, body: Action, group: Group, reason: str) -> Job:
    made = versions.rebuild(call.service.node.context, call.workspace, group, actor=call.principal.name, reason=reason)
    return _follow(call, "rebuild", made)


def _promote(call: Call, body: Action, group: Group, reason: str) -> Job:
    context, actor = call.service.node.context, call.principal.name
    for attempt in range(1, _JUDGED + 1):
        revision = context.ledger.slots_revision(call.workspace)
        rules = call.service.gate.rules(call.view, group.name)
        try:
            done = versions.promote(
                context, call.workspace, group, actor=actor, reason=reason, force=body.force, rules=rules,
                revision=revision,
            )  # fmt: skip
            break
        except VersionConflict:
            if attempt == _JUDGED or context.ledger.slots_revision(call.workspace) == revision:
                raise  # otherwise it may be another version by now that is live: it is judged against that one
    _switch(call, done.group)
    return _done(call, "promote", asdict(done))


def _split(call: Call, body: Action, group: Group, reason: str) -> Job:
    share = body.share
    if share is None or not (share == 0 or _LEAST_SHARE <= share <= 1 - _LEAST_SHARE):
        span = f"{_LEAST_SHARE:g}…{1 - _LEAST_SHARE:g}"
        raise at("/share", "invalid-value", f"share: give the share of users that it is to answer, {span}; 0 ends it")
    context, actor = call.service.node.context, call.principal.name
    experiment = versions.split(
        context, call.workspace, group, share=share, weighted=body.weighted, actor=actor, reason=reason
    )
    _until(call, lambda view: view.experiment_of(group.name) == experiment)
    return _done(call, "split", {"group": group.name, "share": share, "experiment": experiment or None})


def _retire(call: Call, body: Action, group: Group, reason: str) -> Job:
    versions.retire(call.service.node.context, call.workspace, group, actor=call.principal.name, reason=reason)
    _until(call, lambda view: not view.experiment_of(group.name))
    return _done(call, "retire", {"group": group.name})


def _skip(call: Call, body: Action, group: Group, reason: str) -> Job:
    if not body.event_id:
        raise at("/event_id", "invalid-value", "event_id: name the event at which the policy is halted (see status)")
    check_text(body.event_id, "/event_id")
    rows = call.service.node.context.history.find(call.workspace, body.event_id, body.source)
    if not rows:
        raise Problem("not-found", f"no event with id '{body.event_id[:100]}' was logged in this workspace")
    context = call.service.node.context
    position = versions.skip(context, call.workspace, group, rows, actor=call.principal.name, reason=reason)
    return _done(call, "skip", {"group": group.name, "position": position})


def _live_first(call: Call, name: str, found: list[Group], action: str) -> Group:
    return min(found, key=lambda group: group.slot != "live")


def _halted_first(call: Call, name: str, found: list[Group], action: str) -> Group:
    states = {state.group: state for state in call.service.node.ledger.groups(call.workspace)}
    return min(found, key=lambda group: (states[group.name].halted_at is None, group.slot != "live"))


def _split_first(call: Call, name: str, found: list[Group], action: str) -> Group:
    """Without a version: the shadow that answers a share of the users, or else the one shadow there is."""
    states = {state.group: state for state in call.service.node.ledger.groups(call.workspace)}
    return next((g for g in found if states[g.name].share_ppm), None) or _only_shadow(call, name, found, action)


def _only_shadow(call: Call, name: str, found: list[Group], action: str) -> Group:
    """Without a version: the one shadow there is, apart from those kept for a rollback and those being rebuilt."""
    states = {state.group: state for state in call.service.node.ledger.groups(call.workspace)}
    shadows = [
        group
        for group in found
        if group.slot == "shadow" and not states[group.name].retire_us and states[group.name].replaces is None
    ]
    if len(shadows) == 1:
        return shadows[0]
    if not shadows:
        raise Problem("policy-conflict", f"policy '{name}' has no shadow to {action}: add one, or name a version")
    labels = sorted(r.instance.label for g in shadows for r in g.runtimes if r.instance.name == name)
    raise at("/version", "invalid-value", f"policy '{name}' has several shadows; name one of {', '.join(labels)}")


Work = Callable[[Call, Action, Group, str], Job]
Choose = Callable[[Call, str, list[Group], str], Group]
ACTIONS: dict[str, tuple[Work, Choose, str]] = {
    "pause": (_pause, _live_first, "Stop folding; the log grows on"),
    "resume": (_resume, _live_first, "Go on folding"),
    "verify": (_verify, _live_first, "Fold the log afresh beside it and compare"),
    "rebuild": (_rebuild, _live_first, "Fold it afresh while it serves, then take its place"),
    "promote": (_promote, _only_shadow, "Make a shadow live, at one position"),
    "split": (_split, _split_first, "Have a shadow answer a share of the users, beside what is live; 0 ends it"),
    "retire": (_retire, _only_shadow, "Fold and serve a version no more"),
    "skip": (_skip, _halted_first, "Leave out the one event at which it is halted"),
}


def _action(action: str) -> Callable[[Call], Awaitable[Response]]:
    work, choose, _ = ACTIONS[action]

    async def act(call: Call) -> Response:
        body = await call.struct(Action, default=b"{}")
        reason = body.reason or "" if action == "verify" else _reason(body.reason, action)

        def run() -> Job:
            return work(call, body, _group(call, body, choose, action), reason)

        with _refusals():
            job = await call.ask(run)
        _wake(call)
        more = job.result if job.state == "done" and isinstance(job.result, dict) else {}
        return answer({"job_id": job.job_id, **more}, 202)

    return act


async def rollback(call: Call) -> Response:
    """Make the version that was demoted last live again."""
    body = await call.struct(Action, default=b"{}")
    reason = _reason(body.reason, "rollback")
    name, _, version = call.path["name"].partition("@")
    wanted = _version(body) or version or None

    def run() -> Job:
        context, workspace = call.service.node.context, call.workspace
        _named(call, name)
        done = versions.rollback(context, workspace, name, wanted, actor=call.principal.name, reason=reason)
        _switch(call, done.group)
        return _done(call, "rollback", asdict(done))

    with _refusals():
        job = await call.ask(run)
    _wake(call)
    return answer({"job_id": job.job_id, **job.result}, 202)


def _group(call: Call, body: Action, choose: Choose, action: str) -> Group:
    """Return the group that was named, or the one that the action means where several have that version, or none."""
    name, _, version = call.path["name"].partition("@")
    version = _version(body) or version
    found = _named(call, f"{name}@{version}" if version else name)
    return found[0] if version and len(found) == 1 else choose(call, name, found, action)


def _version(body: Action) -> str:
    if body.version is None:
        return ""
    check_text(str(body.version), "/version")
    return str(body.version)


def _named(call: Call, wanted: str) -> list[Group]:
    groups = call.service.node.context.groups(call.workspace, fresh=True)
    found = [g for g in groups if any(wanted in (r.instance.name, *r.names) for r in g.runtimes)]
    if not found:
        names = {name for g in groups for r in g.runtimes for name in (r.instance.name, *r.names)}
        raise Problem("not-found", f"no policy '{wanted[:64]}'{nearest(wanted[:64], names)}")
    return found


@contextmanager
def _refusals() -> Iterator[None]:
    """Turn core's refusals into the contract's problems."""
    try:
        yield
    except NotCaughtUp as error:
        lag = error.position - error.watermark
        rule = GateRule(rule="caught_up", passed=False, value=lag, detail=str(error))
        extra = {"watermark": error.watermark, "position": error.position, "lag_events": lag, "gate": [asdict(rule)]}
        raise Problem("not-ready", str(error), extra=extra) from error
    except OutOfReach as error:
        extra = {"rebuildable_from": error.rebuildable_from}
        raise Problem("policy-conflict", str(error), extra=extra) from error
    except GateFailed as error:
        raise Problem("gate-failed", str(error), extra={"gate": error.rules}) from error
    except VersionConflict as error:
        failed: dict[str, Any] = {"gate": error.rules} if error.rules else {}
        raise Problem("policy-conflict", str(error), extra=failed) from error


def _reason(given: str | None, what: str) -> str:
    if not (given or "").strip():
        raise at("/reason", "invalid-value", f"give a reason: {what} changes what is served, and is audited")
    assert given is not None
    return given


def _audit(call: Call, action: str, target: str, reason: str) -> None:
    node = call.service.node
    node.ledger.audit(
        call.workspace,
        actor=call.principal.name,
        action=action,
        target=target,
        reason=reason,
        at_us=node.context.clock.now_us(),
    )


def _done(call: Call, kind: str, result: Any) -> Job:
    return call.service.jobs.done(kind, call.workspace, result)


def _wake(call: Call) -> None:
    node = call.service.node
    node.appended(call.workspace)
    if node.views is not None:
        node.views.wake()


def _switch(call: Call, group: str) -> None:
    """Have this process serve a promoted group before the answer: whoever asks here next is answered by it.

    Other replicas switch when they next look (``fold.view_poll_ms``).
    """
    _until(call, lambda view: group in view.serving.live)


def _until(call: Call, done: Callable[[WorkspaceView], bool]) -> None:
    view = call.view
    deadline = time.monotonic() + _SWITCH_S
    while not done(view) and time.monotonic() < deadline:
        if not view.follow():
            time.sleep(_LOOK_S / 10)


def _follow(call: Call, kind: str, group: Group) -> Job:
    """Follow a shadow until it has caught up, or, rebuilt, until it has taken its place, and until this process answers
    from it as far: whoever waited for the job asks next."""
    node, workspace, name = call.service.node, call.workspace, group.name

    def work(step: Progress) -> dict[str, Any]:
        halted_at = 0.0
        seen = (-1, 0.0)
        head = node.ledger.head(workspace)
        while True:
            state = node.ledger.group(workspace, name)
            slot = next(i.slot for i in node.ledger.instances(workspace) if i.group == name)
            if slot == "retired":
                raise RuntimeError(f"{name} was retired")
            now = time.monotonic()
            if state.watermark >= head and state.replaces is None:
                view = call.view
                if _shows(view, name, slot, head):
                    return {"group": name, "slot": slot, "watermark": state.watermark}
                mark = view.groups[name].watermark if name in view.groups else 0
                seen = seen if seen[0] == mark else (mark, now)
                if now - seen[1] > _UNSEEN_S:
                    raise RuntimeError(f"{name} has caught up, but this process cannot read it: see its log")
            step(state.watermark - group.start_seq, max(1, head - group.start_seq) + (state.replaces is not None))
            halted_at = (halted_at or now) if state.halted else 0.0
            if halted_at and now - halted_at > _HALTED_S:
                raise RuntimeError(f"halted, and tried again by itself: {state.halted}")
            time.sleep(_LOOK_S)

    return call.service.jobs.follow(kind, workspace, work)


def _shows(view: WorkspaceView, group: str, slot: str, position: int) -> bool:
    """Whether answers are made from a group up to a position, in the slot that it has."""
    found = view.groups.get(group)
    return found is not None and found.watermark >= position and (slot != "live" or group in view.serving.live)


# -- audit ---------------------------------------------------------------------------------------
async def audit(call: Call) -> Response:
    """Who did what to what, when and why; newest first."""
    limit, before = call.limit(), call.cursor(int, 2**63 - 1)
    found = await call.ask(lambda: call.service.node.ledger.audits(call.workspace, before=before, limit=limit))
    return answer(page([_shown(entry) for entry in found], found[-1].audit_id if len(found) == limit else None))


def _shown(entry: AuditEntry) -> dict[str, Any]:
    return {
        "audit_id": entry.audit_id,
        "at": rfc3339(entry.at_us),
        "actor": entry.actor,
        "action": entry.action,
        "target": entry.target,
        "reason": entry.reason,
    }


ENDPOINTS = [
    Endpoint(
        method="POST", path="/v1/policies", run=add, scope="admin", body=Add, status=202, errors=(400, 409, 415, 422),
        summary="Fold a new instance of a policy, as a shadow", example=examples.ADD, returns=examples.ADDED,
    ),
    *(
        Endpoint(
            method="POST", path=f"/v1/policies/{{name}}/{action}", run=_action(action), scope="admin", body=Action,
            summary=summary, status=202, errors=(400, 404, 409, 415, 422),
            example={"reason": "why"} | examples.GIVEN.get(action, {}),
            returns=examples.JOB_STARTED | examples.DONE.get(action, {}),
        )
        for action, (_, _, summary) in ACTIONS.items()
    ),
    Endpoint(
        method="POST", path="/v1/policies/{name}/rollback", run=rollback, scope="admin", body=Action, status=202,
        summary="Make the version that was demoted last live again, at one position", example={"reason": "why"},
        returns=examples.JOB_STARTED | {"position": 1042}, errors=(400, 404, 409, 415, 422),
    ),
    Endpoint(
        method="GET", path="/v1/audit", run=audit, scope="admin", params=PAGE_PARAMS, errors=(400, 422),
        summary="Who changed what, when and why, newest first", returns=examples.AUDIT,
    ),
]  # fmt: skip
