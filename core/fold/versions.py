"""Change what is served without stopping it: add a shadow, split, promote, roll back, rebuild, retire, skip.

Who serves is decided by instance rows alone, changed in one transaction of the ledger at one position (see
``core/ledger/_versions.py``); folds and views of every process follow the rows. What is under way (a backfill, a
rebuild, the time left for a rollback) is in the rows too: whoever dies, another process goes on.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any, Literal, TypeVar

from streamfold.core.arms import MILLION
from streamfold.core.clock import US
from streamfold.core.context import Context, Group, group_name, pinned
from streamfold.core.errors import (
    ConfigError,
    GateFailed,
    NotCaughtUp,
    OutOfReach,
    VersionConflict,
    WrongBase,
    nearest,
)
from streamfold.core.fold.bases import other_bases
from streamfold.core.fold.erasure import holds_erased
from streamfold.core.fold.stores import checkpoint_root
from streamfold.core.hooks import GateRule
from streamfold.core.ledger.abc import AuditEntry, DeadLetter, GroupState, Instance, LogRow, Promoted, Slot
from streamfold.core.registry import Declared
from streamfold.core.stores.checkpoint import drop_old_checkpoints

log = logging.getLogger("streamfold.versions")
T = TypeVar("T")

CATCH_UP_S = 3.0
"""How long a promotion waits for a shadow that is a few events behind: under load it always is, for a moment."""
_LOOK_S = 0.02
_SELF = "streamfold"


# -- new instances ----------------------------------------------------------------------------------------------------
def plan(
    context: Context,
    workspace: str,
    *,
    name: str,
    use: str,
    values: Mapping[str, Any],
    slot: Slot = "shadow",
    start: Literal["start", "now"] = "start",
    rate: int = 0,
) -> list[Instance]:
    """The rows of a new instance and of what it must bring: copies of what it reads, and of what reads it today.

    Raises
    ------
    ConfigError : no such policy, or a configuration that it does not take.
    WrongBase : it would average its weights with those of another base.
    VersionConflict : the same instance runs already, or ``slot="live"`` while another is live.
    OutOfReach : events that it would fold have left the log, and the archive does not have them.
    """
    ledger = context.ledger
    members = _members(context, workspace, context.registry.declare(name, use, values))
    base = group_name(members)
    start_seq = ledger.head(workspace) if start == "now" else 0
    rows = [
        pinned(m, base, slot, now_us=context.clock.now_us(), start_seq=start_seq, rate=rate if slot == "shadow" else 0)
        for m in members
    ]
    try:
        group = context.make_group(rows)
    except ConfigError:
        raise
    except Exception as error:  # a plugin's own check of its configuration
        raise ConfigError(f"[policies.{name}] the policy {use!r} cannot be made with this: {error!r}") from error
    if wrong := other_bases(context, workspace, group):
        raise WrongBase("; ".join(wrong))
    _require_reach(context, workspace, group, "add it from now (--from now)")
    have = [i for i in ledger.instances(workspace) if i.slot != "retired"]
    for row in rows:
        if slot == "live" and any(i.slot == "live" and i.name == row.name for i in have):
            raise VersionConflict(f"policy {row.name!r} is live already: add a shadow and promote it")
    for other in have:
        if other.name == name and other.group.startswith(base) and other.start_seq == start_seq:
            raise VersionConflict(f"{other.name}@{other.label} runs already as {other.slot}: change its configuration")
    return rows


def add(
    context: Context, workspace: str, rows: Sequence[Instance], *, actor: str, reason: str, revision: int | None = None
) -> Group:
    """Pin a planned group; every process folds it from now on. ``revision``: of the ledger's slots, as planned for."""
    audit = _entry(context, actor, "add", "", reason)
    made = context.ledger.add_group(workspace, rows, audit=audit, revision=revision)
    return _named(context, workspace, made[0].group)


def rebuild(
    context: Context, workspace: str, group: Group, *, actor: str, reason: str, revision: int | None = None
) -> Group:
    """Fold the next generation of a group from the log beside it; it takes its place by itself when caught up.

    Raises ``OutOfReach`` when it would not become what it was: events have left the log, and are in no archive.
    """
    _require_reach(context, workspace, group, "it stays as it is")
    states = {state.group: state for state in context.ledger.groups(workspace)}
    slots = {i.group: i.slot for i in context.ledger.instances(workspace)}
    for state in states.values():
        if state.replaces == group.name and slots.get(state.group) == "shadow":
            raise VersionConflict(f"{group.name} is being rebuilt already, as {state.group}")
    base = group_name([_declared(runtime.instance) for runtime in sorted_members(group)])
    rows = [
        replace(runtime.instance, group=base, slot="shadow", rate=0, created_us=context.clock.now_us())
        for runtime in sorted_members(group)
    ]
    audit = _entry(context, actor, "rebuild", "", reason)
    made = context.ledger.add_group(workspace, rows, replaces=group.name, audit=audit, revision=revision)
    return _named(context, workspace, made[0].group)


