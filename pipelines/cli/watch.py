"""``status``, ``trace``, ``tail`` and ``plugins``: what the service is doing, and what became of an event."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from streamfold.pipelines.cli.state import Globals, console, plain

STATUS_HELP = """Show positions, lag and failures of every policy.

\b
Examples:
  streamfold status --watch
  streamfold status --json | jq '.policies[] | select(.lag_events > 0)'
"""
TRACE_HELP = """Follow one event: where it is in the log, and what each policy did with it.

\b
Example:
  streamfold trace order-17-sku-3 --source /shop
"""
TAIL_HELP = """Print logged events, oldest first, and go on with new ones (Ctrl-C ends it).

\b
Examples:
  streamfold tail --type interaction.observed
  streamfold tail --from 1 --no-follow --json > events.jsonl
"""
_COLOURS = {"running": "green", "folded": "green", "failed": "red", "missing": "red", "skipped": "red"}
_TAIL_POLL_S = 0.5


def register(app: typer.Typer) -> None:
    app.command("status", help=STATUS_HELP)(status)
    app.command("trace", help=TRACE_HELP)(trace)
    app.command("tail", help=TAIL_HELP)(tail)
    app.command("plugins", help="List policies, backends and event types of the service.")(plugins)


def status(
    ctx: typer.Context,
    watch: Annotated[bool, typer.Option("--watch", help="Renew every second until Ctrl-C.")] = False,
) -> None:
    options: Globals = ctx.obj
    with options.client() as client:
        if not watch:
            body = client.get("/v1/status")
            options.render(status_table(body), body)
            return
        if options.json:
            while True:
                options.print("", client.get("/v1/status"))
                time.sleep(1)
        from rich.live import Live

        with Live(console=console(), refresh_per_second=4) as live:
            while True:
                live.update(status_table(client.get("/v1/status")))
                time.sleep(1)


def status_table(body: Mapping[str, Any]) -> Any:
    """Draw the status: a line of totals, the intakes, the policies."""
    from rich.console import Group
    from rich.table import Table

    view = body.get("view") or {}
    total = (
        f"position [bold]{body.get('position')}[/]   visible {view.get('position')} "
        f"(lag {view.get('lag_ms') or 0:.0f} ms)   dead letters {body.get('dead_letters', 0)}"
    )
    policies = Table("policy", "version", "slot", "state", "watermark", "lag", "bytes", "skips", "last error", box=None)
    for row in body.get("policies") or ():
        state = str(row.get("state"))
        policies.add_row(
            str(row.get("policy")),
            str(row.get("version")),
            str(row.get("slot")),
            f"[{_COLOURS.get(state, 'yellow')}]{state}[/]" + (f", held: {held}" if (held := takeover(row)) else ""),
            str(row.get("watermark")),
            f"{row.get('lag_events', 0)} events, {row.get('lag_s') or 0:.1f} s",
            f"{row.get('state_bytes') or 0:,}",
            str(row.get("skips", 0)),
            plain(row.get("last_error") or ""),
        )
    intakes = Table("intake", "kind", "rate/s", "lag", "duplicates", "rejected", box=None)
    for row in body.get("intakes") or ():
        cells = (row.get("name"), row.get("kind"), f"{row.get('rate_per_s') or 0:.0f}", _lag(row))
        intakes.add_row(*(str(c) for c in (*cells, row.get("duplicates"), row.get("rejected"))))
    return Group(total, *([intakes] if body.get("intakes") else []), policies)


def _lag(row: Mapping[str, Any]) -> str:
    """How far an intake is behind, as far as anybody knows."""
    if (lag := row.get("lag_events")) is not None:
        return str(lag)
    return f"? since {row['lag_at']}" if row.get("lag_at") else "?" if row.get("kind") == "kafka" else ""


def takeover(row: Mapping[str, Any]) -> str:
    """Say what keeps a changed declaration from taking over by itself; nothing where nothing does."""
    held = row.get("takeover") or {}
    failed = ", ".join(dict.fromkeys(str(rule.get("rule")) for rule in held.get("rules") or ()))
    return f"{held.get('verdict')} ({failed})" if held else ""


def trace(
    ctx: typer.Context,
    event_id: Annotated[str, typer.Argument(metavar="EVENT_ID")],
    source: Annotated[str, typer.Option(help="Needed where two sources use the same id.")] = "",
) -> None:
    from streamfold.pipelines.cli.client import segment

    options: Globals = ctx.obj
    with options.client() as client:
        body = client.get(f"/v1/events/{segment(event_id)}", source=source)
    options.render(trace_table(body), body)


def trace_table(body: Mapping[str, Any]) -> Any:
    """Draw what became of one event."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    event = body["event"] or {"type": body.get("type"), "source": "", "id": "(erased)"}
    head = f"{event['type']}  {event['source']} {event['id']}\nlogged at position {body['position']}"
    head += f", {body.get('recordedtime')}" + (f", a retry of {body['retry_of']}" if body.get("retry_of") else "")
    table = Table("policy", "slot", "state", "at", "error", "dead letter", box=None)
    for row in body["policies"]:
        state = row["state"]
        dead_letter = str(row.get("dead_letter_id") or "")
        problem = row.get("error") or ""
        error = plain(": ".join(map(str, problem.values())) if isinstance(problem, Mapping) else str(problem))
        name, slot, at = str(row["policy"]), str(row.get("slot")), str(row.get("at") or "")
        table.add_row(name, slot, f"[{_COLOURS.get(state, 'yellow')}]{state}[/]", at, error, dead_letter)
    steps = Table("step", "policy", "at", box=None, header_style="dim")
    for step in body.get("steps") or ():
        steps.add_row(str(step["step"]), str(step.get("policy") or ""), str(step.get("at") or ""))
    return Group(Text(head), table, *([steps] if body.get("steps") else []))


