"""Centroids for the inverted lists: k-means in two levels, a step at a time.

Plain k-means over n rows and L lists costs n · L per iteration: 5 s of CPU at 50,000 rows and 1,264 lists, and eight
times that at four times the rows. Here √L coarse cells are found first, each is divided by a k-means of its own,
and three plain iterations over everything smooth the borders: about a quarter of the work, with lists as even
(docs/explanation/performance.md). Every function that takes long is a generator, so that merges go on in between.
"""

from __future__ import annotations

from collections.abc import Generator

import faiss
import numpy as np

from streamfold.core.stores.abc import Floats
from streamfold.core.stores.vectors.segment import Coarse, one_thread

ROWS_PER_LIST = 24
"""Rows of the training sample per list."""
_SMOOTHING = 3


def lists_for(rows: int) -> int:
    """4 √rows: 2.5 √rows at the next training, and in between a search at recall .95 costs about the same."""
    return max(16, int(4 * rows**0.5))


def train(
    sample: Floats, nlist: int, *, kind: str, trained_rows: int, seed: int, former: Coarse | None = None
) -> Generator[None, None, Coarse]:
    """Find ``nlist`` unit centroids of the sample ``(n, dim) float32``; O(n · (√nlist + iterations · nlist) · dim)."""
    one_thread()
    nlist = min(nlist, len(sample))
    cells = max(1, round(nlist**0.5))
    near = _kmeans(sample[: cells * 64], cells, 8, seed)
    _, home = near.search(sample, 1)
    yield
    counts = np.bincount(home[:, 0], minlength=cells)
    parts = []
    for cell, share in enumerate(_shares(counts, nlist)):
        if share:
            rows = sample[home[:, 0] == cell]
            parts.append(rows if share == len(rows) else _centroids(_kmeans(rows, share, 6, seed)))
            yield
    centroids = np.concatenate(parts)
    for _ in range(_SMOOTHING if len(sample) > len(centroids) else 0):
        centroids = _centroids(_kmeans(sample, len(centroids), 1, seed, centroids))
        yield
    return Coarse(centroids, kind, sample, trained_rows, former)


def _shares(counts: np.ndarray[tuple[int], np.dtype[np.int64]], total: int) -> list[int]:
    """Divide ``total`` in proportion to counts, none above its count, each filled cell at least one."""
    filled = counts > 0
    shares = np.where(filled, np.maximum(1, counts * total // max(1, counts.sum())), 0)
    while (missing := total - int(shares.sum())) != 0:
        room = counts - shares if missing > 0 else np.where(shares > 1, shares, 0)
        order = np.argsort(-room, kind="stable")[: abs(missing)]
        order = order[room[order] > 0]
        if not len(order):
            break
        shares[order] += 1 if missing > 0 else -1
    return [int(share) for share in shares]


def _kmeans(rows: Floats, k: int, iterations: int, seed: int, start: Floats | None = None) -> faiss.IndexFlatIP:
    rows = np.ascontiguousarray(rows)
    means = faiss.Kmeans(
        rows.shape[1], min(k, len(rows)), niter=iterations, seed=seed, spherical=True,
        min_points_per_centroid=1, max_points_per_centroid=1 << 30,
    )  # fmt: skip
    means.train(rows, init_centroids=start)
    return means.index


def _centroids(index: faiss.IndexFlatIP) -> Floats:
    centroids: Floats = index.reconstruct_n(0, index.ntotal)
    return centroids
