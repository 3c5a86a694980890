"""Rows by key: a dict with an undo log per event, coalesced changes per commit, and a bound.

Writes apply at once, so that a fold reads what it wrote. Values are never copied: treat them as immutable and put a
changed copy (``msgspec.structs.replace``), or ``undo`` cannot take the change back.
"""

from __future__ import annotations

import hashlib
import heapq
import typing
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import numpy as np

from streamfold.core.codec import pack, unpack
from streamfold.core.errors import StoreError, StoreFull
from streamfold.core.stores._column import TopColumn
from streamfold.core.stores.declare import Table

_NEW: Any = type("_New", (), {"__slots__": ()})()  # in the log: the key had no row before this event
_GONE: Any = type("_Gone", (), {"__slots__": ()})()  # in the rows: deleted in this event, its place kept for undo
_HELD: Any = type("_Held", (), {"__slots__": ()})()  # in a write-only table: the value was drained and let go
_INT64 = 1 << 63


class LiveTable:
    """The live store of a :class:`Table`.

    Full and ``on_full="evict"``: a new key first makes room by removing another row: the one with the lowest value
    (numeric tables; of equal values the smallest key), else the row written longest ago. The bound holds at all times
    and the choice depends on the order of operations alone, so a replay, a reloaded copy and the original evict alike.

    Cost: ``get`` + ``put`` under 1 µs; an eviction O(log n) (numeric) or O(1); ``top`` O(n) with a small constant.

    Examples
    --------
    >>> table = LiveTable(Table("score", key=str, value=float, max_rows=2))
    >>> for key, value in [("a", 1.0), ("b", 3.0), ("c", 2.0)]:
    ...     table.put(key, value)
    >>> table.top(5)
    [('b', 3.0), ('c', 2.0)]
    """

    def __init__(self, declaration: Table) -> None:
        if declaration.key not in (str, int):
            raise StoreError(f"table {declaration.name!r}: key must be str or int, not {declaration.key!r}")
        if declaration.max_rows < 1:
            raise StoreError(f"table {declaration.name!r}: max_rows must be at least 1, not {declaration.max_rows}")
        self.name = declaration.name
        self._key: type = declaration.key
        self._value: Any = declaration.value
        self._class = typing.get_origin(self._value) or self._value
        self._plain = isinstance(self._value, type) and typing.get_origin(self._value) is None
        self._numeric = self._value in (float, int)
        self._max = declaration.max_rows
        self._evicts = declaration.on_full == "evict"
        self._by_age = self._evicts and not self._numeric
        self._kind = tuple[list[self._key], list[self._key], list[self._value]]  # type: ignore[name-defined]
        self._column = TopColumn(self._value) if self._numeric else None
        self._row_bytes = 32.0
        self._clear()

    def _clear(self) -> None:
        # By age: an OrderedDict in order of last write, oldest first; else a dict in order of insertion.
        self._rows: dict[Any, Any] = OrderedDict() if self._by_age else {}
        self._count = 0
        self._log: dict[Any, Any] = {}  # this event: key -> value before it, in order of last write
        self._fronts: list[Any] = []  # this event, by age: keys taken from the front, for undo
        self._heap: list[tuple[Any, Any]] | None = None  # (value, key), lazily built and lazily cleaned
        self._popped: list[tuple[Any, Any]] = []  # this event: entries taken from the heap, for undo
        self._dirty: dict[Any, bool] = {}  # since the last drain: key -> inserted afresh
        if self._column is not None:
            self._column.clear()

    # -- reads --------------------------------------------------------------------------------------------------------
    def get(self, key: Any, default: Any = None) -> Any:
        value = self._rows.get(key, default)
        return default if value is _GONE else value

    def get_many(self, keys: Sequence[Any], default: Any = None) -> list[Any]:
        get = self._rows.get
        return [default if (value := get(key, default)) is _GONE else value for key in keys]

    def items(self) -> Iterator[tuple[Any, Any]]:
        """Rows in a deterministic order (the same in every copy); do not write while iterating."""
        return ((key, value) for key, value in self._rows.items() if value is not _GONE)

    def first(self) -> tuple[Any, Any] | None:
        """Return the row whose key has been there for longest; None: there is no row.

        With ``on_full="evict"`` that of a table that is not numeric is the row written longest ago.
        """
        return next(self.items(), None)

    def __contains__(self, key: Any) -> bool:
        return self._rows.get(key, _GONE) is not _GONE

    def __len__(self) -> int:
        return self._count

    def top(self, n: int) -> list[tuple[Any, Any]]:
        """Return the n rows with the highest values, best first, ties by key.

        The first call builds a numpy column (O(rows)); later ones bring it up to date with the keys written since.
        """
        if self._column is None:
            raise StoreError(f"table {self.name!r} holds {self._value!r}: only float and int tables have a top")
        self._column.changed(self._log)
        return self._column.top(n, self._rows, _GONE)

    # -- writes -------------------------------------------------------------------------------------------------------
    def put(self, key: Any, value: Any) -> None:
        if type(key) is not self._key or type(value) is not self._value or value != value or not self._plain:
            key, value = self._checked(key, value)
        elif self._key is int or self._value is int:
            self._in_range(key, value)
        rows, log = self._rows, self._log
        old = rows.get(key, _NEW)
        if old is _NEW or old is _GONE:
            if self._count >= self._max:
                self._make_room(key)
                old = rows.get(key, _NEW)
            self._count += 1
        if self._by_age:
            log[key] = log.pop(key, old)
        elif key not in log:
            log[key] = old
        rows[key] = value
        if self._heap is not None:
            heapq.heappush(self._heap, (value, key))

    def delete(self, key: Any) -> None:
        old = self._rows.get(key, _GONE)
        if old is _GONE:
            return
        if self._by_age:
            self._log[key] = self._log.pop(key, old)
        else:  # the log's order is that of first writes, as is the rows' of new keys
            self._log.setdefault(key, old)
        self._rows[key] = _GONE
        self._count -= 1

    def _in_range(self, key: Any, value: Any) -> None:
        for what, number in (("key", key), ("value", value)):
            if type(number) is int and not -_INT64 <= number < _INT64:
                raise StoreError(f"table {self.name!r}: {what} {number} does not fit 64 bits")

    def _checked(self, key: Any, value: Any) -> tuple[Any, Any]:
        """Slow path: numpy scalars and ints for floats are converted, anything else of another type is refused."""
        if isinstance(key, np.integer) and self._key is int:
            key = int(key)
        elif isinstance(key, np.str_) and self._key is str:
            key = str(key)
        if type(key) is not self._key:
            raise StoreError(f"table {self.name!r}: key {key!r} is {type(key).__name__}, not {self._key.__name__}")
        if self._value is float and isinstance(value, (int, float, np.floating, np.integer)):
            if not isinstance(value, bool):
                value = float(value)
        elif self._value is int and isinstance(value, np.integer):
            value = int(value)
        if self._numeric and (type(value) is not self._value or value != value):
            raise StoreError(f"table {self.name!r}: value {value!r} of {key!r} is not a number of type {self._value}")
        if isinstance(self._class, type) and not isinstance(value, self._class):
            raise StoreError(f"table {self.name!r}: value of {key!r} is {type(value).__name__}, not {self._value}")
        if not self._plain and self._value is not Any:
            try:
                value = msgspec.convert(value, self._value)
            except (msgspec.ValidationError, TypeError) as error:
                raise StoreError(f"table {self.name!r}: value of {key!r} is not {self._value}: {error}") from error
        self._in_range(key, value)
        return key, value

    # -- the bound ----------------------------------------------------------------------------------------------------
    def _make_room(self, key: Any) -> None:
        if not self._evicts:
            raise StoreFull(f"table {self.name!r} is full: {self._max} rows; raise max_rows or delete rows")
        if self._numeric:
            self._evict_lowest()
        else:
            self._evict_oldest()

    def _evict_lowest(self) -> None:
        rows = self._rows
        if self._heap is None:
            self._heap = [(value, key) for key, value in rows.items() if value is not _GONE]
            heapq.heapify(self._heap)
        while True:
            entry = heapq.heappop(self._heap)
            self._popped.append(entry)
            value, key = entry
            held = rows.get(key, _GONE)
            if held is not _GONE and held == value:
                self.delete(key)
                return

    def _evict_oldest(self) -> None:
        """Take keys from the front; what this event wrote is younger than what it did not, whatever its place."""
        rows, log = self._rows, self._log
        assert isinstance(rows, OrderedDict)
        for _ in range(len(rows)):
            key = next(iter(rows))
            if key not in log:
                log[key] = rows.pop(key)
                self._fronts.append(key)
                self._count -= 1
                return
            if log[key] is _NEW:  # appended in this event: so is all that follows
                break
            rows.move_to_end(key)
            self._fronts.append(key)
        self.delete(next(key for key in log if rows.get(key, _GONE) is not _GONE))

    # -- events and commits -------------------------------------------------------------------------------------------
    def begin(self) -> None:
        """Start an event. Writes made before it, outside any event, stand."""
        if self._log:
            self.keep()

    def keep(self) -> None:
        if not self._log:
            return
        rows, dirty = self._rows, self._dirty
        if self._by_age:
            assert isinstance(rows, OrderedDict)
            for key in self._log:
                dirty.pop(key, None)
                dirty[key] = True
                if rows.get(key, _GONE) is _GONE:
                    rows.pop(key, None)
                else:
                    rows.move_to_end(key)
        else:
            for key, old in self._log.items():
                if rows[key] is _GONE:
                    del rows[key]
                    dirty[key] = True
                elif old is _NEW:
                    dirty.pop(key, None)  # to the end: a copy inserts in this order
                    dirty[key] = True
                elif key not in dirty:
                    dirty[key] = False
        self._end()
        if self._heap is not None and len(self._heap) > 2 * self._max + 1024:
            self._heap = None

    def undo(self) -> None:
        rows = self._rows
        for key in reversed(self._fronts):
            assert isinstance(rows, OrderedDict)
            rows.setdefault(key, _GONE)
            rows.move_to_end(key, last=False)
        for key, old in self._log.items():
            self._count -= rows.get(key, _GONE) is not _GONE
            if old is _NEW:
                rows.pop(key, None)
                continue
            rows[key] = old
            self._count += old is not _GONE
            if self._heap is not None:
                heapq.heappush(self._heap, (old, key))
        if self._heap is not None:
            for entry in self._popped:
                heapq.heappush(self._heap, entry)
        self._end()

    def _end(self) -> None:
        if self._column is not None:
            self._column.changed(self._log)
            if self._column.is_built:
                self._column.removed([key for key in self._log if self._rows.get(key, _GONE) is _GONE])
        self._log = {}
        if self._fronts:
            self._fronts = []
        if self._popped:
            self._popped = []

    def drain(self) -> bytes | None:
        if self._log:
            self.keep()
        if not self._dirty:
            return None
        rows = self._rows
        puts = [key for key in self._dirty if key in rows]
        gone = [key for key, fresh in self._dirty.items() if fresh and (not self._by_age or key not in rows)]
        changes = pack((gone, puts, [rows[key] for key in puts]))
        self._dirty = {}
        self._drained(puts, len(changes))
        return changes

    def _drained(self, puts: list[Any], size: int) -> None:
        if puts:
            self._row_bytes += (size / len(puts) - self._row_bytes) * max(0.05, len(puts) / max(1, self._count))

    def apply(self, changes: bytes | memoryview) -> None:
        if self._log:
            self.keep()
        gone, puts, values = unpack(changes, self._kind)
        rows = self._rows
        for key in gone:
            rows.pop(key, None)
        for key, value in zip(puts, values, strict=True):
            if self._by_age:
                rows.pop(key, None)
            rows[key] = value
        self._heap = None
        self._count = len(rows)
        if self._column is not None:
            self._column.removed(gone)
            self._column.changed(puts)
        self._drained(puts, len(changes))

    def purge(self) -> None:
        """Let go of what deletes have left in memory: the next eviction looks for the lowest rows anew."""
        self._heap = None

    def save(self, folder: Path) -> None:
        if self._log:
            self.keep()
        (folder / "rows.msgpack").write_bytes(pack(((), list(self._rows), list(self._rows.values()))))

    def load(self, folder: Path) -> None:
        data = (folder / "rows.msgpack").read_bytes()
        _, keys, values = unpack(data, self._kind)
        self._clear()
        self._rows.update(zip(keys, values, strict=True))
        self._count = len(self._rows)
        if keys:
            self._row_bytes = len(data) / len(keys)

    def state_bytes(self) -> int:
        """Bytes in packed form: rows × a running mean of the rows' packed size."""
        return int(self._count * self._row_bytes)

    def fingerprint(self) -> dict[str, Any]:
        digest = hashlib.blake2b(digest_size=16)
        for row in sorted(self.items(), key=lambda row: row[0]):
            digest.update(pack(row))
        return {"rows": self._count, "digest": digest.hexdigest()}

    def contents(self) -> dict[Any, Any]:
        """Rows by key; a copy."""
        return dict(self.items())

    def close(self) -> None:
        self._clear()


