r"""Policy ``residual_table``: an error memory by id: how far user, item and tokens are off from what the base says.

To the base's log-odds z it adds one term for the user, one for the item, and the mean of one for each (user, token of
the item) and (item, token of the user), each fitted on what those before it leave over:

.. math:: z' = z + λ (t_u + t_i + \overline{t_g}), \qquad t_k = \frac{R_k}{V_k + a}, \qquad
          R_k = \sum (y - ŷ_k), \quad V_k = \sum ŷ_k (1 - ŷ_k)

where ŷ_k is what the base said, corrected by the terms before k. The term is one Newton step for an effect whose prior
is normal with variance 1/a. Sums are decayed by the time of the event: an example weighs half after ``half_life_days``,
in whatever order examples come. A late positive that swaps a negative adds 1 to R at the negative's time and weight.

Rows are hashed, ``rows`` of them: 24 bytes each, whatever the number of ids. An example costs its rows: O(tokens).
The variant C of ReLoop2's memory (arXiv 2306.08808), ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from streamfold.core import Array, Example
from streamfold.plugins._codes import coded_pair, coded_whole
from streamfold.plugins._error_memory import ErrorMemory, MemoryConfig, Pairs, positive, shown, shown_alone
from streamfold.plugins._lambda_mixture import Floats, kernels

_DAY_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidualTableConfig(MemoryConfig):
    """See :class:`MemoryConfig`.

    Parameters
    ----------
    rows : hashed rows; two ids that share one are told apart by the other terms alone.
    prior : a; how much evidence halves a correction (an event of an even chance is .25).
    half_life_days : after this time an example weighs half.
    """

    rows: int = 1 << 19
    prior: float = 2.0
    half_life_days: float = 90.0

    def __post_init__(self) -> None:
        MemoryConfig.__post_init__(self)
        positive(self, "prior", "half_life_days")
        positive(self, "rows", whole=True)


class ResidualTable(ErrorMemory):
    """Corrects log-odds by decayed residuals of user, item and tokens."""

    name = "residual_table"
    version = 1
    Config = ResidualTableConfig
    logit = True
    terms = ("user", "item", "tokens")

    def __init__(self, config: Any = None) -> None:
        config = config or ResidualTableConfig()
        super().__init__(config, Array("residuals", shape=(config.rows, 3), dtype="float64"))
        self._rate, self._prior = math.log(2) / (config.half_life_days * _DAY_S), float(config.prior)

    def correct(self, pairs: Pairs, base: Floats, at_us: int, stores: Any) -> Floats:
        """Terms of user, item and tokens, ``(n, 3)``."""
        terms: Floats = kernels().table_terms(stores["residuals"].values, *pairs, at_us / 1e6, self._rate, self._prior)
        return terms

    def remember(self, examples: Sequence[Example], base: Floats, stores: Any) -> Floats:
        """Add the examples' residuals."""
        table, experts, loops, mixture = stores["residuals"], stores["experts"], kernels(), self.mixture
        experts.touch_row(0)
        log_weights, prior = experts.values[0], self._prior
        scores: Floats
        if len(examples) == 1:
            user, item, tokens, own = coded_pair(examples[0])
            alone = loops.table_rows_alone(user, item, tokens, own, self.config.rows)
            table.touch(alone)
            scores = loops.table_learn_alone(
                table.values, alone, log_weights, mixture.lambdas, mixture.share, *shown_alone(examples[0]), base,
                self._rate, prior,
            )  # fmt: skip
            return scores
        rows, ends = loops.rows_of_table(coded_whole(examples), self.config.rows)
        table.touch(rows)
        scores = loops.table_learn_all(
            table.values, rows, ends, log_weights, mixture.lambdas, mixture.share, shown(examples, base), self._rate,
            prior,
        )  # fmt: skip
        return scores
