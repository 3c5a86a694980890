"""A gradient head whose weights are averaged with another's: over a shared base, and over no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamfold.core import ConfigError, WrongBase
from streamfold.core.context import Group
from streamfold.core.errors import VersionConflict
from streamfold.core.fold import versions
from streamfold.core.testing.world import World
from streamfold.plugins import builtin
from streamfold.plugins.gradient_head import GradientHead, GradientHeadConfig

SMALL = {"dim": 32, "max_classes": 16}
LIVE = {"use": "gradient_head", **SMALL}
MIXED = {**LIVE, "rate": 0.5, "blend_with": "topics", "blend": 0.25}


def make(folder: Path, policies: dict[str, dict[str, Any]]) -> World:
    return World(folder, [builtin], policies, backends={"encoder": {"use": "hashing", "dim": 32}})


def teach(world: World, count: int = 24) -> None:
    world.send_many(
        [
            ("label.observed", {"head": "h", "target": {"text": f"about {['tea', 'lamp', 'oak'][n % 3]} {n}"},
                                "label": "abc"[n % 3]})
            for n in range(count)
        ]
    )  # fmt: skip
    world.fold()


def add(world: World, name: str, **config: Any) -> Group:
    rows = versions.plan(world.context, world.workspace, name=name, use="gradient_head", values=config)
    return versions.add(world.context, world.workspace, rows, actor="test", reason="a test")


def promote(world: World, group: Group, *, force: bool = False) -> None:
    world.fold()
    versions.promote(world.context, world.workspace, group, actor="test", reason="a test", force=force)


def served(world: World, name: str) -> Any:
    """Rows of the classes' weights as they are served."""
    view = world.view.member(name)
    states = {key.split("\0")[2]: one for key, one in sorted(view["states"].items())}
    return view.server.weights("h\0text", states, view["spaces"].get("h\0text").steps)


def test_what_is_served_is_the_average_of_both_class_by_class(tmp_path: Path) -> None:
    """BCWI, arXiv:2301.10546: old and new weights are interpolated, here those of two heads over one base."""
    policies = {"topics": LIVE, "mixed": MIXED, "alone": MIXED | {"blend_with": "", "blend": 1.0}}
    with make(tmp_path, policies) as world:
        teach(world)
        both = 0.25 * served(world, "alone") + 0.75 * served(world, "topics")
        assert np.abs(served(world, "alone") - served(world, "topics")).max() > 0.01
        assert np.allclose(served(world, "mixed"), both, atol=1e-12)
        server = world.view.member("mixed").server
        before = server.chances("h", "text", np.ones((1, 32)))[1]
        teach(world, 3)
        after = world.view.member("mixed").server.chances("h", "text", np.ones((1, 32)))[1]
        assert np.abs(before - after).max() > 0, "a label moves what is answered"
        assert all(verdict.equal for verdict in world.verify().values())


def test_a_class_that_the_other_does_not_know_is_served_as_it_is(tmp_path: Path) -> None:
    with make(tmp_path, {"topics": LIVE, "mixed": MIXED}) as world:
        teach(world)
        view = world.view.member("mixed")
        states = {"new": view["states"].get("h\0text\0a")}
        own = view["weights"].get([states["new"].slot]).astype(np.float64)
        assert (view.server.weights("h\0text", states, 24) == own).all()


def test_a_blended_head_may_read_arms_too() -> None:
    head = GradientHead(GradientHeadConfig(blend_with="topics", arms="head_arms"))
    assert (head.reads, head.averages_with) == (("head_arms", "topics"), ("topics",))
    with pytest.raises(ConfigError, match="arms is 'head_arms', which is a gradient_head"):
        head.check_reads({"head_arms": GradientHead(), "topics": GradientHead()})


