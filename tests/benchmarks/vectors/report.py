"""The table, the bars, and how many times better than each peer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from vectors.engines import OURS

_LARGE = 200_000  # from here on the second bar holds
Runs = list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A line of the table. ``bars``: below and from 200,000 rows; ``of_hnswlib``: the same, as a ratio to hnswlib."""

    key: str
    label: str
    higher: bool = False
    scale: float = 1.0
    bars: tuple[float, float] | None = None
    of_hnswlib: tuple[float | None, float | None] = field(default=(None, None))

    def values(self, runs: Runs) -> list[float]:
        return [run[self.key] * self.scale for run in runs if run.get(self.key) is not None]

    def better(self, ours: float, peer: float) -> float:
        """How many times better ours is."""
        return (ours / peer if self.higher else peer / ours) if ours and peer else float("nan")


METRICS = (
    Metric(key="insert1_ms", label="insert one, µs", scale=1e3, bars=(10, 10)),
    Metric(key="insert64_ms", label="insert 64, ms"),
    Metric(key="insert1024_ms", label="insert 1,024, ms", bars=(3, 3)),
    Metric(key="bulk_rows_per_s", label="bulk load, training in, rows/s", higher=True),
    Metric(key="insert_rows_per_s", label="stream, merges left out, rows/s", higher=True),
    Metric(
        key="sustained_rows_per_s",
        label="stream, merges in, rows/s",
        higher=True,
        bars=(40_000, 25_000),
        of_hnswlib=(10, 10),
    ),
    Metric(key="merged_rows_per_s", label="the same without training anew", higher=True),
    Metric(key="again_rows_per_s", label="insert again, merges in, rows/s", higher=True),
    Metric(key="delete1_ms", label="delete one, µs", scale=1e3, bars=(10, 10)),
    Metric(key="delete1000_ms", label="delete 1,000, ms"),
    Metric(key="update1_ms", label="update one, µs", scale=1e3, bars=(15, 15)),
    Metric(key="setting", label="first setting with recall ≥ .95"),
    Metric(key="recall", label="recall@10 there", higher=True, bars=(0.95, 0.95)),
    Metric(key="p50_ms", label="query p50, ms", bars=(0.38, 0.80), of_hnswlib=(1, 1.25)),
    Metric(key="p10_ms", label="query p10 (least disturbed), ms"),
    Metric(key="p95_ms", label="query p95, ms"),
    Metric(
        key="batch64_per_s", label="batches of 64, queries/s", higher=True, bars=(3_400, 1_500), of_hnswlib=(None, 1.3)
    ),
    Metric(key="tuned_setting", label="setting it tuned to"),
    Metric(key="tuned_recall", label="recall@10 there, tuned", higher=True, bars=(0.95, 0.95)),
    Metric(key="tuned_p50_ms", label="query p50 there, ms"),
    Metric(key="bytes_per_row", label="resident bytes a row", bars=(1_600, 1_600)),
    Metric(key="snapshot_s", label="snapshot, s"),
    Metric(key="open_s", label="open and first query, s", bars=(2, 2)),
    *(
        Metric(key=f"filtered{p}_{what}", label=f"filter {p} %: {unit}", higher=what == "recall")
        for p in (1, 10, 50)
        for what, unit in (
            ("recall", "recall@10"),
            ("ms", "query p50, ms"),
            ("ids_ms", "by a list of ids, ms"),
        )
    ),
    Metric(key="drift_recall", label="new clusters: recall@10", higher=True),
    Metric(key="drift_noticed", label="queries until it trained anew by itself"),
    Metric(key="noticed_recall", label="new clusters, after these: recall@10", higher=True),
    Metric(key="retrain_s", label="retrain, CPU s"),
    Metric(key="retrained_recall", label="new clusters, retrained: recall@10", higher=True, bars=(0.95, 0.95)),
    Metric(key="mixed_inserts_per_s", label="mixed: inserts/s of 2,000", higher=True),
    Metric(key="mixed_reads_per_s", label="mixed: searches/s", higher=True, bars=(3_400, 0)),
    Metric(key="mixed_read_p50_ms", label="mixed: search p50, ms"),
    Metric(key="mixed_read_p99_ms", label="mixed: search p99, ms", bars=(2, 4)),
    Metric(key="mixed_write_p99_ms", label="mixed: write p99, ms"),
    Metric(key="mixed_recall", label="mixed: recall@10 afterwards", higher=True, bars=(0.95, 0.95)),
)


