"""The gate promotes what is not worse, sees what is better, and is not fooled by being asked often."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from streamfold.core.gate import GateLimits, confidence_sequence, judge, paired, user_means, verdict
from streamfold.core.quality import Scored

HOUR = 3_600_000_000
LIMITS = GateLimits(window_s=3600.0, min_users=50, slice_examples=50)


def scored(score: npt.ArrayLike, label: npt.ArrayLike, user: npt.ArrayLike, seq: npt.ArrayLike | None = None) -> Scored:
    label = np.asarray(label, float)
    n = len(label)
    numbers = np.arange(n) if seq is None else np.asarray(seq)
    return Scored(
        key=np.stack([numbers, np.zeros(n, np.int64)], 1), user=np.asarray(user), at_us=numbers * HOUR,
        score=np.asarray(score, float), label=label, slices=np.zeros(n, np.int64),
    )  # fmt: skip


def test_equal_pairs_watched_throughout_are_hardly_ever_called_better() -> None:
    rng = np.random.default_rng(7)
    better = sum(bool((confidence_sequence(rng.normal(0, 0.3, 2000))[1] < 0).any()) for _ in range(1000))
    assert better <= 50
    z = 0
    for _ in range(300):  # what a z-test at each look does
        v = rng.normal(0, 0.3, 2000)
        n = np.arange(1, 2001)
        mean = np.cumsum(v) / n
        z += bool((mean[100:] < -1.645 * 0.3 / np.sqrt(n[100:])).any())
    assert z / 300 > 0.15


@pytest.mark.parametrize("sd", [0.05, 0.1, 0.3])
def test_a_tenth_of_a_standard_deviation_is_found_within_5000_users(sd: float) -> None:
    rng = np.random.default_rng(7)
    runs = [confidence_sequence(rng.normal(-0.1 * sd, sd, 5000))[1][-1] < 0 for _ in range(300)]
    assert np.mean(runs) >= 0.95


def test_the_bounds_cover_the_mean_at_all_times() -> None:
    rng = np.random.default_rng(1)
    missed = 0
    for _ in range(500):
        lower, upper = confidence_sequence((rng.random(1000) < 0.3) * 1.0)
        missed += bool((lower > 0.3).any() or (upper < 0.3).any())
    assert missed / 500 <= 0.1  # five in a hundred on either side


def test_examples_are_paired_by_their_place_in_the_log() -> None:
    one = scored([0.9, 0.1, 0.6], [1, 1, 0], [1, 2, 3], seq=[5, 6, 7])
    other = scored([0.4, 0.8], [0, 1], [3, 2], seq=[7, 6])
    found = paired(one, other)
    assert found.user.tolist() == [2, 3]
    assert found.flipped.tolist() == [True, True]
    assert found.difference[0] == pytest.approx(1.0)  # clipped: ln 8 is more
    assert found.difference[1] == pytest.approx(np.log(0.6 / 0.4))


def test_a_user_counts_once_with_the_first_window_and_only_when_it_has_closed() -> None:
    pairs = paired(scored([0.5] * 4, [1, 1, 1, 1], [1, 1, 2, 1]), scored([0.25] * 4, [1, 1, 1, 1], [1, 1, 2, 1]))
    assert user_means(pairs, window_s=2 * 3600.0).tolist() == pytest.approx([-np.log(2)])
    assert user_means(pairs, window_s=3600.0).tolist() == pytest.approx([-np.log(2)] * 2)


def world(better: float, n: int = 6000) -> tuple[Scored, Scored]:
    """Two stacks of which the candidate says more, or less, of the truth."""
    rng = np.random.default_rng(3)
    truth = rng.random(n)
    label = (rng.random(n) < truth) * 1.0
    user = rng.integers(0, 800, n)
    live = 0.5 + (truth - 0.5) * 0.5
    return scored(0.5 + (truth - 0.5) * (0.5 + better), label, user), scored(live, label, user)


def rules(better: float, **more: Any) -> dict[str, Any]:
    candidate, live = world(better)
    return {rule.rule: rule for rule in judge(candidate, live, LIMITS, **more)}


def test_a_better_candidate_passes_a_worse_fails_an_equal_one_needs_users() -> None:
    found = rules(0.4)
    assert all(rule.passed for rule in found.values())
    assert "better" in found["not_worse"].detail
    worse = rules(-0.5)
    assert not worse["not_worse"].passed
    assert worse["not_worse"].detail.startswith("fail")
    nearly = rules(-0.02)
    assert not nearly["not_worse"].passed
    assert nearly["not_worse"].detail.startswith("undecided")
    assert verdict(np.zeros(800), LIMITS)[0] == "undecided"  # a thousandth of a nat takes more users than that
    assert verdict(np.zeros(8000), LIMITS)[0] == "pass"


def test_too_few_users_decide_nothing() -> None:
    assert verdict(np.full(49, -1.0), LIMITS)[0] == "undecided"
    assert verdict(np.full(400, -1.0), LIMITS)[0] == "pass"
    empty = scored([], [], np.zeros(0, np.int64))
    [first, *rest] = judge(empty, empty, LIMITS)
    assert not first.passed
    assert all(rule.passed for rule in rest)


def test_flips_slices_and_bytes_are_rules_of_their_own() -> None:
    found = rules(0.0, candidate_bytes=300, live_bytes=100)
    assert not found["bytes"].passed
    assert found["bytes"].value == 3.0
    candidate, live = world(0.0)
    turned = Scored(
        key=candidate.key, user=candidate.user, at_us=candidate.at_us, score=1 - candidate.score,
        label=candidate.label, slices=candidate.slices,
    )  # fmt: skip
    flipped = {rule.rule: rule for rule in judge(turned, live, LIMITS)}
    assert not flipped["negative_flips"].passed
    assert not flipped["worst_slice"].passed
