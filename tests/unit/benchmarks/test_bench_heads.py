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
