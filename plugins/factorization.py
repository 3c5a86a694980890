"""Policy ``factorization``: logistic matrix factorisation with side features, learned per example.

A user is the vector ``p = v_u + ½ mean_t v_t`` over its tokens t, an item ``q = v_i + ½ mean_g v_g`` over its tokens g
(as in Rendle, Factorization Machines, ICDM 2010, doi:10.1109/ICDM.2010.127, with user × item products alone); the score
is the logistic function of::

    z = b + b_u + b_i + 0.3 Σ_t b_t + 0.3 Σ_g b_g + p·q

After each example, ``d = score − label``, everything it rests on takes a step::

    v ← v − η (d ∂z/∂v + ρ v),   b_u ← b_u − max(0.03, 0.6 / √(n_u + 3)) (d + 0.01 b_u),   b_i likewise

where n counts examples: what was met seldom moves far. Biases of tokens move by 0.01, ``b`` by 0.002.

What is new has neither bias nor vector: its score is that of its tokens. When it is first learned, its vector starts at
numbers between −σ and σ that its hashed key alone decides, so that a replay needs no generator. A late positive takes
back the step of the negative that it replaces to first order. Rows are bounded, see ``_kernels_hash.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from streamfold.core import Array
from streamfold.plugins._codes import Coded, Floats, Outcomes
from streamfold.plugins._ranking import KEEP, OnlineRanker
from streamfold.plugins._settings import at_least


@dataclass(frozen=True, slots=True, kw_only=True)
class FactorizationConfig:
    """Size and speed.

    Parameters
    ----------
    rows : users, items and tokens with a vector, 32 + 4 ``factors`` bytes each.
    factors : length of a vector.
    rate, pull, spread : η, ρ and σ.
    """

    rows: int = 1 << 17
    factors: int = 16
    rate: float = 0.06
    pull: float = 0.02
    spread: float = 0.1

    def __post_init__(self) -> None:
        at_least("factorization", self, 8, "rows")
        at_least("factorization", self, 1, "factors")
        at_least("factorization", self, 0.0, "rate", "pull", "spread")


class Factorization(OnlineRanker):
    """Vectors and biases of users, items and tokens."""

    name = "factorization"
    version = 1
    Config = FactorizationConfig
    kernels = "streamfold.plugins._kernels_factor"
    features = ("all", "user", "item", "user x item")

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        rows, factors = self.config.rows, self.config.factors
        self.stores = (
            Array("facts", shape=(rows, 4), dtype="float64"),
            Array("factors", shape=(rows, factors), dtype="float32"),
            Array("head", shape=(1, 2), dtype="float64"),
        )

    def learn_coded(self, pairs: Coded, said: Outcomes, stores: Any) -> Floats:
        """Move vectors and biases, example by example."""
        facts, factors, head = stores["facts"], stores["factors"], stores["head"]
        c = self.config
        keep = len(facts) / KEEP
        rows = self._kernels.writable(pairs, facts.values, head.values[0, 1] + len(said.labels), keep)
        facts.touch(rows)
        factors.touch(rows)
        head.touch_row(0)
        scores: Floats = self._kernels.learn(
            pairs, *said, facts.values, factors.values, head.values, c.rate, c.pull, c.spread, keep
        )
        return scores
