"""What stores by id share whose writes wait for ``keep``: vectors, text, blobs.

Their data structures have no cheap undo, so an event's writes are staged: **reads inside the same event see the state
before the event**. ``undo`` drops the stage; ``keep`` writes it, notes the changed keys for ``drain`` and keeps the
bound. On the fold's side with ``fold_reads=False`` (``hold=False``) only keys and undrained changes are kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from streamfold.core.codec import pack, unpack
from streamfold.core.errors import StoreError, StoreFull
from streamfold.core.stores.abc import Ids
from streamfold.core.stores.declare import OnFull

K = TypeVar("K", int, str)
V = TypeVar("V")


class Staged(Generic[K, V]):
    """Keys, stage, changes and bound.

    Parameters
    ----------
    bound : most rows, or most bytes if ``by_bytes``.
    hold : whether the content is held here (False: writes only).
    """

    def __init__(self, name: str, *, bound: int, on_full: OnFull, hold: bool, by_bytes: bool = False) -> None:
        if bound < 1:
            raise StoreError(f"store {name!r}: its bound must be at least 1, not {bound}")
        self.name = name
        self._bound = bound
        self._evicts = on_full == "evict"
        self._hold = hold
        self._by_bytes = by_bytes
        self._reset()

    def _reset(self) -> None:
        # key -> bytes of its content; in order of last write where the oldest is evicted
        self._live: dict[K, int] = OrderedDict() if self._evicts else {}
        self._bytes = 0
        self._staged: dict[K, V | None] = {}
        self._staged_rows = 0
        self._staged_bytes = 0
        self._dirty: dict[K, V | None] = {}

    # -- for the kinds ------------------------------------------------------------------------------------------------
    def _size(self, value: V) -> int:
        raise NotImplementedError

    def _write(self, puts: dict[K, V], deletes: list[K]) -> None:
        raise NotImplementedError

    def _pack_values(self, values: list[V]) -> Any:
        return values

    def _unpack_values(self, values: Any) -> Iterable[V]:
        found: Iterable[V] = values
        return found

    def _save(self, folder: Path) -> None:
        raise NotImplementedError

    def _load(self, folder: Path) -> None:
        raise NotImplementedError

    def _fingerprint(self) -> str:
        raise NotImplementedError

    def _readable(self) -> None:
        if not self._hold:
            raise StoreError(
                f"store {self.name!r} is not held here: declare it with fold_reads=True to read it in a fold"
            )

    # -- staging ------------------------------------------------------------------------------------------------------
    def _stage_put(self, key: K, value: V) -> None:
        size = self._size(value)
        rows_before, bytes_before = self._staged_now(key)
        rows = self._staged_rows + 1 - rows_before
        nbytes = self._staged_bytes + size - bytes_before
        used = self._bytes + nbytes if self._by_bytes else len(self._live) + rows
        if used > self._bound and (not self._evicts or (self._by_bytes and size > self._bound)):
            unit = "bytes" if self._by_bytes else "rows"
            raise StoreFull(f"store {self.name!r} is full: {self._bound} {unit}; raise its bound or delete content")
        self._staged.pop(key, None)
        self._staged[key] = value
        self._staged_rows, self._staged_bytes = rows, nbytes

    def _stage_delete(self, key: K) -> None:
        rows_before, bytes_before = self._staged_now(key)
        if rows_before:
            self._staged_rows -= 1
            self._staged_bytes -= bytes_before
            self._staged.pop(key, None)
            self._staged[key] = None

    def _staged_now(self, key: K) -> tuple[int, int]:
        """Rows (0 or 1) and bytes under the key, this event's writes included."""
        if key in self._staged:
            value = self._staged[key]
            return (0, 0) if value is None else (1, self._size(value))
        size = self._live.get(key)
        return (0, 0) if size is None else (1, size)

    # -- events and commits -------------------------------------------------------------------------------------------
    def begin(self) -> None:
        """Start an event. Writes made before it, outside any event, stand."""
        if self._staged:
            self.keep()

    def undo(self) -> None:
        self._staged = {}
        self._staged_rows = self._staged_bytes = 0

    def keep(self) -> None:
        if not self._staged:
            return
        staged = self._staged
        self.undo()
        puts = {key: value for key, value in staged.items() if value is not None}
        deletes = [key for key, value in staged.items() if value is None]
        self._note(puts, deletes)
        for key in self._over_bound():
            deletes.append(key)
            puts.pop(key, None)
            staged.pop(key, None)
            staged[key] = None
        for key, value in staged.items():
            self._dirty.pop(key, None)
            self._dirty[key] = value
        if self._hold:
            self._write(puts, deletes)

    def _note(self, puts: dict[K, V], deletes: Iterable[K]) -> None:
        for key in deletes:
            self._bytes -= self._live.pop(key, 0)
        for key, value in puts.items():
            size = self._size(value)
            self._bytes += size - (self._live.pop(key, 0) if self._evicts else self._live.get(key, 0))
            self._live[key] = size

    def _over_bound(self) -> list[K]:
        evicted: list[K] = []
        if isinstance(self._live, OrderedDict):
            while (self._bytes if self._by_bytes else len(self._live)) > self._bound:
                key, size = self._live.popitem(last=False)
                self._bytes -= size
                evicted.append(key)
        return evicted

    def drain(self) -> bytes | None:
        self.begin()
        if not self._dirty:
            return None
        puts = {key: value for key, value in self._dirty.items() if value is not None}
        deletes = [key for key, value in self._dirty.items() if value is None]
        self._dirty = {}
        return pack((deletes, list(puts), self._pack_values(list(puts.values()))))

    def apply(self, changes: bytes | memoryview) -> None:
        self.begin()
        deletes, keys, values = unpack(changes)
        puts: dict[K, V] = dict(zip(keys, self._unpack_values(values), strict=True))
        self._note(puts, deletes)
        if self._hold:
            self._write(puts, deletes)

    def save(self, folder: Path) -> None:
        if not self._hold:
            raise StoreError(f"store {self.name!r} is not held by the fold: write checkpoints from a view")
        self.begin()
        (folder / "keys.msgpack").write_bytes(pack((list(self._live), list(self._live.values()))))
        self._save(folder)

    def load(self, folder: Path) -> None:
        keys, sizes = unpack((folder / "keys.msgpack").read_bytes(), tuple[list[Any], list[int]])
        self._reset()
        self._live.update(zip(keys, sizes, strict=True))
        self._bytes = sum(sizes)
        self._load(folder)

    # -- reads --------------------------------------------------------------------------------------------------------
    def __len__(self) -> int:
        return len(self._live)

    def state_bytes(self) -> int:
        return self._bytes + 16 * len(self._live)

    def fingerprint(self) -> dict[str, Any]:
        self._readable()
        self.begin()
        return {"rows": len(self._live), "digest": self._fingerprint()}

    def close(self) -> None:
        self._reset()


def whole_ids(name: str, ids: Sequence[int] | Ids) -> list[int]:
    """Return ids as Python ints; raises ``StoreError`` for ids that are not whole numbers in 0 … 2⁶³ − 1."""
    numbers: list[Any] = ids.tolist() if isinstance(ids, np.ndarray) else list(ids)
    for number in numbers:
        if not (type(number) is int or hasattr(number, "__index__")) or not 0 <= number < 1 << 63:
            raise StoreError(f"store {name!r}: id {number!r} is not a whole number in 0 … 2⁶³ − 1")
    return [int(number) for number in numbers]
