"""A plugin of small rankers, installed for a test, and streams of events."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from streamfold.core.events import EventTypes, builtin_types
from streamfold.core.events.fields import from_us
from streamfold.core.settings import Settings
from streamfold.pipelines.evaluate import Source
from streamfold.pipelines.evaluate.source import Intake

START_US = 1_700_000_000_000_000
Given = tuple[str, int, Mapping[str, Any]]


@pytest.fixture
def tastes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The plugin, as if it were installed: importable, with an entry point."""
    about = tmp_path / "site" / "tastes-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: tastes\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[streamfold]\ntastes = tastes\n")
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.syspath_prepend(str(about.parent))
    return importlib.import_module("tastes")


def event(type_: str, at_s: int, data: Mapping[str, Any], number: int) -> bytes:
    time = from_us(START_US + at_s * 1_000_000).isoformat()
    return json.dumps(
        {"specversion": "1.0", "id": f"e{number}", "source": "/test", "type": type_, "time": time, "data": data}
    ).encode()


@pytest.fixture
def lines() -> Callable[[Iterable[Given]], list[bytes]]:
    """Events ``(type, second, data)`` as JSON lines."""
    return lambda given: [event(type_, at_s, data, n) for n, (type_, at_s, data) in enumerate(given)]


@pytest.fixture
def source(lines: Callable[[Iterable[Given]], list[bytes]]) -> Callable[[Iterable[Given]], Source]:
    def make(given: Iterable[Given]) -> Source:
        intake = Intake(EventTypes(builtin_types()), max_event_bytes=1 << 20)
        for n, line in enumerate(lines(given)):
            intake.take(f"line {n}", line)
        found = intake.source()
        assert not found.refused
        return found

    return make


def rating(user: str, item: str, at_s: int, value: float) -> Given:
    return "interaction.observed", at_s, {"user_id": user, "item_id": item, "action": "rating", "value": value}


@pytest.fixture
def rated() -> list[Given]:
    """1,000 ratings of 30 users and 60 items in 40 days; items are liked more or less, users like more or less."""
    rng = np.random.default_rng(3)
    user_bias, item_bias = rng.normal(0, 1, 30), rng.normal(0, 1.5, 60)
    found = []
    for n in range(1000):
        user, item = int(rng.integers(30)), int(rng.integers(60))
        liked = rng.random() < 1 / (1 + np.exp(-user_bias[user] - item_bias[item]))
        found.append(rating(f"u{user}", f"i{item}", n * 3456, 5.0 if liked else 1.0))
    return found


@pytest.fixture
def settings(tastes: ModuleType, tmp_path: Path) -> Settings:
    return Settings(data=tmp_path / "data", plugins=("tastes",))
