"""Slots and who takes them: promotions, rebuilds and retirements, each one transaction at one position.

All of them first raise the workspace's ``slots`` counter, whose row lock makes them wait for each other, then lock the
groups they touch: a commit of a group is before the change and counts towards its position, or after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import insert, select

from streamfold.core import crash
from streamfold.core.errors import NotCaughtUp, VersionConflict
from streamfold.core.ledger import schema as s
from streamfold.core.ledger._base import Base, add_dead
from streamfold.core.ledger._groups import _INSTANCE, slots_changed
from streamfold.core.ledger._letters import add_audit
from streamfold.core.ledger._tx import Tx
from streamfold.core.ledger.abc import AuditEntry, DeadLetter, Instance, Promoted

_SPLITS = "select grp from fold_groups where workspace = ? and share_ppm > 0"


class VersionMixin(Base):
    """Which group is live, which stands beside it."""

    def slots_revision(self, workspace: str) -> int:
        rows = self._all("select value from counters where workspace = ? and name = 'slots'", (workspace,))
        return int(rows[0][0]) if rows else 0

    def add_group(
        self,
        workspace: str,
        members: Sequence[Instance],
        *,
        auto: bool = False,
        replaces: str | None = None,
        unless_exists: bool = False,
        revision: int | None = None,
        audit: AuditEntry | None = None,
    ) -> list[Instance]:
        base = members[0].group
        row = """insert into fold_groups (workspace, grp, watermark, checkpoint_watermark, auto, replaces)
            values (?, ?, ?, ?, ?, ?)"""

        def job(tx: Tx) -> list[Instance]:
            _require_revision(slots_changed(tx, workspace) - 1, revision)
            have = _instances(tx, workspace)
            if unless_exists and any(i.group == base or i.group.startswith(f"{base}.") for i in have):
                return []
            same = {(m.name, m.version, m.config_hash) for m in members}
            generation = 1 + max((i.generation for i in have if (i.name, i.version, i.config_hash) in same), default=-1)
            group = f"{base}.{generation}" if generation else base
            first = tx.count(workspace, "instance", len(members))
            made = [
                replace(member, instance_id=first + i, generation=generation, group=group)
                for i, member in enumerate(members)
            ]
            names = [c.name for c in s.instances.c if c.name not in ("workspace", "grp")]
            rows = [{n: getattr(i, n) for n in names} | {"workspace": workspace, "grp": group} for i in made]
            tx.sa.execute(insert(s.instances), rows)
            start = min(member.start_seq for member in members)
            tx.run(row, (workspace, group, start, start, auto, replaces))
            if audit is not None:
                add_audit(tx, workspace, replace(audit, target=audit.target or group))
            crash.point("versions.add.in")
            return made

        made = self._write(job)
        crash.point("versions.add.after")
        return made

    def promote(
        self,
        workspace: str,
        group: str,
        *,
        retire_us: int,
        at_least: int = 0,
        revision: int | None = None,
        audit: AuditEntry,
    ) -> Promoted:
        demote = "update fold_groups set retire_us = ?, auto = ? where workspace = ? and grp = ?"

        def job(tx: Tx) -> Promoted:
            _require_revision(slots_changed(tx, workspace) - 1, revision)
            have = _instances(tx, workspace)
            _require_shadow(have, group)
            names = {i.name for i in have if i.group == group}
            demoted = sorted({i.group for i in have if i.slot == "live" and i.name in names})
            marks = _lock(tx, workspace, [group, *demoted])
            _require_running(tx, workspace, group)
            _require_forgotten(tx, workspace, group)
            position = max([at_least, *(marks[name] for name in demoted)])
            _require_position(group, marks[group], position)
            for name in demoted:
                _set_slot(tx, workspace, name, "shadow")
                tx.run(demote, (retire_us, False, workspace, name))
            crash.point("versions.promote.in")
            _make_live(tx, workspace, group, position)
            _end_splits(tx, workspace, have, [group, *demoted])
            add_audit(tx, workspace, audit)
            return Promoted(group=group, position=position, demoted=demoted)

        crash.point("versions.promote.before")
        done = self._write(job)
        crash.point("versions.promote.after")
        return done

    def split(
        self, workspace: str, group: str, *, share_ppm: int, experiment: str, weighted: bool = True, audit: AuditEntry
    ) -> None:
        leaving = """select 1 from fold_groups
            where workspace = ? and grp = ? and (retire_us > 0 or replaces is not null)"""
        change = "update fold_groups set share_ppm = ?, experiment = ?, weighted = ? where workspace = ? and grp = ?"

        def job(tx: Tx) -> None:
            slots_changed(tx, workspace)
            have = _instances(tx, workspace)
            if not share_ppm:
                if group not in _splits(tx, workspace):
                    raise VersionConflict(f"group {group} answers no share of the users: there is nothing to end")
                tx.run(change, (0, "", True, workspace, group))
                add_audit(tx, workspace, audit)
                return
            _require_shadow(have, group)
            if tx.one(leaving, (workspace, group)) is not None:
                raise VersionConflict(f"group {group} is to be retired, or to take another's place: add one to compare")
            near = _of_the_same_names(have, [group])
            live = sorted({i.group for i in have if i.slot == "live" and i.group in near})
            if not live:
                raise VersionConflict(f"nothing that group {group} could be compared with is live: promote it")
            if others := sorted(_splits(tx, workspace) & near - {group}):
                raise VersionConflict(f"group {others[0]} is in a split already: end it first, with share 0")
            marks = _lock(tx, workspace, [group, *live])
            _require_running(tx, workspace, group)
            _require_forgotten(tx, workspace, group)
            _require_position(group, marks[group], max(marks[name] for name in live))
            _set_slot(tx, workspace, group, "shadow")  # who answers goes at no rate
            tx.run(change, (share_ppm, experiment, weighted, workspace, group))
            add_audit(tx, workspace, audit)

        self._write(job)

    def taking_over(self) -> list[tuple[str, str]]:
        sql = """select distinct g.workspace, g.grp, i.generation from fold_groups g
            join instances i on i.workspace = g.workspace and i.grp = g.grp
            where g.auto = ? and i.slot = 'shadow' order by g.workspace, g.grp"""
        rows = self._all(sql, (True,))
        return [(workspace, group.removesuffix(f".{generation}")) for workspace, group, generation in rows]

    def splits(self, workspace: str) -> set[str]:
        return {str(group) for (group,) in self._all(_SPLITS, (workspace,))}

    def replace_group(self, workspace: str, group: str, *, audit: AuditEntry) -> Promoted:
        take = """update fold_groups set replaces = null, auto = old.auto, retire_us = old.retire_us,
            share_ppm = old.share_ppm, experiment = old.experiment, weighted = old.weighted from (
            select auto, retire_us, share_ppm, experiment, weighted from fold_groups where workspace = ? and grp = ?
            ) as old
            where workspace = ? and grp = ?"""

        def job(tx: Tx) -> Promoted:
            slots_changed(tx, workspace)
            have = _instances(tx, workspace)
            _require_shadow(have, group)
            [[old]] = tx.all("select replaces from fold_groups where workspace = ? and grp = ?", (workspace, group))
            slot = next((i.slot for i in have if i.group == old), "retired")
            if slot == "retired":
                raise VersionConflict(f"group {group} has nothing to replace: {old} was retired meanwhile")
            marks = _lock(tx, workspace, [group, old])
            _require_forgotten(tx, workspace, group)
            _require_position(group, marks[group], marks[old])
            if slot == "live":
                _make_live(tx, workspace, group, marks[old])
            else:
                tx.run(take, (workspace, old, workspace, group))
            crash.point("versions.replace.in")
            _retire(tx, workspace, old)
            add_audit(tx, workspace, audit)
            return Promoted(group=group, position=marks[old], demoted=[old])

        crash.point("versions.replace.before")
        done = self._write(job)
        crash.point("versions.replace.after")
        return done

    def retire(self, workspace: str, group: str, *, audit: AuditEntry, due_us: int | None = None) -> None:
        due = "select 1 from fold_groups where workspace = ? and grp = ? and retire_us > 0 and retire_us <= ?"

        def job(tx: Tx) -> None:
            slots_changed(tx, workspace)
            have = _instances(tx, workspace)
            slot = next((i.slot for i in have if i.group == group), "retired")
            if slot == "retired":
                raise VersionConflict(f"group {group} is retired already, or never was")
            if due_us is not None and not tx.all(due, (workspace, group, due_us)):
                raise VersionConflict(f"group {group} is not to be retired yet")
            _retire(tx, workspace, group)
            if slot == "live":
                _end_splits(tx, workspace, have, [group])
            add_audit(tx, workspace, audit)
            crash.point("versions.retire.in")

        self._write(job)

    def drop_checkpoint(self, workspace: str, group: str) -> None:
        sql = "update fold_groups set checkpoint = null where workspace = ? and grp = ?"
        self._write(lambda tx: tx.run(sql, (workspace, group)))

    def skip(self, workspace: str, group: str, letter: DeadLetter, *, audit: AuditEntry) -> None:
        go_on = """update fold_groups set epoch = epoch + 1, owner = null, lease_until_us = 0, halted = null,
            halted_by = null, halted_at = null, skips = skips + 1
            where workspace = ? and grp = ? and halted_at = ? and halted_by = ? and watermark < ?"""

        def job(tx: Tx) -> None:
            position = letter.position
            if tx.run(go_on, (workspace, group, position, letter.policy, position)) != 1:
                raise VersionConflict(f"group {group} is not halted at position {position} by {letter.policy}")
            if add_dead(tx, workspace, [letter]) != 1:
                raise VersionConflict(f"{letter.policy} has skipped position {position} already")
            add_audit(tx, workspace, audit)

        self._write(job)

    def commit_of(self, workspace: str, group: str, position: int) -> tuple[int, int] | None:
        sql = """select c.commit_no, c.at_us from commits c join fold_groups g on g.workspace = c.workspace
            and g.grp = c.grp where c.workspace = ? and c.grp = ? and c.watermark >= ?
            and g.checkpoint_watermark < ? order by c.commit_no limit 1"""
        rows = self._all(sql, (workspace, group, position, position))
        return (int(rows[0][0]), int(rows[0][1])) if rows else None

    def count_types(self, workspace: str, after: int, upto: int) -> dict[str, int]:
        sql = "select type, count(*) from log where workspace = ? and seq > ? and seq <= ? group by type"
        return {type_: int(count) for type_, count in self._all(sql, (workspace, after, upto))}


def _instances(tx: Tx, workspace: str) -> list[Instance]:
    c = s.instances.c
    rows = tx.sa.execute(select(*_INSTANCE).where(c.workspace == workspace).order_by(c.instance_id))
    return [Instance(**row._asdict()) for row in rows]


def _of_the_same_names(have: Sequence[Instance], groups: Sequence[str]) -> set[str]:
    """Groups with a member of a name that one of these has, themselves too."""
    names = {i.name for i in have if i.group in groups}
    return {i.group for i in have if i.name in names and i.slot != "retired"}


def _splits(tx: Tx, workspace: str) -> set[str]:
    return {str(group) for (group,) in tx.all(_SPLITS, (workspace,))}


def _end_splits(tx: Tx, workspace: str, have: Sequence[Instance], groups: Sequence[str]) -> None:
    """Who answers has changed: an A/B against it compares nothing any more."""
    end = "update fold_groups set share_ppm = 0, experiment = '' where workspace = ? and grp = ?"
    for group in sorted(_splits(tx, workspace) & _of_the_same_names(have, groups)):
        tx.run(end, (workspace, group))


def _lock(tx: Tx, workspace: str, groups: Sequence[str]) -> dict[str, int]:
    """Lock groups against commits, in the order of their names; return their watermarks."""
    sql = "update fold_groups set paused = paused where workspace = ? and grp = ? returning watermark"
    return {group: int(tx.all(sql, (workspace, group))[0][0]) for group in sorted(set(groups))}


def _require_revision(before: int, planned_for: int | None) -> None:
    if planned_for is not None and before != planned_for:
        raise VersionConflict(f"instances or slots changed meanwhile (revision {before}, not {planned_for})")


def _require_running(tx: Tx, workspace: str, group: str) -> None:
    """Of a locked group: whoever asked before may have asked too early (see ``core/fold/versions.py``, blockers)."""
    [[halted, paused]] = tx.all(
        "select halted, paused from fold_groups where workspace = ? and grp = ?", (workspace, group)
    )
    if halted is not None or paused:
        raise VersionConflict(f"group {group} is {'paused' if halted is None else 'halted'}: it cannot take over")


def _require_forgotten(tx: Tx, workspace: str, group: str) -> None:
    """No erasure that is logged by now is of something that the group's state may hold."""
    pending = """select e.position from erasures e where e.workspace = ? and e.completed_us = 0 and e.id <> ''
        and not exists (select 1 from erasure_groups g where g.workspace = e.workspace and g.position = e.position
            and g.grp = ? and g.state = 'done')
        order by e.position limit 1"""
    if (found := tx.one(pending, (workspace, group))) is not None:
        raise VersionConflict(f"group {group} may still hold what erasure {found[0]} removes: it cannot take over")


