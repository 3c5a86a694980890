"""The layer that takes writes: a float32 buffer that is only appended to, searched exactly.

Readers need no lock. A row is published by moving ``count`` after it is written; a deletion adds −∞ to the row's
score. (A Boolean mask that another thread writes while numpy selects with it corrupts the heap; an added penalty does
not.) A reader takes the penalties **before** the count: an update, which appends the new row and then deletes the old
one, may then show both for a moment, never neither.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from streamfold.core.stores.abc import Floats, Ids


class Growing:
    """Rows in the order of their writes.

    Parameters
    ----------
    capacity : rows of ``dim`` float32 that fit (memory is touched as it fills).
    number : names the buffer in locations.
    """

    def __init__(self, capacity: int, dim: int, number: int) -> None:
        self.number = number
        self.matrix: Floats = np.empty((capacity, dim), np.float32)
        self.ids: Ids = np.empty(capacity, np.int64)
        self.penalty: Floats = np.zeros(capacity, np.float32)
        self.count = 0
        self.dead = 0

    @property
    def room(self) -> int:
        return len(self.ids) - self.count

    @property
    def live(self) -> int:
        return self.count - self.dead

    @property
    def nbytes(self) -> int:
        return self.count * (4 * int(self.matrix.shape[1]) + 12)

    def append(self, ids: Ids, rows: Floats) -> None:
        start, end = self.count, self.count + len(ids)
        self.matrix[start:end] = rows
        self.ids[start:end] = ids
        self.count = end

    def enlarged(self, capacity: int) -> Growing:
        """A copy with more room, under the same number: locations stay."""
        copy = Growing(capacity, self.matrix.shape[1], self.number)
        n = self.count
        copy.matrix[:n], copy.ids[:n], copy.penalty[:n] = self.matrix[:n], self.ids[:n], self.penalty[:n]
        copy.count, copy.dead = n, self.dead
        return copy

    def kill1(self, slot: int) -> None:
        self.penalty[slot] = -np.inf
        self.dead += 1

    def kill(self, slots: Ids) -> None:
        self.penalty[slots] = -np.inf
        self.dead += len(slots)

    def live_slots(self) -> Ids:
        return np.flatnonzero(self.penalty[: self.count] == 0)

    def top(
        self, queries: Floats, k: int, mask: npt.NDArray[np.bool_] | None, slots: Ids | None
    ) -> tuple[Floats, Ids] | None:
        """Unordered scores and ids ``(m, ≤ k)`` of the best rows; dead or filtered ones score −∞. O(rows · dim).

        ``mask`` allows by id; ``slots`` restricts to these rows.
        """
        penalty = self.penalty.copy() if self.dead else None
        n = self.count
        matrix, ids = self.matrix[:n], self.ids[:n]
        if slots is not None:
            slots = slots[slots < n]
            matrix, ids = matrix[slots], ids[slots]
            penalty = None if penalty is None else penalty[slots]
        if not len(ids):
            return None
        if len(queries) == 1:
            scores = (matrix @ queries[0])[None]
        else:
            scores = queries @ matrix.T
        if penalty is not None:
            scores += penalty[: len(ids)]
        if mask is not None:
            scores += np.where(allowed_by(mask, ids), np.float32(0), np.float32(-np.inf))
        if len(ids) <= k:
            return scores, np.broadcast_to(ids, scores.shape)
        if len(queries) == 1:
            best = np.argpartition(scores[0], len(ids) - k)[len(ids) - k :]
            return scores[:, best], ids[best][None]
        part = np.argpartition(scores, len(ids) - k, axis=1)[:, len(ids) - k :]
        return np.take_along_axis(scores, part, 1), ids[part]

    def above(self, query: Floats, k: int, least: float, found: list[tuple[float, int]]) -> None:
        """Append scores and ids of the best k rows for one query ``(dim,)`` that score more than ``least``."""
        penalty = self.penalty.copy() if self.dead else None
        n = self.count
        if not n:
            return
        scores = self.matrix[:n] @ query
        if penalty is not None:
            scores += penalty[:n]
        better = (scores > least).nonzero()[0]
        if len(better) > k:
            better = better[np.argpartition(scores[better], len(better) - k)[len(better) - k :]]
        if len(better):
            found += zip(scores[better].tolist(), self.ids[better].tolist(), strict=True)


def allowed_by(mask: npt.NDArray[np.bool_], ids: Ids) -> npt.NDArray[np.bool_]:
    """Whether each id is allowed by a mask that is indexed by id; ids beyond its end are not."""
    if not len(mask):
        return np.zeros(len(ids), np.bool_)
    allowed: npt.NDArray[np.bool_] = mask[np.minimum(ids, len(mask) - 1)] & (ids < len(mask))
    return allowed
