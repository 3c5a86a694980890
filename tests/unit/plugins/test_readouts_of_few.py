"""Temperatures that are fitted on a handful of labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from streamfold.core import ClassifyRequest, Target
from streamfold.plugins._readouts import fit_sharpness
from streamfold.plugins.label_statistics import LabelStatistics, LabelStatisticsConfig

TEXTS = [
    ("the new lens is out of focus", "camera"),
    ("the flash of my camera broke", "camera"),
    ("the phone has a short battery life", "phone"),
    ("my handset rings no more when called", "phone"),
]


@pytest.mark.parametrize("read_out", ["ridge", "lda", "prototype"])
def test_a_text_that_was_just_labelled_is_likelier_of_its_class_though_no_label_tells_of_another(
    bench: Any, make_event: Any, read_out: str
) -> None:
    folded = bench(LabelStatistics(LabelStatisticsConfig(read_out=read_out)))
    for seq, (text, label) in enumerate(TEXTS, 1):
        folded.send(make_event(seq, "label.observed", head="topic", target={"text": text}, label=label))
    request = ClassifyRequest(head="topic", targets=[Target(text=text) for text, _ in TEXTS], top_k=2, explain=False)
    for (text, label), found in zip(TEXTS, folded.server.classify(request), strict=True):
        first, second = found.labels
        assert first.label == label, text
        assert first.score > second.score + 0.05, f"{text}: {first.score} and {second.score} are as good as equal"


def test_few_rows_that_are_wrong_leave_some_trust_and_many_leave_none() -> None:
    """Two classes, scores one apart, and every left-out row on the wrong side."""
    wrong = np.array([[0.0, 1.0], [1.0, 0.0]])
    sharpness = [fit_sharpness(np.tile(wrong, (n, 1)), np.tile([0, 1], n), np.ones(2 * n)) for n in (1, 500)]
    assert sharpness[0] > 0.5
    assert sharpness[1] < 1e-4


def test_many_rows_decide_the_temperature_by_themselves() -> None:
    """Rows drawn from ``softmax(3 scores)``: 3 is found, whatever is believed beforehand."""
    rng = np.random.default_rng(5)
    scores = rng.normal(size=(4000, 3))
    chances = np.exp(3 * scores)
    chances /= chances.sum(axis=1, keepdims=True)
    codes = np.array([rng.choice(3, p=row) for row in chances])
    assert fit_sharpness(scores, codes, np.ones(len(codes))) == pytest.approx(3, rel=0.06)
