"""Policy ``implicit_ftrl``: a linear ranker over ids, tokens and their crosses, learned per example by FTRL-proximal.

The score of a user u with tokens t and an item i with tokens g is the logistic function of ``logit(all) + Σ_k w_k``:
the shrunk share of likes of all examples, and a weight for each of u, i, t, g, u × g, i × t and g × t. After each
example, with slope ``d = score − label``, every weight it rests on moves (McMahan et al., Ad Click Prediction,
KDD 2013, doi:10.1145/2487575.2488200)::

    σ = (√(n + d²) − √n) / α,   z ← z + d − σ w,   n ← n + d²
    w = 0 where |z| ≤ λ₁, else −(z − sign(z) λ₁) / ((β + √n) / α + λ₂)

A late positive takes back the step of the negative that it replaces to first order. What is new has no weight. Weights
are found by hashed keys and bounded, see ``_kernels_hash.py``: there λ₁ need not keep the table small, and is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from streamfold.core import Array, ConfigError
from streamfold.plugins._codes import Coded, Floats, Outcomes
from streamfold.plugins._ranking import KEEP, OnlineRanker
from streamfold.plugins._settings import at_least


@dataclass(frozen=True, slots=True, kw_only=True)
class ImplicitFtrlConfig:
    """Size and speed.

    Parameters
    ----------
    rows : weights, 40 bytes each.
    alpha, beta, l1, l2 : α, β, λ₁ and λ₂.
    """

    rows: int = 1 << 19
    alpha: float = 0.5
    beta: float = 1.0
    l1: float = 0.0
    l2: float = 1.0

    def __post_init__(self) -> None:
        at_least("implicit_ftrl", self, 8, "rows")
        at_least("implicit_ftrl", self, 0.0, "alpha", "beta", "l1", "l2")
        if not (self.alpha and (self.beta or self.l2)):
            raise ConfigError("implicit_ftrl: alpha must be above 0, and so must beta or l2")


class ImplicitFtrl(OnlineRanker):
    """Weights of ids, tokens and crosses."""

    name = "implicit_ftrl"
    version = 1
    Config = ImplicitFtrlConfig
    kernels = "streamfold.plugins._kernels_linear"
    features = (
        *("user", "item", "item tokens", "user tokens", "user x item tokens", "item x user tokens"),
        *("item tokens x user tokens", "all"),
    )

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.stores = (
            Array("weights", shape=(self.config.rows, 5), dtype="float64"),
            Array("head", shape=(1, 3), dtype="float64"),
        )

    @property
    def _speeds(self) -> tuple[float, float, float, float]:
        return self.config.alpha, self.config.beta, self.config.l1, self.config.l2

    def learn_coded(self, pairs: Coded, said: Outcomes, stores: Any) -> Floats:
        """Move weights, example by example."""
        weights, head = stores["weights"], stores["head"]
        keep = len(weights) / KEEP
        weights.touch(self._kernels.writable(pairs, weights.values, head.values[0, 2] + len(said.labels), keep))
        head.touch_row(0)
        scores: Floats = self._kernels.learn(pairs, *said, weights.values, head.values, *self._speeds, keep)
        return scores

    def values(self, stores: Any) -> Sequence[Any]:
        return [*super().values(stores), *self._speeds]
