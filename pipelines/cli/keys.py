"""``keys``: API keys of a workspace, over REST; the first one straight into the ledger."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer

from streamfold.pipelines.cli.state import OK, CliError, Globals

HELP = """Make, list and revoke the API keys of a workspace.

\b
Examples:
  streamfold keys create ops --bootstrap          # the first key, without a service
  streamfold keys create shop --scope ingest
  streamfold keys list
  streamfold keys revoke 6f1c0a9be24d
"""
CREATE_HELP = """Make a key and print it: only its hash is kept, so it is never shown again.

\b
With --bootstrap it goes straight into the ledger of the settings, by default with the scope operator. That needs no
key and no service, but the ledger: with SQLite the service must be stopped.
"""


class Scope(StrEnum):
    """What a key may do."""

    ingest = "ingest"
    query = "query"
    admin = "admin"
    operator = "operator"


def register(app: typer.Typer) -> None:
    group = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode=None)
    group.command("create", help=CREATE_HELP)(create)
    group.command("list", help="List the keys, revoked ones too; never the keys themselves.")(list_)
    group.command("revoke", help="Revoke a key for good, on all replicas within a second.")(revoke)
    app.add_typer(group, name="keys")


def create(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Who will use it.")],
    scope: Annotated[
        list[Scope] | None, typer.Option(help="What it may do; repeat it for several (default: ingest and query).")
    ] = None,
    bootstrap: Annotated[bool, typer.Option("--bootstrap", help="Write to the ledger directly.")] = False,
) -> None:
    options: Globals = ctx.obj
    scopes = [one.value for one in scope or ([Scope.operator] if bootstrap else [Scope.ingest, Scope.query])]
    if bootstrap:
        body = _bootstrap(options, name, scopes)
    else:
        with options.client() as client:
            body = client.post("/v1/keys", {"name": name, "scopes": scopes})
    options.note(
        f"key {body['key_id']} of workspace {body['workspace']}: {', '.join(body['scopes'])}. It is not shown again:"
    )
    options.print(body["key"], body)


def _bootstrap(options: Globals, name: str, scopes: list[str]) -> dict[str, Any]:
    from streamfold.core.clock import SystemClock
    from streamfold.core.errors import LedgerBusy
    from streamfold.core.ledger import open_ledger
    from streamfold.pipelines.serve.auth import LOCAL, new_key

    settings = options.settings()
    settings.data.mkdir(parents=True, exist_ok=True)
    workspace = options.workspace or LOCAL.workspace
    kept, key = new_key(
        workspace=workspace, name=name, scopes=scopes, created_by="bootstrap", now_us=SystemClock().now_us()
    )
    try:
        ledger = open_ledger(settings.ledger_url)
    except LedgerBusy as error:
        raise CliError(f"{error}; stop the service first, or make the key through it, without --bootstrap") from error
    try:
        ledger.add_api_key(kept, actor="bootstrap")
    finally:
        ledger.close()
    return {"key_id": kept.key_id, "workspace": workspace, "name": name, "scopes": list(kept.scopes), "key": key}


def list_(ctx: typer.Context) -> None:
    from rich.table import Table
    from rich.text import Text

    options: Globals = ctx.obj
    with options.client() as client:
        items = list(client.pages("/v1/keys", at_most=10_000))
    table = Table("key id", "name", "scopes", "created at", "created by", "revoked at", box=None)
    for item in items:
        shown = item | {"scopes": ", ".join(item["scopes"])}
        names = ("key_id", "name", "scopes", "created_at", "created_by", "revoked_at")
        table.add_row(*(Text(str(shown[name] or "")) for name in names))
    options.render(table, {"items": items, "next_cursor": None})


def revoke(ctx: typer.Context, key_id: Annotated[str, typer.Argument(metavar="ID")]) -> None:
    from streamfold.pipelines.cli.client import segment

    options: Globals = ctx.obj
    with options.client() as client:
        client.delete(f"/v1/keys/{segment(key_id)}")
    if not options.json:
        options.print(f"revoked {key_id}")
    raise typer.Exit(OK)
