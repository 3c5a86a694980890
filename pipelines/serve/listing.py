"""The whole graph in pages: entities and relations, each with all chunks that it comes from."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from starlette.responses import Response

from streamfold.pipelines.serve import examples
from streamfold.pipelines.serve.ask import entity, relation, unhidden
from streamfold.pipelines.serve.call import PAGE_PARAMS, READ_PARAMS, Call, Endpoint, answer, page
from streamfold.pipelines.serve.filters import Matches
from streamfold.pipelines.serve.graph import graph_server
from streamfold.pipelines.serve.reading import wait_fresh

_AT_ONCE = 100
"""So many are described under one lock: the view takes commits in between."""
K = TypeVar("K", str, tuple[str, str])


async def entities(call: Call) -> Response:
    """A page of entities in order of id."""

    def keys(server: Any) -> Iterable[str]:
        return (key for key, _ in server.names())

    def described(server: Any, part: Sequence[str], matches: Matches | None) -> list[dict[str, Any]]:
        return [entity(one) for one in server.entities(part, matches=matches)]

    return await _listed(call, call.cursor(str, ""), keys, described)


async def relations(call: Call) -> Response:
    """A page of relations in order of the ids of their ends."""

    def keys(server: Any) -> Iterable[tuple[str, str]]:
        found: list[tuple[str, str]] = server.pairs()
        return found

    def described(server: Any, part: Sequence[tuple[str, str]], matches: Matches | None) -> list[dict[str, Any]]:
        return [relation(one) for one in server.relations(part, matches=matches)]

    return await _listed(call, call.cursor(tuple[str, str], ("", "")), keys, described)


async def _listed(
    call: Call,
    after: K,
    keys: Callable[[Any], Iterable[K]],
    described: Callable[[Any, Sequence[K], Matches | None], list[dict[str, Any]]],
) -> Response:
    view, limit = call.view, call.limit()
    group, _ = graph_server(call, view)
    await wait_fresh(call, view, [group])

    def work() -> dict[str, Any]:
        group, member = graph_server(call, view)
        with view.reading([group]) as cut:
            chosen = heapq.nsmallest(limit, (key for key in keys(member.server) if key > after))
        items: list[dict[str, Any]] = []
        for i in range(0, len(chosen), _AT_ONCE):
            with view.reading([group]) as cut:
                items += described(member.server, chosen[i : i + _AT_ONCE], unhidden(view, group, None))
        return page(items, chosen[-1] if len(chosen) == limit else None) | {"version": cut.as_json()}

    return answer(await call.ask(view.asked, work))


ENDPOINTS = [
    Endpoint(
        method="GET", path="/v1/entities", run=entities, tag="ask", summary="A page of entities with their sources",
        params=(*PAGE_PARAMS, *READ_PARAMS, "policy"), returns=examples.ENTITIES, errors=(400, 404, 422, 503),
    ),
    Endpoint(
        method="GET", path="/v1/relations", run=relations, tag="ask", summary="A page of relations with their sources",
        params=(*PAGE_PARAMS, *READ_PARAMS, "policy"), returns=examples.RELATIONS, errors=(400, 404, 422, 503),
    ),
]  # fmt: skip
