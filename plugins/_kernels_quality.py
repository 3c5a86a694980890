"""Compiled: count tested examples in the rows of ``quality``, one after the other."""

from __future__ import annotations

from math import log

import numpy as np
from numba import njit

_BUCKET, _EVENTS, _LOSS, _GAIN, _RANKED, _BINS_AT, _BINS = 0, 1, 2, 7, 8, 9, 64
_LIKED, _NEW = 5, 6
_TIES = 1 << 16
"""Columns of sums and of the ring, as ``quality.py`` has them, and its rows of items met."""


@njit(cache=True)
def meet(met, rows, new, mass):  # type: ignore[no-untyped-def]
    """Count items, then users, then all. Of each pair: 1 if the user was met under ``new`` times, plus 2: the item; and
    the decile of the item, 0 to 9, by how often it was met before.

    ``rows`` are those of n items, those of n users, and that of all. ``mass``: the examples of items by class.
    """
    n = len(rows) // 2
    found, decile = np.zeros(n, np.int64), np.zeros(n, np.int64)
    for j in range(n):
        item, user = rows[j], rows[n + j]
        if met[user, 0] < new:
            found[j] += 1
        if met[item, 0] < new:
            found[j] += 2
        decile[j] = _stands(mass, met[item, 0], item % _TIES / _TIES)
        met[user, 0] += 1
        met[item, 0] += 1
    met[rows[2 * n], 0] += n
    return found, decile


@njit(cache=True)
def _class(count):  # type: ignore[no-untyped-def]
    """Class of a count: 0 to 7 have one each, then there are four an octave."""
    if count < 8:
        return count
    octave = 3
    while count >> (octave + 1):
        octave += 1
    return 4 * octave - 4 + (count >> (octave - 2) & 3)


@njit(cache=True)
def _stands(mass, count, tie):  # type: ignore[no-untyped-def]
    """Tell the decile of an item met ``count`` times by the examples of rarer items, and move its own a class on.

    Within a class items stand as ``tie`` says, from 0 to 1.
    """
    own = _class(count)
    below, total = np.int64(0), np.int64(0)
    for c in range(len(mass)):
        if c == own:
            below = total
        total += mass[c]
    decile = int(10.0 * (below + tie * mass[own]) / total) if total else 0
    mass[own] -= count
    mass[_class(count + 1)] += count + 1
    return min(decile, 9)


@njit(cache=True)
def start(sums, row, bucket):  # type: ignore[no-untyped-def]
    """Clear a row that held another stretch of time."""
    if sums[row, _BUCKET] != bucket:
        sums[row] = 0.0
        sums[row, _BUCKET] = bucket


@njit(cache=True)
def _tally(sums, row, bucket, score, liked, gain):  # type: ignore[no-untyped-def]
    """Add one example to a row: number, log loss, its place if it was ranked, the histogram of its label."""
    start(sums, row, bucket)
    sums[row, _EVENTS] += 1.0
    sums[row, _LOSS] -= log(score if liked else 1.0 - score)
    if gain >= 0.0:
        sums[row, _GAIN] += gain
        sums[row, _RANKED] += 1.0
    sums[row, _BINS_AT + min(int(score * _BINS), _BINS - 1) + (0 if liked else _BINS)] += 1.0


@njit(cache=True)
def add(sums, rows, buckets, scores, gains, new, kept, ring, places):  # type: ignore[no-untyped-def]
    """Add examples to their rows (first those by who is new, then by decile) and put them in the ring."""
    n = len(buckets)
    for j in range(n):
        score, liked = scores[j], kept[j, _LIKED] > 0
        _tally(sums, rows[j], buckets[j], score, liked, gains[j])
        _tally(sums, rows[n + j], buckets[j], score, liked, gains[j])
        kept[j, _NEW] = new[j]
        ring[places[j]] = kept[j]
