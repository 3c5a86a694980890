"""Numbers by row in one array, changed in place: statistics, weights of models, counters in hashed buckets.

Numpy, compiled kernels and torch (``torch.from_numpy``) work on the same memory. Who changes rows says so first::

    weights = stores["weights"]
    weights.touch(rows)              # kept for undo, and part of the next commit
    weights.values[rows] += step

A row that is changed without ``touch`` is lost at the next restart, and the view never sees it (the conformance kit's
checkpoint check finds that). A commit carries the rows touched since the last one with their new values: *set, never
increment*. The shape is the bound: ids that grow without end are hashed into rows.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from streamfold.core.codec import pack, unpack
from streamfold.core.errors import StoreError
from streamfold.core.stores.declare import Array

Rows = npt.NDArray[np.int64]
_KINDS = "float32 float64 int32 int64 uint32 uint8".split()  # noqa: SIM905
_MOST_BYTES = 1 << 34
_FEW = 64
"""So few rows are looked at faster as a list than by numpy."""
_INT64 = np.dtype(np.int64)


class LiveArray:
    """The live store of :class:`Array`.

    Parameters
    ----------
    writable : False on a view's side: ``values`` can then be read alone.

    Examples
    --------
    >>> store = LiveArray(Array("count", shape=(4, 2), dtype="float64"))
    >>> store.begin()
    >>> rows = store.touch([1])
    >>> store.values[rows] += 2.5
    >>> store.undo()
    >>> float(store.values.sum())
    0.0
    """

    def __init__(self, declaration: Array, *, writable: bool = True) -> None:
        name, shape = declaration.name, tuple(declaration.shape)
        if declaration.dtype not in _KINDS:
            raise StoreError(f"array {name!r}: dtype {declaration.dtype!r} is not one of {', '.join(_KINDS)}")
        if not shape or any(type(size) is not int or size < 1 for size in shape):
            raise StoreError(f"array {name!r}: shape {shape} must be one or more whole numbers ≥ 1")
        dtype = np.dtype(declaration.dtype)
        if (size := int(np.prod(shape, dtype=object)) * dtype.itemsize) > _MOST_BYTES:
            raise StoreError(f"array {name!r}: {size:,} bytes are more than {_MOST_BYTES:,}")
        self.name = name
        self._shape, self._dtype, self._fill = shape, dtype, declaration.fill
        self._writable = writable
        self._fresh()

    def _fresh(self) -> None:
        fill = self._dtype.type(self._fill)
        # zeros are mapped lazily by the system: a large, sparsely used array takes the memory of what is touched
        self._values = np.zeros(self._shape, self._dtype) if not fill else np.full(self._shape, fill)
        self._before: list[tuple[Rows | int, npt.NDArray[Any]]] = []
        self._changed: list[Rows] = []
        self._changed_rows: set[int] = set()
        self._show()

    def _show(self) -> None:
        self.values = self._values
        """``(rows, …)``: the array itself."""
        if not self._writable:
            self.values = self._values.view()
            self.values.flags.writeable = False

    # -- writes -------------------------------------------------------------------------------------------------------
    def touch_row(self, row: int) -> None:
        """As :meth:`touch`, of one row: several times faster."""
        if not self._writable or not 0 <= row < self._shape[0]:
            self.touch([row])  # says what is wrong
        self._before.append((row, self._values[row].copy()))

    def touch(self, rows: npt.ArrayLike) -> Rows:
        """Say that rows will be changed in place, before they are; returns them as ``(n,) int64``. O(rows)."""
        if not self._writable:
            raise StoreError(f"array {self.name!r} is read-only here: the fold writes, serving reads")
        found = self._checked(rows)
        if len(found):
            self._before.append((found, self._values.take(found, 0)))
        return found

    def put(self, rows: npt.ArrayLike, values: npt.ArrayLike) -> None:
        """Set rows; of a row that comes twice the last value stays."""
        found = self.touch(rows)
        self._values[found] = values

    def _checked(self, rows: npt.ArrayLike) -> Rows:
        if type(rows) is np.ndarray and rows.dtype == _INT64 and rows.ndim == 1:
            found = rows
        else:
            found = np.atleast_1d(np.asarray(rows))
            if found.size and (found.ndim != 1 or found.dtype.kind not in "iu"):
                raise StoreError(f"array {self.name!r}: rows must be whole numbers, not {found.dtype} of {found.shape}")
            found = found.reshape(-1).astype(np.int64, copy=False)
        if found.size:
            few = found.tolist() if found.size <= _FEW else (int(found.min()), int(found.max()))
            least, most = min(few), max(few)
            if least < 0 or most >= self._shape[0]:
                row = least if least < 0 else most
                raise StoreError(f"array {self.name!r} has {self._shape[0]} rows: row {row} is none of them")
        return found

    # -- reads --------------------------------------------------------------------------------------------------------
    def get(self, rows: npt.ArrayLike) -> npt.NDArray[Any]:
        """Return a copy of rows ``(n, …)``."""
        found: npt.NDArray[Any] = self._values.take(self._checked(rows), 0)
        return found

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    def __len__(self) -> int:
        return self._shape[0]

    # -- events and commits -------------------------------------------------------------------------------------------
    def begin(self) -> None:
        """Start an event. What was touched before it stands."""
        self.keep()

    def keep(self) -> None:
        if not self._before:
            return
        for rows, _ in self._before:
            if type(rows) is int:
                self._changed_rows.add(rows)
            else:
                self._changed.append(rows)  # type: ignore[arg-type]  # mypy does not narrow by type()
        self._before = []

    def undo(self) -> None:
        if not self._before:
            return
        for rows, values in reversed(self._before):
            self._values[rows] = values
        self._before = []

    def drain(self) -> bytes | None:
        self.begin()
        if not self._changed and not self._changed_rows:
            return None
        rows = np.unique(np.concatenate([*self._changed, np.array([*self._changed_rows], np.int64)]))
        self._changed, self._changed_rows = [], set()
        return pack((rows, self._values[rows]))

    def apply(self, changes: bytes | memoryview) -> None:
        self.begin()
        rows, values = unpack(changes)
        if values.dtype != self._dtype or values.shape[1:] != self._shape[1:]:
            raise StoreError(f"array {self.name!r}: changes of {values.dtype} {values.shape[1:]} are of another array")
        self._values[self._checked(rows)] = values

    def save(self, folder: Path) -> None:
        self.begin()
        save_file({"values": self._values}, folder / "values.safetensors")

    def load(self, folder: Path) -> None:
        values = load_file(folder / "values.safetensors")["values"]
        if values.shape != self._shape or values.dtype != self._dtype:
            raise StoreError(
                f"array {self.name!r}: the checkpoint has {values.dtype} {values.shape}, declared is {self._dtype} "
                f"{self._shape}: another shape is another version of the policy"
            )
        self._fresh()
        self._values[...] = values

    def state_bytes(self) -> int:
        return self._values.nbytes

    def fingerprint(self) -> dict[str, Any]:
        self.begin()
        digest = hashlib.blake2b(self._values.data, digest_size=16).hexdigest()
        return {"shape": list(self._shape), "dtype": self._dtype.str, "digest": digest}

    def contents(self) -> npt.NDArray[Any]:
        """The array itself."""
        return self.values

    def close(self) -> None:
        self._before, self._changed, self._changed_rows = [], [], set()
