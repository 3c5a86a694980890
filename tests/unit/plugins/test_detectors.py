"""Detectors fire where river's fire, not where nothing changes, and go on from their stored state."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
from river import drift

from streamfold.plugins._detectors import Adwin, Cusum, PageHinkley


def stream(kind: str, seed: int) -> list[float]:
    rng = np.random.default_rng(seed)
    if kind == "errors":  # of a head, whose accuracy falls, and recovers
        rate = np.repeat([0.1, 0.35, 0.12], [1500, 1500, 1500])
        return [float(x) for x in rng.random(4500) < rate]
    if kind == "steps":
        return [float(x) for x in np.repeat(rng.normal(0, 3, 6), 700) + rng.normal(0, 1, 4200)]
    if kind == "slow":
        return [float(x) for x in np.linspace(0, 4, 5000) + rng.normal(0, 0.5, 5000)]
    return [float(x) for x in rng.random(4500) < 0.2]


def indices(detector: Any, values: list[float]) -> list[int]:
    return [i for i, x in enumerate(values) if detector.update(x) is not None]


@pytest.mark.parametrize("kind", ["errors", "steps", "slow", "still"])
@pytest.mark.parametrize(("ours", "theirs"), [(Adwin, drift.ADWIN), (PageHinkley, drift.PageHinkley)])
def test_they_fire_at_rivers_indices(kind: str, ours: Any, theirs: Any) -> None:
    fired = 0
    for seed in range(6):
        values, river, expected = stream(kind, seed), theirs(), []
        for i, x in enumerate(values):
            river.update(x)
            if river.drift_detected:
                expected.append(i)
        assert indices(ours(), values) == expected
        fired += len(expected)
    assert kind == "still" or fired >= 6


def test_cusum_fires_soon_after_the_errors_rise_and_not_when_they_fall() -> None:
    soon = 0
    for seed in range(100, 140):
        values = stream("errors", seed)
        at = indices(Cusum(), values[:3000])
        soon += bool(at) and 1500 <= at[0] < 1700
        fallen = [1.0 - x for x in values[:3000]]
        assert len(indices(Cusum(), fallen)) <= 1
    assert soon >= 30


@pytest.mark.parametrize("kind", [Adwin, PageHinkley, Cusum])
def test_a_detector_goes_on_from_its_stored_form(kind: Any) -> None:
    values = stream("errors", 1)
    whole, stored, fired = kind(), kind(), []
    for i, x in enumerate(values):
        stored = msgspec.msgpack.decode(msgspec.msgpack.encode(stored), type=kind)
        if stored.update(x) is not None:
            fired.append(i)
    assert fired == indices(whole, values)
    assert stored == whole


@pytest.mark.parametrize("seed", range(39, 43))
def test_a_head_that_stops_to_err_is_no_error_of_the_window(seed: int) -> None:
    rng = np.random.default_rng(seed)
    window = Adwin()
    errors = (rng.random(int(rng.integers(100, 600))) < 0.08).astype(float)
    for x in (*errors.tolist(), *[0.0] * 3000):
        window.update(x)
        assert window.squares >= 0
    for x in (*[0.7] * 500, *[0.7 + 1e-12] * 500, *[0.1] * 2000):
        window.update(x)
        assert window.squares >= 0
