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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from itertools import accumulate, islice
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from streamfold.core import (
    LEARNED_FROM,
    Array,
    ConfigError,
    Event,
    Policy,
    Prepared,
    Stores,
    Table,
    View,
    best_slots,
)
from streamfold.plugins._near_seeds import NearSeeds
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


class Liked(NamedTuple):
    """An item that a user liked, those liked before it, and the logarithm of what their pairs gain."""

    item: str
    others: tuple[str, ...]
    gain: float


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
        self._pair_all(self._liked(event, stores), stores)

    def gather(self, event: Event, stores: Stores) -> list[Liked] | None:
        """Gather who was liked after whom."""
        return None if event.type.startswith("item.") else self._liked(event, stores)

    def fold_gathered(self, gathered: Sequence[list[Liked]], told: Mapping[str, Any], stores: Stores) -> None:
        """Pair what was gathered, in one call where no item has to make way."""
        self._pair_all([one for each in gathered for one in each], stores)

    def _liked(self, event: Event, stores: Stores) -> list[Liked]:
        """Items that were liked now, with those that their users liked before."""
        if event.type == "user.erased":
            return []
        found, activity = [], stores.of("activity").server
        for example in activity.examples(event, stores.now_us):
            if example.label > 0:
                acted = activity.history(example.user, _LOOK_BACK * self.config.recent)
                liked = dict.fromkeys(one.item_id for one in acted if one.label)
                liked.pop(example.item, None)
                others = tuple(islice(liked, self.config.recent))
                found.append(Liked(example.item, others, example.at_us / _US * self._rate))
        return found

    def _pair_all(self, liked: Sequence[Liked], stores: Stores) -> None:
        if not liked:
            return
        known = stores["row"]
        unknown = {item for one in liked for item in (one.item, *one.others) if item not in known}
        if len(unknown) > self.config.max_items - len(known):
            for one in liked:  # an item that makes way leaves what was paired before it
                first = self._row(one.item, stores)
                self._add([first], [one.gain], stores)
                self._pair([self._with_others(first, one, stores)], [one.gain], stores)
            return
        rows = [self._with_others(self._row(one.item, stores), one, stores) for one in liked]
        gains = [one.gain for one in liked]
        self._add([row[0] for row in rows], gains, stores)
        self._pair(rows, gains, stores)

    def _with_others(self, first: int, one: Liked, stores: Stores) -> list[int]:
        """An item's row, then those of others that are not in it."""
        return list(dict.fromkeys([first, *(self._row(other, stores) for other in one.others)]))

    def _add(self, firsts: Sequence[int], gains: Sequence[float], stores: Stores) -> None:
        total, rows = stores["total"], np.array(firsts)
        total.touch(rows)
        self._kernels.add(total.values, rows, np.array(gains))

    def _pair(self, groups: Sequence[Sequence[int]], gains: Sequence[float], stores: Stores) -> None:
        partner, weight = stores["partner"], stores["weight"]
        rows = np.array([row for group in groups for row in group])
        partner.touch(rows)
        weight.touch(rows)
        ends = np.array([0, *accumulate(len(group) for group in groups)])
        self._kernels.pair(partner.values, weight.values, rows, ends, np.array(gains))

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


class CooccurrenceServer(NearSeeds):
    """Answers from the arrays; a ``CandidateSource`` and ``SimilarItems``."""

    def __init__(self, view: Any) -> None:
        self._view = view

    def near(self, seeds: Sequence[tuple[str, float]], n: int) -> list[tuple[str, float]]:
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
