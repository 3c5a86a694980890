"""Compiled: add one pair of items to another in rows of strongest partners."""

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
def pair(
    partner: npt.NDArray[np.int32], weight: npt.NDArray[np.float64], rows: npt.NDArray[np.int64], gain: float
) -> None:
    """Add ``e^gain`` to the pairs of ``rows[0]`` with each other row, on both sides; weights are logarithms."""
    first = rows[0]
    for other in rows[1:]:
        _add(partner[first], weight[first], other, gain)
        _add(partner[other], weight[other], first, gain)
