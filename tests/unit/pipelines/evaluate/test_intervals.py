"""The bootstrap over users: paired, clustered, seeded."""

from __future__ import annotations

import numpy as np

from streamfold.pipelines.evaluate.intervals import Draws, best, interval
from streamfold.pipelines.evaluate.metrics import auc, group_auc, mean_group_auc


def data(seed: int = 1, users: int = 40, n: int = 600) -> tuple[np.ndarray, ...]:  # type: ignore[type-arg]
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.4).astype(float)
    return rng.integers(users, size=n), labels, labels * 0.3 + rng.random(n), rng.integers(90, size=n)


def test_a_draw_is_the_measure_on_the_drawn_users_events() -> None:
    users, labels, scores, groups = data()
    groups = users * 3 + groups % 3  # a group has one user
    draws, rng = Draws(40, 5, 7), np.random.default_rng([7, 0])
    found, means = draws.auc(users, labels, scores), draws.mean(users, scores)
    by_group = group_auc(groups, labels, scores)
    grouped = draws.group_auc(np.arange(len(by_group.value)) // 3, by_group)
    for d in range(5):
        times = np.bincount(rng.integers(40, size=40), minlength=40)
        rows = np.repeat(np.arange(len(users)), times[users])
        copies = np.concatenate([np.arange(times[u]) for u in users])  # each copy of a user has groups of its own
        assert np.isclose(found[d], auc(labels[rows], scores[rows]))
        assert np.isclose(means[d], scores[rows].mean())
        apart = group_auc(groups[rows] * 50 + copies, labels[rows], scores[rows])
        assert np.isclose(grouped[d], mean_group_auc(apart))


def test_what_methods_have_in_common_cancels_out() -> None:
    users, labels, scores, _ = data()
    draws = Draws(40, 200, 0)
    one, same = draws.auc(users, labels, scores), draws.auc(users, labels, scores * 2 + 1)
    assert interval(0.0, one - same)[1:] == (0.0, 0.0)
    alone, together = interval(0.0, one), interval(0.0, one - draws.auc(users, labels, scores + 0.01 * users / 40))
    assert together.high - together.low < (alone.high - alone.low) / 2


def test_events_of_one_user_are_not_independent() -> None:
    rng = np.random.default_rng(2)
    users = np.repeat(np.arange(30), 50)
    values = rng.normal(0, 1, 30)[users] + rng.normal(0, 0.1, len(users))
    found = interval(values.mean(), Draws(30, 400, 0).mean(users, values))
    naive = 1.96 * values.std() / np.sqrt(len(values))
    assert found.high - found.low > 4 * naive


def test_the_seed_decides_and_nothing_measured_is_nan() -> None:
    users, labels, scores, _ = data()
    one, two, other = (Draws(40, 20, seed).auc(users, labels, scores) for seed in (1, 1, 2))
    assert (one == two).all()
    assert (one != other).any()
    assert np.isnan(interval(0.5, np.full(9, np.nan))[1:]).all()
    assert len(Draws(0, 5, 1).mean(np.empty(0, np.int64), np.empty(0))) == 0


def test_the_best_is_the_highest_or_lowest_there_is() -> None:
    values = {"a": 0.2, "b": float("nan"), "c": 0.7}
    assert best(values, values.__getitem__) == "c"
    assert best(values, values.__getitem__, lowest=True) == "a"
    assert best(["b"], values.__getitem__) is None
