"""What is recommended, new, popular or alike, as lists of ids with scores."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from starlette.responses import Response

from streamfold.core.events import check_text
from streamfold.core.policy import CandidateRequest, CandidateSource
from streamfold.core.recommending import SimilarItems
from streamfold.core.views import WorkspaceView
from streamfold.pipelines.peers.gorse import Feedback, feedback_event
from streamfold.pipelines.peers.rows import action_of
from streamfold.pipelines.serve.auth import require
from streamfold.pipelines.serve.call import Call, answer
from streamfold.pipelines.serve.compat.gorse.dialect import MOST, asks, endpoint, known_actions, place, size
from streamfold.pipelines.serve.compat.gorse.feedback import events
from streamfold.pipelines.serve.compat.intake import log_all, make, read
from streamfold.pipelines.serve.problems import Problem, at
from streamfold.pipelines.serve.reading import enough
from streamfold.pipelines.serve.recommend import (
    Recommend,
    Served,
    Stack,
    catalogue_of,
    hidden_items,
    recommended,
    similar_items,
)

_ALIASES: Mapping[str, str] = {"latest": "newest", "popular": "trending"}
"""Gorse's names of lists that policies of ours make."""
_MOST = 10_000
_MOST_CATEGORIES = 16
_DURATION = re.compile(r"0|(?:\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h))+")
_NOT_LIKED = frozenset(("view", "dislike", "skip"))


async def recommend(call: Call) -> Response:
    """Recommend to a user what they have not met; ``write-back-type`` has it logged as feedback at once."""
    asks(call)
    written, user_id = call.query.get("write-back-type"), call.id()
    if not _DURATION.fullmatch(call.query.get("write-back-delay") or "0"):
        raise at("/write-back-delay", "invalid-value", "write-back-delay is no duration, as 10m or 1h30m")
    if written:
        require(call.principal, "ingest")
        call.service.admit(call.view)
        make(
            [Feedback(FeedbackType=written, UserId=user_id, ItemId="-")],
            lambda r: feedback_event(r, known_actions(call)),
        )
    found = await recommended(call, _body(call, user_id), offset=place(call))
    ids = [one["item_id"] for one in found["items"]]
    if written and ids:
        rows = [Feedback(FeedbackType=written, UserId=user_id, ItemId=one) for one in ids]
        await log_all(call, lambda: events(call, rows, accumulate=True))
    return answer(_scored(found["items"]) if call.request.headers.get("x-api-version") == "2" else ids)


async def personalised(call: Call) -> Response:
    """As ``recommend``, with scores and not logged: a list that another program goes on to use."""
    asks(call)
    body = _body(call, call.id())
    body.log_exposure = False
    return answer(_scored((await recommended(call, body, offset=place(call)))["items"]))


async def session(call: Call) -> Response:
    """Recommend what goes with what was liked just now, by whoever it was; nothing liked: what is popular."""
    asks(call)
    rows = read(await call.json_body(), list[Feedback])
    if len(rows) > _MOST:
        raise Problem("too-large", f"the session has {len(rows)} rows: at most {_MOST} are allowed")
    known = known_actions(call)
    times = [one.time for one in make(rows, lambda row: feedback_event(row, known))]
    for row in rows:
        check_text(row.ItemId, "/ItemId")
    newest = sorted(range(len(rows)), key=lambda i: (times[i] is not None, times[i], i), reverse=True)
    liked = [rows[i].ItemId for i in newest if action_of(rows[i].FeedbackType, known) not in _NOT_LIKED]
    body = _body(call, None)
    body.item_ids = list(dict.fromkeys(liked))[:MOST]
    body.exclude_item_ids = [row.ItemId for row in rows]
    return answer(_scored((await recommended(call, body, offset=place(call)))["items"]))


def _body(call: Call, user_id: str | None) -> Recommend:
    both = [{"field": "categories", "op": "eq", "value": one} for one in _categories(call)]
    seen = None if user_id is None else sorted(known_actions(call))
    return Recommend(
        user_id=user_id, n=size(call) + place(call), filter={"and": both} if both else None, exclude_seen=seen
    )


def _categories(call: Call) -> list[str]:
    """Return the categories asked for: an item must be in all of them."""
    found = [one for one in call.request.query_params.getlist("category") if one]
    if len(found) > _MOST_CATEGORIES:
        raise at("/category", "invalid-value", f"at most {_MOST_CATEGORIES} categories are allowed")
    return found


def _scored(items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{"Id": one["item_id"], "Score": one["score"]} for one in items]


# -- for everybody -----------------------------------------------------------------------------------------------------
async def latest(call: Call) -> Response:
    """The newest items; scores are seconds since 1970."""
    return await _listed(call, "latest")


