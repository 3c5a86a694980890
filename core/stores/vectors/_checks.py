"""What may come in: ids, vectors, filters."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from streamfold.core.errors import StoreError
from streamfold.core.stores.abc import Floats, Ids


def checked_ids(ids: npt.ArrayLike) -> Ids:
    """Return ``(n,) int64`` ids ≥ 0; raises ``StoreError``."""
    array = np.asarray(ids)
    if array.size == 0:
        return np.empty(0, np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise StoreError(f"ids must be a list of whole numbers, not {array.dtype} of shape {array.shape}")
    if array.dtype == np.uint64 and array.max() >= 1 << 63:
        raise StoreError("ids must fit int64")
    array = array.astype(np.int64, copy=False)
    if (array[0] if len(array) == 1 else array.min()) < 0:
        raise StoreError(f"ids must not be negative: {int(array.min())}")
    return array


def checked_vectors(vectors: npt.ArrayLike, dim: int | None, *, normalize: bool) -> Floats:
    """Return ``(n, dim) float32``, C-contiguous; raises ``StoreError`` for a wrong shape, NaN, infinity or a zero row.

    The rows are not yet normalised; ``normalize`` only says whether a zero row is an error.
    """
    return _checked(vectors, dim, normalize)[0]


def unit_vectors(vectors: npt.ArrayLike, dim: int, *, normalize: bool) -> Floats:
    """Return checked rows ``(n, dim) float32``, scaled to length one if ``normalize``. Raises ``StoreError``."""
    rows, squares = _checked(vectors, dim, normalize)
    if not normalize:
        return rows
    # Square roots and quotients are rounded correctly, alone and in arrays: a row is the same in every batch.
    scale = _ONE / np.sqrt(squares)
    result: Floats = rows * (scale if len(rows) == 1 else scale[:, None])
    return result


def checked_filter(allow: npt.ArrayLike) -> tuple[npt.NDArray[np.bool_] | None, Ids | None]:
    """A filter as a Boolean mask indexed by id, or as ids. Raises ``StoreError``."""
    array = np.asarray(allow)
    if array.dtype == np.bool_:
        if array.ndim != 1:
            raise StoreError(f"a filter mask has one dimension, indexed by id, not shape {array.shape}")
        return array, None
    return None, checked_ids(array)


def checked_k(k: int) -> int:
    if k < 1:
        raise StoreError(f"k must be at least 1, not {k}")
    return int(k)


_ONE = np.float32(1)


@np.errstate(over="ignore")
def _checked(vectors: npt.ArrayLike, dim: int | None, normalize: bool) -> tuple[Floats, Any]:
    """Rows ``(n, dim)`` and their sums of squares: ``(n,)``, a scalar of one row."""
    rows = np.ascontiguousarray(vectors, dtype=np.float32)
    if rows.ndim != 2 or (dim is not None and rows.shape[1] != dim) or rows.shape[1] == 0:
        raise StoreError(f"vectors must have shape (n, {dim or 'dim'}), not {rows.shape}")
    # One pass: a NaN or infinite member shows in the row's sum of squares (so does an overflow).
    squares: Any
    if len(rows) == 1:  # a request's or an event's one row: numpy's reductions cost more than the work
        row = rows[0]
        squares = row.dot(row)  # what vecdot calls for each row
        fine = squares < np.inf and (squares > 0 or not normalize)
    else:
        squares = np.vecdot(rows, rows)
        fine = np.isfinite(squares).all() and (not normalize or squares.all())
    if not fine:
        squares = np.atleast_1d(squares)
        bad = np.flatnonzero(~np.isfinite(squares))
        if len(bad):
            raise StoreError(f"vector {int(bad[0])} has a NaN or infinite length")
        raise StoreError(f"vector {int(np.flatnonzero(squares == 0)[0])} is zero: it has no direction")
    return rows, squares
