"""Alerts that are to be delivered: kept in the transaction that logs what was done, gone when delivered or given up.

Whoever moves an alert's attempts and due time, by compare-and-set, has it for so long.
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import insert, select

from streamfold.core.ledger import schema as s
from streamfold.core.ledger._base import Base, safe_text
from streamfold.core.ledger._tx import Tx
from streamfold.core.ledger.abc import Alert


class AlertMixin(Base):
    """Alerts that wait."""

    def alerts(self, workspace: str) -> list[Alert]:
        c = s.alerts.c
        columns = (c.alert_id, c.rule, c.position, c.body, c.made_us, c.attempts, c.due_us)
        rows = self._select(select(*columns).where(c.workspace == workspace).order_by(c.position, c.alert_id))
        return [Alert(**row._asdict()) for row in rows]

    def alerting_workspaces(self) -> list[str]:
        return [str(row[0]) for row in self._all("select distinct workspace from alerts order by workspace")]

    def move_alert(self, workspace: str, alert: Alert, *, attempts: int, due_us: int) -> bool:
        sql = """update alerts set attempts = ?, due_us = ?
            where workspace = ? and alert_id = ? and attempts = ? and due_us = ?"""
        where = workspace, alert.alert_id, alert.attempts, alert.due_us
        return self._write(lambda tx: tx.run(sql, (attempts, due_us, *where)) == 1)

    def end_alert(self, workspace: str, alert_id: str) -> None:
        sql = "delete from alerts where workspace = ? and alert_id = ?"
        self._write(lambda tx: tx.run(sql, (workspace, alert_id)))


def add_alerts(tx: Tx, workspace: str, alerts: Iterable[Alert]) -> None:
    """Keep alerts until they are delivered."""
    rows = [
        {
            "workspace": workspace,
            "alert_id": alert.alert_id,
            "rule": alert.rule,
            "position": alert.position,
            "body": safe_text(alert.body),
            "made_us": alert.made_us,
            "attempts": alert.attempts,
            "due_us": alert.due_us,
        }
        for alert in alerts
    ]
    if rows:
        tx.sa.execute(insert(s.alerts), rows)
