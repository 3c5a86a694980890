"""Several heads in one group: each is judged and shown by itself; what nobody can compare is held, and says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from streamfold.core import Candidates, Event, Policy, Stores, Table, View
from streamfold.core.fold import versions
from streamfold.core.settings import GateSettings, Settings
from streamfold.core.testing import World, plugin
from streamfold.pipelines.serve import takeovers as takeovers_module
from streamfold.pipelines.serve.call import Call
from streamfold.pipelines.serve.gate import Gate
from streamfold.pipelines.serve.own_events import OwnEvents
from streamfold.pipelines.serve.quality import _report
from streamfold.pipelines.serve.takeovers import Takeovers
from streamfold.plugins import builtin

SPAM = {"use": "label_statistics", "arms": "arms"}
TOPICS = {"use": "kalman_head", "arms": "arms"}
ARMS = {"use": "head_arms"}


def make(folder: Path, policies: dict[str, dict[str, Any]]) -> World:
    return World(folder, [builtin], policies)


def teach(world: World, count: int = 300) -> None:
    rng = np.random.default_rng(5)
    for _ in range(count):
        code = int(rng.integers(2))
        features = {f"f{i}": float(v) for i, v in enumerate(rng.normal(size=4) + 2.5 * code)}
        world.clock.advance(60)
        world.send("label.observed", {"head": "h", "target": {"features": features}, "label": "ab"[code]})
    world.fold()


def shadow(world: World) -> str:
    world.fold()
    [found] = [group for group in world.context.groups(world.workspace) if group.slot == "shadow"]
    assert versions.measured(world.context, world.workspace, found)
    return found.name


def test_a_worse_head_does_not_pass_because_another_of_its_group_is_as_good(tmp_path: Path) -> None:
    with make(tmp_path, {"arms": ARMS, "spam": SPAM, "topics": TOPICS}) as world:
        teach(world)
    with make(tmp_path, {"arms": ARMS, "spam": SPAM, "topics": TOPICS | {"weight_variance": 1e-9}}) as world:
        name, gate = shadow(world), Gate(GateSettings(delta=0.2, window_s=1))
        scores = gate.scores(world.view, name)
        gate.close()
        assert scores is not None
        found = {rule.detail.partition(":")[0]: rule for rule in scores.rules if rule.rule == "not_worse"}
        assert {name: rule.passed for name, rule in found.items()} == {"spam": True, "topics": False}
        assert not found["topics"].undecided
        assert [rule.rule for rule in scores.rules].count("bytes") == 1


def test_a_group_with_a_new_head_is_judged_by_those_that_are_live(tmp_path: Path) -> None:
    with make(tmp_path, {"arms": ARMS, "topics": TOPICS}) as world:
        teach(world, 20)
    with make(tmp_path, {"arms": ARMS, "a_new": SPAM, "spam": SPAM, "topics": TOPICS}) as world:
        name, gate = shadow(world), Gate(GateSettings())
        scores = gate.scores(world.view, name)
        gate.close()
        assert scores is not None
        assert [rule.detail.partition(":")[0] for rule in scores.rules if rule.rule == "not_worse"] == ["undecided"]


@pytest.mark.parametrize(("asked", "shown"), [("topics", "topics"), ("spam", "spam"), ("still", "measures_still")])
def test_the_quality_is_that_of_the_member_that_was_named(tmp_path: Path, asked: str, shown: str) -> None:
    still = {"use": "gradient_head", "dim": 32, "max_classes": 16, "arms": "arms"}
    policies: dict[str, dict[str, Any]] = {"arms": ARMS, "spam": SPAM, "topics": TOPICS, "still": still}
    policies["measures_still"] = {"use": "head_quality", "head": "still"}
    with make(tmp_path, policies) as world:
        _, member = _report(cast(Call, SimpleNamespace(path={"name": asked})), world.view)
        assert member.runtime.instance.name == shown


@dataclass(frozen=True, slots=True, kw_only=True)
class UntoldConfig:
    step: int = 1


class Untold(Policy):
    """Said to be measured, which its server does not show."""

    name, version, handles, measures = "untold", 1, ("interaction.observed",), True
    stores = (Table("count", value=int),)

    Config = UntoldConfig

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        stores["count"].put("all", stores["count"].get("all", 0) + self.config.step)

    def serve(self, view: View) -> Candidates:
        return Candidates(lambda request: [])


def untold(folder: Path, step: int, **more: Any) -> World:
    return World(folder, [plugin([Untold]), builtin], {"untold": {"step": step}, "activity": {}}, **more)


@contextmanager
def looking(world: World) -> Iterator[Takeovers]:
    """Who looks after takeovers, when the test says so."""
    gate = Gate(GateSettings())
    events = OwnEvents(
        lambda _, raws: [world.acceptor.accept(raw) for raw in raws],
        lambda view, new, moves: world.ledger.append(view.name, new, recorded_us=world.clock.now_us()),
    )
    node = SimpleNamespace(
        settings=Settings(on_change="manual"), views=world.views, ledger=world.ledger, context=world.context
    )
    yield Takeovers(cast(Any, node), gate, events, CollectorRegistry())
    gate.close()


def test_what_this_process_cannot_compare_is_held_by_a_rule_that_says_so(tmp_path: Path) -> None:
    with untold(tmp_path, 1) as world:
        world.fold()
    with untold(tmp_path, 2) as world:
        name = shadow(world)
        with looking(world) as takeovers:
            takeovers._look(world.view)
        held = takeovers.held(world.workspace, name)
        assert held is not None
        assert (held.verdict, [rule.rule for rule in held.rules]) == ("undecided", ["measured_here"])


def test_what_waits_in_a_workspace_that_nobody_asks_is_judged(tmp_path: Path) -> None:
    with untold(tmp_path, 1) as world:
        world.fold()
    with untold(tmp_path, 2) as world:
        name = shadow(world)
        assert not world.views.opened()
        with looking(world) as takeovers:
            for view in takeovers._views():
                takeovers._look(view)
            assert list(takeovers._views()) == world.views.opened(), "one at a time, and not all the time"
        assert takeovers.held(world.workspace, name) is not None


def test_workspaces_that_nobody_asks_are_opened_in_turns_within_the_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(takeovers_module, "_OPEN_S", 0.0)
    monkeypatch.setattr(takeovers_module, "_EVERY_S", 0.0)
    monkeypatch.setattr(takeovers_module, "_SHARE", 0)
    for step in (1, 2):
        with untold(tmp_path, step, settings={"serve": {"max_open_workspaces": 2}}) as world:
            for name in ("a", "b", "c"):
                world.context.pin(name)
            if step == 2:
                world.ledger.ensure_workspace("calm")
                with looking(world) as takeovers:
                    passed = [[view.name for view in takeovers._views()][-1] for _ in range(5)]
                assert passed == ["a", "b", "c", "default", "a"]
                assert len(world.views.opened()) == 2


def test_a_shadow_that_nobody_declares_any_more_has_no_view_opened(tmp_path: Path) -> None:
    for step, waits in ((1, False), (2, True), (1, False)):
        with untold(tmp_path, step) as world, looking(world) as takeovers:
            assert bool(list(takeovers._views())) == waits
            shadows = len(world.ledger.taking_over())
    assert shadows == 1
