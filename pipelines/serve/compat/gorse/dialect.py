"""How Gorse says things: paths, refusals (a line of text), ``RowAffected``, ``n`` and ``offset``."""

from __future__ import annotations

from typing import Any

from starlette.responses import PlainTextResponse, Response

from streamfold.pipelines.peers.rows import actions
from streamfold.pipelines.serve.call import Call, Endpoint, answer
from streamfold.pipelines.serve.problems import Problem

BASE = "/compat/gorse/api"
MOST = 1000
"""``n`` and ``offset`` at most."""
AFFECTED = {"RowAffected": 1}


def endpoint(method: str, path: str, run: Any, summary: str, **more: Any) -> Endpoint:
    """Declare a route below ``/compat/gorse/api``."""
    settings: dict[str, Any] = {"tag": "gorse", "refuse": refused} | more
    return Endpoint(method=method, path=BASE + path, run=run, summary=summary, **settings)


def refused(problem: Problem, request_id: str) -> Response:
    """Write a refusal as Gorse does: its text; what is not valid is 400."""
    status = 400 if problem.status in (409, 415, 422) else problem.status
    text = problem.detail.encode("utf-8", "replace")
    return PlainTextResponse(text, status, headers=problem.headers)


def affected(count: int) -> Response:
    return answer({"RowAffected": count})


def known_actions(call: Call) -> frozenset[str]:
    """Return the actions that feedback may have here."""
    return actions(call.service.settings.limits.actions)


def size(call: Call) -> int:
    return call.integer("n", 10, least=1, most=MOST)


def place(call: Call) -> int:
    return call.integer("offset", 0, least=0, most=MOST)


def asks(call: Call) -> None:
    """Count a question; 429 where the workspace has none left."""
    call.service.charge(call.workspace, "queries_per_s", 1)
