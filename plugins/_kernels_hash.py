"""Rows by hashed key inside compiled kernels: small open-addressed tables over ``Array`` stores of float64.

A row is ``[tag, last, …]``: 52 bits of its key's hash (0: empty), and when it was last learned, on a clock that counts
examples. A key looks in ``WINDOW`` rows from its home on. One that is not there takes an empty row, or one that has
expired: not met for ``keep`` examples per example it had been met in. Where there is neither, the key is not admitted:
it is as unknown as before. So the shape bounds memory, passing ids make way for new ones, and those met often stay.

What rows a call may write is known before (:func:`rows_to_learn`), as ``Array.touch`` wants it.
"""

from __future__ import annotations

from math import exp

import numba
import numpy as np

WINDOW = 8
TAG, LAST, MET = 0, 1, 2
"""Columns. ``MET`` counts examples; what follows is the caller's."""
_A, _B = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)
_12, _29, _32 = np.uint64(12), np.uint64(29), np.uint64(32)


@numba.njit(cache=True)
def probability(logit):  # type: ignore[no-untyped-def]
    """Return the logistic function, within 1e-13 of 0 and 1."""
    return 1.0 / (1.0 + exp(-min(30.0, max(-30.0, logit))))


@numba.njit(cache=True)
def key_of(code, role):  # type: ignore[no-untyped-def]
    """Return the key of a code in a role (the finaliser of splitmix64)."""
    mixed = code ^ (np.uint64(role) * _A)
    mixed = (mixed ^ (mixed >> _32)) * _B
    return mixed ^ (mixed >> _29)


@numba.njit(cache=True)
def cross_key(one, other, role):  # type: ignore[no-untyped-def]
    """Return the key of two codes together; their order counts."""
    return key_of((one ^ (one >> _29)) * _A + other, role)


@numba.njit(cache=True)
def drawn(tag, place):  # type: ignore[no-untyped-def]
    """Return a number between −1 and 1 that a row's tag and a place in the row alone decide."""
    return np.float64(key_of(np.uint64(tag), place) >> np.uint64(11)) / 4503599627370496.0 - 1.0


@numba.njit(cache=True)
def _home(key, n):  # type: ignore[no-untyped-def]
    """Return where a key looks first: its remainder. A division costs more than all else here, so mostly none is."""
    return np.int64(key & np.uint64(n - 1)) if n & (n - 1) == 0 else np.int64(key % np.uint64(n))


@numba.njit(cache=True)
def find(table, key):  # type: ignore[no-untyped-def]
    """Return the row of a key, or −1."""
    n, tag = len(table), np.float64((key >> _12) | np.uint64(1))
    row = _home(key, n)
    for _ in range(WINDOW):
        if table[row, TAG] == tag:
            return row
        if table[row, TAG] == 0.0:
            return np.int64(-1)
        row = row + 1 if row + 1 < n else 0
    return np.int64(-1)


@numba.njit(cache=True)
def _expired(table, row, now, keep):  # type: ignore[no-untyped-def]
    return now - table[row, LAST] > keep * table[row, MET]


@numba.njit(cache=True)
def _place(table, key, now, keep):  # type: ignore[no-untyped-def]
    """Give a key that is not there a cleared row; −1: not admitted."""
    n, tag = len(table), np.float64((key >> _12) | np.uint64(1))
    row, found = _home(key, n), np.int64(-1)
    for _ in range(WINDOW):
        if table[row, TAG] == tag:  # the same key came twice
            return row
        if table[row, TAG] == 0.0:
            found = row
            break
        if found < 0 and _expired(table, row, now, keep):
            found = row
        row = row + 1 if row + 1 < n else 0
    if found >= 0:
        table[found] = 0.0
        table[found, TAG] = tag
        table[found, LAST] = now
    return found


@numba.njit(cache=True)
def admit(table, keys, now, keep, into):  # type: ignore[no-untyped-def]
    """Fill ``into`` with the rows of keys that are about to be learned at ``now``; rows of new keys are all zero."""
    for j in range(len(keys)):
        into[j] = find(table, keys[j])
        if into[j] >= 0:
            table[into[j], LAST] = now
    for j in range(len(keys)):
        if into[j] < 0:
            into[j] = _place(table, keys[j], now, keep)


@numba.njit(cache=True)
def find_all(table, keys, into):  # type: ignore[no-untyped-def]
    """Fill ``into`` with the rows of keys, −1 where a key is unknown."""
    for j in range(len(keys)):
        into[j] = find(table, keys[j])


@numba.njit(cache=True)
def longest(ends):  # type: ignore[no-untyped-def]
    """Return the most keys that one pair has: what a loop allocates once costs it nothing."""
    most = 0
    for j in range(len(ends) - 1):
        most = max(most, ends[j + 1] - ends[j])
    return most


@numba.njit(cache=True)
def rows_to_learn(table, keys, now, keep):  # type: ignore[no-untyped-def]
    """Return every row that learning these keys until ``now`` may write; a row may come more than once."""
    n = len(table)
    rows = np.empty(len(keys) * WINDOW, np.int64)
    a = 0
    for key in keys:
        tag = np.float64((key >> _12) | np.uint64(1))
        row, first = _home(key, n), a
        for _ in range(WINDOW):
            if table[row, TAG] == tag and not _expired(table, row, now, keep):
                rows[first], a = row, first + 1
                break
            if table[row, TAG] == tag or table[row, TAG] == 0.0 or _expired(table, row, now, keep):
                rows[a] = row
                a += 1
            row = row + 1 if row + 1 < n else 0
    return rows[:a]