def tail(
    ctx: typer.Context,
    type_: Annotated[str, typer.Option("--type", help="Only events of this type.")] = "",
    from_: Annotated[int | None, typer.Option("--from", help="First position (default: what comes next).")] = None,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Go on with new events.")] = True,
) -> None:
    options: Globals = ctx.obj
    with options.client() as client:
        if from_ is None:
            from_ = client.get("/v1/status")["position"] + 1 if follow else 1
        while True:
            page = client.get("/v1/events", from_=from_, type=type_, limit=500)
            for item in page["items"]:
                if item["position"] >= from_:
                    from_ = item["position"] + 1
                    options.print(event_line(item), item)
            if not page["items"] or not page.get("next_cursor"):
                if not follow:
                    return
                time.sleep(_TAIL_POLL_S)


def event_line(item: Mapping[str, Any]) -> str:
    """Say one logged event in a line."""
    import json

    event = item.get("event")
    if event is None:  # erased, or of a plugin that is gone
        return f"{item['position']:>9}  {item.get('type', '-'):<22} {item.get('effect', '')}"
    data = json.dumps(event.get("data"), ensure_ascii=False)
    shown = data if len(data) <= 160 else data[:159] + "…"
    return f"{item['position']:>9}  {event['type']:<22} {event.get('subject') or '-'}  {event['id']}  {shown}"


def plugins(ctx: typer.Context) -> None:
    from rich.pretty import Pretty
    from rich.table import Table

    options: Globals = ctx.obj
    with options.client() as client:
        body = client.get("/v1/plugins")
    table = Table("what", "registered", box=None, header_style="dim")
    for what, registered in {"installed": body.pop("items", []), **body}.items() if not options.json else ():
        if what == "next_cursor":
            continue
        names = [_name(item) for item in registered] if isinstance(registered, list) else None
        table.add_row(what.replace("_", " "), "\n".join(names or ["none"]) if names is not None else Pretty(registered))
    options.render(table, body)


def _name(item: Any) -> str:
    """Say a registered thing in a line: its name first, then its other plain fields."""
    if not isinstance(item, Mapping):
        return plain(str(item))
    first = str(item.get("name") or item.get("policy") or "")
    others = (
        f"{k} {v}" for k, v in item.items() if k not in ("name", "policy") and isinstance(v, str | int) and v != ""
    )
    return plain("  ".join((first, *others)))
