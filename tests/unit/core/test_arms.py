"""Who is in an arm, and what is said of arms."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from streamfold.core.arms import ArmOutcome, Experiment, experiments, in_share

SALTS = st.text("0123456789abcdef", min_size=1, max_size=32)


@given(SALTS, st.text(max_size=20), st.integers(0, 1_000_000), st.integers(0, 1_000_000))
def test_the_same_user_is_in_the_same_arm_and_stays_in_a_larger_share(salt: str, user: str, one: int, two: int) -> None:
    assert in_share(salt, one, user) == in_share(salt, one, user)
    assert in_share(salt, min(one, two), user) <= in_share(salt, max(one, two), user)
    assert not in_share(salt, 0, user)
    assert in_share(salt, 1_000_000, user)


def test_who_is_in_an_arm_is_the_same_in_every_version_of_this_program() -> None:
    assert [n for n in range(40) if in_share("5f0c3a9be2d14a77", 100_000, f"u{n}")] == [7, 37]


@settings(max_examples=60)
@given(SALTS, st.integers(1, 999))
def test_a_share_is_what_was_asked_for_and_another_salt_is_independent(salt: str, thousandths: int) -> None:
    n, p = 4000, thousandths / 1000
    users = [f"user-{i}" for i in range(n)]
    mine = np.array([in_share(salt, thousandths * 1000, user) for user in users])
    other = np.array([in_share(salt + "x", thousandths * 1000, user) for user in users])
    width = 6 * math.sqrt(p * (1 - p) / n)  # six standard deviations: a failure is a fault, not chance
    assert abs(mine.mean() - p) <= width + 1 / n
    both = p * p
    assert abs((mine & other).mean() - both) <= 6 * math.sqrt(both * (1 - both) / n) + 1 / n


def outcome(arm: str, rate: float, n: int, rng: np.random.Generator) -> ArmOutcome:
    values = (rng.random((n, 4)) < rate).mean(axis=1)
    return ArmOutcome("e", arm, 0.5, 7, n + 3, 4 * n, int(4 * values.sum()), values)  # type: ignore[arg-type]  # a name


def compared(live: float, candidate: float, n: int, seed: int = 0) -> Experiment:
    rng = np.random.default_rng(seed)
    [found] = experiments([outcome("live", live, n, rng), outcome("candidate", candidate, n, rng)])
    return found


def test_a_difference_is_found_either_way_and_its_bounds_hold_it() -> None:
    better, worse = compared(0.2, 0.3, 3000), compared(0.3, 0.2, 3000)
    assert (better.verdict, worse.verdict) == ("better", "worse")
    for found, truth in ((better, 0.1), (worse, -0.1)):
        assert found.lower is not None
        assert found.upper is not None
        assert found.difference is not None
        assert found.lower <= truth <= found.upper
        assert found.lower <= found.difference <= found.upper


def test_equal_arms_are_seldom_declared_different_however_often_one_looks() -> None:
    looks = [50, 100, 200, 400, 800, 1600]
    wrong = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        live, candidate = (outcome(arm, 0.2, 1600, rng) for arm in ("live", "candidate"))
        for n in looks:
            [found] = experiments([one._replace(values=one.values[:n]) for one in (live, candidate)], min_users=1)
            if found.verdict != "undecided":
                wrong += 1
                break
    assert wrong <= 10  # 5 % of 200; the bounds are wide, so it is fewer


def test_few_users_or_one_arm_alone_decide_nothing() -> None:
    few = compared(0.0, 1.0, 60)
    assert few.lower is not None
    assert few.lower > 0
    assert few.verdict == "undecided"
    [alone] = experiments([outcome("live", 0.2, 500, np.random.default_rng(1))])
    assert (alone.candidate.users, alone.difference, alone.verdict) == (0, None, "undecided")
    assert experiments([]) == []
