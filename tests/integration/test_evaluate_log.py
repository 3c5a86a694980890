"""`evaluate` on the log: over HTTP while a service holds the ledger, from the ledger itself when none does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamfold.pipelines.cli import main
from streamfold.pipelines.cli.subservice import SubService

TASTES = Path(__file__).parents[1] / "unit" / "pipelines" / "evaluate"
START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[SubService]:
    running = SubService(tmp_path / "service", encoder="hashing").start()
    yield running
    running.stop()


@pytest.fixture
def events(tmp_path: Path) -> Path:
    """600 ratings, one a minute."""
    rng, path = np.random.default_rng(5), tmp_path / "events.jsonl"
    with path.open("w") as file:
        for n in range(600):
            item = int(rng.integers(20))
            data = {"user_id": f"u{rng.integers(9)}", "item_id": f"i{item}"}
            data["action"] = "like" if rng.random() < item / 20 else "dislike"
            event = {"specversion": "1.0", "id": f"e{n}", "source": "/test", "type": "interaction.observed"}
            time = (START + timedelta(minutes=n)).isoformat()
            file.write(json.dumps({**event, "time": time, "data": data}) + "\n")
    return path


def test_the_log_gives_what_the_file_gives_with_and_without_a_service(
    service: SubService,
    events: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    about = tmp_path / "site" / "tastes-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: tastes\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[streamfold]\ntastes = tastes\n")
    monkeypatch.syspath_prepend(str(TASTES))
    monkeypatch.syspath_prepend(str(about.parent))
    config = tmp_path / "evaluate.toml"
    config.write_text(f'plugins = ["tastes"]\ndata = "{service.folder / "data"}"\n')

    def evaluate(*arguments: str) -> tuple[Any, str]:
        capsys.readouterr()
        options = ("--config", str(config), "--url", service.url, "--json", "--sample", "10", "--draws", "10")
        assert main(["evaluate", "--policies", "item_taste", *options, *arguments]) == 0
        said = capsys.readouterr()
        return json.loads(said.out), said.err

    from_file, _ = evaluate("--data", str(events))
    assert main(["send", str(events), "--wait", "--url", service.url]) == 0
    beside, said = evaluate("--from", "1")
    assert "reading its log over" in said
    assert beside == from_file
    service.stop()
    alone, said = evaluate("--from", "1", "--to", "600")
    assert "over http" not in said
    assert alone == from_file
    part, _ = evaluate("--from", "301", "--to", "500")
    assert (part["events"], part["tested"]) == (500, 200)
    assert main(["evaluate", "--config", str(config), "--policies", "item_taste", "--from", "601"]) == 2
    assert "past the warm-up" in capsys.readouterr().err


def test_heads_are_tested_on_the_labels_of_the_log(
    service: SubService, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As on those of a file; what it cost is another thing each time."""
    rng, path = np.random.default_rng(7), tmp_path / "labels.jsonl"
    words = {"camera": ["lens", "shutter", "focus", "film"], "kitchen": ["flour", "butter", "oven", "sugar"]}
    with path.open("w") as file:
        for n in range(200):
            name = ("camera", "kitchen")[int(rng.integers(2))]
            text = " ".join(rng.choice(words[name], 3).tolist())
            data = {"head": "topic", "target": {"text": f"{text} {n}"}, "label": name}
            event = {"specversion": "1.0", "id": f"l{n}", "source": "/test", "type": "label.observed"}
            time = (START + timedelta(minutes=n)).isoformat()
            file.write(json.dumps({**event, "time": time, "data": data}) + "\n")
    config = tmp_path / "evaluate.toml"
    config.write_text(f'data = "{service.folder / "data"}"\n[backends.encoder]\nuse = "hashing"\n')

    def evaluate(*arguments: str) -> Any:
        capsys.readouterr()
        options = ("--config", str(config), "--url", service.url, "--json", "--draws", "10", "--quiet")
        assert main(["evaluate", "--policies", "label_statistics,kalman_head", *options, *arguments]) == 0
        body = json.loads(capsys.readouterr().out)
        for one in body["methods"]:
            one["cost"] = None
        return body

    from_file = evaluate("--data", str(path))
    assert (from_file["tested"], from_file["classes"]) == (180, 2)
    assert from_file["methods"][0]["accuracy"] > 0.9
    assert main(["send", str(path), "--wait", "--url", service.url]) == 0
    assert evaluate("--from", "1") == from_file
    service.stop()
    part = evaluate("--from", "101", "--to", "150")
    assert (part["events"], part["tested"]) == (150, 50)