class WriteOnlyTable(LiveTable):
    """A table of ``fold_reads=False`` on the fold's side: keys for the bound, values only until they are drained.

    A numeric table that evicts keeps its numbers, by which it chooses.
    """

    def _refuse(self) -> NoReturn:
        raise StoreError(f"table {self.name!r} is not held here: declare it with fold_reads=True to read it in a fold")

    def get(self, key: Any, default: Any = None) -> Any:
        self._refuse()

    def get_many(self, keys: Sequence[Any], default: Any = None) -> list[Any]:
        self._refuse()

    def items(self) -> Iterator[tuple[Any, Any]]:
        self._refuse()

    def top(self, n: int) -> list[tuple[Any, Any]]:
        self._refuse()

    def __contains__(self, key: Any) -> bool:
        self._refuse()

    def save(self, folder: Path) -> None:
        raise StoreError(f"table {self.name!r} is not held by the fold: write checkpoints from a view")

    def fingerprint(self) -> dict[str, Any]:
        self._refuse()

    def _drained(self, puts: list[Any], size: int) -> None:
        super()._drained(puts, size)
        self._let_go(puts)

    def load(self, folder: Path) -> None:
        super().load(folder)
        self._let_go(list(self._rows))

    def _let_go(self, keys: list[Any]) -> None:
        if not (self._numeric and self._evicts):
            for key in keys:
                self._rows[key] = _HELD
