"""Policy ``deepfm``: a linear model, a factorisation machine and a small network over the same vectors, per example.

DeepFM (Guo et al., IJCAI 2017, arXiv:1703.04247). A pair has five fields: the user, the mean of its tokens, the item,
the mean of its tokens, and what the item's text says. Each id or token has a weight w and a vector v; with e_1 … e_5
the fields' vectors and ``x = (e_1, …, e_5)``, the score is the logistic function of::

    z = b + Σ_a w_a + Σ_{a<b} e_a·e_b + o·h₂,   h₂ = relu(W₂ h₁ + c₂),   h₁ = relu(W₁ x + c₁)

Of the content, ``e_5 = A u`` and ``w_5 = a·u``, with learned A and a. u is frozen: the encoder's vector of the item's
title, categories and text, cut down to ``content`` numbers by fixed random directions (see ``_directions.py``). So what
was learned of texts holds for an item as soon as it is there. An item without a text has ``u = 0``: it is scored, and
learned, as if there were no such field.

After each example everything that it rests on takes a step of AdaGrad (Duchi et al., JMLR 12, 2011) down the log loss:
with g the slope of a parameter θ, ``G ← G + g²``, ``θ ← θ − η g / √(1 + G)``; weights, vectors, A and a are pulled back
by ``ρ θ``, which is part of g. Slopes are written by hand, in a compiled kernel; tests hold them against torch's
autograd. G lies beside its parameter in the same row: an example costs the same however large the tables are.

A late positive was learned as a negative before. Importance weighting of such fake negatives (Ktena et al. 2019,
arXiv:1907.06558) has to guess which they are; here the join says which, so that its weight is known, −1: the step is
that of the loss of the label less the loss of its opposite (that paper's positive-unlabelled loss).

What is new has neither weight nor vector: its score is that of its tokens. When it is first learned, its vector starts
at numbers between −σ and σ that its hashed key alone decides; the layers start at numbers that their places decide.
Rows are bounded, see ``_kernels_hash.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from streamfold.core import LEARNED_FROM, Array, Event, Stores, Table, Tools
from streamfold.plugins._codes import Coded, Codes, Floats, Outcomes, code
from streamfold.plugins._directions import products
from streamfold.plugins._ranking import KEEP, OnlineRanker, Predicted
from streamfold.plugins._settings import at_least
from streamfold.plugins.item_vectors import embedded


@dataclass(frozen=True, slots=True, kw_only=True)
class DeepfmConfig:
    """Size and speed.

    Parameters
    ----------
    rows : users, items and tokens with a vector, 40 + 8 ``factors`` bytes each.
    factors : length of a vector.
    content, seed : to how many numbers an item's content is cut down, and by which directions; 0: without content.
    max_items : items whose content is kept, the newest.
    hidden : units of each of the two hidden layers.
    linear_rate : η of b and w.
    rate : η of vectors and layers.
    content_rate : η of A and a, which every item with a text moves.
    pull, spread : ρ and σ.
    """

    rows: int = 1 << 17
    factors: int = 8
    hidden: int = 32
    content: int = 64
    seed: int = 0
    max_items: int = 1_000_000
    linear_rate: float = 0.3
    rate: float = 0.06
    content_rate: float = 0.02
    pull: float = 0.01
    spread: float = 0.1

    def __post_init__(self) -> None:
        at_least("deepfm", self, 8, "rows")
        at_least("deepfm", self, 1, "factors", "hidden", "max_items")
        at_least("deepfm", self, 0.0, "content", "linear_rate", "rate", "content_rate", "pull", "spread")


class Deepfm(OnlineRanker):
    """Weights and vectors of users, items and tokens, a map of items' content, and two hidden layers."""

    name = "deepfm"
    version = 2
    handles = (*LEARNED_FROM, "item.upserted", "item.deleted", "item.erased")
    backends = ("encoder",)
    Config = DeepfmConfig
    kernels = "streamfold.plugins._kernels_deepfm"
    features = ("all", "user", "item", "pairs", "layers", "content")

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        c = self.config
        self._units = np.arange(2 * c.hidden + 1)
        self._told = max(1, c.content)
        self.stores = (
            Array("facts", shape=(c.rows, 5), dtype="float64"),
            Array("factors", shape=(c.rows, 2, c.factors), dtype="float32"),
            Array("layers", shape=(len(self._units), 2, 1 + max(5 * c.factors, c.hidden)), dtype="float32"),
            Array("head", shape=(1, 3), dtype="float64"),
            Array("content", shape=(c.factors + 1, 2, self._told), dtype="float32"),
            Table("items", key=int, value=bytes, max_rows=c.max_items),
        )

    # -- what items' texts say ----------------------------------------------------------------------------------------
    def prepare_batch(self, events: Sequence[Event], tools: Tools) -> list[Any]:
        """Embed all items of a batch in one call, and cut the vectors down."""
        if not self.config.content:
            return [None] * len(events)
        return [None if vector is None else self._cut(vector) for vector in embedded(events, tools)]

    def _cut(self, vector: npt.NDArray[np.float32]) -> bytes:
        """Products with the directions, made about as long as the vector."""
        c = self.config
        told: npt.NDArray[np.float32] = products(vector, c.content, c.seed)
        return (told * np.float32(math.sqrt(len(vector) / c.content))).tobytes()

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        """Keep what an item's text says, or learn the examples of an event."""
        if event.type.startswith("item."):
            self._place(event.subject.id, prepared, stores)
        else:
            super().fold(event, prepared, stores)

    def skipped(self, event: Event, stores: Stores) -> None:
        """What an item said before is not what it says now."""
        if event.type.startswith("item."):
            self._place(event.subject.id, None, stores)

    def _place(self, item: str, told: bytes | None, stores: Stores) -> None:
        key = code("item", item) >> 1  # a table's numbers have a sign
        if told is None:
            stores["items"].delete(key)
        else:
            stores["items"].put(key, told)

    def _told_of(self, items: Codes, stores: Any) -> Floats:
        """What the texts of items say, ``(n, content)``; zeros where there is none."""
        found = np.zeros((len(items), self._told))
        for j, told in enumerate(stores["items"].get_many((items >> np.uint64(1)).tolist())):
            if told is not None:
                found[j] = np.frombuffer(told, np.float32)
        return found

    # -- scores -------------------------------------------------------------------------------------------------------
    def values(self, stores: Any) -> Sequence[Any]:
        """Return what kernels read of the stores: the arrays."""
        return [stores[one.name].values for one in self.stores[:-1]]

    def predict(self, pairs: Coded, stores: Any) -> Predicted:
        """Score pairs; a pure read."""
        told = self._told_of(pairs.items, stores)
        scores, known, parts = self._kernels.predict(pairs, told, *self.values(stores))
        return Predicted(scores, known, parts, parts)

    def scores(self, pairs: Coded, stores: Any) -> Floats:
        """As :meth:`predict`, the scores alone."""
        scores: Floats = self._kernels.score(pairs, self._told_of(pairs.items, stores), *self.values(stores))
        return scores

    def learn_coded(self, pairs: Coded, said: Outcomes, stores: Any) -> Floats:
        """Take a step for each example, in order."""
        facts, factors, layers, head, content = (stores[one.name] for one in self.stores[:-1])
        c = self.config
        keep = len(facts) / KEEP
        told = self._told_of(pairs.items, stores)
        rows = self._kernels.writable(pairs, facts.values, head.values[0, 2] + len(said.labels), keep)
        facts.touch(rows)
        factors.touch(rows)
        layers.touch(self._units)
        if told.any() or not head.values[0, 2]:  # the first example starts it
            content.touch(np.arange(len(content)))
        head.touch_row(0)
        scores: Floats = self._kernels.learn(
            pairs,
            told,
            *said,
            *self.values(stores),
            c.linear_rate,
            c.rate,
            c.content_rate,
            c.pull,
            c.spread,
            keep,
        )
        return scores
