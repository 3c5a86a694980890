"""Centroids for the inverted lists: k-means in two levels, then lists of like size, a step at a time.

Plain k-means over n rows and L lists costs n · L per iteration: 5 s of CPU at 50,000 rows and 1,264 lists, and eight
times that at four times the rows. Here √L coarse cells are found first, each is divided by a k-means of its own, and
three iterations go over everything. After all but the last of these the lists that have become too large are divided,
and the smallest given up for them: a query reads a large list more often than a small one, so that even lists mean
fewer rows for the same recall (docs/explanation/vectors.md). Every function that takes long is a generator, so that
merges go on in between.
"""

from __future__ import annotations

from collections.abc import Generator

import faiss
import numpy as np

from streamfold.core.stores.abc import Floats
from streamfold.core.stores.vectors.segment import Coarse, one_thread

ROWS_PER_LIST = 32
"""Rows of the training sample per list."""
_PASSES = 3
_BLOCK = 16_384
_LARGE, _SPLIT_TO = 1.5, 1.1
"""A list with more than 1.5 times the mean is divided into parts of about 1.1 times the mean."""


def lists_for(rows: int) -> int:
    """5 √rows, 3.2 √rows at the next training: more make a query cheaper, and a row dearer to assign."""
    return max(16, int(5 * rows**0.5))


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
    for left in reversed(range(_PASSES if len(sample) > len(centroids) else 0)):
        centroids = yield from _improved(sample, centroids, seed, split=left > 0)
    return Coarse(centroids, kind, sample, trained_rows, former)


def _improved(sample: Floats, centroids: Floats, seed: int, *, split: bool) -> Generator[None, None, Floats]:
    """One iteration over the sample; ``split``: divide the lists that are too large, in place of the smallest."""
    total, dim = centroids.shape
    index = faiss.IndexFlatIP(dim)
    index.add(np.ascontiguousarray(centroids))
    home = np.empty(len(sample), np.int64)
    sums = np.zeros((total, dim), np.float32)
    for start in range(0, len(sample), _BLOCK):
        block = np.ascontiguousarray(sample[start : start + _BLOCK])
        near = index.search(block, 1)[1][:, 0]
        home[start : start + _BLOCK] = near
        order = np.argsort(near, kind="stable")
        lists, first = np.unique(near[order], return_index=True)
        sums[lists] += np.add.reduceat(block[order], first)
        yield
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    better: Floats = np.divide(sums, lengths, out=centroids.copy(), where=lengths > 0)
    counts = np.bincount(home, minlength=total)
    mean = len(sample) / total
    large = np.flatnonzero(counts > _LARGE * mean)
    if not split or not len(large):
        return better
    shares = np.maximum(2, np.rint(counts[large] / (_SPLIT_TO * mean)).astype(np.int64))
    smallest = np.argsort(counts, kind="stable")[: int((shares - 1).sum())]
    kept = np.ones(total, np.bool_)
    kept[smallest] = kept[large] = False
    order = np.argsort(home, kind="stable")
    first = np.searchsorted(home[order], np.arange(total + 1))
    parts = [better[kept]]
    for at, share in zip(large.tolist(), shares.tolist(), strict=True):
        rows = sample[order[first[at] : first[at + 1]]]
        parts.append(_centroids(_kmeans(rows, share, 6, seed)))
        yield
    return np.concatenate(parts)[:total]


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


def _kmeans(rows: Floats, k: int, iterations: int, seed: int) -> faiss.IndexFlatIP:
    rows = np.ascontiguousarray(rows)
    means = faiss.Kmeans(
        rows.shape[1], min(k, len(rows)), niter=iterations, seed=seed, spherical=True,
        min_points_per_centroid=1, max_points_per_centroid=1 << 30,
    )  # fmt: skip
    means.train(rows)
    return means.index


def _centroids(index: faiss.IndexFlatIP) -> Floats:
    centroids: Floats = index.reconstruct_n(0, index.ntotal)
    return centroids
