"""Rank and recommend. A model is a live policy by its name; ``default`` is whichever answers.

Nothing is logged by ``rank``: Metarank's clients send a ranking event of what they showed. What ``recommend`` answers
has no id there, so it is logged here, and a click of that user joins it by user and item.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

import msgspec
from starlette.responses import Response

from streamfold.core.errors import nearest
from streamfold.core.policy import CandidateSource
from streamfold.core.recommending import Ranker
from streamfold.pipelines.peers.metarank import Field, Shown, context
from streamfold.pipelines.serve.call import Call, answer
from streamfold.pipelines.serve.compat.intake import read
from streamfold.pipelines.serve.compat.metarank.dialect import endpoint, took_ms
from streamfold.pipelines.serve.problems import Problem, at
from streamfold.pipelines.serve.recommend import Rank, Recommend, ranked, recommended

DEFAULT = "default"
_MOST = 1000


class RankingRequest(msgspec.Struct, kw_only=True):
    """Body of ``POST /rank/{model}``: a ranking event; other fields are passed over."""

    items: Annotated[list[Shown], msgspec.Meta(min_length=1, max_length=_MOST)]
    id: str | None = None
    user: str | None = None
    session: str | None = None
    fields: list[Field] | None = None


class RecommendRequest(msgspec.Struct, kw_only=True):
    """Body of ``POST /recommend/{model}``."""

    count: Annotated[int, msgspec.Meta(ge=1, le=_MOST)]
    user: str | None = None
    items: Annotated[list[str], msgspec.Meta(max_length=_MOST)] = []


async def rank(call: Call) -> Response:
    """Put the items of a ranking in order."""
    started = time.perf_counter()
    call.service.charge(call.workspace, "queries_per_s", 1)
    request = read(await call.body(), RankingRequest)
    explain = _flag(call, "explain")
    try:
        told = context(request.fields)
    except (ValueError, RecursionError):
        raise at("/fields", "invalid-value", "a value of fields is too large or too deep") from None
    body = Rank(
        item_ids=list(dict.fromkeys(one.id for one in request.items)), user_id=request.user or None,
        session_id=request.session or None, explain=explain, context=told or None,
        policy=_policy(call, (Ranker,)), log_exposure=False,
    )  # fmt: skip
    found = await ranked(call, body)
    return answer({"took": took_ms(started), "items": [_shown(one) for one in found["items"]]})


async def recommend(call: Call) -> Response:
    """Recommend to a user, or what goes with items; to nobody what is popular."""
    started = time.perf_counter()
    call.service.charge(call.workspace, "queries_per_s", 1)
    request = read(await call.body(), RecommendRequest)
    body = Recommend(
        n=request.count, user_id=request.user or None, item_ids=request.items or None,
        policy=_policy(call, (Ranker, CandidateSource)),
    )  # fmt: skip
    found = await recommended(call, body)
    return answer({"took": took_ms(started), "items": [_shown(one) for one in found["items"]]})


def _policy(call: Call, kinds: tuple[Any, ...]) -> str | None:
    """Return the policy that a model's name means; None: whichever answers."""
    name = call.id("model")
    if name == DEFAULT or any(call.view.servers(kind, name) for kind in kinds):
        return None if name == DEFAULT else name
    names = {member.runtime.instance.name for kind in kinds for _, member in call.view.servers(kind)} | {DEFAULT}
    raise Problem("not-found", f"model {name[:64]!r} is not known here{nearest(name[:64], names)}")


def _flag(call: Call, name: str) -> bool:
    value = call.query.get(name, "false").lower()
    if value not in ("true", "false"):
        raise at(f"/{name}", "invalid-value", f"{name} must be true or false")
    return value == "true"


def _shown(one: dict[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {"item": one["item_id"], "score": one["score"]}
    if "explain" in one:
        told = one["explain"]
        whole = [{"name": name, "value": told[name]} for name in ("base_score", "correction")]
        shown["features"] = [*whole, *told["features"]]
    return shown


_ITEMS = {"took": 5, "items": [{"item": "lamp-9", "score": 0.81}]}
ENDPOINTS = [
    endpoint(
        "POST", "/rank/{model}", rank, "Put the items of a ranking in order", params=("explain",),
        body=RankingRequest, returns=_ITEMS, errors=(400, 404, 413),
        example={"id": "r-1", "timestamp": "1769860800000", "user": "u-1", "session": "s-1",
                 "items": [{"id": "lamp-9"}, {"id": "desk-2"}], "fields": [{"name": "page", "value": "home"}]},
    ),
    endpoint(
        "POST", "/recommend/{model}", recommend, "Recommend items", body=RecommendRequest, returns=_ITEMS,
        example={"count": 10, "user": "u-1", "items": ["lamp-9"]}, errors=(400, 404, 413),
    ),
]  # fmt: skip
