"""``query`` and ``trending``: what the views answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from streamfold.pipelines.cli.state import Globals, console

QUERY_HELP = """Ask a question; the answer is the passages that bear on it, each with its document.

\b
Examples:
  streamfold query "who directed Andrei Rublev?"
  streamfold query "refund policy" --top-k 3 --explain
  streamfold query "who was king then?" --as-of 2025-06-30T00:00:00Z
  streamfold query "who founded the works?" --generate
  streamfold query "refund policy" --min-position 1204 --json
"""
TRENDING_HELP = """List what is trending now.

\b
Examples:
  streamfold trending -n 5
  streamfold trending --category Drama --json
"""


def register(app: typer.Typer) -> None:
    app.command("query", help=QUERY_HELP)(query)
    app.command("trending", help=TRENDING_HELP)(trending)


def query(
    ctx: typer.Context,
    text: Annotated[str, typer.Argument(help="The question.")],
    mode: Annotated[str, typer.Option(help="How passages are found (default: the best one served).")] = "",
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="How many passages.")] = 5,
    explain: Annotated[bool, typer.Option("--explain", help="Show scores, sources and timings.")] = False,
    as_of: Annotated[str, typer.Option("--as-of", help="Only what was valid at this time (RFC 3339).")] = "",
    min_position: Annotated[int, typer.Option(min=0, help="Answer only when the log is folded so far.")] = 0,
    generate: Annotated[bool, typer.Option("--generate", "-g", help="Have the configured model answer.")] = False,
) -> None:
    options: Globals = ctx.obj
    body: dict[str, Any] = {"query": text, "top_k": top_k}
    if mode:
        body["mode"] = mode
    if as_of:
        body["as_of"] = as_of
    if generate:
        body["generate"] = True
    with options.client() as client:
        answer = client.post("/v1/query", body, **({"min_position": min_position} if min_position else {}))
    if options.json:
        options.print("", answer)
        return
    screen = console()
    if answer.get("answer"):
        screen.print(answer["answer"]["text"], markup=False, highlight=False)
    for number, chunk in enumerate(answer["chunks"], 1):
        screen.print(cited(number, chunk, explain=explain))
    if not answer["chunks"]:
        screen.print("no passage found")
    options.note(footing(answer, explain=explain))


def cited(number: int, chunk: Mapping[str, Any], *, explain: bool = False, width: int = 400) -> Any:
    """Show one passage with what it is cited by."""
    from rich.panel import Panel
    from rich.text import Text

    title = f"[{number}] {chunk.get('title') or chunk['document_id']}"
    text = " ".join(chunk["text"].split())
    subtitle = f"{chunk['document_id']} · characters {chunk.get('start')}–{chunk.get('end')}"
    if explain:
        subtitle += f" · score {chunk['score']:.4f} · {', '.join(chunk.get('sources') or ())}"
    shown = Text(text if len(text) <= width else text[: width - 1] + "…")
    if explain and chunk.get("path"):
        steps = " ".join(f"{step['document_id']} —“{step['name']}”→" for step in chunk["path"])
        shown.append(f"\nreached by {steps} {chunk['document_id']}", style="dim")
    return Panel(shown, title=Text(title), title_align="left", subtitle=Text(subtitle), subtitle_align="right")


def footing(answer: Mapping[str, Any], *, explain: bool = False) -> str:
    """Say how fresh an answer is."""
    version = answer.get("version") or {}
    parts = [f"position {version.get('position')}", f"age {version.get('age_ms', 0):.0f} ms"]
    if version.get("degraded"):
        parts.append(f"degraded: {', '.join(version['degraded'])}")
    if explain:
        parts += [f"{name} {ms:.1f} ms" for name, ms in (answer.get("timings_ms") or {}).items()]
        parts += [f"{name} {policy}" for name, policy in (version.get("policies") or {}).items()]
    return " · ".join(parts)


def trending(
    ctx: typer.Context,
    n: Annotated[int, typer.Option("-n", min=1, help="How many items.")] = 10,
    category: Annotated[str, typer.Option(help="Only items of this category.")] = "",
    half_life_s: Annotated[float | None, typer.Option(help="One of the configured half-lives.")] = None,
) -> None:
    options: Globals = ctx.obj
    with options.client() as client:
        answer = client.get("/v1/trending", n=n, category=category, half_life_s=half_life_s)
    options.render(ranking(answer["items"]), answer)
    if not options.json:
        options.note(footing(answer))


def ranking(items: list[Mapping[str, Any]], titles: Mapping[str, str] | None = None) -> Any:
    """Show items in order, by title where one is known."""
    from rich.table import Table

    table = Table("rank", "item", "title", "score", box=None, header_style="dim")
    for number, item in enumerate(items, 1):
        title = item.get("title") or (titles or {}).get(item["item_id"], "")
        table.add_row(str(item.get("rank", number)), item["item_id"], title, f"{item['score']:.3f}")
    return table
