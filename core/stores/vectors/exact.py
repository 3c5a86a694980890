"""Exact nearest neighbours: one float32 matrix, BLAS, and no surprises. The reference for every other index."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save_file

from streamfold.core.errors import StoreError
from streamfold.core.stores._top import best_slots
from streamfold.core.stores.abc import Floats, Ids
from streamfold.core.stores.vectors._checks import checked_filter, checked_ids, checked_k, unit_vectors
from streamfold.core.stores.vectors.growing import allowed_by

_BLOCK = 1 << 24  # scores at a time: 64 MB


class ExactVectors:
    """Vectors by id under inner product, searched exactly.

    Rows lie without gaps in a preallocated matrix that doubles; a deleted row is overwritten by the last one.
    Upsert and delete O(d) each (amortised); search O(n · d). A lock makes calls from several threads safe.

    Parameters
    ----------
    dim : length of each vector.
    normalize : scale rows and queries to length one, so that scores are cosines.

    Examples
    --------
    >>> index = ExactVectors(2)
    >>> index.upsert(np.array([7, 8]), np.array([[1, 0], [1, 1]], np.float32))
    >>> index.search(np.array([[2, 0]], np.float32), 3)[0]
    array([[ 7,  8, -1]])
    """

    def __init__(self, dim: int, normalize: bool = True) -> None:
        if dim < 1:
            raise StoreError(f"dim must be at least 1, not {dim}")
        self.dim = dim
        self.normalize = normalize
        self._lock = threading.RLock()
        self._clear(0)

    def _clear(self, capacity: int) -> None:
        self._matrix: Floats = np.empty((capacity, self.dim), np.float32)
        self._ids: Ids = np.empty(capacity, np.int64)
        self._slots: dict[int, int] = {}

    def upsert(self, ids: npt.ArrayLike, vectors: npt.ArrayLike) -> None:
        keys = checked_ids(ids)
        if not len(keys):
            return
        rows = unit_vectors(vectors, self.dim, normalize=self.normalize)
        if len(keys) != len(rows):
            raise StoreError(f"{len(keys)} ids for {len(rows)} vectors")
        with self._lock:
            slots_of, count = self._slots, len(self._slots)
            slots = np.empty(len(keys), np.intp)
            for i, key in enumerate(keys.tolist()):
                slots[i] = slots_of.setdefault(key, len(slots_of))
            self._reserve(len(slots_of))
            if len(slots_of) - count < len(keys):  # replaced or repeated: numpy does not say which equal slot wins
                _, last = np.unique(slots[::-1], return_index=True)
                chosen = len(keys) - 1 - last
                slots, keys, rows = slots[chosen], keys[chosen], rows[chosen]
            self._matrix[slots] = rows
            self._ids[slots] = keys

    def _reserve(self, count: int) -> None:
        if count > len(self._ids):
            capacity = max(64, count, 2 * len(self._ids))
            held = len(self._ids)
            matrix, ids = self._matrix, self._ids
            self._matrix, self._ids = np.empty((capacity, self.dim), np.float32), np.empty(capacity, np.int64)
            self._matrix[:held], self._ids[:held] = matrix, ids

    def delete(self, ids: npt.ArrayLike) -> None:
        with self._lock:
            for key in checked_ids(ids).tolist():
                slot = self._slots.pop(key, None)
                last = len(self._slots)
                if slot is not None and slot != last:
                    moved = int(self._ids[last])
                    self._matrix[slot] = self._matrix[last]
                    self._ids[slot] = moved
                    self._slots[moved] = slot

    def search(self, queries: npt.ArrayLike, k: int, allow: npt.ArrayLike | None = None) -> tuple[Ids, Floats]:
        """``queries (m, d)`` → ids and scores ``(m, k)``, best first, ties by id; −1 and −∞ where fewer exist."""
        k = checked_k(k)
        rows = unit_vectors(queries, self.dim, normalize=self.normalize)
        found = np.full((len(rows), k), -1, np.int64)
        scores = np.full((len(rows), k), -np.inf, np.float32)
        with self._lock:
            matrix, ids = self._matrix[: len(self._slots)], self._ids[: len(self._slots)]
            if allow is not None:
                chosen = self._allowed(allow, ids)
                matrix, ids = matrix[chosen], ids[chosen]
            if not len(ids):
                return found, scores
            step = max(1, _BLOCK // len(ids))
            for start in range(0, len(rows), step):
                block = rows[start : start + step] @ matrix.T
                for i, line in enumerate(block, start):
                    slots = best_slots(line, k)
                    order = np.lexsort((ids[slots], -line[slots]))[:k]
                    found[i, : len(order)] = ids[slots][order]
                    scores[i, : len(order)] = line[slots][order]
        return found, scores

    def _allowed(self, allow: npt.ArrayLike, ids: Ids) -> Ids:
        mask, keys = checked_filter(allow)
        if mask is not None:
            return np.flatnonzero(allowed_by(mask, ids))
        assert keys is not None
        slots = [s for key in np.unique(keys).tolist() if (s := self._slots.get(key)) is not None]
        return np.array(slots, np.int64)

    def __len__(self) -> int:
        return len(self._slots)

    def __contains__(self, key: int) -> bool:
        return key in self._slots

    is_lossless = True

    def stats(self) -> None:
        """Nothing to tell."""

    def wait(self) -> None:
        """Nothing to wait for."""

    def maintain(self, everything: bool = False) -> None:
        """Nothing to do: what is deleted goes at once."""

    def close(self) -> None:
        """Nothing to stop."""

    def export(self) -> tuple[Ids, Floats]:
        """Return all ids, ascending, and their rows as stored: ``(n,) int64``, ``(n, d) float32``; copies."""
        with self._lock:
            ids = self._ids[: len(self._slots)]
            order = np.argsort(ids)
            return ids[order], self._matrix[order]

    def snapshot(self, path: Path) -> None:
        """Write one safetensors file."""
        with self._lock:
            count = len(self._slots)
            meta = {"streamfold": json.dumps({"dim": self.dim, "normalize": self.normalize})}
            save_file({"ids": self._ids[:count], "vectors": self._matrix[:count]}, path, metadata=meta)

    def restore(self, path: Path, verify: bool = True) -> None:
        """Replace the content by a snapshot's; raises ``StoreError`` if it has another dimension or normalisation."""
        with safe_open(path, "np") as file:
            meta = json.loads((file.metadata() or {}).get("streamfold", "{}"))
            if meta != {"dim": self.dim, "normalize": self.normalize}:
                raise StoreError(f"snapshot {path} is of {meta}, not of dim {self.dim}, normalize {self.normalize}")
            ids, matrix = file.get_tensor("ids"), file.get_tensor("vectors")
        with self._lock:
            self._matrix, self._ids = np.array(matrix), np.array(ids)
            self._slots = {key: slot for slot, key in enumerate(self._ids.tolist())}
