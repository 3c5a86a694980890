"""Policy ``cooccurrence``: items that the same users liked lately, as candidates and as similar items.

Two items go together as often as one user liked both, one after the other, with forward decay (Cormode et al., ICDE
2009, doi:10.1109/ICDE.2009.65)::

    c_ij(t) = Σ 2^{−(t − t_e)/h}   over the events e that complete the pair,      s_ij = c_ij / √(c_i c_j)

``s`` is item-based collaborative filtering's cosine (Sarwar et al. 2001, doi:10.1145/371920.372071) on decayed counts.
Each item keeps its ``partners`` strongest ones as a row of an array: an event that completes ``recent`` pairs changes
so many rows, each in place, however many items there are. Weights are logarithms, so that time changes none of them.

Rows are given to items as they come. When all are taken a new item takes one chosen by its hash: what had it starts
anew, and nothing of it is found under the other's name.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from types import ModuleType
from typing import Any

import numpy as np

from streamfold.core import (
    LEARNED_FROM,
    Array,
    CandidateRequest,
    ConfigError,
    Event,
    Policy,
    Prepared,
    Stores,
    Table,
    View,
    best_slots,
)
from streamfold.plugins._settings import at_least

_NEVER = -math.inf
_US = 1e6
_LOOK_BACK = 4
"""Of so many actions for each pair that is wanted, the liked ones are paired."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CooccurrenceConfig:
    """Half-life, bounds, and how many of a user's last liked items an item is paired with."""

    half_life_s: float = 30 * 86_400.0
    max_items: int = 1 << 17
    partners: int = 32
    recent: int = 5

    def __post_init__(self) -> None:
        if not 0 < self.half_life_s < math.inf:
            raise ConfigError(f"cooccurrence: half_life_s is {self.half_life_s}: give a positive number of seconds")
        at_least("cooccurrence", self, 1, "max_items", "partners", "recent")


class Cooccurrence(Policy):
    """Pairs of items that the same users liked, decayed."""

    name = "cooccurrence"
    version = 1
    handles = (*LEARNED_FROM, "item.deleted", "item.erased", "user.erased")
    reads = ("activity",)
    Config = CooccurrenceConfig

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        c: CooccurrenceConfig = self.config
        self._rate = math.log(2) / c.half_life_s
        self.stores = (
            Table("row", key=str, value=int, max_rows=c.max_items),
            Table("name", key=int, value=str, max_rows=c.max_items),
            Table("free", key=int, value=int, max_rows=c.max_items),
            Array("partner", shape=(c.max_items, c.partners), dtype="int32", fill=-1),
            Array("weight", shape=(c.max_items, c.partners), dtype="float64", fill=_NEVER),
            Array("total", shape=(c.max_items, 1), dtype="float64", fill=_NEVER),
        )

    def fold(self, event: Event, prepared: Prepared, stores: Stores) -> None:
        """Pair what a user liked now with what the user liked before."""
        if event.type.startswith("item."):
            self._remove(event.subject.id, stores)
            return
        if event.type == "user.erased":
            return
        activity = stores.of("activity").server
        for example in activity.examples(event, stores.now_us):
            if example.label > 0:
                acted = activity.history(example.user, _LOOK_BACK * self.config.recent)
                liked = dict.fromkeys(one.item_id for one in acted if one.label)
                liked.pop(example.item, None)
                self._pair(example.item, list(liked)[: self.config.recent], example.at_us / _US * self._rate, stores)

    def _pair(self, item_id: str, others: Sequence[str], gain: float, stores: Stores) -> None:
        row = self._row(item_id, stores)
        total = stores["total"]
        total.touch_row(row)
        total.values[row, 0] = np.logaddexp(total.values[row, 0], gain)
        rows = list(dict.fromkeys(other for one in others if (other := self._row(one, stores)) != row))
        if rows:
            both = np.array([row, *rows])
            stores["partner"].touch(both)
            stores["weight"].touch(both)
            self._kernels.pair(stores["partner"].values, stores["weight"].values, both, gain)

    @cached_property
    def _kernels(self) -> ModuleType:
        from streamfold.plugins import _kernels_pairs

        return _kernels_pairs

    def _row(self, item_id: str, stores: Stores) -> int:
        """An item's row: its own, a free one, or one that another item has to leave."""
        row, names = stores["row"].get(item_id), stores["name"]
        if row is not None:
            return int(row)
        free = next((one for one, _ in stores["free"].items()), None)
        if free is not None:
            stores["free"].delete(free)
            row = free
        elif len(names) < self.config.max_items:
            row = len(names)
        else:
            row = int.from_bytes(blake2b(item_id.encode(), digest_size=8).digest(), "big") % self.config.max_items
            stores["row"].delete(names.get(row))
            self._clear(row, stores)
        stores["row"].put(item_id, row)
        names.put(row, item_id)
        return int(row)

    def _remove(self, item_id: str, stores: Stores) -> None:
        row = stores["row"].get(item_id)
        if row is not None:
            self._clear(row, stores)
            stores["row"].delete(item_id)
            stores["name"].delete(row)
            stores["free"].put(row, row)

    def _clear(self, row: int, stores: Stores) -> None:
        """Empty a row, and take it out of its partners' rows."""
        partner, weight = stores["partner"], stores["weight"]
        others = partner.values[row]
        others = np.unique(others[others >= 0]).astype(np.int64)
        stores["total"].put([row], [[_NEVER]])
        rows = partner.touch(np.append(others, row))
        weight.touch(rows)
        gone = partner.values[others] == row
        partner.values[others] = np.where(gone, -1, partner.values[others])
        weight.values[others] = np.where(gone, _NEVER, weight.values[others])
        partner.values[row], weight.values[row] = -1, _NEVER

    def serve(self, view: View) -> CooccurrenceServer:
        """Serve candidates and similar items."""
        return CooccurrenceServer(view)


