"""Classifiers read out of sums: class means, ridge regression, linear discriminants; with calibrated probabilities.

======== ===============================================================================================================
prototype the nearest class mean, ``−‖φ − m_c‖²`` (SimpleCIL, and ADAM over it: Zhou et al. 2023, arXiv:2303.07338)
ridge     ``φᵀ(G + γI)⁻¹S_c`` (ACIL: Zhuang et al. 2022, arXiv:2205.14922; G-ACIL: 2403.15706); targets as in
          ``_named_targets.py``
lda       linear discriminants of a pooled covariance ``Σ = (G − Σ n_c m_c m_cᵀ)/n``, shrunk to
          ``(1 − s)Σ + s tr(Σ)/d I``, with priors n_c/n (FSA: Panos et al. 2023, arXiv:2303.13199)
======== ===============================================================================================================

Topped up, classes with few labels weigh as much as those with many (:meth:`Sums.topped_up`).

Each scores a labelled row as if it had been left out, without another solve: class means and discriminants take the row
out of its own class's mean (of the covariance it stays part), ridge uses ``(ŷ − h y)/(1 − h)`` with the leverage
``h = w φᵀ(G + γI)⁻¹φ``. On such scores the temperature of the softmax is fitted, and so is how far from its class's
mean a row usually lies, by which a target is said to be unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from streamfold.plugins._lapack import cholesky_factor, cholesky_solve
from streamfold.plugins._sums import Floats, Sums

Codes = npt.NDArray[np.int64]
_LEAST, _MOST = -12.0, 12.0
"""Range of the logarithm of the inverse temperature."""
_STEPS = 24
_BELIEF = 4.0
"""So many rows that nobody has seen are taken for right: see ``fit_sharpness``."""


class Scores(Protocol):
    """Scores of rows, ``(n, C)``."""

    def of(self, phi: Floats) -> Floats: ...


class Distances(Protocol):
    """Distances of rows from what is known, ``(n,)``, and the class that each is nearest to."""

    def distances(self, phi: Floats) -> tuple[Floats, Codes]: ...


class Means:
    """Discriminants ``φᵀPm_c − ½ m_cᵀPm_c + log π_c`` with a precision P; the identity: the nearest mean."""

    def __init__(self, n: Floats, means: Floats, covariance: Floats | None = None) -> None:
        self._n, self._means = n, means
        self._factor = None if covariance is None else cholesky_factor(covariance)
        self._coef = self._precise(means)
        self._norms = np.einsum("cd,cd->c", means, self._coef)
        self._priors = np.zeros(len(n)) if covariance is None else np.log(n / n.sum())

    def _precise(self, rows: Floats) -> Floats:
        if self._factor is None:
            return rows
        solved: Floats = cholesky_solve(self._factor, rows.T).T
        return solved

    def of(self, phi: Floats) -> Floats:
        scores: Floats = phi @ self._coef.T - 0.5 * self._norms + self._priors
        return scores

    def left_out(self, phi: Floats, codes: Codes, weights: Floats) -> tuple[Floats, Floats]:
        """Scores of rows, and their distances to the mean of the others of their class, each without itself."""
        n, w = self._n[codes], weights
        a, b = self._squares(phi), np.einsum("nd,nd->n", phi, self._coef[codes])
        left = n - w
        own = (n * b - w * a) / left
        norms = (n * n * self._norms[codes] - 2 * n * w * b + w * w * a) / left**2
        scores = self.of(phi)
        scores[np.arange(len(phi)), codes] = own - 0.5 * norms + self._priors[codes]
        return scores, np.sqrt(np.maximum(a - 2 * own + norms, 0.0))

    def distances(self, phi: Floats) -> tuple[Floats, Codes]:
        """Distance to the nearest mean, and which one it is."""
        squares = self._squares(phi)[:, None] - 2 * (phi @ self._coef.T) + self._norms
        nearest = squares.argmin(axis=1)
        return np.sqrt(np.maximum(squares[np.arange(len(phi)), nearest], 0.0)), nearest

    def _squares(self, phi: Floats) -> Floats:
        found: Floats = np.einsum("nd,nd->n", phi, self._precise(phi))
        return found


class Ridge:
    """Ridge regression on one-hot targets, or on the rows of ``targets (C, C)``: ``XᵀY`` is then Sᵀ times these."""

    def __init__(self, s: Floats, gram: Floats, gamma: float, targets: Floats | None = None) -> None:
        a = gram.copy()
        a.flat[:: len(a) + 1] += gamma
        self._targets = targets
        self._factor = cholesky_factor(a)
        self.weights: Floats = cholesky_solve(self._factor, s.T if targets is None else s.T @ targets)
        """``(d, C)``."""

    def of(self, phi: Floats) -> Floats:
        scores: Floats = phi @ self.weights
        return scores

    def left_out(self, phi: Floats, codes: Codes, weights: Floats) -> Floats:
        """Scores of rows, each as if it had not been added."""
        leverage = weights * np.einsum("nd,nd->n", phi, cholesky_solve(self._factor, phi.T).T)
        targets = (np.eye(self.weights.shape[1]) if self._targets is None else self._targets)[codes]
        left: Floats = (self.of(phi) - leverage[:, None] * targets) / np.maximum(1 - leverage, 1e-12)[:, None]
        return left


def shrunk_covariance(sums: Sums, shrinkage: float) -> Floats:
    """Pooled covariance within classes, shrunk towards a multiple of the identity that has its trace."""
    n, s, _ = sums.per_class()
    within = (sums.gram - (s / n[:, None]).T @ s) / n.sum()
    scale = float(np.trace(within)) / len(within)
    if not scale > 1e-12:  # every class is one point: nothing is known of how rows vary
        return np.eye(len(within))
    found: Floats = (1 - shrinkage) * within
    found.flat[:: len(found) + 1] += shrinkage * scale
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A solved head: ``names`` of the classes, what scores them, and the means by which distance is told."""

    names: list[str]
    n: Floats
    scores: Scores
    means: Distances
    usual: Floats
    """Sorted distances of labelled rows from their class."""
    sharpness: float
    """Inverse temperature."""
    notes: Mapping[str, float] = field(default_factory=dict)
    """What more an explanation says."""

    def probabilities(self, phi: Floats) -> Floats:
        """``(n, C)``; rows sum up to 1."""
        logits = self.sharpness * self.scores.of(phi)
        found: Floats = np.exp(logits - logits.max(axis=1, keepdims=True))
        found /= found.sum(axis=1, keepdims=True)
        return found

    def unknown(self, phi: Floats) -> tuple[Floats, Floats, Codes]:
        """How unlike the labelled rows others are, in 0…1; their distance from the nearest class, and which it is.

        The share of labelled rows that lie nearer to their class's mean (a conformal p-value, turned around).
        """
        distances, nearest = self.means.distances(phi)
        if len(self.usual):
            return np.searchsorted(self.usual, distances, side="left") / (len(self.usual) + 1), distances, nearest
        length = np.sqrt(np.einsum("nd,nd->n", phi, phi))
        return distances / (distances + length + 1e-300), distances, nearest


