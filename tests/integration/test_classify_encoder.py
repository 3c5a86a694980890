"""A head when the encoder changes: a new state in a shadow, answered from only once promoted, never a mixture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from streamfold.core.testing.service import EmbeddedService
from streamfold.pipelines.cli import main

WORDS = {"spam": ["cheap pills now", "win cheap money now"], "ham": ["the meeting is on monday", "monday's minutes"]}


def serve(folder: Path, dim: int) -> EmbeddedService:
    return EmbeddedService(
        folder,
        policies={"label_statistics": {}},
        backends={"encoder": {"use": "hashing", "dim": dim}, "chunker": {"use": "sentences"}},
        environment={"STREAMFOLD_ON_CHANGE": "manual"},
    )


def answered(service: EmbeddedService) -> tuple[str, dict[str, Any]]:
    """The label of a text, and of which versions of which policies it is."""
    body = {"head": "mail", "targets": [{"text": "cheap pills"}]}
    answer = service.client.post("/v1/classify", json=body).raise_for_status().json()
    return answer["predictions"][0]["labels"][0]["label"], answer["version"]["policies"]


def test_a_new_encoder_makes_a_new_state_in_a_shadow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    service = serve(tmp_path, 128)
    try:
        service.send(
            ("label.observed", {"head": "mail", "target": {"text": text}, "label": label})
            for label, texts in WORDS.items()
            for text in texts
        )
        assert answered(service) == ("spam", {"label_statistics": "1"})
    finally:
        service.stop()
    service = serve(tmp_path, 64)
    try:
        assert answered(service) == ("spam", {"label_statistics": "1"})
        # a label that comes now reaches both, each by its own encoder
        data = {"head": "mail", "target": {"text": "cheap pills"}, "label": "ham"}
        later = {"specversion": "1.0", "id": "later", "source": "/test", "type": "label.observed", "data": data}
        service.client.post("/v1/events", params={"wait": "visible", "wait_ms": 30_000}, json=later).raise_for_status()
        assert answered(service) == ("ham", {"label_statistics": "1"})
        held = service.get("/v1/policies")["items"]
        assert sorted((one["slot"], one["version"]) for one in held) == [("live", "1"), ("shadow", "1")]
        reply = service.client.post("/v1/policies/label_statistics/promote", json={"reason": "smaller vectors"})
        assert reply.status_code == 409, reply.text  # one label is no evidence for either
        assert reply.json()["code"] == "gate-failed"
        # the one of the two "1" that a promotion can mean
        forced = {"version": "1", "reason": "smaller vectors", "force": True}
        reply = service.client.post("/v1/policies/label_statistics/promote", json=forced)
        assert reply.status_code == 202, reply.text
        assert answered(service)[0] == "ham"
        slots = {
            one["config"]["backends"]["encoder"]["dim"]: one["slot"] for one in service.get("/v1/policies")["items"]
        }
        assert slots == {64: "live", 128: "shadow"}
        assert main(["policies", "verify", "label_statistics", "--url", service.url]) == 0
        assert capsys.readouterr().out == "verify: equal\n"
    finally:
        service.stop()