def _require_shadow(have: Sequence[Instance], group: str) -> None:
    slot = next((i.slot for i in have if i.group == group), None)
    if slot != "shadow":
        raise VersionConflict(f"group {group} is {slot or 'unknown'}: only a shadow can take over")


def _require_position(group: str, watermark: int, position: int) -> None:
    if watermark < position:
        raise NotCaughtUp(
            f"group {group} has folded up to position {watermark}, what it would replace up to {position}: wait until "
            "`streamfold status` shows no lag",
            watermark=watermark,
            position=position,
        )


def _set_slot(tx: Tx, workspace: str, group: str, slot: str) -> None:
    tx.run("update instances set slot = ?, rate = 0 where workspace = ? and grp = ?", (slot, workspace, group))


def _make_live(tx: Tx, workspace: str, group: str, position: int) -> None:
    _set_slot(tx, workspace, group, "live")
    tx.run(
        """update fold_groups set live_from = ?, retire_us = 0, auto = ?, replaces = null,
        share_ppm = 0, experiment = ''
        where workspace = ? and grp = ?""",
        (position, False, workspace, group),
    )


def _retire(tx: Tx, workspace: str, group: str) -> None:
    """Nobody folds it again: paused, so that no lease is given, even to one who does not know yet."""
    _set_slot(tx, workspace, group, "retired")
    tx.run(
        """update fold_groups set paused = ?, epoch = epoch + 1, owner = null, lease_until_us = 0, retire_us = 0,
        auto = ?, replaces = null, halted = null, halted_by = null, halted_at = null, feed_bytes = 0, state_bytes = 0,
        share_ppm = 0, experiment = ''
        where workspace = ? and grp = ?""",
        (True, False, workspace, group),
    )
    tx.run("delete from commits where workspace = ? and grp = ?", (workspace, group))
    tx.run(
        """delete from prepared where workspace = ? and instance_id in
        (select instance_id from instances where workspace = ? and grp = ?)""",
        (workspace, workspace, group),
    )
