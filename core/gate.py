"""May a candidate take over? Its scores against those of what is live, on the same examples, each from before learning.

Each user counts once: with the mean difference of clipped log loss over a fixed window from the user's first paired
example, in the order in which the windows close. The differences get a confidence sequence (empirical Bernstein with
predictable plug-in, Waudby-Smith and Ramdas, arXiv 2010.09686, theorem 2; the doubly robust form is arXiv 2110.00115):
it holds at all times at once, so looking often promotes nothing by chance, where a repeated z-test promotes a quarter
of equal pairs. *Not worse*: the upper bound is below δ; *better*: below 0. What is neither is undecided, and undecided
never promotes.

A *negative flip* is an example that was right and is wrong now: whoever is used to a model feels it, also where the
new one is better on the whole (MUSCLE, Echterhoff et al. 2024, arXiv:2407.09435). Their share has a limit of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from streamfold.core.hooks import GateRule
from streamfold.core.quality import Flags, Floats, Scored

_US = 1_000_000
_LEAST = 1e-4
_MOST_STEP = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class GateLimits:
    """What a candidate is held to.

    Parameters
    ----------
    delta : nats of log loss that it may be worse by.
    min_users : fewer users decide nothing.
    window_s : a user counts with the mean of so long.
    max_flips : share of examples that were right and are wrong now.
    worst_slice : nats that it may be worse by in any slice of at least ``slice_examples``.
    bytes_ratio : times the bytes of what is live. p99_ratio, cost_ratio : times its time for an answer, for an event.
    alpha : of the confidence sequence.
    """

    delta: float = 0.001
    min_users: int = 100
    window_s: float = 86_400.0
    max_flips: float = 0.05
    worst_slice: float = 0.05
    slice_examples: int = 200
    bytes_ratio: float = 2.0
    p99_ratio: float = 2.0
    cost_ratio: float = 5.0
    alpha: float = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """Two stacks on the same examples, in order of the log; differences are candidate less live."""

    user: npt.NDArray[np.int64]
    at_us: npt.NDArray[np.int64]
    difference: Floats
    flipped: npt.NDArray[np.bool_]
    slices: npt.NDArray[np.int64]
    names: tuple[str, ...]
    """Of the slices."""


def confidence_sequence(values: Floats, *, alpha: float = 0.05, bound: float = 1.0) -> tuple[Floats, Floats]:
    """Bound the mean of values in ``[−bound, bound]`` at every time at once.

    Parameters
    ----------
    values : ``(n,) float64`` in the order in which they came.

    Returns
    -------
    Lower and upper bounds ``(n,)`` after each value, of the values' (weighted) mean so far; each of the two holds at
    all times with probability ``1 − alpha``. They are not intersected over time, which supposes that the mean stays
    what it is: what two stacks differ by changes as they learn. O(n).
    """
    if not len(values):
        return np.zeros(0), np.zeros(0)
    x = (np.clip(values, -bound, bound) + bound) / (2 * bound)
    t = np.arange(1, len(x) + 1)
    mean = (0.5 + np.cumsum(x)) / (t + 1)
    before = np.concatenate(([0.5], mean[:-1]))
    variance = (0.25 + np.cumsum((x - mean) ** 2)) / (t + 1)
    variance_before = np.concatenate(([0.25], variance[:-1]))
    step = np.minimum(np.sqrt(2 * math.log(1 / alpha) / (variance_before * t * np.log(1 + t))), _MOST_STEP)
    cost = (-np.log1p(-step) - step) / 4
    weight = np.cumsum(step)
    centre = np.cumsum(step * x) / weight
    half = (math.log(1 / alpha) + np.cumsum(4 * (x - before) ** 2 * cost)) / weight
    return 2 * bound * (centre - half) - bound, 2 * bound * (centre + half) - bound


def paired(candidate: Scored, live: Scored) -> Paired:
    """Pair the examples that both have scored, by their ``(seq, n)``."""
    size = int(max(candidate.key[:, 1].max(initial=0), live.key[:, 1].max(initial=0))) + 1
    one, other = (side.key[:, 0] * size + side.key[:, 1] for side in (candidate, live))
    _, mine, theirs = np.intersect1d(one, other, assume_unique=True, return_indices=True)
    label = candidate.label[mine]
    new, old = candidate.score[mine], live.score[theirs]
    return Paired(
        user=candidate.user[mine],
        at_us=candidate.at_us[mine],
        difference=np.clip(_loss(new, label) - _loss(old, label), -1.0, 1.0),
        flipped=_right(live)[theirs] & ~_right(candidate)[mine],
        slices=candidate.slices[mine],
        names=candidate.names,
    )


def _right(side: Scored) -> Flags:
    if side.right is not None:
        return side.right
    found: Flags = (side.score >= 0.5) == (side.label > 0)
    return found


def _loss(score: Floats, label: Floats) -> Floats:
    score = np.clip(score, _LEAST, 1 - _LEAST)
    loss: Floats = -np.where(label > 0, np.log(score), np.log1p(-score))
    return loss


def user_means(pairs: Paired, window_s: float) -> Floats:
    """Each user's mean difference over the window from the first example; only windows that have closed, in order."""
    if not len(pairs.user):
        return np.zeros(0)
    users, place = np.unique(pairs.user, return_inverse=True)
    first = np.full(len(users), np.iinfo(np.int64).max)
    np.minimum.at(first, place, pairs.at_us)
    closes = first + int(window_s * _US)
    inside = pairs.at_us < closes[place]
    count = np.bincount(place[inside], minlength=len(users))
    total = np.bincount(place[inside], pairs.difference[inside], minlength=len(users))
    closed = np.flatnonzero(closes <= pairs.at_us.max())
    order = closed[np.argsort(closes[closed], kind="stable")]
    means: Floats = total[order] / count[order]
    return means


