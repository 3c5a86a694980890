"""``init doctor migrate serve ingest worker demo``: what runs without a service, or is one."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streamfold.pipelines.cli.state import FAILED, CliError, Globals, console

if TYPE_CHECKING:
    from streamfold.core.settings import Settings

INIT_HELP = """Write a commented streamfold.toml and a sample.jsonl to start from; nothing is overwritten.

\b
Example:
  streamfold init shop && cd shop && streamfold serve
"""
DOCTOR_HELP = """Check versions, settings, plugins, migrations, broker, clock and disk; exit code 1 if one is bad."""
MIGRATE_HELP = """Bring the ledger's database to the newest migration; --check only says whether it is there.

\b
Examples:
  streamfold migrate
  streamfold migrate --check || echo "migrate before you start the new version"
"""
SERVE_HELP = """Serve the REST interface; with the embedded ledger (SQLite) this one process also folds.

\b
Examples:
  streamfold serve
  streamfold serve --port 9000 --data /var/lib/streamfold
"""
WORKER_HELP = """Prepare and fold in a worker of the distributed shape (PostgreSQL, a broker).

\b
Example:
  streamfold worker --role fold
"""


class Role(StrEnum):
    """What a worker does."""

    prepare = "prepare"
    fold = "fold"
    all = "all"


def register(app: typer.Typer) -> None:
    app.command("init", help=INIT_HELP)(init)
    app.command("doctor", help=DOCTOR_HELP)(doctor)
    app.command("migrate", help=MIGRATE_HELP)(migrate)
    app.command("serve", help=SERVE_HELP)(serve)
    app.command("ingest", help="Take events from the Kafka topics of the settings into the log.")(ingest)
    app.command("worker", help=WORKER_HELP)(worker)
    app.command("demo", help="Run through everything on real data, in about a minute; needs no server.")(demo)


def init(ctx: typer.Context, folder: Annotated[Path, typer.Argument(metavar="[DIR]")] = Path(".")) -> None:
    from importlib.resources import files

    options: Globals = ctx.obj
    names = ("streamfold.toml", "sample.jsonl")
    present = [name for name in names if (folder / name).exists()]
    if present:
        raise CliError(f"{folder / present[0]} is already there; nothing was written")
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(files("streamfold.pipelines.cli").joinpath(name).read_bytes())
    where = "" if folder == Path(".") else f"cd {folder} && "
    written = [str(folder / name) for name in names]
    text = f"wrote {' and '.join(written)}\nnext: {where}streamfold serve\nthen: streamfold send sample.jsonl --wait"
    options.print(text, {"written": written})


def doctor(ctx: typer.Context) -> None:
    from rich.table import Table
    from rich.text import Text

    from streamfold.pipelines.cli.checks import run_checks

    options: Globals = ctx.obj
    checks = run_checks(options)
    table = Table("check", "", "detail", box=None, header_style="dim")
    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "bad": "[red]bad[/]"}
    for check in checks:
        table.add_row(check.name, marks[check.verdict], Text(check.detail))
    options.render(table, {"checks": [{"name": c.name, "ok": c.verdict != "bad", "detail": c.detail} for c in checks]})
    if any(check.verdict == "bad" for check in checks):
        raise typer.Exit(FAILED)


def migrate(
    ctx: typer.Context,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; exit code 1 if behind.")] = False,
) -> None:
    from streamfold.core.ledger import check_migrations, open_ledger

    options: Globals = ctx.obj
    settings = options.settings()
    if check:
        current = check_migrations(settings.ledger_url)
        options.print("current" if current else "behind: run `streamfold migrate`", {"current": current})
        raise typer.Exit(0 if current else FAILED)
    settings.data.mkdir(parents=True, exist_ok=True)
    open_ledger(settings.ledger_url, migrate=True).close()
    options.print("current", {"current": True})


def serve(
    ctx: typer.Context,
    host: Annotated[str, typer.Option(help="Address to bind; other than loopback needs keys.")] = "",
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="0: any free port.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the embedded ledger.")] = None,
) -> None:
    from streamfold.pipelines import serve as service

    options: Globals = ctx.obj
    settings = options.settings(**({"data": data} if data is not None else {}))
    changed = {name: value for name, value in (("host", host or None), ("port", port)) if value is not None}
    settings = settings.model_copy(update={"serve": settings.serve.model_copy(update=changed)})
    service.run(settings)


MetricsPort = Annotated[
    int | None, typer.Option("--metrics-port", min=0, max=65535, help="Answer GET /metrics there; 0: any free port.")
]


def _settings(ctx: typer.Context, metrics_port: int | None) -> Settings:
    settings: Settings = ctx.obj.settings()
    if metrics_port is None:
        return settings
    return settings.model_copy(update={"metrics": settings.metrics.model_copy(update={"port": metrics_port})})


def ingest(ctx: typer.Context, metrics_port: MetricsPort = None) -> None:
    settings = _settings(ctx, metrics_port)
    if not settings.kafka.bootstrap or not settings.kafka.topics:
        raise CliError("no Kafka intake: set kafka.bootstrap and a table [kafka.topics.NAME] in streamfold.toml")
    from streamfold.pipelines import ingest as intake
    from streamfold.pipelines.serve.logs import configure_logs

    configure_logs(settings.log)
    intake.run(settings)


def worker(
    ctx: typer.Context,
    role: Annotated[Role, typer.Option(help="What it works on.")] = Role.all,
    concurrency: Annotated[int, typer.Option(min=1, help="Threads that prepare; folds scale by processes.")] = 1,
    metrics_port: MetricsPort = None,
) -> None:
    settings = _settings(ctx, metrics_port)
    if settings.is_embedded:
        raise CliError("the embedded ledger (SQLite) folds inside `streamfold serve`; a worker needs PostgreSQL")
    from streamfold.pipelines import worker as work
    from streamfold.pipelines.serve.logs import configure_logs

    configure_logs(settings.log)
    work.run(settings, role=role.value, concurrency=concurrency)


def demo(
    ctx: typer.Context,
    encoder: Annotated[str, typer.Option(help="minilm (trained) or hashing (at once, needs no weights).")] = "minilm",
) -> None:
    from streamfold.pipelines.demo import run

    del ctx
    code = run(encoder=encoder, screen=console())
    sys.stdout.flush()
    raise typer.Exit(code)
