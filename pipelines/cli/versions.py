"""``policies add|split|skip|promote|rollback|retire`` and ``audit``: change what is served without stopping it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from streamfold.pipelines.cli.state import USAGE, CliError, Globals

ADD_HELP = """Fold a new instance of a policy beside what is live, from the log's start or from now on.

Its estimated cost is printed before anything is waited for. Promote it when it has caught up.

\b
Examples:
  streamfold policies add trending --set half_lives_s=[3600] --rate 2000 --reason "one hour, not one day"
  streamfold policies add dwell --from now
"""
SPLIT_HELP = """Have a shadow answer a share of the users, beside what is live (a live A/B); --share 0 ends it.

Who they are is decided by a salted hash of the user. What they did with it stands in the policy's quality.

\b
Examples:
  streamfold policies split ensemble --share 0.1 --reason "does it sell more?"
  streamfold policies split ensemble --share 0
"""
AUDIT_HELP = """List who changed what, when and why, newest first."""
BY_HAND = "by hand: streamfold policies"

Name = Annotated[str, typer.Argument(metavar="NAME")]
Version = Annotated[str, typer.Option(help="Which version, as `policies list` shows it.")]
Reason = Annotated[str, typer.Option(help="Why; kept in the audit log.")]


def register(group: typer.Typer, app: typer.Typer) -> None:
    group.command("add", help=ADD_HELP)(add)
    group.command("promote", help="Make a shadow live, everywhere at one position.")(promote)
    group.command("rollback", help="Make the version that was demoted last live again.")(rollback)
    group.command("split", help=SPLIT_HELP)(split)
    group.command("retire", help="Fold and serve a version no more.")(retire)
    group.command("skip", help="Leave out the one event at which a policy is halted.")(skip)
    app.command("audit", help=AUDIT_HELP)(audit)


def add(
    ctx: typer.Context,
    name: Name,
    use: Annotated[str, typer.Option(help="The policy, where the instance's name is another.")] = "",
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=JSON", help="A field of its config.")] = None,
    slot: Annotated[str, typer.Option(help="shadow, or live where nothing of the name is.")] = "shadow",
    from_: Annotated[str, typer.Option("--from", help="start: fold the whole log; now: what comes.")] = "start",
    rate: Annotated[int | None, typer.Option(min=1, help="Most events per second.")] = None,
    reason: Reason = BY_HAND,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait until it has caught up.")] = 0,
) -> None:
    from streamfold.pipelines.cli.policies import follow

    options: Globals = ctx.obj
    given = {"use": use, "rate": rate, "config": config(set_ or ())}
    body = {"name": name, "slot": slot, "from": from_, "reason": reason} | {k: v for k, v in given.items() if v}
    with options.client() as client:
        added = client.post("/v1/policies", body)
        if not options.json:
            options.print(cost(added["estimate"]))
        if wait:
            job = follow(options, client, added["job_id"], f"backfill {name}", wait)
            options.print(f"{added['policy']}: caught up", added | {"job": job})
            return
    options.print(f"{added['policy']}: {slot}, folding; follow it with `streamfold status --watch`", added)


def config(fields: Sequence[str]) -> dict[str, Any]:
    """Read ``key=value`` pairs; a value that is no JSON is a text."""
    values: dict[str, Any] = {}
    for field in fields:
        key, equals, value = field.partition("=")
        if not equals or not key:
            raise CliError(f"--set {field!r}: write KEY=VALUE, as half_lives_s=[3600]", USAGE)
        try:
            values[key] = json.loads(value)
        except ValueError:
            values[key] = value
    return values


def cost(estimate: Mapping[str, Any]) -> str:
    """Say what a backfill is expected to cost."""
    parts = [f"{estimate['events']:,} events to fold"]
    if estimate.get("seconds") is not None:
        parts.append(f"about {estimate['seconds']:,.0f} s at {estimate.get('events_per_s') or 0:,.0f} events/s")
    if estimate.get("state_bytes") is not None:
        parts.append(f"at most {estimate['state_bytes'] / 1e6:,.1f} MB of state")
    if estimate.get("llm_calls"):
        tokens = f"{estimate['llm_tokens_in']:,} + {estimate['llm_tokens_out']:,} tokens"
        price = f", about {estimate['llm_usd']:,.2f} USD" if estimate.get("llm_usd") else ""
        parts.append(f"{estimate['llm_calls']:,} calls of the language model ({tokens} in + out{price})")
    if estimate.get("note"):
        parts.append(str(estimate["note"]))
    return "estimated cost: " + ", ".join(parts)


def promote(
    ctx: typer.Context,
    name: Name,
    version: Version = "",
    reason: Reason = BY_HAND,
    force: Annotated[bool, typer.Option("--force", help="Past failed quality rules; never past lag.")] = False,
) -> None:
    _swap(ctx, name, "promote", {"version": version, "reason": reason, "force": force})


def rollback(ctx: typer.Context, name: Name, version: Version = "", reason: Reason = BY_HAND) -> None:
    _swap(ctx, name, "rollback", {"version": version, "reason": reason})


def split(
    ctx: typer.Context,
    name: Name,
    share: Annotated[float, typer.Option(help="Of the users, 0.001 to 0.999; 0 ends it.")],
    weighted: Annotated[
        bool, typer.Option(help="Each arm learns from what is shown as far as it shows such things itself.")
    ] = True,
    version: Version = "",
    reason: Reason = BY_HAND,
) -> None:
    done = _post(ctx.obj, name, "split", {"version": version, "reason": reason}, share=share, weighted=weighted)
    told = f"answers {share:.4g} of the users, experiment {done['experiment']}" if share else "answers nobody any more"
    ctx.obj.print(f"{done['group']}: {told}", done)


def retire(ctx: typer.Context, name: Name, version: Version = "", reason: Reason = BY_HAND) -> None:
    done = _post(ctx.obj, name, "retire", {"version": version, "reason": reason})
    ctx.obj.print(f"{done['group']}: retired", done)


def skip(
    ctx: typer.Context,
    name: Name,
    event_id: Annotated[str, typer.Argument(metavar="EVENT_ID")],
    version: Version = "",
    source: Annotated[str, typer.Option(help="Needed where two sources use the same id.")] = "",
    reason: Reason = BY_HAND,
) -> None:
    body = {"event_id": event_id, "version": version, "source": source, "reason": reason}
    done = _post(ctx.obj, name, "skip", body)
    ctx.obj.print(f"{done['group']}: skipped position {done['position']}", done)


def _swap(ctx: typer.Context, name: str, action: str, body: Mapping[str, Any]) -> None:
    done = _post(ctx.obj, name, action, body)
    before = f", in place of {', '.join(done['demoted'])}" if done["demoted"] else ""
    ctx.obj.print(f"{done['group']}: live from position {done['position']}{before}", done)


def _post(options: Globals, name: str, action: str, body: Mapping[str, Any], **always: Any) -> Any:
    from streamfold.pipelines.cli.client import segment

    with options.client() as client:
        given = {key: value for key, value in body.items() if value} | always
        return client.post(f"/v1/policies/{segment(name)}/{action}", given)


def audit(
    ctx: typer.Context,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many.")] = 50,
) -> None:
    from rich.table import Table

    options: Globals = ctx.obj
    with options.client() as client:
        items = list(client.pages("/v1/audit", at_most=limit))
    table = Table("at", "actor", "action", "target", "reason", box=None, header_style="dim")
    for item in items:
        names = ("at", "actor", "action", "target", "reason")
        table.add_row(*(str(item.get(name) or "").replace("[", "\\[") for name in names))
    options.render(table, {"items": items, "next_cursor": None})
