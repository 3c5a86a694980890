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
from streamfold.plugins.head_ensemble import HeadEnsemble, HeadEnsembleConfig, mixable, rewarded, uniform

QUICK = {"encoder": {"use": "hashing", "dim": 64}}
MEMBERS = {
    "still": {"use": "gradient_head", "rate": 1e-6, "replay": 0, "dim": 64, "max_classes": 512},
    "quick": {"use": "gradient_head", "rate": 4.0, "dim": 64, "max_classes": 512},
}


def label(value: str, x: float, y: float) -> tuple[str, dict[str, Any]]:
    return "label.observed", {"head": "h", "target": {"features": {"x": x, "y": y}}, "label": value}


def mixed(share: float = 0.0) -> Callable[[], HeadEnsemble]:
    def make() -> HeadEnsemble:
        return HeadEnsemble(HeadEnsembleConfig(members=("quick", "still"), share=share))

    make.__name__ = "head_ensemble"
    return make


def case(share: float = 0.0) -> Case:
    events = tuple(label("ab"[n % 2], 1.0 - n % 2, 0.1 * n) for n in range(6))
    return Case(make=mixed(share), plugins=(builtin,), backends=QUICK, policies=MEMBERS, events=events)


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


def test_a_member_that_was_wrong_for_long_is_believed_again_with_a_share_only_soon() -> None:
    """OneNet's reason for not trusting long-run weights alone (arXiv:2309.12659); fixed share is ours."""
    steps = {}
    for share in (0.0, 0.01):
        logs = np.array(uniform(2).logs)
        for _ in range(500):
            logs = rewarded(logs, np.array([0.9, 0.1]), share)
        steps[share] = 0
        while logs[1] < logs[0]:
            logs = rewarded(logs, np.array([0.1, 0.9]), share)
            steps[share] += 1
    assert steps[0.0] >= 500
    assert steps[0.01] < 10


def test_the_member_that_learns_is_believed_and_the_answer_is_the_mixture() -> None:
    rng = np.random.default_rng(0)
    folded = Folded(case())
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


@parametrize_with_checks([case(share=0.01)])
def test_two_members_pass_the_conformance_kit(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("bad", [{"members": ()}, {"members": ("a", "a")}, {"share": 1.0}])
def test_wrong_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="head_ensemble"):
        HeadEnsembleConfig(**bad)
