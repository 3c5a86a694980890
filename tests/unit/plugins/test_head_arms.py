"""Heads in a live A/B: labels count for an arm as far as its own answers bring such labels in, and each arm is told."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamfold.core import ArmOutcome, ConfigError
from streamfold.core.fold import verify_group, versions
from streamfold.core.testing import World
from streamfold.core.testing.checks import CHECKS
from streamfold.core.testing.conformance import run_checks
from streamfold.core.testing.folded import Folded
from streamfold.core.testing.lab import Case
from streamfold.core.testing.streams import Given
from streamfold.plugins import builtin, head_arms
from streamfold.plugins.head_arms import MOST_LOSS, HeadArms, HeadArmsConfig
from streamfold.plugins.head_ensemble import HeadEnsembleConfig, learned, uniform
from streamfold.plugins.label_statistics import LabelStatistics, LabelStatisticsConfig

QUICK = {"encoder": {"use": "hashing", "dim": 64}}
FAMILIES: dict[str, dict[str, Any]] = {
    "label_statistics": {"read_out": "prototype"},
    "kalman_head": {},
    "gradient_head": {"dim": 64, "max_classes": 8},
}
Make = Callable[..., "Desk"]


class Desk:
    """A head with its ``head_arms``; answers are logged as a service does it."""

    def __init__(self, folder: Path, head: str = "label_statistics", **others: dict[str, Any]) -> None:
        policies = {"head_arms": {"window_s": 100.0}, head: {**FAMILIES[head], "arms": "head_arms"}, **others}
        self.world = World(folder, [builtin], policies, backends=QUICK)
        self.head = head
        self.stack = self.world.group(head).stack

    def answer(
        self, exposure: str, arm: str, user: str | None = "ann", *, said: Any = (("spam", 0.8), ("ham", 0.15)),
        side: str = "candidate", head: str = "mail", **more: Any,
    ) -> None:  # fmt: skip
        """``side``: which arm this stack is."""
        both = {"candidate": self.stack, "live": ["other"]}
        if side != "candidate":
            both = {"candidate": "other", "live": [self.stack]}
        given = [{"experiment": "e", "arm": arm, "share": 0.25, "weighted": True, **both, **more}]
        items = [{"label": label, "rank": rank, "score": score} for rank, (label, score) in enumerate(said, 1)]
        data = {"exposure_id": exposure, "kind": "classify", "items": items, "arms": given, "context": {"head": head}}
        self.world.send("exposure.recorded", data | ({} if user is None else {"user_id": user}))

    def label(
        self, label: str | None, exposure: str | None, head: str = "mail", weight: float | None = None, **target: Any
    ) -> None:
        data = {"head": head, "target": target or {"text": f"text {exposure}"}, "label": label, "weight": weight}
        self.world.send("label.observed", data | ({} if exposure is None else {"exposure_id": exposure}))

    def outcomes(self) -> dict[str, ArmOutcome]:
        self.world.fold()
        found = self.world.view.member("head_arms").server.arms()
        return {f"{one.experiment}.{one.arm}": one for one in found}

    def weights(self) -> list[tuple[str, float]]:
        """Of labels, in the order in which they came."""
        self.world.fold()
        rows = sorted((row.seq, row.label, row.weight) for _, row in self.world.store(self.head, "labels").items())
        return [(label, weight) for _, label, weight in rows]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Make]:
    made: list[Desk] = []

    def make(head: str = "label_statistics", **others: dict[str, Any]) -> Desk:
        made.append(Desk(tmp_path / str(len(made)), head, **others))
        return made[-1]

    yield make
    for one in made:
        one.world.close()


def counts(one: ArmOutcome) -> tuple[int, int, int | None, int, list[float]]:
    return one.users, one.exposures, one.labelled, one.liked, one.values.tolist()


# -- what a label counts for ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("head", sorted(FAMILIES))
def test_a_label_of_an_answer_counts_for_its_arm_and_any_other_in_full(desk: Make, head: str) -> None:
    one = desk(head)
    one.answer("x", "candidate")
    one.label("spam", "x", text="of an answer", weight=2.0)
    one.label("ham", None, text="of nobody")
    one.label("ham", "unknown", text="of an answer that was never logged")
    one.label("ham", "x", head="another", text="of another head")
    one.answer("y", "live", weighted=False)
    one.label("ham", "y", text="unweighted")
    one.answer("z", "live", candidate="a", live=["b"])
    one.label("ham", "z", text="of others' experiment")
    one.answer("w", "live", live=[one.stack])
    one.label("ham", "w", text="of the same version against itself")
    assert one.weights() == [("spam", 2 * 0.25), *[("ham", 1.0)] * 6]


def test_the_two_sides_weights_add_up_and_what_one_arm_brings_in_counts_for_that_one(desk: Make) -> None:
    sides = {side: desk() for side in ("candidate", "live")}
    for n in range(120):
        arm = "candidate" if n % 4 == 0 else "live"
        for side, one in sides.items():
            one.answer(f"x{n}", arm, f"u{n}", side=side)
            one.label("spam" if arm == "candidate" else "ham", f"x{n}", text=f"t{n}")
    new, old = (one.weights() for one in sides.values())
    assert [mine + theirs for (_, mine), (_, theirs) in zip(new, old, strict=True)] == pytest.approx([1.0] * 120)
    last = dict(new)
    assert last["spam"] > 0.8
    assert last["ham"] < 0.1


def test_labels_that_arms_share_are_learned_as_if_each_arm_had_its_own(desk: Make) -> None:
    """Si 2023, arXiv:2310.17496: weighted, the labels of both are distributed as those of one arm alone."""
    rng = np.random.default_rng(5)
    cells = [(label, word) for label in ("a", "b") for word in ("north", "south")]
    alone = {"candidate": np.array([0.6, 0.1, 0.1, 0.2]), "live": np.array([0.1, 0.1, 0.6, 0.2])}
    sides = {side: desk() for side in alone}
    came = []
    for n in range(500):
        arm = "candidate" if rng.random() < 0.25 else "live"
        label, word = cells[int(rng.choice(4, p=alone[arm]))]
        came.append((label, word))
        for side, one in sides.items():
            one.answer(f"x{n}", arm, f"u{n}", side=side)
            one.label(label, f"x{n}", text=f"{word} {n}")
    pooled = np.array([came.count(cell) for cell in cells]) / len(came)
    for side, one in sides.items():
        weights = [weight for _, weight in one.weights()]
        found = np.array([sum(w for w, c in zip(weights, came, strict=True) if c == cell) for cell in cells])
        found /= found.sum()
        off, off_pooled = np.abs(found - alone[side]).sum(), np.abs(pooled - alone[side]).sum()
        assert off < off_pooled / 2, (side, found, pooled)


def test_words_features_and_things_tell_targets_apart_and_the_user_does_not(desk: Make) -> None:
    one = desk()
    for kind in ("document", "item", "user"):
        for name in ("mine", "theirs"):
            data = {f"{kind}_id": name, **({"text": f"{kind} {name}"} if kind != "user" else {})}
            more = {"properties": {"about": name}} if kind == "user" else {}
            one.world.send(f"{kind}.upserted", data | more)
    kinds: list[Callable[[str], dict[str, Any]]] = [
        lambda name: {"features": {name: 2.0, "both": 1e-3}},
        lambda name: {"document_id": name},
        lambda name: {"item_id": name},
        lambda name: {"user_id": name},
    ]
    told = []
    for number, target in enumerate(kinds):
        for n in range(80):
            for arm, name in (("candidate", "mine"), ("live", "theirs")):
                one.answer(f"x{number}.{n}{arm}", arm, share=0.5, head=f"h{number}")
                one.label("a", f"x{number}.{n}{arm}", head=f"h{number}", **target(name))
        one.world.fold()
        rows = one.world.store("label_statistics", "labels")
        found = sorted(row.weight for key, row in rows.items() if key.startswith(f"h{number}\0"))
        told.append((found[0], found[-1]))
    for least, most in told[:3]:
        assert least < 0.2
        assert most > 0.8
    least, most = told[3]
    assert 0.3 < least <= most < 0.7


def test_a_weight_keeps_whom_an_ensemble_believes_from_moving_as_far() -> None:
    config, likelihoods = HeadEnsembleConfig(selection="bayes"), np.array([0.9, 0.1])
    full, half = (learned(uniform(2), likelihoods**weight, config).weights[0] for weight in (1.0, 0.5))
    assert full == pytest.approx(0.9)
    assert half == pytest.approx(0.75)


def test_an_ensemble_reads_the_weights_too(desk: Make) -> None:
    mixed = {"use": "head_ensemble", "members": ["gradient_head"], "arms": "head_arms"}
    one = desk("gradient_head", mixed=mixed)
    one.answer("x", "candidate")
    one.label("spam", "x")
    one.label("ham", None, text="of nobody")
    one.label("ham", None, text="of nobody else")
    assert one.weights()[0] == ("spam", 0.25)
    assert one.world.store("mixed", "believed").get("mail").labels == 1


def test_arms_of_another_kind_are_refused() -> None:
    with pytest.raises(ConfigError, match="head_arms"):
        LabelStatistics(LabelStatisticsConfig(arms="other")).check_reads({"other": LabelStatistics()})
    with pytest.raises(ConfigError, match="window_s"):
        HeadArmsConfig(window_s=0.0)


# -- what is told of arms ---------------------------------------------------------------------------------------------
def test_answers_are_held_against_the_first_label_or_correction_that_names_them(desk: Make) -> None:
    one = desk()
    one.answer("x1", "live", "ann")
    one.label("spam", "x1")
    one.label("ham", "x1")  # it was corrected: the answer is told already
    one.answer("x2", "live", "ann")
    one.world.send("feedback.given", {"exposure_id": "x2", "value": -1.0, "head": "mail", "correction": "ham",
                                      "target": {"text": "t"}})  # fmt: skip
    one.answer("x3", "live", "ann")
    one.label("other", "x3")  # not among those shown: what they leave over
    one.answer("x4", "live", "ann")
    one.label(None, "x4", text="retracted")
    one.label("spam", "x4", text="t", weight=0.0)
    one.label("spam", "x4", head="another", text="t")
    one.answer("y1", "candidate", "bob", said=(("spam", 0.8), ("ham", 0.1), ("ham", 0.9), ("spam", 0.05)))
    one.answer("y2", "candidate", "bob", said=(("spam", 1.0),))
    one.label("ham", "y2")  # it had no chance at all
    one.answer("n", "live", None)
    one.label("spam", "n", text="of nobody")
    found = one.outcomes()
    assert counts(found["e.live"]) == (1, 4, 3, 1, [])
    assert counts(found["e.candidate"]) == (1, 2, 1, 0, [])
    one.world.clock.advance(150)
    one.answer("z", "live", "late")
    found = one.outcomes()
    assert found["e.live"].values.tolist() == [pytest.approx(1 / 3)]
    losses = found["e.live"].losses
    assert losses is not None
    assert losses * MOST_LOSS == pytest.approx([-(math.log(0.8) + math.log(0.15) + math.log(0.05)) / 3])
    assert found["e.candidate"].losses == pytest.approx([1.0])
    assert found["e.live"].most_loss == MOST_LOSS


def test_answers_about_several_targets_count_as_answers_and_their_labels_are_weighed(desk: Make) -> None:
    one = desk()
    several = tuple((label, 0.5) for _ in range(2) for label in ("spam", "ham"))
    data = {"exposure_id": "x", "kind": "classify", "user_id": "ann", "context": {"head": "mail"}}
    items = [{"label": label, "rank": 1 + n % 2, "score": score} for n, (label, score) in enumerate(several)]
    arms = [{"experiment": "e", "arm": "candidate", "share": 0.25, "candidate": one.stack, "live": ["other"]}]
    one.world.send("exposure.recorded", {**data, "items": items, "arms": arms})
    one.label("spam", "x", text="one")
    assert counts(one.outcomes()["e.candidate"]) == (1, 1, 0, 0, [])
    assert one.weights() == [("spam", 0.25)]


def test_a_user_counts_once_for_the_window_from_the_first_answer(desk: Make) -> None:
    one = desk()
    for exposure, user in (("x1", "ann"), ("x2", "bob")):
        one.answer(exposure, "live", user)
        one.world.clock.advance(5)
    one.label("spam", "x1")
    one.world.clock.advance(92)  # ann's is over, bob's is open
    one.answer("x3", "live", "ann")
    one.label("ham", "x3")
    one.label("ham", "x2")
    one.answer("x4", "live", "eve")
    assert counts(one.outcomes()["e.live"]) == (3, 3, 2, 1, [1.0])
    one.world.clock.advance(10)
    one.answer("x5", "live", "joe")
    assert one.outcomes()["e.live"].values.tolist() == [1.0, 0.0]  # eve, of whom no label came, would not count


# -- labels that come before their answers ----------------------------------------------------------------------------
def judge(one: Desk, n: int) -> None:
    """What is said of answer ``n``: several labels, of which the first counts; a correction; or what is no label."""
    if n % 5 == 0:
        one.world.send("feedback.given", {"exposure_id": f"x{n}", "value": -1.0, "head": "mail", "correction": "ham",
                                          "target": {"text": f"t{n}"}, "user_id": f"u{n % 7}"})  # fmt: skip
    if n % 5 == 1:
        one.label(None, f"x{n}", text=f"t{n}")
        one.label("spam", f"x{n}", text=f"t{n}", weight=0.0)
        one.label("spam", f"x{n}", head="another", text=f"t{n}")
    for label in ("spam", "ham") if n % 3 else ("other",):
        one.label(label, f"x{n}", text=f"t{n}")


def test_labels_before_their_answers_count_in_arms_as_those_after_them(desk: Make) -> None:
    def outcomes(is_early: Callable[[int], bool], *, each: bool = False) -> Any:
        one = desk()
        for n in range(40):
            if is_early(n):
                judge(one, n)
            if each:  # event by event or all at once is the same
                one.world.fold()
            one.answer(f"x{n}", "candidate" if n % 4 == 0 else "live", f"u{n % 7}")
            if not is_early(n):
                judge(one, n)
        one.world.clock.advance(150)
        one.answer("late", "live", "late")
        told = {name: (*counts(arm), arm.losses) for name, arm in one.outcomes().items()}
        assert verify_group(one.world.context, one.world.workspace, one.world.group(one.head)).equal
        return {name: (*found, None if losses is None else losses.tolist()) for name, (*found, losses) in told.items()}

    after = outcomes(lambda n: False)
    assert after["e.live"][2] == 30
    assert outcomes(lambda n: True, each=True) == after
    assert outcomes(lambda n: n % 2 == 0) == after


def test_a_label_before_its_answer_is_learned_in_full_and_counts_as_of_when_it_was_given(desk: Make) -> None:
    one = desk()
    one.label("spam", "x1")
    one.answer("x1", "candidate", "ann")
    one.label("spam", "x2")
    one.world.clock.advance(99)
    one.label("ham", "x3")
    one.world.clock.advance(2)  # ann's window is over, both labels were given in it
    one.answer("x2", "candidate", "bob")
    one.answer("x3", "candidate", "bob")
    assert counts(one.outcomes()["e.candidate"]) == (2, 3, 3, 2, [1.0])
    one.label("ham", "x4")
    one.answer("x4", "candidate", "ann")
    assert counts(one.outcomes()["e.candidate"]) == (2, 3, 3, 2, [1.0])
    assert one.weights() == [("spam", 1.0), ("spam", 1.0), ("ham", 1.0), ("ham", 1.0)]
    assert len(one.world.store("head_arms", "arm_odds")) == 0


def test_what_waits_for_answers_is_bounded_by_positions_in_the_log(desk: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_arms, "_BLOCK", 8)
    one = desk()
    for n in range(100):  # of answers that never come, as where there is no experiment
        one.label("spam", f"never{n}", text="t" * 900)
        if n % 7 == 0:
            one.label("y" * 5000, f"never{n}", head="another", text="t")
        one.world.fold()
        assert len(one.world.store("head_arms", "early")) <= 16
    assert max(len(row.label) for _, row in one.world.store("head_arms", "early").items()) <= 512
    one.label("spam", "x1")
    for n in range(20):
        one.world.send("exposure.recorded", {"exposure_id": f"e{n}", "kind": "classify", "items": []})
    one.world.fold()
    assert "x1\x1fmail" in one.world.store("head_arms", "early"), "no label came since, to let it go"
    one.answer("x1", "live")
    assert counts(one.outcomes()["e.live"]) == (1, 1, 0, 0, []), "but it was too long ago"
    assert verify_group(one.world.context, one.world.workspace, one.world.group(one.head)).equal


@pytest.mark.parametrize("seed", range(6))
def test_who_is_forgotten_leaves_what_waits_as_if_he_had_never_labelled(
    desk: Make, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """By either method: which it was the report says."""
    monkeypatch.setattr(head_arms, "_BLOCK", 4)
    rng = random.Random(seed)
    given = [(rng.choice("de"), f"x{rng.randrange(6)}") for _ in range(rng.randrange(4, 24))]
    one, other = desk(), desk()
    for each in (one, other):
        for name in "de":
            each.world.send("document.upserted", {"document_id": name, "text": f"a text {name}"})
        for name, exposure in given:
            if each is one or name == "e":
                each.label("spam" if name == "d" else "ham", exposure, document_id=name)
            else:
                each.world.send("user.upserted", {"user_id": "nobody"})  # the same positions
        each.world.send("document.erased", {"document_id": "d"})
        each.world.erase()
        each.answer("x1", "live")
    assert {name: counts(arm) for name, arm in one.outcomes().items()} == {
        name: counts(arm) for name, arm in other.outcomes().items()
    }
    mine, theirs = (dict(each.world.store("head_arms", "early").items()) for each in (one, other))
    assert list(mine.items()) == list(theirs.items()), "in the same order, too"
    assert verify_group(one.world.context, one.world.workspace, one.world.group(one.head)).equal


def test_forgetting_a_label_that_waits_is_exact_unless_others_depended_on_it(
    desk: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def method(*labels: tuple[str, str], spacing: int = 0) -> str:
        one = desk()
        for name in "de":
            one.world.send("document.upserted", {"document_id": name, "text": f"a text {name}"})
        for name, exposure in labels:
            one.label("spam", exposure, document_id=name)
            one.world.send_many([("user.upserted", {"user_id": "nobody"})] * spacing)
        one.world.send("document.erased", {"document_id": "d"})
        one.world.erase()
        [note] = one.world.ledger.erased_groups(one.world.workspace, 3 + len(labels) * (1 + spacing))
        return str(note.method)

    assert method(("d", "x"), ("e", "y")) == "exact"
    assert method(("e", "y"), ("d", "x")) == "exact"
    assert method(("d", "x"), ("d", "x")) == "exact"
    assert method(("d", "x"), ("e", "x")) == "rebuild"
    monkeypatch.setattr(head_arms, "_BLOCK", 4)
    assert method(("e", "y"), ("e", "z"), ("d", "x"), spacing=7) == "rebuild", "it let others go"
    assert method(("e", "y"), ("d", "x"), ("e", "z"), spacing=7) == "exact", "as another one has since"


# -- replay and erasure -----------------------------------------------------------------------------------------------
def filled(one: Desk) -> None:
    for n in range(30):
        one.answer(f"x{n}", "candidate" if n % 4 == 0 else "live", f"u{n % 7}")
        one.label("spam" if n % 3 else "ham", f"x{n}", text=f"word{n % 5} {n}")


def test_a_fold_afresh_weighs_as_the_first_one_did_also_as_another_generation(desk: Make) -> None:
    one = desk()
    filled(one)
    weights, outcomes = one.weights(), one.outcomes()
    assert len({weight for _, weight in weights}) > 10
    group = one.world.group(one.head)
    assert verify_group(one.world.context, one.world.workspace, group).equal
    versions.rebuild(one.world.context, one.world.workspace, group, actor="me", reason="test")
    one.world.fold()
    assert one.world.group(one.head).name != group.name
    assert one.weights() == weights
    assert {name: counts(arm) for name, arm in one.outcomes().items()} == {
        name: counts(arm) for name, arm in outcomes.items()
    }


def test_whoever_is_erased_leaves_arms_and_weights_as_if_he_had_never_asked(desk: Make) -> None:
    one, other = desk(), desk()
    for each, users in ((one, "uv"), (other, "v")):
        for n in range(20):
            for user in users:
                each.answer(f"{user}{n}", "candidate" if n % 2 else "live", user)
            for user in "uv":
                each.label("spam" if n % 2 else "ham", f"{user}{n}", text=f"{user} {n}")
    one.world.send("user.erased", {"user_id": "u"})
    one.world.erase()
    assert {name: counts(arm) for name, arm in one.outcomes().items()} == {
        name: counts(arm) for name, arm in other.outcomes().items()
    }
    labels = {key: (row.label, row.weight) for key, row in one.world.store(one.head, "labels").items()}
    assert labels == {key: (row.label, row.weight) for key, row in other.world.store(other.head, "labels").items()}


def test_without_an_experiment_an_erasure_stays_exact(desk: Make) -> None:
    one = desk()
    one.world.send("document.upserted", {"document_id": "d", "text": "a text"})
    one.label("spam", "x", document_id="d")
    one.label("ham", "y", text="another")
    one.world.send("document.erased", {"document_id": "d"})
    one.world.erase()
    [note] = one.world.ledger.erased_groups(one.world.workspace, 4)
    assert note.method == "exact"
    assert one.weights() == [("ham", 1.0)]


def weighed() -> LabelStatistics:
    return LabelStatistics(LabelStatisticsConfig(arms="head_arms"))


weighed.__name__ = "label_statistics"


@pytest.mark.parametrize("make", [HeadArms, weighed], ids=["head_arms", "a head that reads it"])
def test_it_passes_the_conformance_kit_in_an_experiment(make: Any) -> None:
    case = Case(make=make, plugins=(builtin,), policies={} if make is HeadArms else {"head_arms": {}})
    folded = Folded(case)
    stack = folded.world.group(case.name).stack
    folded.close()
    arms = [{"experiment": "e", "arm": "candidate", "share": 0.5, "candidate": stack, "live": ["other"]}]
    events: list[Given] = []
    for n in range(6):
        items = [{"label": label, "rank": rank, "score": 0.5} for rank, label in enumerate("ab", 1)]
        data = {"exposure_id": f"x{n}", "kind": "classify", "user_id": f"u{n % 3}", "context": {"head": "h"}}
        label = {"head": "h", "target": {"text": f"a text {n}"}, "label": "ab"[n % 2], "exposure_id": f"x{n}"}
        events += [("exposure.recorded", {**data, "items": items, "arms": arms}), ("label.observed", label)]
        if n % 3 == 0:
            events[-2:] = events[:-3:-1]  # the label comes first
    results = run_checks(replace(case, events=tuple(events)))
    assert [one.name for one in results] == list(CHECKS)
    assert [(one.name, one.message) for one in results if one.state != "passed"] == []
