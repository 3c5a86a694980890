"""What a policy writes in its class body: the stores that it remembers with, their keys, values and bounds.

A declaration is inert data; :func:`streamfold.core.stores.open_store` makes the live store. Every store has a bound
and says what happens there: ``evict`` (deterministic) or ``refuse`` (``StoreFull``: back-pressure before acceptance).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

OnFull = Literal["evict", "refuse"]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows by key.

    Parameters
    ----------
    name : unique within the policy.
    key : ``str`` or ``int``.
    value : any msgspec type: ``float``, ``int``, ``str``, ``bytes``, tuples, ``msgspec.Struct``. ``float`` and ``int``
        tables can be asked for their ``top`` rows.
    max_rows : the bound.
    on_full : ``"evict"`` removes the row with the lowest value (numeric tables; ties by key) or else the row
        written longest ago; ``"refuse"`` raises ``StoreFull``.
    fold_reads : False when the fold only writes: the folding process then holds no copy.
    """

    name: str
    key: type = str
    value: Any = float
    max_rows: int = 1_000_000
    on_full: OnFull = "evict"
    fold_reads: bool = True


@dataclass(frozen=True, slots=True)
class Vectors:
    """Rows of ``dim`` float32 by int64 id, searched by inner product of unit vectors. ``dim=None``: the first row's."""

    name: str
    dim: int | None = None
    max_rows: int = 2_000_000
    on_full: OnFull = "refuse"
    normalize: bool = True
    fold_reads: bool = False


@dataclass(frozen=True, slots=True)
class Text:
    """Texts by int64 id, searched by BM25. ``weights``: field → how often each of its tokens counts."""

    name: str
    weights: Mapping[str, int] = field(default_factory=lambda: {"title": 3, "text": 1})
    k1: float = 1.2
    b: float = 0.75
    max_rows: int = 2_000_000
    on_full: OnFull = "refuse"
    fold_reads: bool = False


@dataclass(frozen=True, slots=True)
class Blobs:
    """Bytes on disk by str key (texts, raw rows), fetched at query time."""

    name: str
    max_bytes: int = 1 << 36
    on_full: OnFull = "refuse"
    fold_reads: bool = False


@dataclass(frozen=True, slots=True)
class Graph:
    """A weighted graph between ints and strs; a source's edges are put and deleted as a whole.

    A node is there as long as an edge touches it: deleting a document's edges removes the entities that it alone named.
    """

    name: str
    max_bytes: int = 1 << 34
    on_full: OnFull = "refuse"
    fold_reads: bool = False


@dataclass(frozen=True, slots=True)
class Array:
    """Numbers by row, changed in place. ``shape[0]`` rows are the bound; ``fill``: what a new array holds."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    fill: float = 0.0


Declaration = Array | Table | Vectors | Text | Blobs | Graph