def test_a_blended_head_is_measured_as_others_are(tmp_path: Path) -> None:
    policies = {"topics": LIVE, "mixed": MIXED, "head_quality": {"head": "mixed"}}
    with make(tmp_path, policies) as world:
        teach(world)
        tested = list(world.view.member("head_quality").server.measured().tested("h"))
        assert [one.seq for one in tested] == list(range(2, 25))
        assert sum(one.right for one in tested) > len(tested) / 2
        assert all(verdict.equal for verdict in world.verify().values())


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"expansion": 64}, "expansion 0 beside 64"),
        ({"dim": 64}, "dim 32 beside 64"),
        ({"init": "zero"}, "init mean beside zero"),
    ],
)
def test_a_candidate_of_another_base_than_what_is_live_is_not_even_planned(
    tmp_path: Path, other: dict[str, Any], says: str
) -> None:
    with make(tmp_path, {"topics": LIVE}) as world:
        with pytest.raises(WrongBase, match=says):
            add(world, "mixed", **SMALL | other, blend_with="topics", blend=0.5)
        assert {row.name for row in world.ledger.instances(world.workspace)} == {"topics"}
        add(world, "mixed", **SMALL, seed=5, blend_with="topics", blend=0.5)  # without a layer the seed is no part


def test_layers_of_two_seeds_are_two_bases(tmp_path: Path) -> None:
    layer = {**SMALL, "expansion": 64}
    with make(tmp_path, {"topics": {"use": "gradient_head", **layer}}) as world:
        with pytest.raises(WrongBase, match="seed 0 beside 1"):
            add(world, "mixed", **layer, seed=1, blend_with="topics", blend=0.5)
        add(world, "mixed", **layer, rate=1.0, blend_with="topics", blend=0.5)


def test_a_candidate_is_not_promoted_once_what_is_live_has_another_base(tmp_path: Path) -> None:
    with make(tmp_path, {"topics": LIVE}) as world:
        teach(world)
        candidate = add(world, "mixed", **SMALL, blend_with="topics", blend=0.5)
        promote(world, add(world, "topics", **SMALL, expansion=64))
        with pytest.raises(VersionConflict, match="averages its weights with the live topics") as refused:
            promote(world, candidate, force=True)
        assert [rule["rule"] for rule in refused.value.rules] == ["same_base"]
        assert "expansion 64 beside 0" in str(refused.value.rules[0]["detail"])
        promote(world, add(world, "topics", **SMALL, rate=1.0))  # the old base again
        promote(world, candidate)
        teach(world, 3)
        assert served(world, "mixed").shape == (3, 33)


def test_settings_that_change_the_base_of_both_take_over(tmp_path: Path) -> None:
    with make(tmp_path, {"topics": LIVE, "mixed": MIXED}) as world:
        teach(world)
        before = {row.group for row in world.ledger.instances(world.workspace)}
    with make(tmp_path, {"topics": LIVE | {"expansion": 64}, "mixed": MIXED | {"expansion": 64}}) as world:
        world.fold()
        live = {row.group for row in world.ledger.instances(world.workspace) if row.slot == "live"}
        assert len(live) == 1
        assert not live & before


def test_another_encoder_is_another_base(tmp_path: Path) -> None:
    with make(tmp_path, {"topics": LIVE}):
        pass
    other = {"encoder": {"use": "hashing", "dim": 16}}
    with World(tmp_path, [builtin], {}, backends=other) as world:
        assert [row.slot for row in world.ledger.instances(world.workspace)] == ["live"]
        with pytest.raises(WrongBase, match="another encoder"):
            add(world, "mixed", **SMALL, blend_with="topics", blend=0.5)


def test_who_cannot_be_averaged_with_is_a_wrong_setting(tmp_path: Path) -> None:
    with make(tmp_path, {"topics": LIVE, "mixed": MIXED, "label_statistics": {}}) as world:
        for name, says in (("label_statistics", "a label_statistics"), ("mixed", "blended itself")):
            with pytest.raises(ConfigError, match=says) as refused:
                add(world, "again", **SMALL, blend_with=name, blend=0.5)
            assert not isinstance(refused.value, WrongBase)
    with pytest.raises(WrongBase, match="expansion"):
        make(tmp_path / "other", {"topics": LIVE, "mixed": MIXED | {"expansion": 64}})


@pytest.mark.parametrize("bad", [{"average": "swa"}, {"read_out": "herding"}])
def test_settings_that_exclude_one_another_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="blend_with"):
        GradientHeadConfig(**{"blend_with": "topics"} | bad)
