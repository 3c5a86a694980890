"""While the gate times a candidate, the event loop goes on and threads that answer stay free, however many look."""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from streamfold.core.settings import Settings
from streamfold.pipelines.serve import gate_costs
from tests.waiting import ended_job, until

sys.path.insert(0, str(Path(__file__).parent))
from test_rest import BACKENDS, serving

sys.path.pop(0)

LOOKING = 12
"""More than there are threads that answer."""


def labels(count: int) -> list[dict[str, Any]]:
    old = time.time() - 20 * 86_400
    return [
        {"specversion": "1.0", "id": f"l{i}", "source": "/t", "type": "label.observed",
         "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(old + 600 * i)),
         "data": {"head": "h", "target": {"features": {"x": float(i), "y": float(i % 2)}}, "label": "ab"[i % 2]}}
        for i in range(count)
    ]  # fmt: skip


def test_those_who_look_at_the_gate_keep_nobody_waiting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on, timed_by = threading.Event(), list[str]()
    real = gate_costs.seconds_per_event

    def held(*given: Any) -> float | None:
        timed_by.append(threading.current_thread().name)
        assert go_on.wait(600)
        return real(*given)

    monkeypatch.setattr(gate_costs, "seconds_per_event", held)
    asked: list[str] = []
    rules = gate_costs.GateCosts.rules

    def counted(self: gate_costs.GateCosts, *given: Any) -> Any:
        asked.append("")
        return rules(self, *given)

    monkeypatch.setattr(gate_costs.GateCosts, "rules", counted)
    settings = Settings(
        backends=BACKENDS, data=tmp_path, policies={"label_statistics": {}, "trending": {}}, serve={"query_threads": 2},
    )  # type: ignore[arg-type]  # pydantic builds the section  # fmt: skip
    with serving(settings) as client, ThreadPoolExecutor(LOOKING) as threads:
        client.post("/v1/events", json=labels(40), params={"wait": "visible"}).raise_for_status()
        body = {"name": "label_statistics", "config": {"gamma": 2.0}, "reason": "try"}
        added = client.post("/v1/policies", json=body).raise_for_status()
        name = added.json()["policy"]
        assert ended_job(client, added)["state"] == "done"
        url = f"/v1/policies/{name}/quality"
        until(lambda: client.get("/v1/policies/label_statistics/quality").status_code == 200)
        looking = [threads.submit(client.get, url) for _ in range(LOOKING)]
        try:
            until(lambda: timed_by and len(asked) >= LOOKING)
            for _ in range(5):  # both threads that answer are free, and so is the loop
                answer = client.post("/v1/recommend", json={"n": 1, "user_id": "u", "log_exposure": False}, timeout=120)
                assert answer.status_code == 200, answer.text
            assert not any(one.done() for one in looking)
        finally:
            go_on.set()
        gates = [one.result().raise_for_status().json()["gate"] for one in looking]
        rules = {rule["rule"] for rule in gates[0]}
        assert {"not_worse", "cost"} <= rules
        assert all(gate == gates[0] for gate in gates), "timed once for all who looked meanwhile"
    assert {one.rpartition("_")[0] for one in timed_by} == {"gate-costs"}
