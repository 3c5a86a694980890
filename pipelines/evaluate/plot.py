"""Quality drawn as one SVG file, of an evaluation or of what a service measures. No library, script or font file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT = 360, 260
_LEFT, _TOP, _GAP = 56, 64, 76
_COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#8e5ea2", "#c98b00", "#00808a")
_GREYS = ("#444444", "#777777", "#999999", "#aaaaaa", "#bbbbbb")
_PANELS = 3
_MEASURES = {
    "auc": "AUC", "logloss": "log loss (nats)", "calibration": "calibration error", "accuracy": "accuracy",
    "min_accuracy": "accuracy of the worst class", "forgetting": "forgetting",
}  # fmt: skip
"""What is drawn of a series: the first three of these that are measured."""
_DASHES = ("", "6 3", "2 3", "8 3 2 3", "1 4")

Point = tuple[float, float]


def draw(body: Mapping[str, Any]) -> str:
    """Return the SVG of a report: AUC and log loss over time, and calibration."""
    styles = _styles(body["methods"])
    parts = []
    for column, name, title in ((0, "auc", "AUC over time"), (1, "logloss", "log loss over time (nats)")):
        lines = {m["name"]: _over_time(m, name) for m in body["methods"]}
        ends = [one["at"][:10] for one in body["methods"][0]["over_time"]] if body["methods"] else []
        parts += _Panel(column, title, lines, _span(lines.values())).draw(styles, ends)
    bins = {
        m["name"]: [(b["predicted"], b["observed"]) for b in m["calibration"]]
        for m in body["methods"]
        if m["calibration"] and m["kind"] != "baseline"
    }
    parts += _Panel(2, "calibration: share of positives by prediction", bins, (0.0, 1.0), (0.0, 1.0)).draw(styles, [])
    return _page(f"Test-then-train: {body['tested']:,} examples", parts, styles)


def draw_series(title: str, series: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Return the SVG of what a service measured of policies over time; what none of them has gets no panel."""
    styles = _styles([{"name": name, "kind": "policy"} for name in series])
    points = [point for one in series.values() for point in one]
    told = [name for name in _MEASURES if any(point.get(name) is not None for point in points)]
    times = sorted(point["at"] for point in points)
    parts = []
    for column, name in enumerate(told[:_PANELS]):
        lines = {
            policy: [(_seconds(times[0], point["at"]), point[name]) for point in one if point.get(name) is not None]
            for policy, one in series.items()
        }
        ends = [at[:16].replace("T", " ") for at in (times[0], times[-1])]
        parts += _Panel(column, _MEASURES[name], lines, _span(lines.values())).draw(styles, ends)
    return _page(title, parts, styles)


def _seconds(start: str, at: str) -> float:
    return (datetime.fromisoformat(at) - datetime.fromisoformat(start)).total_seconds()


def _page(title: str, panels: Sequence[str], styles: Mapping[str, str]) -> str:
    rows = -(-len(styles) // 4)
    width, height = _LEFT + _PANELS * _WIDTH + (_PANELS - 1) * _GAP + 24, _TOP + _HEIGHT + 56 + 20 * rows
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="system-ui, sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="26" font-size="15">{escape(title)}</text>',
        *panels,
        *_legend(styles, _TOP + _HEIGHT + 58),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


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


def _over_time(method: Mapping[str, Any], name: str) -> list[Point]:
    return [(i, one[name]) for i, one in enumerate(method["over_time"]) if one.get(name) is not None]


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
    """One of the three plots, with its axes."""

    def __init__(
        self,
        column: int,
        title: str,
        lines: Mapping[str, Sequence[Point]],
        y: tuple[float, float],
        x: tuple[float, float] | None = None,
    ) -> None:
        self._left, self._title, self._lines = _LEFT + column * (_WIDTH + _GAP), title, lines
        self._y, self._x = y, x or (0.0, max((p[0] for line in lines.values() for p in line), default=1.0) or 1.0)
        self._diagonal = x is not None

    def draw(self, styles: Mapping[str, str], ends: Sequence[str]) -> list[str]:
        right, bottom = self._left + _WIDTH, _TOP + _HEIGHT
        parts = [f'<text x="{self._left}" y="{_TOP - 12}" font-weight="600">{escape(self._title)}</text>']
        for value in _ticks(*self._y):
            at = self._at_y(value)
            parts.append(f'<line x1="{self._left}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}" stroke="#e6e6e6"/>')
            parts.append(f'<text x="{self._left - 6}" y="{at + 4:.1f}" text-anchor="end">{value:.3g}</text>')
        if self._diagonal:
            parts.append(f'<line x1="{self._left}" y1="{bottom}" x2="{right}" y2="{_TOP}" stroke="#bbbbbb"/>')
            for value in _ticks(*self._x):
                at = self._at_x(value)
                parts.append(f'<text x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{value:.3g}</text>')
        elif ends:
            parts.append(f'<text x="{self._left}" y="{bottom + 16}">{escape(ends[0])}</text>')
            parts.append(f'<text x="{right}" y="{bottom + 16}" text-anchor="end">{escape(ends[-1])}</text>')
        parts.append(
            f'<rect x="{self._left}" y="{_TOP}" width="{_WIDTH}" height="{_HEIGHT}" fill="none" stroke="#888888"/>'
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
        return _TOP + _HEIGHT * (self._y[1] - value) / (self._y[1] - self._y[0])


def _legend(styles: Mapping[str, str], top: int) -> list[str]:
    parts = []
    for i, (name, style) in enumerate(styles.items()):
        x, y = _LEFT + (i % 4) * 300, top + (i // 4) * 20
        parts.append(f'<line x1="{x}" x2="{x + 30}" y1="{y - 4}" y2="{y - 4}" {style}/>')
        parts.append(f'<text x="{x + 38}" y="{y}">{escape(name)}</text>')
    return parts
