"""``policies quality``: a plot that can be read, and a table that ends with all the time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from rich.console import Console

from streamfold.pipelines.cli.quality import _readable, _series

START = datetime(2026, 1, 1, tzinfo=UTC)


def points(n: int, every: timedelta) -> list[dict[str, Any]]:
    at = [(START + k * every).isoformat() for k in range(n)]
    return [{"at": one, "events": 10, "auc": None, "logloss": 0.5} for one in at]


def test_few_stretches_are_drawn_as_they_are() -> None:
    assert _readable(points(60, timedelta(hours=1))) == 0


def test_so_many_hours_are_drawn_that_a_line_can_be_seen() -> None:
    assert _readable(points(24 * 10, timedelta(hours=1))) == 6 * 3600
    assert _readable(points(24 * 180, timedelta(hours=1))) == 7 * 86_400
    far = points(24 * 180, timedelta(hours=1))
    assert _readable([*far, far[0] | {"at": "2039-01-01T00:00:00Z"}]) == 7 * 86_400, "stretches without events are none"


def test_the_table_ends_with_all_the_time() -> None:
    series = [one | dict.fromkeys(("user_auc", "ndcg_at_10")) for one in points(2, timedelta(hours=1))]
    total = series[0] | {"events": 4321, "auc": 0.7912}
    console = Console(width=100)
    with console.capture() as printed:
        console.print(_series("ensemble", series, total, "all"))
    last = printed.get().splitlines()[-2]
    assert "all the time" in last
    assert "4,321" in last
    assert "0.7912" in last
    with console.capture() as printed:  # of a service of before
        console.print(_series("ensemble", series, None, "all"))
    assert "all the time" not in printed.get()
