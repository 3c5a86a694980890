"""Compiled: count tested examples in the rows of ``quality``, one after the other."""

from __future__ import annotations

from math import log

import numpy as np
from numba import njit

_BUCKET, _EVENTS, _LOSS, _BINS_AT, _BINS = 0, 1, 2, 7, 64
_LIKED, _NEW = 5, 6
"""Columns of sums and of the ring, as ``quality.py`` has them."""


@njit(cache=True)
def meet(met, rows, new):  # type: ignore[no-untyped-def]
    """Count items, then users, then all; return of each pair 1: the user was met under ``new`` times, plus 2: the item.

    ``rows`` are those of n items, those of n users, and that of all.
    """
    n = len(rows) // 2
    found = np.zeros(n, np.int64)
    for j in range(n):
        item, user = rows[j], rows[n + j]
        if met[user, 0] < new:
            found[j] += 1
        if met[item, 0] < new:
            found[j] += 2
        met[user, 0] += 1
        met[item, 0] += 1
    met[rows[2 * n], 0] += n
    return found


@njit(cache=True)
def start(sums, row, bucket):  # type: ignore[no-untyped-def]
    """Clear a row that held another stretch of time."""
    if sums[row, _BUCKET] != bucket:
        sums[row] = 0.0
        sums[row, _BUCKET] = bucket


@njit(cache=True)
def add(sums, rows, buckets, scores, new, kept, ring, places):  # type: ignore[no-untyped-def]
    """Add examples to their rows (number, log loss, the histogram of their label) and put them in the ring."""
    for j in range(len(rows)):
        row, score, liked = rows[j], scores[j], kept[j, _LIKED] > 0
        start(sums, row, buckets[j])
        sums[row, _EVENTS] += 1.0
        sums[row, _LOSS] -= log(score if liked else 1.0 - score)
        sums[row, _BINS_AT + min(int(score * _BINS), _BINS - 1) + (0 if liked else _BINS)] += 1.0
        kept[j, _NEW] = new[j]
        ring[places[j]] = kept[j]
