"""``new-plugin``: an installable plugin to start from, with a policy that passes all checks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from streamfold.pipelines.cli.state import USAGE, CliError, Globals

HELP = """Write an installable plugin to start from: policy, configuration, tests, README; nothing is overwritten.

\b
Example:
  streamfold new-plugin dwell && pip install -e dwell && streamfold check-plugin dwell
"""
_NAME = re.compile(r"[a-z][a-z0-9]*([_-][a-z0-9]+)*")
_LONGEST = 40


def register(app: typer.Typer) -> None:
    app.command("new-plugin", help=HELP)(new_plugin)


def new_plugin(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the plugin, its policy and its folder.")],
    folder: Annotated[Path | None, typer.Option("--dir", help="Where to write it (default: NAME here).")] = None,
) -> None:
    options: Globals = ctx.obj
    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        raise CliError(f"NAME {name!r}: use lower-case letters and digits, parts joined by - or _, as dwell", USAGE)
    from streamfold.pipelines.cli.plugin_template import filled
    from streamfold.plugins import builtin

    if name in {policy.name for policy in builtin.register_policies()}:
        raise CliError(f"NAME {name!r} is a built-in policy: choose another", USAGE)
    place = folder if folder is not None else Path(name)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise CliError(f"{place} is already there; nothing was written")
    written = []
    for path, text in filled(name):
        file = place / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
        written.append(str(file))
    lines = [*(f"wrote {file}" for file in written), f"next: pip install -e {place}"]
    lines += [f"then: streamfold check-plugin {place}", f"      streamfold dev {place} --events tail:1000"]
    options.print("\n".join(lines), {"written": written})