Verdict = Literal["pass", "fail", "undecided"]


def verdict(means: Floats, limits: GateLimits) -> tuple[Verdict, float, float]:
    """Decide by the users' means; returns the verdict and the bounds of the mean difference."""
    lower, upper = confidence_sequence(means, alpha=limits.alpha)
    if len(means) < max(1, limits.min_users):
        return "undecided", math.nan, math.nan
    if upper[-1] < limits.delta:
        return "pass", float(lower[-1]), float(upper[-1])
    return ("fail" if lower[-1] > limits.delta else "undecided"), float(lower[-1]), float(upper[-1])


def judge(
    candidate: Scored, live: Scored, limits: GateLimits, *, candidate_bytes: int = 0, live_bytes: int = 0
) -> list[GateRule]:
    """Apply all rules; a candidate may take over when every one passed."""
    pairs = paired(candidate, live)
    means = user_means(pairs, limits.window_s)
    decided, lower, upper = verdict(means, limits)
    if math.isnan(upper):
        detail = (
            f"undecided: {len(means)} users (of a head: targets) whose window of {limits.window_s:,.0f} s has closed, "
            f"{max(1, limits.min_users)} are needed"
        )
    else:
        better = ", better" if upper < 0 else ""
        detail = f"{decided}{better}: {len(means)} users, mean difference of log loss in {lower:+.4f}…{upper:+.4f}"
    value = None if math.isnan(upper) else upper
    rules = [
        GateRule(
            rule="not_worse", passed=decided == "pass", value=value, limit=limits.delta, detail=detail,
            undecided=decided == "undecided",
        )
    ]  # fmt: skip
    count = len(pairs.user)
    flips = float(pairs.flipped.mean()) if count else 0.0
    rules.append(
        GateRule(
            rule="negative_flips", passed=flips <= limits.max_flips, value=flips, limit=limits.max_flips,
            detail=f"{flips:.1%} of {count:,} examples were right and are wrong now, {limits.max_flips:.1%} may be",
            undecided=value is None and flips > limits.max_flips,
        )
    )  # fmt: skip
    rules.append(_worst_slice(pairs, limits, few=value is None))
    ratio = candidate_bytes / live_bytes if live_bytes else 1.0
    rules.append(
        GateRule(
            rule="bytes", passed=ratio <= limits.bytes_ratio, value=ratio, limit=limits.bytes_ratio,
            detail=f"{candidate_bytes:,} bytes of state against {live_bytes:,}",
        )
    )  # fmt: skip
    return rules


def _worst_slice(pairs: Paired, limits: GateLimits, *, few: bool) -> GateRule:
    worst, name, limit = -math.inf, "", limits.worst_slice
    for number, one in enumerate(pairs.names):
        mine = pairs.difference[pairs.slices == number]
        if len(mine) >= limits.slice_examples and (mean := float(mine.mean())) > worst:
            worst, name = mean, one
    if not name:
        return GateRule(rule="worst_slice", passed=True, limit=limit, detail="no slice has enough examples")
    detail = f"{name}: mean difference of log loss {worst:+.4f}, {limit:+.4f} may be"
    passed = worst <= limit
    return GateRule(
        rule="worst_slice", passed=passed, value=worst, limit=limit, detail=detail, undecided=few and not passed
    )
