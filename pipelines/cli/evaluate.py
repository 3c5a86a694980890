"""``streamfold evaluate``: rankers or heads on a file of events or on the log, test-then-train, beside baselines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamfold.pipelines.cli.state import SOME_REJECTED, USAGE, CliError, Globals, console, plain

if TYPE_CHECKING:
    from streamfold.core.settings import Settings
    from streamfold.pipelines.evaluate import Source

HELP = """Score rankers or heads on events that are over: each is asked before it learns, beside baselines.

The events come from files, as `send` takes them (CloudEvents, rows with --type, CSV with --map), or from the log; the
policies and their configuration from the settings. Nothing is written. Several --data are read as one stream, in order
of time; give --map and --type once for all of them or once for each, in the same order ("" for none).

\b
Examples:
  streamfold evaluate --data events.jsonl --policies ensemble
  streamfold evaluate --data items.jsonl --data ratings.csv --map "" --map ratings.toml --policies count_stack,ensemble
  streamfold evaluate --from 1 --policies ensemble --plot ensemble.svg
  streamfold evaluate --data events.jsonl --policies ensemble --json > report.json
  streamfold evaluate --from 1 --policies label_statistics,kalman_head,gradient_head

What the measures mean: docs/how-to/evaluate-a-ranker.md; of heads: docs/how-to/classify.md.
"""
_SHOWN = 5
_MOST_CLASSES = 20


def register(app: typer.Typer) -> None:
    app.command("evaluate", help=HELP)(evaluate)


def evaluate(
    ctx: typer.Context,
    policies: Annotated[str, typer.Option(metavar="A,B", help="The rankers to score, or the heads.")],
    data: Annotated[
        list[str] | None, typer.Option(metavar="FILE|-", help="Events; may be given several times.")
    ] = None,
    map_: Annotated[list[str] | None, typer.Option("--map", metavar="FILE", help="What the columns are.")] = None,
    type_: Annotated[list[str] | None, typer.Option("--type", help="Event type of plain rows.")] = None,
    first: Annotated[int | None, typer.Option("--from", min=1, help="Test on the log from this position on.")] = None,
    last: Annotated[int | None, typer.Option("--to", min=1, help="Read the log up to this position.")] = None,
    baselines: Annotated[bool, typer.Option(help="Score the built-in baselines too.")] = True,
    warm_up: Annotated[float, typer.Option(min=0, max=0.99, help="First share of the examples, not tested.")] = 0.1,
    block: Annotated[int, typer.Option(min=1, help="Labels that a head is asked about before it learns them.")] = 64,
    sample: Annotated[int, typer.Option(min=0, help="Positives ranked among all unseen items, for NDCG@10.")] = 500,
    draws: Annotated[
        int, typer.Option(min=0, help="Draws of users (heads: of targets) for the intervals; 0: none.")
    ] = 500,
    seed: Annotated[int, typer.Option(min=0, help="Of the sample and the draws.")] = 0,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="Draw AUC (accuracy), log loss and calibration.")
    ] = None,
) -> None:
    from streamfold.core.errors import ConfigError
    from streamfold.pipelines.evaluate import NothingToTest, Options
    from streamfold.pipelines.evaluate import evaluate as run

    options: Globals = ctx.obj
    names = tuple(dict.fromkeys(name for part in policies.split(",") if (name := part.strip())))
    if not names:
        raise CliError("--policies names no policy: give the rankers to score, as in --policies ensemble", USAGE)
    if bool(data) == (first is not None or last is not None):
        raise CliError("give either --data FILE or --from POSITION [--to POSITION] (the log)", USAGE)
    check_plot(plot)
    settings = options.settings()
    if data:
        source = _of_files(options, settings, data, map_ or [], type_ or [])
    else:
        source = _of_log(options, settings, last)
    chosen = Options(
        policies=names, baselines=baselines, warm_up=warm_up, first=first or 1, block=block, sample=sample,
        draws=draws, seed=seed,
    )  # fmt: skip
    try:
        with _bars(options) as progress:
            body = run(settings, source, chosen, progress=progress)
    except (ConfigError, NothingToTest) as error:
        raise CliError(str(error), USAGE) from error
    body |= {"refused": len(source.refused), "duplicates": source.duplicates}
    if plot is not None:
        from streamfold.pipelines.evaluate.plot import draw

        write_plot(plot, draw(body))
        options.note(f"drawn: {plot}")
    if options.json:
        options.print("", body)
    elif body["task"] == "classify":
        _show_heads(body)
    else:
        _show(body)
    if source.refused:
        raise typer.Exit(SOME_REJECTED)


# -- events -----------------------------------------------------------------------------------------------------------
def _of_files(options: Globals, settings: Settings, data: list[str], maps: list[str], types: list[str]) -> Source:
    from streamfold.core.registry import Registry
    from streamfold.pipelines.cli.rows import read_lines
    from streamfold.pipelines.evaluate.source import Intake

    for path in data:
        if path != "-" and Path(path).is_dir():
            raise CliError(f"{path} is a folder: name its files, each with --data", USAGE)
    registry = Registry(settings)
    intake = Intake(registry.event_types, max_event_bytes=settings.limits.max_event_bytes)
    registry.close()
    for path, mapping, type_ in zip(data, _each(data, maps, "--map"), _each(data, types, "--type"), strict=True):
        for line in read_lines(path, type_=type_, mapping=Path(mapping) if mapping else None, source=""):
            where = f"{path}, line {line.number}"
            if line.problem:
                intake.refuse(where, "malformed", line.problem)
            else:
                intake.take(where, line.event)
    source = intake.source()
    for one in source.refused[:_SHOWN]:
        options.note(f"{one.where}: {one.code}{f' {one.pointer}' if one.pointer else ''}: {one.detail}")
    if len(source.refused) > _SHOWN:
        options.note(f"… and {len(source.refused) - _SHOWN} more lines refused")
    if not len(source):
        what = ", ".join(data)
        if source.refused:
            raise CliError(f"{what}: every line was refused", SOME_REJECTED)
        raise CliError(f"{what}: no events", USAGE)
    if not source.timed:
        options.note("no event says when it happened (time): they are taken in order, and sessions are not told apart")
    return source


def _each(data: list[str], given: list[str], option: str) -> list[str]:
    """One value for each file; one alone is for all."""
    if len(given) not in (0, 1, len(data)):
        raise CliError(f"{len(data)} times --data and {len(given)} times {option}: give one for all, or as many", USAGE)
    return given * len(data) if len(given) == 1 else given or [""] * len(data)


def _of_log(options: Globals, settings: Settings, last: int | None) -> Source:
    """The log up to a position; read over HTTP where a service holds the ledger."""
    from streamfold.core.archive import History
    from streamfold.core.errors import LedgerBusy
    from streamfold.core.ledger import open_ledger
    from streamfold.pipelines.evaluate.source import from_log

    path = Path(settings.ledger_url.removeprefix("sqlite:///"))
    if settings.is_embedded and not path.exists():
        raise CliError(f"there is no log at {path}: name a file with --data, or other settings with --config", USAGE)
    try:
        ledger = open_ledger(settings.ledger_url, migrate=False)
    except LedgerBusy:
        options.note(f"a service holds the ledger: reading its log over {options.base_url}")
        return _of_service(options, settings, last)
    workspace = options.workspace or "default"
    try:
        history = History(ledger, settings.archive_root)
        head = min(ledger.head(workspace), last or 1 << 62)
        with _bars(options) as progress:
            step = progress("reading", head)
            source = from_log(lambda after, limit: history.read(workspace, after, limit).rows, head, step)
    finally:
        ledger.close()
    if not len(source):
        raise CliError(f"the log of workspace {workspace} holds no events", USAGE)
    return source


def _of_service(options: Globals, settings: Settings, last: int | None) -> Source:
    from datetime import datetime

    from streamfold.core.clock import SystemClock
    from streamfold.core.events import Acceptor
    from streamfold.core.events.codecs import decode_structured
    from streamfold.core.events.fields import to_us
    from streamfold.core.ledger.abc import LogRow
    from streamfold.core.registry import Registry
    from streamfold.pipelines.evaluate.source import Source

    registry = Registry(settings)
    acceptor = Acceptor(registry.event_types, SystemClock(), max_event_bytes=settings.limits.max_event_bytes)
    registry.close()
    rows = []
    with options.client() as client:
        head = min(client.get("/v1/status")["position"], last or 1 << 62)
        for item in client.pages("/v1/events", at_most=head):
            if item["event"] is not None and item["position"] <= head:  # not erased
                new = acceptor.accept(decode_structured(json.dumps(item["event"]).encode()), was_logged=True)
                recorded_us = to_us(datetime.fromisoformat(item["recordedtime"]))
                rows.append(LogRow(item["position"], recorded_us, new.type, new.body))
    return Source(rows=rows)


@contextmanager
def _bars(options: Globals) -> Iterator[Callable[[str, int], Callable[[], None]]]:
    """A progress bar per phase on stderr, moved ten times a second at most."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True), disable=options.quiet, transient=True) as bars:

        def start(phase: str, total: int) -> Callable[[], None]:
            task, done, step = bars.add_task(phase, total=total), 0, max(1, total // 500)

            def moved() -> None:
                nonlocal done
                done += 1
                if done % step == 0 or done == total:
                    bars.update(task, completed=done)

            return moved

        yield start


# -- output -----------------------------------------------------------------------------------------------------------
def check_plot(path: Path | None) -> None:
    """Refuse a plot that cannot be drawn, before anything else is done."""
    if path is not None and path.suffix.lower() != ".svg":
        raise CliError(f"--plot {path}: SVG is drawn, so name a file that ends in .svg", USAGE)
    if path is not None and not path.parent.is_dir():
        raise CliError(f"--plot {path}: there is no folder {path.parent}", USAGE)


def write_plot(path: Path, text: str) -> None:
    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise CliError(f"--plot {path}: {error.strerror or error}", USAGE) from error


def _show(body: dict[str, Any]) -> None:
    from rich.table import Table

    out = console()
    share = f"{100 * body['positives']:.1f} % positive" if body["positives"] is not None else ""
    title = f"{body['tested']:,} of {body['events']:,} examples tested, {share}; {body['items']:,} items"
    table = Table("", *("AUC", "per-user AUC", "log loss", "calibration", "NDCG@10", "coverage"), title=title)
    for one in body["methods"]:
        cells = [_with_interval(one, name) for name in ("auc", "user_auc", "logloss")]
        cells += [_cell(one["calibration_error"]), _with_interval(one, "ndcg_at_10"), _cell(one["coverage"], 3)]
        table.add_row(one["name"] if one["kind"] != "baseline" else f"[dim]{one['name']}[/]", *cells)
    out.print(table)
    compared = body["compared"]
    out.print(
        f"Per-user AUC: {compared['groups']:,} sessions and exposures, {compared['events']:,} examples. NDCG@10 and "
        f"coverage: {body['sample']:,} positives among all unseen items. Seed {body['seed']}; intervals: 95 %, "
        f"{body['draws']} draws of users."
    )
    parts = Table("AUC of events of", "events", *(one["name"] for one in body["methods"]))
    for i, part in enumerate(body["methods"][0]["slices"]):
        found = [one["slices"][i] for one in body["methods"]]
        parts.add_row(part["slice"], f"{part['events']:,}", *(_cell(one["auc"]) for one in found))
    out.print(parts)
    if body["differences"]:
        out.print(_differences(body["differences"]))
    if body["off_policy"]:
        out.print(_off_policy(body["off_policy"]))
    if body["skipped"] or body["duplicates"]:
        out.print(f"{body['skipped']} events skipped by a policy, {body['duplicates']} duplicates")


def _show_heads(body: dict[str, Any]) -> None:
    from rich.table import Table

    out = console()
    title = f"{body['tested']:,} of {body['labels']:,} labelled targets tested, {body['classes']} classes"
    names = ("accuracy", "balanced accuracy", "log loss", "worst class", "forgetting", "calibration")
    table = Table("", *names, title=f"{title} of {len(body['heads'])} heads" if len(body["heads"]) > 1 else title)
    for one in body["methods"]:
        cells = [_with_interval(one, name) for name in ("accuracy", "balanced_accuracy", "logloss")]
        cells += [_cell(one[name], 3) for name in ("min_accuracy", "forgetting")] + [_cell(one["calibration_error"])]
        table.add_row(one["name"] if one["kind"] != "baseline" else f"[dim]{one['name']}[/]", *cells)
    out.print(table)
    table = Table("cost", "labels/s", "CPU ms per label: learned", "asked", "state, MB", "skipped events")
    for one in body["methods"]:
        if (cost := one["cost"]) is not None:
            cells = [f"{cost['labels_per_s']:,.0f}", f"{cost['fold_ms']:.3f}", f"{cost['ask_ms']:.3f}"]
            table.add_row(one["name"], *cells, f"{cost['state_bytes'] / 1e6:.2f}", f"{cost['skipped']:,}")
    out.print(table)
    asked = f"at most {body['block']} labels" if body["block"] > 1 else "one label"
    out.print(
        f"Asked in blocks of {asked}, by the state from before; cost without embedding texts. Seed {body['seed']}; "
        f"intervals: 95 %, {body['draws']} draws of targets."
    )
    if body["unanswered"]:
        out.print(f"{body['unanswered']:,} labels that no policy could be asked about yet are left out.")
    slices = [one["slices"] for one in body["methods"]]
    parts = Table("accuracy of class", "labels", *(one["name"] for one in body["methods"]))
    often = sorted(range(len(slices[0])), key=lambda i: -slices[0][i]["events"])
    for i in often[:_MOST_CLASSES]:
        parts.add_row(
            plain(slices[0][i]["slice"]), f"{slices[0][i]['events']:,}", *(_cell(s[i]["accuracy"], 3) for s in slices)
        )
    out.print(parts)
    if len(often) > _MOST_CLASSES:
        out.print(f"… and {len(often) - _MOST_CLASSES} classes more (--json has all)")
    if body["differences"]:
        out.print(_differences(body["differences"]))
    if body["duplicates"]:
        out.print(f"{body['duplicates']} duplicates")


def _differences(rows: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table("measure", "of", "to", "difference", "95 % interval")
    for d in rows:
        table.add_row(
            d["measure"], d["of"], d["to"], _signed(d["difference"]), f"{_signed(d['low'])} … {_signed(d['high'])}"
        )
    return table


def _off_policy(rows: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(
        *("would earn", "IPS", "SNIPS", "doubly robust", "effective samples", "largest weight"),
        title="per place of a response, decided by the policy (from logged propensities)",
    )
    for row in rows:
        if row["refused"]:
            table.add_row(row["policy"], f"not estimated: {row['refused']}")
            continue
        cells = [_estimate(row[name]) for name in ("ips", "snips", "dr")]
        table.add_row(row["policy"], *cells, f"{row['effective_samples']:,.0f}", f"{row['largest_weight']:.1f}")
    return table


def _estimate(found: dict[str, Any] | None) -> str:
    return "–" if found is None else f"{_cell(found['value'])} ({_cell(found['low'])}–{_cell(found['high'])})"


def _cell(value: float | None, digits: int = 4) -> str:
    return (
        "–"
        if value is None
        else f"{value:.{digits}f}".replace("0.", ".", 1)
        if 0 <= value < 1
        else f"{value:.{digits}f}"
    )


def _with_interval(one: dict[str, Any], name: str) -> str:
    low, high = one.get("intervals", {}).get(name, (None, None))
    return _cell(one[name]) if low is None else f"{_cell(one[name])} ({_cell(low, 3)}–{_cell(high, 3)})"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.4f}"
