"""What ``quality`` says of its histograms equals what is said of the events themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest

from streamfold.pipelines.evaluate import metrics
from streamfold.plugins.quality import _BINS, _auc, _calibration


@pytest.mark.parametrize("seed", range(5))
def test_auc_and_calibration_of_histograms_are_those_of_their_events(seed: int) -> None:
    rng = np.random.default_rng(seed)
    used = np.sort(rng.choice(_BINS, 20, replace=False))  # 20 bins of equal mass
    scores = np.repeat((used + 0.5) / _BINS, 50)
    labels = (rng.random(len(scores)) < scores**2).astype(float)
    place = np.repeat(used, 50)
    liked, not_liked = (np.bincount(place[labels == label], minlength=_BINS).astype(float) for label in (1, 0))
    assert _calibration(liked, not_liked) == pytest.approx(metrics.calibration(labels, scores, 20).error)
    assert _auc(liked, not_liked) == pytest.approx(metrics.auc(labels, scores))


def test_of_nothing_nothing_is_said() -> None:
    assert math.isnan(_calibration(np.zeros(_BINS), np.zeros(_BINS)))
