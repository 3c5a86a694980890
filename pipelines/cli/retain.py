"""``retain``: let events leave the log now, as the settings say, or say what would."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from streamfold.pipelines.cli.state import Globals

HELP = """Let events leave the log now, as [retention] in the settings says; it runs by itself, too.

\b
Examples:
  streamfold retain --dry-run        # how many would leave, and what holds others back
  streamfold retain
"""


def register(app: typer.Typer) -> None:
    app.command("retain", help=HELP)(retain)


def retain(
    ctx: typer.Context,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing; say what would leave.")] = False,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for the end; 0: only start it.")] = 3600,
) -> None:
    options: Globals = ctx.obj
    with options.client() as client:
        job_id = str(client.post("/v1/retention", {"dry_run": dry_run})["job_id"])
        if not wait:
            options.print(f"retention: job {job_id} started", {"job_id": job_id, "state": "queued"})
            return
        job = client.wait_job(job_id, timeout_s=wait, progress=lambda done: None)
    options.print(_told(job["result"], dry_run), job)


def _told(report: Mapping[str, Any], dry_run: bool) -> str:
    """The report in words."""
    would = "would leave" if dry_run else "left"
    lines = [
        f"{report['expired']} events older than the retention {would} the log (position {report['expired_upto']})",
        f"{report['compacted']} events that a later one replaces {would} the log",
        f"{report['ids']} event ids past the de-duplication window {'would be' if dry_run else 'were'} forgotten",
    ]
    lines += [f"  archived in {name}" for name in report["files"]]
    lines += [f"  held back by {held['group']}, which is at position {held['position']}" for held in report["held_by"]]
    if report["waits_for"]:
        lines.append(f"  waits: {report['waits_for']}")
    return "\n".join(lines)
