"""Who reads with ``min_position`` gets an answer soon, also from policies that the events do not concern."""

from __future__ import annotations

from pathlib import Path

from streamfold.core.testing.service import EmbeddedService


def test_a_position_is_reached_without_waiting_for_a_sweep(tmp_path: Path) -> None:
    """``trending`` handles no users; its watermark moves past each of them nevertheless."""
    policies = {"trending": {}, "activity": {}}
    service = EmbeddedService(tmp_path, policies=policies, settings={"fold": {"sweep_s": 3600.0}})
    try:
        for number in range(30):
            event = {"specversion": "1.0", "id": f"u{number}", "source": "/t", "type": "user.upserted",
                     "data": {"user_id": f"u{number}"}}  # fmt: skip
            position = service.client.post("/v1/events", json=[event]).json()["position"]
            asked = {"min_position": position, "wait_ms": 30_000}
            answer = service.client.get("/v1/trending", params=asked)
            assert answer.status_code == 200, answer.text
            assert answer.json()["version"]["position"] >= position
    finally:
        service.stop()
