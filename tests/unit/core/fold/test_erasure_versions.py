"""Erasure and versions: it reaches every instance, whatever its slot; what still holds the erased never takes over."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from streamfold.core import (
    CandidateRequest,
    Candidates,
    Event,
    GateRule,
    Policy,
    Stores,
    Subject,
    Table,
    View,
    hookimpl,
)
from streamfold.core.context import Group
from streamfold.core.errors import VersionConflict
from streamfold.core.fold import LANES, Eraser, FoldRunner, versions
from streamfold.core.fold.erasure import holds_erased
from streamfold.core.fold.estimate import estimate
from streamfold.core.testing import World, plugin
from streamfold.core.views import view as views

SECRET = "xyzzy-4711-subject"
WORKSPACE = "default"


@dataclass(frozen=True, slots=True, kw_only=True)
class Marked:
    """Tells configurations apart."""

    mark: int = 0


class Seen(Policy):
    """Who touched what last, under a mark; forgets exactly, unless it is broken."""

    name, version, handles = "seen", 1, ("interaction.observed",)
    stores = (Table("seen", value=str),)
    Config = Marked
    broken: ClassVar[bool] = False

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        stores["seen"].put(f"{event.seq}", event.data.user_id)

    def forget(self, subject: Subject, events: Any, stores: Stores) -> None:
        if self.broken:
            raise RuntimeError("a bug")
        for event, _ in events:
            assert stores["seen"].get(f"{event.seq}") == subject.id, "it forgets what it has folded"
            stores["seen"].delete(f"{event.seq}")

    def serve(self, view: View) -> Candidates:
        return Candidates(lambda request: [(user, 1.0) for _, user in view["seen"].items()])


class Last(Policy):
    """The last user of each item; cannot forget."""

    name, version, handles = "last", 1, ("interaction.observed",)
    stores = (Table("last", value=str),)
    Config = Marked

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        stores["last"].put(event.data.item_id, event.data.user_id)

    def serve(self, view: View) -> Candidates:
        return Candidates(lambda request: [(user, 1.0) for _, user in view["last"].items()])


class NewSeen(Seen):
    """Another version's code."""

    version = 2


def make(folder: Path, kinds: tuple[type[Policy], ...] = (Seen, Last), **more: Any) -> World:
    return World(folder, [plugin(list(kinds))], {kind.name: {} for kind in kinds}, **more)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    Seen.broken = False
    with make(tmp_path / "w") as made:
        for i in range(20):
            made.send(*click(f"i{i % 7}", SECRET if i % 3 == 0 else f"u{i % 2}"))
        made.fold()
        yield made
    Seen.broken = False


def click(item: str, user: str) -> tuple[str, dict[str, Any]]:
    return "interaction.observed", {"user_id": user, "item_id": item, "action": "click"}


def add(world: World, name: str, mark: int, start: Any = "start") -> Group:
    rows = versions.plan(
        world.context, WORKSPACE, name=name, use=name, values={"mark": mark}, start=start, slot="shadow"
    )
    return versions.add(world.context, WORKSPACE, rows, actor="me", reason="test")


def promote(world: World, group: Group) -> None:
    versions.promote(world.context, WORKSPACE, group, actor="me", reason="test")


def rollback(world: World, name: str) -> None:
    versions.rollback(world.context, WORKSPACE, name, None, actor="me", reason="test")


def erased(world: World) -> int:
    return world.send("user.erased", {"user_id": SECRET}, id="the-erasure").positions[0]


def users(world: World, group: str) -> set[str]:
    """Who is in a group's state, as a view of it holds it."""
    [member] = world.view.groups[group].members.values()
    return {user for user, _ in member.server.candidates(CandidateRequest(n=99))}


def notes(world: World, position: int) -> dict[str, tuple[str, str]]:
    return {n.group: (n.method, n.state) for n in world.ledger.erased_groups(WORKSPACE, position)}


def files_with(world: World, needle: str) -> list[Path]:
    folder = Path(world.context.settings.data)
    return [file for file in folder.rglob("*") if file.is_file() and needle.encode() in file.read_bytes()]


def is_equal(world: World) -> bool:
    return all(verdict.equal for verdict in world.verify().values())


@pytest.mark.parametrize("name", ["seen", "last"])
def test_live_shadow_and_demoted_versions_all_forget(world: World, name: str) -> None:
    old = world.group(name)
    new, beside = add(world, name, 1), add(world, name, 2)
    world.fold()
    promote(world, new)
    assert all(SECRET in users(world, g.name) for g in (old, new, beside))
    position = erased(world)
    world.erase()
    assert {notes(world, position)[g.name][1] for g in (old, new, beside)} == {"done"}
    assert not any(SECRET in users(world, g.name) for g in (old, new, beside))
    assert files_with(world, SECRET) == []
    assert is_equal(world)
    rows = world.ledger.read(WORKSPACE, 0, 1000).rows
    assert world.ledger.log_bytes(WORKSPACE) == sum(len(row.body) for row in rows)
    rollback(world, name)
    assert world.group(name).name == old.name
    assert users(world, old.name) == {"u0", "u1"}


