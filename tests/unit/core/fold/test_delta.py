"""How far a state is from the log folded afresh: nothing where it is equal, and else how much and where."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamfold.core import Array, Event, Policy, Stores, Subject, Table, Vectors
from streamfold.core.fold import note_deltas
from streamfold.core.fold.delta import Delta, measured
from streamfold.core.stores import Blobs, Graph, Text, open_store
from streamfold.core.testing import World, plugin
from streamfold.plugins import builtin

ENCODER = {"encoder": {"use": "hashing", "dim": 32}}


class Spent(Policy):
    """What was spent on each item and in all; forgets by subtraction, which leaves rounding."""

    name, version, handles = "spent", 1, ("interaction.observed",)
    stores = (Table("of", value=float), Array("all", shape=(2,), dtype="float64"), Table("newest", value=int))

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        self._add(event.data.item_id, event.data.value, stores)
        stores["newest"].put("at", event.seq)

    def _add(self, item: str, value: float, stores: Stores) -> None:
        stores["of"].put(item, stores["of"].get(item, 0.0) + value)
        stores["all"].put([1], stores["all"].get([1]) + value)

    def forget(self, subject: Subject, events: Any, stores: Stores) -> None:
        for event, _ in events:
            self._add(event.data.item_id, -event.data.value, stores)


def rated(user: str, item: str, value: float) -> tuple[str, dict[str, Any]]:
    return "interaction.observed", {"user_id": user, "item_id": item, "action": "rating", "value": value}


def test_what_subtraction_leaves_is_told_with_its_size_and_place(tmp_path: Path) -> None:
    with World(tmp_path, [plugin([Spent])], {"spent": {}}) as world:
        world.send_many([rated("u1", "i1", 0.1), rated("gone", "i1", 0.7), rated("u1", "i2", 4.0)])
        world.fold()
        world.send("user.erased", {"user_id": "gone"})
        world.erase()
        [verdict] = world.verify().values()
        delta = verdict.deltas["spent@1"]
        of, all_ = abs(0.1 + 0.7 - 0.7 - 0.1), abs(0.1 + 0.7 + 4.0 - 0.7 - (0.1 + 4.0))
        assert of > all_ == 0
        assert not verdict.equal
        assert (delta.max_abs, delta.column, delta.key) == (of, "of", "i1")
        assert delta.relative == of / 4.0, "beside the largest entry of its column"
        assert (delta.only_live, delta.only_afresh, delta.unequal) == (0, 0, 0)


HEADS: dict[str, dict[str, Any]] = {
    "label_statistics": {"half_life_s": 100.0},
    "kalman_head": {},
    "gradient_head": {
        "dim": 32,
        "max_classes": 16,
        "average": "ema",
        "every": 2,
        "anchor": 0.1,
        "align": "translation",
    },
    "corrections": {},
    "head_quality": {},
    "trending": {},
    "activity": {},
    "count_stack": {},
    "quality": {"ranker": "count_stack"},
}


def test_every_family_is_as_if_the_erased_had_never_come_to_the_last_bit(tmp_path: Path) -> None:
    """Statistics, Kalman, gradients with averages, corrections, measurements of heads and rankers."""
    with World(tmp_path, [builtin], HEADS, backends=ENCODER) as world:
        for n in range(16):
            user = f"u{n % 4}"
            world.clock.advance(7.0)
            target = {"user_id": user} if n % 5 == 0 else {"text": f"{user} says {n}"}
            world.send_many(
                [
                    ("user.upserted", {"user_id": user, "properties": {"says": f"tea {n % 3}"}}),
                    ("label.observed", {"head": "h", "target": target, "label": f"c{n % 3}"}),
                    rated(user, f"i{n % 7}", float(n % 5)),
                    ("exposure.recorded", {"exposure_id": f"x{n}", "kind": "recommend", "user_id": user,
                                           "items": [{"item_id": f"i{n % 7}", "rank": 1, "score": 0.5}]}),
                    ("feedback.given", {"exposure_id": f"x{n}", "value": 1.0, "user_id": user, "head": "h",
                                        "target": target, "correction": "c0"}),
                ]
            )  # fmt: skip
        world.fold()
        world.send("user.erased", {"user_id": "u1"})
        world.erase()
        verdicts = world.verify()
        found = {name: delta for verdict in verdicts.values() for name, delta in verdict.deltas.items()}
        assert {name.partition("@")[0] for name in found} == HEADS.keys()
        assert found == dict.fromkeys(found, Delta())
        assert all(verdict.equal for verdict in verdicts.values())


def opened(declaration: Any, folder: Path) -> Any:
    return open_store(declaration, folder=folder, side="both")


def delta(store: Any, other: Any) -> Delta:
    for one in (store, other):
        one.keep()
    return measured({"s": store}, {"s": other})


def table(folder: Path, rows: Mapping[Any, Any], value: Any = object) -> Any:
    store = opened(Table("s", value=value), folder)
    for key, row in rows.items():
        store.put(key, row)
    return store


def test_rows_of_one_side_are_counted_and_named(tmp_path: Path) -> None:
    found = delta(table(tmp_path, {"a": 1.0, "b": 2.0}), table(tmp_path, {"b": 2.5, "c": 3.0, "d": 1.0}))
    assert (found.max_abs, found.column, found.key) == (0.5, "s", "b")
    assert (found.only_live, found.only_afresh) == (1, 2)
    assert found.examples == ("s/a", "s/c", "s/d")


def test_a_difference_is_relative_to_the_largest_entry_of_its_own_field(tmp_path: Path) -> None:
    """A time in microseconds beside a weight does not make the weight's difference small."""
    one, other = {"a": (0.5, 1_700_000_000_000_000)}, {"a": (0.25, 1_700_000_000_000_000)}
    found = delta(table(tmp_path, one, tuple[float, int]), table(tmp_path, other, tuple[float, int]))
    assert (found.max_abs, found.relative, found.column) == (0.25, 0.5, "s[0]")
    named = delta(table(tmp_path, {"a": {"w": 0.5, "at": 10**15}}), table(tmp_path, {"a": {"w": 0.25, "at": 10**15}}))
    assert (named.max_abs, named.relative, named.column) == (0.25, 0.5, "s[]"), "a dict's key may be a name"


