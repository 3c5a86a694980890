"""The per-event loop of ``implicit_ftrl``, compiled; its equations are in ``implicit_ftrl.py``."""

from __future__ import annotations

from math import log, sqrt

import numba
import numpy as np

from streamfold.plugins._kernels_hash import (
    MET,
    admit,
    cross_key,
    find_all,
    key_of,
    longest,
    probability,
    rows_to_learn,
)

KINDS = 7
_Z, _N = 3, 4
"""Columns of a row after the first three: the sum of its adjusted slopes, and of their squares."""


@numba.njit(cache=True)
def keys(pairs):  # type: ignore[no-untyped-def]
    """Return the keys of each pair, and the kind of each: user, item, genre, trait, and crosses of these."""
    users, items, traits, trait_ends, genres, genre_ends = pairs
    ends = np.zeros(len(users) + 1, np.int64)
    for j in range(len(users)):
        n, m = genre_ends[j + 1] - genre_ends[j], trait_ends[j + 1] - trait_ends[j]
        ends[j + 1] = ends[j] + 2 + 2 * n + 2 * m + n * m
    found, kinds = np.empty(ends[-1], np.uint64), np.empty(ends[-1], np.int64)
    a = 0
    for j in range(len(users)):
        ts, gs = traits[trait_ends[j] : trait_ends[j + 1]], genres[genre_ends[j] : genre_ends[j + 1]]
        found[a], found[a + 1], kinds[a], kinds[a + 1] = key_of(users[j], 0), key_of(items[j], 1), 0, 1
        a += 2
        for g in gs:
            found[a], found[a + 1], kinds[a], kinds[a + 1] = key_of(g, 2), cross_key(users[j], g, 4), 2, 4
            a += 2
        for t in ts:
            found[a], found[a + 1], kinds[a], kinds[a + 1] = key_of(t, 3), cross_key(items[j], t, 5), 3, 5
            a += 2
            for g in gs:
                found[a], kinds[a] = cross_key(g, t, 6), 6
                a += 1
    return found, kinds, ends


@numba.njit(cache=True)
def _weight(table, row, alpha, beta, l1, l2):  # type: ignore[no-untyped-def]
    z = table[row, _Z]
    if abs(z) <= l1:
        return 0.0
    return -(z - l1 if z > 0.0 else z + l1) / ((beta + sqrt(table[row, _N])) / alpha + l2)


@numba.njit(cache=True)
def _prior(head):  # type: ignore[no-untyped-def]
    p = (head[0, 0] + 1.0) / (head[0, 1] + 2.0)
    return log(p / (1.0 - p))


@numba.njit(cache=True)
def writable(pairs, table, upto, keep):  # type: ignore[no-untyped-def]
    """Return the rows that learning pairs until then may write."""
    return rows_to_learn(table, keys(pairs)[0], upto, keep)


@numba.njit(cache=True)
def learn(pairs, labels, swaps, counts, table, head, alpha, beta, l1, l2, keep):  # type: ignore[no-untyped-def]
    """Learn pairs in order; return each one's score from before it."""
    found, _, ends = keys(pairs)
    scores = np.empty(len(labels))
    all_rows, weights = np.empty(longest(ends), np.int64), np.empty(longest(ends))
    for j in range(len(labels)):
        y = labels[j]
        head[0, 2] += 1.0
        rows = all_rows[: ends[j + 1] - ends[j]]
        admit(table, found[ends[j] : ends[j + 1]], head[0, 2], keep, rows)
        z = _prior(head)
        for place in range(len(rows)):
            row = rows[place]
            weights[place] = _weight(table, row, alpha, beta, l1, l2) if row >= 0 else 0.0
            if row >= 0:
                z += weights[place]
        scores[j] = probability(z)
        slope, likes, count = scores[j] - y, y, 1.0
        if swaps[j]:  # the opposite label's step is taken back with this one
            slope, likes, count = 1.0 - 2.0 * y, 2.0 * y - 1.0, 0.0
        slope, likes, count = slope * counts[j], likes * counts[j], count * counts[j]
        head[0, 1] += count
        head[0, 0] = min(head[0, 1], max(0.0, head[0, 0] + likes))
        for place in range(len(rows)):
            row = rows[place]
            if row >= 0:
                more = table[row, _N] + slope * slope
                table[row, _Z] += slope - (sqrt(more) - sqrt(table[row, _N])) / alpha * weights[place]
                table[row, _N] = more
                table[row, MET] += 1.0
    return scores


@numba.njit(cache=True)
def predict(pairs, table, head, alpha, beta, l1, l2):  # type: ignore[no-untyped-def]
    """Return scores, whether each item was met, and the parts of the log-odds by kind of feature; then the prior."""
    found, kinds, ends = keys(pairs)
    total = len(ends) - 1
    scores, known, parts = np.empty(total), np.zeros(total, np.bool_), np.zeros((total, KINDS + 1))
    for j in range(total):
        rows = np.empty(ends[j + 1] - ends[j], np.int64)
        find_all(table, found[ends[j] : ends[j + 1]], rows)
        z = parts[j, KINDS] = _prior(head)
        for place in range(len(rows)):
            row = rows[place]
            if row >= 0:
                weight = _weight(table, row, alpha, beta, l1, l2)
                z += weight
                parts[j, kinds[ends[j] + place]] += weight
        known[j] = rows[1] >= 0
        scores[j] = probability(z)
    return scores, known, parts


@numba.njit(cache=True)
def score(pairs, table, head, alpha, beta, l1, l2):  # type: ignore[no-untyped-def]
    """Return the scores of :func:`predict` alone."""
    return predict(pairs, table, head, alpha, beta, l1, l2)[0]
