"""Items and users as stored: what the catalogue knows of them."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.responses import Response

from streamfold.core.events import Subject
from streamfold.core.recommending import Catalogue, StoredItem, StoredUser
from streamfold.core.views import GroupView, MemberView, WorkspaceView
from streamfold.pipelines.serve import examples
from streamfold.pipelines.serve.call import PAGE_PARAMS, READ_PARAMS, Call, Endpoint, answer, page, rfc3339
from streamfold.pipelines.serve.problems import Problem
from streamfold.pipelines.serve.reading import wait_fresh

_Run = Callable[[Call], Awaitable[Response]]


def catalogue_of(call: Call, view: WorkspaceView) -> tuple[GroupView, MemberView]:
    """Return who knows the items and users."""
    named = call.query.get("policy")
    for group, member in view.servers(Catalogue, named):
        return group, member
    raise Problem("not-found", f"no policy {f'{named[:64]!r} ' if named else ''}here stores items and users: add "
                  "[policies.activity] to the settings")  # fmt: skip


def _one(kind: str, find: Callable[[Catalogue, str], Any]) -> _Run:
    async def run(call: Call) -> Response:
        view, id_ = call.view, call.id()
        group, _ = catalogue_of(call, view)
        await wait_fresh(call, view, [group])

        def read() -> dict[str, Any]:
            group, member = catalogue_of(call, view)
            with view.reading([group]) as cut:
                hidden = view.hidden(group, [Subject(kind, id_)])
                found = None if hidden else find(member.server, id_)
                if found is None:
                    extra = {"version": cut.as_json()}
                    raise Problem("not-found", f"no {kind} '{id_[:100]}' is stored", extra=extra)
                return _shown(kind, id_, found) | {"version": cut.as_json()}

        return answer(await call.ask(view.asked, read))

    return run


def _many(kind: str, find: Callable[[Catalogue, str, int], list[Any]]) -> _Run:
    async def run(call: Call) -> Response:
        view, limit, after = call.view, call.limit(), call.cursor(str, "")
        group, _ = catalogue_of(call, view)
        await wait_fresh(call, view, [group])

        def read() -> dict[str, Any]:
            group, member = catalogue_of(call, view)
            with view.reading([group]) as cut:
                found = find(member.server, after, limit)
                ids = [getattr(one, f"{kind}_id") for one in found]
                kept = [(id_, one) for id_, one in zip(ids, found, strict=True)
                        if not view.hidden(group, [Subject(kind, id_)])]  # fmt: skip
                items = [_shown(kind, id_, one) for id_, one in kept]
                return page(items, ids[-1] if len(found) == limit else None) | {"version": cut.as_json()}

        return answer(await call.ask(view.asked, read))

    return run


def _shown(kind: str, id_: str, one: StoredItem | StoredUser) -> dict[str, Any]:
    digest = hashlib.blake2b(msgspec.json.encode(one.fields, order="deterministic"), digest_size=8).hexdigest()
    return {
        f"{kind}_id": id_,
        **one.fields,
        "content_hash": digest,
        "event_id": one.event_id,
        "position": one.position,
        "updated_at": rfc3339(one.updated_us),
    }


def _endpoints(kind: str, one: _Run, many: _Run, shown: Any, listed: Any) -> list[Endpoint]:
    return [
        Endpoint(
            method="GET", path=f"/v1/{kind}s", run=many, tag="ask", summary=f"A page of stored {kind}s",
            params=(*PAGE_PARAMS, *READ_PARAMS, "policy"), returns=listed, errors=(400, 404, 422, 503),
        ),
        Endpoint(
            method="GET", path=f"/v1/{kind}s/{{id:path}}", run=one, tag="ask", summary=f"A stored {kind}",
            params=(*READ_PARAMS, "policy"), returns=shown, errors=(404, 422, 503),
        ),
    ]  # fmt: skip


ENDPOINTS = [
    *_endpoints(
        "item",
        _one("item", lambda catalogue, id_: catalogue.item(id_)),
        _many("item", lambda catalogue, after, limit: catalogue.item_page(after=after, limit=limit)),
        examples.ITEM,
        examples.ITEMS,
    ),
    *_endpoints(
        "user",
        _one("user", lambda catalogue, id_: catalogue.users([id_])[0]),
        _many("user", lambda catalogue, after, limit: catalogue.user_page(after=after, limit=limit)),
        examples.USER,
        examples.USERS,
    ),
]
