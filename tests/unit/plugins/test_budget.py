"""Heads have a budget in bytes: what would exceed it is a dead letter, and what is counted is what is there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamfold.core import Array
from streamfold.core.errors import ConfigError
from streamfold.core.testing.world import World
from streamfold.plugins import builtin
from streamfold.plugins.gradient_head import GradientHeadConfig
from streamfold.plugins.kalman_head import KalmanHeadConfig
from streamfold.plugins.label_statistics import LabelStatisticsConfig

DIM = 16
SMALL = {"dim": DIM, "max_classes": 16, "replay": 2}
HEADS: dict[str, dict[str, Any]] = {
    "label_statistics": {},
    "kalman_head": {},
    "gradient_head": SMALL,
    "averaged": {"use": "gradient_head", **SMALL, "average": "lawa", "keep": 3, "optimiser": "upgd", "anchor": 0.1,
                 "align": "translation"},
}  # fmt: skip
Make = Callable[..., World]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    worlds: list[World] = []

    def made(use: str = "label_statistics", **config: Any) -> World:
        table = {"use": use, **HEADS[use], **config}
        encoder = {"encoder": {"use": "hashing", "dim": DIM}}
        worlds.append(World(tmp_path / str(len(worlds)), [builtin], {"heads": table}, backends=encoder))
        return worlds[-1]

    yield made
    for world in worlds:
        world.close()


def label(value: Any, text: str, head: str = "h", weight: float = 1.0) -> tuple[str, dict[str, Any]]:
    return "label.observed", {"head": head, "target": {"text": text}, "label": value, "weight": weight}


def send(world: World, *events: tuple[str, dict[str, Any]]) -> None:
    world.clock.advance(1.0)
    world.send_many(events)
    world.fold()
    assert world.ledger.group(world.workspace, world.group("heads").name).halted is None


def letters(world: World) -> list[tuple[int | None, str]]:
    return [(one.position, one.code) for one in world.ledger.dead_letters(world.workspace)]


def held(world: World, head: str = "h") -> int:
    row = world.store("heads", "heads").get(head)
    return 0 if row is None else int(row.bytes)


def counted(world: World, head: str = "h") -> int:
    """What the rows of a head take, looked at one by one."""
    [runtime] = world.group("heads").runtimes
    mine = f"{head}\0"
    stores = {declared.name: world.store("heads", declared.name) for declared in runtime.policy.stores}
    learns = "weights" in stores
    total = 0
    for key, row in stores["labels"].items():
        if key.startswith(mine):
            total += len(f"{key}{row.label}{row.space}".encode()) + 32
            total += 0 if learns else len(key.encode()) + len(stores["phi"].get(key))
    for key, row in stores["classes"].items():
        if key.startswith(mine):
            total += len(f"{key}{row.name or ''}{row.into or ''}".encode()) + len(row.prior) + 24
    if learns:
        arrays = [one for one in runtime.policy.stores if isinstance(one, Array)]
        row_bytes = sum(np.dtype(one.dtype).itemsize * math.prod(one.shape[1:]) for one in arrays)
        for key, _ in stores["states"].items():
            if key.startswith(mine):
                size = 4 * DIM if key.split("\0")[1] == "text" else 8 * int(key.split("\0")[1].split()[0])
                total += row_bytes + 3 * size  # two rows to replay, and the name's
    return total


STEPS = st.one_of(
    st.tuples(st.just("label"), st.integers(0, 3), st.sampled_from(["a", "bé", "long label", None]), st.booleans()),
    st.tuples(st.just("features"), st.integers(1, 3), st.sampled_from(["a", "b", None]), st.booleans()),
    st.tuples(
        st.just("upserted"), st.sampled_from(["a", "z"]), st.sampled_from(["a name", "another", None]), st.none()
    ),
    st.tuples(st.just("merged"), st.sampled_from(["a", "z"]), st.sampled_from(["b", "bé"]), st.none()),
    st.tuples(st.just("retired"), st.sampled_from(["a", "z"]), st.none(), st.none()),
)


def event(kind: str, what: Any, value: Any, weighs: Any) -> tuple[str, dict[str, Any]]:
    if kind == "label":
        return label(value, f"text {what}", weight=1.0 if weighs else 0.0)
    if kind == "features":
        target = {"features": {f"x{i}": 1.0 + i for i in range(what)}}
        return "label.observed", {"head": "h", "target": target, "label": value, "weight": 1.0 if weighs else 0.0}
    data = {"head": "h", "class": what}
    return f"class.{kind}", data | ({"name": value} if kind == "upserted" else {"into": value} if value else {})


@pytest.mark.parametrize("use", HEADS)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=10)
@given(st.lists(STEPS, min_size=1, max_size=20))
def test_what_is_counted_is_what_is_there(make: Make, use: str, steps: Any) -> None:
    world = make(use)
    for step in steps:
        send(world, event(*step))
        assert held(world) == counted(world)
    assert all(verdict.equal for verdict in world.verify().values())
    for n in range(4):
        send(world, label(None, f"text {n}"), event("features", n or 1, None, True))
    declared = {step[1] for step in steps if step[0] in ("upserted", "merged", "retired")}
    assert held(world) == counted(world)
    assert bool(held(world)) == bool(declared), "a head without rows weighs nothing"


@pytest.mark.parametrize("use", HEADS)
def test_what_would_exceed_the_budget_is_a_dead_letter_and_other_heads_go_on(make: Make, use: str) -> None:
    measured = make(use)
    send(measured, label("lamp", "one"), label("desk", "two"))
    world = make(use, max_bytes=held(measured))
    send(world, label("lamp", "one"), label("desk", "two"), label("desk", "three"), label("oak", "three", head="wood"))
    assert letters(world) == [(3, "byte-budget")]
    [letter] = world.ledger.dead_letters(world.workspace)
    assert letter.detail.startswith(f"head 'h' holds {held(measured):,} bytes and would take")
    assert "(max_bytes); retract labels" in letter.detail
    send(world, label("lamp", "two"))  # takes the place of another, and a class goes
    assert letters(world) == [(3, "byte-budget")]
    send(world, label(None, "one"), label("lamp", "four"))
    assert letters(world) == [(3, "byte-budget")]
    assert held(world) == counted(world) <= held(measured)
    assert held(world, "wood") == counted(world, "wood") > 0
    world.forget_warm()
    send(world, ("class.upserted", {"head": "h", "class": "new", "name": "a name that is a prior"}))
    assert letters(world) == [(3, "byte-budget"), (8, "byte-budget")]
    assert all(verdict.equal for verdict in world.verify().values())


@pytest.mark.parametrize("use", HEADS)
def test_a_label_that_waited_and_exceeds_the_budget_leaves_its_target_known(make: Make, use: str) -> None:
    measured = make(use)
    send(measured, label("lamp", "one"))
    world = make(use, max_bytes=held(measured))
    target = {"head": "h", "target": {"document_id": "d"}, "label": "lamp"}
    send(world, label("lamp", "one"), ("label.observed", target))
    assert letters(world) == []
    send(world, ("document.upserted", {"document_id": "d", "text": "a lamp"}))
    assert letters(world) == [(2, "byte-budget")]
    assert world.store("heads", "things").get("document:d") is not None
    assert held(world) == counted(world) == held(measured)
    assert all(verdict.equal for verdict in world.verify().values())


def test_who_is_erased_gives_the_bytes_back(make: Make) -> None:
    world = make()
    document = {"document_id": "d", "text": "a lamp"}
    send(world, ("document.upserted", document), label("lamp", "one"))
    before = held(world)
    send(world, ("label.observed", {"head": "h", "target": {"document_id": "d"}, "label": "secret class"}))
    assert held(world) > before
    send(world, ("document.erased", {"document_id": "d"}))
    world.erase()
    assert held(world) == counted(world) == before


@pytest.mark.parametrize("kind", [LabelStatisticsConfig, KalmanHeadConfig, GradientHeadConfig])
@pytest.mark.parametrize("bad", [0, -1, 2**51])
def test_a_budget_that_is_none_is_refused(kind: Any, bad: int) -> None:
    with pytest.raises(ConfigError, match="max_bytes"):
        kind(max_bytes=bad)


def test_however_many_labels_a_limit_refuses_the_head_goes_on(make: Make) -> None:
    world = make(max_classes=2)
    send(world, label("spam", "cheap pills"), label("ham", "agenda"))
    send(world, *[label(f"c{n}", f"text {n}", head="other") for n in range(150)])  # more than max_skips
    send(world, label("spam", "cheaper pills"))
    found = [one.code for one in world.ledger.dead_letters(world.workspace, limit=200)]
    assert found == ["too-many-classes"] * 150
    assert world.store("heads", "heads").get("h").rows == 3
