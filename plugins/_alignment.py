"""Read-outs of a gradient head, corrected for classes that are new: they have too much to say.

A head that has just met a class has longer weights and higher scores for it. Each correction is a function of what is
stored, computed when the head is read; where no class is new, or all are, nothing is changed.

=============== ========================================================================================================
``norm``        weight alignment (Zhao et al. 2019, arXiv:1911.07053): new rows times ``mean‖w_old‖ / mean‖w_new‖``,
                if that is below 1
``bias``        BiC (Wu et al. 2019, arXiv:1905.13049): ``α o + β`` for new classes, fitted on rows that were held out
``gaussian``    SLCA (Zhang et al. 2023, arXiv:2303.05118): a few steps on rows drawn from each class's Gaussian
``translation`` FeTrIL (Petit et al. 2023, arXiv:2211.13131): a few steps on rows of new classes, and on the same rows
                moved to where an old class's mean is
``herding``     iCaRL (Rebuffi et al. 2016, arXiv:1611.07725): the nearest mean of herded rows; no weights at all
=============== ========================================================================================================
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import scipy

from streamfold.plugins._sums import Floats

Flags = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.int64]
_NEWTON = 25
_DRAWN, _STEPS, _RATE = 32, 20, 2.0
"""Rows per class of ``gaussian``; steps, and their length, of it and of ``translation``."""


def align_norms(weights: Floats, new: Flags) -> Floats:
    """Scale new rows ``(classes, width)`` to the mean length of old ones, if that makes them shorter.

    >>> align_norms(np.array([[1.0, 0.0], [0.0, 4.0]]), np.array([False, True])).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    if not new.any() or new.all():
        return weights
    lengths = np.linalg.norm(weights, axis=1)
    longest = lengths[new].mean()
    factor = lengths[~new].mean() / longest if longest > 0 else 1.0
    if factor >= 1:
        return weights
    aligned = weights.copy()
    aligned[new] *= factor
    return aligned


def fit_bias(scores: Floats, codes: Codes, new: Flags) -> tuple[float, float]:
    """Find α, β that minimise the log loss of ``α o + β`` for new classes, ``o`` for old ones; by damped Newton steps.

    ``scores (n, classes)`` of rows that were not learned by heart. Convex; a small pull to (1, 0) keeps it finite.
    """
    theta = np.array([1.0, 0.0])
    if not new.any() or new.all() or not len(scores):
        return 1.0, 0.0
    pull = 1e-2 / len(scores)

    def loss(theta: Floats) -> float:
        shifted = np.where(new, theta[0] * scores + theta[1], scores)
        told = scipy.special.log_softmax(shifted, axis=1)[np.arange(len(codes)), codes]
        return float(-told.mean() + pull / 2 * ((theta - [1, 0]) ** 2).sum())

    for _ in range(_NEWTON):
        chances = scipy.special.softmax(np.where(new, theta[0] * scores + theta[1], scores), axis=1)
        parts = np.stack([np.where(new, scores, 0.0), np.broadcast_to(new.astype(float), scores.shape)], axis=2)
        expected = np.einsum("nc,ncp->np", chances, parts)
        slope = (expected - parts[np.arange(len(codes)), codes]).mean(axis=0) + pull * (theta - [1, 0])
        second = np.einsum("nc,ncp,ncq->pq", chances, parts, parts) - expected.T @ expected
        step = np.linalg.solve(second / len(codes) + pull * np.eye(2), slope)
        size, now = 1.0, loss(theta)
        while loss(theta - size * step) > now and size > 1e-6:
            size /= 2
        theta = theta - size * step
        if float(np.abs(step).max()) < 1e-9:
            break
    return float(theta[0]), float(theta[1])


def draw_like(rows: Floats, n: int, rng: np.random.Generator) -> Floats:
    """Draw ``(n, width)`` from the Gaussian with the mean and the covariance of rows, without computing the latter."""
    mean = rows.mean(axis=0)
    if len(rows) < 2:
        return np.repeat(mean[None], n, axis=0)
    away = (rows - mean) / np.sqrt(len(rows) - 1)
    found: Floats = mean + rng.standard_normal((n, len(rows))) @ away
    return found


