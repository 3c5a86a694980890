"""A head that was right becomes wrong: the log has one ``drift.detected`` event, the metrics a count."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from streamfold.core.testing.service import EmbeddedService
from tests.waiting import until


def test_a_change_of_a_heads_errors_is_an_event_once(tmp_path: Path) -> None:
    policies: dict[str, Any] = {"label_statistics": {}, "drift": {"detectors": ["adwin"]}}
    service = EmbeddedService(tmp_path, policies=policies)
    try:
        said = [("exposure.recorded", {"exposure_id": f"e{n}", "kind": "classify", "items": [{"label": "a", "rank": 1}],
                                       "context": {"head": "h"}}) for n in range(400)]  # fmt: skip
        right = [("label.observed", {"head": "h", "target": {"features": {"x": 1.0 + n}}, "exposure_id": f"e{n}",
                                     "label": "a" if n < 250 else "b"}) for n in range(400)]  # fmt: skip
        service.send(said)
        service.send(right)
        found = alarms(service)
        assert {one["event"]["source"] for one in found} == {"streamfold:watch"}
        data = found[0]["event"]["data"]
        assert (data["policy"], data["detector"]) == ("unknown", "adwin:h")
        assert data["statistic"] > data["threshold"] > 0
        assert 650 < data["at_position"] <= 800
        count = 'streamfold_drift_alarms_total{detector="adwin:h",policy="unknown",workspace="default"}'
        until(lambda: f"{count} {len(alarms(service))}.0" in service.client.get("/metrics").text)
        found = alarms(service)
    finally:
        service.stop()
    again = EmbeddedService(tmp_path, policies=policies)  # who starts anew sees the same alarms, and logs none twice
    try:
        time.sleep(2.5)  # it has looked
        assert len(alarms(again)) == len(found)
    finally:
        again.stop()


def alarms(service: EmbeddedService) -> list[Any]:
    """The events that are there; waits for the first."""
    items: list[Any] = until(lambda: service.get("/v1/events", type="drift.detected")["items"])
    return items
