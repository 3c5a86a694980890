"""Every vector index, through all its layers: newest vectors, nothing deleted, nothing twice, filters, bad input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from vector_harness import (
    ALL_LISTS,
    KINDS,
    LAYERED,
    ROUNDING,
    SUMMATION,
    Array,
    Oracle,
    assert_answer,
    assert_equal_to,
    assert_holds,
    make,
    random_rows,
    settle,
    unit,
)

from streamfold.core.errors import StoreError
from streamfold.core.stores import vectors
from streamfold.core.stores.vectors import LayeredVectors

DIM = 12
Maker = Callable[..., Any]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def filled(new: Maker, kind: str, n: int = 700, *, seed: int = 5, **changes: Any) -> tuple[Any, Oracle]:
    """An index with several segments, a part of a growing buffer, updated and deleted rows, and its oracle."""
    index, oracle, rng = new(kind, **changes), Oracle(DIM), np.random.default_rng(seed)
    for start in range(0, n, 50):
        ids = np.arange(start, min(n, start + 50))
        both(index, oracle, ids, random_rows(rng, len(ids), DIM))
        settle(index)
    again = rng.choice(n, n // 10, replace=False)
    both(index, oracle, again, random_rows(rng, len(again), DIM))
    gone = rng.choice(n, n // 10, replace=False)
    index.delete(gone)
    oracle.delete(gone)
    return index, oracle


def both(index: Any, oracle: Oracle, ids: Array, rows: Array) -> None:
    index.upsert(ids, rows)
    oracle.upsert(ids, rows)


# -- streams ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("background", [False, True], ids=["called", "background"])
@pytest.mark.parametrize("seed", [1, 2])
def test_a_random_stream_answers_as_the_oracle(new: Maker, kind: str, seed: int, background: bool) -> None:
    print(f"seed={seed}")
    rng = np.random.default_rng(seed)
    index, oracle = new(kind, background=background, seed=seed), Oracle(DIM)
    sizes = [1, 1, 3, 17, 40, 130, 300]
    for step in range(60):
        action = rng.random()
        ids = rng.integers(0, 900, rng.choice(sizes))
        if action < 0.6:
            both(index, oracle, ids, random_rows(rng, len(ids), DIM))
        elif action < 0.85:
            index.delete(ids)
            oracle.delete(ids)
        elif action < 0.95:
            settle(index, everything=bool(rng.random() < 0.3))
        elif isinstance(index, LayeredVectors):
            index.retrain()
        assert len(index) == len(oracle.held)
        if step % 4 == 0:
            few = np.array(sorted(oracle.held)[::90], np.int64)
            assert_equal_to(index, oracle, kind, rng, k=int(rng.integers(1, 30)), allows=(None, few))
    settle(index, everything=True)
    assert_equal_to(index, oracle, kind, rng, k=1000)


@pytest.mark.parametrize("kind", ["ivf-fp16", "ivf-sq8"])
@pytest.mark.parametrize("k", [1, 10, 40])
def test_a_query_alone_is_answered_as_in_a_batch(new: Maker, kind: str, k: int) -> None:
    """One query goes a shorter way, over dead rows in every layer, and for a k that they leave too few rows for."""
    index, rng = new(kind), np.random.default_rng(k)
    for turn in range(60):
        index.upsert(rng.integers(0, 900, 30), random_rows(rng, 30, DIM))
        index.delete(rng.integers(0, 900, 25))
        if turn % 3 == 0:
            settle(index)
        queries = random_rows(rng, 8, DIM)
        for ids, scores, query in zip(*index.search(queries, k), queries, strict=True):
            (alone_ids,), (alone,) = index.search(query[None], k)
            np.testing.assert_allclose(alone, scores, atol=SUMMATION)
            held = ids >= 0
            assert ((alone_ids >= 0) == held).all()
            assert len(set(alone_ids[held].tolist())) == held.sum()
            steps = np.diff(scores[held])
            near_next = np.append(steps >= -SUMMATION, True)  # the last may score as one that is not listed
            near_former = np.append(False, steps >= -SUMMATION)
            assert ((alone_ids[held] == ids[held]) | near_next | near_former).all()
    stats = index.stats()
    assert len(stats.segments) > 1
    assert stats.dead


def test_a_query_finds_the_living_behind_many_dead_rows(new: Maker, kind: str) -> None:
    """All rows next to a query are deleted: more of them than a scan fetches in reserve."""
    index, oracle = filled(new, kind)
    rng = np.random.default_rng(9)
    query = random_rows(rng, 1, DIM)
    close_by = unit(query) + 0.01 * rng.normal(size=(100, DIM)).astype(np.float32)
    both(index, oracle, np.arange(2000, 2100), close_by)
    settle(index, everything=True)
    index.delete(np.arange(2000, 2100))
    oracle.delete(range(2000, 2100))
    keys, rows = oracle.content()
    ids, scores = index.search(query, 10)
    assert np.isin(ids, keys).all()
    best = np.sort(rows @ unit(query)[0])[::-1][:10]
    np.testing.assert_allclose(scores[0], best, atol=DIM * ROUNDING[kind])


@pytest.mark.parametrize("kind", LAYERED)
def test_every_layer_is_reached(new: Maker, kind: str) -> None:
    """What the other tests rely on: with these parameters a few hundred rows make several segments."""
    index, oracle = filled(new, kind)
    stats = index.stats()
    assert stats.rows == len(index) == len(oracle.held)
    if kind != "hnsw":  # there is one graph
        assert len(stats.segments) >= 2
        assert max(stats.segments) <= 256
    assert sum(stats.segments) > 256
    assert stats.dead > 0
    assert stats.growing + stats.frozen > 0
    assert stats.merges > 0
    assert stats.bytes > 0
    index.maintain(everything=True)
    after = index.stats()
    assert (after.dead, after.growing, after.frozen, sum(after.segments)) == (0, 0, 0, len(oracle.held))


@pytest.mark.parametrize("kind", ["ivf-fp16", "hnsw"])
def test_rows_never_change_by_merges_retraining_or_the_way_they_came(new: Maker, kind: str) -> None:
    """The stored rows are a function of what was written alone: ``verify`` compares them bit by bit."""
    index, oracle = filled(new, kind)
    assert index.is_lossless
    before = index.export()
    ids, rows = oracle.content()
    queries = random_rows(np.random.default_rng(3), 5, DIM)
    scores = index.search(queries, 20)[1]
    for change in (lambda: index.maintain(everything=True), index.retrain, lambda: index.maintain(everything=True)):
        change()
        for one, other in zip(before, index.export(), strict=True):
            np.testing.assert_array_equal(one, other)
        if kind != "hnsw":
            np.testing.assert_allclose(index.search(queries, 20)[1], scores, atol=1e-6)
    at_once, one_by_one = new(kind), new(kind, growing_rows=7, exact_rows=30, seed=9)
    at_once.upsert(ids[::-1], rows[::-1])
    for key, row in zip(ids, rows, strict=True):
        one_by_one.upsert([key], row[None])
    one_by_one.maintain()
    for one, other in zip(at_once.export(), one_by_one.export(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_eight_bits_are_rounded_once_even_after_a_drift(new: Maker) -> None:
    """Each training has its own ranges: rows that come later must not be clipped to them, nor worn off by the next."""
    rng = np.random.default_rng(30)
    index, oracle = new("ivf-sq8", 16, exact_rows=200), Oracle(16)
    assert not index.is_lossless
    for step in range(20):
        rows = random_rows(rng, 60, 16) + 0.3 * step * np.eye(16, dtype=np.float32)[step % 16]
        both(index, oracle, np.arange(step * 60, step * 60 + 60), rows)
        index.retrain()
    error = np.abs(index.export()[1] - oracle.content()[1])
    assert error.max() < 0.01, error.max()


@pytest.mark.parametrize("size", [1, 15, 16, 17, 64, 65, 255, 256, 257, 1000])
def test_any_size_of_the_first_batch_and_of_the_next(new: Maker, kind: str, size: int) -> None:
    rng = np.random.default_rng(size)
    index, oracle = new(kind), Oracle(DIM)
    both(index, oracle, np.arange(size), random_rows(rng, size, DIM))
    assert_equal_to(index, oracle, kind, rng)
    both(index, oracle, np.arange(size // 2, size // 2 + size), random_rows(rng, size, DIM))
    assert_equal_to(index, oracle, kind, rng)
    settle(index)
    assert_equal_to(index, oracle, kind, rng)


def test_last_of_equal_ids_wins_within_one_batch_of_any_size(new: Maker, kind: str) -> None:
    rng = np.random.default_rng(8)
    for size, distinct in ((3, 1), (30, 4), (500, 90)):
        index, oracle = new(kind), Oracle(DIM)
        both(index, oracle, rng.integers(0, distinct, size), random_rows(rng, size, DIM))
        assert_equal_to(index, oracle, kind, rng, k=100)


@pytest.mark.parametrize("settled", [False, True], ids=["buffered", "merged"])
def test_an_update_replaces_at_once_wherever_the_old_row_lies(new: Maker, kind: str, settled: bool) -> None:
    index, oracle = filled(new, kind)
    if settled:
        settle(index, everything=True)
    rng = np.random.default_rng(4)
    for key in rng.choice(sorted(oracle.held), 40, replace=False).tolist():
        old, fresh = oracle.held[key], random_rows(rng, 1, DIM)
        both(index, oracle, np.array([key]), fresh)
        ids, scores = index.search(unit(fresh), 3)
        assert key in ids[0].tolist()
        assert scores[0, 0] == pytest.approx(1.0, abs=0.02)
        found = dict(zip(*(part[0].tolist() for part in index.search(old[None], 50)), strict=True))
        if key in found:
            assert found[key] == pytest.approx(float(old @ oracle.held[key]), abs=0.02)
    assert_equal_to(index, oracle, kind, rng)


def test_deleted_rows_can_come_back(new: Maker, kind: str) -> None:
    index, oracle = filled(new, kind)
    rng = np.random.default_rng(6)
    for _ in range(4):
        some = rng.choice(700, 200, replace=False)
        index.delete(some)
        oracle.delete(some)
        assert_equal_to(index, oracle, kind, rng)
        some = rng.choice(some, 120, replace=False)
        both(index, oracle, some, random_rows(rng, len(some), DIM))
        settle(index)
        assert_equal_to(index, oracle, kind, rng)


def test_an_emptied_index_is_empty_and_fills_again(new: Maker, kind: str) -> None:
    index, oracle = filled(new, kind)
    rng = np.random.default_rng(7)
    for everything in (False, True):
        index.delete(np.arange(2000))
        oracle.held.clear()
        for _ in range(2):
            assert len(index) == 0
            assert index.search(random_rows(rng, 2, DIM), 3)[0].tolist() == [[-1] * 3] * 2
            assert index.search(random_rows(rng, 2, DIM), 3, [1, 2, 3])[0].tolist() == [[-1] * 3] * 2
            settle(index, everything=everything)
        assert_holds(index, oracle, kind)
        both(index, oracle, np.arange(400), random_rows(rng, 400, DIM))
        settle(index)
        assert_equal_to(index, oracle, kind, rng)


def test_unknown_and_repeated_ids_are_deleted_without_error(new: Maker, kind: str) -> None:
    index, oracle = filled(new, kind)
    index.delete([5000, 3, 3, 2**63 - 1, 3])
    oracle.delete([3])
    index.delete([])
    index.delete(np.empty(0, np.int64))
    assert_holds(index, oracle, kind)
    new(kind).delete([1, 2])


def test_large_ids_are_ids(new: Maker, kind: str) -> None:
    index, oracle, rng = new(kind), Oracle(DIM), np.random.default_rng(2)
    ids = np.concatenate([2**63 - 1 - np.arange(100, dtype=np.int64), np.arange(100) << 40, [0]])
    both(index, oracle, ids, random_rows(rng, len(ids), DIM))
    settle(index, everything=True)
    assert_equal_to(index, oracle, kind, rng, allows=(None, ids[::9], np.ones(50, np.bool_)))
    assert 2**63 - 1 in index
    assert np.int64(2**63 - 1) in index
    assert 2**62 not in index


# -- filters ----------------------------------------------------------------------------------------------------------
def filters(oracle: Oracle, rng: np.random.Generator) -> dict[str, Any]:
    live = np.array(sorted(oracle.held))
    gone = np.array(sorted(set(range(700)) - set(live.tolist())))
    mask = rng.random(700) < 0.3
    rare = np.zeros(700, np.bool_)
    rare[rng.choice(live, 7, replace=False)] = True
    return {
        "none allowed": np.empty(0, np.int64),
        "empty list": [],
        "one": live[:1],
        "a hundredth": rng.choice(live, 7, replace=False),
        "a third, shuffled and repeated": rng.permutation(np.concatenate([live[::3], live[::3], live[:5]])),
        "all": live,
        "deleted ones": gone,
        "unknown ones": np.array([10_000, 2**62, 2**63 - 1]),
        "a few of each": np.concatenate([live[:3], gone[:3], [10_000]]),
        "a Python list": live[::50].tolist(),
        "int32": live[::5].astype(np.int32),
        "strided": live[::2][::-1],
        "mask of a third": mask,
        "mask of a hundredth": rare,
        "mask of all": np.ones(700, np.bool_),
        "mask of none": np.zeros(700, np.bool_),
        "mask shorter than the ids": mask[:123],
        "mask of length 0": np.empty(0, np.bool_),
        "mask of length 1": np.ones(1, np.bool_),
        "mask longer than the ids": np.concatenate([mask, np.ones(1000, np.bool_)]),
        "strided mask": np.repeat(mask, 2)[::2],
    }


@pytest.mark.parametrize("settled", [False, True], ids=["buffered", "merged"])
def test_a_filter_is_answered_in_full(new: Maker, kind: str, settled: bool) -> None:
    index, oracle = filled(new, kind)
    if settled:
        settle(index, everything=True)
    stored = assert_holds(index, oracle, kind)
    rng = np.random.default_rng(11)
    for name, allow in filters(oracle, rng).items():
        for m in (1, 3):
            recall = assert_answer(index, stored, random_rows(rng, m, DIM), 10, allow, exact=kind != "hnsw")
            assert recall >= 0.9, (name, recall)


@pytest.mark.parametrize("kind", LAYERED)
def test_a_rare_filter_is_answered_in_full_with_few_probes(new: Maker, kind: str) -> None:
    """However few lists are probed: what passes a filter of one percent is searched exactly."""
    index, oracle = filled(new, kind, nprobe=1)
    settle(index, everything=True)
    stored = assert_holds(index, oracle, kind)
    rng = np.random.default_rng(12)
    for _ in range(10):
        few = rng.choice(stored[0], 6, replace=False)
        mask = np.zeros(700, np.bool_)
        mask[few] = True
        for allow in (few, mask):
            assert_answer(index, stored, random_rows(rng, 2, DIM), 10, allow)


@pytest.mark.parametrize("allow", [[1.5], np.ones((2, 2), np.bool_), np.ones((2, 2), np.int64), ["a"]], ids=repr)
def test_a_filter_that_is_none_is_refused(new: Maker, kind: str, allow: Any) -> None:
    index, _ = filled(new, kind, 30)
    with pytest.raises(StoreError):
        index.search(np.ones((1, DIM), np.float32), 3, allow)


# -- input ------------------------------------------------------------------------------------------------------------
GOOD = np.ones((1, DIM), np.float32)
BAD_WRITES: dict[str, tuple[Any, Any]] = {
    "dimension too small": ([1], GOOD[:, 1:]),
    "dimension too large": ([1], np.ones((1, DIM + 1))),
    "one-dimensional": ([1], GOOD[0]),
    "three-dimensional": ([1], GOOD[None]),
    "NaN": ([1, 2], np.vstack([GOOD, GOOD * np.nan])),
    "infinite": ([1, 2], np.vstack([GOOD, GOOD * np.inf])),
    "overflow": ([1, 2], np.vstack([GOOD, GOOD * 1e30])),
    "overflow of float64": ([1, 2], np.vstack([GOOD, GOOD.astype(np.float64) * 1e300])),
    "overflow of one row": ([1], GOOD * 1e30),
    "zero": ([1, 2], np.vstack([GOOD, GOOD * 0])),
    "negative id": ([1, -1], np.vstack([GOOD, GOOD])),
    "id past int64": (np.array([1, 2**63], np.uint64), np.vstack([GOOD, GOOD])),
    "fractional id": ([1.5], GOOD),
    "whole float id": (np.array([1.0]), GOOD),
    "text id": (["1"], GOOD),
    "Boolean id": ([True], GOOD),
    "two-dimensional ids": ([[1]], GOOD),
    "more ids than rows": ([1, 2], GOOD),
    "fewer ids than rows": ([1], np.vstack([GOOD, GOOD])),
    "ids without rows": ([1], np.empty((0, DIM), np.float32)),
}


@pytest.mark.parametrize("name", BAD_WRITES)
def test_a_bad_write_is_refused_and_changes_nothing(new: Maker, kind: str, name: str) -> None:
    index, oracle = filled(new, kind, 130)
    ids, rows = BAD_WRITES[name]
    with pytest.raises(StoreError) as refused:
        index.upsert(ids, rows)
    assert len(str(refused.value)) > 10
    assert_equal_to(index, oracle, kind, np.random.default_rng(1))


@pytest.mark.parametrize("ids", [[-1], [1.5], ["a"], [[1]], [True], np.array([2**63], np.uint64)], ids=repr)
def test_a_bad_delete_is_refused_and_changes_nothing(new: Maker, kind: str, ids: Any) -> None:
    index, oracle = filled(new, kind, 130)
    with pytest.raises(StoreError):
        index.delete(ids)
    assert_holds(index, oracle, kind)


@pytest.mark.parametrize(
    "queries",
    [GOOD[:, 1:], GOOD[0], GOOD[None], GOOD * np.nan, GOOD * np.inf, GOOD * 0, np.vstack([GOOD, GOOD * 0])],
    ids=["dim", "1-d", "3-d", "nan", "inf", "zero", "one zero"],
)
def test_a_bad_query_is_refused(new: Maker, kind: str, queries: Array) -> None:
    for index in (new(kind), filled(new, kind, 130)[0]):
        with pytest.raises(StoreError):
            index.search(queries, 3)


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one_is_refused(new: Maker, kind: str, k: int) -> None:
    for index in (new(kind), filled(new, kind, 130)[0]):
        with pytest.raises(StoreError, match="at least 1"):
            index.search(GOOD, k)


@pytest.mark.parametrize("m", [1, 5])
def test_k_past_the_content_gives_all_and_then_minus_one(new: Maker, kind: str, m: int) -> None:
    rng = np.random.default_rng(1)
    for n in (0, 3, 130, 600):
        index, oracle = new(kind), Oracle(DIM)
        both(index, oracle, np.arange(n), random_rows(rng, n, DIM))
        settle(index)
        index.delete(np.arange(0, n, 4))
        oracle.delete(range(0, n, 4))
        stored = assert_holds(index, oracle, kind)
        for k in (max(1, len(oracle.held)), n + 1, 2 * n + 50):
            recall = assert_answer(index, stored, random_rows(rng, m, DIM), k, exact=kind != "hnsw")
            assert recall >= 0.98


def test_no_rows_are_no_error(new: Maker, kind: str) -> None:
    index, oracle = filled(new, kind, 130)
    index.upsert([], np.empty((0, DIM), np.float32))
    index.upsert(np.empty(0, np.int64), np.empty((0, DIM)))
    index.upsert([], [])
    assert_holds(index, oracle, kind)
    ids, scores = index.search(np.empty((0, DIM), np.float32), 4)
    assert ids.shape == scores.shape == (0, 4)


def test_any_layout_and_type_of_numbers_is_taken(new: Maker, kind: str) -> None:
    rng = np.random.default_rng(9)
    base = random_rows(rng, 200, DIM)
    wide = np.zeros((400, 2 * DIM), np.float32)
    wide[::2, ::2] = base
    forms: dict[str, tuple[Any, Any]] = {
        "float64": (np.arange(200), base.astype(np.float64)),
        "strided": (np.arange(400)[::2] // 2, wide[::2, ::2]),
        "Fortran": (np.arange(200, dtype=np.uint8), np.asfortranarray(base)),
        "reversed": (np.arange(200)[::-1], base[::-1]),
        "lists": (list(range(200)), base.tolist()),
        "big-endian": (np.arange(200).astype(">i8"), base.astype(">f4")),
        "read-only": (np.arange(200), read_only(base)),
        "int32 ids": (np.arange(200, dtype=np.int32), base),
    }
    for name, (ids, rows) in forms.items():
        index, oracle = new(kind), Oracle(DIM)
        index.upsert(ids, rows)
        oracle.upsert(range(200), base)
        stored = assert_holds(index, oracle, kind)
        for queries in (base[:3].astype(np.float64), wide[:6:2, ::2], read_only(base[:3]), base[:3].astype(">f4")):
            recall = assert_answer(index, stored, queries, 5, exact=kind != "hnsw")
            assert recall >= 0.9, name


def read_only(rows: Array) -> Array:
    copy = rows.copy()
    copy.flags.writeable = False
    return copy


def test_what_was_given_may_change_afterwards_and_what_is_returned_too(new: Maker, kind: str) -> None:
    rng = np.random.default_rng(10)
    for n in (10, 40, 300):
        index, oracle = new(kind), Oracle(DIM)
        ids, rows = np.arange(n), unit(random_rows(rng, n, DIM))
        both(index, oracle, ids, rows)
        ids[:], rows[:] = 7, 0.5
        for array in (*index.search(random_rows(rng, 2, DIM), 5), *index.export()):
            if array.flags.writeable:
                array[:] = 3
        assert_equal_to(index, oracle, kind, rng)


def test_without_normalising_scores_are_plain_inner_products(new: Maker, kind: str) -> None:
    rng = np.random.default_rng(13)
    index, oracle = new(kind, normalize=False), Oracle(DIM, normalize=False)
    rows = random_rows(rng, 300, DIM)
    if kind == "ivf-sq8":
        rows = unit(rows) * rng.uniform(0.1, 1, (300, 1)).astype(np.float32)
    rows[5] = 0
    both(index, oracle, np.arange(300), rows)
    settle(index)
    stored = index.export()
    error = {"exact": 1e-6, "ivf-sq8": 0.02}.get(kind, 5e-3)
    np.testing.assert_allclose(stored[1], rows, atol=error)
    for scale in (1, 0, 30):
        recall = assert_answer(index, stored, scale * random_rows(rng, 3, DIM), 10, exact=kind != "hnsw")
        assert recall >= 0.8


@pytest.mark.parametrize("value", [7e4, 1e6, 1e18])
def test_a_value_that_cannot_be_stored_is_refused_and_else_it_is_stored(new: Maker, kind: str, value: float) -> None:
    """Without normalising a member may be beyond float16: an error, or a true score, never infinity or NaN."""
    index = new(kind, normalize=False)
    try:
        index.upsert([1], GOOD * value)
    except StoreError:
        assert len(index) == 0
        return
    score = index.search(GOOD, 1)[1][0, 0]
    assert score == pytest.approx(value * DIM, rel=0.01)


@pytest.mark.parametrize("dim", [1, 2, 7, 16, 33])
def test_any_dimension(new: Maker, kind: str, dim: int) -> None:
    rng = np.random.default_rng(dim)
    index, oracle = new(kind, dim), Oracle(dim)
    for start in range(0, 300, 60):
        both(index, oracle, np.arange(start, start + 60), random_rows(rng, 60, dim))
        settle(index)
    assert_equal_to(index, oracle, kind, rng)


@pytest.mark.parametrize("kind", LAYERED)
@pytest.mark.parametrize(
    "changes",
    [{"growing_rows": 1}, {"exact_rows": 1}, {"exact_rows": 1, "growing_rows": 1}, {"growing_rows": 300},
     {"growing_rows": None}, {"segment_rows": 64}],
    ids=repr,
)  # fmt: skip
def test_extreme_parameters_change_no_answer(new: Maker, kind: str, changes: dict[str, Any]) -> None:
    index, oracle = filled(new, kind, 400, **changes)
    assert_equal_to(index, oracle, kind, np.random.default_rng(1))
    settle(index, everything=True)
    assert_equal_to(index, oracle, kind, np.random.default_rng(1))


@pytest.mark.parametrize(
    "changes",
    [{"kind": "ivf"}, {"recall": 1.5}, {"recall": 0}, {"segment_rows": 0}, {"growing_rows": 0}, {"exact_rows": 0},
     {"nprobe": 0}, {"probe_every": -1}],
    ids=repr,
)  # fmt: skip
def test_a_wrong_parameter_is_named(changes: dict[str, Any]) -> None:
    with pytest.raises(StoreError, match=next(iter(changes))):
        LayeredVectors(DIM, **changes)


def test_dim_below_one_is_refused(kind: str) -> None:
    with pytest.raises(StoreError, match="dim"):
        make(kind, 0)


# -- recall -----------------------------------------------------------------------------------------------------------
def recall_at_10(index: Any, oracle: Oracle, queries: Array) -> float:
    keys, rows = oracle.content()
    truth = np.argsort(-(unit(queries) @ rows.T), axis=1)[:, :10]
    found = index.search(queries, 10)[0]
    return float(
        np.mean([len(set(a) & set(keys[b].tolist())) / 10 for a, b in zip(found.tolist(), truth, strict=True)])
    )


@pytest.mark.parametrize("kind", LAYERED)
def test_the_tuned_index_reaches_its_recall_without_probing_everything(new: Maker, kind: str) -> None:
    rng = np.random.default_rng(20)
    index, oracle = new(kind, nprobe=None, recall=0.95, growing_rows=64, segment_rows=4096), Oracle(DIM)
    rows = random_rows(rng, 3000, DIM)
    for start in range(0, 3000, 500):
        both(index, oracle, np.arange(start, start + 500), rows[start : start + 500])
        index.maintain()
    stats = index.stats()
    least = 0.9 if kind == "ivf-sq8" else 0.93  # eight bits themselves cost some
    assert recall_at_10(index, oracle, random_rows(rng, 200, DIM)) >= least
    if kind != "hnsw":
        assert 1 <= stats.nprobe < stats.nlist
    index.nprobe = ALL_LISTS
    if kind == "ivf-fp16":
        assert recall_at_10(index, oracle, random_rows(rng, 200, DIM)) >= 0.995


@pytest.mark.parametrize("kind", LAYERED)
@pytest.mark.parametrize("background", [False, True], ids=["called", "background"])
def test_probes_measure_the_recall_of_searches(new: Maker, kind: str, background: bool) -> None:
    rng = np.random.default_rng(21)
    index, _ = filled(new, kind, nprobe=None, probe_every=5, background=background)
    for _ in range(40):
        index.search(random_rows(rng, 1, DIM), 10)
    index.maintain()
    index.wait()
    stats = index.stats()
    assert stats.probes > 0
    assert 0.5 < stats.recall <= 1.0


@pytest.mark.parametrize("kind", LAYERED)
def test_no_probes_are_made_when_they_are_off(new: Maker, kind: str) -> None:
    index, _ = filled(new, kind, probe_every=0)
    for _ in range(20):
        index.search(GOOD, 10)
    index.maintain()
    assert (index.stats().probes, index.stats().recall) == (0, None)


def test_retraining_is_counted_and_allowed_at_any_time(new: Maker) -> None:
    index, oracle, rng = new("ivf-fp16"), Oracle(DIM), np.random.default_rng(22)
    index.retrain()  # nothing to train on
    assert len(index) == 0
    for n in (1, 10, 64, 65, 200, 700):
        both(index, oracle, np.arange(n), random_rows(rng, n, DIM))
        index.retrain()
        assert_equal_to(index, oracle, "ivf-fp16", rng)
    assert index.stats().retrains >= 1


def test_a_closed_index_stops_its_threads(new: Maker) -> None:
    import threading

    before = set(threading.enumerate())
    index, _ = filled(new, "ivf-fp16", background=True)
    index.close()
    index.close()
    assert [t for t in threading.enumerate() if t not in before and t.is_alive() and not t.daemon] == []


def test_exported_names_are_sorted() -> None:
    assert vectors.__all__ == sorted(vectors.__all__)
