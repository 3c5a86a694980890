"""Tables: types, bound, undo, top."""

from __future__ import annotations

import math
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest

from streamfold.core.errors import StoreError, StoreFull
from streamfold.core.stores import LiveTable, Table, open_store


class Profile(msgspec.Struct, frozen=True):
    name: str
    weights: np.ndarray


@pytest.mark.parametrize(
    ("declared", "key", "value"),
    [
        (Table("t"), 1, 1.0),
        (Table("t"), "a", "x"),
        (Table("t"), "a", math.nan),
        (Table("t"), "a", True),
        (Table("t"), "a", None),
        (Table("t", key=int), "a", 1.0),
        (Table("t", key=int), True, 1.0),
        (Table("t", key=int), 1 << 63, 1.0),
        (Table("t", value=int), "a", 1.5),
        (Table("t", value=int), "a", -(1 << 63) - 1),
        (Table("t", value=Profile), "a", {"name": "x"}),
        (Table("t", value=tuple[int, str]), "a", ("x", 1)),
    ],
)
def test_wrong_key_or_value_is_refused_and_leaves_nothing(declared: Table, key: object, value: object) -> None:
    table = LiveTable(declared)
    with pytest.raises(StoreError, match="table 't'"):
        table.put(key, value)
    assert len(table) == 0
    assert table.drain() is None


def test_whole_numbers_and_numpy_scalars_become_the_declared_type() -> None:
    table = LiveTable(Table("t", key=int, value=float))
    table.put(np.int64(3), 2)
    table.put(4, np.float32(0.5))
    assert list(table.items()) == [(3, 2.0), (4, 0.5)]
    assert all(type(value) is float for _, value in table.items())


def test_structs_with_arrays_round_trip(tmp_path: Path) -> None:
    table = LiveTable(Table("t", value=Profile, max_rows=3))
    table.put("a", Profile("x", np.arange(3, dtype=np.float32)))
    changes = table.drain()
    assert changes is not None
    table.save(tmp_path)
    applied, loaded = (LiveTable(Table("t", value=Profile, max_rows=3)) for _ in range(2))
    applied.apply(changes)
    loaded.load(tmp_path)
    for copy in (applied, loaded):
        assert isinstance(copy.get("a"), Profile)
        np.testing.assert_array_equal(copy.get("a").weights, [0, 1, 2])
        assert copy.fingerprint() == table.fingerprint()


def test_lowest_value_makes_room_and_the_written_row_stays() -> None:
    table = LiveTable(Table("t", max_rows=2))
    for key, value in [("a", 5.0), ("b", 3.0), ("c", 1.0)]:
        table.put(key, value)
    assert dict(table.items()) == {"a": 5.0, "c": 1.0}


def test_longest_unwritten_row_makes_room() -> None:
    table = LiveTable(Table("t", value=str, max_rows=2))
    for key in ("a", "b", "a", "c"):
        table.begin()
        table.put(key, "x")
        table.keep()
    assert [key for key, _ in table.items()] == ["a", "c"]


def test_full_table_that_refuses_takes_updates_and_room_made_by_deletes() -> None:
    table = LiveTable(Table("t", max_rows=1, on_full="refuse"))
    table.put("a", 1.0)
    table.put("a", 2.0)
    with pytest.raises(StoreFull, match="max_rows"):
        table.put("b", 1.0)
    table.delete("a")
    table.put("b", 1.0)
    assert list(table.items()) == [("b", 1.0)]


def test_event_reads_its_own_writes_and_deletes() -> None:
    table = LiveTable(Table("t"))
    table.put("a", 1.0)
    table.begin()
    table.delete("a")
    assert table.get("a", 7.0) == 7.0
    assert "a" not in table
    assert table.get_many(["a", "b"], 0.0) == [0.0, 0.0]
    assert len(table) == 0
    table.undo()
    assert table.get("a") == 1.0


def test_top_of_ties_takes_the_smallest_keys_and_follows_writes() -> None:
    table = LiveTable(Table("t", key=int, value=int, max_rows=20_000))
    for key in reversed(range(10_000)):
        table.put(key, 1)
    assert table.top(3) == [(0, 1), (1, 1), (2, 1)]
    table.put(7_000, 5)
    table.delete(0)
    assert table.top(3) == [(7_000, 5), (1, 1), (2, 1)]
    table.begin()
    table.put(3, 9)
    assert table.top(1) == [(3, 9)]
    table.undo()
    assert table.top(1) == [(7_000, 5)]


def test_top_is_for_numeric_tables() -> None:
    with pytest.raises(StoreError, match="only float and int"):
        LiveTable(Table("t", value=str)).top(1)
    with pytest.raises(StoreError, match="at least one"):
        LiveTable(Table("t")).top(0)


def test_state_bytes_are_near_the_packed_size(tmp_path: Path) -> None:
    table = LiveTable(Table("t"))
    for i in range(1000):
        table.put(f"item-{i}", float(i))
        if i % 100 == 0:
            table.drain()
    table.save(tmp_path)
    size = (tmp_path / "rows.msgpack").stat().st_size
    assert size / 2 < table.state_bytes() < size * 2


def test_table_that_the_fold_does_not_hold_refuses_reads() -> None:
    table = open_store(Table("t", value=str, fold_reads=False), folder=Path(), side="fold")
    assert isinstance(table, LiveTable)
    table.put("a", "x")
    for read in (lambda: table.get("a"), lambda: "a" in table, lambda: table.top(1), lambda: list(table.items())):
        with pytest.raises(StoreError, match="fold_reads=True"):
            read()
    assert table.drain() is not None
    assert "x" not in table._rows.values()


def test_readers_that_ask_for_the_top_at_once_all_get_it() -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(20):
            table = LiveTable(Table("t"))
            for i in range(2000):
                table.put(f"k{i:04}", float(i))
            together = threading.Barrier(4)

            def ask(table: LiveTable = table, together: threading.Barrier = together) -> list[tuple[str, float]]:
                together.wait()
                return table.top(1)

            with ThreadPoolExecutor(4) as pool:
                asked = [pool.submit(ask) for _ in range(4)]
                assert [future.result() for future in asked] == [[("k1999", 1999.0)]] * 4
    finally:
        sys.setswitchinterval(interval)
