"""Compiled: totals of items, and pairs of items in rows of strongest partners."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from numba import njit


@njit(cache=True)
def _add(partner: npt.NDArray[np.int32], weight: npt.NDArray[np.float64], other: int, gain: float) -> None:
    """Add to a pair; a new one takes the weakest one's place."""
    place, weakest = -1, 0
    for i in range(len(partner)):
        if partner[i] == other:
            place = i
            break
        if weight[i] < weight[weakest]:
            weakest = i
    if place < 0:
        partner[weakest], weight[weakest] = other, gain
    else:
        old = weight[place]
        high, low = (old, gain) if old > gain else (gain, old)
        weight[place] = high + math.log1p(math.exp(low - high))


@njit(cache=True)
def add(total: npt.NDArray[np.float64], rows: npt.NDArray[np.int64], gains: npt.NDArray[np.float64]) -> None:
    """Add ``e^gain`` to each row's total, in order; totals are logarithms."""
    for j in range(len(rows)):
        old, gain = total[rows[j], 0], gains[j]
        high, low = (old, gain) if old > gain else (gain, old)
        total[rows[j], 0] = high + math.log1p(math.exp(low - high))


@njit(cache=True)
def pair(
    partner: npt.NDArray[np.int32],
    weight: npt.NDArray[np.float64],
    rows: npt.NDArray[np.int64],
    ends: npt.NDArray[np.int64],
    gains: npt.NDArray[np.float64],
) -> None:
    """Add ``e^gain`` to the pairs of an item with others, on both sides, in order; weights are logarithms.

    The j-th item and its others are ``rows[ends[j] : ends[j + 1]]``.
    """
    for j in range(len(gains)):
        first = rows[ends[j]]
        for other in rows[ends[j] + 1 : ends[j + 1]]:
            _add(partner[first], weight[first], other, gains[j])
            _add(partner[other], weight[other], first, gains[j])
