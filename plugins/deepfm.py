"""Policy ``deepfm``: a linear model, a factorisation machine and a small network over the same vectors, per example.

DeepFM (Guo et al., IJCAI 2017, arXiv:1703.04247). A pair has four fields: the user, the mean of its tokens, the item,
the mean of its tokens. Each id or token has a weight w and a vector v; with e_1 … e_4 the fields' vectors and
``x = (e_1, …, e_4)``, the score is the logistic function of::

    z = b + Σ_a w_a + Σ_{a<b} e_a·e_b + o·h₂,   h₂ = relu(W₂ h₁ + c₂),   h₁ = relu(W₁ x + c₁)

After each example everything that it rests on takes a step of AdaGrad (Duchi et al., JMLR 12, 2011) down the log loss:
with g the slope of a parameter θ, ``G ← G + g²``, ``θ ← θ − η g / √(1 + G)``; weights and vectors are pulled back by
``ρ θ``, which is part of g. Slopes are written by hand, in a compiled kernel; tests hold them against torch's autograd.
G lies beside its parameter in the same row: an example costs the same however large the tables are.

A late positive was learned as a negative before. Importance weighting of such fake negatives (Ktena et al. 2019,
arXiv:1907.06558) has to guess which they are; here the join says which, so that its weight is known, −1: the step is
that of the loss of the label less the loss of its opposite (that paper's positive-unlabelled loss).

What is new has neither weight nor vector: its score is that of its tokens. When it is first learned, its vector starts
at numbers between −σ and σ that its hashed key alone decides; the layers start at numbers that their places decide.
Rows are bounded, see ``_kernels_hash.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamfold.core import Array, Example
from streamfold.plugins._ranking import KEEP, Floats, OnlineRanker, coded_examples, outcomes
from streamfold.plugins._settings import at_least


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepfmConfig:
    """Size and speed.

    Parameters
    ----------
    rows : users, items and tokens with a vector, 40 + 8 ``factors`` bytes each.
    factors : length of a vector.
    hidden : units of each of the two hidden layers.
    linear_rate : η of b and w.
    rate : η of vectors and layers.
    pull, spread : ρ and σ.
    """

    rows: int = 1 << 17
    factors: int = 8
    hidden: int = 32
    linear_rate: float = 0.3
    rate: float = 0.06
    pull: float = 0.01
    spread: float = 0.1

    def __post_init__(self) -> None:
        at_least("deepfm", self, 8, "rows")
        at_least("deepfm", self, 1, "factors", "hidden")
        at_least("deepfm", self, 0.0, "linear_rate", "rate", "pull", "spread")


class Deepfm(OnlineRanker):
    """Weights and vectors of users, items and tokens, and two hidden layers."""

    name = "deepfm"
    version = 1
    Config = DeepfmConfig
    kernels = "streamfold.plugins._kernels_deepfm"
    features = ("all", "user", "item", "pairs", "layers")

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        c = self.config
        self._units = np.arange(2 * c.hidden + 1)
        self.stores = (
            Array("facts", shape=(c.rows, 5), dtype="float64"),
            Array("factors", shape=(c.rows, 2, c.factors), dtype="float32"),
            Array("layers", shape=(len(self._units), 2, 1 + max(4 * c.factors, c.hidden)), dtype="float32"),
            Array("head", shape=(1, 3), dtype="float64"),
        )

    def learn(self, examples: Sequence[Example], stores: Any) -> Floats:
        """Take a step for each example, in order."""
        pairs, said = coded_examples(examples), outcomes(examples)
        facts, factors, layers, head = (stores[one.name] for one in self.stores)
        c = self.config
        keep = len(facts) / KEEP
        rows = self._kernels.writable(pairs, facts.values, head.values[0, 2] + len(examples), keep)
        facts.touch(rows)
        factors.touch(rows)
        layers.touch(self._units)
        head.touch_row(0)
        scores: Floats = self._kernels.learn(
            pairs, *said, *self.values(stores), c.linear_rate, c.rate, c.pull, c.spread, keep
        )
        return scores
