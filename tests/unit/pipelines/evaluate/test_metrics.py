"""Measures against scikit-learn and brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss as sk_log_loss
from sklearn.metrics import ndcg_score, roc_auc_score

from streamfold.core.quality import ndcg_of_one
from streamfold.pipelines.evaluate import metrics

EVENTS = st.lists(
    st.tuples(st.integers(0, 4), st.sampled_from([0.0, 1.0]), st.sampled_from([0.1, 0.25, 0.5, 0.75, 0.9])),
    min_size=1, max_size=60,
)  # fmt: skip


def arrays(events: list[tuple[int, float, float]]) -> tuple[metrics.Codes, metrics.Floats, metrics.Floats]:
    groups, labels, scores = zip(*events, strict=True)
    return np.array(groups), np.array(labels), np.array(scores)


@given(EVENTS)
def test_auc_and_log_loss_are_scikit_learns(events: list[tuple[int, float, float]]) -> None:
    _, labels, scores = arrays(events)
    assert metrics.log_loss(labels, scores) == pytest.approx(sk_log_loss(labels, scores, labels=[0, 1]))
    if 0 < labels.sum() < len(labels):
        assert metrics.auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))
    else:
        assert np.isnan(metrics.auc(labels, scores))


@given(EVENTS)
def test_auc_of_groups_is_that_of_each_weighted_by_its_events(events: list[tuple[int, float, float]]) -> None:
    groups, labels, scores = arrays(events)
    found = metrics.group_auc(groups, labels, scores)
    total = weight = 0.0
    for group in range(len(found.value)):
        mine = groups == group
        assert found.events[group] == mine.sum()
        if 0 < labels[mine].sum() < mine.sum():
            assert found.value[group] == pytest.approx(roc_auc_score(labels[mine], scores[mine]))
            total, weight = total + found.value[group] * mine.sum(), weight + mine.sum()
        else:
            assert np.isnan(found.value[group])
    mean = metrics.mean_group_auc(found)
    assert np.isnan(mean) if not weight else mean == pytest.approx(total / weight)


@given(EVENTS)
def test_scores_equal_within_groups_give_exactly_one_half(events: list[tuple[int, float, float]]) -> None:
    groups, labels, _ = arrays(events)
    mean = metrics.mean_group_auc(metrics.group_auc(groups, labels, np.sin(groups + 1.0)))
    assert np.isnan(mean) or mean == 0.5


@given(EVENTS, st.data())
def test_weighted_auc_is_that_of_repeated_events(events: list[tuple[int, float, float]], data: st.DataObject) -> None:
    _, labels, scores = arrays(events)
    times = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(labels), max_size=len(labels))))
    found = metrics.WeightedAuc(labels, scores)(times.astype(float))
    expected = metrics.auc(np.repeat(labels, times), np.repeat(scores, times))
    assert found == pytest.approx(expected, nan_ok=True)


@given(EVENTS, st.integers(1, 30))
def test_calibration_is_that_of_bins_of_equal_mass(events: list[tuple[int, float, float]], bins: int) -> None:
    _, labels, scores = arrays(events)
    found = metrics.calibration(labels, scores, bins)
    order = sorted(range(len(scores)), key=lambda i: scores[i])
    k = min(bins, len(order))
    parts = [order[len(order) * b // k : len(order) * (b + 1) // k] for b in range(k)]
    assert found.events.tolist() == [len(part) for part in parts]
    assert max(found.events) - min(found.events) <= 1
    error = sum(abs(scores[part].mean() - labels[part].mean()) * len(part) for part in parts) / len(order)
    assert found.error == pytest.approx(error)


def test_nothing_gives_nan() -> None:
    none = np.empty(0)
    assert np.isnan(
        [metrics.auc(none, none), metrics.log_loss(none, none), metrics.calibration(none, none).error]
    ).all()
    assert np.isnan(metrics.mean_group_auc(metrics.group_auc(np.empty(0, np.int64), none, none)))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=5), st.integers(0, 3), st.integers(1, 4))
def test_ndcg_of_ties_is_the_mean_over_their_orders(others: list[int], target: int, k: int) -> None:
    places = []
    for order in itertools.permutations([(target, True), *((score, False) for score in others)]):
        listed = sorted(order, key=lambda one: -one[0])
        place = [mine for _, mine in listed].index(True) + 1
        places.append(1 / np.log2(1 + place) if place <= k else 0.0)
    assert ndcg_of_one(target, np.array(others, float), k) == pytest.approx(np.mean(places))


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30, unique=True))
def test_ndcg_is_scikit_learns(scores: list[float]) -> None:
    relevant = np.zeros(len(scores))
    relevant[0] = 1
    expected = ndcg_score([relevant], [scores], k=10)
    assert ndcg_of_one(scores[0], np.array(scores[1:]), 10) == pytest.approx(expected)