def line(found: dict[str, Any]) -> str:
    """Return a run in one line."""
    if found["part"] == "runbook":
        books = ", ".join(f"{name} {book['lowest']:.3f}" for name, book in found["books"].items())
        return f"lowest recall of a step: {books} ({found['wall_s']:.0f} s)"
    keys = ("insert1_ms", "sustained_rows_per_s", "setting", "recall", "p50_ms", "batch64_per_s", "mixed_reads_per_s")
    told = " ".join(f"{key} {number(found[key])}" for key in keys if key in found)
    return f"{told} ({found['wall_s']:.0f} s, load {found['load'][0]}–{found['load'][1]})"


def number(value: float) -> str:
    """Return three digits, more before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def show(record: dict[str, Any]) -> None:
    """Print a table for each size, the bars, and the runbooks."""
    console = Console(width=None if Console().is_terminal else 180)
    for rows in sorted({run["rows"] for run in record["runs"]}):
        runs = [run for run in record["runs"] if run["rows"] == rows]
        console.print(_table(rows, runs))
        for told in verdicts(rows, runs):
            console.print("  " + told, style="red" if "MISSED" in told else None, highlight=False)
    if record["runbooks"]:
        console.print(_runbooks(record["runbooks"]))


def by_engine(runs: Runs) -> dict[str, Runs]:
    """Return the runs of each engine, in the order of their first."""
    return {name: [run for run in runs if run["engine"] == name] for name in dict.fromkeys(r["engine"] for r in runs)}


def _table(rows: int, runs: Runs) -> Table:
    engines = by_engine(runs)
    repeats = max(len(group) for group in engines.values())
    loads = [load for run in runs for load in run["load"]]
    table = Table(
        title=f"{rows:,} rows × 384, {runs[0]['data']}, {repeats} run(s) each, load {min(loads)}–{max(loads)}",
        caption=f"median (lowest–highest); × n: {OURS} is n times better",
    )
    table.add_column("")
    for name in engines:
        table.add_column(name, justify="right")
    for metric in METRICS:
        cells = [_cell(metric, group, engines.get(OURS, [])) for group in engines.values()]
        if any(cells):
            table.add_row(metric.label, *cells)
    return table


def _cell(metric: Metric, group: Runs, ours: Runs) -> str:
    values = metric.values(group)
    if not values:
        return ""
    middle = float(np.median(values))
    told = number(middle) if "recall" not in metric.key else f"{middle:.3f}"
    if len(values) > 1 and min(values) != max(values):
        told += f" ({number(min(values))}–{number(max(values))})"
    own = metric.values(ours)
    if group is ours or not own or "recall" in metric.key or "setting" in metric.key:
        return told
    return f"{told} × {number(metric.better(float(np.median(own)), middle))}"


def verdicts(rows: int, runs: Runs) -> Iterable[str]:
    """Yield a line for each bar: ours against it, and against hnswlib where the bar is a ratio."""
    engines = by_engine(runs)
    ours, peer = engines.get(OURS, []), engines.get("hnswlib", [])
    which = int(rows >= _LARGE)
    for metric in METRICS:
        values, others = metric.values(ours), metric.values(peer)
        if not values or metric.bars is None:
            continue
        value, bar = float(np.median(values)), metric.bars[which]
        reached = value >= bar if metric.higher else value <= bar
        sign = "≥" if metric.higher else "≤"
        yield f"{metric.label}: {number(value)}, bar {sign} {number(bar)}: {'reached' if reached else 'MISSED'}"
        times = metric.of_hnswlib[which]
        if times is not None and others:
            ratio = metric.better(value, float(np.median(others)))
            verdict = "reached" if ratio >= times else "MISSED"
            yield f"{metric.label}: {ratio:.3g} times better than hnswlib, bar ≥ {times:g}: {verdict}"


def _runbooks(found: Runs) -> Table:
    books = list(found[0]["books"])
    table = Table(title=f"Runbooks of {found[0]['rows']:,} rows: lowest recall@10 of a step (mean)")
    table.add_column("")
    for book in books:
        table.add_column(book, justify="right")
    for run in found:
        cells = [f"{b['lowest']:.3f} at {b['at_step']} ({b['mean']:.3f})" for b in run["books"].values()]
        table.add_row(run["engine"], *cells)
    return table
