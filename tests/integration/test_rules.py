"""An alarm becomes what the rules say, once: a shadow that catches up, an alert; not again after a restart, not twice
beside another process."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from streamfold.core.errors import ConfigError
from streamfold.core.settings import Settings, load_settings
from streamfold.core.testing.service import EmbeddedService
from streamfold.pipelines.node import Node
from streamfold.pipelines.serve import create_app
from tests.receiver import Receiver
from tests.waiting import until

sys.path.insert(0, str(Path(__file__).parent))
from test_rest import BACKENDS, serving

sys.path.pop(0)

POLICIES: dict[str, Any] = {"label_statistics": {"gamma": 2.0}, "drift": {"detectors": ["adwin"]}}
REFRESH = {
    "name": "refresh", "policy": "label_statistics", "detector": "adwin", "do": "shadow",
    "config": {"half_life_s": 3600.0},
}  # fmt: skip
TOKEN = "a-token-that-nobody-logs"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


def logged(service: Any, type_: str) -> list[Any]:
    """The data of the events of a type."""
    answer = service.get("/v1/events", params={"type": type_, "limit": 1000})
    return [one["event"]["data"] for one in answer.raise_for_status().json()["items"]]


def judged(first: int, count: int, right: str) -> list[tuple[str, dict[str, Any]]]:
    """Answers ``a`` of the head, and what they should have been."""
    events: list[tuple[str, dict[str, Any]]] = []
    for n in range(first, first + count):
        shown = {"exposure_id": f"e{n}", "kind": "classify", "items": [{"label": "a", "rank": 1}],
                 "policies": {"label_statistics": "1"}, "context": {"head": "h"}}  # fmt: skip
        label = {"head": "h", "target": {"features": {"x": 1.0 + n}}, "exposure_id": f"e{n}", "label": right}
        events += [("exposure.recorded", shown), ("label.observed", label)]
    return events


def lines_of(service: EmbeddedService) -> list[Any]:
    lines: list[Any] = service.get("/v1/status")["policies"]
    return lines


def shadows(service: EmbeddedService) -> list[Any]:
    return [line for line in lines_of(service) if line["slot"] == "shadow"]


def test_drift_brings_a_shadow_that_catches_up_once(tmp_path: Path, receiver: Receiver) -> None:
    receiver.statuses = [503]  # the first attempt fails
    alert = {"name": "tell", "do": "alert", "url_env": "HOOK", "secret_env": "TOKEN", "at_most_every_s": 0}
    tidy = {"name": "tidy", "policy": "drift", "do": "consolidate"}
    how: dict[str, Any] = {
        "policies": POLICIES, "settings": {"rules": [REFRESH, alert, tidy]},
        "environment": {"HOOK": receiver.url, "TOKEN": TOKEN, "NO_PROXY": "127.0.0.1"},
    }  # fmt: skip
    service = EmbeddedService(tmp_path, **how)
    try:
        service.send(judged(0, 250, "a"))
        assert not shadows(service)
        service.send(judged(250, 150, "b"))
        [applied] = until(lambda: [one for one in logged(service.client, "rule.applied") if one["do"] == "shadow"])
        assert (applied["rule"], applied["policy"], applied["outcome"]) == ("refresh", "label_statistics", "applied")
        [line] = shadows(service)
        assert applied["detail"] == line["group"]
        assert (line["policy"], line["config"]["config"]["half_life_s"]) == ("label_statistics", 3600.0)
        assert line["config"]["config"]["gamma"] == 2.0  # as live, but for what the rule says
        assert until(lambda: shadows(service)[0]["watermark"] >= 800)
        body = {"head": "h", "targets": [{"features": {"x": 399.0}}], "log_exposure": False}
        named = {"policy": f"label_statistics@{line['label']}"}
        answer = service.client.post("/v1/classify", json=body | named).raise_for_status().json()
        assert answer["predictions"][0]["labels"]
        assert service.get("/v1/audit")["items"][0]["actor"] == "streamfold:rules"

        alarms = len(logged(service.client, "drift.detected"))
        service.send(judged(400, 400, "a"))  # it is right again: another alarm, within the cool-down
        assert until(lambda: len(logged(service.client, "drift.detected")) > alarms)
        delivered = 'streamfold_alerts_total{outcome="delivered",rule="tell",workspace="default"}'

        def all_told() -> bool:
            nonlocal alarms
            alarms = len(logged(service.client, "drift.detected"))
            metrics = service.client.get("/metrics").text
            return len(receiver.taken) == alarms and f"{delivered} {alarms}.0" in metrics

        assert until(all_told)
        told = receiver.taken[0]
        assert (told["rule"], told["policy"], told["detector"]) == ("tell", "label_statistics@1", "adwin:h")
        assert told["statistic"] > told["threshold"]
        assert set(receiver.asked) == {("/hook/secret-path", f"Bearer {TOKEN}")}
        assert len(receiver.asked) == alarms + 1
        expected = [("refresh", applied["alarm_position"])]
        assert done(service, "refresh") == expected
        metrics = service.client.get("/metrics").text
        assert 'streamfold_rules_applied_total{outcome="applied",rule="refresh",workspace="default"} 1.0' in metrics
        lines = {line["name"]: line["kind"] for line in service.get("/v1/status")["intakes"]}
        assert lines["rules:refresh"] == "rule"
        [group] = [one["group"] for one in shadows(service)]
    finally:
        service.stop()
    said = service.log()
    assert "rule_applied" in said
    assert not [word for word in (TOKEN, "secret-path") if word in said]

    again = EmbeddedService(tmp_path, **how)
    try:
        again.client.post("/v1/events", json=drift("later", policy="somebody@1")).raise_for_status()
        assert until(lambda: len(receiver.taken) == alarms + 1)
        assert done(again, "refresh") == expected
        assert [one["group"] for one in shadows(again)] == [group]

        events = len(logged(again.client, "drift.detected"))
        again.client.post("/v1/events", json=drift("tidy", policy="drift@1")).raise_for_status()
        tidied = until(lambda: [one for one in logged(again.client, "rule.applied") if one["rule"] == "tidy"])
        assert until(lambda: tidied[0]["detail"] in {one["group"] for one in lines_of(again) if one["slot"] == "live"})
        assert until(lambda: len(receiver.taken) == alarms + 2)
        assert len(logged(again.client, "drift.detected")) == events + 1  # folded afresh it raises no alarm again
    finally:
        again.stop()


def drift(event_id: str, **data: Any) -> dict[str, Any]:
    """An alarm from elsewhere."""
    given = {"specversion": "1.0", "id": event_id, "source": "/elsewhere", "type": "drift.detected"}
    return {**given, "data": {"detector": "cusum", **data}}


def done(service: EmbeddedService, rule: str) -> list[tuple[str, int]]:
    applied = logged(service.client, "rule.applied")
    return [(one["rule"], one["alarm_position"]) for one in applied if one["rule"] == rule]


def test_a_process_that_dies_after_it_made_the_shadow_has_its_successor_log_that_one(tmp_path: Path) -> None:
    how: dict[str, Any] = {"policies": POLICIES, "settings": {"rules": [REFRESH]}}
    EmbeddedService(tmp_path, **how).stop()  # the policies are pinned, the rules have begun
    alarm = {"policy": "label_statistics@1", "detector": "adwin:h"}
    first = EmbeddedService(tmp_path, **how, environment={"STREAMFOLD_CRASH": "versions.add.after"})
    first.client.post("/v1/events", json=drift("d", **alarm)).raise_for_status()
    assert until(lambda: not first.is_alive)
    first.stop()
    again = EmbeddedService(tmp_path, **how)
    try:
        [applied] = until(lambda: logged(again.client, "rule.applied"))
        assert applied["outcome"] == "applied"
        assert [line["group"] for line in shadows(again)] == [applied["detail"]]
        assert [one["action"] for one in again.get("/v1/audit")["items"]] == ["add"]
    finally:
        again.stop()


@contextmanager
def two(folder: Path, url: str, rules: list[dict[str, Any]]) -> Iterator[tuple[list[Node], list[Any]]]:
    """Two serving processes' worth of nodes on one PostgreSQL ledger."""
    with ExitStack() as stack:
        nodes, clients = [], []
        for name in ("one", "other"):
            made = Settings(
                backends=BACKENDS, data=folder / name, checkpoints=str(folder / "checkpoints"),
                policies={"label_statistics": {}, "kalman_head": {}, "trending": {}}, ledger={"url": url}, rules=rules,
            )  # type: ignore[arg-type]  # pydantic builds the sections  # fmt: skip
            nodes.append(Node(made))
            clients.append(stack.enter_context(serving(made, nodes[-1])))
        yield nodes, clients


