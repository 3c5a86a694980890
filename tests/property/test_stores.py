"""Random operations: copies stay equal, skipped events leave no trace, bounds hold, BM25 is exact."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamfold.core.errors import StoreFull
from streamfold.core.stores import Blobs, Declaration, Graph, Table, Text, Vectors, open_store
from streamfold.core.stores._top import best_slots
from streamfold.core.stores.text import BM25, LiveText, terms


class Row(msgspec.Struct, frozen=True):
    name: str
    at: tuple[int, float]


WORDS = ("radium", "curie", "physics", "chemistry", "paris", "prize", "the")
KEYS = st.integers(0, 9)
NUMBERS = st.integers(-3, 3)

DECLARATIONS: dict[str, Declaration] = {
    "float-evict": Table("t", key=str, value=float, max_rows=4),
    "int-refuse": Table("t", key=int, value=int, max_rows=6, on_full="refuse"),
    "struct-evict": Table("t", key=str, value=Row, max_rows=4),
    "tuple-roomy": Table("t", key=int, value=tuple[int, float], max_rows=100),
    "vectors-refuse": Vectors("v", max_rows=6),
    "vectors-evict": Vectors("v", dim=3, max_rows=4, on_full="evict"),
    "text-refuse": Text("x", max_rows=6),
    "text-evict": Text("x", max_rows=4, on_full="evict"),
    "graph-evict": Graph("g", max_bytes=900, on_full="evict"),
    "graph-refuse": Graph("g", max_bytes=1200),
    "blobs-evict": Blobs("b", max_bytes=9, on_full="evict"),
    "blobs-refuse": Blobs("b", max_bytes=12),
}
OPERATIONS = st.tuples(st.booleans(), KEYS, NUMBERS)  # put?, key, value
EVENTS = st.lists(st.tuples(st.sampled_from(["keep", "keep", "undo"]), st.lists(OPERATIONS, max_size=8)), max_size=12)


def write(declaration: Declaration, store: Any, operation: tuple[bool, int, int]) -> None:
    put, key, number = operation
    if isinstance(declaration, Table):
        name: Any = key if declaration.key is int else f"k{key}"
        values: dict[Any, Any] = {float: float(number), int: number, Row: Row("n", (number, 0.5))}
        if put:
            store.put(name, values.get(declaration.value, (number, 1.5)))
        else:
            store.delete(name)
    elif isinstance(declaration, Vectors):
        store.upsert([key], [[1.0, number, key]]) if put else store.delete([key])
    elif isinstance(declaration, Text):
        text = {"title": WORDS[key % 7], "text": " ".join(WORDS[: number + 4])}
        store.put([key], [text]) if put else store.delete([key])
    elif isinstance(declaration, Graph):
        nodes = [f"n{(key + i) % 5}" for i in range(number % 4)]
        store.put(key, nodes, [1.0 + number % 3] * len(nodes)) if put else store.delete(key)
    else:
        store.put(str(key), b"x" * (number + 3)) if put else store.delete(str(key))


def fold(declaration: Declaration, store: Any, event: tuple[str, list[tuple[bool, int, int]]]) -> None:
    end, operations = event
    store.begin()
    for operation in operations:
        try:
            write(declaration, store, operation)
        except StoreFull:
            assert declaration.on_full == "refuse"
    getattr(store, end)()


def content(store: Any) -> Any:
    """What is in a store, the order by which it evicts included."""
    if hasattr(store, "items"):
        return list(store.items()), store.fingerprint()
    rows = list(store._live.items()) if store._evicts else sorted(store._live.items())
    return rows, store.fingerprint()


def bound_holds(declaration: Declaration, store: Any) -> bool:
    if isinstance(declaration, Blobs | Graph):
        return bool(sum(store._live.values()) <= declaration.max_bytes)
    return bool(len(store) <= declaration.max_rows)


def each_declaration(test: Callable[..., None]) -> Callable[..., None]:
    marked: Callable[..., None] = pytest.mark.parametrize("kind", list(DECLARATIONS))(test)
    return marked


@each_declaration
@settings(max_examples=60, deadline=None)
@example(events=[("keep", [(True, 1, 0), (True, 0, 0), (False, 1, 0), (True, 1, 0)])], drains=set(), reload_at=0)
@given(events=EVENTS, drains=st.sets(st.integers(0, 12)), reload_at=st.integers(0, 12))
def test_replica_reloaded_copy_and_replay_without_skipped_events_are_equal(
    kind: str, events: list[Any], drains: set[int], reload_at: int
) -> None:
    declared = DECLARATIONS[kind]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        origin, clean = (open_store(declared, folder=folder, side="view") for _ in range(2))
        replica, reloaded = (open_store(declared, folder=folder, side="view") for _ in range(2))
        for i, event in enumerate(events):
            before = content(origin)
            fold(declared, origin, event)
            assert bound_holds(declared, origin)
            if event[0] == "undo":
                assert content(origin) == before
            else:
                fold(declared, clean, event)
            if i == reload_at:
                (folder / "saved").mkdir()
                origin.save(folder / "saved")
                reloaded.load(folder / "saved")
            elif i > reload_at:
                fold(declared, reloaded, event)
            if i in drains and (changes := origin.drain()) is not None:
                replica.apply(changes)
                replica.apply(changes)
                assert content(replica)[1] == content(origin)[1]
        if (changes := origin.drain()) is not None:
            replica.apply(changes)
        assert content(clean) == content(origin)
        assert content(replica) == content(origin)
        assert bound_holds(declared, replica)
        if len(events) > reload_at:
            assert content(reloaded) == content(origin)
        # A replica that takes over evicts as the origin does.
        for operation in [(True, key, 1) for key in range(10)]:
            for store in (origin, replica):
                fold(declared, store, ("keep", [operation]))
        assert content(replica) == content(origin)
        for store in (origin, clean, replica, reloaded):
            store.close()


@each_declaration
@settings(max_examples=40, deadline=None)
@given(events=EVENTS, every=st.integers(1, 4))
def test_fold_that_holds_nothing_sends_the_same_changes(kind: str, events: list[Any], every: int) -> None:
    declared = DECLARATIONS[kind]
    unread = dataclasses.replace(declared, fold_reads=False)
    with tempfile.TemporaryDirectory() as name:
        full = open_store(declared, folder=Path(name), side="view")
        writer = open_store(unread, folder=Path(name), side="fold")
        for i, event in enumerate(events):
            fold(declared, full, event)
            fold(declared, writer, event)
            if i % every == 0:
                assert full.drain() == writer.drain()
        assert full.drain() == writer.drain()
        assert len(full) == len(writer)
        full.close()


@settings(max_examples=150, deadline=None)
@given(events=EVENTS, n=st.integers(1, 6), numeric=st.sampled_from([float, int]))
def test_top_equals_sorting_all_rows(events: list[Any], n: int, numeric: type) -> None:
    declared = Table("t", key=int, value=numeric, max_rows=7)
    table: Any = open_store(declared, folder=Path(), side="view")
    for event in events:
        table.begin()
        for put, key, number in event[1]:
            table.put(key, numeric(number)) if put else table.delete(key)
        getattr(table, event[0])()
        assert table.top(n) == sorted(table.items(), key=lambda row: (-row[1], row[0]))[:n]


@settings(max_examples=100, deadline=None)
@given(size=st.integers(1, 2000), k=st.integers(1, 40), levels=st.integers(1, 2000), seed=st.integers(0, 2**32 - 1))
def test_best_slots_are_all_that_reach_the_kth_best(size: int, k: int, levels: int, seed: int) -> None:
    scores = np.random.default_rng(seed).integers(0, levels, size).astype(np.float32)
    bound = np.sort(scores)[::-1][min(k, size) - 1]
    assert best_slots(scores, k).tolist() == np.flatnonzero(scores >= bound).tolist()


def oracle(texts: dict[int, dict[str, str]], query: str, k1: float = 1.2, b: float = 0.75) -> dict[int, float]:
    """BM25 by its formula, in float64."""
    counts = {}
    for key, fields in texts.items():
        words = terms(fields.get("title", "")) * 3 + terms(fields.get("text", ""))
        counts[key] = {word: words.count(word) for word in words}
    lengths = {key: sum(count.values()) for key, count in counts.items()}
    average = sum(lengths.values()) / len(lengths) if lengths else 1.0
    scores = dict.fromkeys(counts, 0.0)
    for word in terms(query):
        df = sum(word in count for count in counts.values())
        idf = math.log(1 + (len(counts) - df + 0.5) / (df + 0.5))
        for key, count in counts.items():
            tf = count.get(word, 0)
            if tf:
                scores[key] += idf * tf * (k1 + 1) / (tf + k1 * (1 - b + b * lengths[key] / average))
    return {key: score for key, score in scores.items() if score > 0}


TEXTS = st.fixed_dictionaries(
    {}, optional={f: st.lists(st.sampled_from(WORDS), max_size=8).map(" ".join) for f in ("title", "text")}
)


@settings(max_examples=100, deadline=None)
@given(
    steps=st.lists(st.tuples(st.integers(0, 12), st.none() | TEXTS), max_size=60),
    query=st.lists(st.sampled_from((*WORDS, "unknown")), min_size=1, max_size=5).map(" ".join),
    k=st.integers(1, 15),
    allow=st.none() | st.lists(st.integers(0, 14), max_size=8),
)
def test_bm25_equals_its_formula_and_an_index_built_from_scratch(
    steps: list[tuple[int, dict[str, str] | None]], query: str, k: int, allow: list[int] | None
) -> None:
    store, texts = LiveText(Text("x")), dict[int, dict[str, str]]()
    for key, fields in steps:
        if fields is None:
            store.delete([key])
            texts.pop(key, None)
        else:
            store.put([key], [fields])
            texts[key] = fields
        store.keep()
    scratch = LiveText(Text("x"))
    for key in sorted(texts, reverse=True):
        scratch.put([key], [texts[key]])
    scratch.keep()
    allowed = None if allow is None else np.array(allow, np.int64)
    ids, scores = store.search(query, k, allowed)
    other_ids, other_scores = scratch.search(query, k, allowed)
    assert ids.tolist() == other_ids.tolist()
    assert scores.tolist() == other_scores.tolist()
    expected = {key: s for key, s in oracle(texts, query).items() if allow is None or key in allow}
    assert len(ids) == min(k, len(expected))
    np.testing.assert_allclose(scores, [expected[int(key)] for key in ids], rtol=1e-4)
    np.testing.assert_allclose(scores, sorted(expected.values(), reverse=True)[:k], rtol=1e-4)


def assert_same_answers(one: BM25, other: BM25, query: list[str]) -> None:
    (ids, scores), (other_ids, other_scores) = one.search(query, 20), other.search(query, 20)
    assert ids.tolist() == other_ids.tolist()
    assert scores.tolist() == other_scores.tolist()


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_bm25_is_exact_across_compactions_and_forgets_unused_terms(seed: int) -> None:
    rng = np.random.default_rng(seed)
    index, held = BM25(), dict[int, dict[str, float]]()
    for i in range(1500):
        key = int(rng.integers(0, 400))
        if rng.random() < 0.3:
            index.delete([key])
            held.pop(key, None)
        else:
            held[key] = {f"w{int(w)}": 1.0 + int(w) % 2 for w in rng.integers(0, 50, 6)} | {f"only{i}": 1.0}
            index.put(key, held[key])
    scratch = BM25()
    for key, counts in held.items():
        scratch.put(key, counts)
    query = ["w1", "w7", "w7", "w30"]
    assert_same_answers(index, scratch, query)
    assert len(index._forward) <= len(index) * 5 // 4 + 257
    assert len(index._df) <= 50 + 400 + 257  # at most 400 are live, 256 dead before a compaction
    with tempfile.TemporaryDirectory() as name:
        index.save(Path(name))
        loaded = BM25()
        loaded.load(Path(name))
    for key in list(held)[:100]:
        loaded.delete([key])
        scratch.delete([key])
    assert_same_answers(loaded, scratch, query)
