r"""Policy ``diag_linucb``: items that may be liked or of which too little is known, by clusters of taste: exploration.

Online Matching (Yi et al., 2023, arXiv:2307.15893): a sparse graph of clusters and items, and on its edges a linear
bandit whose matrices are diagonal. A user u belongs to its ``top`` nearest clusters c with weights
:math:`w_{uc} = \mathrm{softmax}_c(u·c / τ)`; what an item i is worth to u, with its optimism, is

.. math::  \sum_c w_{uc} b_{ci}/d_{ci} + α \sqrt{\sum_c w_{uc}^2/d_{ci}}

over the clusters that have an edge to i. With the outcome r of an example, each such edge takes
:math:`d_{ci} += w_{uc}^2`, :math:`b_{ci} += w_{uc} r`, from d = 1, b = 0. A late positive adds its reward alone: the
negative that it replaces was counted in d.

Clusters are directions of ±1 in the space of the encoder's vectors, drawn by ``seed`` alone, and fixed with the
configuration: edges keep their meaning, and a replay needs neither a fit nor the order in which items came (k-means of
the first items would be closer to them, but would move with the log). A user's place is the mean of the items liked
lately, an item's edges go to its ``per_item`` nearest clusters, and a cluster keeps its newest ``width`` items: who
comes as the last takes the oldest one's place. So an answer looks at ``top`` × ``width`` edges, however many items
there are, an example changes at most ``per_item``, and what is explored is what is new.

Choices are deterministic: propensities come of the random places of a list (``explore``), not of this policy. Erasing a
user or an item folds the group afresh: the sums have seen both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from streamfold.core import (
    LEARNED_FROM,
    CandidateRequest,
    ConfigError,
    Event,
    Example,
    Policy,
    Stores,
    Table,
    Tools,
    View,
)
from streamfold.plugins._directions import products
from streamfold.plugins._feedback import SEP
from streamfold.plugins._settings import at_least
from streamfold.plugins.item_vectors import embedded

_LOOK_BACK = 20
"""So many of a user's last actions are looked at for what was liked."""


class Place(msgspec.Struct, frozen=True, array_like=True):
    """Where an item lies: its products with the clusters (float32), and which of their slots it has."""

    near: bytes
    slots: tuple[str, ...]


class Edge(msgspec.Struct, frozen=True, array_like=True):
    """What a cluster knows of an item."""

    item: str
    d: float = 1.0
    b: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DiagLinucbConfig:
    """The graph, and how much is explored.

    Parameters
    ----------
    clusters, seed : how many directions, and which.
    top : clusters of a user.
    per_item : clusters of an item.
    width : items of a cluster.
    alpha : α, what not knowing is worth.
    temperature : τ; small: the nearest cluster has all the weight.
    """

    clusters: int = 64
    seed: int = 0
    top: int = 4
    per_item: int = 2
    width: int = 128
    alpha: float = 0.5
    temperature: float = 0.1

    def __post_init__(self) -> None:
        at_least("diag_linucb", self, 1, "clusters", "top", "per_item", "width")
        at_least("diag_linucb", self, 0.0, "alpha")
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"diag_linucb: temperature is {self.temperature}: give a positive number")
        if max(self.top, self.per_item) > self.clusters:
            raise ConfigError(f"diag_linucb: top and per_item must be at most clusters, {self.clusters}")


