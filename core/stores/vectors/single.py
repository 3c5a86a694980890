"""One query without a filter, which services ask all the time, in as few numpy calls as can be.

A scan leaves the processor's caches full of rows, and each numpy call after it pays for that: the general way
(``layered.py``) spends .1 ms of a query in forty of them. Here lists of Python carry the few dozen candidates, and of
the buffers only what beats the segments' k-th best is looked at. The order of reading, and why it is right: growing.py.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter

import numpy as np

from streamfold.core.stores.abc import Floats, Ids
from streamfold.core.stores.vectors.layers import Layers
from streamfold.core.stores.vectors.segment import Coarse, IvfSegment, one_thread

_score = itemgetter(0)


def nearest(
    layers: Layers, query: Floats, k: int, probes: Callable[[Coarse, int, int], int]
) -> tuple[Ids, Floats] | None:
    """Ids and scores ``(1, k)``, best first, for one query ``(1, dim)``.

    None where the general way has to answer: no segments, a graph or a copy on a GPU among them, fewer than k results,
    or a swap or an update in between.
    """
    segments = layers.view.segments
    if not segments:
        return None
    one_thread()
    held = 0
    for segment in segments:
        if not isinstance(segment, IvfSegment) or segment.replica is not None:
            return None
        held += segment.live
    found: list[tuple[float, int]] = []
    coarse: Coarse | None = None
    sure = -np.inf
    for segment in segments:
        assert isinstance(segment, IvfSegment)
        if segment.coarse is not coarse:
            coarse = segment.coarse
            near, lists = coarse.assign(query, probes(coarse, k, held))
        sure = max(sure, segment.few(query, k, near, lists, found))
    found.sort(key=_score, reverse=True)
    least = found[k - 1][0] if len(found) >= k else -np.inf
    now = layers.view
    if now.segments is not segments:
        return None
    line = query[0]
    for buffer in now.buffers:
        buffer.above(line, k, least, found)
    if layers.view is not now or len(found) < k:
        return None
    found.sort(key=_score, reverse=True)
    del found[k:]
    ids = [key for _, key in found]
    if found[-1][0] < sure or len(set(ids)) < k:
        return None
    return np.array([ids], np.int64), np.array([[score for score, _ in found]], np.float32)
