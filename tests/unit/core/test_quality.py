"""Quality is kept in histograms; the calibration error from them is nearly that of the scores themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest

from streamfold.core.quality import Floats, calibration_error
from streamfold.pipelines.evaluate.metrics import calibration

_BINS = 64


def histograms(labels: Floats, scores: Floats) -> list[Floats]:
    bins = np.minimum((scores * _BINS).astype(int), _BINS - 1)
    return [np.bincount(bins[labels == one], minlength=_BINS).astype(float) for one in (1, 0)]


@pytest.mark.parametrize("power", [0.3, 1.0, 2.5])
def test_the_calibration_error_is_that_of_the_scores(power: float) -> None:
    """Scores that are too high, right, and too low."""
    rng = np.random.default_rng(5)
    scores = rng.beta(1.0, 3.0, 20_000)
    labels = (rng.random(20_000) < scores**power).astype(float)
    exact = calibration(labels, scores).error
    assert calibration_error(*histograms(labels, scores)) == pytest.approx(exact, abs=1 / 128)


def test_few_examples_are_one_part() -> None:
    """40 examples in 40 bins are as far from their labels as their mean, not as each of them."""
    scores = (np.arange(40) + 0.5) / _BINS
    labels = np.zeros(40)
    labels[:12] = 1
    found = calibration_error(*histograms(labels, scores))
    assert found == pytest.approx(abs(scores.mean() - 0.3))


def test_nothing_measured_has_no_error() -> None:
    assert math.isnan(calibration_error(np.zeros(_BINS), np.zeros(_BINS)))


def test_parts_hold_enough_to_the_last() -> None:
    """A rest that is too small joins the part before it."""
    positive, negative = np.zeros(_BINS), np.zeros(_BINS)
    positive[10], negative[10] = 30, 30
    positive[60] = 5  # alone it would be off by .05 of 5 of 65
    middle = (60 * 10.5 + 5 * 60.5) / _BINS
    assert calibration_error(positive, negative) == pytest.approx(abs(middle - 35) / 65)
