"""What leaves the log: recorded before it goes, deleted in batches, never while a group or an erasure needs it.

``log_head.left_upto`` is the highest position that has left, moved in the transaction that records a departure, before
any row is deleted. A fold reads it with the head, before the rows: below its watermark rows may go at any time, and
whatever sets a watermark back waits for that transaction (both take the workspace's ``slots`` counter). One process at
a time writes a workspace's archive, under a lease whose epoch is new each time it is taken.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select

from streamfold.core import crash
from streamfold.core.errors import Fenced
from streamfold.core.events.model import Subject
from streamfold.core.ledger import schema as s
from streamfold.core.ledger._base import Base
from streamfold.core.ledger._letters import add_audit
from streamfold.core.ledger._tx import Tx
from streamfold.core.ledger.abc import AuditEntry, Departure, Floor, LogKey, Retention, Traces

_ADD = """insert into departures (workspace, number, name, reason, first_seq, last_seq, events, bytes, digest, types,
    cleared, made_us) values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
_GROW = """update departures set last_seq = ?, events = ?, types = ?, first_seq = ?
    where workspace = ? and number = ?"""
_REPLACE = """update departures set name = ?, first_seq = ?, last_seq = ?, events = ?, bytes = ?, digest = ?, types = ?
    where workspace = ? and number = ?"""


class _Refused(Exception):
    """Something needs what was to leave; rolls its transaction back."""


