"""``check-plugin``: the conformance checks of ``streamfold.core.testing`` on a plugin's policies, from a shell."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamfold.pipelines.cli.state import FAILED, USAGE, CliError, Globals

if TYPE_CHECKING:
    from streamfold.core.testing import Result

HELP = """Check that a plugin's policies keep the contract; exit code 1 if one does not.

The plugin need not be installed: give its folder, its file, or the name of an installed one.

\b
Examples:
  streamfold check-plugin dwell
  streamfold check-plugin . --only forget --only bounds
  streamfold check-plugin trending --json
"""
_COLOURS = {"passed": "green", "failed": "red", "not run": "yellow"}


def register(app: typer.Typer) -> None:
    app.command("check-plugin", help=HELP)(check_plugin)


def check_plugin(
    ctx: typer.Context,
    target: Annotated[str, typer.Argument(metavar="[PATH|NAME]", help="Folder, .py file or plugin.")] = ".",
    policy: Annotated[str, typer.Option(help="Only this policy of the plugin.")] = "",
    only: Annotated[list[str] | None, typer.Option("--only", help="Only this check; may be repeated.")] = None,
    events: Annotated[Path | None, typer.Option(help="Events (JSON lines) to fold beside the generated ones.")] = None,
) -> None:
    from streamfold.core.errors import nearest
    from streamfold.core.testing import CHECKS, run_checks
    from streamfold.pipelines.cli.plugin_source import QUICK_BACKENDS, find_plugin, is_builtin, policies_of

    options: Globals = ctx.obj
    for name in only or ():
        if name not in CHECKS:
            raise CliError(f"--only {name!r}: no such check{nearest(name, CHECKS)}", USAGE)
    plugin = find_plugin(target)
    module = plugin.load()
    found: list[tuple[Any, list[Result]]] = []
    for kind in policies_of(plugin, module, policy):
        options.note(f"checking {kind.name} …")
        results = run_checks(
            kind,
            only=only or (),
            plugins=(module,),
            backends=QUICK_BACKENDS if is_builtin(plugin) else None,
            events=read_events(events) if events is not None else (),
        )
        found.append((kind, results))
    options.render(table(found), body(plugin.name, found))
    failed = [result for _, results in found for result in results if result.state == "failed"]
    if failed and not options.json:
        for result in failed:
            options.print(f"\n{result.name}: {result.message}")
    if failed:
        raise typer.Exit(FAILED)


def read_events(path: Path) -> tuple[tuple[str, dict[str, Any]], ...]:
    """Read (type, data) of a file of CloudEvents."""
    from streamfold.pipelines.cli.rows import read_lines

    found = []
    for line in read_lines(str(path), type_="", mapping=None, source=""):
        if line.problem:
            raise CliError(f"{path}, line {line.number}: {line.problem}", USAGE)
        event = json.loads(line.event)
        found.append((str(event.get("type")), event.get("data") or {}))
    return tuple(found)


def table(found: list[tuple[Any, list[Result]]]) -> Any:
    """Draw the checks of each policy; the first line of each check's docstring says what it is for."""
    from rich.table import Table
    from rich.text import Text

    from streamfold.core.testing import CHECKS

    drawn = Table("policy", "check", "result", "what it checks", box=None, header_style="dim")
    for kind, results in found:
        for result in results:
            about = (CHECKS[result.name].__doc__ or "").strip().partition("\n")[0]
            state = Text(result.state, style=_COLOURS[result.state])
            drawn.add_row(kind.name, result.name, state, Text(about.replace("``", "")))
    return drawn


def body(name: str, found: list[tuple[Any, list[Result]]]) -> dict[str, Any]:
    """What ``--json`` prints."""
    policies = [
        {
            "policy": kind.name,
            "version": kind.version,
            "passed": all(result.state == "passed" for result in results),
            "checks": [dataclasses.asdict(result) for result in results],
        }
        for kind, results in found
    ]
    return {"plugin": name, "passed": all(one["passed"] for one in policies), "policies": policies}
