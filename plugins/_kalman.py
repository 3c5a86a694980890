r"""A Kalman filter over the weights of a linear classifier, whole blocks of labels at a time.

Weights drift and labels tell where they are (Titsias et al., Kalman filter for online classification of non-stationary
data, 2023, arXiv:2306.08448). Before each label :math:`m^- = γm,\; A^- = γ^2A + (1-γ^2)σ_w^2I`, then with the one-hot
target y and :math:`K = A^-φ/(σ^2 + φ^\top A^-φ)`, :math:`m = m^- + K(y - φ^\top m^-)`, :math:`A = A^- - Kφ^\top A^-`;
A is shared by the classes. Where no label comes, A goes back to :math:`σ_w^2I` and no further: recursive least squares
with forgetting winds up there, this does not.

A block of B labels is one Gaussian condition. The weights after i and j of them have the covariance
:math:`γ^{i+j}A + σ_w^2(γ^{|i-j|} - γ^{i+j})I`, so the labels have a covariance of B × B, whose Cholesky factor holds
what each label was predicted to be from those before it. It equals one label after the other up to rounding, in
products of matrices.

γ is learned: a filter for each of a few γ, weighed by the likelihood of what it predicted, of late (the discounted
evidence of dynamic model averaging, Raftery et al. 2010, doi:10.1198/TECH.2009.08104). The paper follows a gradient of
γ instead; a grid is a function of the labels alone, whatever blocks they come in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import scipy

from streamfold.plugins._sums import Floats

Codes = npt.NDArray[np.int64]
_KEPT = 0.999
_LEAST_WEIGHT = 1e-9
"""A label that weighs less says as little: noise / weight has to stay a number."""
"""How much of the evidence for a γ remains after a label."""


class Ahead(NamedTuple):
    """What labels were predicted to be, each from those before it.

    ``means (n, C)``; ``variances (n,)`` of them; ``likelihoods (n,)``: logarithms, over the classes seen so far.
    """

    means: Floats
    variances: Floats
    likelihoods: Floats


class Filter:
    """One filter: weights ``mean (d, C)`` and their covariance ``cov (d, d)``."""

    def __init__(self, dim: int, *, gamma: float, weight_variance: float, noise: float) -> None:
        self._gamma, self._prior, self._noise = gamma, weight_variance, noise
        self.mean: Floats = np.zeros((dim, 0))
        self.cov: Floats = weight_variance * np.eye(dim)

    def copy(self) -> Filter:
        """Copy; the arrays are replaced by :meth:`learn`, never changed, so they are shared."""
        found = object.__new__(Filter)
        found.__dict__ |= self.__dict__
        return found

    def learn(self, phi: Floats, codes: Codes, weights: Floats, seen: Codes) -> Ahead:
        """Learn labels in their order; a label of weight w is as precise as w of them.

        Parameters
        ----------
        phi : ``(n, d)``. codes : of their classes. seen : how many classes there were, with each label's own.
        """
        n, classes = len(phi), int(seen[-1])
        if classes > self.mean.shape[1]:
            self.mean = np.hstack([self.mean, np.zeros((len(self.mean), classes - self.mean.shape[1]))])
        noise, prior = self._noise / np.maximum(weights, _LEAST_WEIGHT), self._prior
        steps = np.arange(1, n + 1)
        down = self._gamma**steps
        both = np.outer(down, down)
        since = self._gamma ** np.abs(steps[:, None] - steps)
        across = phi @ self.cov
        labels = both * (across @ phi.T) + prior * (since - both) * (phi @ phi.T)
        labels.flat[:: n + 1] += noise
        factor = scipy.linalg.cholesky(labels, lower=True, overwrite_a=True, check_finite=False)
        targets = np.zeros((n, classes))
        targets[np.arange(n), codes] = 1.0
        error = scipy.linalg.solve_triangular(
            factor, targets - down[:, None] * (phi @ self.mean), lower=True, check_finite=False, overwrite_b=True
        )
        last = down[-1]
        reach = (last * down)[:, None] * across + (prior * (since[-1] - last * down))[:, None] * phi
        gain = scipy.linalg.solve_triangular(factor, reach, lower=True, check_finite=False, overwrite_b=True)
        self.mean = last * self.mean + gain.T @ error
        cov = last * last * self.cov - gain.T @ gain
        cov.flat[:: len(cov) + 1] += (1 - last * last) * prior
        self.cov = cov
        spread = np.diag(factor)
        likelihoods = -0.5 * np.einsum("nc,nc->n", error, error) - seen * np.log(spread)
        return Ahead(targets - spread[:, None] * error, np.maximum(spread**2 - noise, 0.0), likelihoods)


class Filters:
    """Filters of several γ, weighed by how well they predicted.

    Parameters
    ----------
    dim : of φ. gammas : each in 0…1, 1 left out. weight_variance : σ_w². noise : σ².

    Examples
    --------
    >>> filters = Filters(2, gammas=(0.9, 0.99), weight_variance=1.0, noise=0.1)
    >>> ahead = filters.learn(np.eye(2)[[0, 1, 0]], ["a", "b", "a"], np.ones(3))
    >>> filters.names, (filters.mean.argmax(axis=1)).tolist()
    (['a', 'b'], [0, 1])
    """

    def __init__(self, dim: int, *, gammas: Sequence[float], weight_variance: float, noise: float) -> None:
        self._gammas = np.array(gammas)
        self._filters = [Filter(dim, gamma=g, weight_variance=weight_variance, noise=noise) for g in gammas]
        self._evidence = np.zeros(len(gammas))
        self._codes: dict[str, int] = {}

    def copy(self) -> Filters:
        """Copy, so that a later state can be gone back from. O(γ)."""
        found = object.__new__(Filters)
        found.__dict__ |= self.__dict__
        found._filters = [one.copy() for one in self._filters]
        found._codes = dict(self._codes)
        return found

    @property
    def names(self) -> list[str]:
        """Classes, in order of their first label."""
        return list(self._codes)

    def learn(self, phi: Floats, labels: Sequence[str], weights: Floats) -> Ahead:
        """Learn labels in their order; return what was predicted. Cubic in their number: some hundred at a time."""
        codes = np.array([self._codes.setdefault(label, len(self._codes)) for label in labels])
        before = self._filters[0].mean.shape[1]
        seen = np.maximum(np.maximum.accumulate(codes) + 1, before)
        found = [one.learn(phi, codes, weights, seen) for one in self._filters]
        shares = self._shares(np.stack([one.likelihoods for one in found], axis=1))
        return Ahead(
            np.einsum("ng,gnc->nc", shares, np.stack([one.means for one in found])),
            np.einsum("ng,gn->n", shares, np.stack([one.variances for one in found])),
            np.einsum("ng,gn->n", shares, np.stack([one.likelihoods for one in found])),
        )

    def _shares(self, likelihoods: Floats) -> Floats:
        """Weights of the filters before each label."""
        before = np.empty_like(likelihoods)
        for row, one in zip(before, likelihoods, strict=True):
            row[:] = self._evidence
            self._evidence = _KEPT * self._evidence + one
        found: Floats = scipy.special.softmax(before, axis=1)
        return found

    @property
    def shares(self) -> Floats:
        """Weights of the filters now."""
        found: Floats = scipy.special.softmax(self._evidence)
        return found

    @property
    def gamma(self) -> float:
        """The mean γ."""
        return float(self.shares @ self._gammas)

    @property
    def mean(self) -> Floats:
        """Weights ``(d, C)`` now."""
        found: Floats = np.einsum("g,gdc->dc", self.shares, np.stack([one.mean for one in self._filters]))
        return found

    @property
    def cov(self) -> Floats:
        """Covariance ``(d, d)`` of the weights now."""
        found: Floats = np.einsum("g,gde->de", self.shares, np.stack([one.cov for one in self._filters]))
        return found
