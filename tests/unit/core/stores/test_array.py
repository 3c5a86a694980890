"""Rows change in place, are undone without a trace, and travel as what they are, not as what was added."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from streamfold.core.errors import StoreError
from streamfold.core.stores import Array, LiveArray, open_store

DECLARED = Array("w", shape=(6, 2), dtype="float64", fill=0.5)
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["keep", "keep", "undo"]),
        st.lists(st.tuples(st.lists(st.integers(0, 5), max_size=4), st.integers(-3, 3)), max_size=4),
    ),
    max_size=12,
)


def opened(folder: Path, side: Any = "fold") -> LiveArray:
    store = open_store(DECLARED, folder=folder, side=side)
    assert isinstance(store, LiveArray)
    return store


def saved(store: LiveArray, name: str) -> Path:
    folder = Path(name)
    folder.mkdir()
    store.save(folder)
    return folder


@settings(max_examples=80, deadline=None)
@given(events=EVENTS, drains=st.sets(st.integers(0, 12)))
def test_a_view_a_reloaded_copy_and_a_plain_array_are_equal(events: list[Any], drains: set[int]) -> None:
    with tempfile.TemporaryDirectory() as name:
        fold, view = opened(Path(name)), opened(Path(name), "view")
        model = np.full((6, 2), 0.5)
        for i, (end, writes) in enumerate(events):
            fold.begin()
            before = model.copy()
            for rows, step in writes:
                touched = fold.touch(rows)
                fold.values[touched] += step
                model[touched] += step
            getattr(fold, end)()
            if end == "undo":
                model = before
            assert (fold.values == model).all()
            if i in drains and (changes := fold.drain()) is not None:
                view.apply(changes)
                view.apply(changes)
        if (changes := fold.drain()) is not None:
            view.apply(changes)
        assert (view.values == model).all()
        assert view.fingerprint() == fold.fingerprint()
        loaded = opened(Path(name), "view")
        loaded.load(saved(fold, name + "/saved"))
        assert loaded.fingerprint() == fold.fingerprint()
        assert fold.drain() is None


def test_torch_works_on_the_same_memory(tmp_path: Path) -> None:
    fold = opened(tmp_path)
    weights = torch.from_numpy(fold.values)
    fold.begin()
    fold.touch(np.array([2]))
    weights[2] += 1.0
    fold.keep()
    assert fold.values[2].tolist() == [1.5, 1.5]
    fold.begin()
    fold.put([2, 3], [[9.0, 9.0], [8.0, 8.0]])
    fold.undo()
    assert weights[2].tolist() == [1.5, 1.5]
    assert fold.get([2]).tolist() == [[1.5, 1.5]]


def test_a_row_that_is_touched_twice_in_an_event_is_undone_to_its_start(tmp_path: Path) -> None:
    fold = opened(tmp_path)
    fold.begin()
    for _ in range(3):
        fold.touch([1])
        fold.values[1] *= 2
    fold.undo()
    assert fold.values[1].tolist() == [0.5, 0.5]
    assert fold.drain() is None


def test_a_view_cannot_be_written(tmp_path: Path) -> None:
    view = opened(tmp_path, "view")
    with pytest.raises(StoreError, match="read-only"):
        view.touch([0])
    with pytest.raises(ValueError, match="read-only"):
        view.values[0] = 1.0


@pytest.mark.parametrize("rows", [[-1], [6], [0.5], [[0, 1]], ["a"]])
def test_rows_that_are_none_are_refused(tmp_path: Path, rows: Any) -> None:
    with pytest.raises(StoreError, match="'w'"):
        opened(tmp_path).touch(rows)


@pytest.mark.parametrize(
    "declared",
    [
        Array("a", shape=()),
        Array("a", shape=(0, 2)),
        Array("a", shape=(2, -1)),
        Array("a", shape=(2,), dtype="object"),
        Array("a", shape=(1 << 40, 64)),
    ],
)
def test_an_array_that_cannot_be_is_refused(tmp_path: Path, declared: Array) -> None:
    with pytest.raises(StoreError, match="'a'"):
        open_store(declared, folder=tmp_path, side="fold")


def test_another_shape_does_not_load(tmp_path: Path) -> None:
    other = open_store(Array("w", shape=(6, 3), dtype="float64"), folder=tmp_path, side="view")
    with pytest.raises(StoreError, match="another version"):
        other.load(saved(opened(tmp_path), str(tmp_path / "saved")))


def test_a_row_touched_alone_is_undone_drained_and_checked_like_many() -> None:
    declared = Array("n", shape=(4, 2), dtype="float64")
    fold, view = LiveArray(declared), LiveArray(declared, writable=False)
    fold.touch_row(1)
    fold.values[1] = 7.0
    fold.touch([1, 2])
    fold.values[[1, 2]] = 9.0
    fold.touch_row(1)
    fold.values[1] = 11.0
    fold.undo()
    assert fold.values.sum() == 0.0
    fold.touch_row(3)
    fold.values[3] = 5.0
    fold.touch([0])
    fold.values[0] = 1.0
    fold.keep()
    changes = fold.drain()
    assert changes is not None
    view.apply(changes)
    assert view.values.tolist() == fold.values.tolist() == [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0], [5.0, 5.0]]
    assert fold.drain() is None
    for row in (-1, 4):
        with pytest.raises(StoreError, match="none of them"):
            fold.touch_row(row)
    with pytest.raises(StoreError, match="read-only"):
        view.touch_row(0)
