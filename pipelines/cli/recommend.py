"""``recommend``, ``rank`` and ``similar``: what to show to whom."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from streamfold.pipelines.cli.ask import footing
from streamfold.pipelines.cli.state import Globals

RECOMMEND_HELP = """Recommend items to a user; what is shown is logged, so that feedback can join it.

\b
Examples:
  streamfold recommend u1
  streamfold recommend u1 -n 5 --explain
  streamfold recommend u1 --policy dwell@1 --explain     (a shadow, or one source alone)
  streamfold recommend --item lamp-9 --item desk-2       (to go with these)
  streamfold recommend u1 --exclude-seen purchase --diversity 0.3 --explore 0.1 --json
"""
RANK_HELP = """Put items in order for a user.

\b
Examples:
  streamfold rank u1 lamp-9 desk-2 chair-4
  streamfold rank u1 lamp-9 desk-2 --explain --json
"""
SIMILAR_HELP = """List items like an item.

\b
Examples:
  streamfold similar lamp-9 -n 5
"""
_FEATURES = 4
_FALLBACKS = {
    "popular": "nothing is known of whom it is for: what is popular stands in",
    "content": "for nobody in particular: what goes with the items that were given",
}


def register(app: typer.Typer) -> None:
    app.command("recommend", help=RECOMMEND_HELP)(recommend)
    app.command("rank", help=RANK_HELP)(rank)
    app.command("similar", help=SIMILAR_HELP)(similar)


def recommend(
    ctx: typer.Context,
    user: Annotated[str, typer.Argument(help="The user's id; leave it out with --item or --session.")] = "",
    n: Annotated[int, typer.Option("-n", min=1, help="How many items.")] = 10,
    policy: Annotated[str, typer.Option(help="A ranker or a source: name, or name@version for a shadow.")] = "",
    explain: Annotated[bool, typer.Option("--explain", help="Say what spoke for each item.")] = False,
    session: Annotated[str, typer.Option(help="A session's id, for a user who is not known.")] = "",
    item: Annotated[list[str] | None, typer.Option("--item", help="To go with this item (may come again).")] = None,
    exclude_seen: Annotated[
        list[str] | None, typer.Option("--exclude-seen", help="Nothing the user did this with, as purchase.")
    ] = None,
    diversity: Annotated[float, typer.Option(min=0.0, max=1.0, help="Unlikeness against score.")] = 0.0,
    explore: Annotated[float, typer.Option(min=0.0, max=1.0, help="How often a place is given by chance.")] = 0.0,
    log: Annotated[bool, typer.Option("--log/--no-log", help="Log what is shown as an exposure.")] = True,
) -> None:
    options: Globals = ctx.obj
    body: dict[str, Any] = {"n": n, "explain": explain, "diversity": diversity, "explore": explore}
    given = {
        "user_id": user, "session_id": session, "item_ids": item, "exclude_seen": exclude_seen, "policy": policy,
    }  # fmt: skip
    body |= {name: value for name, value in given.items() if value}
    if not log:
        body["log_exposure"] = False
    with options.client() as client:
        answer = client.post("/v1/recommend", body)
    _show(options, answer, explain=explain)


def rank(
    ctx: typer.Context,
    user: Annotated[str, typer.Argument(help="The user's id.")],
    items: Annotated[list[str], typer.Argument(help="The items' ids.")],
    policy: Annotated[str, typer.Option(help="A ranker: name, or name@version for a shadow.")] = "",
    explain: Annotated[bool, typer.Option("--explain", help="Say what spoke for each item.")] = False,
    log: Annotated[bool, typer.Option("--log/--no-log", help="Log what is shown as an exposure.")] = True,
) -> None:
    options: Globals = ctx.obj
    body: dict[str, Any] = {"user_id": user, "item_ids": items, "explain": explain, "log_exposure": log}
    if policy:
        body["policy"] = policy
    with options.client() as client:
        answer = client.post("/v1/rank", body)
    _show(options, answer, explain=explain)


def similar(
    ctx: typer.Context,
    item: Annotated[str, typer.Argument(help="The item's id.")],
    n: Annotated[int, typer.Option("-n", min=1, help="How many items.")] = 10,
) -> None:
    from urllib.parse import quote

    options: Globals = ctx.obj
    with options.client() as client:
        answer = client.get(f"/v1/similar/{quote(item, safe='')}", n=n)
    _show(options, answer, explain=False)


def _show(options: Globals, answer: Mapping[str, Any], *, explain: bool) -> None:
    options.render(_table(answer["items"], explain=explain), answer)
    if options.json:
        return
    parts = [footing(answer)]
    if answer.get("fallback"):
        parts.append(_FALLBACKS.get(answer["fallback"], f"fallback {answer['fallback']}"))
    if answer.get("exposure_id"):
        parts.append(f"exposure {answer['exposure_id']}")
    options.note(" · ".join(parts))


def _table(items: list[Mapping[str, Any]], *, explain: bool) -> Any:
    from rich.table import Table

    proposed = any(item.get("sources") for item in items)  # what was given to be ranked nobody proposed
    names = ["rank", "item", "score", *(["proposed by"] if proposed else [])]
    table = Table(*names, *(["base", "correction", "because of"] if explain else []), box=None, header_style="dim")
    for item in items:
        row = [str(item["rank"]), item["item_id"], f"{item['score']:.3f}"]
        row += [", ".join(item.get("sources") or ())] if proposed else []
        if explain and (why := item.get("explain")):
            shown = [f"{one['name']} {one['contribution']:+.2f}" for one in why["features"][:_FEATURES]]
            row += [f"{why['base_score'] or 0:.3f}", f"{why['correction']:+.3f}", ", ".join(shown)]
        table.add_row(*row)
    return table
