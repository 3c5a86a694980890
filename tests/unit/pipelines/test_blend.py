"""A list is made by score, by unlikeness, and by chance with a probability that can be relied on."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamfold.pipelines.serve.blend import choose, generator_of

SCORES = np.array([0.2, 0.9, 0.5, 0.5])


def test_by_score_and_of_equals_the_first() -> None:
    assert choose(SCORES, 3).order == [1, 2, 3]
    assert choose(SCORES, 3).propensities is None
    assert choose(np.array([]), 3).order == []


def test_diversity_takes_what_is_unlike() -> None:
    tokens = [("a",), ("b",), ("b",), ("c",)]
    assert choose(SCORES, 2, tokens=tokens).order == [1, 2]
    assert choose(SCORES, 2, tokens=tokens, diversity=0.5).order == [1, 3]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8), st.floats(0.01, 1), st.integers(0, 2**32))
def test_propensities_are_the_frequencies_and_sum_to_one(scores: list[float], explore: float, seed: int) -> None:
    made = choose(np.array(scores), len(scores), explore=explore, rng=np.random.default_rng(seed))
    assert sorted(made.order) == list(range(len(scores)))
    assert made.propensities is not None
    left = list(range(len(scores)))
    for taken, propensity in zip(made.order, made.propensities, strict=True):
        best = max(left, key=lambda i: (scores[i], -i))
        every = [(1 - explore) * (i == best) + explore / len(left) for i in left]
        assert sum(every) == pytest.approx(1.0)
        assert propensity == pytest.approx(every[left.index(taken)])
        left.remove(taken)


def test_ips_of_the_logging_policy_is_its_mean_reward() -> None:
    rewards = np.array([0.0, 1.0, 0.0, 1.0])
    estimates, seen = [], []
    for n in range(4000):
        made = choose(SCORES, 1, explore=0.4, rng=generator_of(f"x{n}"))
        assert made.propensities is not None
        chance = 0.6 * (made.order[0] == 1) + 0.1
        estimates.append(rewards[made.order[0]] * chance / made.propensities[0])
        seen.append(rewards[made.order[0]])
    assert np.mean(estimates) == pytest.approx(np.mean(seen), abs=1e-12)
    assert np.mean(seen) == pytest.approx(0.8, abs=0.03)


def test_the_same_exposure_draws_the_same() -> None:
    drawn = [choose(SCORES, 2, explore=1.0, rng=generator_of("x")).order for _ in range(2)]
    assert drawn[0] == drawn[1]
    orders = Counter(tuple(choose(SCORES, 1, explore=1.0, rng=generator_of(str(n))).order) for n in range(400))
    assert len(orders) == 4
