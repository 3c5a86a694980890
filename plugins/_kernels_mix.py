"""The mixtures of ``ensemble``, compiled; their equations are in ``ensemble.py``.

A row of weights is what has moved since the start: b and w_m of ``stack``, or 0 and ln (π_m M) of ``bayes``.
"""

from __future__ import annotations

from math import exp, log

import numba
import numpy as np

from streamfold.plugins._kernels_hash import probability

_LEAST = 1e-6


@numba.njit(cache=True)
def _within(p):  # type: ignore[no-untyped-def]
    return min(1.0 - _LEAST, max(_LEAST, p))


@numba.njit(cache=True)
def log_odds(p):  # type: ignore[no-untyped-def]
    """Return the log-odds of a score, within ±13.8."""
    p = _within(p)
    return log(p / (1.0 - p))


@numba.njit(cache=True)
def weights(row, bayes):  # type: ignore[no-untyped-def]
    """Return how much each member counts."""
    m = len(row) - 1
    found = np.empty(m)
    for k in range(m):
        found[k] = exp(row[1 + k]) / m if bayes else row[1 + k] + 1.0 / m
    return found


@numba.njit(cache=True)
def _mix(told, row, bayes):  # type: ignore[no-untyped-def]
    by = weights(row, bayes)
    z = row[0]
    for k in range(len(told)):
        z += by[k] * (told[k] if bayes else log_odds(told[k]))
    return z if bayes else probability(z)


@numba.njit(cache=True)
def mix(told, row, bayes):  # type: ignore[no-untyped-def]
    """Return mixed scores ``(n,)`` of members' ``(n, members)``."""
    scores = np.empty(len(told))
    for j in range(len(told)):
        scores[j] = _mix(told[j], row, bayes)
    return scores


@numba.njit(cache=True)
def learn(told, labels, swaps, counts, row, bayes, rate, share):  # type: ignore[no-untyped-def]
    """Learn examples in order; return each one's mixed score from before it."""
    m = told.shape[1]
    scores = np.empty(len(told))
    for j in range(len(told)):
        y = labels[j]
        scores[j] = _mix(told[j], row, bayes)
        if not bayes:
            slope = (1.0 - 2.0 * y if swaps[j] else scores[j] - y) * counts[j]
            row[0] -= rate * slope
            for k in range(m):
                row[1 + k] -= rate * slope * log_odds(told[j, k])
            continue
        right = weights(row, True)
        total = 0.0
        for k in range(m):
            said = _within(told[j, k] if y > 0.0 else 1.0 - told[j, k])
            right[k] *= said if counts[j] == 1.0 else said ** counts[j]
            total += right[k]
        for k in range(m):
            row[1 + k] = log((1.0 - share) * right[k] / total * m + share)
    return scores
