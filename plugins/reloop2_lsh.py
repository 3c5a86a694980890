r"""Policy ``reloop2_lsh``: an error memory in a sketch: constant bytes, O(1) to read and write.

ReLoop2's variant B (arXiv 2306.08808) is a RACE sketch (arXiv 1912.02283): K arrays of 2^L buckets, an example's
bucket in each array given by L bits of SimHash, :math:`\mathrm{sign}(w·h)`; three numbers a bucket: how many examples,
Σy, and Σŷ of what was said of them. The error of the bucket's examples is :math:`(Σy - Σŷ)/(n + a)`.

The key h is a fixed hashed embedding of the example's features: each id or token has coordinates that its hash decides.
Two examples of random ids share little, and L bits of a key of all features meet almost only themselves. So the arrays
take turns in what they see of it (user; item; user with tokens), and each view is fitted on what those before it leave
over: what belongs together meets, and is not counted twice.

There is no decay. A late positive that swaps a negative adds 1 to Σy of the same buckets: exactly as if it had been on
time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from streamfold.core import Array, ConfigError, Example
from streamfold.plugins._codes import coded_pair, coded_whole
from streamfold.plugins._error_memory import ErrorMemory, MemoryConfig, Pairs, positive, shown, shown_alone
from streamfold.plugins._lambda_mixture import Floats, kernels

_VIEWS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Reloop2LshConfig(MemoryConfig):
    """See :class:`MemoryConfig`.

    Parameters
    ----------
    arrays : K, a multiple of 3: each of the three views has as many.
    bits : L; an array has 2^L buckets of 24 bytes.
    prior : a, in examples: so many without an error are added to each bucket.
    """

    arrays: int = 12
    bits: int = 14
    prior: float = 10.0

    def __post_init__(self) -> None:
        MemoryConfig.__post_init__(self)
        positive(self, "prior")
        if self.arrays < _VIEWS or self.arrays % _VIEWS:
            raise ConfigError(f"reloop2_lsh: arrays is {self.arrays}: it must be a multiple of {_VIEWS}")
        if not 1 <= self.bits <= 20:
            raise ConfigError(f"reloop2_lsh: bits is {self.bits}: it must be from 1 to 20")


class Reloop2Lsh(ErrorMemory):
    """Corrects probabilities by what a sketch remembers of similar examples."""

    name = "reloop2_lsh"
    version = 1
    Config = Reloop2LshConfig
    logit = False
    terms = ("user", "item", "user_tokens")

    def __init__(self, config: Any = None) -> None:
        config = config or Reloop2LshConfig()
        super().__init__(config, Array("buckets", shape=(config.arrays << config.bits, 3), dtype="float64"))
        self._prior = float(config.prior)

    def correct(self, pairs: Pairs, base: Floats, at_us: int, stores: Any) -> Floats:
        """What the views add, ``(n, 3)``."""
        c: Reloop2LshConfig = self.config
        terms: Floats = kernels().sketch_terms(stores["buckets"].values, *pairs[:4], c.arrays, c.bits, self._prior)
        return terms

    def remember(self, examples: Sequence[Example], base: Floats, stores: Any) -> Floats:
        """Count the examples in their buckets."""
        c: Reloop2LshConfig = self.config
        sketch, experts, loops, mixture = stores["buckets"], stores["experts"], kernels(), self.mixture
        experts.touch_row(0)
        log_weights, prior = experts.values[0], self._prior
        scores: Floats
        if len(examples) == 1:
            user, item, tokens, _ = coded_pair(examples[0])
            alone = loops.sketch_rows_alone(user, item, tokens, c.arrays, c.bits)
            sketch.touch(alone)
            scores = loops.sketch_learn_alone(
                sketch.values, alone, log_weights, mixture.lambdas, mixture.share, *shown_alone(examples[0])[1:], base,
                prior,
            )  # fmt: skip
            return scores
        rows = loops.rows_of_sketch(coded_whole(examples), c.arrays, c.bits)
        sketch.touch(rows.reshape(-1))
        scores = loops.sketch_learn_all(
            sketch.values, rows, log_weights, mixture.lambdas, mixture.share, shown(examples, base), prior
        )
        return scores
