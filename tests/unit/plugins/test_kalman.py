"""The filter over blocks is the filter label by label; it forgets, learns how fast, and does not wind up."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamfold.plugins._kalman import Filters
from streamfold.plugins._readouts import Ridge

DIM = 6


def one_by_one(phi: Any, codes: Any, weights: Any, gamma: float, prior: float, noise: float) -> tuple[Any, Any, Any]:
    """The recursion as the paper has it."""
    classes = codes.max() + 1
    mean, cov = np.zeros((phi.shape[1], classes)), prior * np.eye(phi.shape[1])
    said = np.zeros((len(phi), classes))
    for i, (row, code, weight) in enumerate(zip(phi, codes, weights, strict=True)):
        mean, cov = gamma * mean, gamma**2 * cov + (1 - gamma**2) * prior * np.eye(len(cov))
        said[i] = row @ mean
        gain = cov @ row / (noise / weight + row @ cov @ row)
        mean += np.outer(gain, np.eye(classes)[code] - said[i])
        cov -= np.outer(gain, row @ cov)
    return mean, cov, said


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    n=st.integers(1, 80),
    cuts=st.lists(st.integers(0, 80), max_size=6),
    gamma=st.sampled_from([0.9, 0.99, 0.9999]),
    prior=st.sampled_from([0.003, 1.0]),
)
def test_blocks_of_any_size_are_the_recursion(seed: int, n: int, cuts: list[int], gamma: float, prior: float) -> None:
    rng = np.random.default_rng(seed)
    phi, weights = rng.normal(size=(n, DIM)) * 2, rng.uniform(0.25, 4.0, n)
    codes = np.unique(rng.integers(0, 4, n), return_inverse=True)[1]
    first = list(dict.fromkeys(codes.tolist()))  # classes are numbered as they come
    codes = np.array([first.index(code) for code in codes])
    mean, cov, said = one_by_one(phi, codes, weights, gamma, prior, 0.3)
    filters = Filters(DIM, gammas=(gamma,), weight_variance=prior, noise=0.3)
    for start, end in pairwise(sorted({0, n, *(cut for cut in cuts if cut < n)})):
        ahead = filters.learn(phi[start:end], [f"c{code}" for code in codes[start:end]], weights[start:end])
        expected = said[start:end, : ahead.means.shape[1]]
        np.testing.assert_allclose(ahead.means, expected, rtol=0, atol=1e-9)
    assert filters.names == [f"c{code}" for code in range(codes.max() + 1)]
    np.testing.assert_allclose(filters.mean, mean, rtol=0, atol=1e-9)
    np.testing.assert_allclose(filters.cov, cov, rtol=0, atol=1e-9 * prior)


def test_directions_that_no_label_excites_do_not_wind_up() -> None:
    """After 100,000 labels in one plane the others are as uncertain as at first; forgetting least squares overflows."""
    filters = Filters(4, gammas=(0.99,), weight_variance=0.5, noise=0.1)
    rng = np.random.default_rng(0)
    lam, inverse = 0.99, 0.5  # recursive least squares there: P ← P/λ, as nothing comes
    for _ in range(400):
        phi = np.zeros((250, 4))
        phi[:, :2] = rng.normal(size=(250, 2))
        filters.learn(phi, ["a" if x > 0 else "b" for x in phi[:, 0]], np.ones(250))
        inverse /= lam**250
    assert np.isinf(inverse)
    values = np.linalg.eigvalsh(filters.cov)
    assert values.min() > 0
    assert values.max() <= 0.5 * (1 + 1e-9)
    np.testing.assert_allclose(filters.cov[2:, 2:], 0.5 * np.eye(2), rtol=1e-9)
    assert np.isfinite(filters.mean).all()
    filters.learn(np.zeros((250, 4)), ["a"] * 250, np.ones(250))  # labels that say nothing: back to the prior
    filters.learn(np.zeros((250, 4)), ["a"] * 250, np.ones(250))
    np.testing.assert_allclose(filters.cov, 0.5 * np.eye(4), rtol=1e-3, atol=1e-5)


def drifting(kind: str, seed: int, n: int = 1500, dim: int = 8, classes: int = 4) -> tuple[Any, list[str]]:
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(classes, dim)) * 0.9
    codes = rng.integers(0, classes, n)
    places = codes.copy()
    if kind == "abrupt":
        swapped = (np.arange(n) * 3 // n == 1) & (codes < 2)
        places[swapped] = 1 - codes[swapped]
    phi = means[places]
    if kind == "gradual":
        angle = np.linspace(0, 2.0, n)[:, None]
        even, odd = phi[:, ::2].copy(), phi[:, 1::2].copy()
        phi[:, ::2], phi[:, 1::2] = (
            np.cos(angle) * even - np.sin(angle) * odd,
            np.sin(angle) * even + np.cos(angle) * odd,
        )
    phi = phi + rng.normal(size=(n, dim))
    return np.hstack([phi, np.ones((n, 1))]), [f"c{code}" for code in codes]


def right_ahead(phi: Any, labels: list[str], gammas: tuple[float, ...]) -> tuple[float, Filters]:
    """Accuracy of test-then-train."""
    filters = Filters(phi.shape[1], gammas=gammas, weight_variance=0.02, noise=0.3)
    right = 0
    for start in range(0, len(phi), 50):
        part = labels[start : start + 50]
        said = filters.learn(phi[start : start + 50], part, np.ones(len(part))).means.argmax(axis=1)
        if start:
            right += sum(filters.names[code] == label for code, label in zip(said, part, strict=True))
    return right / (len(phi) - 50), filters


def ridge_ahead(phi: Any, labels: list[str]) -> float:
    names = sorted(set(labels))
    targets = np.array([[label == name for name in names] for label in labels], float)
    right = 0
    for start in range(50, len(phi), 50):
        ridge = Ridge(targets[:start].T @ phi[:start], phi[:start].T @ phi[:start], 1.0)
        said = ridge.of(phi[start : start + 50]).argmax(axis=1)
        right += sum(names[code] == label for code, label in zip(said, labels[start : start + 50], strict=True))
    return right / (len(phi) - 50)


@pytest.mark.parametrize(("kind", "gain"), [("stationary", -0.015), ("abrupt", 0.06), ("gradual", 0.02)])
def test_the_filter_follows_drift_that_ridge_does_not_and_loses_little_without(kind: str, gain: float) -> None:
    """The property of arXiv:2306.08448, at a quarter of the length that the benchmark has."""
    found = []
    for seed in range(3):
        phi, labels = drifting(kind, seed)
        found.append(right_ahead(phi, labels, (0.98, 0.995, 0.9995))[0] - ridge_ahead(phi, labels))
    assert np.mean(found) >= gain, found


def test_gamma_is_learned() -> None:
    gammas = (0.9, 0.99, 0.9999)
    still = right_ahead(*drifting("stationary", 3), gammas)[1]
    assert still.gamma > 0.999
    rng = np.random.default_rng(0)
    phi = rng.normal(size=(1500, 9))
    turn = np.arange(1500) / 40  # what divides the classes turns round
    turning = np.stack([np.cos(turn), np.sin(turn), *np.zeros((7, 1500))], axis=1)
    labels = ["a" if row @ way > 0 else "b" for row, way in zip(phi, turning, strict=True)]
    assert right_ahead(phi, labels, gammas)[1].gamma < 0.992
    copied = still.copy()
    copied.learn(phi[:10], labels[:10], np.ones(10))
    assert still.names == ["c" + name[1:] for name in still.names]
    assert set(copied.names) > set(still.names)
