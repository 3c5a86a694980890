"""Versions in one process: shadows, promotion, rollback, rebuild, skip by hand, what happens by itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from streamfold.core import (
    Candidates,
    Event,
    EventError,
    GateRule,
    Instance,
    Policy,
    Stores,
    Table,
    Tools,
    View,
    hookimpl,
)
from streamfold.core.context import Group
from streamfold.core.errors import ConfigError, GateFailed, NotCaughtUp, VersionConflict
from streamfold.core.fold import versions
from streamfold.core.fold.estimate import estimate
from streamfold.core.fold.pace import Pace
from streamfold.core.testing import World, plugin


@dataclass(frozen=True, slots=True, kw_only=True)
class CountConfig:
    step: int = 1
    refused: str = ""


class Count(Policy):
    """Counts items in steps; refuses one item, breaks on items of ``broken``, and on texts while preparing."""

    name, version, handles = "count", 1, ("interaction.observed", "document.upserted")
    stores = (Table("count", value=int),)
    Config = CountConfig
    broken: ClassVar[set[str]] = set()

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        key = event.data.item_id if event.type == "interaction.observed" else event.subject.id
        if key == self.config.refused:
            raise EventError(f"item {key!r} is refused")
        if key in Count.broken:
            raise RuntimeError(f"a bug at {key}")
        stores["count"].put(key, stores["count"].get(key, 0) + self.config.step)

    def serve(self, view: View) -> Candidates:
        return Candidates(lambda request: view["count"].top(request.n))


class Costly(Count):
    """The same with a prepare step that breaks."""

    name = "costly"

    def prepare(self, event: Event, tools: Tools) -> int:
        if event.subject.id in Count.broken:
            raise RuntimeError(f"a bug at {event.subject.id}")
        return 1


class Measured(Count):
    """The same, said to be measured."""

    name, measures = "measured", True


class Doubling(Policy):
    """Reads ``count``."""

    name, version, handles, reads = "doubling", 1, ("interaction.observed",), ("count",)
    stores = (Table("double", value=int),)

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        item = event.data.item_id
        stores["double"].put(item, 2 * stores.of("count")["count"].get(item, 0))


class Gate:
    """A plugin with one rule."""

    passed = True

    @hookimpl
    def promotion_gate(self, candidate: Sequence[Instance], live: Sequence[Instance]) -> list[GateRule]:
        return [GateRule(rule="quality", passed=Gate.passed, value=0.4, limit=0.5, detail=str(len(live)))]


def make(folder: Path, policies: dict[str, Any] | None = None, **more: Any) -> World:
    plugins = [plugin([Count, Costly, Doubling, Measured]), Gate()]
    return World(folder, plugins, policies or {"count": {}}, **more)


@pytest.fixture(autouse=True)
def sound() -> None:
    Count.broken.clear()
    Gate.passed = True


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with make(tmp_path / "w") as made:
        yield made


def click(*items: str) -> list[tuple[str, dict[str, str]]]:
    return [("interaction.observed", {"user_id": "u", "item_id": i, "action": "click"}) for i in items]


def add(world: World, name: str = "count", *, use: str = "", start: Any = "start", **config: Any) -> Group:
    rows = versions.plan(
        world.context, world.workspace, name=name, use=use or name, values=config, start=start, slot="shadow"
    )
    return versions.add(world.context, world.workspace, rows, actor="me", reason="test")


def promote(world: World, group: Group, *, force: bool = False) -> Any:
    return versions.promote(world.context, world.workspace, group, actor="me", reason="test", force=force)


def rollback(world: World, name: str = "count", version: str | None = None) -> Any:
    return versions.rollback(world.context, world.workspace, name, version, actor="me", reason="test")


def counts(world: World, policy: str = "count") -> dict[str, int]:
    return dict(world.view.member(policy)["count"].items())


def slots(world: World) -> dict[str, str]:
    return {i.group: i.slot for i in world.ledger.instances(world.workspace)}


def equal(world: World) -> bool:
    return all(verdict.equal for verdict in world.verify().values())


def test_a_shadow_is_folded_from_the_start_and_answers_by_its_full_name_only(world: World) -> None:
    world.send_many(click("a", "b", "a"))
    world.fold()
    group = add(world, step=10)
    world.send_many(click("a"))
    world.fold()
    [instance] = [r.instance for r in group.runtimes]
    assert counts(world) == {"a": 3, "b": 1}
    assert counts(world, f"count@{instance.label}") == {"a": 30, "b": 10}
    assert counts(world, "count@1") == {"a": 3, "b": 1}, "of two that are meant, the live one"
    assert equal(world)


def test_a_shadow_from_now_on_folds_what_comes(world: World) -> None:
    world.send_many(click("a", "a"))
    world.fold()
    group = add(world, start="now", step=1, refused="z")
    world.send_many(click("a"))
    world.fold()
    assert counts(world, f"count@{group.runtimes[0].instance.label}") == {"a": 1}
    assert equal(world)


def test_promote_and_rollback_swap_who_answers(world: World) -> None:
    world.send_many(click("a", "b"))
    group = add(world, step=10)
    world.fold()
    done = promote(world, group)
    assert (done.group, done.position) == (group.name, 2)
    assert counts(world) == {"a": 10, "b": 10}
    world.send_many(click("a"))
    world.fold()
    back = rollback(world)
    assert back.demoted == [group.name]
    assert counts(world) == {"a": 2, "b": 1}, "the demoted version had folded on"
    again = rollback(world)
    assert again.group == group.name
    assert counts(world) == {"a": 20, "b": 10}
    assert equal(world)
    actions = [(a.actor, a.action) for a in world.ledger.audits(world.workspace)]
    assert actions == [("me", "rollback"), ("me", "rollback"), ("me", "promote"), ("me", "add")]


def test_a_lagging_shadow_is_not_promoted_even_by_force(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "CATCH_UP_S", 0.0)
    world.send_many(click("a", "b"))
    world.fold()
    group = add(world, step=10)
    with pytest.raises(NotCaughtUp):
        promote(world, group, force=True)
    fresh = add(world, "other", use="count")
    with pytest.raises(NotCaughtUp):
        promote(world, fresh)  # nothing is live of that name: it must have reached the log's head
    world.fold()
    promote(world, fresh)
    assert counts(world, "other") == {"a": 1, "b": 1}


def test_a_halted_or_paused_shadow_is_not_promoted(world: World) -> None:
    group = add(world, step=10)
    world.ledger.set_halted(world.workspace, group.name, "it broke")
    with pytest.raises(VersionConflict, match="halted: it broke"):
        promote(world, group, force=True)
    world.ledger.set_halted(world.workspace, group.name, None)
    world.ledger.set_paused(world.workspace, group.name, True)
    with pytest.raises(VersionConflict, match="paused"):
        promote(world, group, force=True)


def test_the_gate_refuses_unless_forced(world: World) -> None:
    world.send_many(click("a"))
    group = add(world, step=10)
    world.fold()
    Gate.passed = False
    with pytest.raises(GateFailed) as refused:
        promote(world, group)
    assert refused.value.rules == [
        {"rule": "quality", "passed": False, "value": 0.4, "limit": 0.5, "detail": "1", "undecided": False}
    ]
    promote(world, group, force=True)
    assert "forced past quality" in world.ledger.audits(world.workspace)[0].reason


def test_a_demoted_version_is_retired_when_its_time_is_over(tmp_path: Path) -> None:
    with make(tmp_path / "w", fold={"checkpoint_min_bytes": 1}) as world:
        world.send_many(click("a"))
        world.fold()
        for thread in world.runner._checkpointers:
            thread.join()
        old = world.group("count")
        assert world.ledger.group(world.workspace, old.name).checkpoint is not None
        group = add(world, step=10)
        world.fold()
        promote(world, group)
        world.clock.advance(world.context.settings.rollback_window_s - 1)
        world.fold()
        assert slots(world)[old.name] == "shadow"
        world.clock.advance(1)
        world.fold()
        assert slots(world) == {old.name: "retired", group.name: "live"}
        assert world.ledger.group(world.workspace, old.name).checkpoint is None
        root = Path(world.context.settings.checkpoint_root) / world.workspace / old.name
        assert not [path for path in root.rglob("*") if path.is_file()]
        with pytest.raises(VersionConflict, match="nothing to roll"):
            rollback(world)
        assert old.name not in world.view.groups
        assert counts(world) == {"a": 10}


def test_a_demoted_or_added_version_does_not_take_over_by_itself(world: World) -> None:
    world.send_many(click("a"))
    group = add(world, step=10)
    world.fold()
    assert slots(world)[group.name] == "shadow"
    promote(world, group)
    for _ in range(3):
        world.send_many(click("a"))
        world.fold()
    assert slots(world)[group.name] == "live"


def test_a_rebuild_serves_the_old_state_until_the_new_one_has_caught_up(world: World) -> None:
    Count.broken.add("b")
    world.send_many(click("a", "a"))
    world.fold()
    old = world.group("count")
    made = versions.rebuild(world.context, world.workspace, old, actor="me", reason="test")
    assert counts(world) == {"a": 2}
    with pytest.raises(VersionConflict, match="being rebuilt already"):
        versions.rebuild(world.context, world.workspace, old, actor="me", reason="test")
    world.fold()
    assert slots(world) == {old.name: "retired", made.name: "live"}
    assert made.name == f"{old.name}.1"
    assert counts(world) == {"a": 2}
    assert world.verify()[made.name].equal
    again = versions.rebuild(world.context, world.workspace, world.group("count"), actor="me", reason="test")
    world.fold()
    assert slots(world)[again.name] == "live"
    assert again.name == f"{old.name}.2"
    world.context.pin(world.workspace)
    assert sorted(slots(world).values()) == ["live", "retired", "retired"], "the declaration is not pinned anew"


def test_a_rebuild_goes_on_after_a_restart(tmp_path: Path) -> None:
    with make(tmp_path / "w") as world:
        world.send_many(click("a", "b"))
        world.fold()
        made = versions.rebuild(world.context, world.workspace, world.group("count"), actor="me", reason="test")
    with make(tmp_path / "w") as world:
        assert slots(world)[made.name] == "shadow"
        world.fold()
        assert slots(world)[made.name] == "live"
        assert counts(world) == {"a": 1, "b": 1}


def test_an_added_instance_survives_a_restart_and_is_resumed(tmp_path: Path) -> None:
    with make(tmp_path / "w", fold={"batch_events": 2, "turn_ms": 1}) as world:
        world.send_many(click(*"abcdef"))
        world.fold()
        group = add(world, step=10)
        [fold] = [g for g in world.runner.groups(world.workspace) if g.name == group.name]
        world.runner._turn(world.workspace, fold)
        before = world.ledger.group(world.workspace, group.name).watermark
        assert 0 < before < 6
    with make(tmp_path / "w") as world:
        assert world.ledger.group(world.workspace, group.name).watermark == before
        world.fold()
        assert counts(world, f"count@{group.runtimes[0].instance.label}") == dict.fromkeys("abcdef", 10)
        assert equal(world)


def declared_before(tmp_path: Path, name: str) -> None:
    """Leave a folder in which a policy was declared with another configuration, and an event folded."""
    with make(tmp_path / "w", {name: {"step": 1}}) as world:
        world.send_many(click("a"))
        world.fold()


def test_a_changed_declaration_waits_for_promote_when_manual(tmp_path: Path) -> None:
    declared_before(tmp_path, "count")
    with make(tmp_path / "w", {"count": {"step": 10}}, settings={"on_change": "manual"}) as world:
        world.fold()
        assert [i.slot for i in world.ledger.instances(world.workspace)] == ["live", "shadow"]
        [shadow] = [g for g in world.context.groups(world.workspace) if g.slot == "shadow"]
        promote(world, shadow)
        assert counts(world) == {"a": 10}


def test_a_changed_declaration_takes_over_unless_the_gate_refuses(tmp_path: Path) -> None:
    Gate.passed = False
    declared_before(tmp_path, "count")
    with make(tmp_path / "w", {"count": {"step": 10}}) as world:
        world.fold()
        assert [i.slot for i in world.ledger.instances(world.workspace)] == ["live", "shadow"]
        Gate.passed = True
        world.fold()
        assert counts(world) == {"a": 10}


def test_a_changed_declaration_that_is_measured_is_left_to_whoever_asks_the_gate(tmp_path: Path) -> None:
    declared_before(tmp_path, "measured")
    with make(tmp_path / "w", {"measured": {"step": 10}}) as world:
        world.fold()
        [shadow] = [g for g in world.context.groups(world.workspace) if g.slot == "shadow"]
        context, workspace = world.context, world.workspace
        assert versions.takes_over(context, world.ledger.group(workspace, shadow.name), shadow)
        assert versions.measured(context, workspace, shadow)
        worse = GateRule(rule="not_worse", passed=False, detail="fail")
        assert versions.replace_declared(context, workspace, shadow, rules=[worse]) == [worse]
        Gate.passed = False
        asked = versions.replace_declared(context, workspace, shadow, rules=[replace(worse, passed=True)])
        assert [rule.rule for rule in asked] == ["quality"], "the rules of plugins are asked too"
        Gate.passed = True
        before = world.ledger.slots_revision(workspace)
        add(world, "count")  # somebody changes slots while the gate is asked
        with pytest.raises(VersionConflict, match="slots changed meanwhile"):
            versions.replace_declared(context, workspace, shadow, revision=before)
        assert slots(world)[shadow.name] == "shadow"
        passed = replace(worse, passed=True, detail="pass: 812 users")
        assert versions.replace_declared(context, workspace, shadow, rules=[passed]) == []
        assert counts(world, "measured") == {"a": 10}
        [entry] = [one for one in world.ledger.audits(workspace) if one.action == "replace"]
        assert (entry.actor, entry.reason) == ("settings", "declared policy changed; the gate: pass: 812 users")


def test_without_the_gate_the_fold_lets_it_take_over_and_says_that_nobody_was_asked(tmp_path: Path) -> None:
    declared_before(tmp_path, "measured")
    with make(tmp_path / "w", {"measured": {"step": 10}}, settings={"on_change": "replace-ungated"}) as world:
        world.fold()
        assert counts(world, "measured") == {"a": 10}
        [entry] = [one for one in world.ledger.audits(world.workspace) if one.action == "replace"]
        assert entry.reason.endswith("the gate was not asked (on_change = replace-ungated)")


def test_a_paused_declaration_is_held_by_the_rule_that_says_so(tmp_path: Path) -> None:
    declared_before(tmp_path, "measured")
    with make(tmp_path / "w", {"measured": {"step": 10}}) as world:
        world.fold()
        [shadow] = [g for g in world.context.groups(world.workspace) if g.slot == "shadow"]
        world.ledger.set_paused(world.workspace, shadow.name, True)
        [held] = versions.replace_declared(world.context, world.workspace, shadow)
        assert (held.rule, held.passed, held.undecided) == ("not_paused", False, True)


def test_a_changed_declaration_ends_no_live_ab(tmp_path: Path) -> None:
    with make(tmp_path / "w", {"count": {"step": 1}}) as world:
        world.send_many(click("a"))
        tried = add(world, step=5)
        world.fold()
        versions.split(world.context, world.workspace, tried, share=0.5, actor="me", reason="test")
    with make(tmp_path / "w", {"count": {"step": 10}}) as world:
        world.fold()
        workspace = world.workspace
        assert world.ledger.splits(workspace) == {tried.name}
        [waiting] = [g for g in world.context.groups(workspace) if g.slot == "shadow" and g.name != tried.name]
        [held] = versions.replace_declared(world.context, workspace, waiting)
        assert (held.rule, held.passed, held.undecided) == ("not_in_split", False, True)
        assert f"split count --version {tried.runtimes[0].instance.label} --share 0" in held.detail
        versions.split(world.context, workspace, tried, share=0, actor="me", reason="test")
        world.fold()
        assert counts(world) == {"a": 10}


def test_who_may_wait_lets_a_changed_declaration_catch_up(tmp_path: Path) -> None:
    with make(tmp_path / "w", {"measured": {"step": 1}}) as world:
        world.fold()
    with make(tmp_path / "w", {"measured": {"step": 10}}) as world:
        world.fold()
        world.send_many(click("a"))
        groups = {group.slot: group for group in world.context.groups(world.workspace)}
        [fold] = [g for g in world.runner.groups(world.workspace) if g.name == groups["live"].name]
        world.runner._turn(world.workspace, fold)
        with pytest.raises(NotCaughtUp):
            versions.replace_declared(world.context, world.workspace, groups["shadow"])
        catching_up = threading.Timer(0.2, world.fold)
        catching_up.start()
        assert versions.replace_declared(world.context, world.workspace, groups["shadow"], wait=True) == []
        catching_up.join()
        assert slots(world)[groups["shadow"].name] == "live"


def test_a_held_declaration_that_the_settings_have_changed_again_does_not_take_over(tmp_path: Path) -> None:
    Gate.passed = False
    declared_before(tmp_path, "count")
    with make(tmp_path / "w", {"count": {"step": 10}}) as world:
        world.fold()
    Gate.passed = True
    with make(tmp_path / "w", {"count": {"step": 1}}) as world:  # taken back
        world.fold()
        assert counts(world) == {"a": 1}
        assert sorted(slots(world).values()) == ["live", "shadow"]


def test_a_successor_of_a_version_whose_code_is_gone_is_not_held(tmp_path: Path) -> None:
    with make(tmp_path / "w", {"measured": {"step": 1}}) as world:
        world.send_many(click("a"))
        world.fold()

    class Newer(Measured):
        version = 2

    with World(tmp_path / "w", [plugin([Newer])], {"measured": {"step": 3}}) as world:
        world.fold()
        assert counts(world, "measured") == {"a": 3}, "what is live stands still: there is nothing to wait for"


def test_an_event_that_only_one_configuration_skips_is_not_skipped_by_the_other(world: World) -> None:
    world.send_many(click("a"))
    world.fold()
    group = add(world, step=1, refused="a")
    world.fold()
    assert counts(world, f"count@{group.runtimes[0].instance.label}") == {}
    assert counts(world) == {"a": 1}
    world.forget_warm()
    world.send_many(click("b"))
    world.fold()
    assert equal(world), "the live version folds afresh to what it has, though the shadow skipped an event"


def halted(world: World, policy: str) -> Any:
    return world.ledger.group(world.workspace, world.group(policy).name)


def skip(world: World, policy: str, event_id: str) -> int:
    rows = world.ledger.find(world.workspace, event_id)
    group = world.group(policy)
    return versions.skip(world.context, world.workspace, group, rows, actor="me", reason="it is broken")


def test_the_event_that_halts_a_fold_is_skipped_by_hand_exactly_once(world: World) -> None:
    Count.broken.add("bad")
    world.send_many(click("a", "bad", "b"))
    world.fold()
    state = halted(world, "count")
    assert (state.halted_by, state.halted_at, state.watermark) == ("count@1", 2, 1)
    for words in ("count@1", "position 2", "'e2'", "a bug at bad", "streamfold policies skip count e2", "Traceback"):
        assert words in state.halted
    with pytest.raises(VersionConflict, match="position 2"):
        skip(world, "count", "e3")
    assert skip(world, "count", "e2") == 2
    with pytest.raises(VersionConflict):
        skip(world, "count", "e2")
    world.forget_warm()
    world.fold()
    assert counts(world) == {"a": 1, "b": 1}
    [letter] = world.ledger.dead_letters(world.workspace)
    assert (letter.code, letter.policy, letter.position, letter.event_id) == ("skipped-by-hand", "count@1", 2, "e2")
    assert "it is broken" in letter.detail
    assert halted(world, "count").halted is None
    assert equal(world)


def test_the_event_that_halts_a_prepare_is_found_and_skipped_by_hand(tmp_path: Path) -> None:
    Count.broken.add("bad")
    with make(tmp_path / "w", {"costly": {}}) as world:
        for name in ("a", "bad", "b"):
            world.send("document.upserted", {"document_id": name, "text": "t"}, id=name)
        world.fold()
        state = halted(world, "costly")
        assert (state.halted_by, state.halted_at) == ("costly@1", 2)
        assert "in prepare (event 'bad'" in state.halted
        skip(world, "costly", "bad")
        world.preparer._backoff_until.clear()
        world.fold()
        world.forget_warm()
        world.fold()
        assert counts(world, "costly") == {"a": 1, "b": 1}
        assert len(world.ledger.dead_letters(world.workspace)) == 1
        assert halted(world, "costly").halted is None


def test_a_shadow_brings_its_own_copy_of_what_it_reads(tmp_path: Path) -> None:
    with make(tmp_path / "w", {"count": {}, "doubling": {}}) as world:
        world.send_many(click("a", "a"))
        world.fold()
        [live] = {i.group for i in world.ledger.instances(world.workspace)}
        group = add(world, step=10)
        assert {r.instance.name for r in group.runtimes} == {"count", "doubling"}
        world.fold()
        assert world.view.groups[group.name].members["doubling"]["double"].get("a") == 20
        promote(world, group)
        assert slots(world)[live] == "shadow"
        assert equal(world)


def test_a_base_alone_cannot_take_the_place_of_a_group(tmp_path: Path) -> None:
    with make(tmp_path / "w", {"count": {}, "doubling": {}}) as world:
        [row] = [i for i in world.ledger.instances(world.workspace) if i.name == "count"]
        world.ledger.add_group(world.workspace, [replace(row, group="count@1-lone", slot="shadow", start_seq=0)])
        [group] = [g for g in world.context.groups(world.workspace, fresh=True) if g.name.startswith("count@1-lone")]
        with pytest.raises(VersionConflict, match="wrong base: doubling"):
            promote(world, group, force=True)


def test_bad_plans_are_refused(world: World) -> None:
    with pytest.raises(ConfigError, match="did you mean 'step'"):
        add(world, stepp=3)
    with pytest.raises(ConfigError, match="no policy named"):
        add(world, "nobody")
    with pytest.raises(VersionConflict, match="runs already as live"):
        add(world)
    with pytest.raises(VersionConflict, match="live already"):
        versions.plan(
            world.context, world.workspace, name="count", use="count", values={"step": 2}, slot="live", start="start"
        )
    assert len(world.ledger.instances(world.workspace)) == 1


def test_a_retired_version_may_be_added_again(world: World) -> None:
    world.send_many(click("a"))
    first = add(world, step=10)
    world.fold()
    versions.retire(world.context, world.workspace, first, actor="me", reason="test")
    again = add(world, step=10)
    assert again.name == f"{first.name}.1"
    world.fold()
    assert counts(world, f"count@{again.runtimes[0].instance.label}") == {"a": 10}
    assert equal(world)


def test_a_declaration_that_was_retired_stays_so_and_the_log_says_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with make(tmp_path / "w", {"count": {"step": 1}}) as world:
        world.fold()
        [first] = world.context.groups(world.workspace)
        versions.rebuild(world.context, world.workspace, first, actor="me", reason="test")
        world.fold()  # another generation of what is declared took its place
    caplog.clear()
    with make(tmp_path / "w", {"count": {"step": 10}}, settings={"rollback_window_s": 0.0}) as world:
        assert "declared_but_retired" not in caplog.text
        for _ in range(3):
            world.fold()
        assert [i.slot for i in world.ledger.instances(world.workspace) if i.slot != "retired"] == ["live"]
    with make(tmp_path / "w", {"count": {"step": 1}}) as world:
        assert "declared_but_retired" in caplog.text
        assert [i.slot for i in world.ledger.instances(world.workspace) if i.slot != "retired"] == ["live"]


def test_the_estimate_counts_what_is_handled_and_samples_its_size(world: World) -> None:
    world.send_many([*click("a", "b", "c"), ("user.upserted", {"user_id": "u"})])
    before = world.ledger.dead_letter_count(world.workspace)
    rows = versions.plan(world.context, world.workspace, name="count", use="count", values={"step": 5}, rate=10)
    found = estimate(world.context, world.workspace, rows)
    assert (found.events, found.positions, found.sampled_events) == (3, 4, 3)
    assert found.seconds is not None
    assert found.seconds >= 0.3, "no faster than the rate"
    assert found.state_bytes
    Count.broken.add("b")
    assert "a bug at b" in estimate(world.context, world.workspace, rows).note
    assert len(world.ledger.instances(world.workspace)) == 1
    assert world.ledger.dead_letter_count(world.workspace) == before


def test_a_long_log_is_sampled_for_the_estimate(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from streamfold.core.fold import estimate as module

    monkeypatch.setattr(module, "_COUNTED", 40)
    world.send_many(click(*(["a"] * 100)))
    rows = versions.plan(world.context, world.workspace, name="count", use="count", values={"step": 5})
    assert estimate(world.context, world.workspace, rows).events == 100


def test_a_pace_allows_its_rate_and_no_more() -> None:
    now = [0.0]
    pace = Pace(10, lambda: now[0])
    assert pace.allows(100) == 1
    pace.took(1)
    assert pace.allows(100) == 0
    now[0] = 0.5
    assert pace.allows(100) == 5
    assert pace.allows(3) == 3
    pace.took(5)
    now[0] = 1000.0
    assert pace.allows(100) == 10, "at most a second's worth is saved up"
    assert Pace(0, lambda: now[0]).allows(7) == 7


def test_a_rate_bounds_what_a_shadow_folds_in_a_turn_and_not_the_live(world: World) -> None:
    world.send_many(click(*(["a"] * 50)))
    rows = versions.plan(world.context, world.workspace, name="count", use="count", values={"step": 5}, rate=1)
    group = versions.add(world.context, world.workspace, rows, actor="me", reason="test")
    [shadow] = [g for g in world.context.groups(world.workspace) if g.name == group.name]
    world.runner._turn(world.workspace, shadow)
    world.runner._turn(world.workspace, world.group("count"))
    marks = world.ledger.watermarks(world.workspace)
    assert marks[world.group("count").name][0] == 50
    assert 1 <= marks[group.name][0] < 50


def test_a_promotion_keeps_the_warm_fold(world: World) -> None:
    world.send_many(click("a"))
    group = add(world, step=10)
    world.fold()
    fold = world.runner._folds[world.workspace, group.name]
    stores = fold._stores
    promote(world, group)
    world.send_many(click("a"))
    world.fold()
    assert world.runner._folds[world.workspace, group.name] is fold
    assert fold._stores is stores
