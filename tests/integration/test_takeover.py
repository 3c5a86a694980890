"""A changed declaration of what is measured takes over by itself only when the gate lets it pass, and says why not."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamfold.core.fold import FoldRunner, LedgerPrepared, Preparer
from streamfold.core.settings import Settings
from streamfold.core.testing.service import EmbeddedService, send_lines
from streamfold.pipelines.cli import main
from streamfold.pipelines.node import Node
from tests.receiver import Receiver
from tests.waiting import until

sys.path.insert(0, str(Path(__file__).parent))
from test_rest import BACKENDS, serving

sys.path.pop(0)

DAY_S = 86_400
TELL = {"name": "refused", "on": "gate", "do": "alert", "url_env": "HOOK"}
LOOSE: dict[str, Any] = {"delta": 0.05, "p99_ratio": 1e6, "cost_ratio": 1e6}
"""Bounds that a few hundred targets can prove, and that do not depend on how busy the machine is."""
SHARP, BLUNT, ALIKE = {"gamma": 1.0}, {"gamma": 1e9}, {"gamma": 1.001}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


class Shop:
    """A service that is started again and again with other declarations, on the same data."""

    def __init__(self, folder: Path, url: str) -> None:
        self._folder, self._url, self._sent = folder, url, 0
        self._rng = np.random.default_rng(2)
        self._start = time.time() - 30 * DAY_S

    def declares(self, head: dict[str, Any], half_lives_s: list[int], on_change: str = "replace") -> EmbeddedService:
        return EmbeddedService(
            self._folder,
            policies={"label_statistics": head, "trending": {"half_lives_s": half_lives_s}},
            settings={"gate": LOOSE, "rules": [TELL]},
            environment={"HOOK": self._url, "NO_PROXY": "127.0.0.1", "STREAMFOLD_ON_CHANGE": on_change},
        )

    def label(self, service: EmbeddedService | Asked, count: int) -> None:
        """Label targets of two classes that are easy to tell apart, ten minutes after one another, a month ago."""
        lines = []
        for i in range(self._sent, self._sent + count):
            code = int(self._rng.integers(2))
            features = {f"f{j}": float(v) for j, v in enumerate(self._rng.normal(size=4) + 2.5 * code)}
            at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._start + 600 * i))
            data = {"head": "kind", "target": {"features": features}, "label": "ab"[code]}
            one = {"specversion": "1.0", "id": f"l{i}", "source": "/t", "type": "label.observed", "time": at}
            lines.append(json.dumps({**one, "data": data}))
        self._sent += count
        send_lines(service.client, lines)


def lines(service: EmbeddedService | Asked, policy: str) -> dict[str, dict[str, Any]]:
    """The status of a policy's versions, by slot; at most one each."""
    found = [line for line in service.get("/v1/status")["policies"] if line["policy"] == policy]
    return {line["slot"]: line for line in found}


def gamma(line: dict[str, Any]) -> float:
    return float(line["config"]["config"]["gamma"])


def verdict(service: EmbeddedService | Asked) -> str:
    held = lines(service, "label_statistics").get("shadow", {}).get("takeover")
    return "" if held is None else str(held["verdict"])


def judged(service: EmbeddedService | Asked) -> list[dict[str, Any]]:
    items = service.get("/v1/events", type="gate.judged")["items"]
    return [item["event"]["data"] for item in items]


def replaced(service: EmbeddedService | Asked, name: str) -> list[str]:
    """Why changed declarations took over, newest first."""
    items = service.get("/v1/audit")["items"]
    return [one["reason"] for one in items if one["action"] == "replace" and one["target"].startswith(name)]


def test_a_changed_head_takes_over_when_the_gate_passes_and_stays_a_shadow_until_then(
    tmp_path: Path, receiver: Receiver
) -> None:
    shop = Shop(tmp_path, receiver.url)
    first = shop.declares(SHARP, [3600])
    shop.label(first, 200)  # of which those of the last day count for nobody yet
    first.stop()

    service = shop.declares(BLUNT, [7200])
    try:
        assert until(lambda: verdict(service) == "undecided")
        assert until(lambda: replaced(service, "trending") == ["declared policy changed"]), "nothing measures it"
        assert "shadow" in lines(service, "label_statistics")
        [rule] = [
            r for r in lines(service, "label_statistics")["shadow"]["takeover"]["rules"] if r["rule"] == "not_worse"
        ]
        assert rule["undecided"]
        assert rule["detail"].startswith("undecided: ")
        assert rule["detail"].endswith("100 are needed")
        assert [one["verdict"] for one in judged(service)] == ["undecided"]
        gauge = 'streamfold_takeover_held{group="%s",verdict="%s",workspace="default"}'
        group = lines(service, "label_statistics")["shadow"]["group"]
        assert f"{gauge % (group, 'undecided')} 1.0" in service.client.get("/metrics").text

        shop.label(service, 700)
        assert until(lambda: verdict(service) == "fail")
        said = judged(service)[-1]
        assert (said["verdict"], "not_worse" in said["failed"], said["group"]) == ("fail", True, group)
        assert said["policy"] == f"label_statistics@{lines(service, 'label_statistics')['shadow']['label']}"
        [told] = until(lambda: receiver.taken)
        assert (told["rule"], told["verdict"], told["policy"]) == ("refused", "fail", said["policy"])
        metrics = service.client.get("/metrics").text
        assert f"{gauge % (group, 'fail')} 1.0" in metrics
        assert gauge % (group, "undecided") not in metrics
        assert gamma(lines(service, "label_statistics")["live"]) == SHARP["gamma"]
        name = f"label_statistics@{lines(service, 'label_statistics')['shadow']['label']}"
        refused = service.client.post(f"/v1/policies/{name}/promote", json={"reason": "the same gate"})
        assert refused.json()["code"] == "gate-failed"
    finally:
        service.stop()
    assert "gate_judged" in service.log()

    service = shop.declares(ALIKE, [7200])  # the blunt one is what nobody declares any more
    try:
        assert until(lambda: gamma(lines(service, "label_statistics")["live"]) == ALIKE["gamma"])
        [why] = replaced(service, "label_statistics")
        assert why.startswith("declared policy changed; the gate: pass")
        assert until(lambda: judged(service)[-1]["verdict"] == "pass")
        rows = service.get("/v1/policies")["items"]
        others = {gamma(row): row for row in rows if row["policy"] == "label_statistics" and row["slot"] == "shadow"}
        assert set(others) == {SHARP["gamma"], BLUNT["gamma"]}
        assert others[BLUNT["gamma"]]["takeover"] is None
        assert "streamfold_takeover_held{" not in service.client.get("/metrics").text
        back = service.client.post("/v1/policies/label_statistics/rollback", json={"reason": "back"})
        assert back.status_code == 202, back.text
        assert gamma(lines(service, "label_statistics")["live"]) == SHARP["gamma"]
        time.sleep(2)
        assert gamma(lines(service, "label_statistics")["live"]) == SHARP["gamma"], "who went back stays there"
    finally:
        service.stop()