def _require_reach(context: Context, workspace: str, group: Group, instead: str) -> None:
    reach = context.reach(workspace, group)
    if reach.rebuild != "impossible":
        return
    missing = ", ".join(context.history.missing(workspace))
    why = f"for archive files that are not there ({missing}): put them back, or" if missing else "without an archive:"
    raise OutOfReach(
        f"{group.name} cannot be folded from position {group.start_seq}: events that it handles have left the log up "
        f"to position {reach.rebuildable_from} {why} {instead}",
        rebuildable_from=reach.rebuildable_from,
    )


def sorted_members(group: Group) -> list[Any]:
    return sorted(group.runtimes, key=lambda runtime: runtime.instance.name)


def _members(context: Context, workspace: str, wanted: Declared) -> list[Declared]:
    """What forms a group with the wanted instance: a shadow brings its own copies, never shares them with the live."""
    registry = context.registry
    rows = {i.name: i for i in context.ledger.instances(workspace) if i.slot == "live"}
    old = rows.get(wanted.name)
    members = {i.name: _copy(context, i) for i in rows.values() if old is not None and i.group == old.group}
    members[wanted.name] = wanted
    left = list(members)
    while left:
        member = members[left.pop()]
        for read in registry.make_policy(member.use, member.config).reads:
            if read in members:
                continue
            if read not in rows:
                raise ConfigError(f"policy {wanted.name!r} reads {read!r}, which is not live here{nearest(read, rows)}")
            members[read] = _copy(context, rows[read])
            left.append(read)
    return [members[name] for name in sorted(members)]


def _copy(context: Context, row: Instance) -> Declared:
    return context.registry.declare(row.name, row.use, json.loads(row.config)["config"])


def _declared(row: Instance) -> Declared:
    fields = ("name", "use", "version", "config", "config_hash", "code_hash")
    return Declared(**{field: getattr(row, field) for field in fields})


# -- promotion and rollback -------------------------------------------------------------------------------------------
def promote(
    context: Context,
    workspace: str,
    group: Group,
    *,
    actor: str,
    reason: str,
    force: bool = False,
    rules: Sequence[GateRule] = (),
    revision: int | None = None,
) -> Promoted:
    """Make a shadow live at one position; what was live folds on for ``rollback_window_s``.

    ``rules``: what was found out about it beside what the hooks say, ``revision``: of the ledger's slots before that.

    Raises
    ------
    VersionConflict : it is no shadow, or may never be served (``blockers``), or slots have changed meanwhile.
    NotCaughtUp : it lags behind what is live.
    GateFailed : a rule of the ``promotion_gate`` hook failed and ``force`` was not given.
    """
    _refuse_blocked(context, workspace, group)
    found = [*(asdict(rule) for rule in rules), *gate(context, workspace, group)]
    failed = [rule for rule in found if not rule["passed"]]
    if failed and not force:
        reasons = ", ".join(f"{rule['rule']} ({rule['detail']})" if rule["detail"] else rule["rule"] for rule in failed)
        why = f"{group.name}: the gate does not pass: {reasons}"
        raise GateFailed(f"{why}; force (--force) overrides it, and is audited", found)
    forced = f" (forced past {', '.join(str(rule['rule']) for rule in failed)})" if failed else ""
    audit = _entry(context, actor, "promote", group.name, f"{reason}{forced}")
    return _take_over(context, workspace, group, audit, None if failed else revision)


def rollback(context: Context, workspace: str, name: str, version: str | None, *, actor: str, reason: str) -> Promoted:
    """Make the group that was demoted last (or the demoted version named) live again, at one position."""
    group = _demoted(context, workspace, name, version)
    _refuse_blocked(context, workspace, group)
    return _take_over(context, workspace, group, _entry(context, actor, "rollback", group.name, reason))


