"""``streamfold send``: a file, a folder of text or a pipe to the service, in batches, safe to repeat."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamfold.pipelines.cli.order import Order
from streamfold.pipelines.cli.state import SOME_REJECTED, TIMED_OUT, USAGE, CliError, Globals

if TYPE_CHECKING:
    from streamfold.pipelines.cli.client import Client
    from streamfold.pipelines.cli.rows import Line

BATCH_EVENTS = 500
BATCH_BYTES = 4 << 20
WAIT_MS = 30_000
_SHOWN = 20

HELP = """Send events from a file, a folder or a pipe; sending again is safe: known ids count as duplicates.

The input is JSON lines (CloudEvents, or plain rows with --type), a .json array, or CSV with --map. Of a folder each
text and Markdown file (.txt, .md, .markdown) is a document: its id is its path there, its title its first Markdown
heading, else its name.

\b
Examples:
  streamfold send sample.jsonl --wait
  streamfold send ./manuals --wait
  streamfold send items.jsonl --type item.upserted --source /shop
  streamfold send ratings.csv --map ratings.toml --dry-run
  zcat events.jsonl.gz | streamfold send - --rate 500

\b
A mapping (TOML) says which column becomes what:
  type = "interaction.observed"
  source = "/shop"
  id = "{user}-{item}-{ts}"
  time = { column = "ts", format = "s" }
  [data]
  user_id = "user"
  item_id = "item"
  value = { column = "stars", type = "float" }
  action = { value = "rating" }
A file without a header names its columns there, too:
  columns = ["user", "item", "stars", "ts"]
  separator = "::"
