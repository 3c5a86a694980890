"""A report drawn as one SVG file: measures over time, and calibration. No library, no script, no font file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT = 360, 260
_LEFT, _TOP, _GAP = 56, 64, 76
_COLUMNS = 3
_BELOW = _TOP + _HEIGHT + 56
"""So far below a plot the next one begins."""
_COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#8e5ea2", "#c98b00", "#00808a")
_GREYS = ("#444444", "#777777", "#999999", "#aaaaaa", "#bbbbbb")
_DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 4")

Point = tuple[float, float]


class Curves(NamedTuple):
    """One of the plots: a line of points for each name; ``ends``: what stands under its left and right end."""

    title: str
    lines: Mapping[str, Sequence[Point]]
    y: tuple[float, float]
    x: tuple[float, float] | None = None
    ends: Sequence[str] = ()


def draw(body: Mapping[str, Any]) -> str:
    """Return the SVG of a report."""
    classify = body["task"] == "classify"
    measured = ("accuracy", "accuracy over time") if classify else ("auc", "AUC over time")
    plots = []
    for name, title in (measured, ("logloss", "log loss over time (nats)")):
        lines = {m["name"]: _over_time(m["over_time"], name) for m in body["methods"]}
        ends = [one["at"][:10] for one in body["methods"][0]["over_time"]] if body["methods"] else []
        plots.append(Curves(title, lines, _span(lines.values()), None, ends))
    bins = {
        m["name"]: [(b["predicted"], b["observed"]) for b in m["calibration"]]
        for m in body["methods"]
        if m["calibration"] and m["kind"] != "baseline"
    }
    observed = "share that was right, by how sure" if classify else "share of positives by prediction"
    plots.append(Curves(f"calibration: {observed}", bins, (0.0, 1.0), (0.0, 1.0)))
    what = "labels" if classify else "examples"
    return _svg(f"Test-then-train: {body['tested']:,} {what}", plots, _styles(body["methods"]))


def draw_series(name: str, series: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> str:
    """Return the SVG of a policy's quality over time; ``titles``: of the measures that are drawn."""
    ends = [one["at"][:16].replace("T", " ") for one in series]
    plots = []
    for measure, title in titles.items():
        line = _over_time(series, measure)
        plots.append(Curves(f"{title} over time", {name: line}, _span([line]), None, ends))
    events = sum(one["events"] for one in series)
    return _svg(f"{name}: {events:,} events", plots, _styles([{"name": name, "kind": "policy"}]))


def _svg(title: str, plots: Sequence[Curves], styles: Mapping[str, str]) -> str:
    bottom = -(-len(plots) // _COLUMNS) * _BELOW
    width, height = _LEFT + _COLUMNS * (_WIDTH + _GAP) - _GAP + 24, bottom + 20 * -(-len(styles) // 4)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="26" font-size="15">{escape(title)}</text>',
    ]
    for number, one in enumerate(plots):
        parts += _Panel(number, one).draw(styles, one.ends)
    parts += _legend(styles, bottom + 2)
    return "\n".join([*parts, "</svg>"]) + "\n"


def _styles(methods: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Policies in colours, baselines in dashed greys."""
    found, policies, others = {}, 0, 0
    for one in methods:
        if one["kind"] == "baseline":
            dash = _DASHES[1 + others % (len(_DASHES) - 1)]
            found[one["name"]] = f'stroke="{_GREYS[others % len(_GREYS)]}" stroke-width="1.3" stroke-dasharray="{dash}"'
            others += 1
        else:
            found[one["name"]] = f'stroke="{_COLOURS[policies % len(_COLOURS)]}" stroke-width="2.2"'
            policies += 1
    return found


def _over_time(parts: Sequence[Mapping[str, Any]], name: str) -> list[Point]:
    return [(i, one[name]) for i, one in enumerate(parts) if one.get(name) is not None]


def _span(lines: Any) -> tuple[float, float]:
    values = [y for line in lines for _, y in line]
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    margin = max(0.05 * (high - low), 0.005)
    return low - margin, high + margin


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between two bounds, three to seven of them."""
    step = 10 ** math.floor(math.log10((high - low) / 3))
    step = next(s for s in (step, 2 * step, 5 * step, 10 * step) if (high - low) / s <= 7)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


class _Panel:
    """One of the plots, three in a row, with its axes."""

    def __init__(self, number: int, one: Curves) -> None:
        row, column = divmod(number, _COLUMNS)
        self._left, self._top = _LEFT + column * (_WIDTH + _GAP), _TOP + row * _BELOW
        self._title, self._lines = one.title, one.lines
        widest = max((p[0] for line in one.lines.values() for p in line), default=1.0) or 1.0
        self._y, self._x = one.y, one.x or (0.0, widest)
        self._diagonal = one.x is not None

    def draw(self, styles: Mapping[str, str], ends: Sequence[str]) -> list[str]:
        right, bottom = self._left + _WIDTH, self._top + _HEIGHT
        parts = [f'<text x="{self._left}" y="{self._top - 12}" font-weight="600">{escape(self._title)}</text>']
        for value in _ticks(*self._y):
            at = self._at_y(value)
            parts.append(f'<line x1="{self._left}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}" stroke="#e6e6e6"/>')
            parts.append(f'<text x="{self._left - 6}" y="{at + 4:.1f}" text-anchor="end">{value:.3g}</text>')
        if self._diagonal:
            parts.append(f'<line x1="{self._left}" y1="{bottom}" x2="{right}" y2="{self._top}" stroke="#bbbbbb"/>')
            for value in _ticks(*self._x):
                at = self._at_x(value)
                parts.append(f'<text x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{value:.3g}</text>')
        elif ends:
            parts.append(f'<text x="{self._left}" y="{bottom + 16}">{escape(ends[0])}</text>')
            parts.append(f'<text x="{right}" y="{bottom + 16}" text-anchor="end">{escape(ends[-1])}</text>')
        parts.append(
            f'<rect x="{self._left}" y="{self._top}" width="{_WIDTH}" height="{_HEIGHT}" fill="none" stroke="#888888"/>'
        )
        for name, line in reversed(list(self._lines.items())):  # the first policy lies on top
            if line:
                points = " ".join(f"{self._at_x(x):.1f},{self._at_y(y):.1f}" for x, y in line)
                parts.append(
                    f'<polyline points="{points}" fill="none" {styles[name]}><title>{escape(name)}</title></polyline>'
                )
        return parts

    def _at_x(self, value: float) -> float:
        return self._left + _WIDTH * (value - self._x[0]) / (self._x[1] - self._x[0])

    def _at_y(self, value: float) -> float:
        return self._top + _HEIGHT * (self._y[1] - value) / (self._y[1] - self._y[0])


def _legend(styles: Mapping[str, str], top: int) -> list[str]:
    parts = []
    for i, (name, style) in enumerate(styles.items()):
        x, y = _LEFT + (i % 4) * 300, top + (i // 4) * 20
        parts.append(f'<line x1="{x}" x2="{x + 30}" y1="{y - 4}" y2="{y - 4}" {style}/>')
        parts.append(f'<text x="{x + 38}" y="{y}">{escape(name)}</text>')
    return parts
