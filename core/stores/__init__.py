"""Live stores: what a policy remembers, and how its memory survives, travels and stays bounded.

A policy declares ``Table``, ``Array``, ``Vectors``, ``Text``, ``Graph`` or ``Blobs`` (inert data);
:func:`open_store` makes the live store. Each life has two sides. The **fold** writes: ``begin``, writes, then ``keep``
or ``undo`` for each event; ``drain`` at a commit packs what changed. A **view** reads: it ``load`` s a checkpoint and
``apply`` s the drained changes in order. Both sides then hold equal stores (``fingerprint``). Three rules make that
true:

- *Set, never increment*: a change is a key's new value or its absence, so applying it twice does no harm.
- *Table and array writes apply at once*, with an undo log, so a fold reads what it wrote. *Vector, text, graph and blob
  writes wait for ``keep``*: reads inside the same event see the state before it.
- *Every store has a bound*: ``evict`` (deterministic) or ``refuse`` (``StoreFull``).

With ``fold_reads=False`` the fold's side keeps keys and undrained changes only; reading it, or saving it, is an error:
checkpoints (:func:`write_checkpoint`) are then written by a view. Stores are not snapshots: a view changes them between
queries, under a lock of its own, so that a query sees one cut.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from streamfold.core.errors import StoreError
from streamfold.core.stores.abc import BlobStore, Store, TableStore, TextStore
from streamfold.core.stores.array import LiveArray
from streamfold.core.stores.blobs import LiveBlobs
from streamfold.core.stores.checkpoint import CheckpointRoot, drop_old_checkpoints, read_checkpoint, write_checkpoint
from streamfold.core.stores.declare import Array, Blobs, Declaration, Graph, Table, Text, Vectors
from streamfold.core.stores.graph import LiveGraph
from streamfold.core.stores.table import LiveTable, WriteOnlyTable
from streamfold.core.stores.text.store import LiveText
from streamfold.core.stores.vectors import ExactVectors, LiveVectors, VectorIndex

__all__ = [
    "Array",
    "BlobStore",
    "Blobs",
    "CheckpointRoot",
    "Declaration",
    "Graph",
    "LiveArray",
    "LiveBlobs",
    "LiveGraph",
    "LiveTable",
    "LiveText",
    "LiveVectors",
    "Store",
    "Table",
    "TableStore",
    "Text",
    "TextStore",
    "Vectors",
    "WriteOnlyTable",
    "drop_old_checkpoints",
    "open_store",
    "read_checkpoint",
    "write_checkpoint",
]


def open_store(
    declaration: Declaration,
    *,
    folder: Path,
    side: Literal["fold", "view", "both"],
    make_index: Callable[[int, bool], VectorIndex] = ExactVectors,
) -> LiveArray | LiveTable | LiveText | LiveVectors | LiveGraph | LiveBlobs:
    """Return an empty live store for a declaration.

    Parameters
    ----------
    folder : for scratch files (blobs only); made when needed.
    side : ``"fold"`` holds no content where the declaration says ``fold_reads=False``; ``"view"`` gets drained changes
        alone; ``"both"`` holds everything and is folded into: a fold with no view beside it.
    make_index : ``(dim, normalize)`` → the index of a view's vectors. A fold that reads vectors reads exact ones: what
        it finds must not depend on when merges ran.
    """
    if isinstance(declaration, Array):
        return LiveArray(declaration, writable=side != "view")
    hold = side != "fold" or declaration.fold_reads
    if isinstance(declaration, Table):
        return LiveTable(declaration) if hold else WriteOnlyTable(declaration)
    if isinstance(declaration, Vectors):
        return LiveVectors(declaration, hold=hold, make_index=ExactVectors if side == "fold" else make_index)
    if isinstance(declaration, Text):
        return LiveText(declaration, hold=hold)
    if isinstance(declaration, Graph):
        return LiveGraph(declaration, hold=hold)
    if isinstance(declaration, Blobs):
        return LiveBlobs(declaration, folder, hold=hold)
    raise StoreError(f"{declaration!r} is no store declaration: use Table, Array, Vectors, Text, Graph or Blobs")
