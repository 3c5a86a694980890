"""The mixture's covariance is the recursion's and stays positive definite; far inputs begin components, near ones do
not; a new cluster is told once it has support."""

from __future__ import annotations

import copy
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import chi2
from sklearn.datasets import load_digits

from streamfold.plugins._igmm import Component, Limits, Mixture, reach_of

NEVER = Limits(chance=1e-300)
"""Nothing is novel: one component takes all."""


def means(mixture: Mixture) -> list[Any]:
    return [one.arrays()[0] for one in mixture.components]


def spread_of(mixture: Mixture) -> Any:
    spread = np.frombuffer(mixture.spread)
    return spread.reshape(round(len(spread) ** 0.5), -1)


def mixture(rows: Any, limits: Limits = NEVER) -> Mixture:
    made = Mixture()
    for row in rows:
        made.learn(np.asarray(row, float), limits)
    return made


numbers = st.floats(-1e3, 1e3, allow_nan=False).map(lambda x: round(x, 6))


@settings(deadline=None, max_examples=40)
@given(arrays(np.float64, (40, 3), elements=numbers), st.floats(1e-6, 1.0))
def test_one_component_has_the_mean_and_covariance_of_all_its_inputs(rows: Any, weight: float) -> None:
    """With p = 1 the recursion is exact: C is the scatter of all inputs and of the spread it began with, over n."""
    start = Component(rows[0].tobytes(), np.eye(3).tobytes(), 1.0, 1, 0.0, True)
    one = start
    for row in rows[1:]:
        one = one.moved(row, 1.0)
    mean, cov = one.arrays()
    off = rows - rows.mean(axis=0)
    scale = 1.0 + float(np.abs(off.T @ off).max()) / len(rows)
    np.testing.assert_allclose(mean, rows.mean(axis=0), atol=1e-9 * scale)
    np.testing.assert_allclose(cov, (np.eye(3) + off.T @ off) / len(rows), atol=1e-9 * scale)
    assert (one.mass, one.age) == (len(rows), len(rows))
    # … and with any posterior that is not next to nothing it is the recursion, C ← (1−w)(C + w eeᵀ)
    mean, cov = start.arrays()
    other = start.moved(rows[1], weight)
    w, e = weight / (1 + weight), rows[1] - mean
    np.testing.assert_array_equal(other.arrays()[1], (1 - w) * (cov + w * np.outer(e, e)))
    np.testing.assert_array_equal(other.arrays()[0], mean + w * e)


@settings(deadline=None, max_examples=40)
@given(arrays(np.float64, (60, 4), elements=numbers), st.sampled_from([1e-9, 1e-3, 0.2]), st.integers(1, 6))
def test_covariances_stay_positive_definite_and_bounds_hold(rows: Any, chance: float, most: int) -> None:
    limits = Limits(chance=chance, first=10, support=3.0, patience=20, most=most)
    made = mixture(rows, limits)
    assert 1 <= len(made.components) <= most
    for one in made.components:
        cov = one.arrays()[1]
        np.testing.assert_array_equal(cov, cov.T)
        assert np.linalg.eigvalsh(cov).min() > -1e-9 * np.abs(cov).max()
        assert np.linalg.eigvalsh(cov + 0.02 * spread_of(made)).min() > 0
        assert one.mass >= 1
    assert np.isfinite(made.distances(rows[0])).all()


def test_many_inputs_that_are_all_the_same_stay_finite_and_known() -> None:
    made = mixture(np.ones((3000, 5)), Limits())
    assert len(made.components) == 1
    assert made.distances(np.ones(5))[0] == 0
    assert np.linalg.eigvalsh(made.components[0].arrays()[1]).min() > 0
    assert made.learn(np.ones(5) * 1.1, Limits()) is None
    assert len(made.components) == 2  # a tenth away from what never varied


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 16))
def test_an_input_out_of_reach_begins_a_component_and_one_within_does_not(seed: int, dim: int) -> None:
    rng = np.random.default_rng(seed)
    made = mixture(rng.normal(size=(200, dim)), Limits(chance=1e-9))
    before = len(made.components)
    towards = rng.normal(size=dim)
    towards /= np.linalg.norm(towards)
    made.learn(means(made)[0], Limits(chance=1e-9))
    assert len(made.components) == before
    made.learn(1000.0 * towards, Limits(chance=1e-9))
    assert len(made.components) == before + 1
    np.testing.assert_array_equal(means(made)[-1], 1000.0 * towards)
    np.testing.assert_array_equal(made.components[-1].arrays()[1], spread_of(made))
    made.learn(1000.0 * towards + 0.1 * np.diag(spread_of(made)) ** 0.5, Limits(chance=1e-9))
    assert len(made.components) == before + 1
    assert made.components[-1].mass == pytest.approx(2.0)


