"""The layered index as a state machine against the oracle: whatever is done in whatever order, answers stay true."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from vector_harness import (
    LAYERED,
    Array,
    Oracle,
    assert_answer,
    assert_holds,
    close,
    make,
    random_rows,
    unit,
)

DIM = 8
TOP = 400
"""Ids are below: updates and deletes meet rows in every layer."""
KEYS = st.one_of(st.integers(0, 30), st.integers(0, TOP - 1))
SEEDS = st.integers(0, 2**32 - 1)


class VectorMachine(RuleBasedStateMachine):
    """One index, its oracle, and at most one snapshot with the oracle of its moment."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="streamfold-vectors-"))
        self.snapshots = 0
        self.saved: tuple[Path, Oracle] | None = None
        self.index: Any = None
        self.oracle = Oracle(DIM)

    @initialize(kind=st.sampled_from(LAYERED), background=st.booleans(), seed=SEEDS, rows=st.sampled_from([0, 90, 700]))
    def start(self, kind: str, background: bool, seed: int, rows: int) -> None:
        self.kind, self.background = kind, background
        self.index = self.new()
        rng = np.random.default_rng(seed)
        for _ in range(0, rows, 45):
            self.write(rng.integers(0, TOP, 45), rng)
            self.index.maintain()

    def new(self) -> Any:
        return make(self.kind, DIM, background=self.background)

    def teardown(self) -> None:
        if self.index is not None:
            close(self.index)
        shutil.rmtree(self.folder, ignore_errors=True)

    def write(self, ids: Array, rng: np.random.Generator, *, like: float = 0.0) -> None:
        rows = random_rows(rng, len(ids), DIM)
        if like and self.oracle.held:  # equal rows: ties
            same = self.oracle.content()[1]
            rows = np.where(rng.random((len(ids), 1)) < like, same[rng.integers(0, len(same), len(ids))], rows)
        self.index.upsert(ids, rows)
        self.oracle.upsert(ids, rows)

    # -- writes -------------------------------------------------------------------------------------------------------
    @rule(keys=st.lists(KEYS, max_size=40), seed=SEEDS, like=st.sampled_from([0.0, 0.5]))
    def upsert(self, keys: list[int], seed: int, like: float) -> None:
        self.write(np.array(keys, np.int64), np.random.default_rng(seed), like=like)

    @rule(key=KEYS, seed=SEEDS)
    def upsert_one(self, key: int, seed: int) -> None:
        self.write(np.array([key]), np.random.default_rng(seed))

    @rule(key=KEYS, other=KEYS, size=st.integers(2, 50), seed=SEEDS)
    def upsert_repeated_ids(self, key: int, other: int, size: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.write(rng.choice([key, other], size), rng)

    @rule(start=KEYS, count=st.integers(1, 300), seed=SEEDS)
    def upsert_many(self, start: int, count: int, seed: int) -> None:
        self.write(np.arange(start, start + count) % TOP, np.random.default_rng(seed))

    @rule(keys=st.lists(KEYS, max_size=30))
    def delete(self, keys: list[int]) -> None:
        self.index.delete(keys)
        self.oracle.delete(keys)

    @rule(start=KEYS, count=st.integers(1, TOP), step=st.integers(1, 3))
    def delete_many(self, start: int, count: int, step: int) -> None:
        keys = range(start, min(TOP, start + count), step)
        self.index.delete(np.array(keys))
        self.oracle.delete(keys)

    # -- upkeep -------------------------------------------------------------------------------------------------------
    @rule(everything=st.booleans())
    def maintain(self, everything: bool) -> None:
        self.index.maintain(everything=everything)

    @rule()
    def retrain(self) -> None:
        self.index.retrain()

    @rule()
    def wait(self) -> None:
        self.index.wait()

    @rule()
    def snapshot(self) -> None:
        if self.saved is not None and self.snapshots % 2:
            shutil.rmtree(self.saved[0])
        path = self.folder / str(self.snapshots)
        self.snapshots += 1
        self.index.snapshot(path)
        self.saved = path, self.oracle.copy()

    @precondition(lambda self: self.saved is not None)
    @rule(fresh=st.booleans())
    def restore(self, fresh: bool) -> None:
        assert self.saved is not None
        if fresh:
            close(self.index)
            self.index = self.new()
        self.index.restore(self.saved[0])
        self.oracle = self.saved[1].copy()

    @rule(shuffled=st.booleans(), seed=SEEDS)
    def copy_by_export(self, shuffled: bool, seed: int) -> None:
        ids, rows = self.index.export()
        order = np.random.default_rng(seed).permutation(len(ids)) if shuffled else np.arange(len(ids))
        copy = self.new()
        copy.upsert(ids[order], rows[order])
        assert_holds(copy, self.oracle, self.kind)
        self.oracle.upsert(ids, rows)  # rounded once more
        close(self.index)
        self.index = copy

    # -- reads --------------------------------------------------------------------------------------------------------
    @rule(seed=SEEDS, m=st.integers(0, 4), k=st.sampled_from([1, 3, 10, 500]), stored=st.booleans())
    def search(self, seed: int, m: int, k: int, stored: bool) -> None:
        self.ask(self.queries(seed, m, stored), k, None)

    @rule(
        seed=SEEDS,
        keys=st.lists(KEYS | st.just(10**9), max_size=30),
        k=st.sampled_from([1, 10, 50]),
        m=st.integers(1, 3),
    )
    def search_among(self, seed: int, keys: list[int], k: int, m: int) -> None:
        self.ask(self.queries(seed, m, True), k, np.array(keys, np.int64))

    @rule(seed=SEEDS, share=st.sampled_from([0.0, 0.01, 0.3, 1.0]), length=st.sampled_from([0, 1, 50, TOP, 900]))
    def search_under_a_mask(self, seed: int, share: float, length: int) -> None:
        mask = np.random.default_rng(seed).random(length) < share
        self.ask(self.queries(seed, 2, False), 10, mask)

    def queries(self, seed: int, m: int, stored: bool) -> Array:
        rng = np.random.default_rng(seed)
        queries = random_rows(rng, m, DIM)
        if stored and self.oracle.held:
            rows = self.oracle.content()[1]
            queries = rows[rng.integers(0, len(rows), m)]
        return queries

    def ask(self, queries: Array, k: int, allow: Any) -> None:
        held = assert_holds(self.index, self.oracle, self.kind)
        recall = assert_answer(self.index, held, queries, k, allow, exact=self.kind != "hnsw")
        assert recall >= 0.7

    @precondition(lambda self: bool(self.oracle.held))
    @rule(number=st.integers(0, 10**6))
    def every_row_finds_itself(self, number: int) -> None:
        keys = sorted(self.oracle.held)
        key = keys[number % len(keys)]
        ids, scores = self.index.search(unit(self.oracle.held[key])[None], len(keys))
        assert scores[0, 0] >= 0.98
        if self.kind != "hnsw":
            at = ids[0].tolist().index(key)
            assert scores[0, at] >= scores[0, 0] - 0.02

    @invariant()
    def counts_agree(self) -> None:
        if self.index is not None:
            assert len(self.index) == len(self.oracle.held)
            stats = self.index.stats()
            assert stats.rows == len(self.oracle.held)
            assert min(stats.dead, stats.growing, stats.frozen) >= 0


VectorMachine.TestCase.settings = settings(
    max_examples=25,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestVectorMachine = VectorMachine.TestCase
