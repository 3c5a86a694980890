"""Alerts whose rule is gone wait for it for a day, in workspaces that nobody asks too; then they are given up aloud."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from streamfold.core.ledger.abc import Alert, IntakeMove
from streamfold.core.settings import RuleSettings
from streamfold.core.testing import World
from streamfold.pipelines.serve import webhooks
from streamfold.pipelines.serve.webhooks import Webhooks
from streamfold.plugins import builtin
from tests.receiver import Receiver
from tests.waiting import until

DAY_S = 86_400
ELSEWHERE = "elsewhere"
"""A workspace of which no view is open: none is at all."""


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name in ("_LOOK_S", "_OTHERS_S", "_GONE_S"):
        monkeypatch.setattr(webhooks, name, 0.02)
    made = Receiver()
    yield made
    made.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, [builtin], {"trending": {}}) as made:
        made.ledger.ensure_workspace(ELSEWHERE)
        yield made


def rule(name: str, **more: Any) -> RuleSettings:
    return RuleSettings.model_validate({"name": name, "do": "alert", **more})


def keep(world: World, rule: str, position: int) -> Alert:
    """Keep an alert of a rule, as the transaction that logs what the rule did does."""
    body = f'{{"id": "{rule}{position}"}}'
    alert = Alert(alert_id=f"{rule}{position}", rule=rule, position=position, body=body, made_us=world.clock.now_us())
    move = IntakeMove(intake=f"rules:{rule}:{position}", expect=None, next=position, alert=alert, took=0)
    world.ledger.append(ELSEWHERE, [], recorded_us=world.clock.now_us(), moves=[move])
    return alert


class Delivering:
    """Delivers, by rules, what a ledger holds."""

    def __init__(self, world: World, *rules: RuleSettings) -> None:
        self.registry = CollectorRegistry()
        node = SimpleNamespace(ledger=world.ledger, context=world.context, views=None)
        self._webhooks = Webhooks(cast(Any, node), rules, self.registry)

    def count(self, rule: str, outcome: str) -> float:
        labels = {"workspace": ELSEWHERE, "rule": rule, "outcome": outcome}
        return self.registry.get_sample_value("streamfold_alerts_total", labels) or 0.0

    def __enter__(self) -> Delivering:
        return self

    def __exit__(self, *_: object) -> None:
        self._webhooks.close()


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str, str]]:
    """What the log tells of the rule that is gone."""
    lines: list[Any] = [record.msg for record in caplog.records if isinstance(record.msg, dict)]
    return [(one["level"], one["event"], one.get("error", "")) for one in lines if one.get("rule") == "gone"]


@pytest.mark.parametrize(
    "changed", [(), (rule("gone"),), (rule("gone", do="consolidate"),)], ids=["no_rule", "no_url", "no_alert"]
)
def test_an_alert_whose_rule_posts_no_more_waits_a_day_and_is_then_given_up_aloud(
    world: World, receiver: Receiver, caplog: pytest.LogCaptureFixture, changed: tuple[RuleSettings, ...]
) -> None:
    first, second = keep(world, "gone", 3), keep(world, "gone", 4)
    with Delivering(world, *changed, rule("kept", url=receiver.url)) as delivering:
        assert until(lambda: said(caplog))
        keep(world, "kept", 5)
        assert until(lambda: delivering.count("kept", "delivered") == 1), "it holds up nobody else"
        assert receiver.taken == [{"id": "kept5"}]
        assert world.ledger.alerts(ELSEWHERE) == [first, second], "as they were: nobody has tried"
        world.clock.advance(DAY_S + 1)
        assert until(lambda: delivering.count("gone", "failed") == 2)
    assert world.ledger.alerts(ELSEWHERE) == []
    given_up = ("error", "alert_not_delivered", "its rule is gone")
    assert said(caplog) == [("warning", "alert_without_rule", ""), given_up, given_up]
    assert len(receiver.keys) == 1


def test_an_alert_whose_rule_comes_back_in_time_is_delivered(
    world: World, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    keep(world, "gone", 3)
    with Delivering(world):
        assert until(lambda: said(caplog))
    world.clock.advance(DAY_S - 1)
    with Delivering(world, rule("gone", url=receiver.url, give_up_s=30 * DAY_S)) as delivering:
        assert until(lambda: delivering.count("gone", "delivered") == 1)
    assert receiver.taken == [{"id": "gone3"}]
    assert world.ledger.alerts(ELSEWHERE) == []
