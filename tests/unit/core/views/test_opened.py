"""Open views: opened when asked for, closed above the bound when nobody uses them, quiet ones followed rarely."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from streamfold.core import CandidateRequest, CandidateSource
from streamfold.core.settings import ServeSettings
from streamfold.core.testing.world import World
from streamfold.core.views import Views, WorkspaceView
from streamfold.plugins import builtin


class Time:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path, [builtin], {"trending": {}}) as made:
        for name in "abcde":
            fill(made, name, f"item-{name}")
        yield made


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def views(world: World, time: Time) -> Iterator[Views]:
    settings = world.context.settings.model_copy(update={"serve": ServeSettings(max_open_workspaces=2)})
    made = Views(replace(world.context, settings=settings), now=time)
    yield made
    made.stop()


def fill(world: World, workspace: str, item: str) -> None:
    world.workspace = workspace
    world.context.pin(workspace)
    world.send("interaction.observed", {"user_id": "u", "item_id": item, "action": "click"})
    world.fold()


def items(view: WorkspaceView) -> set[str]:
    ((group, member),) = view.servers(CandidateSource, "trending")
    with view.reading([group]):
        return {item for item, _ in member.server.candidates(CandidateRequest(n=9, at_us=2**60))}


def opened(views: Views) -> list[str]:
    return [view.name for view in views.opened()]


def test_the_least_recently_used_view_makes_room(views: Views) -> None:
    first = views.workspace("a")
    for name in ("b", "a", "c"):
        views.workspace(name)
    assert opened(views) == ["a", "c"]
    assert views.workspace("a") is first
    folders = {group.stores.folder for group in first.groups.values()}
    assert all(folder.exists() for folder in folders)
    views.workspace("d")
    views.workspace("e")
    assert first.closed
    assert not any(folder.exists() for folder in folders)
    assert not first.follow()
    again = views.workspace("a")
    assert again is not first
    assert items(again) == {"item-a"}


def test_a_view_in_use_stays_open(views: Views) -> None:
    with views.using("a") as used:
        for name in ("b", "c", "d"):
            views.workspace(name)
        assert not used.closed
        assert items(used) == {"item-a"}
        assert opened(views) == ["a", "d"]
    views.workspace("e")
    assert used.closed


def test_more_views_than_the_bound_stay_open_only_while_they_are_used(views: Views) -> None:
    entered = [views.enter(name) for name in "abcd"]
    assert len(opened(views)) == 4
    for view in entered:
        views.leave(view)
    views.workspace("e")
    assert opened(views) == ["d", "e"]


def test_a_quiet_view_is_brought_up_to_date_when_it_is_asked(views: Views, world: World, time: Time) -> None:
    view = views.workspace("a")
    fill(world, "a", "new")
    assert views.enter_if_fresh("a") is view  # followed at each poll, so no need to look
    views.leave(view)
    assert items(view) == {"item-a"}
    time.now += 60
    assert views.enter_if_fresh("a") is None
    assert views.enter_if_fresh("b") is None  # not open
    with views.using("a") as again:
        assert again is view
        assert items(again) == {"item-a", "new"}


def test_quiet_views_are_followed_once_a_second_and_those_that_were_woken_at_once(views: Views, time: Time) -> None:
    def due() -> list[str]:
        found = views._due()
        for one in found:
            assert views._follow(one)
        return sorted(one.view.name for one in found)

    views.workspace("a")
    views.workspace("b")
    assert due() == due() == ["a", "b"]
    time.now += 60
    assert due() == ["a", "b"]
    assert due() == []
    views.wake("b")
    assert due() == ["b"]
    assert due() == []
    time.now += 1.1
    assert due() == ["a", "b"]
    with views.using("a"):
        time.now += 60
        assert due() == ["a", "b"]
        assert due() == ["a"]


def test_many_threads_that_ask_more_workspaces_than_stay_open_all_get_their_answers(views: Views) -> None:
    wrong: list[object] = []

    def ask(seed: int) -> None:
        names = random.Random(seed)
        for _ in range(60):
            name = names.choice("abcde")
            with views.using(name) as view:
                if view.closed or items(view) != {f"item-{name}"}:
                    wrong.append((name, view.closed))

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert wrong == []
    views._close_surplus()  # as the follower does at each poll
    assert len(opened(views)) == 2
    assert views._opening == {}


def test_who_is_named_first_in_the_settings_answers_first(tmp_path: Path) -> None:
    policies: dict[str, dict[str, object]] = {"zeta": {"use": "trending"}, "alpha": {"use": "trending"}}
    with World(tmp_path, [builtin], policies) as world:
        views = Views(world.context)
        found = views.workspace(world.workspace).servers(CandidateSource)
        assert [member.runtime.instance.name for _, member in found] == ["zeta", "alpha"]
        views.stop()
