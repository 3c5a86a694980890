"""The per-event loop of ``count_stack``, compiled; its equations are in ``count_stack.py``."""

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

FEATURES = 23
_START = np.zeros(FEATURES)
_START[[1, 2]], _START[[5, 7]] = 1.0, 0.5
_LIKES, _WINDOW_LIKES, _WINDOW_MET, _BY_STAGE = 3, 4, 5, 6
"""Columns of a row of ids after the first three; then two for each stage. A row of crosses ends with the likes."""
WEIGHTS, SQUARES, ALL = 0, 1, 2
"""Rows of the head: what the weights have moved, AdaGrad's sums of squares, and (likes, examples) of everything."""
_USER, _ITEM, _GENRE, _USER_GENRE, _ITEM_TRAIT, _GENRE_TRAIT = 1, 2, 3, 4, 5, 6


@numba.njit(cache=True)
def keys(pairs):  # type: ignore[no-untyped-def]
    """Return the keys of each pair: user, item, genres …; and crosses: user × genres, item × traits, both."""
    users, items, traits, trait_ends, genres, genre_ends = pairs
    pairs_n = len(users)
    ends, cross_ends = np.zeros(pairs_n + 1, np.int64), np.zeros(pairs_n + 1, np.int64)
    for j in range(pairs_n):
        n, m = genre_ends[j + 1] - genre_ends[j], trait_ends[j + 1] - trait_ends[j]
        ends[j + 1] = ends[j] + 2 + n
        cross_ends[j + 1] = cross_ends[j] + n + m + n * m
    ids, crosses = np.empty(ends[-1], np.uint64), np.empty(cross_ends[-1], np.uint64)
    a = b = 0
    for j in range(pairs_n):
        ts, gs = traits[trait_ends[j] : trait_ends[j + 1]], genres[genre_ends[j] : genre_ends[j + 1]]
        ids[a], ids[a + 1] = key_of(users[j], _USER), key_of(items[j], _ITEM)
        a += 2
        for g in gs:
            ids[a], crosses[b] = key_of(g, _GENRE), cross_key(users[j], g, _USER_GENRE)
            a, b = a + 1, b + 1
        for t in ts:
            crosses[b] = cross_key(items[j], t, _ITEM_TRAIT)
            b += 1
        for t in ts:
            for g in gs:
                crosses[b] = cross_key(g, t, _GENRE_TRAIT)
                b += 1
    return ids, ends, crosses, cross_ends, trait_ends, genre_ends


@numba.njit(cache=True)
def _count(table, row):  # type: ignore[no-untyped-def]
    return (table[row, _LIKES], table[row, MET]) if row >= 0 else (0.0, 0.0)


@numba.njit(cache=True)
def _log_odds(p):  # type: ignore[no-untyped-def]
    return log(p / (1.0 - p))


@numba.njit(cache=True)
def _shrunk(likes, n, strength, prior):  # type: ignore[no-untyped-def]
    return (likes + strength * prior) / (n + strength)


@numba.njit(cache=True)
def _moved(likes, n, strength, prior):  # type: ignore[no-untyped-def]
    """Return how far the shrunk log-odds of a count are from those of the prior; 0.0 to the bit of no count."""
    return _log_odds(_shrunk(likes, n, strength, prior)) - _log_odds(prior) if n > 0.0 else 0.0


@numba.njit(cache=True)
def _odds(table, row, strength, prior):  # type: ignore[no-untyped-def]
    likes, n = _count(table, row)
    return _moved(likes, n, strength, prior)


@numba.njit(cache=True)
def _window_odds(table, row, strength, prior):  # type: ignore[no-untyped-def]
    """As :func:`_odds`, of the last examples."""
    return _moved(table[row, _WINDOW_LIKES], table[row, _WINDOW_MET], strength, prior) if row >= 0 else 0.0


@numba.njit(cache=True)
def _stage_odds(table, row, stage, strength, prior):  # type: ignore[no-untyped-def]
    """As :func:`_odds`, of those of a row's examples whose other side was at a stage."""
    at = _BY_STAGE + 2 * stage
    return _moved(table[row, at], table[row, at + 1], strength, prior) if row >= 0 else 0.0


@numba.njit(cache=True)
def _stage(n):  # type: ignore[no-untyped-def]
    """Return at which stage an id is that was met so often: new, under 4 times, under 16 times, or more."""
    if n < 1.0:
        return 0
    return 1 if n < 4.0 else 2 if n < 16.0 else 3


