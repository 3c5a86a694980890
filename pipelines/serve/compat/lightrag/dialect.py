"""How LightRAG says things: paths, refusals (``{"detail": …}``), times."""

from __future__ import annotations

import re
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import msgspec
from starlette.responses import Response

from streamfold.core.policy import ContextRetriever, Retriever
from streamfold.core.views import GroupView, MemberView, WorkspaceView
from streamfold.pipelines.serve.call import Endpoint, answer
from streamfold.pipelines.serve.problems import Problem

BASE = "/compat/lightrag"
API_VERSION = "1.5.7"
"""The version of LightRAG whose routes these are."""
SEPARATOR = "<SEP>"
MISSING = "Field required"
_VALIDATED = frozenset(("malformed", "invalid-event", "invalid-value", "unknown-field", "unknown-type"))
_STEP = re.compile(r"/([^/]+)")


def endpoint(method: str, path: str, run: Any, summary: str, **more: Any) -> Endpoint:
    """Declare a route below ``/compat/lightrag``."""
    refuse = partial(refused, where="query") if method == "GET" else refused
    settings: dict[str, Any] = {"tag": "lightrag", "refuse": refuse} | more
    return Endpoint(method=method, path=BASE + path, run=run, summary=summary, **settings)


def refused(problem: Problem, request_id: str, *, where: str = "body") -> Response:
    """Write a refusal as LightRAG (FastAPI) does: a text, or for what is not valid a list of causes."""
    if problem.code not in _VALIDATED or problem.status == 409:
        return answer({"detail": problem.detail}, problem.status, problem.headers)
    causes = problem.errors or [{"pointer": "", "message": problem.detail}]
    detail = []
    for one in causes:
        message = one["message"].removeprefix(f"{one['pointer']}: ")
        missing = message == MISSING or message.startswith("missing field")
        kind = "json_invalid" if problem.code == "malformed" else "missing" if missing else "value_error"
        loc = [where, *_STEP.findall(one["pointer"])]
        detail.append({"type": kind, "loc": loc, "msg": MISSING if missing else message, "input": None})
    return answer({"detail": detail}, 422, problem.headers)


class Refused(Problem):
    """A refusal with a status of LightRAG's own."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__("refused", detail)
        self._status = status

    @property
    def status(self) -> int:
        return self._status


class Body(msgspec.Struct, kw_only=True):
    """Base of request bodies; like LightRAG's they may have further fields, which are passed over."""


def server(view: WorkspaceView) -> tuple[GroupView, MemberView]:
    """Return who answers: the first live policy with a graph, else the first that stores documents."""
    for group, member in (*view.servers(ContextRetriever), *view.servers(Retriever)):
        return group, member
    raise Refused(503, "no live policy here stores documents: add [policies.graph_index] to the settings")


def own_version() -> str:
    try:
        return f"streamfold {version('streamfold')}"
    except PackageNotFoundError:
        return "streamfold"