def split(
    context: Context, workspace: str, group: Group, *, share: float, weighted: bool = True, actor: str, reason: str
) -> str:
    """Let a shadow answer a share of the users from now on: a new experiment, whose name this returns. 0 ends it.

    ``weighted``: both arms learn from what is shown as far as they show such things themselves.

    Raises
    ------
    VersionConflict : it may not be served (``blockers``), is no shadow, or another is split from the same live one.
    NotCaughtUp : it lags behind what is live.
    """
    ledger, experiment = context.ledger, uuid.uuid4().hex[:16] if share else ""
    if share:
        _refuse_blocked(context, workspace, group)
    audit = _entry(context, actor, "split", group.name, f"share {share:g}: {reason}")
    share_ppm = round(share * MILLION)

    def change() -> None:
        ledger.split(workspace, group.name, share_ppm=share_ppm, experiment=experiment, weighted=weighted, audit=audit)

    if share:
        _once_caught_up(context, workspace, group, change)
    else:
        change()
    log.info("split workspace=%s group=%s share=%g experiment=%s", workspace, group.name, share, experiment)
    context.groups(workspace, fresh=True)
    return experiment


def blockers(context: Context, workspace: str, group: Group) -> list[GateRule]:
    """The rules by which a version may not be promoted or rolled back to just now; ``force`` overrides none of them.

    This is the one place that promote, rollback and the takeover of a changed declaration ask. One of them
    is an erasure that the version has not come to: what its stores still hold must never be served. What may begin at
    any time (an erasure, a halt, a pause) the ledger looks at again in the transaction that changes who serves.
    """
    state = context.ledger.group(workspace, group.name)
    found = []
    if state.halted is not None:
        found.append(("not_halted", f"{group.name} is halted: {state.halted.partition(chr(10))[0]}"))
    if state.paused:
        found.append(("not_paused", f"{group.name} is paused: resume it first"))
    names = {runtime.instance.name for runtime in group.runtimes}
    rows = [i for i in context.ledger.instances(workspace) if i.slot == "live"]
    demoted = {i.group for i in rows if i.name in names}
    if left_behind := sorted(i.name for i in rows if i.group in demoted and i.name not in names):
        lose = f"wrong base: {', '.join(left_behind)} would lose what it reads; add it with a copy of its own"
        found.append(("readers_kept", lose))
    found += [("same_base", f"wrong base: {why}") for why in other_bases(context, workspace, group)]
    if positions := holds_erased(context.ledger, workspace, group.name):
        erasures = ", ".join(map(str, positions))
        still = f"{group.name} may still hold what erasure {erasures} removes: wait until it has forgotten it"
        found.append(("not_erased_from", still))
    return [GateRule(rule=rule, passed=False, detail=detail) for rule, detail in found]


def gate(context: Context, workspace: str, group: Group) -> list[dict[str, Any]]:
    """What the rules of all plugins say about a candidate."""
    names = {runtime.instance.name for runtime in group.runtimes}
    live = tuple(i for i in context.ledger.instances(workspace) if i.slot == "live" and i.name in names)
    candidate = tuple(runtime.instance for runtime in group.runtimes)
    asked = context.registry.hook.promotion_gate(workspace=workspace, candidate=candidate, live=live)
    return [asdict(rule) for rules in asked for rule in rules]


def _refuse_blocked(context: Context, workspace: str, group: Group) -> None:
    if failed := blockers(context, workspace, group):
        raise VersionConflict("; ".join(rule.detail for rule in failed), [asdict(rule) for rule in failed])


def _take_over(
    context: Context, workspace: str, group: Group, audit: AuditEntry, revision: int | None = None
) -> Promoted:
    """Promote in the ledger, waiting a moment for a shadow that is about to catch up."""
    ledger = context.ledger
    names = {runtime.instance.name for runtime in group.runtimes}
    serves = any(i.slot == "live" and i.name in names for i in ledger.instances(workspace))
    at_least = 0 if serves else ledger.head(workspace)
    retire_us = context.clock.now_us() + int(context.settings.rollback_window_s * US)
    done = _once_caught_up(
        context,
        workspace,
        group,
        lambda: ledger.promote(
            workspace, group.name, retire_us=retire_us, at_least=at_least, revision=revision, audit=audit
        ),
    )
    log.info("%s workspace=%s group=%s at=%d old=%s", audit.action, workspace, group.name, done.position, done.demoted)
    context.groups(workspace, fresh=True)
    return done


