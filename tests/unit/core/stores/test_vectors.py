"""Exact vectors: validation, replacement, ties, snapshots; the store's staging."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamfold.core.errors import StoreError, StoreFull
from streamfold.core.stores import LiveVectors, Vectors
from streamfold.core.stores.vectors import ExactVectors


def rows(n: int, dim: int = 4, seed: int = 1) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)


@pytest.mark.parametrize(
    ("ids", "vectors"),
    [
        ([1], [[1.0, 2.0]]),
        ([1], [1.0, 2.0, 3.0, 4.0]),
        ([1], [[1.0, np.nan, 0.0, 0.0]]),
        ([1], [[np.inf, 1.0, 0.0, 0.0]]),
        ([1], [[0.0, 0.0, 0.0, 0.0]]),
        ([-1], [[1.0, 0.0, 0.0, 0.0]]),
        ([1.5], [[1.0, 0.0, 0.0, 0.0]]),
        ([1, 2], [[1.0, 0.0, 0.0, 0.0]]),
    ],
)
def test_bad_rows_are_refused_by_index_and_store(ids: list[int], vectors: Any) -> None:
    index, store = ExactVectors(4), LiveVectors(Vectors("v", dim=4))
    for target in (index, store):
        with pytest.raises(StoreError):
            target.upsert(ids, vectors)
        assert len(target) == 0


def test_search_equals_sorting_under_inserts_updates_and_deletes() -> None:
    rng = np.random.default_rng(3)
    index, held = ExactVectors(4), dict[int, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]()
    for step in range(60):
        ids = rng.integers(0, 300, 20)
        vectors = rows(20, seed=step)
        index.upsert(ids, vectors)
        held.update(zip(ids.tolist(), vectors, strict=True))
        gone = rng.integers(0, 300, 8)
        index.delete(gone)
        for key in gone.tolist():
            held.pop(key, None)
    keys = np.array(sorted(held))
    matrix = np.stack([held[key] for key in keys.tolist()])
    matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
    queries = rows(5, seed=99)
    found, scores = index.search(queries, 10)
    exact = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ matrix.T
    order = np.argsort(-exact, axis=1)[:, :10]
    np.testing.assert_array_equal(found, keys[order])
    np.testing.assert_allclose(scores, np.take_along_axis(exact, order, 1), rtol=1e-5)
    allow = keys[::7]
    found, _ = index.search(queries, 3, allow)
    assert set(found.ravel().tolist()) <= set(allow.tolist())


def test_missing_results_are_minus_one_and_ties_go_by_id() -> None:
    index = ExactVectors(2)
    index.upsert([5, 3, 9], [[1, 0], [1, 0], [0, 1]])
    found, scores = index.search([[2, 0]], 5)
    assert found.tolist() == [[3, 5, 9, -1, -1]]
    assert scores[0, 3] == -np.inf
    assert index.search([[1, 0]], 2, allow=[77])[0].tolist() == [[-1, -1]]
    with pytest.raises(StoreError, match="at least 1"):
        index.search([[1, 0]], 0)


def test_last_of_equal_ids_wins() -> None:
    index = ExactVectors(2)
    index.upsert([1, 1, 1], [[1, 0], [1, 1], [0, 1]])
    assert len(index) == 1
    assert index.search([[0, 1]], 1)[1][0, 0] == 1.0


def test_snapshot_restores_and_refuses_another_dimension(tmp_path: Path) -> None:
    index = ExactVectors(4)
    index.upsert(np.arange(50), rows(50))
    index.delete([7])
    index.snapshot(tmp_path / "index")
    copy = ExactVectors(4)
    copy.restore(tmp_path / "index")
    copy.upsert([100], rows(1))
    index.upsert([100], rows(1))
    for a, b in zip(copy.export(), index.export(), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(StoreError, match="dim"):
        ExactVectors(5).restore(tmp_path / "index")


def test_store_shows_an_event_the_state_before_it() -> None:
    store = LiveVectors(Vectors("v"))
    assert store.search([[1.0, 0.0]], 2)[0].tolist() == [[-1, -1]]
    store.begin()
    given = np.array([[1.0, 0.0]], np.float32)
    store.upsert([1], given)
    given[:] = 5
    assert len(store) == 0
    with pytest.raises(StoreError, match="shape"):
        store.upsert([2], [[1.0, 0.0, 0.0]])
    store.undo()
    store.upsert([2], [[1.0, 0.0, 0.0]])
    store.keep()
    assert store.search([[1.0, 0.0, 0.0]], 1)[0].tolist() == [[2]]


def test_full_store_refuses_before_the_event_is_kept() -> None:
    store = LiveVectors(Vectors("v", max_rows=1))
    store.upsert([1], [[1.0]])
    with pytest.raises(StoreFull):
        store.upsert([2], [[1.0]])
    store.delete([1])
    store.upsert([2], [[1.0]])
    store.keep()
    assert store.search([[1.0]], 2)[0].tolist() == [[2, -1]]


def test_store_that_the_fold_does_not_hold_refuses_reads(tmp_path: Path) -> None:
    store = LiveVectors(Vectors("v"), hold=False)
    store.upsert([1], [[1.0]])
    for read in (lambda: store.search([[1.0]], 1), store.fingerprint):
        with pytest.raises(StoreError, match="fold_reads=True"):
            read()
    with pytest.raises(StoreError, match="view"):
        store.save(tmp_path)
