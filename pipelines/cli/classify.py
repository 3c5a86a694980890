"""``classify``: what a text is, by a head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from streamfold.pipelines.cli.ask import footing
from streamfold.pipelines.cli.state import Globals

HELP = """Classify a text by a head, as learned from label.observed events.

\b
Examples:
  streamfold classify topic "the new lens is out of focus"
  streamfold classify topic --document d-17 --explain
  streamfold classify topic "the new lens" --policy label_statistics@2     (a shadow)
"""


def register(app: typer.Typer) -> None:
    app.command("classify", help=HELP)(classify)


def classify(
    ctx: typer.Context,
    head: Annotated[str, typer.Argument(help="The head.")],
    text: Annotated[str, typer.Argument(help="The text; leave it out with --document, --item or --user.")] = "",
    document: Annotated[str, typer.Option(help="A stored document's id.")] = "",
    item: Annotated[str, typer.Option(help="An item's id.")] = "",
    user: Annotated[str, typer.Option(help="A user's id.")] = "",
    top_k: Annotated[int, typer.Option("-k", min=1, max=50, help="How many labels.")] = 5,
    policy: Annotated[str, typer.Option(help="Who classifies: name, or name@version for a shadow.")] = "",
    explain: Annotated[bool, typer.Option("--explain", help="Say what the answer rests on.")] = False,
    log: Annotated[bool, typer.Option("--log/--no-log", help="Log the answer as an exposure.")] = True,
) -> None:
    options: Globals = ctx.obj
    given = {"text": text, "document_id": document, "item_id": item, "user_id": user}
    target = {name: value for name, value in given.items() if value}
    body: dict[str, Any] = {"head": head, "targets": [target], "top_k": top_k, "explain": explain, "log_exposure": log}
    if policy:
        body["policy"] = policy
    with options.client() as client:
        answer = client.post("/v1/classify", body)
    [prediction] = answer["predictions"]
    options.render(_table(prediction), answer)
    if options.json:
        return
    parts = [footing(answer), f"unknown {prediction['unknown']:.2f}"]
    if why := prediction.get("explain"):
        parts += [f"{name.replace('_', ' ')} {value}" for name, value in why.items() if not isinstance(value, dict)]
    if answer.get("exposure_id"):
        parts.append(f"exposure {answer['exposure_id']}")
    options.note(" · ".join(parts))


def _table(prediction: Mapping[str, Any]) -> Any:
    from rich.table import Table

    weights = (prediction.get("explain") or {}).get("weights", {})
    table = Table("label", "score", "name", *(["labelled weight"] if weights else []), box=None, header_style="dim")
    for one in prediction["labels"]:
        row = [one["label"], f"{one['score']:.3f}", one.get("name", "")]
        table.add_row(*row, *([f"{weights[one['label']]:g}"] if one["label"] in weights else []))
    return table
