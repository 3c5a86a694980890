"""The command ``streamfold``: one module per family of commands, each a thin layer over REST or over core.

- :mod:`~streamfold.pipelines.cli.state`: global options, exit codes, errors, what goes to stdout and stderr
- :mod:`~streamfold.pipelines.cli.client`: the HTTP client, with the contract's errors and retries
- :mod:`~streamfold.pipelines.cli.local`: ``init doctor migrate serve ingest worker demo`` (no service needed)
- :mod:`~streamfold.pipelines.cli.send`, with :mod:`~streamfold.pipelines.cli.rows` and
  :mod:`~streamfold.pipelines.cli.folder`: files to events to the service
- :mod:`~streamfold.pipelines.cli.ask`: ``query trending``; :mod:`~streamfold.pipelines.cli.recommend`: ``recommend
  rank similar``; :mod:`~streamfold.pipelines.cli.classify`: ``classify``
- :mod:`~streamfold.pipelines.cli.watch`: ``status trace tail plugins``
- :mod:`~streamfold.pipelines.cli.size`: ``size``; :mod:`~streamfold.pipelines.cli.evaluate`: ``evaluate``
- :mod:`~streamfold.pipelines.cli.new_plugin`, :mod:`~streamfold.pipelines.cli.check_plugin`,
  :mod:`~streamfold.pipelines.cli.dev`: writing a plugin
- :mod:`~streamfold.pipelines.cli.erase`: ``erase``; :mod:`~streamfold.pipelines.cli.backup`: ``backup restore``;
  :mod:`~streamfold.pipelines.cli.retain`: ``retain``
- :mod:`~streamfold.pipelines.cli.export`: ``export``; :mod:`~streamfold.pipelines.cli.imports`: ``import``
- :mod:`~streamfold.pipelines.cli.letters`: ``dead-letters``; :mod:`~streamfold.pipelines.cli.policies`: ``policies``,
  :mod:`~streamfold.pipelines.cli.versions`: its versions, ``audit``
- :mod:`~streamfold.pipelines.cli.keys`: ``keys``

Everything heavy is imported inside the command that needs it, so that ``--help`` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from streamfold.pipelines.cli import (
    ask,
    backup,
    check_plugin,
    classify,
    dev,
    erase,
    evaluate,
    export,
    imports,
    keys,
    letters,
    local,
    new_plugin,
    policies,
    recommend,
    retain,
    send,
    size,
    watch,
)
from streamfold.pipelines.cli.state import EXIT_CODES, FAILED, CliError, Globals, hoist_globals, report_error

__all__ = ["app", "main"]

app = typer.Typer(
    name="streamfold",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Fold event streams into a fresh index, a fresh memory and fresh models.",
    epilog=(
        "Start here:  streamfold demo\n\n"
        "Or by hand:  streamfold init shop && cd shop && streamfold serve\n\n"
        "             streamfold send sample.jsonl --wait\n\n"
        '             streamfold query "what changes the state of a policy?"\n\n'
        f"Exit codes:  {EXIT_CODES}. stdout holds the result, stderr the progress."
    ),
)


@app.callback()
def _globals(
    ctx: typer.Context,
    config: Annotated[Path | None, typer.Option(help="Settings file (default: streamfold.toml here).")] = None,
    url: Annotated[str, typer.Option(envvar="STREAMFOLD_URL", help="The service (default: from the settings).")] = "",
    workspace: Annotated[str, typer.Option(envvar="STREAMFOLD_WORKSPACE", help="For an operator's key.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the REST body.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on stderr.")] = False,
) -> None:
    ctx.obj = Globals(config=config, url=url, workspace=workspace, json=as_json, quiet=quiet)


for _module in (
    local,
    send,
    ask,
    recommend,
    classify,
    watch,
    letters,
    policies,
    keys,
    erase,
    backup,
    retain,
    export,
    imports,
    size,
    evaluate,
    new_plugin,
    check_plugin,
    dev,
):
    _module.register(app)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; global options may stand before or after the command."""
    arguments = hoist_globals(sys.argv[1:] if argv is None else list(argv))
    try:
        app(arguments, prog_name="streamfold")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else FAILED if stop.code else 0
    except CliError as error:
        return report_error(error, as_json="--json" in arguments)
    except BrokenPipeError:  # `streamfold tail | head`: the reader has seen enough
        sys.stderr.close()
        return 0
    except Exception as error:
        from streamfold.core.errors import StreamfoldError

        if isinstance(error, StreamfoldError):
            return report_error(CliError(str(error)), as_json=False)
        raise
    return 0
