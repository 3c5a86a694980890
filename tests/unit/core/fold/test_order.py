"""Members that gather come to what the loop over events gives, whatever is folded alone, is refused or breaks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from streamfold.core import Event, EventError, Policy, Stores, Table
from streamfold.core.fold import order, refold
from streamfold.core.fold.refold import Refold
from streamfold.core.fold.stores import GroupStores
from streamfold.core.testing import World, plugin

SENT = ["a", "b", "a", "refused", "a", "alone", "b", "odd", "a", "b", "b", "refused", "alone", "a"]


class Counts(Policy):
    """How often an item came; folds each event at once."""

    name, version, handles = "counts", 1, ("interaction.observed", "item.deleted")
    stores = (Table("count", key=str, value=int, max_rows=100),)

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        if event.type == "item.deleted":
            stores["count"].delete(event.subject.id)
        else:
            item = event.data.item_id
            stores["count"].put(item, stores["count"].get(item, 0) + 1)


class Before(Policy):
    """What the count was before each event, and how many events came by; returns that number of each."""

    name, version, handles, reads = "before", 1, ("interaction.observed",), ("counts",)
    stores = (Table("count", key=int, value=int, max_rows=100), Table("all", key=str, value=int, max_rows=1))
    calls: list[int]

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.calls = []

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        self._fold(self._gathered(event, stores), stores)

    def gather(self, event: Event, stores: Stores) -> Any:
        return None if event.data.item_id == "alone" else self._gathered(event, stores)

    def fold_gathered(self, gathered: Sequence[Any], told: Mapping[str, Any], stores: Stores) -> list[int]:
        self.calls.append(len(gathered))
        if any(item == "odd" for _, item, _ in gathered):
            raise ValueError("odd ones cannot be folded together")
        return [self._fold(one, stores) for one in gathered]

    def _gathered(self, event: Event, stores: Stores) -> tuple[int, str, int]:
        item = event.data.item_id
        if item == "refused":
            raise EventError("not this one")
        if item == "broken":
            raise ZeroDivisionError("a bug")
        return event.seq, item, stores.of("counts")["count"].get(item, 0)

    def _fold(self, one: tuple[int, str, int], stores: Stores) -> int:
        seq, _, count = one
        there: int = stores["all"].get("all", 0)
        stores["count"].put(seq, count)
        stores["all"].put("all", there + 1)
        return there


class Hears(Policy):
    """How many events its neighbour had folded before each."""

    name, version, handles, reads = "hears", 1, ("interaction.observed",), ("before",)
    hears = ("before",)
    stores = (Table("there", key=int, value=int, max_rows=100),)

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        stores["there"].put(event.seq, stores.of("before")["all"].get("all", 0))

    def gather(self, event: Event, stores: Stores) -> int:
        return event.seq

    def fold_gathered(self, gathered: Sequence[int], told: Mapping[str, Any], stores: Stores) -> None:
        for seq, there in zip(gathered, told["before"], strict=True):
            stores["there"].put(seq, there)


class Peeks(Hears):
    """The same, but it does not gather."""

    name, hears = "peeks", ()
    gather = Policy.gather


Contents = dict[str, dict[Any, Any]]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Any]:
    worlds: list[World] = []

    def world(*kinds: type[Policy], batch: int = 100) -> World:
        made = World(
            tmp_path / f"{len(worlds)}",
            [plugin(kinds)],
            {kind.name: {} for kind in kinds},
            fold={"batch_events": batch},
        )
        worlds.append(made)
        return made

    yield world
    for one in worlds:
        one.close()


def send(world: World, items: Sequence[str]) -> None:
    for item in items:
        world.send("interaction.observed", {"user_id": "u", "item_id": item, "action": "click"})
        if item == "b":
            world.send("item.deleted", {"item_id": "a"})


def policy(world: World, name: str) -> Any:
    return next(r.policy for r in world.group(name).runtimes if r.instance.name == name)


def held(world: World) -> Contents:
    names = [r.instance.name for r in world.group("counts").runtimes]
    found = {name: world.view.member(name) for name in names}
    return {
        f"{name}.{one.name}": dict(member[one.name].items())
        for name, member in found.items()
        for one in member.runtime.policy.stores
    }


@pytest.mark.parametrize("batch", [1, 3, 100])
def test_what_is_gathered_equals_the_loop(batch: int, opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    worlds = [opened(Counts, Before, Hears, batch=batch) for _ in range(2)]
    for world, gathers in zip(worlds, (True, False), strict=True):
        with monkeypatch.context() as patch:
            if not gathers:
                patch.setattr(order, "gathering", lambda group: [])
            send(world, SENT)
            world.fold()
            world.forget_warm()  # recorded skips are honoured when the rest is folded
            send(world, SENT)
            world.fold()
            letters = world.ledger.dead_letters(world.workspace)
            assert [letter.detail for letter in letters] == ["not this one"] * 4
    assert held(worlds[0]) == held(worlds[1])
    assert len(held(worlds[0])["hears.there"]) == 28
    assert bool(policy(worlds[0], "before").calls)
    assert not policy(worlds[1], "before").calls
    for verdict in worlds[0].verify().values():
        assert verdict.equal, verdict.differences


def test_a_run_ends_where_an_event_is_folded_alone(opened: Any) -> None:
    world = opened(Counts, Before, Hears)
    send(world, ["a", "a", "b", "alone", "a", "refused", "b", "b"])
    world.fold()
    assert policy(world, "before").calls == [3, 1, 2]


def test_what_cannot_be_folded_together_is_folded_one_by_one(opened: Any) -> None:
    world = opened(Counts, Before, Hears)
    send(world, ["a", "odd", "a"])
    world.fold()
    send(world, ["a", "a"])
    world.fold()
    assert policy(world, "before").calls == [3, 2]
    assert list(held(world)["before.count"].values()) == [0, 0, 1, 2, 3]


def test_a_bug_in_gather_halts_at_its_event(opened: Any) -> None:
    world = opened(Counts, Before, Hears)
    send(world, ["a", "a", "broken", "a"])
    world.fold()
    group = world.ledger.group(world.workspace, world.group("before").name)
    assert group.halted is not None
    assert "ZeroDivisionError" in group.halted
    assert group.watermark == 2
    assert list(held(world)["before.count"].values()) == [0, 1]


def test_nobody_gathers_where_somebody_reads_who_does_without_hearing(opened: Any) -> None:
    world = opened(Counts, Before, Hears, Peeks)
    send(world, ["a", "b", "a"])
    world.fold()
    assert order.gathering(world.group("before")) == []
    assert not policy(world, "before").calls
    assert held(world)["peeks.there"] == held(world)["hears.there"] == {1: 0, 2: 1, 4: 2}


def afresh(world: World, *, batched: bool, without: Sequence[int] = ()) -> tuple[Contents, Refold]:
    """Fold the log afresh beside the live state, as for an erasure; in two steps."""
    group = world.group("counts")
    stores = GroupStores(world.context, group, side="both")
    fold = Refold(
        world.context, world.workspace, group, stores, without=frozenset(without), batched=batched, keep_skips=True
    )
    fold.run(world.ledger.head(world.workspace) // 2)
    fold.run(world.ledger.head(world.workspace))
    found = {key: dict(store.items()) for key, store in stores.stores.items()}  # type: ignore[attr-defined]  # tables
    stores.close()
    return found, fold


@pytest.mark.parametrize("page", [1, 5, 2048])
def test_what_is_folded_afresh_gathers_and_equals_the_loop(
    page: int, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refold, "_PAGE", page)
    world = opened(Counts, Before, Hears)
    send(world, [item for item in SENT if item != "odd"])
    world.fold()
    send(world, [item for item in SENT if item != "odd"])  # these were never folded: nothing is known of their skips
    calls = policy(world, "before").calls
    calls.clear()
    loop, looped = afresh(world, batched=False, without=(1, 9))
    assert not calls
    found, fold = afresh(world, batched=True, without=(1, 9))
    assert sum(calls) == 17
    assert max(calls) > 1 or page == 1
    assert found == loop
    assert fold.count == looped.count
    assert [letter.position for letter in fold.dead] == [letter.position for letter in looped.dead]
    assert len(fold.dead) == 2


def test_what_cannot_be_gathered_afresh_is_begun_anew_and_folded_one_by_one(
    opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refold, "_PAGE", 8)
    world = opened(Counts, Before, Hears)
    send(world, [*SENT, *SENT, "a", "a"])
    calls = policy(world, "before").calls
    loop, looped = afresh(world, batched=False)
    assert not calls
    found, fold = afresh(world, batched=True)
    assert calls == [3, 1, 1, 4], "the last of these runs failed, and nothing was gathered after it"
    assert found == loop
    assert fold.count == looped.count == 38
    assert [letter.position for letter in fold.dead] == [letter.position for letter in looped.dead]
    assert len(fold.dead) == 4
