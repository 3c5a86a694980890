"""The graph itself: what lies around an entity."""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from streamfold.core.policy import ContextRetriever
from streamfold.core.views import GroupView, MemberView, WorkspaceView
from streamfold.pipelines.serve import examples
from streamfold.pipelines.serve.ask import entity, relation, unhidden
from streamfold.pipelines.serve.call import READ_PARAMS, Call, Endpoint, answer
from streamfold.pipelines.serve.problems import Problem, at
from streamfold.pipelines.serve.reading import wait_fresh


async def graph(call: Call) -> Response:
    """Show an entity, its relations and the entities at their other ends."""
    view = call.view
    name = call.query.get("entity", "")
    if not name:
        raise at("/entity", "invalid-value", "name an entity: /v1/graph?entity=marie%20curie")
    depth = call.integer("depth", 1, least=1, most=4)
    limit = call.integer("limit", 200, least=1, most=1000)
    group, _ = graph_server(call, view)
    await wait_fresh(call, view, [group])

    def work() -> dict[str, Any]:
        group, member = graph_server(call, view)
        with view.reading([group]) as cut:
            matches = unhidden(view, group, None)
            found = member.server.graph(name, depth=depth, limit=limit, matches=matches)
            if found is None:
                raise Problem("not-found", f"no document here names '{name[:80]}': see the entities of a query")
            return {
                "entities": [entity(one) for one in found.entities],
                "relations": [relation(one) for one in found.relations],
                "truncated": found.truncated,
                "merge_candidates": [
                    {"entity_id": one.entity_id, "reason": one.reason, "score": one.score}
                    for one in found.merge_candidates
                ],
                "version": cut.as_json(),
            }

    return answer(await call.ask(view.asked, work))


def graph_server(call: Call, view: WorkspaceView) -> tuple[GroupView, MemberView]:
    """Return who has a graph: the policy named, or the first live one."""
    named = call.query.get("policy")
    servers = view.servers(ContextRetriever, named)
    if servers:
        return servers[0]
    if named:
        raise at("/policy", "invalid-value", f"no policy '{named[:64]}' has a graph")
    raise Problem("not-found", "no live policy here has a graph: add [policies.graph_index] to the settings")


ENDPOINTS = [
    Endpoint(
        method="GET", path="/v1/graph", run=graph, tag="ask", summary="What lies around an entity",
        params=("entity", "depth", "limit", "policy", *READ_PARAMS), returns=examples.GRAPH, errors=(404, 422, 503),
    ),
]  # fmt: skip
