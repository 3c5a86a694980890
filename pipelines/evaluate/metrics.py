"""Measures of predictions against labels: vectorised, ties counted exactly, no state.

Labels are ``(n,) float64`` of 0 and 1, scores ``(n,) float64`` of any scale (probabilities where a measure says so),
groups and users ``(n,) int64`` codes. What cannot be measured (one class alone, no events) is ``nan``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

CLIP = 1e-6
"""Probabilities are taken no nearer to 0 and 1 than this by the log loss."""


def auc(labels: Floats, scores: Floats) -> float:
    """Probability that a positive scores above a negative, ties half. O(n log n).

    >>> auc(np.array([0., 1., 1.]), np.array([.1, .1, .9]))
    0.75
    """
    return float(_auc_by_group(np.zeros(len(labels), np.int64), labels, scores, 1).value[0]) if len(labels) else np.nan


class GroupAuc(NamedTuple):
    """AUC of each group (``nan`` where it has one class alone), and how many events it has."""

    value: Floats
    events: Floats


def group_auc(groups: Codes, labels: Floats, scores: Floats) -> GroupAuc:
    """AUC within each group, by code. O(n log n)."""
    return _auc_by_group(groups, labels, scores, int(groups.max()) + 1 if len(groups) else 0)


def mean_group_auc(found: GroupAuc) -> float:
    """Average the groups' AUC, weighted by their events; groups of one class have none.

    Scores that are equal within each group give exactly one half.
    """
    there = ~np.isnan(found.value)
    if not there.any():
        return float("nan")
    return float((found.value[there] * found.events[there]).sum() / found.events[there].sum())


def _auc_by_group(groups: Codes, labels: Floats, scores: Floats, count: int) -> GroupAuc:
    order = np.lexsort((scores, groups))
    g, y, s = groups[order], labels[order], scores[order]
    n = np.bincount(g, minlength=count).astype(np.float64)
    n1 = np.bincount(g, weights=y, minlength=count)
    if not len(g):
        return GroupAuc(np.full(count, np.nan), n)
    new = np.ones(len(g), bool)
    new[1:] = (g[1:] != g[:-1]) | (s[1:] != s[:-1])
    tie = np.cumsum(new) - 1
    first = np.flatnonzero(new)
    last = np.append(first[1:], len(g)) - 1
    before = np.cumsum(n) - n  # events of the groups before
    rank = (first + last)[tie] / 2.0 + 1.0 - before[g]
    above = np.bincount(g, weights=rank * y, minlength=count) - n1 * (n1 + 1) / 2
    pairs = n1 * (n - n1)
    return GroupAuc(np.divide(above, pairs, out=np.full(count, np.nan), where=pairs > 0), n)


def log_losses(labels: Floats, probabilities: Floats) -> Floats:
    """Log loss of each event, in nats; ``(n,)``."""
    p = np.clip(probabilities, CLIP, 1 - CLIP)
    losses: Floats = -(labels * np.log(p) + (1 - labels) * np.log1p(-p))
    return losses


def log_loss(labels: Floats, probabilities: Floats) -> float:
    """Mean log loss, in nats.

    >>> round(log_loss(np.array([1.]), np.array([.5])), 4)
    0.6931
    """
    return float(log_losses(labels, probabilities).mean()) if len(labels) else float("nan")


class Calibration(NamedTuple):
    """Bins of equally many events in order of what was predicted: mean prediction, share of positives, events."""

    predicted: Floats
    observed: Floats
    events: Floats

    @property
    def error(self) -> float:
        """Mean distance of prediction and outcome, weighted by events (expected calibration error)."""
        if not len(self.events):
            return float("nan")
        return float((np.abs(self.predicted - self.observed) * self.events).sum() / self.events.sum())


def calibration(labels: Floats, probabilities: Floats, bins: int = 20) -> Calibration:
    """Compare predicted probabilities with outcomes in bins of equal mass; ties stay in order of the events.

    Whatever ``bins`` is, no bin is empty.
    """
    n = len(labels)
    if not n:
        return Calibration(np.empty(0), np.empty(0), np.empty(0))
    order = np.argsort(probabilities, kind="stable")
    starts = np.unique(np.arange(min(bins, n)) * n // min(bins, n))
    events = np.diff(np.append(starts, n)).astype(np.float64)
    predicted = np.add.reduceat(probabilities[order], starts) / events
    observed = np.add.reduceat(labels[order], starts) / events
    return Calibration(predicted, observed, events)


class WeightedAuc:
    """AUC of the same scores under many weightings of the events (a bootstrap): sorted once, then O(n) each."""

    def __init__(self, labels: Floats, scores: Floats) -> None:
        self._order = np.argsort(scores, kind="stable")
        s = scores[self._order]
        self._tie = np.cumsum(np.append(True, s[1:] != s[:-1])) - 1 if len(s) else np.empty(0, np.int64)
        self._labels = labels[self._order]

    def __call__(self, weights: Floats) -> float:
        """AUC where event ``i`` is there ``weights[i]`` times."""
        w = weights[self._order]
        positive = np.bincount(self._tie, weights=w * self._labels)
        negative = np.bincount(self._tie, weights=w * (1 - self._labels))
        pairs = positive.sum() * negative.sum()
        if not pairs:
            return float("nan")
        below = np.cumsum(negative) - negative
        return float((positive * (below + negative / 2)).sum() / pairs)
