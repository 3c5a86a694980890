"""Whatever the stream, the mixture over λ is never worse than any of its experts by more than its guarantee."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamfold.plugins._lambda_mixture import LambdaMixture

LAMBDAS = (0.0, 0.25, 0.5, 0.75, 1.0)
LEAST = 1e-4
ROUNDING = 1e-9
STEP = st.tuples(st.floats(0, 1), st.floats(-8, 8), st.booleans())


def loss(said: float, label: float) -> float:
    return -math.log(said if label else 1 - said)


class Played:
    """A mixture beside its experts, their losses summed up from the definition."""

    def __init__(self, lambdas: tuple[float, ...], share: float, logit: bool) -> None:
        self.mixture = LambdaMixture(lambdas, share=share, logit=logit)
        self.weights = np.zeros(len(lambdas))
        self.lambdas, self.share, self.logit = lambdas, share, logit
        self.mine, self.experts, self.steps = 0.0, np.zeros(len(lambdas)), 0

    def step(self, base: float, correction: float, choose: Callable[[float], float]) -> None:
        terms = np.array([correction / 2, correction / 2])
        said = float(self.mixture.mix(self.weights, np.array([base]), terms[None])[0])
        label = choose(said)
        if len(self.lambdas) > 1:
            assert LEAST - ROUNDING <= said <= 1 - LEAST + ROUNDING
        self.mine += loss(min(max(said, LEAST), 1 - LEAST), label)
        self.experts += [loss(self.expert(base, correction, one), label) for one in self.lambdas]
        self.mixture.learn(self.weights, base, terms, label)
        self.steps += 1

    def expert(self, base: float, correction: float, amount: float) -> float:
        said = base + amount * correction
        if self.logit and amount:
            kept = min(max(base, 1e-9), 1 - 1e-9)
            said = 1 / (1 + math.exp(-(math.log(kept / (1 - kept)) + amount * correction)))
        return min(max(said, LEAST), 1 - LEAST)

    def check(self) -> None:
        allowed = math.log(len(self.lambdas)) + self.steps * math.log(1 / (1 - self.share))
        assert self.mine <= self.experts.min() + allowed + ROUNDING * self.steps
        assert np.isfinite(self.weights).all()


@settings(deadline=None, max_examples=150)
@given(
    steps=st.lists(STEP, max_size=60),
    lambdas=st.sampled_from([LAMBDAS, (0.0, 1.0), (0.0,), (0.0, 0.1, 0.9)]),
    share=st.sampled_from([0.0, 0.001, 0.2]),
    logit=st.booleans(),
)
def test_no_stream_makes_it_lose_more_than_allowed(
    steps: list[Any], lambdas: tuple[float, ...], share: float, logit: bool
) -> None:
    played = Played(lambdas, share, logit)
    for base, correction, label in steps:
        played.step(base, correction, lambda said, label=label: float(label))
        played.check()


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), share=st.sampled_from([0.0, 0.01]), logit=st.booleans())
def test_an_adversary_who_sees_the_score_first_gains_no_more(seed: int, share: float, logit: bool) -> None:
    rng = np.random.default_rng(seed)
    played = Played(LAMBDAS, share, logit)
    for _ in range(400):
        played.step(rng.uniform(0.01, 0.99), rng.normal() * 2, lambda said: float(said < 0.5))
        played.check()


def test_a_memory_that_was_right_long_and_then_lies_costs_no_more_than_the_guarantee() -> None:
    """The worst for a mixture: all weight lies on λ = 1 when its correction turns false."""
    played = Played(LAMBDAS, 0.0, True)
    for n in range(3000):
        label = float(n % 2)
        played.step(0.5, (4.0 if n < 1000 else -4.0) * (2 * label - 1), lambda said, label=label: label)
        played.check()
    shared = Played(LAMBDAS, 0.01, True)
    for n in range(3000):
        label = float(n % 2)
        shared.step(0.5, (4.0 if n < 1000 else -4.0) * (2 * label - 1), lambda said, label=label: label)
        shared.check()
    assert shared.mine < played.mine / 1.2, "a fixed share leaves the liar sooner"


@settings(deadline=None)
@given(base=st.floats(0, 1), correction=st.floats(-9, 9), logit=st.booleans())
def test_lambda_zero_alone_is_the_base(base: float, correction: float, logit: bool) -> None:
    mixture = LambdaMixture((0.0,), share=0.0, logit=logit)
    weights = np.zeros(1)
    for label in (0.0, 1.0):
        assert mixture.mix(weights, np.array([base]), np.array([[correction]]))[0] == base
        mixture.learn(weights, base, np.array([correction]), label)
    assert weights[0] == pytest.approx(0.0)