@pytest.mark.parametrize(
    ("one", "other", "unequal", "max_abs"),
    [
        ("text", "texts", 1, 0.0),
        (b"\0\1", b"\0\2", 1, 0.0),
        (True, False, 1, 0.0),
        (None, 1.0, 1, 0.0),
        ([1.0, 2.0], [1.0], 1, 0.0),
        ([1.0, "a"], [3.0, "a"], 0, 2.0),
        (float("inf"), 1.0, 1, 0.0),
        (2**62, 2**62 + 1, 0, 1.0),
        (np.arange(3.0), np.array([0.0, 1.0, 5.0]), 0, 3.0),
        (np.arange(3.0), np.array([0.0, np.nan, 2.0]), 1, 0.0),
        (np.arange(3), np.arange(4), 1, 0.0),
    ],
)
def test_values_of_any_shape_are_compared(tmp_path: Path, one: Any, other: Any, unequal: int, max_abs: float) -> None:
    found = delta(table(tmp_path, {"k": one}), table(tmp_path, {"k": other}))
    assert (found.unequal, found.max_abs) == (unequal, max_abs)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8"])
def test_arrays_tell_the_row(tmp_path: Path, dtype: str) -> None:
    one, other = (opened(Array("s", shape=(6, 2), dtype=dtype), tmp_path) for _ in range(2))
    one.put([4], [[0, 8]])
    other.put([4], [[0, 5]])
    found = delta(one, other)
    assert (found.max_abs, found.relative, found.column, found.key) == (3.0, 3 / 8, "s", "4")


def test_the_largest_whole_numbers_are_told_apart(tmp_path: Path) -> None:
    one, other = (opened(Array("s", shape=(2,), dtype="int64"), tmp_path) for _ in range(2))
    one.put([1], [2**62])
    other.put([1], [2**62 + 1])
    assert delta(one, other).max_abs == 1.0


def test_vectors_graphs_texts_and_blobs_are_compared(tmp_path: Path) -> None:
    stores = [opened(Vectors("s", dim=2, normalize=False), tmp_path) for _ in range(2)]
    stores[0].upsert([1, 2], [[1.0, 0.0], [0.0, 1.0]])
    stores[1].upsert([1, 3], [[0.5, 0.0], [0.0, 1.0]])
    found = delta(*stores)
    assert (found.max_abs, found.key, found.only_live, found.only_afresh) == (0.5, "1", 1, 1)
    graphs = [opened(Graph("s"), tmp_path) for _ in range(2)]
    graphs[0].put("a", ["b", "c"], [1.0, 2.0])
    graphs[1].put("a", ["b"], [4.0])
    found = delta(*graphs)
    assert (found.max_abs, found.relative, found.only_live) == (3.0, 0.75, 1)
    texts = [opened(Text("s"), tmp_path) for _ in range(2)]
    blobs = [opened(Blobs("s"), tmp_path) for _ in range(2)]
    for n, (text, blob) in enumerate(zip(texts, blobs, strict=True)):
        text.put([1], [{"text": f"words {n}"}])
        blob.put("k", f"bytes {n}".encode())
    for pair in (texts, blobs):
        assert delta(*pair) == Delta(unequal=1)


def test_the_reports_of_erasures_that_are_over_take_the_number_without_a_key(tmp_path: Path) -> None:
    with World(tmp_path, [plugin([Spent])], {"spent": {}}) as world:
        world.send_many([rated("gone", "i1", 0.7), rated("u1", "i1", 0.1)])
        world.fold()
        world.send("user.erased", {"user_id": "gone"})
        world.erase()
        world.send("user.erased", {"user_id": "later"})
        world.fold()
        [verdict] = world.verify().values()
        note_deltas(world.context, world.workspace, verdict, began_us=world.clock.now_us())
        first, second = (world.ledger.erasure(world.workspace, position) for position in (3, 4))
        assert first is not None
        assert second is not None
        assert f'"max_abs": {verdict.deltas["spent@1"].max_abs}' in first.report
        assert '"column": "of"' in first.report
        assert "i1" not in first.report, "a key may name somebody who is erased later"
        assert "deltas" not in second.report, "it is not over"
