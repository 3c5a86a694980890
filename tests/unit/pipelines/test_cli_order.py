"""``send`` says when what it sends is out of order."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from streamfold.pipelines.cli.order import Order

START = datetime(2026, 1, 1, tzinfo=UTC)


def said(*hours: float) -> str:
    order = Order()
    order.add(f'{{"id": "{h}", "time": "{(START + timedelta(hours=h)).isoformat()}"}}'.encode() for h in hours)
    return order.said


def test_events_in_order_or_a_little_late_are_not_worth_a_word() -> None:
    assert said(0, 5, 4, 30, 29, 50, 27) == ""
    assert said(*range(100), 10) == "", "one of a hundred"


def test_events_sorted_by_user_are() -> None:
    assert "97 of 400 events" in said(*range(0, 1000, 10), *range(0, 1000, 10), *range(1000, 1200))


def test_what_has_no_time_does_not_count() -> None:
    order = Order()
    order.add([b'{"id": "1"}', b'{"id": "2", "time": "yesterday"}', b"no json", b'{"time": null}'])
    assert order.said == ""
