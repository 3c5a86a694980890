"""Who answers a user while a share of the users goes to a candidate."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamfold.core import Candidates, CandidateSource, Event, Policy, Stores, Table, View
from streamfold.core.context import Group
from streamfold.core.fold import LANES, FoldRunner, versions
from streamfold.core.testing import World, plugin
from streamfold.core.views import WorkspaceView
from streamfold.pipelines.serve.pressure import answering_lag, live_lag


class Counts(Policy):
    """Counts clicks in units of its version."""

    name, version, handles = "counts", 1, ("interaction.observed",)
    stores = (Table("count", value=int),)

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        item, count = event.data.item_id, stores["count"]
        count.put(item, (count.get(item) or 0) + self.version)

    def serve(self, view: View) -> Any:
        return None


class Thousands(Counts):
    """The same for another configuration."""

    name, version = "thousands", 1000


class Reader(Policy):
    """Serves what ``counts`` has counted."""

    name, version, handles, reads, stores = "reader", 1, ("interaction.observed",), ("counts",), ()

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        """Nothing is kept."""

    def serve(self, view: View) -> Candidates:
        return Candidates(lambda request: view.of("counts")["count"].top(request.n))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path / "w", [plugin([Counts, Thousands, Reader])], {"counts": {}, "reader": {}}) as made:
        made.send_many([("interaction.observed", {"user_id": "u", "item_id": "a", "action": "click"})] * 2)
        made.fold()
        yield made


def shadow(world: World) -> Group:
    rows = versions.plan(world.context, world.workspace, name="counts", use="thousands", values={})
    group = versions.add(world.context, world.workspace, rows, actor="me", reason="test")
    world.fold()
    return group


def split(world: World, group: Group, share: float) -> str:
    return versions.split(world.context, world.workspace, group, share=share, actor="me", reason="test")


def answer(world: World, user: str | None, policy: str | None = None) -> tuple[float, str | None]:
    """The score of the item, and in which arm it was given."""
    view = world.view
    with view.asking():
        among = view.answering(user)
        [(group, member)] = view.servers(CandidateSource, policy, among)
        with view.reading([group], among) as cut:
            [(_, score)] = member.server.candidates(type("Asked", (), {"n": 1}))
            return score, next((one.arm for one in cut.arms), None)


def test_a_shadow_answers_from_its_own_copy_of_what_it_reads(world: World) -> None:
    group = shadow(world)
    label = next(r.instance.label for r in group.runtimes if r.instance.name == "reader")
    assert answer(world, None) == (2, None)
    assert answer(world, None, f"reader@{label}") == (2000, None)


def test_each_user_is_answered_by_one_arm_and_nobody_is_in_none(world: World) -> None:
    group = shadow(world)
    users = [f"u{n}" for n in range(50)]
    assert {answer(world, user) for user in users} == {(2, None)}
    split(world, group, 0.4)
    found = {user: answer(world, user) for user in users}
    assert set(found.values()) == {(2, "live"), (2000, "candidate")}
    assert found == {user: answer(world, user) for user in users}
    assert answer(world, None) == (2, None)
    versions.promote(world.context, world.workspace, group, actor="me", reason="test")
    assert {answer(world, user) for user in users} == {(2000, None)}


def test_an_arm_names_versions_as_a_rebuild_keeps_them(world: World) -> None:
    group = shadow(world)
    split(world, group, 0.999)
    before = world.view.answering("u").arms
    old = {one.name: one for one in world.context.groups(world.workspace)}
    for name in (group.name, next(one for one in old if old[one].slot == "live")):
        versions.rebuild(world.context, world.workspace, old[name], actor="me", reason="test")
    world.fold()
    now = {one.name: one for one in world.context.groups(world.workspace, fresh=True)}
    assert set(now).isdisjoint(old)
    after = world.view.answering("u").arms
    assert [(one.experiment, one.candidate, one.live) for one in after] == [
        (one.experiment, one.candidate, one.live) for one in before
    ]
    assert after[0].groups != before[0].groups
    assert {one.stack for one in now.values()} == {one.stack for one in old.values()}


def click(world: World) -> int:
    return world.send("interaction.observed", {"user_id": "u", "item_id": "a", "action": "click"}).head


def mark(world: World, group: Group) -> int:
    return world.ledger.watermarks(world.workspace)[group.name][0]


def test_what_answers_a_share_is_folded_with_what_is_live(world: World) -> None:
    group = shadow(world)
    live, backfill = (FoldRunner(world.context, world.prepared, lane=lane) for lane in LANES)
    try:
        before = mark(world, group)
        first = click(world)
        live.run(world.workspace)
        assert (mark(world, world.group("reader")), mark(world, group)) == (first, before)
        backfill.run(world.workspace)
        assert mark(world, group) == first
        split(world, group, 0.5)
        second = click(world)
        backfill.run(world.workspace)
        assert mark(world, group) == first
        live.run(world.workspace)
        assert mark(world, group) == second
        versions.split(world.context, world.workspace, group, share=0, actor="me", reason="test")
        third = click(world)
        live.run(world.workspace)
        assert mark(world, group) == second
        backfill.run(world.workspace)
        assert mark(world, group) == third
    finally:
        live.stop()
        backfill.stop()


def test_what_answers_a_share_is_waited_for(world: World) -> None:
    group = shadow(world)
    split(world, group, 0.5)
    assert world.view.visible_position(None) == world.view.head
    world.ledger.set_paused(world.workspace, group.name, True)
    before, position = world.view.head, click(world)
    world.fold()
    assert mark(world, world.group("reader")) == position
    assert world.view.visible_position({"interaction.observed"}) == before
    world.ledger.set_paused(world.workspace, group.name, False)
    world.fold()
    assert world.view.visible_position({"interaction.observed"}) == position


def test_a_candidate_answers_once_it_is_as_far_as_what_it_answers_for(world: World) -> None:
    group = shadow(world)
    seen = world.view
    split(world, group, 0.999)
    world.ledger.set_paused(world.workspace, group.name, True)
    click(world)
    world.fold()  # before this view has heard of the split
    assert seen.answering("u").arms == ()
    assert answer(world, "u") == (3, None)
    world.ledger.set_paused(world.workspace, group.name, False)
    world.fold()
    assert answer(world, "u") == (3000, "candidate")
    world.ledger.set_paused(world.workspace, group.name, True)
    click(world)
    world.fold()
    assert answer(world, "u") == (3000, "candidate")  # no user changes arms because one of them is late


def opened(world: World) -> WorkspaceView:
    """A view as a process opens it that starts now."""
    return WorkspaceView(world.context, world.workspace, lambda workspace, seconds: None)


def test_a_process_that_starts_gives_the_same_arms_when_the_candidate_lags(world: World) -> None:
    group = shadow(world)
    assert world.view.answering("u").arms == ()
    split(world, group, 0.4)
    users = [f"u{n}" for n in range(50)]
    world.ledger.set_paused(world.workspace, group.name, True)
    before = {user: world.view.answering(user) for user in users}
    click(world)
    world.fold()
    assert mark(world, group) < mark(world, world.group("reader"))
    new = opened(world)
    try:
        assert {user: new.answering(user) for user in users} == before
        assert {user: world.view.answering(user) for user in users} == before
        assert {one.arm for found in before.values() for one in found.arms} == {"live", "candidate"}
    finally:
        new.close()


def test_a_candidate_need_not_reach_what_is_live_while_that_moves_on(world: World) -> None:
    group = shadow(world)
    seen = world.view
    split(world, group, 0.999)
    live = FoldRunner(world.context, world.prepared, lane="live")
    try:
        world.ledger.set_paused(world.workspace, group.name, True)
        click(world)
        live.run(world.workspace)
        assert world.view.answering("u").arms == ()
        world.ledger.set_paused(world.workspace, group.name, False)
        live.run(world.workspace)  # as far as what was live when the view learned of the split
        world.ledger.set_paused(world.workspace, group.name, True)
        click(world)
        live.run(world.workspace)
        assert mark(world, group) < mark(world, world.group("reader"))
        assert world.view is seen
        assert answer(world, "u") == (3000, "candidate")
    finally:
        live.stop()


def test_a_rebuilt_candidate_that_lags_goes_on_in_its_experiment(world: World) -> None:
    group = shadow(world)
    split(world, group, 0.999)
    assert answer(world, "u") == (2000, "candidate")
    versions.rebuild(world.context, world.workspace, group, actor="me", reason="test")
    world.fold()
    [new] = [one for one in world.context.groups(world.workspace, fresh=True) if one.slot == "shadow"]
    assert new.name != group.name
    world.ledger.set_paused(world.workspace, new.name, True)
    click(world)
    world.fold()  # the view learns of it now
    assert mark(world, new) < mark(world, world.group("reader"))
    assert answer(world, "u") == (2000, "candidate")


def test_a_candidate_that_lags_is_seen_and_does_not_hold_intake_back(world: World) -> None:
    group = shadow(world)
    split(world, group, 0.5)
    assert (live_lag(world.view), answering_lag(world.view)) == (0, 0)
    world.ledger.set_paused(world.workspace, group.name, True)
    click(world)
    world.fold()
    world.ledger.set_paused(world.workspace, group.name, False)
    assert (live_lag(world.view), answering_lag(world.view)) == (0, 1)