class CooccurrenceServer:
    """Answers from the arrays; a ``CandidateSource`` and ``SimilarItems``."""

    def __init__(self, view: Any) -> None:
        self._view = view

    def candidates(self, request: CandidateRequest) -> list[tuple[str, float]]:
        return self._best(request.seeds, request.n)

    def similar(self, item_id: str, n: int) -> list[tuple[str, float]]:
        return self._best([(item_id, 1.0)], n)

    def _best(self, seeds: Sequence[tuple[str, float]], n: int) -> list[tuple[str, float]]:
        """Add up the seeds' cosines. O(seeds × partners)."""
        view = self._view
        slots = view["row"].get_many([one for one, _ in seeds])
        known = [(row, liking) for row, (_, liking) in zip(slots, seeds, strict=True) if row is not None]
        if not known:
            return []
        rows = np.array([row for row, _ in known])
        liking = np.array([one for _, one in known])
        partners, weights = view["partner"].values[rows].astype(np.int64), view["weight"].values[rows]
        total = view["total"].values[:, 0]
        there = partners >= 0
        weights = np.where(there, weights, 0.0)
        # a partner that nobody liked itself has no total: the pair's own weight bounds it from below
        of_partner = np.maximum(total[np.where(there, partners, 0)], weights)
        of_seed = np.maximum(total[rows][:, None], weights)
        cosine = np.exp(weights - (of_seed + of_partner) / 2)
        found, place = np.unique(partners[there], return_inverse=True)
        scores = np.bincount(place, (liking[:, None] * cosine)[there], minlength=len(found))
        given = {one for one, _ in seeds}
        best = best_slots(scores, n + len(given))
        names = view["name"].get_many(found[best].tolist())
        listed = [(name, float(score)) for name, score in zip(names, scores[best], strict=True)]
        kept = [one for one in listed if one[0] is not None and one[0] not in given and one[1] > 0]
        return sorted(kept, key=lambda one: (-one[1], one[0]))[:n]