@numba.njit(cache=True)
def _describe(ids, crosses, head, of_ids, of_crosses, n, m, x):  # type: ignore[no-untyped-def]
    """Fill ``x`` with the features of a pair of ``n`` genres and ``m`` traits; return the log-odds of everything."""
    prior = _shrunk(head[ALL, 0], head[ALL, 1], 2.0, 0.5)
    user, item = of_ids[0], of_ids[1]
    likes, user_n = _count(ids, user)
    of_user = _shrunk(likes, user_n, 4.0, prior)
    likes, item_n = _count(ids, item)
    of_item = _shrunk(likes, item_n, 6.0, prior)
    x[0] = 1.0
    x[1] = _odds(ids, user, 4.0, prior)
    x[2] = _odds(ids, item, 6.0, prior)
    x[3] = _window_odds(ids, user, 2.0, prior)
    x[4] = _window_odds(ids, item, 3.0, prior)
    x[5] = x[6] = x[7] = x[8] = 0.0
    for g in range(n):
        x[5] += _odds(crosses, of_crosses[g], 3.0, of_user) / n
        x[6] += _odds(ids, of_ids[2 + g], 20.0, prior) / n
    for t in range(m):
        x[7] += _odds(crosses, of_crosses[n + t], 6.0, of_item) / m
    for r in of_crosses[n + m :]:
        x[8] += _odds(crosses, r, 10.0, prior) / (n * m)
    x[9] = x[1] * user_n / (user_n + 10.0)
    x[10] = x[2] * item_n / (item_n + 10.0)
    x[11] = x[1] * x[2]
    often_user, often_item = log(1.0 + user_n) / 4.0, log(1.0 + item_n) / 4.0
    x[12] = often_user
    x[13] = often_item
    x[14] = 1.0 if user_n == 0.0 else 0.0
    x[15] = 1.0 if item_n == 0.0 else 0.0
    x[16] = x[14] * x[15]
    x[17] = x[1] * often_item
    x[18] = x[2] * often_user
    x[19] = x[6] * x[15]
    x[20] = _stage_odds(ids, user, _stage(item_n), 4.0, of_user)
    x[21] = _stage_odds(ids, item, _stage(user_n), 6.0, of_item)
    x[22] = 0.0
    for g in range(n):
        x[22] += _stage_odds(ids, of_ids[2 + g], _stage(user_n), 10.0, prior) / n
    return _log_odds(prior)


@numba.njit(cache=True)
def _slide(row, label, swaps, weight, keeps):  # type: ignore[no-untyped-def]
    """Count in a window of about ``1 / (1 − keeps)`` examples; a swap corrects at most one like there."""
    if weight != 1.0:  # a part of an example moves the window by that part
        keeps = keeps**weight
    if swaps:
        row[_WINDOW_LIKES] = min(row[_WINDOW_MET], max(0.0, row[_WINDOW_LIKES] + (2.0 * label - 1.0) * weight))
    else:
        row[_WINDOW_LIKES] = row[_WINDOW_LIKES] * keeps + label * weight
        row[_WINDOW_MET] = row[_WINDOW_MET] * keeps + weight


@numba.njit(cache=True)
def _count_stage(row, stage, likes, n):  # type: ignore[no-untyped-def]
    """Count at a stage; a swap may come at a later one than what it takes back, and then stops at the ends."""
    at = _BY_STAGE + 2 * stage
    row[at + 1] += n
    row[at] = min(row[at + 1], max(0.0, row[at] + likes))


@numba.njit(cache=True)
def _learn_counts(table, rows, likes, n):  # type: ignore[no-untyped-def]
    """Count; a swap of what has left the table since has nothing to take back, and stops at the ends."""
    for row in rows:
        if row >= 0:
            table[row, MET] += n
            table[row, _LIKES] = min(table[row, MET], max(0.0, table[row, _LIKES] + likes))


@numba.njit(cache=True)
def writable(pairs, ids, crosses, upto, keep, keep_crosses):  # type: ignore[no-untyped-def]
    """Return the rows of both tables that learning pairs until then may write."""
    id_keys, _, cross_keys, _, _, _ = keys(pairs)
    return rows_to_learn(ids, id_keys, upto, keep), rows_to_learn(crosses, cross_keys, upto, keep_crosses)


