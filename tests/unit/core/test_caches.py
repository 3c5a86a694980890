"""Caches that hold names are emptied after erasures, by this process and by others."""

from __future__ import annotations

import dataclasses
import gc
import threading
import weakref
from functools import lru_cache
from pathlib import Path

import pytest

from streamfold.core.caches import Erasures, emptied_on_erasure, empty_caches
from streamfold.core.stores._column import TopColumn
from streamfold.core.testing.ledger_contract import WORKSPACE, make_event
from streamfold.core.testing.new_ledger import open_new


class Holder:
    """Keeps names."""

    def __init__(self) -> None:
        self.names = {"ada"}
        emptied_on_erasure(self.forget)

    def forget(self) -> None:
        self.names.clear()


def test_whatever_is_named_is_emptied_and_nothing_is_kept_alive() -> None:
    holder, kept = Holder(), {"ada": 1}

    class Names(dict[str, int]):
        pass

    names = emptied_on_erasure(Names(kept))
    shout = emptied_on_erasure(lru_cache(10)(str.upper))
    assert shout("ada") == "ADA"
    empty_caches()
    assert (holder.names, names, shout.cache_info().currsize) == (set(), {}, 0)
    left = [weakref.ref(one) for one in (holder, names, shout)]
    del holder, names, shout
    gc.collect()
    assert [one() for one in left] == [None, None, None]


def test_one_that_fails_does_not_keep_the_others(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        def clear(self) -> None:
            raise RuntimeError("no")

    broken, holder = emptied_on_erasure(Broken()), Holder()
    empty_caches()
    assert not holder.names
    assert "cache_not_emptied" in caplog.text
    del broken


def test_an_erasure_that_another_process_completes_empties_caches_here(tmp_path: Path) -> None:
    ledger = open_new(f"sqlite:///{tmp_path}/ledger.db")
    erasing = dataclasses.replace(make_event("e1", subject="ada"), erases=True)
    ledger.ensure_workspace(WORKSPACE)
    ledger.append(WORKSPACE, [erasing], recorded_us=1)
    erasures, holder = Erasures(ledger), Holder()
    erasures.look()
    assert holder.names, "it is not complete"
    ledger.end_erasure(WORKSPACE, 1, "complete", 5)
    for _ in range(2):  # at the first look a view may still show the erased
        holder.names.add("ada")
        erasures._due = 0.0
        erasures.look()
        assert not holder.names
    holder.names.add("grace")
    erasures._due = 0.0
    erasures.look()
    assert holder.names, "no more"
    ledger.close()


def test_a_column_lets_go_of_deleted_keys_at_once() -> None:
    rows = {f"i{n}": float(n) for n in range(10)}
    column, gone = TopColumn(float), object()
    column.removed(["i1"])  # nothing is held yet
    assert [key for key, _ in column.top(2, rows, gone)] == ["i9", "i8"]
    for key in ("i9", "i3"):
        del rows[key]
    column.changed(["i3", "i5"])
    rows["i5"] = 50.0
    column.removed(["i9", "i3"])
    assert {"i9", "i3"}.isdisjoint(column._keys or ())
    assert {"i9", "i3"}.isdisjoint(column._slots)
    assert column._stale == {"i5"}
    assert column._last is None
    assert column.top(3, rows, gone) == [("i5", 50.0), ("i8", 8.0), ("i7", 7.0)]


def test_emptying_while_others_fill(tmp_path: Path) -> None:
    from streamfold.plugins import _codes

    stop = threading.Event()
    wrong: list[int] = []

    def fill() -> None:
        while not stop.is_set():
            for n in range(50):
                if _codes.code("user", f"u{n}") != _codes._USERS.of([f"u{n}"])[0]:
                    wrong.append(n)

    threads = [threading.Thread(target=fill) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        empty_caches()
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
