"""Dead letters, skips and the audit trail."""

from __future__ import annotations

from typing import Any

import msgspec
from sqlalchemy import delete, func, select

from streamfold.core.ledger import schema as s
from streamfold.core.ledger._base import Base, safe_text
from streamfold.core.ledger._tx import Tx
from streamfold.core.ledger.abc import AuditEntry, DeadLetter

_c = s.dead_letters.c
_LETTER = [c for c in _c if c.name not in ("workspace", "source_offset")] + [_c.source_offset.label("offset")]


class LetterMixin(Base):
    """What was not taken, and who did what about it."""

    def dead_letters(
        self,
        workspace: str,
        *,
        after: int = 0,
        limit: int = 50,
        policy: str | None = None,
        stage: str | None = None,
        code: str | None = None,
    ) -> list[DeadLetter]:
        query = select(*_LETTER).where(_c.workspace == workspace, _c.dead_letter_id > after)
        for column, value in ((_c.policy, policy), (_c.stage, stage), (_c.code, code)):
            if value is not None:
                query = query.where(column == value)
        return [_letter(row) for row in self._select(query.order_by(_c.dead_letter_id).limit(limit))]

    def dead_letter(self, workspace: str, dead_letter_id: int) -> DeadLetter | None:
        query = select(*_LETTER).where(_c.workspace == workspace, _c.dead_letter_id == dead_letter_id)
        rows = self._select(query)
        return _letter(rows[0]) if rows else None

    def dead_letter_count(self, workspace: str) -> int:
        query = select(func.count()).select_from(s.dead_letters).where(_c.workspace == workspace)
        return int(self._select(query)[0][0])

    def drop_dead_letter(self, workspace: str, dead_letter_id: int) -> bool:
        statement = delete(s.dead_letters).where(_c.workspace == workspace, _c.dead_letter_id == dead_letter_id)
        return self._write(lambda tx: int(tx.sa.execute(statement).rowcount)) == 1

    def skips_of(self, workspace: str, position: int) -> list[str]:
        c = s.skips.c
        query = select(c.policy).where(c.workspace == workspace, c.position == position).order_by(c.policy)
        return [row.policy for row in self._select(query)]

    def skipped_seqs(self, workspace: str, policy: str) -> set[int]:
        sql = "select position from skips where workspace = ? and policy = ?"
        return {row[0] for row in self._all(sql, (workspace, policy))}

    def audit(self, workspace: str, *, actor: str, action: str, target: str, reason: str, at_us: int) -> None:
        entry = AuditEntry(actor=actor, action=action, target=target, reason=reason, at_us=at_us)
        self._write(lambda tx: add_audit(tx, workspace, entry))

    def audits(self, workspace: str, *, before: int | None = None, limit: int = 50) -> list[AuditEntry]:
        c = s.audit.c
        query = select(*(column for column in c if column.name != "workspace")).where(c.workspace == workspace)
        if before is not None:
            query = query.where(c.audit_id < before)
        return [AuditEntry(**row._asdict()) for row in self._select(query.order_by(c.audit_id.desc()).limit(limit))]


def add_audit(tx: Tx, workspace: str, entry: AuditEntry) -> None:
    """Keep an entry in the transaction of what it tells of."""
    texts = (entry.actor, entry.action, entry.target, entry.reason)
    tx.run(
        "insert into audit (workspace, audit_id, at_us, actor, action, target, reason) values (?, ?, ?, ?, ?, ?, ?)",
        (workspace, tx.count(workspace, "audit"), entry.at_us, *map(safe_text, texts)),
    )


def _letter(row: Any) -> DeadLetter:
    values = row._asdict()
    return DeadLetter(**values | {"headers": msgspec.json.decode(values["headers"], type=dict[str, str])})
