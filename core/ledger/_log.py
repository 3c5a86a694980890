"""The log's cold reads: finding events, paging for people, deletions, intakes, workspaces."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from sqlalchemy import func, select

from streamfold.core.ledger import schema as s
from streamfold.core.ledger._base import LOG_COLUMNS, Base, log_columns, log_rows
from streamfold.core.ledger._tx import Tx
from streamfold.core.ledger.abc import IntakeEnd, IntakeState, LogPage, LogRow, matching

_ID_BYTES, _SOURCE_BYTES = 10, 6
_END = "end:"
"""Rows of ``intakes`` that are named so, and as an intake, say where that one would stand if it had taken all."""


class LogMixin(Base):
    """Reads of the log that both databases do alike."""

    def ensure_workspace(self, workspace: str) -> None:
        sql = "insert into log_head (workspace, seq) values (?, 0) on conflict do nothing"
        self._write(lambda tx: tx.run(sql, (workspace,)))

    def workspaces(self) -> list[str]:
        return [row.workspace for row in self._select(select(s.log_head.c.workspace).order_by(s.log_head.c.workspace))]

    def behind(self) -> list[str]:
        sql = """select distinct g.workspace from fold_groups g join log_head h on h.workspace = g.workspace
            where g.watermark < h.seq and exists (select 1 from instances i
                where i.workspace = g.workspace and i.grp = g.grp and i.slot <> 'retired')"""
        return [row[0] for row in self._all(sql)]

    def head(self, workspace: str) -> int:
        rows = self._all("select seq from log_head where workspace = ?", (workspace,))
        return int(rows[0][0]) if rows else 0

    def read(
        self, workspace: str, after: int, limit: int, *, upto: int | None = None, types: Sequence[str] | None = None
    ) -> LogPage:
        """Read the head first: what commits between two reads the other way round would be passed over."""

        def job(tx: Tx) -> LogPage:
            row = tx.one("select seq, left_upto from log_head where workspace = ?", (workspace,))
            head, left = (int(row[0]), int(row[1])) if row else (0, 0)
            last = head if upto is None else min(head, upto)
            if last <= after or (types is not None and not types):
                return LogPage(head, [], left)
            kinds = "" if types is None else f" and type in ({','.join('?' * len(types))})"
            where = f"workspace = ? and seq > ? and seq <= ?{kinds}"
            sql = f"select {LOG_COLUMNS} from log where {where} order by seq limit ?"
            return LogPage(head, log_rows(tx.all(sql, (workspace, after, last, *(types or ()), limit))), left)

        return self._read(job)

    def rows(self, workspace: str, seqs: Sequence[int]) -> list[LogRow]:
        sql = f"select {LOG_COLUMNS} from log where workspace = ? and seq {{in}}"
        found = self._read(lambda tx: log_rows(tx.among(sql, (workspace,), list(seqs))))
        return sorted(found, key=lambda row: row.seq)

    def find(self, workspace: str, event_id: str, source: str | None = None) -> list[LogRow]:
        return matching(self.rows(workspace, self.find_seqs(workspace, event_id)), event_id, source)

    def find_seqs(self, workspace: str, event_id: str) -> list[int]:
        """Scan the range of ``dedup`` that starts with the id's hash."""
        prefix = _hash(event_id)[:_ID_BYTES]
        low, high = prefix + bytes(_SOURCE_BYTES), prefix + b"\xff" * _SOURCE_BYTES
        sql = "select seq from dedup where workspace = ? and dedup >= ? and dedup <= ?"
        return [row[0] for row in self._all(sql, (workspace, low, high))]

    def page(
        self, workspace: str, *, after: int, limit: int, type: str | None = None, subject_id: str | None = None
    ) -> list[LogRow]:
        c = s.log.c
        query = log_columns().where(c.workspace == workspace, c.seq > after)
        if type is not None:
            query = query.where(c.type == type)
        if subject_id is not None:
            query = query.where(c.subject_id == subject_id)
        return log_rows(self._select(query.order_by(c.seq).limit(limit)))

    def deletions(self, workspace: str, after: int) -> list[tuple[int, str, str]]:
        sql = "select seq, kind, id from deletions where workspace = ? and seq > ? order by seq"
        return [(seq, kind, id) for seq, kind, id in self._all(sql, (workspace, after))]

    def newest_seq(
        self, workspace: str, kind: str, subject_id: str, after: int, *, type: str | None = None
    ) -> int | None:
        """Scan what came after a recent position: an index for this rare question would cost every append."""
        c = s.log.c
        query = select(func.max(c.seq)).where(
            c.workspace == workspace,
            c.seq > after,
            c.subject_kind == kind,
            c.subject_id == subject_id,
            c.type != "document.extracted",  # what was found in an event says nothing new about its subject
        )
        if type is not None:
            query = query.where(c.type == type)
        newest: int | None = self._select(query)[0][0]
        return newest

    def newest_seqs(
        self,
        workspace: str,
        kind: str,
        subject_ids: Sequence[str],
        *,
        after: int,
        types: Sequence[str],
        upto: int | None = None,
    ) -> dict[str, int]:
        c = s.log.c
        query = (
            select(c.subject_id, func.max(c.seq))
            .where(
                c.workspace == workspace,
                c.seq > after,
                c.subject_kind == kind,
                c.subject_id.in_(subject_ids),
                c.type.in_(types),
            )
            .group_by(c.subject_id)
        )
        if upto is not None:
            query = query.where(c.seq <= upto)
        return {row[0]: int(row[1]) for row in self._select(query)}

    def count(self, workspace: str, added: Mapping[str, int]) -> None:
        def job(tx: Tx) -> None:
            for name, n in sorted(added.items()):
                tx.count(workspace, name, n)

        self._write(job, durable=False)

    def counted(self, workspace: str, names: Sequence[str]) -> dict[str, int]:
        sql = "select name, value from counters where workspace = ? and name {in}"
        rows = self._read(lambda tx: tx.among(sql, (workspace,), list(names)))
        return dict.fromkeys(names, 0) | {row[0]: int(row[1]) for row in rows}

    def intakes(self, workspace: str) -> list[IntakeState]:
        c = s.intakes.c
        columns = (c.intake, c.topic, c.next_offset, c.events, c.duplicates, c.rejected, c.updated_us)
        query = select(*columns).where(c.workspace == workspace, c.intake.not_like(f"{_END}%")).order_by(c.intake)
        return [IntakeState(**row._asdict()) for row in self._select(query)]

    def note_ends(self, workspace: str, ends: Sequence[IntakeEnd]) -> None:
        sql = (
            "insert into intakes (workspace, intake, topic, next_offset, updated_us) values (?, ?, ?, ?, ?) "
            "on conflict (workspace, intake) do update set topic = excluded.topic, next_offset = excluded.next_offset, "
            "updated_us = excluded.updated_us where intakes.updated_us <= excluded.updated_us"
        )
        rows = [(workspace, _END + end.intake, end.topic, end.next_offset, end.seen_us) for end in ends]
        if rows:
            self._write(lambda tx: tx.many(sql, sorted(rows)), durable=False)  # in one order, against deadlocks

    def intake_ends(self, workspace: str) -> list[IntakeEnd]:
        c = s.intakes.c
        query = select(c.intake, c.topic, c.next_offset, c.updated_us).where(
            c.workspace == workspace, c.intake.like(f"{_END}%")
        )
        return [IntakeEnd(intake=name.removeprefix(_END), topic=topic, next_offset=offset, seen_us=at)
                for name, topic, offset, at in self._select(query.order_by(c.intake))]  # fmt: skip


def _hash(text: str) -> bytes:
    """The hash that ``NewEvent.dedup`` starts with."""
    return hashlib.blake2b(text.encode()).digest()
