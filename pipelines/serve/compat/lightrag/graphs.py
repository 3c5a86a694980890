"""The graph: what lies around an entity, or the best connected part of it, and the names in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from starlette.responses import Response

from streamfold.core.policy import ContextRetriever, ScoredEntity, ScoredRelation, relation_ends
from streamfold.core.views import GroupView, MemberView, WorkspaceView
from streamfold.pipelines.serve.ask import unhidden
from streamfold.pipelines.serve.call import Call, answer
from streamfold.pipelines.serve.compat.lightrag.dialect import MISSING, endpoint, server
from streamfold.pipelines.serve.compat.lightrag.sources import Sources
from streamfold.pipelines.serve.filters import Matches
from streamfold.pipelines.serve.problems import at

MAX_NODES, MAX_DEPTH = 1000, 10
_MOST = 2**31
_AT_ONCE = 200
T = TypeVar("T")


class Graph:
    """The graph of the policy that answers; empty where it has none.

    What is long is read in parts, each at a cut of its own, so that the view takes commits in between.
    """

    def __init__(self, view: WorkspaceView, group: GroupView, member: MemberView) -> None:
        self._view = view
        self._group = group
        self._server: Any = member.server if isinstance(member.server, ContextRetriever) else None
        self._sources = Sources(view, group, member)

    def around(self, label: str, depth: int, limit: int) -> dict[str, Any]:
        """Return what lies around an entity; nothing where no document names it."""
        found = None
        if self._server is not None:
            with self._reading() as matches:
                found = self._server.graph(label, depth=depth, limit=limit, matches=matches)
        if found is None:
            return self._drawn([], [], truncated=False)
        return self._drawn(found.entities, found.relations, truncated=found.truncated)

    def whole(self, limit: int) -> dict[str, Any]:
        """Return the entities with most sources, and the relations among them."""
        ranked = self._ranked()
        entities: list[ScoredEntity] = []
        for part in _parts(ranked):
            with self._reading() as matches:
                entities += self._server.entities(part, matches=matches)
            if len(entities) > limit:
                break
        chosen = {one.entity_id for one in entities[:limit]}
        with self._reading():
            pairs = sorted(pair for pair in self._pairs() if pair[0] in chosen and pair[1] in chosen)
        relations: list[ScoredRelation] = []
        for some in _parts(pairs):
            with self._reading() as matches:
                relations += self._server.relations(some, matches=matches)
        return self._drawn(entities[:limit], relations, truncated=len(entities) > limit)

    def labels(self, limit: int, *, like: str = "") -> list[str]:
        """Return the names with most sources first, all or those that contain a text."""
        found: list[str] = []
        for part in _parts([key for key in self._ranked() if like in key]):
            with self._reading() as matches:
                found += self._server.labels(part, matches=matches)
            if len(found) >= limit:
                break
        return found[:limit]

    def _ranked(self) -> list[str]:
        if self._server is None:
            return []
        with self._reading():
            names = self._server.names()
        return [key for key, _ in sorted(names, key=lambda name: (-name[1], name[0]))]

    def _pairs(self) -> list[tuple[str, str]]:
        return [] if self._server is None else self._server.pairs()

    @contextmanager
    def _reading(self) -> Iterator[Matches | None]:
        with self._view.reading([self._group]):
            yield unhidden(self._view, self._group, None)

    def _drawn(
        self, entities: Sequence[ScoredEntity], relations: Sequence[ScoredRelation], *, truncated: bool
    ) -> dict[str, Any]:
        """Draw nodes and edges; an edge's ends are nodes, whatever their names' case is where it is stated."""
        names = {one.entity_id: one.name for one in entities}
        nodes: list[dict[str, Any]] = []
        edges: list[dict[str, Any]] = []
        for part in _parts(entities):
            with self._reading():
                nodes += [self._sources.node(one) for one in part]
        for some in _parts(relations):
            with self._reading():
                for one in some:
                    if ends := relation_ends(one.relation_id, names):
                        edges.append(self._sources.edge(one, names[ends[0]], names[ends[1]]))
        return {"nodes": nodes, "edges": edges, "is_truncated": truncated}


def _parts(rows: Sequence[T]) -> Iterator[Sequence[T]]:
    return (rows[i : i + _AT_ONCE] for i in range(0, len(rows), _AT_ONCE))


async def _reading(call: Call, work: Callable[[Graph], T]) -> T:
    view = call.view
    return await call.ask(view.asked, lambda: work(Graph(view, *server(view))))


async def graphs(call: Call) -> Response:
    """What lies around an entity; ``*`` stands for all of them."""
    label = call.query.get("label")
    if label is None:
        raise at("/label", "invalid-value", MISSING)
    depth = min(call.integer("max_depth", 3, least=1, most=_MOST), MAX_DEPTH)
    limit = min(call.integer("max_nodes", MAX_NODES, least=1, most=_MOST), MAX_NODES)
    if label == "*":
        return answer(await _reading(call, lambda graph: graph.whole(limit)))
    return answer(await _reading(call, lambda graph: graph.around(label, depth, limit)))


async def label_list(call: Call) -> Response:
    """All names in order."""
    return answer(sorted(await _reading(call, lambda graph: graph.labels(_MOST))))


async def label_popular(call: Call) -> Response:
    """The names with most sources."""
    limit = call.integer("limit", 300, least=1, most=1000)
    return answer(await _reading(call, lambda graph: graph.labels(limit)))


async def label_search(call: Call) -> Response:
    """Names that contain a text."""
    limit, like = call.integer("limit", 50, least=1, most=100), call.query.get("q", "").strip().lower()
    return answer(await _reading(call, lambda graph: graph.labels(limit, like=like)))


async def entity_exists(call: Call) -> Response:
    """Whether a document names an entity."""
    name = call.query.get("name", "")
    found = await _reading(call, lambda graph: graph.around(name, 1, 1)) if name else {"nodes": []}
    return answer({"exists": bool(found["nodes"])})


_SAID = {"description": "Marie Curie met Lise Meitner in Paris.", "source_id": "radium#5d0e", "file_path": "radium.txt"}
_GRAPH = {
    "nodes": [
        {
            "id": "Marie Curie",
            "labels": ["Marie Curie"],
            "properties": {"entity_id": "Marie Curie", "entity_type": "UNKNOWN", **_SAID, "created_at": 1769860800},
        }
    ],
    "edges": [],
    "is_truncated": False,
}
ENDPOINTS = [
    endpoint(
        "GET", "/graphs", graphs, "What lies around an entity, or `*`", params=("label", "max_depth", "max_nodes"),
        returns=_GRAPH,
    ),
    endpoint("GET", "/graph/label/list", label_list, "All names", returns=["Lise Meitner", "Marie Curie"]),
    endpoint("GET", "/graph/label/popular", label_popular, "The names with most sources", params=("limit",)),
    endpoint("GET", "/graph/label/search", label_search, "Names that contain a text", params=("q", "limit")),
    endpoint("GET", "/graph/entity/exists", entity_exists, "Whether a document names an entity", params=("name",)),
]  # fmt: skip
