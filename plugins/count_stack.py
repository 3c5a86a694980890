"""Policy ``count_stack``: a ranker of shrunk running log-odds, stacked by an online logistic model.

Of everything that examples are about (all, a user, an item, a token, and pairs of these) it counts how many there
were, ``n``, and how many were liked, ``s``. Each count says by how much it moves the odds from those of its prior
``q``, shrunk towards it with the weight of ``a`` examples::

    x = logit((s + a q) / (n + a)) − logit(q)

With a user u, an item i, its tokens g (say, genres) and the user's tokens t, counted as u, i, g, u × g, i × t, g × t
and the last ~10 examples of u and ~20 of i, each against all, against u (u × g) or against i (i × t), tokens averaged,
the features are these odds; 1; u and i as far as they are sure (times n / (n + 10)); and u times i. How often a side
was met tells as much: ln(1 + n) of u and of i, whether u, i or both are new, u times ln(1 + n) of i and the reverse,
g where i is new; and the odds of u among items at the *stage* of i (new, met under 4 times, under 16 times, more), and
of i and g among users at the stage of u.

The score is the logistic function of ``logit(all) + w·x``; after each example the weights take a step of AdaGrad
(Duchi et al., JMLR 12, 2011) on its log loss, ``d = score − label``::

    G ← G + (d x)²,   w ← w − η d x / √(1 + G)

from where u, i weigh 1, and u × g, i × t one half: so the first examples already count.

A late positive takes back the negative that it replaces: exactly in the counts, to first order in the weights. Windows
and stages do not remember what came when: there it turns at most one example into a like.

A new user, item or token has no row, thus adds nothing: others' counts speak alone. Rows are found by hashed keys and
bounded, see ``_kernels_hash.py``. An example of four tokens takes the kernel about 1 µs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from streamfold.core import Array
from streamfold.plugins._codes import Coded, Floats, Outcomes
from streamfold.plugins._ranking import KEEP, OnlineRanker
from streamfold.plugins._settings import at_least


@dataclass(frozen=True, slots=True, kw_only=True)
class CountStackConfig:
    """Bounds and speed.

    Parameters
    ----------
    ids : rows for users, items and tokens, 112 bytes each.
    crosses : rows for pairs of them, 32 bytes each.
    rate : the step η of the weights.
    """

    ids: int = 1 << 17
    crosses: int = 1 << 19
    rate: float = 0.06

    def __post_init__(self) -> None:
        at_least("count_stack", self, 8, "ids", "crosses")
        at_least("count_stack", self, 0.0, "rate")


class CountStack(OnlineRanker):
    """Counts, and a logistic model over them."""

    name = "count_stack"
    version = 1
    Config = CountStackConfig
    kernels = "streamfold.plugins._kernels_count"
    features = (
        *("bias", "user", "item", "user lately", "item lately", "user x item tokens", "item tokens"),
        *("item x user tokens", "item tokens x user tokens", "user, sure", "item, sure", "user x item"),
        *("user met", "item met", "new user", "new item", "both new", "user x item met", "item x user met"),
        *("item tokens, new item", "user x item stage", "item x user stage", "item tokens x user stage", "all"),
    )

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.stores = (
            Array("ids", shape=(self.config.ids, 14), dtype="float64"),
            Array("crosses", shape=(self.config.crosses, 4), dtype="float64"),
            Array("head", shape=(3, len(self.features) - 1), dtype="float64"),
        )

    def learn_coded(self, pairs: Coded, said: Outcomes, stores: Any) -> Floats:
        """Count examples in order, and move the weights."""
        ids, crosses, head = stores["ids"], stores["crosses"], stores["head"]
        upto = head.values[2, 2] + len(said.labels)
        keep, keep_crosses = len(ids) / KEEP, len(crosses) / KEEP
        rows, cross_rows = self._kernels.writable(pairs, ids.values, crosses.values, upto, keep, keep_crosses)
        ids.touch(rows)
        crosses.touch(cross_rows)
        head.touch(_HEAD)
        scores: Floats = self._kernels.learn(
            pairs, *said, ids.values, crosses.values, head.values, self.config.rate, keep, keep_crosses
        )
        return scores


_HEAD = np.arange(3)
