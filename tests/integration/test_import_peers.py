"""``import gorse`` and ``import metarank`` against a real service."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from streamfold.pipelines.cli.subservice import SubService

Run = Callable[..., tuple[int, Any, str]]


def logged(service: SubService, type_: str) -> list[Any]:
    page = httpx.get(f"{service.url}/v1/events", params={"type": type_, "limit": 1000}, trust_env=False).json()
    return [row["event"] for row in page["items"]]


def test_a_gorse_dump_is_imported_once_beside_live_traffic(run: Run, service: SubService) -> None:
    folder = Path("dump")
    folder.mkdir()
    rows = [
        {"FeedbackType": "star", "UserId": f"u{n}", "ItemId": "i", "Value": 0, "Timestamp": "2025-01-01T00:00:00Z"}
        for n in range(700)
    ]
    sent = {**rows[0], "Timestamp": "2025-01-01 00:00:00 +0000 UTC"}
    live = httpx.post(f"{service.url}/compat/gorse/api/feedback", json=[sent], trust_env=False)
    assert live.json() == {"RowAffected": 1}
    lines = [json.dumps(row) for row in rows]
    lines.append(json.dumps(rows[0] | {"FeedbackType": "rate", "Value": -1}))
    (folder / "feedback.jsonl").write_text("\n".join([*lines[:600], "{broken", *lines[600:]]))
    (folder / "items.csv").write_text("item_id,categories\ni,a|b\nj\n" + "x" * 300 + "\n")
    code, told, _ = run("import", "gorse", "dump", "--dry-run")
    assert (code, told["accepted"], told["rejected"]) == (3, 702, 3)
    assert len(logged(service, "interaction.observed")) == 1
    code, told, said = run("import", "gorse", "dump", "--wait")
    assert (code, told["accepted"], told["duplicates"], told["rejected"]) == (3, 701, 1, 3)
    assert sorted(one["file"] for one in told["results"]) == ["feedback.jsonl:601", "feedback.jsonl:702", "items.csv:4"]
    assert "feedback.jsonl:601: malformed" in said
    assert "Value is -1: it must not be negative" in said
    code, told, _ = run("import", "gorse", "dump")
    assert (told["accepted"], told["duplicates"]) == (0, 702)
    assert {one["data"]["action"] for one in logged(service, "interaction.observed")} == {"like"}


def test_metaranks_events_are_imported(run: Run, service: SubService) -> None:
    ranking = {"event": "ranking", "id": "r", "timestamp": "1599391467000", "user": "u", "items": [{"id": "i"}]}
    click = {"event": "interaction", "id": "c", "timestamp": "1599391468000", "ranking": "r", "user": "u", "item": "i"}
    Path("events.jsonl").write_text("\n".join(map(json.dumps, [ranking, click | {"type": "click"}])))
    code, told, _ = run("import", "metarank", "events.jsonl", "--wait")
    assert (code, told["accepted"], told["rejected"]) == (0, 2, 0)
    [shown] = logged(service, "exposure.recorded")
    assert shown["data"]["exposure_id"] == "r"
    assert run("import", "metarank", "events.jsonl")[1]["duplicates"] == 2
    assert run("import", "metarank", "nowhere")[0] == 2