def test_without_the_gate_a_worse_head_takes_over_and_the_audit_says_so(tmp_path: Path, receiver: Receiver) -> None:
    shop = Shop(tmp_path, receiver.url)
    first = shop.declares(SHARP, [3600])
    shop.label(first, 900)
    first.stop()
    held = shop.declares(BLUNT, [3600])
    assert until(lambda: verdict(held) == "fail")
    held.stop()
    service = shop.declares(BLUNT, [3600], on_change="replace-ungated")
    try:
        assert until(lambda: gamma(lines(service, "label_statistics")["live"]) == BLUNT["gamma"])
        [why] = replaced(service, "label_statistics")
        assert "the gate was not asked (on_change = replace-ungated)" in why
    finally:
        service.stop()


def test_where_nobody_labels_a_changed_head_waits_and_force_is_the_way_out(
    tmp_path: Path, receiver: Receiver, capsys: pytest.CaptureFixture[str]
) -> None:
    shop = Shop(tmp_path, receiver.url)
    first = shop.declares(SHARP, [3600])
    shop.label(first, 3)
    first.stop()
    service = shop.declares(ALIKE, [3600])
    try:
        assert until(lambda: verdict(service) == "undecided")
        for command in (["policies", "list"], ["status"]):
            assert main([*command, "--url", service.url]) == 0
            assert "undecided (not_worse)" in " ".join(capsys.readouterr().out.split()), command
        forced = service.client.post(
            "/v1/policies/label_statistics/promote", json={"reason": "a bound that changes no answer", "force": True}
        )
        assert forced.status_code == 202, forced.text
        assert gamma(lines(service, "label_statistics")["live"]) == ALIKE["gamma"]
        entry = next(one for one in service.get("/v1/audit")["items"] if one["action"] == "promote")
        assert entry["reason"].startswith("a bound that changes no answer (forced past not_worse")
        assert until(lambda: "streamfold_takeover_held{" not in service.client.get("/metrics").text)
    finally:
        service.stop()


@dataclass
class Asked:
    """A service that is reached by a client alone."""

    client: Any

    def get(self, path: str, **params: Any) -> Any:
        return self.client.get(path, params=params).raise_for_status().json()


@contextmanager
def distributed(folder: Path, url: str, head: dict[str, Any]) -> Iterator[list[Asked]]:
    """Two serving processes' worth of nodes on one PostgreSQL ledger, and a worker that folds."""
    stop = threading.Event()
    with ExitStack() as stack:
        found = []
        for name in ("one", "other"):
            made = Settings(
                backends=BACKENDS, data=folder / name, checkpoints=str(folder / "checkpoints"),
                policies={"label_statistics": head}, ledger={"url": url}, gate=LOOSE,
            )  # type: ignore[arg-type]  # pydantic builds the sections  # fmt: skip
            node = Node(made)
            found.append(Asked(stack.enter_context(serving(made, node))))
        prepared = LedgerPrepared(node.context)
        preparer, runner = Preparer(node.context, prepared), FoldRunner(node.context, prepared)

        def fold() -> None:
            while not stop.wait(0.05):
                node.context.groups("default", fresh=True)
                preparer.run("default", node.ledger.watermarks("default"))
                runner.run("default")

        worker = threading.Thread(target=fold)
        worker.start()
        try:
            yield found
        finally:
            stop.set()
            worker.join()
            runner.stop()


def test_of_two_serving_processes_one_lets_it_take_over_and_the_folds_leave_it_to_them(
    tmp_path: Path, postgres_database: str
) -> None:
    shop = Shop(tmp_path, "")
    with distributed(tmp_path, postgres_database, SHARP) as (one, _):
        shop.label(one, 200)
    with distributed(tmp_path, postgres_database, BLUNT) as (one, other):
        assert until(lambda: verdict(one) == verdict(other) == "undecided")
        shop.label(other, 600)
        assert until(lambda: verdict(one) == verdict(other) == "fail")
        assert [said["verdict"] for said in judged(one)] == ["undecided", "fail"], "each is logged once"
        assert gamma(lines(one, "label_statistics")["live"]) == SHARP["gamma"]
    with distributed(tmp_path, postgres_database, ALIKE) as (one, other):
        assert until(lambda: gamma(lines(one, "label_statistics")["live"]) == ALIKE["gamma"])
        assert until(lambda: [said["verdict"] for said in judged(other)] == ["undecided", "fail", "pass"])
        assert len(replaced(other, "label_statistics")) == 1