"""


@dataclass(slots=True)
class Tally:
    """The sum of all batches' answers. ``results`` holds the rejected, by the line (or the file) of the input."""

    accepted: int = 0
    duplicates: int = 0
    rejected: int = 0
    position: int = 0
    visible: bool = False
    results: list[dict[str, Any]] = field(default_factory=list)

    def add(self, answer: Any, lines: list[Line]) -> None:
        self.accepted += answer.get("accepted", 0)
        self.duplicates += answer.get("duplicates", 0)
        self.position = max(self.position, answer.get("position") or 0)
        self.visible = bool(answer.get("visible"))
        for result in answer.get("results") or ():
            if result.get("status") == "rejected":
                problem = result.get("problem") or {}
                self.reject(lines[result["index"]], problem, result.get("id"))

    def reject(self, line: Line, problem: dict[str, Any], event_id: str | None = None) -> None:
        self.rejected += 1
        result = {"index": line.number - 1, "id": event_id, "status": "rejected", "problem": problem}
        self.results.append(result | ({"file": line.name} if line.name else {}))

    def summary(self) -> str:
        return (
            f"accepted {self.accepted} duplicates {self.duplicates} rejected {self.rejected} position {self.position}"
        )

    def body(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def register(app: typer.Typer) -> None:
    app.command("send", help=HELP)(send)


def send(
    ctx: typer.Context,
    path: Annotated[str, typer.Argument(metavar="PATH|-", help="The file or folder, or - for stdin.")],
    type_: Annotated[str, typer.Option("--type", help="Event type of plain rows.")] = "",
    map_: Annotated[Path | None, typer.Option("--map", help="TOML file that maps columns to fields.")] = None,
    source: Annotated[str, typer.Option(help="Source of plain rows (default: /send/FILE).")] = "",
    rate: Annotated[float, typer.Option(min=0, help="At most so many events a second; 0: no limit.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check every line here; send nothing.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return when answers show the events (up to 30 s).")] = False,
    retry_for: Annotated[float, typer.Option(min=0, help="Seconds to retry while the service is away.")] = 60,
) -> None:
    options: Globals = ctx.obj
    lines, size = _opened(path, type_, map_, source)
    deliver(options, lines, size=size, rate=rate, dry_run=dry_run, wait=wait, retry_for_s=retry_for)


def deliver(
    options: Globals,
    lines: Iterator[Line],
    *,
    size: int | None,
    rate: float = 0,
    dry_run: bool = False,
    wait: bool = False,
    retry_for_s: float = 60,
) -> None:
    """Send (or only check) lines, and say what became of them; some rejected: exit code 3."""
    tally = Tally()
    if dry_run:
        _check(options, lines, tally)
    else:
        with options.client() as client:
            send_all(options, client, lines, tally, size=size, rate=rate, wait=wait, retry_for_s=retry_for_s)
    conclude(options, tally, wait=wait and not dry_run)


def conclude(options: Globals, tally: Tally, *, wait: bool) -> None:
    """Say what became of what was sent; ``wait``: it was to be visible."""
    for result in tally.results[:_SHOWN]:
        problem = result["problem"]
        pointer = next((f" {e['pointer']}" for e in problem.get("errors") or () if e.get("pointer")), "")
        where = result.get("file") or f"line {result['index'] + 1}"
        options.note(f"{where}: {problem.get('code')}{pointer}: {problem.get('detail')}")
    if len(tally.results) > _SHOWN:
        options.note(f"… and {len(tally.results) - _SHOWN} more (all with --json)")
    options.print(tally.summary(), tally.body())
    if tally.rejected:
        raise typer.Exit(SOME_REJECTED)
    if wait and not tally.visible:
        raise CliError("accepted, but not yet visible: see `streamfold status`", TIMED_OUT)


def _opened(path: str, type_: str, mapping: Path | None, source: str) -> tuple[Iterator[Line], int | None]:
    """Return the lines of a file or a pipe, or the files of a folder, and how many bytes there are, if known."""
    from streamfold.pipelines.cli.rows import read_lines

    if path == "-" or not Path(path).is_dir():
        size = Path(path).stat().st_size if path != "-" and Path(path).is_file() else None
        return read_lines(path, type_=type_, mapping=mapping, source=source), size
    from streamfold.pipelines.cli.folder import read_folder, text_files

    if type_ or mapping is not None:
        raise CliError(f"{path} is a folder: its files are documents, leave --type and --map out", USAGE)
    files = text_files(Path(path))
    lines = read_folder(files, source or f"/send/{Path(path).resolve().name}")
    return lines, sum(file.size for file in files)


def send_all(
    options: Globals,
    client: Client,
    lines: Iterator[Line],
    tally: Tally,
    *,
    size: int | None,
    rate: float,
    wait: bool,
    patient: bool = False,
    retry_for_s: float = 60,
) -> None:
    """Send lines in batches with a progress bar; ``patient``: wait for as long as the service gets on with them."""
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

    from streamfold.pipelines.cli.state import console

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    started = time.monotonic()
    sent = 0
    answered = False
    order = Order()
    with Progress(*columns, console=console(stderr=True), disable=options.quiet, transient=True) as progress:
        task = progress.add_task("sending", total=size)
        for batch in _batches(lines, tally):
            if rate:
                time.sleep(max(0.0, started + sent / rate - time.monotonic()))
            answer = client.send_lines(
                [line.event for line in batch],
                wait_ms=0,
                retry_for_s=retry_for_s,
                away_for_s=None if answered else 0,  # a wrong address is said at once
                on_retry=lambda reason: options.note(f"retrying: {reason}"),
            )
            answered = True
            tally.add(answer, batch)
            order.add(line.event for line in batch)
            sent += len(batch)
            done = f"{tally.accepted} accepted, {tally.duplicates} duplicates, {tally.rejected} rejected"
            progress.update(task, completed=batch[-1].bytes_read, description=done)
        if wait and answered:
            progress.update(task, description="waiting until answers show it")
            tally.visible = wait_visible(client, tally.position, WAIT_MS / 1000, patient=patient)
    if order.said:
        options.note(order.said)


def wait_visible(client: Client, position: int, timeout_s: float, *, patient: bool = False) -> bool:
    """Wait until the view of the answering process has passed ``position``.

    With ``patient`` the time counts from its last move on.
    """
    end = time.monotonic() + timeout_s
    pause_s, before = 0.05, -1
    while (here := client.get_patiently("/v1/status")["view"]["position"]) < position:
        if patient and here > before:
            end, before = time.monotonic() + timeout_s, here
        if time.monotonic() > end:
            return False
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 1.0)
    return True


def _batches(lines: Iterator[Line], tally: Tally) -> Iterator[list[Line]]:
    batch: list[Line] = []
    size = 0
    for line in lines:
        if line.problem:
            tally.reject(line, {"code": "malformed", "detail": line.problem})
            continue
        if batch and (len(batch) >= BATCH_EVENTS or size + len(line.event) > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(line)
        size += len(line.event)
    if batch:
        yield batch


def _check(options: Globals, lines: Iterator[Line], tally: Tally) -> None:
    """Accept every line as the service would, with the event types of the plugins that the settings enable."""
    from streamfold.core.clock import SystemClock
    from streamfold.core.errors import InvalidEvent
    from streamfold.core.events import Acceptor
    from streamfold.core.events.codecs import decode_structured
    from streamfold.core.registry import Registry

    settings = options.settings()
    acceptor = Acceptor(Registry(settings).event_types, SystemClock(), max_event_bytes=settings.limits.max_event_bytes)
    for batch in _batches(lines, tally):
        for line in batch:
            try:
                acceptor.accept(decode_structured(line.event))
                tally.accepted += 1
            except InvalidEvent as error:
                pointers = [{"pointer": error.pointer}]
                tally.reject(line, {"code": error.code, "detail": error.detail, "errors": pointers})
    options.note("dry run: nothing was sent")
