"""``policies``: what is folded, and the operations on one instance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamfold.pipelines.cli import quality, versions, watch
from streamfold.pipelines.cli.state import FAILED, CliError, Globals, console

if TYPE_CHECKING:
    from streamfold.pipelines.cli.client import Client

HELP = """List the policies; add a version, judge it, split users, promote it, roll back; pause, verify, rebuild, skip.

\b
Examples:
  streamfold policies list
  streamfold policies verify trending
  streamfold policies pause graph_index --reason "disk is being moved"
  streamfold policies add trending --set half_lives_s=[3600] --reason "one hour, not one day"
  streamfold policies quality ensemble --plot ensemble.svg
  streamfold policies split trending --share 0.1 --reason "do they click more?"
  streamfold policies promote trending --reason "better on clicks"
"""
VERIFY_HELP = """Fold the log afresh beside the live policy and compare: equal, or what differs (exit code 1)."""
BY_HAND = "by hand: streamfold policies"

Name = Annotated[str, typer.Argument(metavar="NAME")]
Version = Annotated[str, typer.Option(help="Which version (default: the live one).")]
Reason = Annotated[str, typer.Option(help="Why; kept in the audit log.")]
Wait = Annotated[float, typer.Option(min=0, help="Seconds to wait for the end; 0: only start it.")]


def register(app: typer.Typer) -> None:
    group = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode=None)
    group.command("list", help="List instances with state and watermark.")(list_)
    group.command("pause", help="Stop folding; the log grows on.")(pause)
    group.command("resume", help="Go on folding, also after a failure.")(resume)
    group.command("verify", help=VERIFY_HELP)(verify)
    group.command("rebuild", help="Fold it afresh from the log while it serves, then take its place.")(rebuild)
    quality.register(group)
    versions.register(group, app)
    app.add_typer(group, name="policies")


def list_(ctx: typer.Context) -> None:
    from rich.table import Table

    options: Globals = ctx.obj
    with options.client() as client:
        body = client.get("/v1/policies")
    names = (
        "policy",
        "label",
        "slot",
        "share",
        "state",
        "watermark",
        "lag_events",
        "rebuild",
        "takeover",
        "last_error",
    )
    heads = {"label": "version"}
    table = Table(*(heads.get(name, name).replace("_", " ") for name in names), box=None, header_style="dim")
    for item in ({**item, "takeover": watch.takeover(item) or None} for item in body["items"]):
        table.add_row(*("" if item.get(name) is None else str(item[name]).replace("[", "\\[") for name in names))
    options.render(table, body)


def pause(ctx: typer.Context, name: Name, version: Version = "", reason: Reason = BY_HAND, wait: Wait = 60) -> None:
    _run(ctx, name, "pause", version, reason, wait, said="paused")


def resume(ctx: typer.Context, name: Name, version: Version = "", reason: Reason = BY_HAND, wait: Wait = 60) -> None:
    _run(ctx, name, "resume", version, reason, wait, said="running again")


def rebuild(ctx: typer.Context, name: Name, version: Version = "", reason: Reason = BY_HAND, wait: Wait = 3600) -> None:
    _run(ctx, name, "rebuild", version, reason, wait, said="rebuilt")


def verify(ctx: typer.Context, name: Name, version: Version = "", reason: Reason = BY_HAND, wait: Wait = 3600) -> None:
    options: Globals = ctx.obj
    job = _start(options, name, "verify", version, reason, wait)
    if job.get("state") != "done":
        options.print(f"verify: job {job['job_id']} started", job)
        return
    differences = unequal(job)
    options.print("\n".join(["verify: differs", *differences]) if differences else "verify: equal", job)
    if differences:
        raise typer.Exit(FAILED)


def unequal(job: Mapping[str, Any]) -> list[str]:
    """Read a finished verify job: what differs, nothing when equal. A result that says neither is an error."""
    result = job.get("result")
    if not isinstance(result, Mapping) or not isinstance(result.get("equal"), bool):
        raise CliError(f"the verify job ended without a verdict: {json.dumps(result)}", body=job)
    return [] if result["equal"] else [str(d) for d in result.get("differences") or ("no detail given",)]


def start(client: Any, name: str, action: str, *, reason: str, **more: str) -> str:
    """Ask for an operation on a policy; return the job's id."""
    from streamfold.pipelines.cli.client import segment

    body = {"reason": reason, **{key: value for key, value in more.items() if value}}
    return str(client.post(f"/v1/policies/{segment(name)}/{action}", body)["job_id"])


def _start(
    options: Globals, name: str, action: str, version: str, reason: str, wait: float, **more: str
) -> Mapping[str, Any]:
    with options.client() as client:
        job_id = start(client, name, action, reason=reason, version=version, **more)
        if not wait:
            return {"job_id": job_id, "state": "queued"}
        return follow(options, client, job_id, f"{action} {name}", wait)


def follow(options: Globals, client: Client, job_id: str, what: str, wait: float) -> Mapping[str, Any]:
    """Follow a job to its end, with a bar on stderr."""
    from rich.progress import Progress

    with Progress(console=console(stderr=True), disable=options.quiet, transient=True) as progress:
        task = progress.add_task(what, total=1.0)
        return client.wait_job(job_id, timeout_s=wait, progress=lambda done: progress.update(task, completed=done))


def _run(
    ctx: typer.Context, name: str, action: str, version: str, reason: str, wait: float, *, said: str, **more: str
) -> None:
    job = _start(ctx.obj, name, action, version, reason, wait, **more)
    done = job.get("state") == "done"
    ctx.obj.print(f"{name}: {said}" if done else f"{name}: {action}: job {job['job_id']} started", job)
