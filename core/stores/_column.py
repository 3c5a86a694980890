"""A numeric table's values as a numpy column, for ``top``; nothing is held until it is first asked for."""

from __future__ import annotations

import heapq
import threading
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from streamfold.core.errors import StoreError
from streamfold.core.stores._top import best_slots


class TopColumn:
    """Values by slot, brought up to date with the keys written since the last call.

    Several readers of a view may ask at once, and the first to ask builds: hence the lock.

    Parameters
    ----------
    kind : ``float`` or ``int``.
    """

    def __init__(self, kind: type) -> None:
        self._lock = threading.RLock()
        self._dtype = np.dtype(np.float64 if kind is float else np.int64)
        self.clear()

    def clear(self) -> None:
        with self._lock:
            self._keys: list[Any] | None = None
            self._slots: dict[Any, int] = {}
            self._values: npt.NDArray[Any] = np.empty(0, self._dtype)
            self._stale: set[Any] = set()
            self._last: list[tuple[Any, Any]] | None = None
            self._last_n = 0

    def changed(self, keys: Iterable[Any]) -> None:
        """Note written keys; free until the first ``top``. Past half the rows, the next ``top`` builds afresh."""
        with self._lock:
            if self._keys is None:
                return
            self._stale.update(keys)
            if len(self._stale) > len(self._keys) // 2 + 1024:
                self.clear()

    @property
    def is_built(self) -> bool:
        return self._keys is not None

    def removed(self, keys: Iterable[Any]) -> None:
        """Let go of deleted keys at once: who was erased is not to stand here until somebody asks."""
        with self._lock:
            if self._keys is None:
                return
            for key in keys:
                self._stale.discard(key)
                if (slot := self._slots.get(key)) is not None:
                    self._remove(key, slot)
                    self._last = None

    def top(self, n: int, rows: Mapping[Any, Any], gone: object) -> list[tuple[Any, Any]]:
        """Return the n best of ``rows``, leaving out values that are ``gone``."""
        if n < 1:
            raise StoreError(f"top({n}): ask for at least one row")
        with self._lock:
            if self._keys is None:
                self._build(rows, gone)
            elif self._stale:
                self._refresh(rows, gone)
            if self._last is None or (n > self._last_n and len(self._last) == self._last_n):
                self._last, self._last_n = self._best(n), n
            return self._last[:n]

    def _build(self, rows: Mapping[Any, Any], gone: object) -> None:
        self._keys = [key for key, value in rows.items() if value is not gone]
        self._slots = {key: slot for slot, key in enumerate(self._keys)}
        count = len(self._keys)
        self._values = np.empty(count + count // 2 + 64, self._dtype)
        self._values[:count] = np.fromiter((rows[key] for key in self._keys), self._dtype, count)
        self._last = None

    def _refresh(self, rows: Mapping[Any, Any], gone: object) -> None:
        assert self._keys is not None
        for key in self._stale:
            value = rows.get(key, gone)
            slot = self._slots.get(key)
            if value is gone:
                if slot is not None:
                    self._remove(key, slot)
                continue
            if slot is None:
                slot = self._slots[key] = len(self._keys)
                self._keys.append(key)
                if slot == len(self._values):
                    self._values = np.concatenate([self._values, np.empty_like(self._values)])
            self._values[slot] = value
        self._stale = set()
        self._last = None

    def _remove(self, key: Any, slot: int) -> None:
        assert self._keys is not None
        del self._slots[key]
        last = self._keys.pop()
        if slot < len(self._keys):
            self._keys[slot] = last
            self._slots[last] = slot
            self._values[slot] = self._values[len(self._keys)]

    def _best(self, n: int) -> list[tuple[Any, Any]]:
        assert self._keys is not None
        keys, values = self._keys, self._values[: len(self._keys)]
        if not keys:
            return []
        slots = best_slots(values, n)
        chosen = values[slots]
        if len(slots) > n:  # ties at the bound: the smallest keys
            bound = chosen.min()
            above, tied = slots[chosen > bound], slots[chosen == bound]
            ties = heapq.nsmallest(n - len(above), tied.tolist(), key=keys.__getitem__)
            slots = np.concatenate([above, np.asarray(ties, dtype=np.intp)])
            chosen = values[slots]
        rows = [(keys[slot], value) for slot, value in zip(slots.tolist(), chosen.tolist(), strict=True)]
        return sorted(rows, key=lambda row: (-row[1], row[0]))
