"""The vector index's contract: exact and layered indexes are exchangeable behind it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from streamfold.core.stores.abc import Floats, Ids

Allow = Ids | npt.NDArray[np.bool_]
"""The ids that a search may find: as ids in any order, or as a Boolean mask indexed by id (those beyond it may not)."""


@dataclass(frozen=True, slots=True)
class VectorStats:
    """Where an index stands; rows are counts, bytes are resident."""

    rows: int
    dead: int
    growing: int
    frozen: int
    segments: tuple[int, ...]
    kind: str
    nlist: int
    nprobe: int
    imbalance: float
    recall: float | None
    probes: int
    merges: int
    compactions: int
    retrains: int
    bytes: int


class VectorIndex(Protocol):
    """Vectors by id under inner product of unit vectors (normalised on the way in unless told otherwise)."""

    dim: int

    @property
    def is_lossless(self) -> bool:
        """Whether a row's stored form depends on nothing but the row."""

    def upsert(self, ids: Ids, vectors: Floats) -> None:
        """Insert or replace: ``ids (n,) int64 ≥ 0``, ``vectors (n, d) float32``; the last of equal ids wins."""

    def delete(self, ids: Ids) -> None:
        """Delete; unknown ids are no error."""

    def search(self, queries: Floats, k: int, allow: Allow | None = None) -> tuple[Ids, Floats]:
        """``queries (m, d)`` → ids ``(m, k) int64`` (−1 where fewer exist), scores ``(m, k) float32``, best first."""

    def __len__(self) -> int: ...

    def export(self) -> tuple[Ids, Floats]:
        """Return all ids, ascending, and their rows as stored."""

    def snapshot(self, path: Path) -> None: ...

    def restore(self, path: Path, verify: bool = True) -> None:
        """Replace the content; ``verify=False``: the caller has checked the files' digests."""

    def stats(self) -> VectorStats | None:
        """Where a layered index stands; None for an exact one."""

    def wait(self) -> None:
        """Return when no background work is due."""

    def maintain(self, everything: bool = False) -> None:
        """Do what is due; ``everything``: keep no row of what was deleted."""

    def close(self) -> None: ...
