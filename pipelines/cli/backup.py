"""``backup`` (by a running service) and ``restore`` (without one)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from streamfold.pipelines.cli.state import Globals, console

BACKUP_HELP = """Back up the ledger into a new folder on the service's host, while it serves.

\b
Examples:
  streamfold backup /var/backups/streamfold/2026-01-31
  streamfold backup nightly-1        # below "backups" in the data folder
"""
RESTORE_HELP = """Restore a backup into the settings' ledger, which must not be there yet; no service may run.

Policies fold afresh from the restored log; Kafka intakes go on at the ledger's offsets.

\b
Example:
  streamfold restore /var/backups/streamfold/2026-01-31
"""


def register(app: typer.Typer) -> None:
    app.command("backup", help=BACKUP_HELP)(backup)
    app.command("restore", help=RESTORE_HELP)(restore)


def backup(
    ctx: typer.Context,
    folder: Annotated[str, typer.Argument(metavar="DIR")],
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for the end; 0: only start it.")] = 3600,
) -> None:
    from rich.progress import Progress

    options: Globals = ctx.obj
    with options.client() as client:
        job_id = str(client.post("/v1/backups", {"target": folder})["job_id"])
        if not wait:
            options.print(f"backup: job {job_id} started", {"job_id": job_id, "state": "queued"})
            return
        with Progress(console=console(stderr=True), disable=options.quiet, transient=True) as progress:
            task = progress.add_task("backup", total=1.0)
            job = client.wait_job(job_id, timeout_s=wait, progress=lambda done: progress.update(task, completed=done))
    result = job["result"]
    options.print(f"backup: {result['bytes']} bytes in {result['target']}", job)


def restore(ctx: typer.Context, folder: Annotated[Path, typer.Argument(metavar="DIR")]) -> None:
    from streamfold.core.ledger import restore_ledger

    options: Globals = ctx.obj
    settings = options.settings()
    done = restore_ledger(folder, settings.ledger_url, archive_root=Path(settings.archive_root))
    at = ", ".join(f"{workspace} at {position}" for workspace, position in done["positions"].items())
    options.print(f"restored the ledger of {done['made_at']}: {at}", done)
