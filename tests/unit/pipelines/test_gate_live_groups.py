"""A candidate is held against all that it would replace: several live groups, and each head of a group by its name."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamfold.core import ClassifyRequest, Event, Measured, Policy, Prediction, Scored, Stores, Table, View
from streamfold.core.fold import versions
from streamfold.core.hooks import GateRule
from streamfold.core.settings import GateSettings
from streamfold.core.testing import World, plugin
from streamfold.pipelines.serve import gate_costs
from streamfold.pipelines.serve.gate import Gate

LIMITS = {"cost_ratio": 2.0, "p99_ratio": 2.0}


class Clock:
    """Stands still but for what the policies under test say that they take."""

    now_s = 0.0
    monotonic = staticmethod(time.monotonic)

    @staticmethod
    def perf_counter() -> float:
        return Clock.now_s


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedConfig:
    fold_s: float = 0.01
    answer_s: float = 0.01
    beside: str = ""


class Timed(Policy):
    """A head that takes a given time; ``beside``: whose group it is in."""

    name, version, handles, measures = "timed", 1, ("label.observed",), True
    stores = (Table("count", value=int),)
    Config = TimedConfig

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.reads = (self.config.beside,) if self.config.beside else ()

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        Clock.now_s += self.config.fold_s
        stores["count"].put("all", stores["count"].get("all", 0) + 1)

    def serve(self, view: View) -> TimedServer:
        return TimedServer(self.config.answer_s)


class TimedServer:
    """A ``Classifier``, a ``QualityReport`` and a ``ScoredReport``."""

    slices = ("all",)

    def __init__(self, answer_s: float) -> None:
        self._answer_s = answer_s

    def heads(self) -> Mapping[str, int]:
        return {"h": 1}

    def classify(self, request: ClassifyRequest) -> list[Prediction]:
        Clock.now_s += self._answer_s
        return [Prediction(labels=(), unknown=0.0) for _ in request.targets]

    def measured(self) -> Measured:
        raise AssertionError("a gate takes the scored examples alone, where it can")

    def scored(self) -> Scored:
        nothing = np.zeros(0, np.int64)
        return Scored(
            key=np.zeros((0, 2), np.int64), user=nothing, at_us=nothing, score=np.zeros(0), label=np.zeros(0),
            slices=nothing,
        )  # fmt: skip


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (gate_costs, sys.modules["streamfold.core.fold.estimate"]):
        monkeypatch.setattr(module, "time", Clock)


def rules(folder: Path, live: Mapping[str, Any], changed: Mapping[str, Any]) -> dict[str, GateRule]:
    """What the gate says of changed declarations of ``timed`` policies."""
    for declared in (live, changed):
        policies = {name: {"use": "timed", **config} for name, config in declared.items()}
        with World(folder, [plugin([Timed])], policies) as world:
            for n in range(3):
                world.send("label.observed", {"head": "h", "target": {"features": {"x": float(n)}}, "label": "a"})
            world.fold()
            candidates = [one for one in world.context.groups(world.workspace) if one.slot == "shadow"]
            if declared is changed:
                [candidate] = candidates
                assert versions.measured(world.context, world.workspace, candidate)
                gate = Gate(GateSettings(**LIMITS))
                try:
                    return {rule.rule: rule for rule in gate.rules(world.view, candidate.name)}
                finally:
                    gate.close()
    raise AssertionError("unreachable")


@pytest.mark.parametrize(("fold_s", "ratio"), [(0.03, 1.5), (0.06, 3.0)])
def test_what_replaces_two_live_groups_may_cost_what_both_do(tmp_path: Path, fold_s: float, ratio: float) -> None:
    live = {"a": {"fold_s": 0.004}, "b": {"fold_s": 0.016}}
    changed = {"a": {"fold_s": fold_s / 2}, "b": {"fold_s": fold_s / 2, "beside": "a"}}
    cost = rules(tmp_path, live, changed)["cost"]
    assert cost.value == pytest.approx(ratio)
    assert cost.passed == (ratio <= 2)


@pytest.mark.parametrize(("answer_s", "passed"), [(0.03, True), (0.05, False)])
def test_each_head_is_held_against_the_live_group_that_answers_under_its_name(
    tmp_path: Path, answer_s: float, passed: bool
) -> None:
    live = {"a": {"answer_s": 0.1}, "b": {"answer_s": 0.02}}
    changed = {"a": {"answer_s": 0.1}, "b": {"answer_s": answer_s, "beside": "a"}}
    p99 = rules(tmp_path, live, changed)["p99"]
    assert (p99.value, p99.limit) == pytest.approx((answer_s * 1000, 40.0))
    assert p99.passed == passed
    assert p99.detail.startswith("b: ms for an answer")


def test_the_second_head_of_a_group_is_timed_too(tmp_path: Path) -> None:
    live = {"a": {}, "b": {"beside": "a"}}
    changed = {"a": {}, "b": {"beside": "a", "answer_s": 0.03}}
    p99 = rules(tmp_path, live, changed)["p99"]
    assert not p99.passed
    assert p99.detail.startswith("b: ")


def test_a_new_head_is_held_against_the_slowest_that_is_live(tmp_path: Path) -> None:
    live = {"a": {"answer_s": 0.01}, "b": {"answer_s": 0.03}}
    changed = {"a": {"beside": "b"}, "b": {"answer_s": 0.03}, "c": {"beside": "a", "answer_s": 0.07}}
    p99 = rules(tmp_path, live, changed)["p99"]
    assert (p99.value, p99.limit) == pytest.approx((70.0, 60.0))
    assert not p99.passed
