"""An alert arrives at least once: past an endpoint that is down, past SIGKILL, told apart by its id; not for ever."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamfold.core.testing.service import EmbeddedService
from tests.receiver import Receiver
from tests.waiting import until

TELL = {"name": "tell", "do": "alert", "url_env": "HOOK", "at_most_every_s": 0}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def served(folder: Path, receiver: Receiver, crash: str = "", **rule: Any) -> EmbeddedService:
    environment = {"HOOK": receiver.url, "NO_PROXY": "127.0.0.1", "STREAMFOLD_CRASH": crash}
    return EmbeddedService(
        folder, policies={"trending": {}}, settings={"rules": [{**TELL, **rule}]}, environment=environment
    )


def alarm(service: EmbeddedService, id_: str) -> None:
    data = {"policy": "trending@1", "detector": "cusum", "statistic": 2.0, "threshold": 1.0}
    event = {"specversion": "1.0", "id": id_, "source": "/monitor", "type": "drift.detected", "data": data}
    service.client.post("/v1/events", json=event).raise_for_status()


def begun(service: EmbeddedService) -> EmbeddedService:
    """Wait until the rules look at the log: alarms before that are none of theirs."""
    until(lambda: any(line["name"] == "rules:log" for line in service.get("/v1/status")["intakes"]))
    return service


def alerts(service: EmbeddedService, outcome: str) -> float:
    name = f'streamfold_alerts_total{{outcome="{outcome}",rule="tell",workspace="default"}} '
    lines = service.client.get("/metrics").text.splitlines()
    return next((float(line.removeprefix(name)) for line in lines if line.startswith(name)), 0.0)


def test_an_alert_that_nobody_took_is_delivered_by_the_successor_of_a_killed_process(
    tmp_path: Path, receiver: Receiver
) -> None:
    receiver.otherwise = 503
    first = begun(served(tmp_path, receiver))
    alarm(first, "a1")
    alarm(first, "a2")
    assert until(lambda: alerts(first, "retried") >= 2)
    assert not receiver.taken
    os.kill(first._process.pid, signal.SIGKILL)
    first.stop()
    assert "alert_retried" in first.log()
    assert "secret-path" not in first.log()
    receiver.otherwise = 204
    again = served(tmp_path, receiver)
    try:
        assert until(lambda: len(receiver.taken) == 2)
        first_at, then_at = (one["alarm_position"] for one in receiver.taken)
        assert first_at < then_at, "in order"
        assert (receiver.taken[0]["statistic"], receiver.taken[0]["at_position"]) == (2.0, None)
        ids = [one["id"] for one in receiver.taken]
        assert len(set(ids)) == 2
        assert set(receiver.keys) == {(one, one) for one in ids}, "each attempt has its alert's id"
        assert len(receiver.keys) > 3
        until(lambda: alerts(again, "delivered") == 2)
    finally:
        again.stop()


def test_a_process_that_dies_before_it_could_note_a_delivery_has_its_successor_repeat_it_under_the_same_id(
    tmp_path: Path, receiver: Receiver
) -> None:
    begun(served(tmp_path, receiver)).stop()
    first = served(tmp_path, receiver, crash="alerts.posted", timeout_s=1.0)
    alarm(first, "a1")
    assert until(lambda: not first.is_alive)
    first.stop()
    assert len(receiver.taken) == 1
    again = served(tmp_path, receiver, timeout_s=1.0)
    try:
        assert until(lambda: len(receiver.taken) == 2)
        assert receiver.taken[0] == receiver.taken[1]
        until(lambda: alerts(again, "delivered") == 1)
        alarm(again, "a2")
        assert until(lambda: len(receiver.taken) == 3)
        assert receiver.taken[2]["id"] != receiver.taken[0]["id"]
    finally:
        again.stop()


def test_what_nobody_will_ever_take_is_given_up_and_the_next_one_goes_out(tmp_path: Path, receiver: Receiver) -> None:
    receiver.statuses = [422]
    service = begun(served(tmp_path, receiver, give_up_s=2.9))
    try:
        alarm(service, "refused")
        assert until(lambda: alerts(service, "failed") == 1)
        assert len(receiver.keys) == 1, "asked again it would say the same"
        receiver.otherwise = 500
        alarm(service, "down")
        assert until(lambda: alerts(service, "failed") == 2)
        assert alerts(service, "retried") >= 1
        receiver.otherwise = 204
        alarm(service, "up")
        assert until(lambda: len(receiver.taken) == 1)
        assert receiver.taken[0]["id"] == receiver.keys[-1][0]
    finally:
        service.stop()
    assert service.log().count("alert_not_delivered") == 2


def test_an_event_that_says_a_rule_acted_posts_nothing(tmp_path: Path, receiver: Receiver) -> None:
    service = begun(served(tmp_path, receiver))
    try:
        said = {"rule": "tell", "do": "alert", "policy": "trending", "outcome": "applied", "alarm_position": 1}
        event = {"specversion": "1.0", "id": "x", "source": "streamfold:rules", "type": "rule.applied", "data": said}
        service.client.post("/v1/events", json=event).raise_for_status()
        alarm(service, "a1")
        assert until(lambda: len(receiver.taken) == 1)
        assert receiver.taken[0]["alarm_position"] == 2
        assert len(receiver.keys) == 1
    finally:
        service.stop()
