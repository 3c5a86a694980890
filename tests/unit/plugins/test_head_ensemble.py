"""``head_ensemble``: never much worse than its best member, whatever the stream; and what it serves."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamfold.core import ClassifyRequest, ConfigError, Target, WrongTarget
from streamfold.core.testing import parametrize_with_checks
from streamfold.core.testing.folded import Folded
from streamfold.core.testing.lab import Case
from streamfold.plugins import builtin
from streamfold.plugins.gradient_head import GradientHead
from streamfold.plugins.head_ensemble import HeadEnsemble, HeadEnsembleConfig, learned, mixable, rewarded, uniform
from streamfold.plugins.label_statistics import LabelStatistics

QUICK = {"encoder": {"use": "hashing", "dim": 64}}
MEMBERS = {
    "still": {"use": "gradient_head", "rate": 1e-6, "replay": 0, "dim": 64, "max_classes": 512},
    "quick": {"use": "gradient_head", "rate": 4.0, "dim": 64, "max_classes": 512},
}


def label(value: str, x: float, y: float) -> tuple[str, dict[str, Any]]:
    return "label.observed", {"head": "h", "target": {"features": {"x": x, "y": y}}, "label": value}


def mixed(**config: Any) -> Callable[[], HeadEnsemble]:
    def make() -> HeadEnsemble:
        return HeadEnsemble(HeadEnsembleConfig(members=("quick", "still"), **config))

    make.__name__ = "head_ensemble"
    return make


def case(**config: Any) -> Case:
    events = tuple(label("ab"[n % 2], 1.0 - n % 2, 0.1 * n) for n in range(6))
    return Case(make=mixed(**config), plugins=(builtin,), backends=QUICK, policies=MEMBERS, events=events)


class Said:
    """A member that says what it is told to."""

    def __init__(self, names: list[str]) -> None:
        self.names, self.row = names, np.zeros(len(names))

    def chances(self, head: str, space: str, phi: Any) -> Any:
        return self.names, self.row[None], np.zeros(1)


@settings(deadline=None, max_examples=60)
@given(
    share=st.sampled_from([0.0, 0.001, 0.1]),
    members=st.integers(1, 4),
    rows=st.lists(st.lists(st.floats(0.0, 1.0), min_size=12, max_size=12), min_size=1, max_size=80),
    adversarial=st.booleans(),
)
def test_the_mixture_loses_at_most_ln_n_more_than_any_member(
    share: float, members: int, rows: list[list[float]], adversarial: bool
) -> None:
    """Also where every label is chosen to hurt the mixture most."""
    names = ["a", "b", "c"]
    servers = [Said(names) for _ in range(members)]
    logs = np.array(uniform(members).logs)
    mine, theirs = 0.0, np.zeros(members)
    for n, row in enumerate(rows):
        for i, server in enumerate(servers):
            raw = np.array(row[3 * i : 3 * i + 3]) + 1e-12
            server.row = raw / raw.sum()
        _, chances, _ = mixable(servers, "h", "text", np.zeros((1, 2)))
        said = np.exp(logs) @ chances[:, 0]
        label = int(said.argmin()) if adversarial else n % 3
        mine -= math.log(said[label])
        theirs -= np.log(chances[:, 0, label])
        logs = rewarded(logs, chances[:, 0, label], share)
        assert np.exp(logs).sum() == pytest.approx(1)
    assert mine <= theirs.min() + math.log(members) + len(rows) * math.log(1 / (1 - share)) + 1e-9


def rounds(selection: Any, *stretches: tuple[int, list[float]], share: float = 0.01) -> tuple[list[Any], list[float]]:
    """Weights after, and losses before, each label of stretches in which members give it the same probabilities."""
    config = HeadEnsembleConfig(members=("a", "b", "c")[: len(stretches[0][1])], selection=selection, share=share)
    believed, weights, losses = uniform(len(config.members)), [], []
    for many, likelihoods in stretches:
        for _ in range(many):
            losses.append(-math.log(believed.weights @ likelihoods))
            believed = learned(believed, np.array(likelihoods), config)
            weights.append(believed.weights)
    return weights, losses


@pytest.mark.parametrize(
    ("selection", "least", "most"), [("bayes", 500, 501), ("fixed_share", 2, 9), ("onenet", 2, 12)]
)
def test_a_member_that_was_wrong_for_long_is_believed_again(selection: str, least: int, most: int) -> None:
    """OneNet's slow switch (arXiv:2309.12659): long-run weights alone take as long as the other was right."""
    weights, _ = rounds(selection, (500, [0.9, 0.1]), (600, [0.1, 0.9]))
    assert weights[499][0] > 0.95
    steps = next(n for n, one in enumerate(weights[500:], 1) if one[1] > one[0])
    assert least <= steps <= most
    assert weights[-1][1] > 0.5


def test_onenet_loses_less_than_long_term_weights_where_members_take_turns_and_hardly_more_where_not() -> None:
    """The gate's two claims (arXiv:2309.12659): it follows changes, and keeps what the long run teaches."""
    turns = [(100, [0.8, 0.2, 0.3]), (100, [0.2, 0.8, 0.3])] * 4
    total = {name: sum(rounds(name, *turns)[1]) for name in ("bayes", "onenet")}
    best_single = 400 * -math.log(0.8) + 400 * -math.log(0.2)
    assert total["onenet"] < 0.5 * total["bayes"]
    assert total["onenet"] < 0.4 * best_single
    still = {name: sum(rounds(name, (800, [0.8, 0.2, 0.3]))[1]) for name in ("bayes", "onenet")}
    assert still["onenet"] <= still["bayes"] + math.log(3)
    for one in rounds("onenet", *turns)[0]:
        assert one.sum() == pytest.approx(1)
        assert one.min() > 0


def test_members_of_other_kinds_are_refused() -> None:
    ensemble = HeadEnsemble(HeadEnsembleConfig(members=("sums", "quick")))
    with pytest.raises(ConfigError, match="member 'sums' is a label_statistics: members are gradient_heads"):
        ensemble.check_reads({"sums": LabelStatistics(), "quick": GradientHead()})
    ensemble.check_reads({"quick": GradientHead()})


def test_the_member_that_learns_is_believed_and_the_answer_is_the_mixture() -> None:
    rng = np.random.default_rng(0)
    folded = Folded(case(selection="bayes"))
    try:
        points = [(name, centre + rng.normal()) for _ in range(40) for name, centre in (("a", 3.0), ("b", -3.0))]
        folded.send([label(name, x, float(rng.normal())) for name, x in points])
        request = ClassifyRequest(head="h", targets=[Target(features={"x": 3.0, "y": 0.1})], explain=True)
        [found] = folded.server.classify(request)
        assert found.labels[0].label == "a"
        assert sum(one.score for one in found.labels) == pytest.approx(1, abs=1e-5)
        assert found.explain["members"]["quick"] > 0.95
        assert folded.server.heads() == {"h": 80}
        with pytest.raises(WrongTarget):
            folded.server.classify(ClassifyRequest(head="h", targets=[Target(text="lamp")]))
    finally:
        folded.close()


@parametrize_with_checks([case(share=0.01), case(selection="onenet")])
def test_two_members_pass_the_conformance_kit(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize(
    "bad", [{"members": ()}, {"members": ("a", "a")}, {"share": 1.0}, {"selection": "best"}, {"rate": 0.0}]
)
def test_wrong_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="head_ensemble"):
        HeadEnsembleConfig(**bad)
