"""What another policy would have earned, from what was shown with logged probabilities (off-policy evaluation).

With reward ``r``, the logged probability ``p`` of what was shown, and the probability ``π`` with which the policy in
question would have shown it: ``w = π / p``,

- IPS  ``mean(w r)``, unbiased where ``p`` is right and positive wherever ``π`` is;
- SNIPS  ``Σ w r / Σ w``, a little biased, of less variance;
- doubly robust  ``mean(q_π + w (r - q))``, where ``q`` predicts the reward of what was shown and ``q_π`` that of what
  the policy would show: right if the probabilities are, or the predictions.

Refused where it would be a guess: below 100 effective samples ``(Σ w)² / Σ w²``, and without support: the weights
average 1 if the logging could have shown all that the policy shows.

References: Dudík et al., Doubly robust policy evaluation and optimization, 2014, doi:10.1214/14-STS500; Swaminathan and
Joachims, The self-normalized estimator for counterfactual learning, NeurIPS 2015.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from streamfold.pipelines.evaluate.intervals import Interval
from streamfold.pipelines.evaluate.metrics import Codes, Floats

LEAST_SAMPLES = 100.0
_Z95 = 1.959964
_SUPPORT_Z = 4.0
"""Standard errors by which the mean weight may be off 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimates:
    """The estimates, or why there are none (``refused``)."""

    samples: int
    effective_samples: float
    largest_weight: float
    mean_weight: float
    ips: Interval | None = None
    snips: Interval | None = None
    dr: Interval | None = None
    refused: str = ""


def estimate(
    rewards: Floats,
    propensities: Floats,
    chosen: Floats,
    *,
    predicted: Floats | None = None,
    expected: Floats | None = None,
    clusters: Codes | None = None,
) -> Estimates:
    """Estimate a policy's mean reward with 95 % intervals.

    Parameters
    ----------
    rewards, propensities : ``(n,)``, of what was shown; the logged probability of showing it.
    chosen : ``(n,)``, the probability with which the policy would have shown it.
    predicted, expected : ``(n,)``, predicted reward of what was shown, and of what the policy would show.
    clusters : ``(n,)``, codes of users: samples of one are not independent.
    """
    n = len(rewards)
    if not n:
        return Estimates(
            samples=0, effective_samples=0.0, largest_weight=0.0, mean_weight=0.0, refused="no propensities were logged"
        )
    if not np.all((propensities > 0) & (propensities <= 1)):
        raise ValueError("propensities of what was shown must be over 0 and at most 1")
    w = chosen / propensities
    who = np.arange(n) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    total = w.sum()
    effective = float(total**2 / (w**2).sum()) if total else 0.0
    mean_weight, error = float(w.mean()), _error(w, who)
    refused = ""
    if mean_weight + _SUPPORT_Z * error < 1:
        refused = (
            f"no support: the weights average {mean_weight:.3f} instead of 1, so what it would show was often never "
            "shown; let recommendations explore"
        )
    elif mean_weight - _SUPPORT_Z * error > 1:
        refused = f"the weights average {mean_weight:.3f} instead of 1: the logged propensities are too small"
    elif effective < LEAST_SAMPLES:
        refused = f"{effective:.0f} effective samples, at least {LEAST_SAMPLES:.0f} are needed"
    found = {}
    if not refused:
        found["ips"] = _interval(w * rewards, who)
        ratio = float((w * rewards).sum() / total)
        found["snips"] = _interval(w * (rewards - ratio) / mean_weight, who, value=ratio)
        if predicted is not None and expected is not None:
            found["dr"] = _interval(expected + w * (rewards - predicted), who)
    return Estimates(
        samples=n,
        effective_samples=effective,
        largest_weight=float(w.max()),
        mean_weight=mean_weight,
        refused=refused,
        **found,
    )


def _error(values: Floats, who: Codes) -> float:
    """Standard error of a mean; what belongs to one user varies together."""
    sums = np.bincount(who, weights=values - values.mean())
    clusters = len(sums)
    if clusters < 2:
        return float("inf")
    return float(np.sqrt((sums**2).sum() * clusters / (clusters - 1)) / len(values))


def _interval(values: Floats, who: Codes, value: float | None = None) -> Interval:
    mean = float(values.mean()) if value is None else value
    half = _Z95 * _error(values, who)
    return Interval(mean, mean - half, mean + half)
