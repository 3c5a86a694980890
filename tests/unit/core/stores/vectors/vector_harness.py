"""What the tests of the vector indexes share: small indexes of every kind, and an oracle that never asks an index.

The oracle is a dict of the newest vectors. Indexes round what they store (float16, or eight bits), so an answer is
judged in two steps: the stored rows are the oracle's within the rounding, and the answer is the best of the stored
rows, ties allowed, within float32 arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamfold.core.stores.vectors import ExactVectors, LayeredVectors

Array = npt.NDArray[Any]

ALL_LISTS = 1_000_000
"""``nprobe`` for exact answers (``ef`` where the segments are graphs)."""
SMALL: Mapping[str, Any] = {"exact_rows": 64, "growing_rows": 16, "segment_rows": 256, "nprobe": ALL_LISTS}
"""Parameters with which a few hundred rows reach every layer."""
LAYERED = ("ivf-fp16", "ivf-sq8", "hnsw")
KINDS = ("exact", *LAYERED)
ROUNDING = {"exact": 1e-6, "ivf-fp16": 6e-4, "hnsw": 6e-4, "auto": 6e-4, "ivf-sq8": 2e-2}
"""Largest error of a member of a stored unit row."""
SUMMATION = 3e-5
"""Error of an inner product of stored rows: float32 sums in other orders, and repeated normalisation."""
RECODING = 2e-2
"""With ``ivf-sq8`` a merge between an export and a search changes a row's codes, and so its score."""


def make(kind: str, dim: int, *, normalize: bool = True, **changes: Any) -> Any:
    """An empty small index."""
    if kind == "exact":
        return ExactVectors(dim, normalize)
    return LayeredVectors(dim, normalize, kind=kind, **{**SMALL, "background": False, **changes})


def close(index: Any) -> None:
    if isinstance(index, LayeredVectors):
        index.close()


def settle(index: Any, *, everything: bool = False) -> None:
    """Let all due merges happen."""
    if isinstance(index, LayeredVectors):
        index.maintain(everything=everything)
        index.wait()


def random_rows(rng: np.random.Generator, n: int, dim: int) -> Array:
    """``(n, dim) float32``: clusters that overlap, a few equal rows (ties)."""
    centres = np.random.default_rng(dim).normal(size=(8, dim))
    rows = centres[rng.integers(0, 8, n)] + 0.8 * rng.normal(size=(n, dim))
    if n > 3 and rng.random() < 0.3:
        rows[1] = rows[0]
    return rows.astype(np.float32)


def unit(rows: Array) -> Array:
    scaled: Array = (rows / np.linalg.norm(rows.astype(np.float64), axis=-1, keepdims=True)).astype(np.float32)
    return scaled


class Oracle:
    """The newest vector of each live id."""

    def __init__(self, dim: int, *, normalize: bool = True) -> None:
        self.dim = dim
        self.normalize = normalize
        self.held: dict[int, Array] = {}

    def copy(self) -> Oracle:
        other = Oracle(self.dim, normalize=self.normalize)
        other.held = dict(self.held)
        return other

    def upsert(self, ids: Iterable[int], rows: Array) -> None:
        scaled = unit(rows) if self.normalize else np.array(rows, np.float32)
        self.held.update(zip((int(key) for key in ids), scaled, strict=True))

    def delete(self, ids: Iterable[int]) -> None:
        for key in ids:
            self.held.pop(int(key), None)

    def content(self) -> tuple[Array, Array]:
        """Ids, ascending, and their vectors."""
        keys = sorted(self.held)
        rows = np.stack([self.held[key] for key in keys]) if keys else np.empty((0, self.dim), np.float32)
        return np.array(keys, np.int64), rows


def allowed_ids(ids: Array, allow: Any) -> npt.NDArray[np.bool_]:
    """Which ids a filter lets through: a Boolean mask indexed by id, or a list of ids."""
    if allow is None:
        return np.ones(len(ids), np.bool_)
    given = np.asarray(allow)
    if given.dtype == np.bool_:
        inside = ids < len(given)
        inside[inside] = given[ids[inside]]
        return inside
    return np.isin(ids, given.astype(np.int64) if given.size else np.empty(0, np.int64))


