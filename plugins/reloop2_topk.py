r"""Policy ``reloop2_topk``: an error memory of samples: what came of the most similar ones, by attention.

ReLoop2's variant A (arXiv 2306.08808). Kept is a ring of the last ``samples`` examples that are worth it: those with an
error above ``sigma``, and of the others a share ``keep`` that hashes of their positions choose; these weigh 1/``keep``,
so that the choice does not bias what is read. With similarities :math:`s_i` to the k nearest of them,

.. math:: a_i ∝ ω_i e^{s_i/τ}, \quad \bar y = Σ a_i y_i, \quad \bar y_b = Σ a_i ŷ_{b,i}, \qquad
          ŷ_{err} = (1 - γ)(\bar y - \bar y_b) + γ (\bar y - ŷ_b)

γ = 1 is the paper's experiments (the neighbours' labels), γ = 0 the error that is stored with them.

The key is a fixed hashed embedding (one coordinate a user, one an item, 64 for tokens), its squared parts weighted
.4, .4 and .2, so that the similarity is a cosine: what the pairs share of user, item and tokens. Of equal neighbours
the newest count. A question looks at every sample, 48 bytes each and the item's id: O(samples), constant memory.

Named in ``explain`` are items, never users: whose neighbours they are is nobody's business.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from streamfold.core import Array, ConfigError, Example, Stores, Table
from streamfold.plugins._error_memory import ErrorMemory, MemoryConfig, Pairs, pair_of, positive
from streamfold.plugins._lambda_mixture import Floats, kernels

_SHOWN = 5
"""Neighbours named for an item."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reloop2TopkConfig(MemoryConfig):
    """See :class:`MemoryConfig`.

    Parameters
    ----------
    samples : the ring's size.
    k : neighbours.
    tau : τ; the lower, the more the nearest count.
    gamma : γ, from 0 to 1.
    sigma : examples with a greater error are always kept.
    keep : share of the others that is.
    """

    samples: int = 8192
    k: int = 100
    tau: float = 0.1
    gamma: float = 0.0
    sigma: float = 0.5
    keep: float = 0.5

    def __post_init__(self) -> None:
        MemoryConfig.__post_init__(self)
        positive(self, "tau")
        positive(self, "samples", "k", whole=True)
        for name in ("gamma", "sigma", "keep"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"reloop2_topk: {name} is {getattr(self, name)}: it must be from 0 to 1")


class Reloop2Topk(ErrorMemory):
    """Corrects probabilities by what came of the most similar samples."""

    name = "reloop2_topk"
    version = 1
    Config = Reloop2TopkConfig
    logit = False
    terms = ("neighbours",)

    def __init__(self, config: Any = None) -> None:
        config = config or Reloop2TopkConfig()
        super().__init__(
            config,
            Array("keys", shape=(config.samples, 3), dtype="int64"),
            Array("numbers", shape=(config.samples, 4), dtype="float64"),
            Array("written", shape=(1, 1), dtype="int64"),
            Table("items", key=int, value=str, max_rows=config.samples),
        )

    def correct(self, pairs: Pairs, base: Floats, at_us: int, stores: Any) -> Floats:
        """What the neighbours add, ``(n, 1)``."""
        terms: Floats = self._neighbours(pairs, base, stores)[0]
        return terms

    def _neighbours(self, pairs: Pairs, base: Floats, stores: Any) -> tuple[Floats, Any, Floats]:
        c: Reloop2TopkConfig = self.config
        found: tuple[Floats, Any, Floats] = kernels().ring_terms(
            stores["keys"].values, stores["numbers"].values, int(stores["written"].values[0, 0]), *pairs[:4], base,
            c.k, float(c.tau), float(c.gamma),
        )  # fmt: skip
        return found

    def remember(self, examples: Sequence[Example], base: Floats, stores: Any) -> Floats:
        """Keep the examples that are worth it; what an event costs is looking at every sample, not this loop."""
        experts, scores = stores["experts"], np.empty(len(examples))
        experts.touch_row(0)
        for j, example in enumerate(examples):
            pairs, of_base = pair_of(example), base[j : j + 1]
            terms = self.correct(pairs, of_base, example.at_us, stores)
            scores[j] = self.mixture.mix(experts.values[0], of_base, terms)[0]
            if not example.swaps:
                self.mixture.learn(experts.values[0], base[j], terms[0], example.label, example.weight)
            served = math.nan if example.served is None else example.served
            self._keep(example, pairs, kernels().base_of(served, base[j], scores[j]), stores)
        return scores

    def _keep(self, example: Example, pairs: Pairs, said: float, stores: Stores) -> None:
        """Keep the example if it is worth it; a late positive turns over the sample that it swaps, if that is kept."""
        c: Reloop2TopkConfig = self.config
        keys, numbers, loops = stores["keys"], stores["numbers"], kernels()
        at_s, written = example.at_us / 1e6, int(stores["written"].values[0, 0])
        if example.swaps:
            slot = loops.ring_find(keys.values, numbers.values, written, pairs.user, pairs.items[0], at_s)
            if slot >= 0:
                numbers.values[numbers.touch([slot]), 0] = example.label
                return
        weight = 1.0
        if abs(example.label - said) <= c.sigma:
            if loops.share_of(example.seq, example.n) >= c.keep:
                return
            weight = 1 / c.keep
        weight *= example.weight
        slot = written % c.samples
        bits = loops.token_bits(pairs.tokens)
        keys.put([slot], np.array([[pairs.user, pairs.items[0], bits]], np.uint64).view(np.int64))
        numbers.put([slot], (example.label, said, weight, at_s))
        stores["written"].put([0], written + 1)
        stores["items"].put(slot, example.item)

    def explain(self, pairs: Pairs, base: Floats, at_us: int, stores: Any) -> list[list[tuple[str, float, float]]]:
        """The items of the neighbours that count most, with their errors."""
        c: Reloop2TopkConfig = self.config
        terms, slots, attention = self._neighbours(pairs, base, stores)
        rows = []
        for j, total in enumerate(terms[:, 0].tolist()):
            kept = slots[j] >= 0
            label, said = stores["numbers"].values[slots[j, kept], :2].T
            errors = (1 - c.gamma) * (label - said) + c.gamma * (label - base[j])
            parts = attention[j, kept] * errors
            best = np.argsort(-np.abs(parts), kind="stable")[:_SHOWN]
            named = stores["items"].get_many([int(slot) for slot in slots[j, kept][best]])
            rows.append(
                [
                    (f"{self.name}.neighbour.{item}", float(errors[i]), float(parts[i]) / (total or 1.0))
                    for item, i in zip(named, best, strict=True)
                    if item is not None
                ]
            )
        return rows