class RetainMixin(Base):
    """Departures, the archive's lease, and the keys of old events."""

    # -- where it stands ---------------------------------------------------------------------------------------
    def left_upto(self, workspace: str) -> int:
        rows = self._all("select left_upto from log_head where workspace = ?", (workspace,))
        return int(rows[0][0]) if rows else 0

    def departures(self, workspace: str) -> list[Departure]:
        c = s.departures.c
        return [
            _departure(r) for r in self._select(select(s.departures).where(c.workspace == workspace).order_by(c.number))
        ]

    def retention(self, workspace: str) -> Retention:
        sql = "select asked_us, ran_us, compacted_upto, report from retention where workspace = ?"
        rows = self._all(sql, (workspace,))
        names = ("asked_us", "ran_us", "compacted_upto", "report")
        return Retention(**dict(zip(names, rows[0], strict=True))) if rows else Retention()

    def retention_due(self, now_us: int, every_us: int) -> list[str]:
        sql = """select h.workspace from log_head h left join retention r on r.workspace = h.workspace
            where coalesce(r.ran_us, 0) + ? <= ? or r.asked_us > r.ran_us order by h.workspace"""
        return [row[0] for row in self._all(sql, (every_us, now_us))]

    def ask_retention(self, workspace: str, *, actor: str, at_us: int) -> int:
        sql = """insert into retention (workspace, asked_us) values (?, ?) on conflict (workspace) do update
            set asked_us = case when retention.ran_us >= excluded.asked_us then retention.ran_us + 1
                else excluded.asked_us end returning asked_us"""
        entry = AuditEntry(actor=actor, action="retention", target=f"workspace:{workspace}", reason="", at_us=at_us)

        def job(tx: Tx) -> int:
            [[asked_us]] = tx.all(sql, (workspace, at_us))
            add_audit(tx, workspace, entry)
            return int(asked_us)

        return self._write(job)

    def floors(self, workspace: str) -> list[Floor]:
        return self._read(lambda tx: _floors(tx, workspace))

    def erasures_seen(self, workspace: str) -> tuple[int, int] | None:
        return self._read(lambda tx: _erasures(tx, workspace))

    def seq_before(self, workspace: str, at_us: int) -> int:
        """Search by halves: positions are given in the order of time, as far as the writers' clocks agree."""
        first = "select seq, recorded_us from log where workspace = ? and seq >= ? order by seq limit 1"

        def job(tx: Tx) -> int:
            row = tx.one("select seq from log_head where workspace = ?", (workspace,))
            low, high = 0, int(row[0]) if row else 0  # all up to low are older; none past high is
            while low < high:
                middle = (low + high + 1) // 2
                found = tx.one(first, (workspace, middle))
                if found is None or found[1] >= at_us:
                    high = middle - 1
                else:
                    low = max(middle, int(found[0]))
            return low

        return self._read(job)

    def keys(self, workspace: str, after: int, upto: int, limit: int) -> list[LogKey]:
        sql = """select seq, recorded_us, type, effect, retry_of, subject_kind, subject_id from log
            where workspace = ? and seq > ? and seq <= ? order by seq limit ?"""
        rows = self._all(sql, (workspace, after, upto, limit))
        return [
            LogKey(seq, at, type_, effect, of, Subject(kind, id_)) for seq, at, type_, effect, of, kind, id_ in rows
        ]

    # -- the lease ---------------------------------------------------------------------------------------------
    def archive_lease(self, workspace: str, owner: str, *, now_us: int, ttl_us: int) -> int | None:
        take = """update retention set epoch = epoch + 1, owner = ?, lease_until_us = ?
            where workspace = ? and (owner is null or lease_until_us <= ?) returning epoch"""

        def job(tx: Tx) -> int | None:
            tx.run("insert into retention (workspace) values (?) on conflict do nothing", (workspace,))
            row = tx.one(take, (owner, now_us + ttl_us, workspace, now_us))
            return None if row is None else int(row[0])

        return self._write(job)

    def archive_renew(self, workspace: str, epoch: int, *, now_us: int, ttl_us: int) -> None:
        self._write(lambda tx: _hold(tx, workspace, epoch, now_us + ttl_us), durable=False)

    def archive_release(self, workspace: str, epoch: int) -> None:
        sql = "update retention set owner = null, lease_until_us = 0 where workspace = ? and epoch = ?"
        self._write(lambda tx: tx.run(sql, (workspace, epoch)), durable=False)

    def end_retention(self, workspace: str, epoch: int, *, at_us: int, compacted_upto: int, report: str) -> None:
        sql = """update retention set owner = null, lease_until_us = 0, ran_us = ?, compacted_upto = ?, report = ?
            where workspace = ? and epoch = ?"""

        def job(tx: Tx) -> None:
            if tx.run(sql, (at_us, compacted_upto, report, workspace, epoch)) != 1:
                raise _taken(workspace)

        self._write(job)

    # -- leaving -----------------------------------------------------------------------------------------------
    def depart(
        self,
        workspace: str,
        epoch: int,
        departure: Departure,
        *,
        erasures: tuple[int, int],
        seqs: Sequence[int] = (),
        now_us: int,
        ttl_us: int,
    ) -> bool:
        left = "update log_head set left_upto = ? where workspace = ? and left_upto < ?"

        def job(tx: Tx) -> None:
            tx.count(workspace, "slots", 0)  # no watermark goes back meanwhile
            _hold(tx, workspace, epoch, now_us + ttl_us)
            # Locks the head even where it changes nothing: an erasure is appended before this, and seen, or after it.
            tx.run("update log_head set left_upto = left_upto where workspace = ?", (workspace,))
            needed = min((floor.position for floor in _floors(tx, workspace)), default=departure.last)
            if needed < departure.last or _erasures(tx, workspace) != erasures:
                raise _Refused
            tx.run(left, (departure.last, workspace, departure.last))
            _enter(tx, workspace, departure)
            if seqs:
                _delete(tx, workspace, seqs)
            crash.point("retention.depart.in")

        try:
            self._write(job)
        except _Refused:
            return False
        return True

    def clear(
        self, workspace: str, epoch: int, number: int, seqs: Sequence[int], *, last: bool, now_us: int, ttl_us: int
    ) -> None:
        done = "update departures set cleared = ? where workspace = ? and number = ?"

        def job(tx: Tx) -> None:
            _hold(tx, workspace, epoch, now_us + ttl_us)
            _delete(tx, workspace, seqs)
            if last:
                tx.run(done, (True, workspace, number))
            crash.point("retention.clear.in")

        self._write(job)

    # -- ids ---------------------------------------------------------------------------------------------------
    def prune_dedup(self, workspace: str, before_us: int, after: bytes, limit: int) -> tuple[bytes, int]:
        """Go through the keys in their order: they are hashes, so an index by time would cost each append."""
        sql = """select dedup, recorded_us, length(digest) from dedup where workspace = ? and dedup > ?
            order by dedup limit ?"""
        rows = self._all(sql, (workspace, after, limit))
        old = [(workspace, bytes(dedup)) for dedup, at_us, size in rows if at_us < before_us and size]
        delete = "delete from dedup where workspace = ? and dedup = ? and length(digest) > 0"

        def job(tx: Tx) -> None:
            tx.many(delete, old)
            crash.point("retention.prune.in")

        if old:
            self._write(job)
        return (bytes(rows[-1][0]) if len(rows) == limit else b""), len(old)

    def old_dedup(self, workspace: str, before_us: int) -> int:
        sql = "select count(*) from dedup where workspace = ? and recorded_us < ? and length(digest) > 0"
        return int(self._all(sql, (workspace, before_us))[0][0])