class DiagLinucb(Policy):
    """Clusters, items, and what came of showing these to users of those."""

    name = "diag_linucb"
    version = 1
    handles = (*LEARNED_FROM, "item.upserted", "item.deleted", "item.erased", "user.erased")
    reads = ("activity",)
    backends = ("encoder",)
    Config = DiagLinucbConfig

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        c: DiagLinucbConfig = self.config
        edges = c.clusters * c.width
        self.stores = (
            Table("places", key=str, value=Place, max_rows=edges),
            Table("edges", key=str, value=Edge, max_rows=edges),
            Table("taken", key=int, value=int, max_rows=c.clusters),
        )

    def prepare_batch(self, events: Sequence[Event], tools: Tools) -> list[Any]:
        """Embed all items of a batch in one call."""
        return embedded(events, tools)

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        """Place an item, or learn what came of showing one."""
        if event.type.startswith("item."):
            self._place(event.subject.id, prepared, stores)
        elif event.type != "user.erased":
            activity = stores.of("activity").server
            for example in activity.examples(event, stores.now_us):
                acted = activity.history(example.user, _LOOK_BACK)
                self._learn(example, [(one.item_id, 1.0) for one in acted if one.label], stores)

    def skipped(self, event: Event, stores: Stores) -> None:
        """What an item said before is not what it says now."""
        if event.type.startswith("item."):
            self._place(event.subject.id, None, stores)

    def _place(self, item: str, vector: Any, stores: Stores) -> None:
        """Give an item edges to its nearest clusters; one that it had already keeps what it knows."""
        c, edges = self.config, stores["edges"]
        near = None if vector is None else products(np.asarray(vector, np.float32), c.clusters, c.seed)
        nearest = [] if near is None else best(near, c.per_item)
        had = stores["places"].get(item)
        kept = {}
        for slot in had.slots if had is not None else ():
            edge, cluster = edges.get(slot), int(slot.partition(SEP)[0])
            if edge is not None and edge.item == item:  # another may have taken its place since
                if cluster in nearest:
                    kept[cluster] = slot
                else:
                    edges.delete(slot)
        if near is None:
            stores["places"].delete(item)
            return
        for cluster in nearest:
            if cluster not in kept:
                taken = stores["taken"].get(cluster, 0)
                stores["taken"].put(cluster, taken + 1)
                kept[cluster] = f"{cluster}{SEP}{taken % c.width}"
                edges.put(kept[cluster], Edge(item))
        stores["places"].put(item, Place(near.tobytes(), tuple(kept.values())))

    def _learn(self, example: Example, seeds: Sequence[tuple[str, float]], stores: Stores) -> None:
        place = stores["places"].get(example.item)
        if place is None:
            return
        weights = self.weights(seeds, stores)
        for slot in place.slots:
            edge, weight = stores["edges"].get(slot), weights.get(int(slot.partition(SEP)[0]))
            if weight is not None and edge is not None and edge.item == example.item:
                d = edge.d if example.swaps else edge.d + weight * weight
                stores["edges"].put(slot, Edge(edge.item, d, edge.b + weight * example.label))

    def weights(self, seeds: Sequence[tuple[str, float]], stores: Any) -> Mapping[int, float]:
        """How much a user who likes these items belongs to each of its clusters; empty: nothing of them is known."""
        places = stores["places"].get_many([item for item, _ in seeds])
        found = [(place, liking) for place, (_, liking) in zip(places, seeds, strict=True) if place is not None]
        liked = [np.frombuffer(place.near, np.float32) * liking for place, liking in found if liking > 0]
        if not liked:
            return {}
        total = sum(liking for _, liking in found if liking > 0)
        near: npt.NDArray[np.float64] = np.stack(liked).sum(0, np.float64) / total
        clusters = best(near, self.config.top)
        odds = [math.exp((float(near[one]) - float(near[clusters[0]])) / self.config.temperature) for one in clusters]
        return {one: each / sum(odds) for one, each in zip(clusters, odds, strict=True)}

    def serve(self, view: View) -> DiagLinucbServer:
        """Serve candidates."""
        return DiagLinucbServer(self, view)


class DiagLinucbServer:
    """Answers from the edges; a ``CandidateSource``."""

    def __init__(self, policy: DiagLinucb, view: View) -> None:
        self._policy = policy
        self._view = view

    def candidates(self, request: CandidateRequest) -> list[tuple[str, float]]:
        """The best items by their upper bounds. O(top × width)."""
        config: DiagLinucbConfig = self._policy.config
        means, spreads = dict[str, float](), dict[str, float]()
        for cluster, weight in self._policy.weights(request.seeds, self._view).items():
            for edge in self._view["edges"].get_many([f"{cluster}{SEP}{n}" for n in range(config.width)]):
                if edge is not None:
                    means[edge.item] = means.get(edge.item, 0.0) + weight * edge.b / edge.d
                    spreads[edge.item] = spreads.get(edge.item, 0.0) + weight * weight / edge.d
        given = {item for item, _ in request.seeds}
        scores = [
            (item, mean + config.alpha * math.sqrt(spreads[item])) for item, mean in means.items() if item not in given
        ]
        return sorted(scores, key=lambda one: (-one[1], one[0]))[: request.n]


def best(near: npt.NDArray[Any], n: int) -> list[int]:
    """Return the n nearest clusters, nearest first, ties by number."""
    found: list[int] = np.argsort(-near, kind="stable")[:n].tolist()
    return found
