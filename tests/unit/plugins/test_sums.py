"""Sums and read-outs are, to rounding, scikit-learn's classifiers, in any order, in parts, and backwards."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge as SkRidge
from sklearn.neighbors import NearestCentroid

from streamfold.plugins._readouts import Means, Ridge, fit_sharpness, shrunk_covariance, solve
from streamfold.plugins._sums import Sums, relu_expansion

DIM = 7


def drawn(seed: int, n: int, classes: int, dim: int = DIM) -> tuple[Any, list[str], Any]:
    """Rows of some clusters; every class has two at least."""
    rng = np.random.default_rng(seed)
    codes = np.r_[np.tile(np.arange(classes), 2), rng.integers(0, classes, n - 2 * classes)]
    phi = rng.normal(size=(n, dim)) + 2 * rng.normal(size=(classes, dim))[codes]
    return phi, [f"c{code}" for code in codes], rng.uniform(0.25, 4.0, n)


def folded(phi: Any, labels: list[str], weights: Any, cuts: list[int], order: Any) -> Sums:
    sums = Sums(phi.shape[1])
    for part in np.split(order, sorted(cut % len(phi) for cut in cuts)):
        sums.add(phi[part], [labels[i] for i in part], weights[part])
    return sums


def state(sums: Sums) -> list[Any]:
    return [*sums.per_class(), sums.gram]


def close(one: Sums, other: Sums, tolerance: float) -> None:
    assert one.names == other.names
    for mine, theirs in zip(state(one), state(other), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=tolerance * max(1.0, np.abs(theirs).max(initial=0.0)))


CASES = {
    "seed": st.integers(0, 10**6),
    "n": st.integers(12, 60),
    "classes": st.integers(2, 6),
    "cuts": st.lists(st.integers(0, 10**6), max_size=5),
}


@settings(deadline=None, max_examples=40)
@given(**CASES)
def test_ridge_is_scikit_learns_in_any_order_and_batching(seed: int, n: int, classes: int, cuts: list[int]) -> None:
    """Weight invariance (ACIL, arXiv:2205.14922; where classes come back in any part, G-ACIL, arXiv:2403.15706)."""
    phi, labels, weights = drawn(seed, n, classes)
    sums = folded(phi, labels, weights, cuts, np.random.default_rng(seed).permutation(n))
    ours = Ridge(sums.per_class()[1], sums.gram, 0.7)
    targets = np.array([[label == name for name in sums.names] for label in labels], float)
    theirs = SkRidge(alpha=0.7, fit_intercept=False).fit(phi, targets, sample_weight=weights)
    expected = np.atleast_2d(theirs.coef_).T
    np.testing.assert_allclose(ours.weights, expected, rtol=0, atol=1e-8 * np.abs(expected).max())


@settings(deadline=None, max_examples=40)
@given(**CASES)
def test_lda_is_scikit_learns_in_any_order_and_batching(seed: int, n: int, classes: int, cuts: list[int]) -> None:
    phi, labels, _ = drawn(seed, n, classes)
    sums = folded(phi, labels, np.ones(n), cuts, np.random.default_rng(seed).permutation(n))
    per_class, s, _ = sums.per_class()
    ours = Means(per_class, s / per_class[:, None], shrunk_covariance(sums, 0.3)).of(phi)
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3, priors=per_class / n).fit(phi, labels)
    assert theirs.classes_.tolist() == sums.names
    expected = theirs.decision_function(phi)
    if classes == 2:  # then it is the difference of both
        ours = ours[:, 1] - ours[:, 0]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-8 * np.abs(expected).max())


@settings(deadline=None, max_examples=40)
@given(**CASES)
def test_the_prototype_is_scikit_learns_nearest_centroid(seed: int, n: int, classes: int, cuts: list[int]) -> None:
    phi, labels, _ = drawn(seed, n, classes)
    sums = folded(phi, labels, np.ones(n), cuts, np.random.default_rng(seed).permutation(n))
    per_class, s, _ = sums.per_class()
    theirs = NearestCentroid().fit(phi, labels)
    np.testing.assert_allclose(s / per_class[:, None], theirs.centroids_, rtol=1e-8, atol=1e-8)
    ours = Means(per_class, s / per_class[:, None]).of(phi).argmax(axis=1)
    assert [sums.names[i] for i in ours] == theirs.predict(phi).tolist()


@settings(deadline=None, max_examples=40)
@given(**CASES, parts=st.integers(1, 5))
def test_parts_merge_into_one_fold_and_rows_are_taken_back(
    seed: int, n: int, classes: int, cuts: list[int], parts: int
) -> None:
    """Clients that learn by themselves merge into one (federated reconnaissance, arXiv:2109.00150)."""
    phi, labels, weights = drawn(seed, n, classes)
    whole = folded(phi, labels, weights, cuts, np.arange(n))
    merged = Sums(DIM)
    for part in np.array_split(np.random.default_rng(seed).permutation(n), parts):
        one = Sums(DIM)
        one.add(phi[part], [labels[i] for i in part], weights[part])
        merged.merge(one)
    close(merged, whole, 1e-10)
    gone = np.random.default_rng(seed).permutation(n)[: n // 2]
    stays = np.setdiff1d(np.arange(n), gone)
    whole.subtract(phi[gone], [labels[i] for i in gone], weights[gone])
    close(whole, folded(phi, labels, weights, [], stays), 1e-10)
    whole.subtract(phi[stays], [labels[i] for i in stays], weights[stays])
    assert whole.names == []
    assert whole.count == 0
    assert not whole.gram.any()
    assert not any(part.any() for part in (whole._n, whole._s, whole._q))  # nothing, not even rounding


@settings(deadline=None, max_examples=40)
@given(**CASES)
def test_topped_up_classes_weigh_the_same_by_rows_like_their_own_and_the_sums_stay(
    seed: int, n: int, classes: int, cuts: list[int]
) -> None:
    """AEF-OCL, arXiv:2405.17779: beside rows that have exactly the mean and the variances that are drawn from there."""
    phi, labels, weights = drawn(seed, n, classes)
    sums = folded(phi, labels, weights, cuts, np.arange(n))
    before = [part.copy() for part in state(sums)]
    found = sums.topped_up()
    assert all((one == other).all() for one, other in zip(before, state(sums), strict=True))
    expected = folded(phi, labels, weights, cuts, np.arange(n))
    per_class, s, q = sums.per_class()
    own = q / per_class[:, None] - (s / per_class[:, None]) ** 2
    shared = (per_class @ own) / per_class.sum()
    for code, name in enumerate(sums.names):
        missing = per_class.max() - per_class[code]
        variance = (per_class[code] * own[code] + shared) / (per_class[code] + 1)
        away = np.diag(np.sqrt(DIM * variance))
        if missing:  # each axis to both sides
            made = s[code] / per_class[code] + np.vstack([away, -away])
            expected.add(made, [name] * len(made), np.full(len(made), missing / len(made)))
    close(found, expected, 1e-10)
    np.testing.assert_allclose(found.per_class()[0], per_class.max())
    again = Sums(DIM)
    again.add(phi, [f"c{i % 2}" for i in range(n)], np.ones(n))
    if n % 2 == 0:  # balanced: the same to the bit
        assert all((one == other).all() for one, other in zip(state(again), state(again.topped_up()), strict=True))


@pytest.mark.parametrize("read_out", ["ridge", "lda"])
def test_topped_up_minorities_are_found(read_out: str) -> None:
    """Digits, 120 rows of five classes and 6 of the others: balanced accuracy."""
    data, target = load_digits(return_X_y=True)
    weights, bias = relu_expansion(64, 512, 0)
    phi = np.hstack([np.maximum(data / 16 @ weights + bias, 0), np.ones((len(data), 1))])
    shuffled = np.random.default_rng(0).permutation(len(data))
    test, rest = shuffled[:540], shuffled[540:]
    train = np.concatenate([rest[target[rest] == code][: 120 if code < 5 else 6] for code in range(10)])
    sums = Sums(513)
    labels = [str(code) for code in target[train]]
    sums.add(phi[train], labels, np.ones(len(train)))
    right = []
    for top_up in (False, True):
        head = solve(
            sums, read_out, gamma=0.1, shrinkage=0.1, rows=phi[train], labels=labels, weights=np.ones(len(train)),
            top_up=top_up,
        )  # fmt: skip
        said = head.probabilities(phi[test]).argmax(axis=1)
        right.append(float(np.mean([(said[target[test] == code] == code).mean() for code in range(10)])))
        assert head.n.tolist() == [120.0] * 5 + [6.0] * 5  # what is told is what there is
    assert right[1] > right[0] + (0.05 if read_out == "ridge" else 0.01), right


def test_a_user_of_the_digits_who_is_erased_might_never_have_come() -> None:
    """Analytic unlearning (ACU, arXiv:2505.12239) equals retraining."""
    data, target = load_digits(return_X_y=True)
    weights, bias = relu_expansion(64, 512, 0)
    phi = np.hstack([np.maximum(data / 16 @ weights + bias, 0), np.ones((len(data), 1))])
    assert phi.shape == (1797, 513)
    labels = [str(one) for one in target]
    user = np.random.default_rng(1).permutation(1797)[:97]
    others = np.setdiff1d(np.arange(1797), user)
    sums = Sums(513)
    sums.add(phi, labels, np.ones(1797))
    sums.subtract(phi[user], [labels[i] for i in user], np.ones(97))
    never = Sums(513)
    never.add(phi[others], [labels[i] for i in others], np.ones(1700))
    close(sums, never, 1e-10)
    one, other = (Ridge(each.per_class()[1], each.gram, 1.0).weights for each in (sums, never))
    assert np.abs(one - other).max() <= 1e-10 * np.abs(other).max()


HOUR_US = 3_600_000_000


@pytest.mark.parametrize("read_out", ["prototype", "ridge", "lda"])
def test_a_row_left_out_is_scored_as_if_it_had_not_come(read_out: str) -> None:
    phi, labels, weights = drawn(3, 40, 3)
    sums = folded(phi, labels, weights, [], np.arange(40))
    codes = np.array([sums.names.index(label) for label in labels])
    n, s, _ = sums.per_class()
    covariance = shrunk_covariance(sums, 0.2) if read_out == "lda" else None
    scorer: Any = Ridge(s, sums.gram, 0.5) if read_out == "ridge" else Means(n, s / n[:, None], covariance)
    left_out = scorer.left_out(phi, codes, weights)
    if read_out != "ridge":
        left_out, distances = left_out
    for i in range(5):
        rest = folded(phi, labels, weights, [], np.delete(np.arange(40), i))
        n_i, s_i, _ = rest.per_class()
        if read_out == "ridge":
            expected = Ridge(s_i, rest.gram, 0.5).of(phi[i : i + 1])[0]
            np.testing.assert_allclose(left_out[i], expected, atol=1e-9)
        else:  # covariance and priors stay those of all
            fresh = Means(n_i, s_i / n_i[:, None], covariance).of(phi[i : i + 1])[0]
            priors = 0 if covariance is None else np.log(n_i / n_i.sum()) - np.log(n / n.sum())
            np.testing.assert_allclose(left_out[i], fresh - priors, atol=1e-9)
            away = phi[i] - (s_i / n_i[:, None])[codes[i]]
            precise = away if covariance is None else np.linalg.solve(covariance, away)
            assert distances[i] == pytest.approx(math.sqrt(away @ precise))


def test_a_row_is_left_out_of_targets_of_its_own_and_of_what_it_was_topped_up_by() -> None:
    phi, labels, weights = drawn(5, 40, 3)
    sums = folded(phi, labels, weights, [], np.arange(40))
    codes = np.array([sums.names.index(label) for label in labels])
    targets = np.array([[1, 0.6, 0], [0.6, 1, -0.2], [0, -0.2, 1]])
    n, s, _ = sums.per_class()
    left_out = Ridge(s, sums.gram, 0.5, targets).left_out(phi, codes, weights)
    for i in range(5):
        rest = folded(phi, labels, weights, [], np.delete(np.arange(40), i))
        expected = Ridge(rest.per_class()[1], rest.gram, 0.5, targets).of(phi[i : i + 1])[0]
        np.testing.assert_allclose(left_out[i], expected, atol=1e-9)
    grown, more, _ = sums.topped_up().per_class()
    plain = Means(n, s / n[:, None]).left_out(phi, codes, weights)
    topped = Means(grown, more / grown[:, None]).left_out(phi, codes, weights * (grown / n)[codes])
    for one, other in zip(plain, topped, strict=True):  # as means they are the same: nothing of the row stays
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-9 * np.abs(one).max())


def test_probabilities_are_as_sure_as_they_are_right() -> None:
    """Of 4,000 overlapping rows, the mean probability of the likeliest class is the share that is right."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 3, 6000)
    phi = rng.normal(size=(6000, 8)) + 1.1 * np.eye(3, 8)[codes]
    labels = [f"c{code}" for code in codes]
    for read_out in ("prototype", "ridge", "lda"):
        sums = folded(phi[:2000], labels[:2000], np.ones(2000), [], np.arange(2000))
        given_ = {"rows": phi[:500], "labels": labels[:500], "weights": np.ones(500)}
        head = solve(sums, read_out, gamma=1.0, shrinkage=0.1, **given_)  # type: ignore[arg-type]
        chances = head.probabilities(phi[2000:])
        np.testing.assert_allclose(chances.sum(axis=1), 1.0)
        right = (chances.argmax(axis=1) == codes[2000:]).mean()
        assert abs(chances.max(axis=1).mean() - right) < 0.04, read_out
        near, far = head.unknown(phi[2000:])[0], head.unknown(phi[2000:] + 20)[0]
        assert abs(near.mean() - 0.5) < 0.1
        assert far.min() > 0.99


def test_the_sharpness_is_the_minimum_of_the_log_loss_and_finite_where_all_is_right() -> None:
    scores = np.array([[1.0, 0.0], [0.8, 0.2], [0.1, 0.9]])
    beta = fit_sharpness(scores, np.array([0, 0, 1]), np.ones(3))
    assert 1.0 < beta < 100.0
    assert math.isfinite(beta)


def test_a_million_rows_stay_finite_and_positive_definite() -> None:
    rng = np.random.default_rng(0)
    sums = Sums(16)
    for _ in range(100):
        phi = rng.normal(size=(10_000, 16)) * 1e3
        sums.add(phi, ["a", "b"] * 5000, np.ones(10_000))
    assert sums.count == 1_000_000
    assert np.linalg.eigvalsh(sums.gram).min() > 0
    assert np.isfinite(Ridge(sums.per_class()[1], sums.gram, 1.0).weights).all()