def test_reach_is_the_quantile_of_chi_squared() -> None:
    for dim in (1, 7, 64):
        assert reach_of(dim, 0.001) == pytest.approx(chi2.ppf(0.999, dim))


def test_the_means_of_a_mixture_are_found() -> None:
    """What the papers show: components sit on the clusters, with their shares of the mass."""
    rng = np.random.default_rng(0)
    centres = np.array([[0.0, 0.0], [30.0, 0.0], [0.0, 30.0]])
    of = np.concatenate([np.zeros(128, int), rng.choice(3, 3000, p=[0.5, 0.3, 0.2])])
    made = mixture(centres[of] + rng.normal(size=(len(of), 2)), Limits())
    found = sorted((one for one in made.components if one.mass > 50), key=lambda one: -one.mass)
    assert len(found) == 3
    for centre, one in zip(centres, found, strict=True):
        mean, cov = one.arrays()
        np.testing.assert_allclose(mean, centre, atol=0.3)
        np.testing.assert_allclose(cov, np.eye(2), atol=0.3)


def test_a_new_cluster_is_told_once_soon_and_one_kind_of_inputs_never() -> None:
    told = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        rows = rng.normal(size=(1400, 8))
        rows[1000:][rng.random(400) < 0.3] += 8.0
        made, at = Mixture(), []
        for n, row in enumerate(rows):
            if (fired := made.learn(row, Limits())) is not None:
                assert fired.statistic > fired.threshold
                at.append(n)
        told.append(at)
    assert all(len(at) == 1 and 1000 <= at[0] < 1100 for at in told), told


def test_a_stray_input_is_forgotten_without_a_word() -> None:
    rng = np.random.default_rng(1)
    made = mixture(rng.normal(size=(200, 4)), Limits())
    before = len(made.components)
    made.learn(np.full(4, 99.0), Limits())
    assert len(made.components) == before + 1
    assert all(made.learn(row, Limits()) is None for row in rng.normal(size=(501, 4)))
    assert max(float(one.max()) for one in means(made)) < 9


def test_digits_of_every_class_not_seen_are_told() -> None:
    """Zeros and ones are known, 64 pixels each; then the digits of another class come."""
    digits = load_digits()
    rng = np.random.default_rng(0)
    known = mixture(digits.data[rng.permutation(np.flatnonzero(digits.target < 2))], Limits())
    for digit in range(2, 10):
        seen = copy.deepcopy(known)
        fired = [seen.learn(row, Limits()) for row in digits.data[digits.target == digit]]
        assert any(one is not None for one in fired), digit


@pytest.mark.parametrize("count", [30, 128, 129, 400])
def test_a_mixture_goes_on_from_its_stored_form(count: int) -> None:
    rng = np.random.default_rng(2)
    rows = rng.normal(size=(500, 6))
    rows[300:] += 7.0
    whole, stored = mixture(rows, Limits()), mixture(rows[:count], Limits())
    stored = msgspec.msgpack.decode(msgspec.msgpack.encode(stored), type=Mixture)
    for row in rows[count:]:
        stored.learn(row, Limits())
    assert stored == whole


def test_a_component_that_an_input_hardly_belongs_to_keeps_its_bits() -> None:
    one = Component(np.zeros(3).tobytes(), np.eye(3).tobytes(), 1.0, 1, 0.0, True)
    far = np.full(3, 1e6)
    assert one.moved(far, 1e-10) == msgspec.structs.replace(one, age=2)
    assert one.moved(far, 1e-8).mean != one.mean
