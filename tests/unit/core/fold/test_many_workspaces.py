"""Folds of many workspaces in one process: warm stores up to a bound, turns for everybody."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamfold.core.fold import EmbeddedRunner, MemoryPrepared
from streamfold.core.testing.world import World
from streamfold.plugins import builtin


def click(n: int) -> tuple[str, dict[str, Any]]:
    return "interaction.observed", {"user_id": "u", "item_id": f"i{n}", "action": "click"}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    fold = {"max_warm_groups": 2, "turn_ms": 1, "batch_events": 1}
    with World(tmp_path, [builtin], {"trending": {}}, fold=fold) as made:
        yield made


def at(world: World, workspace: str) -> None:
    world.workspace = workspace
    world.context.pin(workspace)


def test_the_stores_that_folded_last_stay_warm_and_the_others_recover(world: World) -> None:
    for number in range(3):
        for name in "abcd":
            at(world, name)
            world.send_many([click(number), click(number + 10)])
            world.fold()
            assert name in world.runner.warm()
            assert len(world.runner.warm()) <= 3  # those warm when it came, and itself
    assert world.runner.warm() >= {"c", "d"}
    assert all(state.owner is None for state in world.ledger.groups("a"))  # its lease was given back
    for name in "abcd":
        at(world, name)
        assert world.ledger.watermarks(name).popitem()[1][0] == world.ledger.head(name) == 6
        assert all(verdict.equal for verdict in world.verify().values())


def test_a_round_ends_though_more_is_left(world: World) -> None:
    at(world, "flood")
    world.send_many([click(n) for n in range(2000)])
    assert world.runner.run("flood", rounds=1)
    [(mark, _)] = world.ledger.watermarks("flood").values()
    assert 0 < mark < 2000
    assert not world.runner.run("flood")
    [(mark, _)] = world.ledger.watermarks("flood").values()
    assert mark == 2000


def test_only_workspaces_behind_their_log_are_looked_for(world: World) -> None:
    for name in "ab":
        at(world, name)
        world.send_many([click(1)])
    assert sorted(world.ledger.behind()) == ["a", "b"]
    world.fold()
    assert world.ledger.behind() == ["a"]
    world.ledger.set_slot("a", world.group("trending").name, "retired")
    assert world.ledger.behind() == []
    world.ledger.ensure_workspace("empty")
    assert world.ledger.behind() == []


def test_a_workspace_with_a_long_backlog_lets_another_pass(world: World) -> None:
    at(world, "flood")
    world.send_many([click(n) for n in range(5000)])
    at(world, "other")
    world.send_many([click(1)])
    left_when_the_other_was_done: list[int] = []

    def committed(workspace: str, group: str) -> None:
        if workspace == "other":
            [(mark, _)] = world.ledger.watermarks("flood").values()
            left_when_the_other_was_done.append(5000 - mark)

    runner = EmbeddedRunner(world.context, MemoryPrepared(world.context), on_commit=committed)
    runner.start()
    try:
        deadline = time.monotonic() + 300
        while not left_when_the_other_was_done:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        runner.stop()
    assert left_when_the_other_was_done[0] > 0