async def non_personalized(call: Call) -> Response:
    """The list of one policy: ``latest``, ``popular``, or the name of a policy that lists items."""
    return await _listed(call, call.id("name"))


async def _listed(call: Call, name: str) -> Response:
    asks(call)
    view, n, offset, categories = call.view, size(call), place(call), _categories(call)

    def work() -> list[dict[str, Any]]:
        group, member = _source(view, name)
        stack = Stack(catalogue=catalogue_of(view), ranker=None, sources=[(group, member)])
        scale = 1e-6 if member.runtime.instance.use == "newest" else 1.0
        now_us = view.context.clock.now_us()

        def look(fetch: int) -> tuple[list[dict[str, Any]], bool]:
            rows = member.server.candidates(CandidateRequest(n=fetch, at_us=now_us))
            ids = [item_id for item_id, _ in rows]
            keep = ~hidden_items(view, stack, ids)
            if stack.catalogue is not None:
                keep &= stack.catalogue[1].server.listed(ids, now_us)
            keep &= _within(stack, ids, categories)
            shown = [{"Id": ids[i], "Score": float(rows[i][1]) * scale} for i in np.flatnonzero(keep).tolist()]
            return shown, len(rows) >= fetch

        with view.reading(stack.groups):
            return enough(n + offset, n + offset, look)[offset : offset + n]

    return answer(await call.ask(view.asked, work))


def _source(view: WorkspaceView, name: str) -> Served:
    use = _ALIASES.get(name, name)
    servers = view.servers(CandidateSource)
    found = [one for one in servers if one[1].runtime.instance.name == name]
    found += [one for one in servers if one[1].runtime.instance.use == use]
    if not found:
        raise Problem("not-found", f"no policy lists {name[:64]!r}: name one so, as [policies.{use[:64]}]")
    return found[0]


def _within(stack: Stack, item_ids: Sequence[str], categories: Sequence[str]) -> Any:
    """Which items are in all of these categories; ``(n,) bool``."""
    if not categories:
        return np.ones(len(item_ids), bool)
    rows = [None] * len(item_ids) if stack.catalogue is None else stack.catalogue[1].server.items(item_ids)
    told = [set() if row is None else set(row.fields.get("categories") or ()) for row in rows]
    return np.array([one.issuperset(categories) for one in told], bool)


# -- alike -------------------------------------------------------------------------------------------------------------
async def item_to_item(call: Call) -> Response:
    """Items like an item: by the policy named, or by all that list similar items; none for an item nobody knows."""
    asks(call)
    view, name, n, offset, categories = call.view, call.id("name"), size(call), place(call), _categories(call)
    policy = name if view.servers(SimilarItems, name) else None
    fetch = MOST if categories else min(n + offset, MOST)
    try:
        items = (await similar_items(call, call.id(), fetch, policy))["items"]
    except Problem as problem:
        if problem.code != "not-found" or not view.servers(SimilarItems):
            raise
        items = []

    def keep() -> list[dict[str, Any]]:
        stack = Stack(catalogue=catalogue_of(view), ranker=None)
        with view.reading(stack.groups):
            inside = _within(stack, [one["item_id"] for one in items], categories)
        return [items[i] for i in np.flatnonzero(inside).tolist()]

    kept = await call.ask(view.asked, keep) if categories else items
    return answer(_scored(kept[offset : offset + n]))


async def user_to_user(call: Call) -> Response:
    """Refused: no policy compares users."""
    raise Problem("not-found", "no policy here lists similar users")


_LIST: Any = {"params": ("n", "offset", "category"), "returns": [{"Id": "lamp-9", "Score": 0.81}], "errors": (400, 404)}
_ROWS = [{"FeedbackType": "like", "UserId": "", "ItemId": "lamp-9", "Timestamp": "2026-01-31T12:00:00Z"}]
ENDPOINTS = [
    endpoint(
        "GET", "/recommend/{id:path}", recommend, "Recommend items to a user", errors=(400, 404, 429),
        params=("n", "offset", "category", "write-back-type", "write-back-delay"), returns=["lamp-9"],
    ),
    endpoint("POST", "/session/recommend", session, "Recommend to a session", example=_ROWS, **_LIST),
    endpoint("GET", "/latest", latest, "The newest items", **_LIST),
    endpoint("GET", "/non-personalized/{name}", non_personalized, "The list of one policy", **_LIST),
    endpoint("GET", "/item-to-item/{name}/{id:path}", item_to_item, "Items like an item", **_LIST),
    endpoint("GET", "/user-to-user/{name}/{id:path}", user_to_user, "Refused: no policy compares users", **_LIST),
    endpoint("GET", "/collaborative-filtering/{id:path}", personalised, "Items for a user, not logged", **_LIST),
]  # fmt: skip
