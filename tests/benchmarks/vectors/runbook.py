"""Recall step by step while a collection changes, in the shape of the streaming track of Big-ANN (NeurIPS 2023).

A runbook is a list of steps: insert, delete, replace, search. Each search is answered exactly over the rows that live
at that step, too; the lowest recall of all steps is what counts, because an average hides the bad hour.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from vectors import data
from vectors.engines import Engine

_QUERIES = 200
_PARTS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Write the ids' vectors, delete ids, then search; any of the three may be empty."""

    ids: data.Ids
    vectors: data.Floats
    deleted: data.Ids
    queries: data.Floats


_NO_IDS = np.empty(0, np.int64)
_NO_ROWS = np.empty((0, data.DIM), np.float32)


def step(
    ids: data.Ids = _NO_IDS,
    vectors: data.Floats = _NO_ROWS,
    deleted: data.Ids = _NO_IDS,
    queries: data.Floats = _NO_ROWS,
) -> Step:
    """Return a step."""
    return Step(ids=ids, vectors=vectors, deleted=deleted, queries=queries)


def drifting(rows: int, rng: np.random.Generator) -> Iterator[tuple[data.Floats, data.Floats]]:
    """Yield parts of rows and queries whose mixture goes from the old clusters to the new ones."""
    source = data.Clusters(int(rng.integers(1 << 30)))
    for part in range(_PARTS):
        share = part / (_PARTS - 1)
        pair = []
        for count in (rows // _PARTS, _QUERIES):
            new = int(rng.binomial(count, share))
            both = source.sample(count - new, rng), source.sample(new, rng, new=True)
            pair.append(rng.permutation(np.concatenate(both)))
        yield pair[0], pair[1]


def sliding_window(rows: int, rng: np.random.Generator) -> Iterator[Step]:
    """Insert part after part; from the middle on, delete the oldest."""
    size = rows // _PARTS
    for part, (vectors, queries) in enumerate(drifting(rows, rng)):
        oldest = np.arange(size) + (part - _PARTS // 2) * size
        yield step(np.arange(size) + part * size, vectors, oldest[oldest >= 0], queries)


def expiry(rows: int, rng: np.random.Generator) -> Iterator[Step]:
    """Give every row a life of 1, 4, or all of the steps (each a third of the rows), and delete it then."""
    size = rows // _PARTS
    due: dict[int, list[data.Ids]] = {}
    for part, (vectors, queries) in enumerate(drifting(rows, rng)):
        ids = np.arange(size) + part * size
        life = rng.choice([1, 4, _PARTS], size)
        for length in (1, 4):
            due.setdefault(part + length, []).append(ids[life == length])
        yield step(ids, vectors, np.concatenate([_NO_IDS, *due.pop(part, [])]), queries)


def replacement(rows: int, rng: np.random.Generator) -> Iterator[Step]:
    """Insert the first half; then write one part of the ids after the other again, with vectors that have drifted."""
    size = rows // _PARTS
    for part, (vectors, queries) in enumerate(drifting(rows, rng)):
        yield step(np.arange(size) + part % (_PARTS // 2) * size, vectors, queries=queries)


def clustered(rows: int, rng: np.random.Generator) -> Iterator[Step]:
    """Insert cluster by cluster, and delete whole clusters, as in the track's clustered runbook."""
    source = data.Clusters(int(rng.integers(1 << 30)))
    vectors, queries = source.sample(rows, rng), source.sample(_QUERIES, rng)
    kmeans = faiss.Kmeans(data.DIM, _PARTS, niter=8, seed=1, spherical=True)
    kmeans.train(vectors[: 256 * _PARTS])
    label = kmeans.index.search(vectors, 1)[1][:, 0]
    for part in range(_PARTS):
        ids = np.flatnonzero(label == part)
        gone = np.flatnonzero(label == part - 12) if part % 3 else _NO_IDS
        yield step(ids, vectors[ids], gone, queries)


RUNBOOKS = {f.__name__: f for f in (sliding_window, expiry, replacement, clustered)}


def follow(make: type[Engine], rows: int, seed: int) -> dict[str, Any]:
    """Run every runbook on a fresh engine; what does not tune itself gets the setting that its first search needs."""
    faiss.omp_set_num_threads(1)
    found = {}
    for i, (name, steps) in enumerate(RUNBOOKS.items()):
        found[name] = _follow(make(rows, 2 * rows), steps(rows, np.random.default_rng([seed, i])), 2 * rows)
    return found


def _follow(engine: Engine, steps: Iterator[Step], capacity: int) -> dict[str, Any]:
    held = np.zeros((capacity, data.DIM), np.float32)
    live = np.zeros(capacity, bool)
    recalls: list[float] = []
    chosen = False
    for step in steps:
        if len(step.ids):
            write = engine.bulk if not live.any() else engine.update if live[step.ids].any() else engine.add
            write(step.ids, step.vectors)
        if len(step.deleted):
            engine.delete(step.deleted)
        engine.maintain()
        held[step.ids] = step.vectors
        live[step.ids] = True
        live[step.deleted] = False
        if len(step.queries):
            ids = np.flatnonzero(live)
            truth = data.nearest(step.queries, held[ids], ids)
            if not chosen and not engine.tunes:
                _choose(engine, step.queries, truth)
            chosen = True
            recalls.append(data.recall(engine.search(step.queries, data.K), truth))
    told = engine.figures()
    engine.close()
    lowest = int(np.argmin(recalls))
    return {
        "lowest": recalls[lowest],
        "at_step": lowest + 1,
        "mean": float(np.mean(recalls)),
        "recalls": recalls,
        "told": told,
    }


def _choose(engine: Engine, queries: data.Floats, truth: data.Ids) -> None:
    for setting in engine.settings:
        engine.choose(setting)
        if data.recall(engine.search(queries, data.K), truth) >= 0.95:
            return
