"""Who may ask, and how much: API keys (their hashes only) and the workspaces' quotas.

Each change counts one number up, which other processes poll: a revoked key or a new quota reaches every replica without
their reading all of it again and again. A change and its line in the audit trail are one transaction.
"""

from __future__ import annotations

from dataclasses import asdict

import msgspec
from sqlalchemy import insert, select

from streamfold.core.ledger import schema as s
from streamfold.core.ledger._base import Base
from streamfold.core.ledger._tx import Tx
from streamfold.core.ledger.abc import ApiKey, Quotas

_VERSION = ("", "access")
"""The counter of changes: of no workspace, as it covers all of them."""


class AccessMixin(Base):
    """Keys and quotas."""

    def access_version(self) -> int:
        rows = self._all("select value from counters where workspace = ? and name = ?", _VERSION)
        return int(rows[0][0]) if rows else 0

    def api_keys(self) -> list[ApiKey]:
        c = s.api_keys.c
        rows = self._select(select(s.api_keys).order_by(c.workspace, c.created_us, c.key_id))
        return [ApiKey(**row._asdict() | {"scopes": tuple(row.scopes.split())}) for row in rows]

    def add_api_key(self, key: ApiKey, *, actor: str) -> None:
        values = asdict(key) | {"scopes": " ".join(key.scopes)}
        reason = f"{key.name}: {values['scopes']}"

        def job(tx: Tx) -> None:
            tx.run("insert into log_head (workspace, seq) values (?, 0) on conflict do nothing", (key.workspace,))
            tx.sa.execute(insert(s.api_keys).values(values))
            _changed(tx, key.workspace, actor, "key.create", f"key:{key.key_id}", reason, key.created_us)

        self._write(job)

    def revoke_api_key(self, workspace: str, key_id: str, *, actor: str, at_us: int) -> bool:
        sql = "update api_keys set revoked_us = ? where workspace = ? and key_id = ? and revoked_us = 0"

        def job(tx: Tx) -> bool:
            if tx.run(sql, (at_us, workspace, key_id)):
                _changed(tx, workspace, actor, "key.revoke", f"key:{key_id}", "", at_us)
                return True
            return tx.one("select 1 from api_keys where workspace = ? and key_id = ?", (workspace, key_id)) is not None

        return self._write(job)

    def quotas(self) -> dict[str, Quotas]:
        return {name: msgspec.json.decode(text, type=Quotas) for name, text in self._all("select * from quotas")}

    def set_quotas(self, workspace: str, quotas: Quotas, *, actor: str, at_us: int) -> None:
        text = msgspec.json.encode(quotas).decode()
        sql = "insert into quotas (workspace, quotas) values (?, ?) on conflict (workspace) do update set quotas = ?"

        def job(tx: Tx) -> None:
            tx.run("insert into log_head (workspace, seq) values (?, 0) on conflict do nothing", (workspace,))
            tx.run(sql, (workspace, text, text))
            _changed(tx, workspace, actor, "workspace.quotas", f"workspace:{workspace}", text, at_us)

        self._write(job)

    def log_bytes(self, workspace: str) -> int:
        rows = self._all("select bytes from log_head where workspace = ?", (workspace,))
        return int(rows[0][0]) if rows else 0


def _changed(tx: Tx, workspace: str, actor: str, action: str, target: str, reason: str, at_us: int) -> None:
    row = {"actor": actor, "action": action, "target": target, "reason": reason, "at_us": at_us}
    number = tx.count(workspace, "audit")
    tx.sa.execute(insert(s.audit).values(workspace=workspace, audit_id=number, **row))
    tx.count(*_VERSION)
