"""An alarm is answered once: by one candidate or one rebuild, whoever asks, at once or again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from streamfold.core import Event, Policy, Stores, Table
from streamfold.core.errors import ConfigError, VersionConflict
from streamfold.core.fold import refresh, versions
from streamfold.core.testing import World, plugin


@dataclass(frozen=True, slots=True, kw_only=True)
class CountConfig:
    step: int = 1
    other: int = 0


class Count(Policy):
    """Counts items in steps."""

    name, version, handles = "count", 1, ("interaction.observed",)
    stores = (Table("count", value=int),)
    Config = CountConfig

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        key = event.data.item_id
        stores["count"].put(key, stores["count"].get(key, 0) + self.config.step)


class Reader(Count):
    """Reads the counts."""

    name, reads = "reader", ("count",)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, [plugin([Count, Reader])], {"count": {"other": 7}, "reader": {}}) as world:
        for n in range(3):
            world.send("interaction.observed", {"user_id": "u", "item_id": f"i{n}", "action": "view"})
        world.fold()
        world.clock.advance(60)
        yield world


def shadow(world: World, name: str = "count", **more: Any) -> str:
    given: dict[str, Any] = {"since_us": world.clock.now_us(), "config": {"step": 2}, "start": "start", "rate": 0}
    return refresh.shadow(world.context, world.workspace, name, **given | more, actor="rule", reason="drift")


def slots(world: World) -> dict[str, str]:
    return {row.group: row.slot for row in world.ledger.instances(world.workspace)}


def test_a_candidate_has_the_live_configuration_but_for_what_the_rule_says_and_folds_its_history(world: World) -> None:
    group = shadow(world)
    row = next(one for one in world.ledger.instances(world.workspace) if one.group == group and one.name == "count")
    assert (row.slot, row.start_seq) == ("shadow", 0)
    assert '"step":2' in row.config
    assert '"other":7' in row.config
    world.fold()
    assert world.ledger.group(world.workspace, group).watermark == 3
    assert not world.ledger.group(world.workspace, group).auto  # it waits for the gate
    [entry] = world.ledger.audits(world.workspace)
    assert (entry.actor, entry.action, entry.target) == ("rule", "add", group)


def test_the_same_alarm_gives_the_same_candidate_even_when_that_is_retired_or_live_by_now(world: World) -> None:
    since_us = world.clock.now_us()
    group = shadow(world)
    world.clock.advance(5)
    assert shadow(world, since_us=since_us) == group
    world.fold()
    versions.promote(world.context, world.workspace, world.context.group("default", group), actor="a", reason="b")
    before = slots(world)
    assert before[group] == "live"
    assert shadow(world, since_us=since_us) == group
    assert slots(world) == before


def test_a_later_alarm_finds_the_shadow_of_an_earlier_one_and_leaves_it(world: World) -> None:
    group = shadow(world)
    world.clock.advance(5)
    with pytest.raises(VersionConflict, match="stands beside it already"):
        shadow(world, config={"step": 3})
    versions.retire(world.context, world.workspace, world.context.group("default", group), actor="a", reason="b")
    world.clock.advance(5)
    assert shadow(world, config={"step": 3}) != group


def test_a_demoted_version_is_no_shadow(world: World) -> None:
    group = shadow(world)
    world.fold()
    versions.promote(world.context, world.workspace, world.context.group("default", group), actor="a", reason="b")
    world.clock.advance(5)
    assert shadow(world, start="now", config={}) != group


def test_what_is_not_live_or_not_taken_is_refused_and_nothing_is_made(world: World) -> None:
    before = slots(world)
    with pytest.raises(VersionConflict, match="not live; did you mean 'count'"):
        shadow(world, "cuont")
    with pytest.raises(ConfigError, match="stpe"):
        shadow(world, config={"stpe": 2})
    with pytest.raises(VersionConflict, match="runs already"):
        shadow(world, config={})  # from the start with the same configuration: the same again
    assert slots(world) == before


@pytest.mark.parametrize("what", ["shadow", "consolidate"])
def test_of_many_who_answer_an_alarm_at_once_one_does(world: World, what: str) -> None:
    since_us = world.clock.now_us()
    before, found, barrier = slots(world), [], threading.Barrier(6)

    def ask() -> None:
        barrier.wait()
        if what == "shadow":
            found.append(shadow(world, since_us=since_us))
        else:
            found.append(consolidated(world, since_us))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    assert set(slots(world)) - set(before) == set(found)
    assert len(set(found)) == 1


def consolidated(world: World, since_us: int) -> str:
    context, workspace = world.context, world.workspace
    return refresh.consolidate(context, workspace, "count", since_us=since_us, actor="rule", reason="drift")


def test_what_is_consolidated_takes_its_own_place_with_what_it_knew(world: World) -> None:
    since_us, old = world.clock.now_us(), world.group("count").name
    known = dict(world.store("count", "count").items())
    group = consolidated(world, since_us)
    world.fold()
    assert (slots(world)[group], slots(world)[old]) == ("live", "retired")
    assert dict(world.store("count", "count").items()) == known
    assert consolidated(world, since_us) == group


def test_slots_that_change_between_the_look_and_the_candidate_are_looked_at_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process adds a shadow after this one has planned: seen by the revision, not doubled."""
    plan: Callable[..., Any] = versions.plan
    others = []

    def slow(context: Any, workspace: str, **given: Any) -> Any:
        rows = plan(context, workspace, **given)
        if not others:
            others.append(versions.add(context, workspace, rows, actor="other", reason="first").name)
        return rows

    monkeypatch.setattr(versions, "plan", slow)
    assert shadow(world) == others[0]
    assert sum(slot == "shadow" for slot in slots(world).values()) == 1
