"""A view switches versions at the position of their promotion, whatever the folds do meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamfold.core import Candidates, CandidateSource, Event, Policy, Stores, Table, View
from streamfold.core.context import Group
from streamfold.core.fold import versions
from streamfold.core.ledger.abc import Commit
from streamfold.core.testing import World, plugin
from streamfold.core.views import WorkspaceView


class One(Policy):
    """Counts items."""

    name, version, handles = "one", 1, ("interaction.observed",)
    stores = (Table("count", value=int),)

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        stores["count"].put(event.data.item_id, stores["count"].get(event.data.item_id, 0) + 1)

    def serve(self, view: View) -> Candidates:
        return Candidates(lambda request: view["count"].top(request.n))


class Two(One):
    """The same under another name, for a configuration of its own."""

    name = "two"
    version = 2


def click(world: World, count: int = 1) -> None:
    world.send_many([("interaction.observed", {"user_id": "u", "item_id": "a", "action": "click"})] * count)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path / "w", [plugin([One, Two])], {"one": {}}) as made:
        yield made


def shadow(world: World) -> Group:
    rows = versions.plan(world.context, world.workspace, name="one", use="two", values={})
    return versions.add(world.context, world.workspace, rows, actor="me", reason="test")


def promote(world: World, group: Group) -> int:
    done = versions.promote(world.context, world.workspace, group, actor="me", reason="test")
    return done.position


def answer(view: WorkspaceView) -> tuple[str, int]:
    """Who answers, and the position of the answer."""
    with view.asking():
        [(group, member)] = view.servers(CandidateSource)
        with view.reading([group]) as cut:
            return cut.policies[member.runtime.instance.name], cut.position


def another(world: World) -> WorkspaceView:
    """A view of another replica."""
    return WorkspaceView(world.context, world.workspace, lambda workspace, seconds: None)


def test_a_view_that_is_behind_answers_from_the_old_version_until_it_has_the_position(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    click(world)
    group = shadow(world)
    world.fold()
    view = another(world)
    assert answer(view) == ("1", 1)
    click(world, 3)
    world.fold()
    assert promote(world, group) == 4
    click(world, 2)
    world.fold()
    real = world.ledger.feed
    slow: list[str | int] = ["", 0]

    def slowly(workspace: str, cuts: dict[str, int], **more: Any) -> list[Commit]:
        """Give a group's commits only up to a position, as to a view that reads slowly."""
        found = real(workspace, cuts, **more)
        return [c for c in found if slow[0] not in ("", c.group) or c.watermark <= int(slow[1])]

    monkeypatch.setattr(world.ledger, "feed", slowly)
    seen = []
    for slow[:] in (["", 1], [group.name, 1], [group.name, 4], ["", 6]):
        view.follow()
        seen.append(answer(view))
    assert seen == [("1", 1), ("1", 1), ("2", 4), ("2", 6)], "the old version is held, though its feed goes on to 6"


def test_no_answer_goes_back_while_versions_are_swapped_under_load(world: World) -> None:
    """Threads ask while events come and versions are swapped: positions per asker never fall, versions are whole."""
    click(world, 5)
    group = shadow(world)
    world.fold()
    old = next(g for g in world.context.groups(world.workspace) if g.slot == "live")
    views = [another(world) for _ in range(2)]
    stop = threading.Event()
    wrong: list[Any] = []

    def ask(view: WorkspaceView) -> None:
        last = 0
        while not stop.is_set():
            try:
                version, position = answer(view)
                if version not in ("1", "2") or position < last:
                    wrong.append((version, position, last))
                last = position
            except Exception as error:
                wrong.append(repr(error))

    def follow(view: WorkspaceView) -> None:
        while not stop.is_set():
            view.follow()

    threads = [threading.Thread(target=job, args=(view,)) for view in views for job in (ask, ask, follow)]
    for thread in threads:
        thread.start()
    try:
        for round_ in range(20):
            click(world, 2)
            world.fold()
            promote(world, old if round_ % 2 else group)
            click(world, 1)
            world.fold()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong, wrong[:5]
    for view in views:
        view.follow()
        view.follow()
        assert answer(view) == ("1", world.ledger.head(world.workspace))


def test_a_view_without_the_code_of_what_is_live_goes_on_with_what_it_has(world: World, tmp_path: Path) -> None:
    click(world)
    group = shadow(world)
    world.fold()
    with World(tmp_path / "old", [plugin([One])], {"one": {}}, ledger=world.ledger, owner="old") as older:
        older.context.settings = replace_data(older, world)
        view = older.view
        assert answer(view) == ("1", 1)
        promote(world, group)
        click(world)
        older.fold()
        view = older.view
        assert answer(view)[0] == "1", "a rolling upgrade: an old process does not know the new version"
        assert f"missing:{group.name}" in view.cut(view.live()).degraded
        assert answer(world.view)[0] == "2"


def replace_data(older: World, world: World) -> Any:
    """Look for checkpoints where the other process writes them."""
    return older.context.settings.model_copy(update={"data": world.context.settings.data})


def test_a_retired_policy_answers_no_more(world: World) -> None:
    click(world)
    world.fold()
    view = world.view
    assert answer(view) == ("1", 1)
    versions.retire(world.context, world.workspace, world.group("one"), actor="me", reason="test")
    view.follow()
    assert view.servers(CandidateSource) == []
    view.follow()
    assert view.groups == {}


def test_a_deletion_hides_in_a_shadow_that_was_added_later(world: World) -> None:
    from streamfold.core import Subject

    click(world)
    world.send("item.deleted", {"item_id": "a"})
    world.fold()
    view = world.view
    group = shadow(world)
    assert not view.deleted, "the live group is past it"
    view.follow()
    view.follow()
    assert view.hidden(view.groups[group.name], [Subject("item", "a")])
