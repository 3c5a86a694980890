"""Intervals of measures and of differences between two methods: a bootstrap over users, paired.

Events of one user are alike, so users are drawn, with all their events; every method is measured on the same draws, so
that what they have in common cancels out (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 8).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from streamfold.pipelines.evaluate.metrics import Codes, Floats, GroupAuc, WeightedAuc


class Interval(NamedTuple):
    """A value and the bounds between which 95 of 100 draws lie."""

    value: float
    low: float
    high: float

    def body(self) -> list[float | None]:
        return [number(self.low), number(self.high)]


def number(value: float | np.floating[Any]) -> float | None:
    """Return a measure as it stands in a report."""
    return None if math.isnan(value) else round(float(value), 6)


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

    def mean_by_class(self, users: Codes, classes: Codes, values: Floats) -> Floats:
        """Mean of the classes' means in each draw; a class that is not drawn is left out."""
        size = int(classes.max()) + 1 if len(classes) else 0
        found = []
        for drawn in self._drawn:
            times = drawn[users].astype(np.float64)
            below = np.bincount(classes, weights=times, minlength=size)
            above = np.bincount(classes, weights=times * values, minlength=size)
            there = below > 0
            found.append((above[there] / below[there]).mean() if there.any() else np.nan)
        return np.array(found)

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


def differences(
    policies: Sequence[str],
    others: Sequence[str],
    measures: Mapping[str, bool],
    value: Callable[[str, str], float],
    drawn: Callable[[str, str], Floats],
) -> list[dict[str, Any]]:
    """Each policy against the best baseline of a measure, and against the first policy.

    Parameters
    ----------
    measures : names, with whether low is good. value, drawn : of a method and a measure; ``drawn``: in each draw.
    """
    found, kept = [], dict[tuple[str, str], Floats]()

    def in_draws(name: str, measure: str) -> Floats:
        if (name, measure) not in kept:
            kept[name, measure] = drawn(name, measure)
        return kept[name, measure]

    for measure, lowest in measures.items():
        to = best(others, partial(_of, value, measure), lowest=lowest)
        for name in policies:
            against = {to, policies[0] if name != policies[0] else None} - {None}
            for other in sorted(str(one) for one in against):
                distance = value(name, measure) - value(other, measure)
                if not math.isnan(distance):
                    spread = interval(distance, in_draws(name, measure) - in_draws(other, measure))
                    low, high = spread.body()
                    found.append(
                        {"measure": measure, "of": name, "to": other, "difference": number(distance), "low": low,
                         "high": high}
                    )  # fmt: skip
    return found


def _of(value: Callable[[str, str], float], measure: str, name: str) -> float:
    return value(name, measure)


def best(names: Iterable[str], value: Callable[[str], float], *, lowest: bool = False) -> str | None:
    """The name with the best value, of those that have one."""
    found = [(value(name) * (1 if lowest else -1), i, name) for i, name in enumerate(names)]
    there = [one for one in found if not np.isnan(one[0])]
    return min(there)[2] if there else None