@numba.njit(cache=True)
def learn(pairs, labels, swaps, counts, ids, crosses, head, rate, keep, keep_crosses):  # type: ignore[no-untyped-def]
    """Learn pairs in order; return each one's score from before it."""
    id_keys, ends, cross_keys, cross_ends, trait_ends, genre_ends = keys(pairs)
    x, scores = np.empty(FEATURES), np.empty(len(labels))
    all_ids, all_crosses = np.empty(longest(ends), np.int64), np.empty(longest(cross_ends), np.int64)
    for j in range(len(labels)):
        n, m, y = genre_ends[j + 1] - genre_ends[j], trait_ends[j + 1] - trait_ends[j], labels[j]
        now = head[ALL, 2] + 1.0
        head[ALL, 2] = now
        of_ids, of_crosses = all_ids[: ends[j + 1] - ends[j]], all_crosses[: cross_ends[j + 1] - cross_ends[j]]
        admit(ids, id_keys[ends[j] : ends[j + 1]], now, keep, of_ids)
        admit(crosses, cross_keys[cross_ends[j] : cross_ends[j + 1]], now, keep_crosses, of_crosses)
        z = _describe(ids, crosses, head, of_ids, of_crosses, n, m, x)
        for k in range(FEATURES):
            z += (_START[k] + head[WEIGHTS, k]) * x[k]
        scores[j] = probability(z)
        slope, likes, count = scores[j] - y, y, 1.0
        if swaps[j]:  # the opposite label's step is taken back with this one, and so are its counts
            slope, likes, count = 1.0 - 2.0 * y, 2.0 * y - 1.0, 0.0
        slope, likes, count = slope * counts[j], likes * counts[j], count * counts[j]
        for k in range(FEATURES):
            step = slope * x[k]
            head[SQUARES, k] += step * step
            head[WEIGHTS, k] -= rate * step / sqrt(1.0 + head[SQUARES, k])
        head[ALL, 1] += count
        head[ALL, 0] = min(head[ALL, 1], max(0.0, head[ALL, 0] + likes))
        of_user, of_item = _stage(_count(ids, of_ids[0])[1]), _stage(_count(ids, of_ids[1])[1])
        for place in range(len(of_ids)):
            if of_ids[place] >= 0:
                _count_stage(ids[of_ids[place]], of_item if place == 0 else of_user, likes, count)
        _learn_counts(ids, of_ids, likes, count)
        _learn_counts(crosses, of_crosses, likes, count)
        if of_ids[0] >= 0:
            _slide(ids[of_ids[0]], y, swaps[j], counts[j], 0.9)
        if of_ids[1] >= 0:
            _slide(ids[of_ids[1]], y, swaps[j], counts[j], 0.95)
    return scores


@numba.njit(cache=True)
def predict(pairs, ids, crosses, head):  # type: ignore[no-untyped-def]
    """Return scores, whether each item was met, features, and what each of them adds; the last is the prior."""
    id_keys, ends, cross_keys, cross_ends, trait_ends, genre_ends = keys(pairs)
    total = len(ends) - 1
    scores, known = np.empty(total), np.empty(total, np.bool_)
    values, parts = np.empty((total, FEATURES + 1)), np.empty((total, FEATURES + 1))
    for j in range(total):
        n, m = genre_ends[j + 1] - genre_ends[j], trait_ends[j + 1] - trait_ends[j]
        of_ids = np.empty(ends[j + 1] - ends[j], np.int64)
        of_crosses = np.empty(cross_ends[j + 1] - cross_ends[j], np.int64)
        find_all(ids, id_keys[ends[j] : ends[j + 1]], of_ids)
        find_all(crosses, cross_keys[cross_ends[j] : cross_ends[j + 1]], of_crosses)
        z = _describe(ids, crosses, head, of_ids, of_crosses, n, m, values[j])
        values[j, FEATURES] = parts[j, FEATURES] = z
        for k in range(FEATURES):
            parts[j, k] = (_START[k] + head[WEIGHTS, k]) * values[j, k]
            z += parts[j, k]
        scores[j] = probability(z)
        known[j] = of_ids[1] >= 0 and ids[of_ids[1], MET] > 0.0
    return scores, known, values, parts


@numba.njit(cache=True)
def score(pairs, ids, crosses, head):  # type: ignore[no-untyped-def]
    """Return the scores of :func:`predict` alone."""
    return predict(pairs, ids, crosses, head)[0]
