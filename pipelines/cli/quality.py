"""``policies quality``: how good scores were over time, and what the gate says, as a table and as a plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from streamfold.pipelines.cli.state import USAGE, CliError, Globals, console

HELP = """Show how good scores were over time, measured on the stream before they were learned, and the gate's rules.

\b
Examples:
  streamfold policies quality ensemble
  streamfold policies quality ensemble --slice new_user
  streamfold policies quality count_stack count_stack@1-5d0ef1c2 --plot both.svg     (live, and a shadow)
"""
_ROWS = 24


def register(group: typer.Typer) -> None:
    group.command("quality", help=HELP)(quality)


def quality(
    ctx: typer.Context,
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Policies: name, or name@version.")],
    slice_: Annotated[str, typer.Option("--slice", help="Of which examples, as new_user; default: all.")] = "",
    plot: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Draw the whole series.")] = None,
) -> None:
    options: Globals = ctx.obj
    if plot is not None and plot.suffix.lower() != ".svg":
        raise CliError(f"--plot {plot}: SVG is drawn, so name a file that ends in .svg", USAGE)
    params = {"slice": slice_} if slice_ else {}
    with options.client() as client:
        found = {name: client.get(f"/v1/policies/{quote(name, safe='@')}/quality", **params) for name in names}
    if plot is not None:
        from streamfold.pipelines.evaluate.plot import draw_series

        title = f"Measured on the stream: {', '.join(names)} ({next(iter(found.values()))['slice']})"
        try:
            plot.write_text(draw_series(title, {name: body["series"] for name, body in found.items()}), "utf-8")
        except OSError as error:
            raise CliError(f"--plot {plot}: {error.strerror or error}", USAGE) from error
        options.note(f"drawn: {plot}")
    if options.json:
        options.print("", found if len(names) > 1 else found[names[0]])
        return
    for name, body in found.items():
        _show(name, body)


def _show(name: str, body: Mapping[str, Any]) -> None:
    """Print the newest stretches of time, and what the gate says."""
    from rich.table import Table

    series = body["series"][-_ROWS:]
    columns = [key for key in (series[0] if series else ()) if any(point[key] is not None for point in series)]
    table = Table(*(key.replace("_", " ") for key in columns), title=f"{name} ({body['slice']})", box=None)
    for point in series:
        table.add_row(*(_told(point[key]) for key in columns))
    console().print(table if series else f"{name} ({body['slice']}): nothing was measured yet")
    for rule in body["gate"]:
        console().print(f"gate: {rule['rule']} {'passed' if rule['passed'] else 'failed'}: {rule['detail']}")


def _told(value: Any) -> str:
    if isinstance(value, str):
        return value[:16].replace("T", " ")
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