def test_what_still_holds_the_erased_is_neither_promoted_nor_rolled_back_to(world: World) -> None:
    old, new = world.group("last"), add(world, "last", 1)
    world.fold()
    promote(world, new)
    beside = add(world, "last", 2)
    world.fold()
    position = erased(world)
    for change in (lambda: promote(world, beside), lambda: rollback(world, "last")):
        with pytest.raises(VersionConflict, match=f"erasure {position} removes"):
            change()
    world.fold()
    assert notes(world, position)[beside.name] == ("rebuild", "rebuild")
    with pytest.raises(VersionConflict, match=f"erasure {position} removes"):
        promote(world, beside)
    world.erase()
    promote(world, beside)
    assert users(world, beside.name) == {"u0", "u1"}
    assert old.name in world.view.groups


class WhileAsked:
    """A plugin's rule of the gate that passes, after something has happened."""

    def __init__(self) -> None:
        self.happens: Callable[[], object] = lambda: None

    @hookimpl
    def promotion_gate(self) -> list[GateRule]:
        self.happens()
        return []


@pytest.mark.parametrize("waits", [False, True], ids=["caught_up", "behind"])
def test_an_erasure_that_begins_while_a_promotion_is_under_way_refuses_it(tmp_path: Path, waits: bool) -> None:
    """Past the first look at what blocks; of one that waits for the shadow, while it waits."""
    gate, waiting = WhileAsked(), threading.Event()
    with World(tmp_path / "w", [plugin([Seen]), gate], {"seen": {}}) as world:
        world.send(*click("i", SECRET))
        old, new = world.group("seen"), add(world, "seen", 1)
        world.fold()
        if waits:
            world.send(*click("i", "u0"))
            world.runner._turn(WORKSPACE, old)  # not the shadow: it is behind
        gate.happens = waiting.set if waits else lambda: erased(world)
        with ThreadPoolExecutor(1) as pool:
            promoting = pool.submit(promote, world, new)
            if waits:
                assert waiting.wait(60)
                erased(world)
            with pytest.raises(VersionConflict, match="may still hold what erasure") as refused:
                promoting.result()
        assert [rule["rule"] for rule in refused.value.rules] == ["not_erased_from"]
        assert world.group("seen").name == old.name
        gate.happens = lambda: None
        world.erase()
        promote(world, new)
        assert users(world, new.name) == ({"u0"} if waits else set())


def test_a_rebuilt_version_takes_over_once_it_has_forgotten(world: World) -> None:
    old = world.group("last")
    made = versions.rebuild(world.context, WORKSPACE, old, actor="me", reason="test")
    erased(world)
    world.fold()
    slots = {i.group: i.slot for i in world.ledger.instances(WORKSPACE)}
    assert (slots[old.name], slots[made.name]) == ("live", "shadow")
    world.erase()
    world.fold()
    slots = {i.group: i.slot for i in world.ledger.instances(WORKSPACE)}
    assert (slots[old.name], slots[made.name]) == ("retired", "live")
    assert users(world, made.name) == {"u0", "u1"}
    assert files_with(world, SECRET) == []


def test_a_version_that_began_after_an_erasure_does_not_hold_it_up(world: World) -> None:
    position = erased(world)
    group = add(world, "seen", 1, start="now")
    world.erase()
    assert notes(world, position)[group.name] == ("exact", "done")
    world.send(*click("i1", SECRET))
    world.fold()
    assert users(world, group.name) == {SECRET}, "it is back"
    assert is_equal(world)


def test_a_version_added_before_the_erasure_is_complete_is_waited_for(world: World) -> None:
    position = erased(world)
    world.fold()
    group = add(world, "last", 1)
    Eraser(world.context, (world.runner,)).run(WORKSPACE)
    found = world.ledger.erasure(WORKSPACE, position)
    assert found is not None
    assert not found.completed_us
    assert holds_erased(world.ledger, WORKSPACE, group.name) == [position]
    world.erase()
    assert notes(world, position)[group.name] == ("rebuild", "done")
    assert users(world, group.name) == {"u0", "u1"}


def test_a_retired_version_loses_its_state(world: World) -> None:
    group = add(world, "last", 1)
    world.fold()
    versions.retire(world.context, WORKSPACE, group, actor="me", reason="test")
    position = erased(world)
    world.erase()
    assert notes(world, position)[group.name] == ("rebuild", "done")
    assert files_with(world, SECRET) == []


@pytest.mark.parametrize("how", ["halted", "paused"])
def test_a_demoted_version_that_stands_still_is_retired_after_a_while(world: World, how: str) -> None:
    old, new = world.group("last"), add(world, "last", 1)
    world.fold()
    promote(world, new)
    if how == "halted":
        world.ledger.set_halted(WORKSPACE, old.name, "it broke")
    world.ledger.set_paused(WORKSPACE, old.name, True)
    position = erased(world)
    eraser = Eraser(world.context, (world.runner,))
    world.fold()
    eraser.run(WORKSPACE)
    assert old.name not in notes(world, position)
    world.clock.advance(2 * world.context.settings.fold.lease_s + 1)
    world.erase()
    assert {i.group: i.slot for i in world.ledger.instances(WORKSPACE)}[old.name] == "retired"
    assert notes(world, position)[old.name] == ("rebuild", "done")
    assert files_with(world, SECRET) == []
    assert "holds what is to be erased" in world.ledger.audits(WORKSPACE)[0].reason


