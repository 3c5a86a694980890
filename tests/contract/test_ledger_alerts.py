"""The ledger's contract: alerts are kept with the move that made them, and one process at a time tries one."""

from __future__ import annotations

import pytest

from streamfold.core.errors import IntakeConflict
from streamfold.core.ledger.abc import Alert, IntakeMove, Ledger
from streamfold.core.testing.ledger_contract import WORKSPACE


def make_alert(alert_id: str, position: int) -> Alert:
    return Alert(alert_id=alert_id, rule="tell", position=position, body='{"text": "a \\u0000"}', made_us=7)


def move(expect: int | None, after: int, alert: Alert | None = None) -> IntakeMove:
    return IntakeMove(intake="rules:tell:a", expect=expect, next=after, alert=alert, took=0)


def test_an_alert_is_kept_with_the_move_that_made_it_or_not_at_all(ledger: Ledger) -> None:
    first, second = make_alert("b", 3), make_alert("a", 9)
    ledger.append(WORKSPACE, [], recorded_us=1, moves=[move(None, 3, first)])
    with pytest.raises(IntakeConflict):
        ledger.append(WORKSPACE, [], recorded_us=1, moves=[move(2, 9, second)])
    assert ledger.alerts(WORKSPACE) == [first]
    ledger.append(WORKSPACE, [], recorded_us=1, moves=[move(3, 9, second)])
    assert ledger.alerts(WORKSPACE) == [first, second], "in order of their positions"
    assert ledger.alerts("another") == []
    ledger.ensure_workspace("another")
    assert ledger.alerting_workspaces() == [WORKSPACE]


def test_who_moves_an_alert_has_it_and_its_end_is_the_end(ledger: Ledger) -> None:
    alert = make_alert("a", 3)
    ledger.append(WORKSPACE, [], recorded_us=1, moves=[move(None, 3, alert)])
    assert ledger.move_alert(WORKSPACE, alert, attempts=1, due_us=50)
    assert not ledger.move_alert(WORKSPACE, alert, attempts=1, due_us=60), "as it was read it stands no more"
    [tried] = ledger.alerts(WORKSPACE)
    assert (tried.attempts, tried.due_us) == (1, 50)
    assert not ledger.move_alert("another", tried, attempts=2, due_us=70)
    ledger.end_alert("another", "a")
    assert ledger.alerts(WORKSPACE) == [tried]
    ledger.end_alert(WORKSPACE, "a")
    assert ledger.alerts(WORKSPACE) == []
    assert ledger.alerting_workspaces() == []
    assert not ledger.move_alert(WORKSPACE, tried, attempts=2, due_us=70)
