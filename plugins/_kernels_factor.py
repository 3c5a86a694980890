"""The per-event loop of ``factorization``, compiled; its equations are in ``factorization.py``."""

from __future__ import annotations

from math import sqrt

import numba
import numpy as np

from streamfold.plugins._kernels_hash import MET, admit, drawn, find_all, key_of, longest, probability, rows_to_learn

COLUMNS, BIAS = 4, 3
ALL, CLOCK = 0, 1
"""Places in the head: the bias of everything, and how many examples were learned."""
_USER, _ITEM, _TRAIT, _GENRE = 1, 2, 3, 4
_SIDE, _BLEND = 0.3, 0.5
"""What the bias of a token, and the mean of the tokens' vectors, count beside an id's."""


@numba.njit(cache=True)
def keys(pairs):  # type: ignore[no-untyped-def]
    """Return the keys of each pair: user, traits …, item, genres …"""
    users, items, traits, trait_ends, genres, genre_ends = pairs
    ends = 2 * np.arange(len(users) + 1) + trait_ends + genre_ends
    found = np.empty(ends[-1], np.uint64)
    a = 0
    for j in range(len(users)):
        found[a] = key_of(users[j], _USER)
        a += 1
        for t in traits[trait_ends[j] : trait_ends[j + 1]]:
            found[a] = key_of(t, _TRAIT)
            a += 1
        found[a] = key_of(items[j], _ITEM)
        a += 1
        for g in genres[genre_ends[j] : genre_ends[j + 1]]:
            found[a] = key_of(g, _GENRE)
            a += 1
    return found, ends, trait_ends


@numba.njit(cache=True)
def _side(rows, table, factors, into):  # type: ignore[no-untyped-def]
    """Sum up the vector of an id and its tokens; return its bias."""
    into[:] = 0.0
    bias = 0.0
    for place in range(len(rows)):
        row = rows[place]
        if row < 0 or table[row, MET] <= 0.0:  # of what is new nothing is known: it stands in the middle
            continue
        bias += table[row, BIAS] if place == 0 else _SIDE * table[row, BIAS]
        share = 1.0 if place == 0 else _BLEND / (len(rows) - 1)
        for f in range(len(into)):
            into[f] += share * factors[row, f]
    return bias


@numba.njit(cache=True)
def _step(rows, table, factors, other, slope, counts, rate, pull, spread):  # type: ignore[no-untyped-def]
    """Move an id and its tokens against the slope, as far as the example counts."""
    for place in range(len(rows)):
        row = rows[place]
        if row < 0:
            continue
        if table[row, MET] <= 0.0:
            for f in range(len(other)):
                factors[row, f] = spread * drawn(table[row, 0], f)
        table[row, MET] += counts
        if place == 0:
            by, weight, share = max(0.03, 0.6 / sqrt(table[row, MET] + 3.0)), 1.0, 1.0
        else:
            by, weight, share = 0.01, _SIDE, _BLEND / (len(rows) - 1)
        table[row, BIAS] -= counts * by * (slope * weight + 0.01 * table[row, BIAS])
        for f in range(len(other)):
            factors[row, f] -= counts * rate * (slope * share * other[f] + pull * factors[row, f])


@numba.njit(cache=True)
def _score(rows, split, table, factors, head, of_user, of_item):  # type: ignore[no-untyped-def]
    """Return the parts of a pair's log-odds: of all, of the user, of the item, of their product."""
    user = _side(rows[:split], table, factors, of_user)
    item = _side(rows[split:], table, factors, of_item)
    dot = 0.0
    for f in range(len(of_user)):
        dot += of_user[f] * of_item[f]
    return head[0, ALL], user, item, dot


@numba.njit(cache=True)
def writable(pairs, table, upto, keep):  # type: ignore[no-untyped-def]
    """Return the rows that learning pairs until then may write."""
    return rows_to_learn(table, keys(pairs)[0], upto, keep)


@numba.njit(cache=True)
def learn(pairs, labels, swaps, counts, table, factors, head, rate, pull, spread, keep):  # type: ignore[no-untyped-def]
    """Learn pairs in order; return each one's score from before it."""
    found, ends, trait_ends = keys(pairs)
    k = factors.shape[1]
    of_user, of_item = np.empty(k), np.empty(k)
    scores, all_rows = np.empty(len(labels)), np.empty(longest(ends), np.int64)
    for j in range(len(labels)):
        head[0, CLOCK] += 1.0
        rows = all_rows[: ends[j + 1] - ends[j]]
        admit(table, found[ends[j] : ends[j + 1]], head[0, CLOCK], keep, rows)
        split = 1 + trait_ends[j + 1] - trait_ends[j]
        prior, user, item, dot = _score(rows, split, table, factors, head, of_user, of_item)
        z = prior + user + item + dot
        scores[j] = probability(z)
        slope = scores[j] - labels[j]
        if swaps[j]:  # the opposite label's step is taken back with this one
            slope = 1.0 - 2.0 * labels[j]
        head[0, ALL] -= 0.002 * slope * counts[j]
        _step(rows[:split], table, factors, of_item, slope, counts[j], rate, pull, spread)
        _step(rows[split:], table, factors, of_user, slope, counts[j], rate, pull, spread)
    return scores


@numba.njit(cache=True)
def predict(pairs, table, factors, head):  # type: ignore[no-untyped-def]
    """Return scores, whether each item was met, and the parts of the log-odds."""
    found, ends, trait_ends = keys(pairs)
    n, k = len(ends) - 1, factors.shape[1]
    of_user, of_item = np.empty(k), np.empty(k)
    scores, known, parts = np.empty(n), np.empty(n, np.bool_), np.empty((n, 4))
    for j in range(n):
        rows = np.empty(ends[j + 1] - ends[j], np.int64)
        find_all(table, found[ends[j] : ends[j + 1]], rows)
        split = 1 + trait_ends[j + 1] - trait_ends[j]
        prior, user, item, dot = _score(rows, split, table, factors, head, of_user, of_item)
        parts[j, 0], parts[j, 1], parts[j, 2], parts[j, 3] = prior, user, item, dot
        scores[j] = probability(prior + user + item + dot)
        known[j] = rows[split] >= 0 and table[rows[split], MET] > 0.0
    return scores, known, parts


@numba.njit(cache=True)
def score(pairs, table, factors, head):  # type: ignore[no-untyped-def]
    """Return the scores of :func:`predict` alone."""
    return predict(pairs, table, factors, head)[0]
