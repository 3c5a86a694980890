"""Two plots: recall against latency, and throughput."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from vectors.report import by_engine

_COLOURS = ("#d1495b", "#00798c", "#30638e", "#edae49", "#6a4c93", "#5f7367", "#9c6644", "#2b2d42")
_BARS = (
    ("sustained_rows_per_s", "inserts/s, merges in"),
    ("batch64_per_s", "queries/s, batches of 64"),
    ("mixed_reads_per_s", "searches/s beside a writer"),
)


def draw(record: dict[str, Any], folder: Path) -> list[Path]:
    """Write the plots as PNG, and return their paths; none without matplotlib or runs."""
    if not record["runs"] or find_spec("matplotlib") is None:
        return []
    import matplotlib

    matplotlib.use("agg")
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "vectors-recall-latency.png", folder / "vectors-throughput.png"]
    _recall_latency(record["runs"]).savefig(files[0], dpi=110, bbox_inches="tight")
    _throughput(record["runs"]).savefig(files[1], dpi=110, bbox_inches="tight")
    return files


def _recall_latency(runs: list[dict[str, Any]]) -> Any:
    from matplotlib.figure import Figure

    sizes = sorted({run["rows"] for run in runs})
    figure = Figure(figsize=(5.2 * len(sizes), 4.2))
    for axes, rows in zip(np.atleast_1d(figure.subplots(1, len(sizes))), sizes, strict=True):
        engines = by_engine([run for run in runs if run["rows"] == rows])
        for colour, (name, group) in zip(_COLOURS, engines.items(), strict=False):
            points = [(p["recall"], p["p50_ms"]) for run in group for p in run["sweep"]]
            settings = sorted({p["setting"] for run in group for p in run["sweep"]})
            at = [
                np.median([(p["recall"], p["p50_ms"]) for run in group for p in run["sweep"] if p["setting"] == s], 0)
                for s in settings
            ]
            if points:
                axes.plot(*np.array(at).T, "-", color=colour, label=name)
                axes.plot(*np.array(points).T, "o", color=colour, markersize=3, alpha=0.6)
        axes.axvline(0.95, color="#999999", linewidth=0.8, linestyle=":")
        axes.set(title=f"{rows:,} × 384", xlabel="recall@10", ylabel="query p50, ms of CPU", yscale="log")
        axes.grid(alpha=0.25, which="both")
        axes.legend(fontsize=8)
    return figure


def _throughput(runs: list[dict[str, Any]]) -> Any:
    from matplotlib.figure import Figure

    sizes = sorted({run["rows"] for run in runs})
    names = list(by_engine(runs))
    bars = [bar for bar in _BARS if any(bar[0] in run for run in runs)]
    figure = Figure(figsize=(4.6 * len(bars), 3.8))
    for axes, (key, title) in zip(np.atleast_1d(figure.subplots(1, len(bars))), bars, strict=True):
        for colour, (i, name) in zip(_COLOURS, enumerate(names), strict=False):
            groups = [[r[key] for r in runs if r["engine"] == name and r["rows"] == n and key in r] for n in sizes]
            heights = [float(np.median(group)) if group else np.nan for group in groups]
            axes.bar(np.arange(len(sizes)) + (i - len(names) / 2) * 0.15, heights, 0.14, color=colour, label=name)
        axes.set(title=title, xticks=range(len(sizes)), xticklabels=[f"{n:,}" for n in sizes], yscale="log")
        axes.grid(alpha=0.25, axis="y")
    axes.legend(fontsize=8)
    return figure
