"""The stream: overlapping clusters (or real passages), what is done with them, and the exact answers.

On well separated clusters every index looks perfect. Here 200 clusters share a decaying spectrum, each with its axes in
another order, and spread 2.5 times as wide as their centres lie apart: neighbours come from many clusters.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import faiss
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

DIM = 384
K = 10
QUERIES = 1_000  # measured; as many more come before, so that what tunes itself has seen queries
FILTER_QUERIES = 200
DRIFT_QUERIES = 300
UPDATES = 100
PERCENTS = (1, 10, 50)
_BLOCK = 50_000
_WIKI = Path(__file__).resolve().parents[4] / "shared/data/2wiki101/full/corpus.jsonl"


class Source(Protocol):
    """Where vectors come from."""

    def sample(self, count: int, rng: np.random.Generator, *, new: bool = False) -> Floats:
        """Return ``(count, d)`` unit rows; ``new`` ones are of clusters that the others are not of."""


class Clusters:
    """A mixture of anisotropic Gaussians on the sphere; the seed fixes centres, axes and weights."""

    def __init__(self, seed: int, *, clusters: int = 200, decay: float = 0.6, shuffle: float = 0.5) -> None:
        rng = np.random.default_rng(seed)
        scale = np.arange(1, DIM + 1) ** -decay
        self._scale = (scale / np.linalg.norm(scale)).astype(np.float32)
        centres = rng.standard_normal((2, clusters, DIM)) * self._scale  # [1]: the new ones
        self._centres = centres.astype(np.float32)
        noise = np.exp(shuffle * rng.standard_normal((2, clusters, DIM)))
        self._axes = np.argsort(np.arange(DIM) * noise, axis=2)
        turns = [np.linalg.qr(rng.standard_normal((DIM, DIM)))[0] for _ in range(2)]
        self._turns = np.stack(turns).astype(np.float32)  # new clusters lie in another subspace, too
        self._weights = rng.dirichlet(np.full(clusters, 2.0))

    def sample(self, count: int, rng: np.random.Generator, *, new: bool = False, spread: float = 2.5) -> Floats:
        rows = np.empty((count, DIM), np.float32)
        for start in range(0, count, _BLOCK):
            part = rows[start : start + _BLOCK]
            label = rng.choice(len(self._weights), len(part), p=self._weights)
            noise = rng.standard_normal(part.shape, np.float32) * self._scale
            points = self._centres[int(new), label]
            points += spread * np.take_along_axis(noise, self._axes[int(new), label], 1)
            part[:] = unit(points) @ self._turns[int(new)]
        return rows


class Passages:
    """MiniLM vectors of real passages, each many times, with noise: there are fewer passages than rows.

    A row is a passage plus .35 times the difference of two others, scaled to length one: noise that has the
    spectrum of the real vectors. The fifth that lies furthest along the first principal axis counts as new.
    """

    def __init__(self, folder: Path) -> None:
        file = folder / "minilm.npy"
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            np.save(file, _encoded(_WIKI))
        rows = np.load(file)
        axis = np.linalg.svd(rows - rows.mean(0), full_matrices=False)[2][0]
        order = np.argsort(rows @ axis)
        cut = len(rows) * 4 // 5
        self._parts = (rows[order[:cut]], rows[order[cut:]])
        self.count = len(rows)

    def sample(self, count: int, rng: np.random.Generator, *, new: bool = False, noise: float = 0.35) -> Floats:
        base = self._parts[int(new)]
        rows = np.empty((count, DIM), np.float32)
        for start in range(0, count, _BLOCK):
            part = rows[start : start + _BLOCK]
            one, plus, minus = rng.integers(0, len(base), (3, len(part)))
            part[:] = unit(base[one] + np.float32(noise) * (base[plus] - base[minus]))
        return rows


def _encoded(corpus: Path) -> Floats:
    from streamfold.plugins.minilm import MiniLM
    from streamfold.plugins.sentences import Sentences

    documents = [json.loads(line) for line in corpus.read_text().splitlines()]
    chunks = [c.text for d in documents for c in Sentences().split(f"{d['title']}\n\n{d['text']}")]
    return np.asarray(MiniLM().encode(chunks), np.float32)


def unit(rows: Floats) -> Floats:
    """Return the rows scaled to length one."""
    scaled: Floats = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return scaled


def nearest(queries: Floats, rows: Floats, ids: Ids, k: int = K) -> Ids:
    """Return the ids of the exact best ``k`` by inner product."""
    found: Ids = ids[faiss.knn(queries, rows, k, metric=faiss.METRIC_INNER_PRODUCT)[1]]
    return found


def recall(found: Ids, truth: Ids) -> float:
    """Return which part of the true neighbours was found."""
    hits = [len(np.intersect1d(a, b)) for a, b in zip(found, truth, strict=True)]
    return float(np.sum(hits) / truth.size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """What each engine goes through. Ids ``0 … rows − 1`` come first; their vectors are the first of ``vectors``.

    Then come the vectors of the ids that are inserted again, of those that are updated, and of ``extra`` new ids.
    """

    rows: int
    vectors: Floats
    deleted: Ids
    updated: Ids
    queries: Floats
    truth: Ids
    allowed: tuple[Ids, ...]
    allowed_truth: tuple[Ids, ...]
    drift: Floats
    drift_queries: Floats
    drift_truth: Ids

    @property
    def again(self) -> Ids:
        """The deleted ids that are inserted again, with new vectors."""
        return self.deleted[: self.rows // 10]

    @property
    def extra(self) -> Floats:
        """Vectors of new ids, for the mixed run."""
        return self.vectors[self.rows + len(self.again) + len(self.updated) :]

    def live(self) -> tuple[Ids, Floats]:
        """Return the ids and vectors at the end of the stream."""
        at = np.arange(self.rows)
        at[self.again] = self.rows + np.arange(len(self.again))
        at[self.updated] = self.rows + len(self.again) + np.arange(len(self.updated))
        gone = np.zeros(self.rows, bool)
        gone[self.deleted[len(self.again) :]] = True
        ids = np.flatnonzero(~gone)
        return ids, self.vectors[at[ids]]

    def save(self, file: Path) -> None:
        """Write one file."""
        arrays = {name: getattr(self, name) for name in self.__slots__ if not name.startswith("allowed")}
        for i in range(len(self.allowed)):
            arrays |= {f"allowed{i}": self.allowed[i], f"allowed_truth{i}": self.allowed_truth[i]}
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, **arrays)

    @classmethod
    def load(cls, file: Path) -> Stream:
        """Read what :meth:`save` wrote."""
        with np.load(file) as arrays:
            plain = {name: arrays[name] for name in cls.__slots__ if not name.startswith("allowed")}
            pairs = [(arrays[f"allowed{i}"], arrays[f"allowed_truth{i}"]) for i in range(len(PERCENTS))]
        allowed, allowed_truth = zip(*pairs, strict=True)
        return cls(**plain | {"rows": int(plain["rows"])}, allowed=allowed, allowed_truth=allowed_truth)


def make(source: Source, rows: int, extra: int, seed: int) -> Stream:
    """Draw a stream and compute its exact answers."""
    rng = np.random.default_rng([seed, rows])
    deleted = rng.choice(rows, rows // 5, replace=False)
    updated = rng.choice(np.setdiff1d(np.arange(rows), deleted), min(UPDATES, rows // 10), replace=False)
    vectors = source.sample(rows + rows // 10 + len(updated) + extra, rng)
    queries = source.sample(2 * QUERIES, rng)
    drift = source.sample(rows // 5, rng, new=True)
    drift_queries = source.sample(DRIFT_QUERIES, rng, new=True)
    none = np.empty((0, K), np.int64)
    bare = Stream(
        rows=rows, vectors=vectors, deleted=deleted, updated=updated, queries=queries, truth=none, allowed=(),
        allowed_truth=(), drift=drift, drift_queries=drift_queries, drift_truth=none,
    )  # fmt: skip
    ids, live = bare.live()
    chosen = [np.sort(rng.choice(len(ids), len(ids) * percent // 100, replace=False)) for percent in PERCENTS]
    values = {name: getattr(bare, name) for name in bare.__slots__}
    values["truth"] = nearest(queries[:QUERIES], live, ids)
    values["allowed"] = tuple(ids[part] for part in chosen)
    values["allowed_truth"] = tuple(nearest(queries[:FILTER_QUERIES], live[part], ids[part]) for part in chosen)
    new_ids = np.arange(rows, rows + len(drift))
    values["drift_truth"] = nearest(drift_queries, np.concatenate([live, drift]), np.concatenate([ids, new_ids]))
    return Stream(**values)