def test_a_demoted_version_whose_code_is_gone_is_retired(tmp_path: Path) -> None:
    with make(tmp_path / "w", (Seen,)) as world:
        world.send(*click("i1", SECRET))
        world.fold()
        old = world.group("seen").name
    with make(tmp_path / "w", (NewSeen,)) as world:
        world.fold()
        assert world.group("seen").name != old
        position = erased(world)
        world.fold()
        world.clock.advance(2 * world.context.settings.fold.lease_s + 1)
        world.erase()
        assert notes(world, position)[old] == ("rebuild", "done")
        assert files_with(world, SECRET) == []


def test_an_erasing_event_at_which_forget_failed_is_skipped_by_folding_afresh(world: World) -> None:
    group = world.group("seen")
    Seen.broken = True
    position = erased(world)
    world.fold()
    assert world.ledger.group(WORKSPACE, group.name).halted_at == position
    rows = world.ledger.rows(WORKSPACE, [position])
    versions.skip(world.context, WORKSPACE, group, rows, actor="me", reason="test")
    world.forget_warm()
    world.erase()
    assert notes(world, position)[group.name] == ("rebuild", "done")
    assert users(world, group.name) == {"u0", "u1"}
    assert files_with(world, SECRET) == []


def test_the_eraser_finds_the_runner_of_a_groups_lane(world: World) -> None:
    beside = add(world, "last", 1)
    world.runner.stop()
    live, backfill = (FoldRunner(world.context, world.prepared, lane=lane) for lane in LANES)
    eraser = Eraser(world.context, (live, backfill))
    erased(world)
    for _ in range(20):
        world.clock.advance(1)
        for runner in (live, backfill):
            runner.run(WORKSPACE)
        eraser.run(WORKSPACE)
    assert not world.ledger.erasing_workspaces()
    assert {g for _, g in live._folds} == {world.group("seen").name, world.group("last").name}
    assert {g for _, g in backfill._folds} == {beside.name}
    assert not any(SECRET in users(world, name) for name in world.view.groups)
    live.stop()
    backfill.stop()


def test_a_view_hides_the_erased_until_it_has_loaded_what_forgot(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, other = add(world, "last", 1), add(world, "seen", 1)
    world.fold()
    erased(world)
    world.fold()
    view = world.view
    subject = Subject("user", SECRET)
    assert view.hidden(view.groups[slow.name], [subject])
    world.erase()
    world.send(*click("i1", "u1"))
    world.runner._turn(WORKSPACE, other)
    monkeypatch.setattr(views, "_BACKFILL_BYTES", 1)
    view.follow()
    held = dict(view.groups[slow.name].stores.by_runtime["last@1"]["last"].items())
    assert SECRET in held.values(), "the other shadow's commits were enough for this look"
    assert not world.ledger.unforgotten(WORKSPACE)
    assert view.hidden(view.groups[slow.name], [subject])
    assert not any(SECRET in users(world, name) for name in view.groups)
    assert not view.hidden(view.groups[slow.name], [subject])


def test_an_estimate_over_an_erasure_does_not_forget_what_it_has_not_folded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streamfold.core.fold import estimate as module

    erased(world)
    world.send(*click("i1", "u1"))
    monkeypatch.setattr(module, "_SAMPLE_SPAN", 2)
    rows = versions.plan(world.context, WORKSPACE, name="seen", use="seen", values={"mark": 1})
    found = estimate(world.context, WORKSPACE, rows)
    assert found.note == ""


def test_a_shadow_whose_code_is_elsewhere_is_waited_for_until_another_supersedes_it(tmp_path: Path) -> None:
    manual = {"settings": {"on_change": "manual"}}
    with make(tmp_path / "w", (Seen,)) as world:
        world.send(*click("i1", SECRET))
        world.fold()
    with make(tmp_path / "w", (NewSeen,), **manual) as world:
        world.fold()
        [shadow] = {i.group for i in world.ledger.instances(WORKSPACE) if i.slot == "shadow"}
    with make(tmp_path / "w", (Seen,), **manual) as world:
        erased(world)
        world.clock.advance(2 * world.context.settings.fold.lease_s + 1)
        with pytest.raises(AssertionError, match="did not complete"):
            world.erase()
        assert {i.group: i.slot for i in world.ledger.instances(WORKSPACE)}[shadow] == "shadow"
        add(world, "seen", 1)
        world.erase()
        assert {i.group: i.slot for i in world.ledger.instances(WORKSPACE)}[shadow] == "retired"
        assert files_with(world, SECRET) == []