def _once_caught_up(context: Context, workspace: str, group: Group, change: Callable[[], T]) -> T:
    """Do what a lag forbids, once a lag of a moment is over, unless something has begun meanwhile that blocks it.

    The change itself refuses an erasure, a halt and a pause that came before its transaction; then it is asked here
    again, so that the refusal names the criterion.
    """
    deadline = time.monotonic() + CATCH_UP_S
    while True:
        try:
            return change()
        except NotCaughtUp as lag:
            if time.monotonic() > deadline or lag.position - lag.watermark > context.settings.fold.batch_events:
                raise
            time.sleep(_LOOK_S)
        except VersionConflict:
            _refuse_blocked(context, workspace, group)
            raise
        _refuse_blocked(context, workspace, group)


def _demoted(context: Context, workspace: str, name: str, version: str | None) -> Group:
    times = {state.group: state.retire_us for state in context.ledger.groups(workspace) if state.retire_us}
    found = [
        group
        for group in context.groups(workspace, fresh=True)
        if group.slot == "shadow" and group.name in times and _has(group, name, version)
    ]
    if not found:
        what, kept_s = "it" if version is None else f"its version {version}", context.settings.rollback_window_s
        raise VersionConflict(
            f"there is nothing to roll {name!r} back to: {what} was not demoted in the last {kept_s:,.0f} s "
            "(rollback_window_s); add the old configuration as a shadow and promote it"
        )
    return max(found, key=lambda group: times[group.name])


def _has(group: Group, name: str, version: str | None) -> bool:
    wanted = name if version is None else f"{name}@{version}"
    return any(wanted in (r.instance.name, *r.names) for r in group.runtimes)


# -- retiring and skipping --------------------------------------------------------------------------------------------
def retire(context: Context, workspace: str, group: Group, *, actor: str, reason: str) -> None:
    """Fold and serve a group no more; its files go with the next sweep."""
    context.ledger.retire(workspace, group.name, audit=_entry(context, actor, "retire", group.name, reason))
    context.groups(workspace, fresh=True)


def skip(context: Context, workspace: str, group: Group, rows: Sequence[LogRow], *, actor: str, reason: str) -> int:
    """Leave out the one event at which a group is halted; ``rows``: the log entries of the event's id."""
    state = context.ledger.group(workspace, group.name)
    row = next((row for row in rows if row.seq == state.halted_at), None)
    runtime = next((r for r in group.runtimes if r.key == state.halted_by), None)
    if row is None or runtime is None:
        where = f"position {state.halted_at}" if state.halted_at is not None else "no event"
        raise VersionConflict(f"{group.name} is halted at {where}, not at this event: only that one can be skipped")
    event = context.registry.event_types.decode(row)
    letter = DeadLetter(
        stage="fold",
        code="skipped-by-hand",
        detail=f"{reason} (by {actor}); it had failed with: {(state.halted or '')[:1000]}",
        policy=runtime.key,
        skipped_by=runtime.instance.lineage,
        position=row.seq,
        event_id=event.id,
        source=event.source,
        at_us=context.clock.now_us(),
    )
    target = f"{runtime.key} position {row.seq} event {event.id}"
    context.ledger.skip(workspace, group.name, letter, audit=_entry(context, actor, "skip", target, reason))
    return row.seq


# -- what happens by itself -------------------------------------------------------------------------------------------
def advance(context: Context, workspace: str, group: Group, watermark: int) -> None:
    """Let a shadow that was made to take over do so once it has caught up: a rebuild, or a changed declaration.

    Not a declaration that is ``measured``: its scores are in the views, so a process that serves asks the gate.
    """
    ledger = context.ledger
    state = ledger.group(workspace, group.name)
    try:
        if state.replaces is not None:
            if holds_erased(ledger, workspace, group.name):
                return  # the next turn asks again
            audit = _entry(context, _SELF, "replace", group.name, f"rebuilt; takes the place of {state.replaces}")
            _swapped(context, workspace, ledger.replace_group(workspace, group.name, audit=audit))
        elif takes_over(context, state, group) and not (gated(context) and measured(context, workspace, group)):
            replace_declared(context, workspace, group)
    except NotCaughtUp:
        return  # what it replaces has folded on meanwhile: the next turn asks again
    except VersionConflict as error:
        log.warning("not_replaced workspace=%s group=%s: %s", workspace, group.name, error)
        context.groups(workspace, fresh=True)


def takes_over(context: Context, state: GroupState, group: Group) -> bool:
    """Whether a shadow is a changed declaration that is to take over by itself, and still what the settings declare."""
    return state.auto and context.settings.on_change != "manual" and context.declares(group)


def gated(context: Context) -> bool:
    """Whether changed declarations have to pass the gate."""
    return context.settings.on_change == "replace"


