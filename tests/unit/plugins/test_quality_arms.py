"""``quality`` counts what users of each arm of a live A/B were shown and liked, in their windows, once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamfold.core import ArmOutcome
from streamfold.core.fold import verify_group, versions
from streamfold.core.testing import World
from streamfold.plugins import builtin

POLICIES: dict[str, dict[str, Any]] = {
    "activity": {"window_s": 10.0, "late_s": 1000.0},
    "count_stack": {"ids": 64, "crosses": 64},
    "quality": {"ranker": "count_stack", "window_s": 100.0},
}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with World(tmp_path / "w", [builtin], POLICIES) as made:
        yield made


def show(
    world: World, exposure: str, user: str | None, arm: str, *items: str, experiment: str = "e", candidate: str = "c"
) -> None:
    arms = [{"experiment": experiment, "arm": arm, "share": 0.25, "candidate": candidate, "live": ["l"]}]
    rows = [{"item_id": item, "rank": rank, "score": 0.5} for rank, item in enumerate(items, 1)]
    who = {"session_id": "s"} if user is None else {"user_id": user}
    data = {"exposure_id": exposure, "kind": "recommend", "items": rows, "arms": arms, **who}
    world.send("exposure.recorded", data)
    world.fold()


def click(world: World, exposure: str, user: str, item: str) -> None:
    world.send("interaction.observed", {"user_id": user, "item_id": item, "action": "click", "exposure_id": exposure})
    world.fold()


def outcomes(world: World) -> dict[str, ArmOutcome]:
    return {f"{one.experiment}.{one.arm}": one for one in world.view.member("quality").server.measured().arms()}


def counts(one: ArmOutcome) -> tuple[int, int, int, list[float]]:
    return one.users, one.exposures, one.liked, one.values.tolist()


def test_a_user_counts_with_the_share_of_exposures_that_led_to_something_once_the_window_closes(world: World) -> None:
    show(world, "x1", "ann", "live", "a", "b")
    click(world, "x1", "ann", "a")
    click(world, "x1", "ann", "b")  # two likes, one exposure
    show(world, "x2", "ann", "live", "c")
    show(world, "y1", "bob", "candidate", "a")
    show(world, "n1", None, "live", "a")  # a session is in no arm
    found = outcomes(world)
    assert counts(found["e.live"]) == (1, 2, 2, [])
    assert counts(found["e.candidate"]) == (1, 1, 0, [])
    assert found["e.live"].share == 0.25
    world.clock.advance(50)
    click(world, "y1", "bob", "a")  # late: it was taken for passed over, and counts all the same
    world.clock.advance(60)
    show(world, "x3", "ann", "live", "d")  # past the windows of both
    click(world, "x3", "ann", "d")
    click(world, "x2", "ann", "c")
    found = outcomes(world)
    assert counts(found["e.live"]) == (1, 2, 2, [0.5])
    assert counts(found["e.candidate"]) == (1, 1, 1, [1.0])


def test_a_click_that_is_logged_before_its_exposure_counts(world: World) -> None:
    click(world, "x1", "ann", "a")
    show(world, "x1", "ann", "live", "a", "b")
    assert counts(outcomes(world)["e.live"])[:3] == (1, 1, 1)


def test_users_come_in_the_order_in_which_their_windows_close_and_experiments_apart(world: World) -> None:
    for n, liked in enumerate((True, False, False, True)):
        show(world, f"x{n}", f"u{9 - n}", "candidate", "a")
        if liked:
            click(world, f"x{n}", f"u{9 - n}", "a")
        world.clock.advance(5)
    show(world, "z", "u9", "live", "a", experiment="another")
    world.clock.advance(90)
    show(world, "z2", "late", "candidate", "a")
    found = outcomes(world)
    assert found["e.candidate"].values.tolist() == [1.0, 0.0, 0.0]  # the last one's is open for 5 s more
    assert (found["e.candidate"].users, found["another.live"].users) == (5, 1)
    world.clock.advance(10)
    show(world, "z3", "later", "candidate", "a")
    assert outcomes(world)["e.candidate"].values.tolist() == [1.0, 0.0, 0.0, 1.0]


def test_whoever_is_erased_leaves_the_arms(world: World) -> None:
    for user in ("ann", "bob"):
        show(world, f"x-{user}", user, "live", "a")
        click(world, f"x-{user}", user, "a")
    assert counts(outcomes(world)["e.live"])[:3] == (2, 2, 2)
    world.send("user.erased", {"user_id": "ann"})
    world.erase()
    assert counts(outcomes(world)["e.live"])[:3] == (1, 1, 1)


def test_a_fold_afresh_weighs_as_the_first_one_did_also_as_another_generation(world: World) -> None:
    """Which arm a stack was stands in the exposure, not in what the stack is by now (I2)."""
    group = world.group("activity")
    for n in range(30):
        show(world, f"x{n}", f"u{n}", "candidate" if n % 4 == 0 else "live", "a", "b", candidate=group.stack)
        click(world, f"x{n}", f"u{n}", "a")
    world.clock.advance(20)
    click(world, "x0", "u0", "b")
    likes, examples = world.store("count_stack", "head").values[2, :2]
    assert 0 < likes < examples < 20  # 60 examples, most of which count for a quarter or less
    assert verify_group(world.context, world.workspace, group).equal
    before = {name: world.store("count_stack", name).fingerprint() for name in ("ids", "crosses", "head")}
    versions.rebuild(world.context, world.workspace, group, actor="me", reason="test")
    world.fold()
    assert world.group("activity").name != group.name
    assert {name: world.store("count_stack", name).fingerprint() for name in before} == before
