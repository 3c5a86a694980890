"""The store around a vector index: staging, changes, bound, checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamfold.core.codec import pack, unpack
from streamfold.core.errors import StoreError
from streamfold.core.stores._staged import Staged, whole_ids
from streamfold.core.stores.abc import Floats, Ids
from streamfold.core.stores.declare import Vectors
from streamfold.core.stores.vectors._checks import checked_vectors
from streamfold.core.stores.vectors.abc import Allow, VectorIndex, VectorStats
from streamfold.core.stores.vectors.exact import ExactVectors


class LiveVectors(Staged[int, Floats]):
    """The live store of :class:`Vectors`. Reads inside an event see the state before the event.

    Parameters
    ----------
    hold : False on the fold's side of ``fold_reads=False``: only ids and undrained changes are kept.
    make_index : ``(dim, normalize)`` → an empty index.
    """

    def __init__(
        self,
        declaration: Vectors,
        *,
        hold: bool = True,
        make_index: Callable[[int, bool], VectorIndex] = ExactVectors,
    ) -> None:
        self._declared_dim = declaration.dim
        self._normalize = declaration.normalize
        self._make_index = make_index
        super().__init__(declaration.name, bound=declaration.max_rows, on_full=declaration.on_full, hold=hold)

    def _reset(self) -> None:
        super()._reset()
        self._dim = self._declared_dim
        self._index: VectorIndex | None = None

    def close(self) -> None:
        if self._index is not None:
            self._index.close()
        super().close()

    def stats(self) -> VectorStats | None:
        """Where a layered index stands; None for an exact or an empty one."""
        return None if self._index is None else self._index.stats()

    def purge(self) -> None:
        """Give up the rows that deletes have left in segments, so that no file has them."""
        if self._index is not None:
            self._index.wait()
            self._index.maintain(everything=True)

    @property
    def dim(self) -> int | None:
        """The rows' length; None until the first row where the declaration leaves it open."""
        if self._dim is None:
            for row in self._staged.values():
                if row is not None:
                    return len(row)
        return self._dim

    # -- writes -------------------------------------------------------------------------------------------------------
    def upsert(self, ids: Sequence[int] | Ids, vectors: npt.ArrayLike) -> None:
        """Insert or replace; visible after ``keep``. Raises ``StoreError`` (dimension, NaN, zero) or ``StoreFull``."""
        keys = whole_ids(self.name, ids)
        if not keys:
            return
        rows = checked_vectors(vectors, self.dim, normalize=self._normalize)
        if len(keys) != len(rows):
            raise StoreError(f"store {self.name!r}: {len(keys)} ids for {len(rows)} vectors")
        if np.shares_memory(rows, np.asarray(vectors)):
            rows = rows.copy()  # staged rows must not change with the caller's array
        for key, row in zip(keys, rows, strict=True):
            self._stage_put(key, row)

    def delete(self, ids: Sequence[int] | Ids) -> None:
        """Delete; unknown ids are no error."""
        for key in whole_ids(self.name, ids):
            self._stage_delete(key)

    # -- reads --------------------------------------------------------------------------------------------------------
    def search(self, queries: npt.ArrayLike, k: int, allow: Allow | None = None) -> tuple[Ids, Floats]:
        """``queries (m, d)`` → ids and scores ``(m, k)``, best first, −1 where fewer exist."""
        self._readable()
        if self._index is not None:
            return self._index.search(np.asarray(queries, np.float32), k, allow)
        if k < 1:
            raise StoreError(f"k must be at least 1, not {k}")
        shape = (len(checked_vectors(queries, self._dim, normalize=self._normalize)), k)
        return np.full(shape, -1, np.int64), np.full(shape, -np.inf, np.float32)

    def contents(self) -> dict[int, Floats | None]:
        """Rows by id; without their values where the index keeps codes alone."""
        self._readable()
        if self._index is None or not len(self._index):
            return {}
        ids, rows = self._index.export()
        return dict(zip(ids.tolist(), rows if self._index.is_lossless else [None] * len(ids), strict=True))

    # -- for Staged ---------------------------------------------------------------------------------------------------
    def _size(self, value: Floats) -> int:
        return value.nbytes

    def _note(self, puts: dict[int, Floats], deletes: Any) -> None:
        super()._note(puts, deletes)
        if self._dim is None and puts:
            self._dim = len(next(iter(puts.values())))

    def _pack_values(self, values: list[Floats]) -> Any:
        return np.stack(values) if values else []

    def _write(self, puts: dict[int, Floats], deletes: list[int]) -> None:
        if puts:
            if self._index is None:
                assert self._dim is not None
                self._index = self._make_index(self._dim, self._normalize)
            self._index.upsert(np.fromiter(puts, np.int64, len(puts)), np.stack(list(puts.values())))
        if deletes and self._index is not None:
            self._index.delete(np.array(deletes, np.int64))

    def _save(self, folder: Path) -> None:
        dim = None if self._index is None else self._dim
        (folder / "vectors.msgpack").write_bytes(pack(dim))
        if self._index is not None:
            self._index.wait()  # merged segments are linked by the next checkpoint; waiting rows are written again
            self._index.snapshot(folder / "index")

    def _load(self, folder: Path) -> None:
        dim = unpack((folder / "vectors.msgpack").read_bytes(), int | None)
        if dim is None:
            return
        if self._declared_dim not in (None, dim):
            raise StoreError(f"store {self.name!r}: the checkpoint has dim {dim}, declared is {self._declared_dim}")
        self._dim = dim
        if self._hold:
            self._index = self._make_index(dim, self._normalize)
            self._index.restore(folder / "index", verify=False)  # the checkpoint's digests were checked

    def _fingerprint(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        if self._index is not None and len(self._index):
            ids, rows = self._index.export()
            digest.update(np.ascontiguousarray(ids).data)
            if self._index.is_lossless:
                digest.update(np.ascontiguousarray(rows).data)
        return digest.hexdigest()