def translated(rows: Floats, mean: Floats) -> Floats:
    """Move rows ``(n, width)`` so that their mean is another one; how they vary around it stays.

    >>> translated(np.array([[0.0, 1.0], [2.0, 3.0]]), np.array([5.0, 5.0])).tolist()
    [[4.0, 4.0], [6.0, 6.0]]
    """
    found: Floats = rows - rows.mean(axis=0) + mean
    return found


def align_translated(weights: Floats, rows: Floats, codes: Codes, new: Flags, means: Floats) -> Floats:
    """Go on from the weights on rows of new classes and, as rows of each old class, those of the new one most like it.

    ``means (classes, width)``: of all rows that a class ever had; of an old class nothing else is needed. Most like it
    is the one whose mean has the largest cosine with its own (FeTrIL's first choice).
    """
    given = [int(one) for one in np.unique(codes) if new[one]]
    if not given or new.all():
        return weights
    length = np.maximum(np.linalg.norm(means, axis=1), 1e-12)
    alike = means @ means[given].T / np.outer(length, length[given])
    parts, labels = [], []
    for one in range(len(weights)):
        if not new[one]:
            parts.append(translated(rows[codes == given[int(alike[one].argmax())]], means[one]))
        elif one in given:
            parts.append(rows[codes == one])
        else:
            continue
        labels.append(np.full(len(parts[-1]), one))
    return _go_on(weights, np.vstack(parts), np.concatenate(labels))


def align_gaussian(weights: Floats, rows: Floats, codes: Codes, seed: int) -> Floats:
    """Go on from the weights on rows drawn from each class's Gaussian."""
    classes = np.unique(codes)
    if len(classes) < 2:
        return weights
    rng = np.random.default_rng(seed)
    x = np.vstack([draw_like(rows[codes == one], _DRAWN, rng) for one in classes])
    return _go_on(weights, x, np.repeat(classes, _DRAWN))


def _go_on(weights: Floats, x: Floats, y: Codes) -> Floats:
    """Take steps on rows, each class counting the same, with logits of length 1 (SLCA's ``LN``)."""
    classes, counts = np.unique(y, return_counts=True)
    share = (1.0 / counts)[np.searchsorted(classes, y)]
    w = weights.copy()
    others = np.setdiff1d(np.arange(len(w)), classes)
    for _ in range(_STEPS):
        logits = x @ w.T
        logits[:, others] = -np.inf  # a class of which nothing is known here is left as it is
        scale = np.linalg.norm(logits[:, classes], axis=1, keepdims=True) / np.sqrt(len(classes))
        away = scipy.special.softmax(logits / np.maximum(scale, 1e-3), axis=1)
        away[np.arange(len(y)), y] -= 1
        w -= _RATE * (share[:, None] * away).T @ x
    return w


def herded(rows: Floats, k: int) -> list[int]:
    """Choose rows one by one so that the mean of those chosen is as near to the mean of all as can be."""
    mean = rows.mean(axis=0)
    total = np.zeros_like(mean)
    chosen: list[int] = []
    for n in range(1, min(k, len(rows)) + 1):
        distances = ((mean - (total + rows) / n) ** 2).sum(axis=1)
        distances[chosen] = np.inf
        best = int(distances.argmin())
        chosen.append(best)
        total += rows[best]
    return chosen


def herded_means(rows: Floats, codes: Codes, classes: int, k: int) -> Floats:
    """Return ``(classes, width)``: means of unit length of each class's herded rows; zeros where it has none."""
    means = np.zeros((classes, rows.shape[1]))
    for one in np.unique(codes):
        mine = rows[codes == one]
        mean = mine[herded(mine, k)].mean(axis=0)
        means[one] = mean / max(float(np.linalg.norm(mean)), 1e-12)
    return means
