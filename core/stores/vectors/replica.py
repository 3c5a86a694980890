"""A segment's copy on a GPU, for reading. The CPU segment stays the master and takes all writes.

FAISS on a GPU has no ``remove_ids`` and ignores a selector without saying so: the replica is asked for more rows than
wanted, and those whose live bit is cleared are dropped afterwards. Where too few are left, or a filter is given, the
CPU answers.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np

from streamfold.core.errors import StoreError
from streamfold.core.stores.abc import Floats, Ids

MakeReplica = Callable[[Any], Any]
"""An IVF index → an index with ``search(queries, k, params=…)`` over the same rows, selectors ignored."""

_MOST = 2048
"""Results per query that FAISS's GPU kernels can return."""
_BIT = np.left_shift(1, np.arange(8)).astype(np.uint8)
Bits = np.ndarray[Any, np.dtype[np.uint8]]


def spare(k: int, dead: int, rows: int) -> int:
    """How many results to fetch for k live ones, when so many of the rows are dead."""
    return min(rows, k + 6 + 3 * k * dead // max(1, rows))


def without_dead(scores: Floats, slots: Ids, bits: Bits, k: int) -> tuple[Floats, Ids] | None:
    """The best k live results ``(m, k)`` of more, best first, −1 and −∞ where fewer exist.

    None where too many were dead: then there may be live ones that were not fetched.
    """
    if len(slots) == 1 and slots[0, -1] >= 0:  # the usual request, without the work of the general case
        line = slots[0]
        kept = np.flatnonzero(bits[line >> 3] & _BIT[line & 7])[:k]
        return (scores[:, kept], slots[:, kept]) if len(kept) == k else None
    alive = ((bits[slots >> 3] >> (slots & 7).astype(np.uint8)) & 1).astype(np.bool_) & (slots >= 0)
    count = alive.sum(axis=1)
    if ((slots[:, -1] >= 0) & (count < k)).any():
        return None
    order = np.argsort(~alive, axis=1, kind="stable")[:, :k]
    slots, scores = np.take_along_axis(slots, order, 1), np.take_along_axis(scores, order, 1)
    if (missing := k - slots.shape[1]) > 0:
        slots = np.pad(slots, ((0, 0), (0, missing)), constant_values=-1)
        scores = np.pad(scores, ((0, 0), (0, missing)), constant_values=-np.inf)
    gone = np.arange(k) >= count[:, None]
    slots[gone], scores[gone] = -1, -np.inf
    return scores, slots


def on_gpu() -> MakeReplica:
    """What copies an index to the first GPU. Raises ``StoreError`` where FAISS sees none."""
    count = getattr(faiss, "get_num_gpus", lambda: 0)()
    if not count:
        raise StoreError(
            "vectors.gpu: FAISS sees no GPU; install a faiss-gpu build in place of faiss-cpu, or turn it off"
        )
    resources = faiss.StandardGpuResources()

    def copy(index: Any) -> Any:
        return faiss.index_cpu_to_gpu(resources, 0, index)

    return copy


class Replica:
    """The copy of one segment's index.

    Parameters
    ----------
    index : the segment's.
    make : copies it, to a GPU as a rule.
    """

    def __init__(self, index: Any, make: MakeReplica) -> None:
        self._index = make(index)
        self._rows = int(index.ntotal)
        self._lock = threading.Lock()  # one stream of kernels: FAISS's GPU indexes are not for several threads

    def top(self, queries: Floats, k: int, nprobe: int, bits: Bits, dead: int) -> tuple[Floats, Ids] | None:
        """Scores and slots ``(m, k)``, best first, −1 where fewer are; None where the CPU has to answer."""
        fetch = spare(k, dead, self._rows)
        if fetch > _MOST:
            return None
        with self._lock:
            scores, slots = self._index.search(queries, fetch, params=faiss.SearchParametersIVF(nprobe=nprobe))
        return without_dead(scores, slots, bits, k)