def solve(
    sums: Sums, read_out: str, *, gamma: float, shrinkage: float, rows: Floats, labels: list[str], weights: Floats,
    top_up: bool = False, targets: Floats | None = None,
) -> Head:  # fmt: skip
    """Read a classifier out of sums, and calibrate it by some of the rows that were added.

    Parameters
    ----------
    rows : ``(m, d)``, with ``labels`` and ``weights``: those that calibrate.
    top_up : whether to read it out of a copy in which all classes weigh the same.
    targets : of ridge, in order of the names of classes.
    """
    n, names = sums.per_class()[0], sums.names
    if top_up:
        sums = sums.topped_up()
    grown, s, _ = sums.per_class()
    means = Means(grown, s / grown[:, None], shrunk_covariance(sums, shrinkage) if read_out == "lda" else None)
    scores: Scores = Ridge(s, sums.gram, gamma, targets) if read_out == "ridge" else means
    place = {name: i for i, name in enumerate(names)}
    codes = np.array([place[label] for label in labels], np.int64)
    others = n[codes] - weights > 1e-9 * weights  # the only row of a class cannot be left out
    rows, codes, weights = rows[others], codes[others], weights[others]
    sharpness, usual = 1.0, np.zeros(0)
    if len(rows):
        left_out, distances = means.left_out(rows, codes, weights * (grown / n)[codes])  # with what it was topped up by
        usual = np.sort(distances)
        if isinstance(scores, Ridge):
            left_out = scores.left_out(rows, codes, weights)
        if len(names) > 1:
            sharpness = fit_sharpness(left_out, codes, weights)
    return Head(names=names, n=n, scores=scores, means=means, usual=usual, sharpness=sharpness)


def fit_sharpness(scores: Floats, codes: Codes, weights: Floats) -> float:
    """Find the β that minimises the log loss of ``softmax(β scores)`` (temperature scaling, arXiv:1706.04599).

    The targets are smoothed by one row's worth: where all rows are right, β stays finite. And they are mixed with what
    the head thinks likeliest, as if it had been right of ``_BELIEF`` rows more: of a class with two rows, one that is
    left out leaves only the other, and where a handful of rows are all wrong in that way β would be 0, every class as
    likely as the next, even for a text that has just been labelled. Among many rows it changes nothing. The loss is
    convex in β; its slope, how much the expected score is above the target's, is zero at the minimum.
    """
    m, classes = scores.shape
    smooth = 1.0 / (m + classes)
    below = scores - scores.max(axis=1, keepdims=True)  # of the likeliest class it is 0
    own = m / (m + _BELIEF) * ((1 - smooth) * below[np.arange(m), codes] + smooth * below.mean(axis=1))
    low, high = _LEAST, _MOST
    for _ in range(_STEPS):
        middle = (low + high) / 2
        chances = np.exp(np.exp(middle) * below)
        expected = np.einsum("mc,mc->m", chances, below) / chances.sum(axis=1)
        if weights @ (expected - own) < 0:
            low = middle
        else:
            high = middle
    return float(np.exp((low + high) / 2))
