"""The store around a layered index: replicas, reloaded copies and replays hold the same, whenever their merges ran."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from streamfold.core.stores import LiveVectors, Vectors
from streamfold.core.stores.vectors import LayeredVectors

KEYS = st.integers(0, 20)
OPERATIONS = st.lists(st.tuples(st.booleans(), KEYS, st.integers(-9, 9)), max_size=12)
EVENTS = st.lists(st.tuples(st.sampled_from(["keep", "keep", "undo"]), OPERATIONS), max_size=12)


def open_one(background: bool) -> LiveVectors:
    def make(dim: int, normalize: bool) -> LayeredVectors:
        return LayeredVectors(
            dim, normalize, exact_rows=4, growing_rows=2, segment_rows=8, nprobe=100, background=background
        )

    return LiveVectors(Vectors("v", max_rows=16, on_full="evict"), make_index=make)


def fold(store: LiveVectors, event: tuple[str, list[tuple[bool, int, int]]]) -> None:
    end, operations = event
    store.begin()
    for put, key, number in operations:
        store.upsert([key], [[1.0, number, key]]) if put else store.delete([key])
    getattr(store, end)()


def content(store: LiveVectors) -> Any:
    """Ids and rows, and that a search finds all of them."""
    ids, _ = store.search([[1.0, 2.0, 3.0]], 20)
    return store.fingerprint(), np.sort(ids).tolist()


@settings(max_examples=60, deadline=None)
@given(events=EVENTS, drains=st.sets(st.integers(0, 12)), reload_at=st.integers(0, 12), background=st.booleans())
def test_copies_are_equal_whatever_their_layers(
    events: list[Any], drains: set[int], reload_at: int, background: bool
) -> None:
    origin, clean, reloaded = open_one(background), open_one(False), open_one(not background)
    replica = open_one(background)
    with tempfile.TemporaryDirectory() as name:
        for i, event in enumerate(events):
            fold(origin, event)
            if event[0] == "keep":
                fold(clean, event)
            if i == reload_at:
                origin.save(Path(name))
                reloaded.load(Path(name))
            elif i > reload_at:
                fold(reloaded, event)
            if i in drains and (changes := origin.drain()) is not None:
                replica.apply(changes)
                replica.apply(changes)
        if (changes := origin.drain()) is not None:
            replica.apply(changes)
        assert content(clean) == content(origin)
        assert content(replica) == content(origin)
        if len(events) > reload_at:
            assert content(reloaded) == content(origin)
        for store in (origin, clean, reloaded, replica):
            store.close()
