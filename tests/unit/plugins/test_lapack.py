"""What is worked out without the interpreter's lock is to the bit what scipy works out, and other threads go on."""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np
import pytest
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.linalg.blas import dsyrk

from streamfold.plugins._lapack import add_gram, cholesky_factor, cholesky_solve


def positive(dim: int) -> Any:
    """Positive definite, and symmetric but for rounding."""
    rng = np.random.default_rng(dim)
    rows = rng.normal(size=(2 * dim, dim))
    return rows.T @ rows + np.eye(dim) + 1e-13 * rng.normal(size=(dim, dim))


@pytest.mark.parametrize("dim", [1, 2, 17, 65, 200, 513])
def test_factors_and_solutions_are_scipys_to_the_bit(dim: int) -> None:
    rng, a = np.random.default_rng(1), positive(dim)
    before = a.copy()
    ours, theirs = cholesky_factor(a), cho_factor(a, lower=True)
    assert np.array_equal(np.tril(ours), np.tril(theirs[0]))
    for columns in (0, 1, 2, 10, 129):
        for b in (rng.normal(size=(dim, columns)), rng.normal(size=(columns, dim)).T):
            given = b.copy()
            assert np.array_equal(cholesky_solve(ours, b), cho_solve(theirs, b))
            assert np.array_equal(b, given)
    assert np.array_equal(a, before)


@pytest.mark.parametrize("dim", [1, 2, 17, 65, 200])
@pytest.mark.parametrize("times", [1.0, -1.0])
def test_products_are_added_as_scipy_adds_them(dim: int, times: float) -> None:
    rng = np.random.default_rng(2)
    for count in (1, 3, 40):
        ours, rows = positive(dim), rng.normal(size=(count, dim))
        theirs = dsyrk(times, rows.T, beta=1.0, c=ours.T.copy("F"), lower=1).T
        add_gram(ours, rows, times)
        assert np.array_equal(ours, theirs)


def test_what_is_not_positive_definite_or_does_not_fit_is_refused() -> None:
    with pytest.raises(LinAlgError, match="order 2"):
        cholesky_factor(np.diag([1.0, -1.0]))
    with pytest.raises(ValueError, match="solves nothing"):
        cholesky_solve(np.eye(3), np.ones((2, 1)))
    wrong: list[Any] = [np.eye(2), np.eye(6)[::2, ::2], np.eye(3, dtype=np.float32)]
    for gram in wrong:
        with pytest.raises(ValueError, match="takes no products"):
            add_gram(gram, np.ones((4, 3)), 1.0)


def test_other_threads_go_on_while_products_are_added() -> None:
    """With no turns to take for an hour, another thread gets the interpreter only where its lock is let go of."""
    gram, rows = np.zeros((300, 300)), np.ones((300, 300))
    ready, seen = threading.Event(), []
    thread = threading.Thread(target=lambda: seen.append(ready.wait()))
    thread.start()
    switch = sys.getswitchinterval()
    sys.setswitchinterval(3600)
    try:
        ready.set()
        for _ in range(1000):
            add_gram(gram, rows, 1.0)
            if seen:
                break
        assert seen
    finally:
        sys.setswitchinterval(switch)
        thread.join()
