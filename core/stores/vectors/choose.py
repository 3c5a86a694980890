"""Which index for how many rows, and what each costs in memory. Figures: docs/explanation/vectors.md."""

from __future__ import annotations

from streamfold.core.stores.vectors.train import lists_for

KINDS = ("exact", "ivf-fp16", "ivf-sq8", "hnsw")

_READS_PER_WRITE = 20_000
"""From here on the graph's slow inserts (half a millisecond each) are paid back by its searches."""
_SETTLED = 100_000
_MAP = 48
"""Bytes per row of the id map, its load between a quarter and a half."""


def choose_kind(rows: int, *, reads: int, writes: int) -> str:
    """Inverted lists for streams, the graph for what has settled and is read all the time."""
    if rows <= _SETTLED and reads > _READS_PER_WRITE * max(1, writes):
        return "hnsw"
    return "ivf-fp16"


def bytes_for(kind: str, rows: int, dim: int) -> int:
    """Resident bytes of an index of the kind: what rows, ids, lists or links, and the growing buffer take."""
    if kind == "exact":
        return rows * (4 * dim + 8 + 100)
    growing = min(max(rows // 128, 512), 2048) * (4 * dim + 12)
    per_row = {"ivf-fp16": 2 * dim + 8, "ivf-sq8": dim + 8, "hnsw": 2 * dim + 144}[kind]
    centroids = 0 if kind == "hnsw" else lists_for(rows) * dim * 4
    return int(rows * (per_row + 8 + _MAP) + growing + centroids)