def test_beside_another_process_each_alarm_is_acted_on_once(
    tmp_path: Path, postgres_database: str, receiver: Receiver
) -> None:
    rules: list[dict[str, Any]] = [
        {"name": "refresh", "do": "shadow", "from": "now", "at_most_every_s": 0},
        {"name": "tell", "do": "alert", "url": receiver.url, "at_most_every_s": 0},
        {"name": "severe", "do": "alert", "level": 3, "url": receiver.url},
    ]
    with two(tmp_path, postgres_database, rules) as (nodes, clients):
        named = ["label_statistics@1", "kalman_head@1+label_statistics@1", "trending@1", "nobody@1"]
        until(lambda: [one for one in nodes[0].ledger.intakes("default") if one.intake == "rules:log"])
        for n in range(12):
            event = drift(f"d{n}", policy=named[n % 4], statistic=2.0 + (n == 5), threshold=1.0)
            clients[n % 2].post("/v1/events", json=event).raise_for_status()
        # 12 told once, one severe; what the others found: a shadow there, or nobody
        assert until(lambda: len(receiver.taken) >= 13)
        assert until(lambda: len(logged(clients[0], "rule.applied")) >= 12 + 1 + 15)
        applied = logged(clients[0], "rule.applied")
        assert sorted(one["alarm_position"] for one in applied if one["rule"] == "tell") == sorted(
            {one["alarm_position"] for one in applied}
        )
        assert [one["rule"] for one in applied].count("severe") == 1
        of_refresh = [one for one in applied if one["rule"] == "refresh"]
        assert len(of_refresh) == 15
        assert {(one["policy"], one["outcome"]) for one in of_refresh} >= {
            ("label_statistics", "applied"), ("kalman_head", "applied"), ("trending", "applied"),
            ("nobody@1", "refused"),
        }  # fmt: skip
        rows = [row for row in nodes[0].ledger.instances("default") if row.slot == "shadow"]
        assert sorted(row.name for row in rows) == ["kalman_head", "label_statistics", "trending"]
        assert all(row.start_seq > 0 for row in rows)
        time.sleep(1.5)  # both have looked again
        assert len(receiver.taken) == 13
        assert len(logged(clients[0], "rule.applied")) == len(applied)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ('name = "a"\ndo = "shadov"', r"rules\.0\.do' \(rule 'a'\)"),
        ('name = "a"\ndo = "alert"\nat_most = 3', r"unknown setting 'rules\.0\.at_most' \(rule 'a'\).*at_most_every_s"),
        ('name = "a"\ndo = "shadow"', "rule 'a'.*the same configuration folded from the log's start"),
        ('name = "a"\ndo = "shadow"\nconfig = {gamma = 2.0}', "rule 'a'.*config needs policy"),
        ('name = "a"\ndo = "alert"\nfrom = "now"', "rule 'a'.*from is for do = 'shadow', not 'alert'"),
        ('name = "a"\ndo = "consolidate"\nurl = "http://x"', "rule 'a'.*url is for do = 'alert'"),
        ('name = "a"\ndo = "alert"\nurl = "file:///x"', "rule 'a'.*url must begin with http"),
        ('name = "a"\ndo = "alert"\n[[rules]]\nname = "a"\ndo = "alert"', "two rules are named 'a'"),
        ('name = "a b"\ndo = "alert"', r"rules\.0\.name"),
        ('name = "a"\non = "gate"\ndo = "consolidate"', "rule 'a'.*on = 'gate' is for do = 'alert'"),
        ('name = "a"\non = "gate"\ndo = "alert"\ndetector = "adwin"', "rule 'a'.*it has no detector"),
    ],
)
def test_a_rule_that_cannot_be_meant_is_refused_by_its_name(tmp_path: Path, rule: str, words: str) -> None:
    file = tmp_path / "streamfold.toml"
    file.write_text(f"[[rules]]\n{rule}\n")
    with pytest.raises(ConfigError, match=words):
        load_settings(file)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"do": "shadow", "policy": "label_statistics", "config": {"gama": 1.0}}, "rule 'a'.*'gama'.*gamma"),
        ({"do": "shadow", "policy": "label_statistics", "config": {"gamma": -1.0}}, "rule 'a'.*gamma is -1"),
        ({"do": "alert", "url_env": "NO_SUCH_VARIABLE"}, "rule 'a': the environment variable NO_SUCH_VARIABLE"),
    ],
)
def test_a_rule_that_would_fail_in_an_alarm_fails_at_the_start(
    tmp_path: Path, rule: dict[str, Any], words: str
) -> None:
    settings = Settings(
        backends=BACKENDS,
        data=tmp_path,
        policies={"label_statistics": {}},
        rules=({"name": "a", **rule},),  # type: ignore[arg-type]  # pydantic builds it
    )
    node = Node(settings)
    try:
        with pytest.raises(ConfigError, match=words):
            create_app(node)
    finally:
        node.close()
