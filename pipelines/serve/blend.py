"""Making a list out of scored candidates: diversity and exploration, with the probability of what was chosen.

Position by position the best remaining item is taken, where best is relevance less likeness to what was taken before
(maximal marginal relevance, Carbonell and Goldstein 1998, doi:10.1145/290941.291025). With probability ε any remaining
item is taken instead, all alike, so that the conditional propensity of each position is known::

    P(i | taken before) = (1 − ε) [i is the best] + ε / m,     m = items remaining

which sums to one over what could have been shown, and is what off-policy estimates need.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Indices of candidates in order, and the propensity of each choice (None: nothing was drawn)."""

    order: list[int]
    propensities: list[float] | None


def generator_of(exposure_id: str) -> np.random.Generator:
    """The generator of one response: the same id draws the same."""
    return np.random.default_rng(int.from_bytes(hashlib.blake2b(exposure_id.encode(), digest_size=8).digest(), "big"))


def choose(
    scores: Floats,
    n: int,
    *,
    tokens: Sequence[Sequence[str]] = (),
    diversity: float = 0.0,
    explore: float = 0.0,
    rng: np.random.Generator | None = None,
) -> Chosen:
    """Choose ``n`` of the candidates.

    Parameters
    ----------
    scores : ``(m,) float64``, best highest; candidates come in order of preference among equals.
    tokens : per candidate what it is told by; needed for diversity. Likeness is the cosine of the sets.
    diversity : 0 (relevance alone) to 1 (unlikeness alone).
    explore : ε.
    rng : needed where ``explore`` > 0.

    O(n · m) array operations.
    """
    count = len(scores)
    n = min(n, count)
    if not diversity and not explore:
        return Chosen(order=np.argsort(-scores, kind="stable")[:n].tolist(), propensities=None)
    spread = float(np.ptp(scores)) if count else 0.0
    relevance = (scores - scores.min()) / spread if spread else np.zeros(count)
    likeness = _unit_rows(tokens, count) if diversity else np.zeros((count, 0))
    nearest = np.zeros(count)
    left = np.ones(count, bool)
    order: list[int] = []
    propensities: list[float] = []
    for _ in range(n):
        value = np.where(left, (1 - diversity) * relevance - diversity * nearest, -np.inf)
        best = taken = int(np.argmax(value))
        remaining = count - len(order)
        if explore and rng is not None and rng.random() < explore:
            taken = int(np.flatnonzero(left)[rng.integers(remaining)])
        propensities.append((1 - explore) * (taken == best) + explore / remaining)
        order.append(taken)
        left[taken] = False
        if diversity:
            np.maximum(nearest, likeness @ likeness[taken], out=nearest)
    return Chosen(order=order, propensities=propensities if explore else None)


def _unit_rows(tokens: Sequence[Sequence[str]], count: int) -> Floats:
    """Sets as unit rows ``(count, distinct tokens)``."""
    number: dict[str, int] = {}
    for one in tokens:
        for token in one:
            number.setdefault(token, len(number))
    rows = np.zeros((count, len(number)))
    for row, one in enumerate(tokens):
        if one:
            rows[row, [number[token] for token in one]] = len(set(one)) ** -0.5
    return rows
