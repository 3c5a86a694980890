"""The digits stream of the benchmark, by the policies that it compares, with fewer seeds."""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench_heads(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(SCRIPTS)
    import bench_heads

    yield bench_heads
    for name in ("bench_heads", "harness"):
        sys.modules.pop(name, None)


def test_replay_keeps_digits_that_plain_sgd_forgets_and_ridge_beats_both(bench_heads: Any) -> None:
    """Experience replay (arXiv:1902.10486) on classes that arrive two at a time; bars a point below the table's."""
    told = ("plain SGD", "SGD + balanced replay of 100", "SGD + balanced replay of 200", "ridge (γ = .1)")
    plain, few, many, ridge = (
        mean(bench_heads.digits_policy(bench_heads.GRADIENT[name][0], seed)["right"] for seed in range(2))
        for name in told
    )
    assert few >= 0.89
    assert many >= 0.91
    assert plain < many - 0.02
    assert ridge >= 0.97


def test_read_outs_reach_the_bars_of_the_digits_table(bench_heads: Any) -> None:
    """Bars a point below the table's, which are means of five streams."""
    rows = [bench_heads.digits_row(seed) for seed in range(2)]
    for (kind, width), bar in bench_heads.BARS.items():
        assert mean(row[f"{kind} {width}"] for row in rows) >= bar - 0.01, (kind, width)


@pytest.mark.parametrize(("kind", "ahead"), [("stationary", -0.015), ("abrupt", 0.06), ("gradual", 0.02)])
def test_what_forgets_follows_drift_and_loses_little_where_nothing_drifts(
    bench_heads: Any, monkeypatch: pytest.MonkeyPatch, kind: str, ahead: float
) -> None:
    """The half-life of Lite-RVFL and the Kalman head (arXiv:2306.08448) beside ridge, at the bars of the drift table.

    Half the table's labels, solved anew every tenth.
    """
    monkeypatch.setattr(bench_heads, "EVENTS", 3000)
    monkeypatch.setattr(bench_heads, "SOLVE_EVERY", 10)
    plain = bench_heads.drift_accuracy(kind, 0, bench_heads.ridge())
    for state in (bench_heads.ridge(bench_heads.HALF_LIFE), bench_heads.kalman()):
        assert bench_heads.drift_accuracy(kind, 0, state) >= plain + ahead
