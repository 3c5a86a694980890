"""Off-policy estimates on a simulator whose values are known."""

from __future__ import annotations

import numpy as np
import pytest

from streamfold.pipelines.evaluate.metrics import Floats
from streamfold.pipelines.evaluate.offpolicy import LEAST_SAMPLES, estimate

LIKED = np.array([[0.2, 0.5, 0.8], [0.7, 0.3, 0.1]])
"""Two kinds of users, three items: how likely each is liked."""
LOGGING = np.array([[0.6, 0.2, 0.2], [0.1, 0.3, 0.6]])


def simulate(seed: int, n: int, logging: Floats = LOGGING) -> tuple[Floats, Floats, Floats, Floats]:
    """Kind of user, item shown, its propensity, reward."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(2, size=n)
    item = (rng.random(n)[:, None] > np.cumsum(logging[kind], 1)).sum(1)
    return kind, item, logging[kind, item], (rng.random(n) < LIKED[kind, item]).astype(float)


def test_ips_of_the_logging_policy_is_its_mean_reward_exactly() -> None:
    _, _, propensities, rewards = simulate(1, 3000)
    found = estimate(rewards, propensities, propensities)
    assert found.ips is not None
    assert found.snips is not None
    assert found.ips.value == found.snips.value == rewards.mean()
    assert found.effective_samples == pytest.approx(3000)
    assert found.largest_weight == found.mean_weight == 1.0


@pytest.mark.parametrize("greedy", [True, False])
def test_intervals_hold_the_true_value_nineteen_times_in_twenty(greedy: bool) -> None:
    target = np.eye(3)[[2, 0]] if greedy else np.array([[0.1, 0.4, 0.5], [0.5, 0.25, 0.25]])
    true = (target * LIKED).sum(1).mean()
    wrong = np.full((2, 3), 0.5) + 0.1 * LIKED  # a model of the reward that is far off
    held = dict.fromkeys(("ips", "snips", "dr"), 0)
    for seed in range(400):
        kind, item, propensities, rewards = simulate(seed, 1500)
        found = estimate(
            rewards, propensities, target[kind, item], predicted=wrong[kind, item],
            expected=(target[kind] * wrong[kind]).sum(1),
        )  # fmt: skip
        for name in held:
            one = getattr(found, name)
            held[name] += one.low <= true <= one.high
    assert all(0.92 <= count / 400 <= 0.98 for count in held.values()), held


def test_a_good_model_makes_the_doubly_robust_estimate_narrower_than_ips() -> None:
    target = np.eye(3)[[2, 0]]
    kind, item, propensities, rewards = simulate(5, 2000)
    found = estimate(
        rewards, propensities, target[kind, item], predicted=LIKED[kind, item],
        expected=(target[kind] * LIKED[kind]).sum(1),
    )  # fmt: skip
    assert found.dr is not None
    assert found.ips is not None
    assert found.dr.high - found.dr.low < 0.8 * (found.ips.high - found.ips.low)


def test_rewards_of_one_user_are_not_independent() -> None:
    _, _, propensities, rewards = simulate(6, 400)
    users = np.repeat(np.arange(400), 5)
    apart = estimate(np.repeat(rewards, 5), np.repeat(propensities, 5), np.repeat(propensities, 5))
    found = estimate(np.repeat(rewards, 5), np.repeat(propensities, 5), np.repeat(propensities, 5), clusters=users)
    assert found.ips is not None
    assert apart.ips is not None
    assert (found.ips.high - found.ips.low) / (apart.ips.high - apart.ips.low) == pytest.approx(5**0.5, rel=0.01)


def test_too_few_effective_samples_are_refused() -> None:
    kind, item, propensities, rewards = simulate(7, 300)
    found = estimate(rewards, propensities, np.eye(3)[[2, 0]][kind, item])
    assert found.effective_samples < LEAST_SAMPLES
    assert "effective samples" in found.refused
    assert found.ips is None


def test_a_policy_that_shows_what_never_was_shown_is_refused() -> None:
    never = np.array([[0.7, 0.3, 0.0], [0.3, 0.7, 0.0]])
    kind, item, propensities, rewards = simulate(8, 3000, never)
    found = estimate(rewards, propensities, np.full((2, 3), 1 / 3)[kind, item])
    assert found.effective_samples > LEAST_SAMPLES
    assert "no support" in found.refused
    assert "no support" in estimate(rewards, propensities, np.zeros(3000)).refused


def test_propensities_that_cannot_be_right_are_refused() -> None:
    kind, item, propensities, rewards = simulate(9, 3000)
    assert "too small" in estimate(rewards, propensities / 2, np.full((2, 3), 1 / 3)[kind, item]).refused
    with pytest.raises(ValueError, match="over 0"):
        estimate(rewards, np.zeros(3000), propensities)
    assert estimate(np.empty(0), np.empty(0), np.empty(0)).refused == "no propensities were logged"
