"""Keys and workspaces: ``/v1/keys`` for a workspace's admins, ``/v1/workspaces`` for operators."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import msgspec
from starlette.responses import Response

from streamfold.core.events import check_text
from streamfold.core.ledger.abc import ApiKey, Quotas
from streamfold.pipelines.serve import examples
from streamfold.pipelines.serve.auth import OPERATOR, new_key
from streamfold.pipelines.serve.call import PAGE_PARAMS, Call, Endpoint, answer, page, rfc3339
from streamfold.pipelines.serve.problems import Problem, at

_WORKSPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

Limit = Annotated[float, msgspec.Meta(ge=0)]
Size = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class NewKey(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of ``POST /v1/keys``."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
    scopes: Annotated[tuple[Literal["ingest", "query", "admin", "operator"], ...], msgspec.Meta(min_length=1)]


class NewQuotas(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The quotas of a workspace; null or absent: no limit."""

    events_per_s: Limit | None = None
    bytes: Size | None = None
    queries_per_s: Limit | None = None


class NewWorkspace(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of ``PUT /v1/workspaces/{name}``."""

    quotas: NewQuotas = msgspec.field(default_factory=NewQuotas)


# -- keys ----------------------------------------------------------------------------------------
async def create_key(call: Call) -> Response:
    """Make a key of the caller's workspace; only its hash is kept, so this answer alone shows it."""
    body = await call.struct(NewKey)
    check_text(body.name, "/name")
    if OPERATOR in body.scopes and not call.principal.is_operator:
        raise Problem("scope-missing", f"only an operator can give the scope '{OPERATOR}'")
    kept, key = new_key(
        workspace=call.workspace,
        name=body.name,
        scopes=body.scopes,
        created_by=call.principal.name,
        now_us=call.service.node.context.clock.now_us(),
    )

    def work() -> None:
        call.service.access.ledger.add_api_key(kept, actor=call.principal.name)
        call.service.access.refresh()

    await call.ask(work)
    return answer({**_as_json(kept), "key": key}, 201, {"Cache-Control": "no-store"})


async def list_keys(call: Call) -> Response:
    """The workspace's keys, oldest first, revoked ones too; operators' keys are shown to operators only."""
    limit, first = call.limit(), call.cursor(int, 0)
    keys = [key for key in await call.ask(call.service.access.ledger.api_keys) if _may_manage(call, key)]
    items = [_as_json(key) for key in keys[max(first, 0) :][:limit]]
    return answer(page(items, first + limit if len(keys) > first + limit else None))


async def revoke_key(call: Call) -> Response:
    """Revoke a key for good: at once here, within a second in other processes."""
    key_id, access, now_us = call.id(), call.service.access, call.service.node.context.clock.now_us()

    def work() -> bool:
        if not any(key.key_id == key_id and _may_manage(call, key) for key in access.ledger.api_keys()):
            return False
        access.ledger.revoke_api_key(call.workspace, key_id, actor=call.principal.name, at_us=now_us)
        access.refresh()
        return True

    if not await call.ask(work):
        raise Problem("not-found", "no such key in this workspace (keys of the settings are removed there)")
    return Response(status_code=204)


def _may_manage(call: Call, key: ApiKey) -> bool:
    return key.workspace == call.workspace and (call.principal.is_operator or OPERATOR not in key.scopes)


def _as_json(key: ApiKey) -> dict[str, Any]:
    return {
        "key_id": key.key_id,
        "name": key.name,
        "workspace": key.workspace,
        "scopes": list(key.scopes),
        "created_at": rfc3339(key.created_us),
        "created_by": key.created_by,
        "revoked_at": rfc3339(key.revoked_us),
    }


# -- workspaces ----------------------------------------------------------------------------------
async def put_workspace(call: Call) -> Response:
    """Make a workspace, or change its quotas; those left out are no longer limited."""
    name = call.id("name")
    if not _WORKSPACE.fullmatch(name):
        raise at("/name", "invalid-value", "a workspace's name is 1 to 64 of A-Z a-z 0-9 . _ -, not first a sign")
    body = await call.struct(NewWorkspace, default=b"{}")
    quotas = Quotas(**msgspec.structs.asdict(body.quotas))
    access, now_us = call.service.access, call.service.node.context.clock.now_us()

    def work() -> None:
        access.ledger.set_quotas(name, quotas, actor=call.principal.name, at_us=now_us)
        access.refresh()

    await call.ask(work)
    return answer({"name": name, "quotas": msgspec.to_builtins(quotas)})


async def list_workspaces(call: Call) -> Response:
    """All workspaces with the quotas in force, by name."""
    limit, after = call.limit(), call.cursor(str, "")
    names = [name for name in await call.ask(call.service.access.ledger.workspaces) if name > after]
    limits = call.service.limits
    items = [{"name": name, "quotas": msgspec.to_builtins(limits.of(name))} for name in names[:limit]]
    return answer(page(items, names[limit - 1] if len(names) > limit else None))


ENDPOINTS = [
    Endpoint(
        method="POST", path="/v1/keys", run=create_key, view=False, scope="admin",
        summary="Make a key; it is shown once", body=NewKey, example={"name": "shop", "scopes": ["ingest"]},
        status=201, returns=examples.NEW_KEY,
        errors=(422,),
    ),
    Endpoint(
        method="GET", path="/v1/keys", run=list_keys, view=False, scope="admin", summary="The workspace's keys",
        params=PAGE_PARAMS, returns={"items": [examples.KEY], "next_cursor": None}, errors=(400, 422),
    ),
    Endpoint(
        method="DELETE", path="/v1/keys/{id}", run=revoke_key, view=False, scope="admin",
        summary="Revoke a key for good", status=204, errors=(404,),
    ),
    Endpoint(
        method="PUT", path="/v1/workspaces/{name}", run=put_workspace, view=False, scope=OPERATOR,
        summary="Make a workspace, or set its quotas", body=NewWorkspace, example=examples.WORKSPACE_BODY,
        returns={"name": "shop-7", **examples.WORKSPACE_BODY}, errors=(422,),
    ),
    Endpoint(
        method="GET", path="/v1/workspaces", run=list_workspaces, view=False, scope=OPERATOR, summary="All workspaces",
        params=PAGE_PARAMS, returns={"items": [{"name": "shop-7", **examples.WORKSPACE_BODY}], "next_cursor": None},
        errors=(400, 422),
    ),
]  # fmt: skip
