"""Intervals of measures and of differences between two methods: a bootstrap over users, paired.

Events of one user are alike, so users are drawn, with all their events; every method is measured on the same draws, so
that what they have in common cancels out (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 8).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np

from streamfold.pipelines.evaluate.metrics import Codes, Floats, GroupAuc, WeightedAuc


class Interval(NamedTuple):
    """A value and the bounds between which 95 of 100 draws lie."""

    value: float
    low: float
    high: float

    def body(self) -> list[float | None]:
        return [_number(self.low), _number(self.high)]


def _number(value: float) -> float | None:
    return None if np.isnan(value) else round(float(value), 6)


class Draws:
    """How often each user is there in each of ``count`` draws; the same for every method.

    Parameters
    ----------
    users : how many users there are; they have codes from 0.
    """

    def __init__(self, users: int, count: int, seed: int) -> None:
        rng = np.random.default_rng([seed, 0])
        drawn = (rng.integers(users, size=users) for _ in range(count if users else 0))
        # a byte each: nobody is drawn 256 times where there are so many
        self._drawn = [np.bincount(who, minlength=users).astype(np.uint8) for who in drawn]

    def auc(self, users: Codes, labels: Floats, scores: Floats) -> Floats:
        """AUC in each draw. O(draws · n)."""
        measure = WeightedAuc(labels, scores)
        return np.array([measure(drawn[users].astype(np.float64)) for drawn in self._drawn])

    def mean(self, users: Codes, values: Floats, weights: Floats | None = None) -> Floats:
        """Weighted mean of the events' values in each draw; events without one (``nan``) are left out."""
        w = np.where(np.isnan(values), 0.0, 1.0 if weights is None else weights)
        size = int(users.max()) + 1 if len(users) else 0
        above = np.bincount(users, weights=w * np.nan_to_num(values), minlength=size)
        below = np.bincount(users, weights=w, minlength=size)
        found = [(drawn[:size] @ above, drawn[:size] @ below) for drawn in self._drawn]
        return np.array([a / b if b else np.nan for a, b in found])

    def group_auc(self, users: Codes, found: GroupAuc) -> Floats:
        """Mean AUC of groups in each draw; ``users``: whose each group is."""
        return self.mean(users, found.value, found.events)


def interval(value: float, drawn: Floats) -> Interval:
    """The percentile interval of what the draws gave; ``nan`` where fewer than two of them can be measured."""
    there = drawn[~np.isnan(drawn)]
    if len(there) < 2:
        return Interval(value, np.nan, np.nan)
    low, high = np.quantile(there, (0.025, 0.975))
    return Interval(value, float(low), float(high))


def best(names: Iterable[str], value: Callable[[str], float], *, lowest: bool = False) -> str | None:
    """The name with the best value, of those that have one."""
    found = [(value(name) * (1 if lowest else -1), i, name) for i, name in enumerate(names)]
    there = [one for one in found if not np.isnan(one[0])]
    return min(there)[2] if there else None
