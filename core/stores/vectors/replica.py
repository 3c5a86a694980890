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

    def top(
        self, queries: Floats, k: int, nprobe: int, bits: np.ndarray[Any, np.dtype[np.uint8]], dead: int
    ) -> tuple[Floats, Ids] | None:
        """Scores and slots ``(m, k)``, best first, −1 where fewer are; None where the CPU has to answer."""
        fetch = min(self._rows, k + min(dead, 3 * k + 16))
        if fetch > _MOST:
            return None
        with self._lock:
            scores, slots = self._index.search(queries, fetch, params=faiss.SearchParametersIVF(nprobe=nprobe))
        alive = (slots >= 0) & ((bits[slots >> 3] >> (slots & 7).astype(np.uint8)) & 1).astype(np.bool_)
        full = slots[:, -1] >= 0  # there were more than were fetched
        if (full & (alive.sum(axis=1) < min(k, fetch))).any():
            return None
        order = np.argsort(~alive, axis=1, kind="stable")[:, :k]
        slots = np.where(np.take_along_axis(alive, order, 1), np.take_along_axis(slots, order, 1), -1)
        scores = np.take_along_axis(scores, order, 1)
        if missing := k - slots.shape[1]:
            slots = np.pad(slots, ((0, 0), (0, missing)), constant_values=-1)
            scores = np.pad(scores, ((0, 0), (0, missing)), constant_values=-np.inf)
        return np.ascontiguousarray(scores, np.float32), slots
