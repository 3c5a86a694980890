"""Instances, groups, leases, commits, feed and checkpoints: all that one writer at a time may change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import insert, select, update

from streamfold.core import crash
from streamfold.core.errors import Fenced, LedgerError
from streamfold.core.ledger import schema as s
from streamfold.core.ledger._base import Base, add_dead, note_groups, safe_text
from streamfold.core.ledger._tx import Tx
from streamfold.core.ledger.abc import Commit, DeadLetter, ErasedGroup, GroupState, Instance, Lease, Slot

_INSTANCE = [c for c in s.instances.c if c.name not in ("workspace", "grp")] + [s.instances.c.grp.label("group")]
_GROUP = [c for c in s.fold_groups.c if c.name not in ("workspace", "grp")] + [s.fold_groups.c.grp.label("group")]

ADVANCE = """update fold_groups set watermark = ?, commit_no = commit_no + ?, lease_until_us = ?, skips = skips + ?,
    state_bytes = ?, feed_bytes = feed_bytes + ?,
    halted = case when halted_at <= ? then null else halted end,
    halted_by = case when halted_at <= ? then null else halted_by end,
    halted_at = case when halted_at <= ? then null else halted_at end
    where workspace = ? and grp = ? and epoch = ? and watermark = ? and commit_no = ?"""
KEEP = "insert into commits (workspace, grp, commit_no, watermark, changes, at_us) values (?, ?, ?, ?, ?, ?)"


class GroupMixin(Base):
    """Who folds what, and what came of it."""

    # -- instances ---------------------------------------------------------------------------------------------
    def instances(self, workspace: str) -> list[Instance]:
        c = s.instances.c
        query = select(*_INSTANCE).where(c.workspace == workspace).order_by(c.instance_id)
        return [Instance(**row._asdict()) for row in self._select(query)]

    def add_instance(self, workspace: str, instance: Instance) -> Instance:
        c = s.instances.c
        same = select(*_INSTANCE).where(
            c.workspace == workspace,
            c.name == instance.name,
            c.version == instance.version,
            c.config_hash == instance.config_hash,
            c.start_seq == instance.start_seq,
            c.generation == instance.generation,
        )

        def job(tx: Tx) -> Instance:
            number = tx.count(workspace, "instance")  # locks the workspace's counter: two callers pin one after another
            row = tx.sa.execute(same).one_or_none()
            if row is None:
                values = {c.name: getattr(instance, c.name) for c in s.instances.c if hasattr(instance, c.name)}
                values |= {"workspace": workspace, "grp": instance.group, "instance_id": number}
                tx.sa.execute(insert(s.instances).values(values))
                row = tx.sa.execute(same).one()
                slots_changed(tx, workspace)
            pinned = Instance(**row._asdict())
            tx.run(
                "insert into fold_groups (workspace, grp, watermark, checkpoint_watermark) values (?, ?, ?, ?) "
                "on conflict do nothing",
                (workspace, pinned.group, pinned.start_seq, pinned.start_seq),
            )
            return pinned

        return self._write(job)

    def set_slot(self, workspace: str, group: str, slot: Slot) -> None:
        sql = "update instances set slot = ? where workspace = ? and grp = ?"

        def job(tx: Tx) -> None:
            if tx.run(sql, (slot, workspace, group)) == 0:
                raise LedgerError(f"no group {group!r}; add_instance makes it")
            slots_changed(tx, workspace)

        self._write(job)

    # -- groups ------------------------------------------------------------------------------------------------
    def groups(self, workspace: str) -> list[GroupState]:
        c = s.fold_groups.c
        query = select(*_GROUP).where(c.workspace == workspace).order_by(c.grp)
        return [GroupState(**row._asdict()) for row in self._select(query)]

    def group(self, workspace: str, group: str) -> GroupState:
        c = s.fold_groups.c
        rows = self._select(select(*_GROUP).where(c.workspace == workspace, c.grp == group))
        if not rows:
            raise LedgerError(f"workspace {workspace!r} has no group {group!r}; add_instance makes it")
        return GroupState(**rows[0]._asdict())

    def set_halted(
        self,
        workspace: str,
        group: str,
        reason: str | None,
        *,
        policy: str | None = None,
        position: int | None = None,
    ) -> None:
        text = None if reason is None else safe_text(reason)
        self._set_group(workspace, group, halted=text, halted_by=policy, halted_at=position)

    def set_paused(self, workspace: str, group: str, paused: bool) -> None:
        """Pausing takes the lease away: the owner's next commit is fenced, and nobody gets it before a resume."""
        c = s.fold_groups.c
        gone = {"epoch": c.epoch + 1, "owner": None, "lease_until_us": 0} if paused else {}
        self._set_group(workspace, group, paused=paused, **gone)

    def _set_group(self, workspace: str, group: str, **values: Any) -> None:
        c = s.fold_groups.c
        self._update(update(s.fold_groups).where(c.workspace == workspace, c.grp == group).values(values), group)

    def _update(self, statement: Any, group: str) -> None:
        if self._write(lambda tx: int(tx.sa.execute(statement).rowcount)) == 0:
            raise LedgerError(f"no group {group!r}; add_instance makes it")

    # -- leases ------------------------------------------------------------------------------------------------
    def acquire(self, workspace: str, group: str, owner: str, *, now_us: int, ttl_us: int) -> Lease | None:
        sql = """update fold_groups set
            epoch = case when owner = ? and lease_until_us > ? then epoch else epoch + 1 end,
            owner = ?, lease_until_us = ?
            where workspace = ? and grp = ? and paused = ? and (owner is null or owner = ? or lease_until_us <= ?)
            returning epoch, watermark, commit_no"""
        params = (owner, now_us, owner, now_us + ttl_us, workspace, group, False, owner, now_us)
        row = self._write(lambda tx: tx.one(sql, params), durable=False)
        return None if row is None else Lease(group, owner, *row)

    def renew(self, workspace: str, leases: Sequence[Lease], *, now_us: int, ttl_us: int) -> list[Lease]:
        sql = "update fold_groups set lease_until_us = ? where workspace = ? and grp = ? and epoch = ? and owner = ?"
        ordered = sorted(leases, key=lambda lease: lease.group)  # all lock in one order: no deadlock

        def job(tx: Tx) -> list[Lease]:
            until = now_us + ttl_us
            return [at for at in ordered if tx.run(sql, (until, workspace, at.group, at.epoch, at.owner)) == 1]

        standing = set(self._write(job, durable=False)) if leases else set()
        return [lease for lease in leases if lease in standing]

    def release(self, workspace: str, lease: Lease) -> None:
        sql = """update fold_groups set owner = null, lease_until_us = 0
            where workspace = ? and grp = ? and epoch = ? and owner = ?"""
        self._write(lambda tx: tx.run(sql, (workspace, lease.group, lease.epoch, lease.owner)), durable=False)

    # -- commits -----------------------------------------------------------------------------------------------
    def commit(
        self,
        workspace: str,
        lease: Lease,
        *,
        watermark: int,
        changes: bytes | None,
        dead: Sequence[DeadLetter] = (),
        erased: Sequence[ErasedGroup] = (),
        state_bytes: int = 0,
        now_us: int,
        ttl_us: int,
    ) -> Lease:
        crash.point("commit.before")
        step = 0 if changes is None else 1
        after = replace(lease, watermark=watermark, commit_no=lease.commit_no + step)
        skips = sum(1 for d in dead if d.policy is not None and d.position is not None)
        cas = (workspace, lease.group, lease.epoch, lease.watermark, lease.commit_no)
        passed = (watermark,) * 3  # past the event at which the group was halted it is halted no more
        advance = (watermark, step, now_us + ttl_us, skips, state_bytes, len(changes or b""), *passed, *cas)
        keep = None if changes is None else (workspace, lease.group, after.commit_no, watermark, changes, now_us)
        self._commit(workspace, lease, advance, keep, dead, erased)
        crash.point("commit.after")
        return after

    def _commit(
        self,
        workspace: str,
        lease: Lease,
        advance: Sequence[Any],
        keep: Sequence[Any] | None,
        dead: Sequence[DeadLetter],
        erased: Sequence[ErasedGroup],
    ) -> None:
        def job(tx: Tx) -> None:
            if tx.run(ADVANCE, advance) != 1:
                raise fenced(workspace, lease)
            if keep is not None:
                tx.run(KEEP, keep)
            add_dead(tx, workspace, dead)
            note_groups(tx, workspace, erased)
            crash.point("commit.in")

        self._write(job, durable=False)

    def watermarks(self, workspace: str) -> dict[str, tuple[int, int]]:
        sql = "select grp, watermark, commit_no from fold_groups where workspace = ?"
        return {group: (watermark, commit_no) for group, watermark, commit_no in self._all(sql, (workspace,))}

    def feed(self, workspace: str, cuts: Mapping[str, int], *, limit_bytes: int = 8_000_000) -> list[Commit]:
        """Ask for all commit numbers, then only for the commits of groups that moved; at least one commit of the first.

        Sizes are summed by the database, which reads them without the payloads.
        """

        def job(tx: Tx) -> list[Commit]:
            heads = tx.all("select grp, commit_no from fold_groups where workspace = ?", (workspace,))
            found: list[Commit] = []
            left = limit_bytes
            for group, head in sorted(heads):
                if cuts.get(group, head) < head and (left > 0 or not found):
                    part = [Commit(*row) for row in tx.all(_FEED, (workspace, group, cuts[group], left))]
                    left -= sum(len(commit.changes) for commit in part)
                    found += part
            return found

        return self._read(job)

    # -- checkpoints -------------------------------------------------------------------------------------------
    def set_checkpoint(self, workspace: str, lease: Lease, *, name: str, commit_no: int, watermark: int) -> None:
        point = """update fold_groups set checkpoint = ?, checkpoint_commit = ?, checkpoint_watermark = ?
            where workspace = ? and grp = ? and epoch = ? and checkpoint_commit <= ? and commit_no >= ?"""
        key = (workspace, lease.group)

        def job(tx: Tx) -> None:
            if tx.run(point, (name, commit_no, watermark, *key, lease.epoch, commit_no, commit_no)) != 1:
                raise fenced(workspace, lease)
            tx.run("delete from commits where workspace = ? and grp = ? and commit_no <= ?", (*key, commit_no))
            tx.run(
                "update fold_groups set feed_bytes = (select coalesce(sum(length(changes)), 0) from commits "
                "where workspace = ? and grp = ?) where workspace = ? and grp = ?",
                (*key, *key),
            )

        crash.point("checkpoint.pointer.before")
        self._write(job)
        crash.point("checkpoint.pointer.after")

    def reset_group(self, workspace: str, group: str, *, watermark: int) -> None:
        """Forget a group's state; one commit number is left out, so that every view meets the gap and loads afresh.

        The fresh state is empty at ``checkpoint_commit`` (with ``checkpoint`` None): the feed after it builds it.
        """
        reset = """update fold_groups set epoch = epoch + 1, owner = null, lease_until_us = 0, watermark = ?,
            commit_no = commit_no + 1, checkpoint = null, checkpoint_commit = commit_no + 1,
            checkpoint_watermark = ?, halted = null, halted_by = null, halted_at = null, feed_bytes = 0, state_bytes = 0
            where workspace = ? and grp = ?"""

        def job(tx: Tx) -> int:
            tx.count(workspace, "slots", 0)  # what leaves the log leaves before, seen by whoever folds afresh, or not
            done = tx.run(reset, (watermark, watermark, workspace, group))
            tx.run("delete from commits where workspace = ? and grp = ?", (workspace, group))
            return done

        if self._write(job) == 0:
            raise LedgerError(f"workspace {workspace!r} has no group {group!r}; add_instance makes it")


_FEED = """select grp, commit_no, watermark, changes, at_us from (
    select grp, commit_no, watermark, changes, at_us,
        sum(length(changes)) over (order by commit_no) - length(changes) as before
        from commits where workspace = ? and grp = ? and commit_no > ?) as sized
    where before < ? or before = 0 order by commit_no"""


def slots_changed(tx: Tx, workspace: str) -> int:
    """Say that instances or slots changed; also makes all who change them wait for each other. The new revision."""
    return tx.count(workspace, "slots")


def fenced(workspace: str, lease: Lease) -> Fenced:
    return Fenced(
        f"group {lease.group!r} of workspace {workspace!r} no longer stands at epoch {lease.epoch}, watermark "
        f"{lease.watermark}, commit {lease.commit_no}: another writer moved it; drop the warm state and its lease"
    )
