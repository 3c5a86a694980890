"""``dead-letters``: inputs and events that a policy could not take, to look at, retry or drop."""

from __future__ import annotations

import base64
import json
from typing import Annotated, Any

import typer

from streamfold.pipelines.cli.state import OK, USAGE, CliError, Globals

HELP = """Look at what was refused or skipped; retry it when the cause is gone, or drop it.

\b
Examples:
  streamfold dead-letters list --policy graph_index
  streamfold dead-letters show 12
  streamfold dead-letters retry 12
  streamfold dead-letters retry --policy graph_index --code event-error
  streamfold dead-letters drop 12
"""
JOB_TIMEOUT_S = 600.0

Id = Annotated[str, typer.Argument(metavar="ID", help="As `dead-letters list` shows it.")]


def register(app: typer.Typer) -> None:
    group = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode=None)
    group.command("list", help="List dead letters, newest state of each.")(list_)
    group.command("show", help="Show one with its payload.")(show)
    group.command("retry", help="Append one anew, or all of a policy or code.")(retry)
    group.command("drop", help="Forget one for good.")(drop)
    app.add_typer(group, name="dead-letters")


def list_(
    ctx: typer.Context,
    policy: Annotated[str, typer.Option(help="Only of this policy.")] = "",
    stage: Annotated[str, typer.Option(help="decode, validate, prepare or fold.")] = "",
    code: Annotated[str, typer.Option(help="Only with this code.")] = "",
    limit: Annotated[int, typer.Option(min=1)] = 50,
) -> None:
    from rich.table import Table
    from rich.text import Text

    options: Globals = ctx.obj
    with options.client() as client:
        items = list(client.pages("/v1/dead-letters", at_most=limit, policy=policy, stage=stage, code=code))
    table = Table("id", "stage", "policy", "position", "code", "attempts", "at", "detail", box=None)
    names = ("dead_letter_id", "stage", "policy", "position", "code", "attempts", "at", "detail")
    for item in items:
        table.add_row(*(Text("" if item.get(name) is None else str(item[name])) for name in names))
    options.render(table, {"items": items, "next_cursor": None})


def show(ctx: typer.Context, letter_id: Id) -> None:
    options: Globals = ctx.obj
    with options.client() as client:
        body = client.get(_path(letter_id))
    payload = base64.b64decode(body.get("payload_base64") or "")
    shown = {name: value for name, value in body.items() if name != "payload_base64"}
    text = json.dumps(shown, indent=2, ensure_ascii=False)
    options.print(f"{text}\n{payload.decode('utf-8', 'backslashreplace')}", body)


def retry(
    ctx: typer.Context,
    letter_id: Annotated[str, typer.Argument(metavar="[ID]", help="One letter; or choose by the options.")] = "",
    policy: Annotated[str, typer.Option(help="All of this policy.")] = "",
    code: Annotated[str, typer.Option(help="All with this code.")] = "",
) -> None:
    options: Globals = ctx.obj
    if bool(letter_id) == bool(policy or code):
        raise CliError("name either one ID, or --policy and/or --code", USAGE)
    with options.client() as client:
        if letter_id:
            answer = client.post(f"{_path(letter_id)}/retry")
            options.print(f"appended anew{_at(answer)}", answer)
        else:
            chosen = {name: value for name, value in (("policy", policy), ("code", code)) if value}
            job = client.wait_job(client.post("/v1/dead-letters/retry", chosen)["job_id"], timeout_s=JOB_TIMEOUT_S)
            options.print(f"done: {json.dumps(job.get('result'))}", job)


def drop(ctx: typer.Context, letter_id: Id) -> None:
    options: Globals = ctx.obj
    with options.client() as client:
        client.post(f"{_path(letter_id)}/drop")
    if not options.json:
        options.print(f"dropped {letter_id}")
    raise typer.Exit(OK)


def _path(letter_id: str) -> str:
    from streamfold.pipelines.cli.client import segment

    return f"/v1/dead-letters/{segment(letter_id)}"


def _at(answer: dict[str, Any]) -> str:
    return f" at position {answer['position']}" if answer.get("position") else ""