def measured(context: Context, workspace: str, group: Group) -> bool:
    """Whether a candidate's scores are measured, and those of what it would replace, under one name.

    A live version whose code is gone is no measure: it stands still, and its successor is waited for.
    """
    mine = {runtime.instance.name for runtime in group.runtimes if runtime.policy.measures}
    live = [other for other in context.groups(workspace) if other.slot == "live"]
    return any(r.policy.measures and r.instance.name in mine for other in live for r in other.runtimes)


def replace_declared(
    context: Context,
    workspace: str,
    group: Group,
    *,
    rules: Sequence[GateRule] = (),
    revision: int | None = None,
    wait: bool = False,
) -> list[GateRule]:
    """Let a changed declaration take over; returns what stands in its way: nothing, when it did.

    ``rules``: what the gate says, ``revision``: of the ledger's slots when it was asked. ``wait``: until a lag of a
    moment is over, which a fold must not.

    Raises
    ------
    NotCaughtUp : what it replaces has folded on meanwhile. VersionConflict : slots have changed meanwhile, or something
    has begun that stands in its way.
    """
    if blocked := [*blockers(context, workspace, group), *_splits_it_would_end(context, workspace, group)]:
        return [replace(rule, undecided=True) for rule in blocked]
    found = [*rules, *(GateRule(**rule) for rule in gate(context, workspace, group))]
    if failed := [rule for rule in found if not rule.passed]:
        return failed
    ledger, reason = context.ledger, "declared policy changed"
    if said := "; ".join(rule.detail for rule in rules if rule.rule == "not_worse"):
        reason += f"; the gate: {said}"
    elif measured(context, workspace, group):
        reason += f"; the gate was not asked (on_change = {context.settings.on_change})"
    audit = _entry(context, "settings", "replace", group.name, reason)
    retire_us = context.clock.now_us() + int(context.settings.rollback_window_s * US)

    def change() -> Promoted:
        return ledger.promote(workspace, group.name, retire_us=retire_us, revision=revision, audit=audit)

    _swapped(context, workspace, _once_caught_up(context, workspace, group, change) if wait else change())
    return []


def _splits_it_would_end(context: Context, workspace: str, group: Group) -> list[GateRule]:
    """A live A/B that a promotion would end, its own or another's against the same live version: a person ends it."""
    splits = context.ledger.splits(workspace)
    rows = [i for i in context.ledger.instances(workspace) if i.slot != "retired"] if splits else []
    names = {runtime.instance.name for runtime in group.runtimes}
    demoted = {i.group for i in rows if i.slot == "live" and i.name in names}
    names |= {i.name for i in rows if i.group in demoted}
    found = {i.group: i for i in rows if i.group in splits and i.name in names}
    return [
        GateRule(
            rule="not_in_split",
            passed=False,
            detail=f"{name} answers a share of the users, which this would end: "
            f"`streamfold policies split {one.name} --version {one.label} --share 0` ends it",
        )
        for name, one in sorted(found.items())
    ]


def _swapped(context: Context, workspace: str, done: Promoted) -> None:
    log.info("replaced workspace=%s group=%s old=%s at=%d", workspace, done.group, done.demoted, done.position)
    context.groups(workspace, fresh=True)


def sweep(context: Context, workspace: str) -> None:
    """Retire demoted groups whose time is over, and delete the files of retired ones."""
    ledger, now_us = context.ledger, context.clock.now_us()
    slots = {instance.group: instance.slot for instance in context.instances(workspace)}
    if set(slots.values()) <= {"live"}:
        return  # the usual case costs no query
    for state in ledger.groups(workspace):
        if 0 < state.retire_us <= now_us:
            audit = _entry(context, _SELF, "retire", state.group, "its time for a rollback is over")
            try:
                ledger.retire(workspace, state.group, audit=audit, due_us=now_us)
            except VersionConflict:
                continue  # rolled back to, or retired by another process, just now
            log.info("retired workspace=%s group=%s", workspace, state.group)
            context.groups(workspace, fresh=True)
            slots[state.group] = "retired"
        if slots.get(state.group) == "retired" and state.checkpoint is not None:
            drop_old_checkpoints(checkpoint_root(context, workspace, state.group), set())
            ledger.drop_checkpoint(workspace, state.group)


def _named(context: Context, workspace: str, group: str) -> Group:
    groups = {found.name: found for found in context.groups(workspace, fresh=True)}
    return groups[group]


def _entry(context: Context, actor: str, action: str, target: str, reason: str) -> AuditEntry:
    return AuditEntry(actor=actor, action=action, target=target, reason=reason, at_us=context.clock.now_us())