def assert_holds(index: Any, oracle: Oracle, kind: str) -> tuple[Array, Array]:
    """The index holds the oracle's ids and rows, each once; returns the stored ids and rows."""
    keys, wanted = oracle.content()
    ids, rows = index.export()
    np.testing.assert_array_equal(ids, keys)
    assert len(index) == len(keys)
    assert rows.dtype == np.float32
    assert rows.shape == wanted.shape
    scale = max(1.0, float(np.abs(wanted).max(initial=0)))
    np.testing.assert_allclose(rows, wanted, atol=ROUNDING[kind] * scale)
    return ids, rows


def assert_answer(
    index: Any, stored: tuple[Array, Array], queries: Array, k: int, allow: Any = None, *, exact: bool = True
) -> float:
    """An answer is well formed, allowed, true to the stored rows and (``exact``) the best there is; returns recall."""
    given = queries.copy()
    ids, scores = index.search(queries, k, allow)
    np.testing.assert_array_equal(queries, given)
    assert (ids.shape, ids.dtype) == ((len(queries), k), np.int64)
    assert (scores.shape, scores.dtype) == ((len(queries), k), np.float32)
    keys, rows = stored
    may = allowed_ids(keys, allow)
    keys, rows = keys[may], rows[may]
    directions = unit(queries) if index_normalizes(index) else np.asarray(queries, np.float32)
    truth = directions.astype(np.float64) @ rows.T.astype(np.float64)
    error = RECODING if getattr(index, "kind", "") == "ivf-sq8" else SUMMATION
    tolerance = error * max(1.0, float(np.abs(truth).max(initial=0)))
    hits = wanted = 0
    for line_ids, line_scores, line in zip(ids, scores, truth, strict=True):
        count = int((line_ids >= 0).sum())
        assert (line_ids[count:] == -1).all(), line_ids
        assert (line_scores[count:] == -np.inf).all(), line_scores
        found, given_scores = line_ids[:count], line_scores[:count]
        assert len(set(found.tolist())) == count, f"an id twice: {found}"
        assert (np.diff(given_scores) <= tolerance).all(), f"not best first: {given_scores}"
        strange = sorted(set(found.tolist()) - set(keys.tolist()))
        assert not strange, f"deleted, not allowed or never inserted: {strange}"
        np.testing.assert_allclose(given_scores, line[np.searchsorted(keys, found)], atol=tolerance)
        best = np.sort(line)[::-1][:k]
        hits += int((given_scores[:count] >= best[-1] - tolerance).sum()) if len(best) else 0
        wanted += len(best)
        if exact:
            assert count == len(best), f"{count} results of {len(best)}"
            np.testing.assert_allclose(given_scores, best, atol=tolerance)
    return hits / wanted if wanted else 1.0


def index_normalizes(index: Any) -> bool:
    return bool(index.normalize)


def is_exact(kind: str) -> bool:
    """Whether an index of the kind answers exactly when it probes everything (a graph is only nearly complete)."""
    return kind != "hnsw"


def assert_equal_to(
    index: Any, oracle: Oracle, kind: str, rng: np.random.Generator, *, k: int = 10, allows: Sequence[Any] = (None,)
) -> None:
    """Content, membership and answers of an index are the oracle's."""
    stored = assert_holds(index, oracle, kind)
    queries = random_rows(rng, 4, oracle.dim)
    if len(stored[0]):  # some queries are stored vectors
        queries[:2] = stored[1][rng.integers(0, len(stored[0]), 2)]
        if not np.linalg.norm(queries, axis=1).all():
            queries[:2] = 1
    for allow in allows:
        recall = assert_answer(index, stored, queries, k, allow, exact=is_exact(kind))
        assert recall >= 0.9, recall
    for key in rng.integers(0, 1000, 5).tolist():
        assert (key in index) == (key in oracle.held)


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
