r"""Policy ``graph_walk``: items near what a user liked, on the graph of users, items and what items are told by.

A walk that starts at the seeds and goes on with probability d, else starts anew, is at a node so often as the
personalised PageRank says (Haveliwala 2002, doi:10.1145/511446.511513; for recommending: Pixie, arXiv:1711.07601):

.. math::  p = (1 - d)\, s + d\, p W

with s the seeds by how much they are liked, W the edges taken both ways, each row scaled to the sum 1. So an item is
found by those who liked both (two steps), by what they liked in turn (four), and, before anybody has met it, by a
category or property that it shares. A local forward push computes it: its work is bounded by :math:`1 / (ε (1 − d))`
edges, however large the graph is. A node with many edges is pushed only when much has come to it, so a category that
everything has leads nowhere.

Edges belong to their source, and are set as a whole: a user's go to the ``per_user`` items liked last, an item's to
the first ``per_item`` of its tokens (see ``activity``). Past ``max_bytes`` the source that was written longest ago
loses its edges. Erasing a user or an item folds the group afresh.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nsmallest
from typing import Any

from streamfold.core import (
    LEARNED_FROM,
    ConfigError,
    Event,
    Graph,
    Policy,
    Prepared,
    Stores,
    View,
    user_key,
)
from streamfold.plugins._near_seeds import NearSeeds
from streamfold.plugins._settings import at_least

_ITEM, _TOKEN = "i:", "t:"
"""Prefixes of nodes; a user's is ``user_key``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphWalkConfig:
    """How far the walk goes, and bounds.

    Parameters
    ----------
    damping : d, how often the walk goes on.
    epsilon : ε, what is left undone at a node, for each of its edges: smaller finds more, and costs more.
    per_user : items of a user.
    per_item : tokens of an item.
    token_weight : what an edge to a token weighs; one of a user weighs 1.
    """

    damping: float = 0.8
    epsilon: float = 1e-4
    per_user: int = 50
    per_item: int = 16
    token_weight: float = 0.1
    max_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        if not 0 < self.damping < 1:
            raise ConfigError(f"graph_walk: damping is {self.damping}: it must lie between 0 and 1")
        at_least("graph_walk", self, 1e-9, "epsilon", "token_weight")
        at_least("graph_walk", self, 1, "per_user", "per_item", "max_bytes")


class GraphWalk(Policy):
    """Who liked which items, and what items are told by."""

    name = "graph_walk"
    version = 1
    handles = (*LEARNED_FROM, "item.upserted", "item.patched", "item.deleted", "item.erased", "user.erased")
    reads = ("activity",)
    Config = GraphWalkConfig

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.stores = (Graph("graph", max_bytes=self.config.max_bytes, on_full="evict", fold_reads=True),)

    def fold(self, event: Event, prepared: Prepared, stores: Stores) -> None:
        """Set the edges of who liked something, or of an item."""
        graph, activity = stores["graph"], stores.of("activity").server
        if event.type in ("item.deleted", "item.erased"):
            self._remove(_ITEM + event.subject.id, graph)
        elif event.type.startswith("item."):
            tokens = [_TOKEN + one for one in activity.told_by(event)[: self.config.per_item]]
            graph.put(_ITEM + event.subject.id, tokens, [self.config.token_weight] * len(tokens))
        elif event.type == "user.erased":
            graph.delete(user_key(event.subject.id, None))
        else:
            liked: dict[str, list[str]] = {}
            for example in activity.examples(event, stores.now_us):
                if example.label > 0:
                    liked.setdefault(example.user, []).insert(0, _ITEM + example.item)
            for user, items in liked.items():
                newest_first = dict.fromkeys([*items, *graph.targets(user)[0]])
                graph.put(user, list(newest_first)[: self.config.per_user])

    def _remove(self, item: str, graph: Any) -> None:
        """Take an item from the users that liked it, and its own edges."""
        for user in graph.sources(item)[0]:
            graph.put(user, [one for one in graph.targets(user)[0] if one != item])
        graph.delete(item)

    def serve(self, view: View) -> GraphWalkServer:
        """Serve candidates and similar items."""
        return GraphWalkServer(self.config, view)


class GraphWalkServer(NearSeeds):
    """Answers from the graph; a ``CandidateSource`` and ``SimilarItems``."""

    def __init__(self, config: GraphWalkConfig, view: View) -> None:
        self._config = config
        self._view = view

    def near(self, seeds: Sequence[tuple[str, float]], n: int) -> list[tuple[str, float]]:
        """Items by PageRank around the seeds that are liked. O(1 / (ε (1 − d)))."""
        config = self._config
        rank = self._view["graph"].personalized_pagerank(
            {_ITEM + item: liking for item, liking in seeds},
            damping=config.damping,
            epsilon=config.epsilon,
            reached=True,
        )
        given = {_ITEM + item for item, _ in seeds}
        # rounded: in which order edges lie in memory decides the last bits of a sum
        found = [
            (node[len(_ITEM) :], round(score, 10))
            for node, score in rank.items()
            if node.startswith(_ITEM) and node not in given
        ]
        return nsmallest(n, found, key=lambda one: (-one[1], one[0]))
