"""Users and items: stored as events, answered once answers show them (or after a second).

What changes a part of something (PATCH, a category) reads it first, one request after the other for each of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from starlette.responses import Response

from streamfold.core.events import CloudEvent, Subject
from streamfold.pipelines.peers.gorse import (
    SOURCE,
    Item,
    ItemPatch,
    User,
    UserPatch,
    item_event,
    item_patch,
    shown_item,
    shown_user,
    user_event,
    user_patch,
)
from streamfold.pipelines.peers.rows import Made
from streamfold.pipelines.serve.call import Call, answer, page
from streamfold.pipelines.serve.compat.gorse.dialect import AFFECTED, affected, asks, endpoint, size
from streamfold.pipelines.serve.compat.intake import event, log_all, make, read
from streamfold.pipelines.serve.problems import Problem
from streamfold.pipelines.serve.things import catalogue_of

_SEEN_MS, _CHANGED_MS = 1000, 5000
"""How long an answer waits until it shows: what is written, and what the next change of the same thing reads."""
_Run = Callable[[Call], Awaitable[Response]]
R = TypeVar("R")
P = TypeVar("P", UserPatch, ItemPatch)
_changing: WeakValueDictionary[tuple[int, str, str, str], asyncio.Lock] = WeakValueDictionary()
SHOWN: Mapping[str, Callable[[str, Mapping[str, Any]], dict[str, Any]]] = {"user": shown_user, "item": shown_item}


# -- in ----------------------------------------------------------------------------------------------------------------
def _insert_one(kind: type[R], maker: Callable[[R], Made]) -> _Run:
    async def insert(call: Call) -> Response:
        call.service.admit(call.view)
        body = await call.json_body()
        await _log(call, lambda: upserts([read(body, kind)], maker))
        return affected(1)

    return insert


def _insert_many(kind: type[R], maker: Callable[[R], Made]) -> _Run:
    async def insert(call: Call) -> Response:
        call.service.admit(call.view)
        body = await call.json_body()
        return affected(await _log(call, lambda: upserts(_rows(body, kind), maker)))

    return insert


def _rows(body: bytes, kind: type[R]) -> list[R]:
    return read(body, list[kind])  # type: ignore[valid-type]  # a type made at run time


def upserts(rows: list[R], maker: Callable[[R], Made]) -> list[CloudEvent]:
    """Make an event of each row, which counts whatever was sent before: what is newest stands."""
    return [event(one, SOURCE, unique=True) for one in make(rows, maker)]


async def _log(call: Call, made: Callable[[], list[CloudEvent]], wait_ms: int = _SEEN_MS) -> int:
    logged = await log_all(call, made)
    await call.service.visible(call.view, logged.position, logged.types, wait_ms)
    return logged.count


def _delete(kind: str, verb: str) -> _Run:
    async def delete(call: Call) -> Response:
        call.service.admit(call.view)
        id_ = call.id()
        await _log(call, lambda: [event(Made(type=f"{kind}.{verb}", data={f"{kind}_id": id_}), SOURCE, unique=True)])
        return affected(1)

    return delete


def _patch(kind: str, struct: type[P], patch: Callable[[str, P, Mapping[str, Any]], Made]) -> _Run:
    async def change(call: Call) -> Response:
        call.service.admit(call.view)
        id_, row = call.id(), read(await call.json_body(), struct)
        async with _alone(call, kind, id_):
            fields = None if row.Labels is None else await stored(call, kind, id_)
            properties = (fields or {}).get("properties") or {}
            await _log(call, lambda: upserts([row], lambda one: patch(id_, one, properties)), _CHANGED_MS)
        return affected(1)

    return change


def _category(*, put: bool) -> _Run:
    async def change(call: Call) -> Response:
        call.service.admit(call.view)
        id_, category = call.id(), call.id("category")
        async with _alone(call, "item", id_):
            fields = await _known(call, "item", id_)
            kept = [one for one in fields.get("categories") or () if one != category]
            row = ItemPatch(Categories=[*kept, category] if put else kept)
            await _log(call, lambda: upserts([row], lambda one: item_patch(id_, one, {})), _CHANGED_MS)
        return affected(1)

    return change


def _alone(call: Call, kind: str, id_: str) -> asyncio.Lock:
    """Return the lock of whoever changes a part of this thing."""
    key = (id(call.service), call.workspace, kind, id_)
    lock = _changing.get(key)
    if lock is None:
        lock = _changing[key] = asyncio.Lock()
    return lock


# -- out ---------------------------------------------------------------------------------------------------------------
async def stored(call: Call, kind: str, id_: str) -> Mapping[str, Any] | None:
    """Return what is stored of a user or an item; None: nothing, or it was deleted."""
    view = call.view

    def find() -> Mapping[str, Any] | None:
        group, member = catalogue_of(call, view)
        with view.reading([group]):
            if view.hidden(group, [Subject(kind, id_)]):
                return None
            rows = member.server.items([id_]) if kind == "item" else member.server.users([id_])
            found: Mapping[str, Any] | None = None if rows[0] is None else rows[0].fields
            return found

    return await call.ask(view.asked, find)


async def _known(call: Call, kind: str, id_: str) -> Mapping[str, Any]:
    found = await stored(call, kind, id_)
    if found is None:
        raise Problem("not-found", f"{kind} not found: {id_[:100]}")
    return found


async def page_of(call: Call, kind: str, after: str, limit: int) -> tuple[list[dict[str, Any]], str | None]:
    """Return a page in order of id, and after which id the next one starts."""
    view = call.view

    def find() -> tuple[list[dict[str, Any]], str | None]:
        group, member = catalogue_of(call, view)
        with view.reading([group]):
            rows = getattr(member.server, f"{kind}_page")(after=after, limit=limit)
            named = [(getattr(row, f"{kind}_id"), row) for row in rows]
            kept = [SHOWN[kind](id_, row.fields) for id_, row in named if not view.hidden(group, [Subject(kind, id_)])]
            return kept, named[-1][0] if len(named) == limit else None

    return await call.ask(view.asked, find)


def _get(kind: str) -> _Run:
    async def get(call: Call) -> Response:
        asks(call)
        id_ = call.id()
        return answer(SHOWN[kind](id_, await _known(call, kind, id_)))

    return get


def _list(kind: str) -> _Run:
    async def listed(call: Call) -> Response:
        asks(call)
        after = call.cursor(str, "") if call.query.get("cursor") else ""
        rows, place = await page_of(call, kind, after, size(call))
        return answer({"Cursor": page([], place)["next_cursor"] or "", f"{kind.title()}s": rows})

    return listed


_USER = {"UserId": "u-1", "Labels": {"country": "NO"}, "Comment": ""}
_ITEM = {
    "ItemId": "lamp-9", "IsHidden": False, "Categories": ["light"], "Timestamp": "2026-01-31T12:00:00Z",
    "Labels": {"colour": "red"}, "Comment": "A red lamp",
}  # fmt: skip
_WRITE: Any = {"scope": "ingest", "returns": AFFECTED, "errors": (400, 413, 429)}


def _endpoints(kind: str, struct: Any, maker: Any, changed: Any, patch: Any, example: Any, verb: str) -> list[Any]:
    name = kind.title()
    told = {key: value for key, value in example.items() if key != f"{name}Id"}
    gone = "Erase a user" if verb == "erased" else "Delete an item"
    return [
        endpoint("POST", f"/{kind}", _insert_one(struct, maker), f"Store the {kind}", example=example, **_WRITE),
        endpoint("POST", f"/{kind}s", _insert_many(struct, maker), f"Store {kind}s", example=[example], **_WRITE),
        endpoint(
            "GET", f"/{kind}s", _list(kind), f"A page of {kind}s", params=("n", "cursor"),
            returns={"Cursor": "", f"{name}s": [example]}, errors=(400, 404),
        ),
        endpoint("GET", f"/{kind}/{{id:path}}", _get(kind), f"A stored {kind}", returns=example, errors=(404,)),
        endpoint(
            "PATCH", f"/{kind}/{{id:path}}", _patch(kind, changed, patch), f"Change fields of the {kind}",
            example=told, **_WRITE,
        ),
        endpoint("DELETE", f"/{kind}/{{id:path}}", _delete(kind, verb), gone, **_WRITE),
    ]  # fmt: skip


ENDPOINTS = [
    endpoint("PUT", "/item/{id:path}/category/{category}", _category(put=True), "Add a category to an item", **_WRITE),
    endpoint(
        "DELETE", "/item/{id:path}/category/{category}", _category(put=False), "Take a category from an item", **_WRITE
    ),
    *_endpoints("user", User, user_event, UserPatch, user_patch, _USER, "erased"),
    *_endpoints("item", Item, item_event, ItemPatch, item_patch, _ITEM, "deleted"),
]