def replace_files(tx: Tx, workspace: str, traces: Traces) -> None:
    """Put rewritten files in the places of others, in the transaction that empties the log's rows."""
    if not traces.files:
        return
    _hold(tx, workspace, traces.epoch, None)
    for number, departure in traces.files.items():
        if departure is None:
            tx.run("delete from departures where workspace = ? and number = ?", (workspace, number))
            continue
        d = departure
        tx.run(_REPLACE, (d.name, d.first, d.last, d.events, d.bytes, d.digest, _types(d.types), workspace, number))


def _hold(tx: Tx, workspace: str, epoch: int, until_us: int | None) -> None:
    """Lock the archive's lease, and extend it."""
    sql = "update retention set lease_until_us = coalesce(?, lease_until_us) where workspace = ? and epoch = ?"
    if tx.run(sql, (until_us, workspace, epoch)) != 1:
        raise _taken(workspace)


def _taken(workspace: str) -> Fenced:
    return Fenced(f"another process writes the archive of workspace {workspace!r} now")


def _floors(tx: Tx, workspace: str) -> list[Floor]:
    """Past its newest checkpoint a group has the log as the way back, unless nothing has changed in it since."""
    sql = """select grp, watermark, commit_no, checkpoint_commit, checkpoint_watermark from fold_groups f
        where workspace = ? and exists (select 1 from instances i
            where i.workspace = f.workspace and i.grp = f.grp and i.slot <> 'retired') order by grp"""
    return [
        Floor(group, watermark if commit == at_commit else min(watermark, at), watermark)
        for group, watermark, commit, at_commit, at in tx.all(sql, (workspace,))
    ]


def _erasures(tx: Tx, workspace: str) -> tuple[int, int] | None:
    sql = """select count(*), coalesce(max(position), 0), coalesce(sum(case when completed_us = 0 then 1 else 0 end), 0)
        from erasures where workspace = ?"""
    [[count, newest, pending]] = tx.all(sql, (workspace,))
    return None if pending else (int(count), int(newest))


def _enter(tx: Tx, workspace: str, d: Departure) -> None:
    """Keep a departure; those without a file are one line for each reason."""
    if not d.name:
        sql = """select number, first_seq, last_seq, events, types from departures
            where workspace = ? and name = '' and reason = ?"""
        row = tx.one(sql, (workspace, d.reason))
        if row is not None:
            number, first, last, events, types = row
            merged = _merge(json.loads(types), d.types)
            at = (workspace, number)
            tx.run(_GROW, (max(last, d.last), events + d.events, _types(merged), min(first, d.first), *at))
            return
    number = tx.count(workspace, "departure")
    values = (d.name, d.reason, d.first, d.last, d.events, d.bytes, d.digest, _types(d.types), not d.name, d.made_us)
    tx.run(_ADD, (workspace, number, *values))


def _delete(tx: Tx, workspace: str, seqs: Sequence[int]) -> None:
    """Delete rows, and what they weighed."""
    sql = "delete from log where workspace = ? and seq {in} returning length(body)"
    size = sum(row[0] for row in tx.among(sql, (workspace,), seqs))
    tx.run("update log_head set bytes = bytes - ? where workspace = ?", (size, workspace))


def _merge(one: Mapping[str, Sequence[int]], other: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    merged = {type_: (int(count), int(last)) for type_, (count, last) in one.items()}
    for type_, (count, last) in other.items():
        before = merged.get(type_, (0, 0))
        merged[type_] = (before[0] + count, max(before[1], last))
    return merged


def _types(types: Mapping[str, tuple[int, int]]) -> str:
    return json.dumps({type_: list(types[type_]) for type_ in sorted(types)})


def _departure(row: Any) -> Departure:
    values = row._asdict()
    values.pop("workspace")
    types = {type_: (count, last) for type_, (count, last) in json.loads(values.pop("types")).items()}
    return Departure(first=values.pop("first_seq"), last=values.pop("last_seq"), types=types, **values)
