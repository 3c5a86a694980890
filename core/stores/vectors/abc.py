"""The vector index's contract: exact and layered indexes are exchangeable behind it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from streamfold.core.stores.abc import Floats, Ids


class VectorIndex(Protocol):
    """Vectors by id under inner product of unit vectors (normalised on the way in unless told otherwise)."""

    dim: int

    def upsert(self, ids: Ids, vectors: Floats) -> None:
        """Insert or replace: ``ids (n,) int64 ≥ 0``, ``vectors (n, d) float32``; the last of equal ids wins."""

    def delete(self, ids: Ids) -> None:
        """Delete; unknown ids are no error."""

    def search(self, queries: Floats, k: int, allow: Ids | None = None) -> tuple[Ids, Floats]:
        """``queries (m, d)`` → ids ``(m, k) int64`` (−1 where fewer exist), scores ``(m, k) float32``, best first."""

    def __len__(self) -> int: ...

    def snapshot(self, path: Path) -> None: ...

    def restore(self, path: Path) -> None: ...
