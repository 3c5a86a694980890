"""``activity`` joins what was shown with what came of it, once, whenever it comes."""

from __future__ import annotations

from typing import Any

import pytest

from streamfold.core import ConfigError, Example, user_key
from streamfold.plugins.activity import Activity, ActivityConfig

T0 = 1_700_000_000_000_000
S = 1_000_000
CONFIG = ActivityConfig(window_s=60.0, late_s=600.0, history=3, like_from=4.0)


class Told:
    """Folds events one by one and keeps the examples that each makes."""

    def __init__(self, bench: Any, make_event: Any, config: ActivityConfig = CONFIG) -> None:
        self.bench = bench(Activity(config))
        self._make = make_event
        self._seq = 0
        self.examples: list[Example] = []

    def __call__(self, type_: str, at_s: float, **data: Any) -> list[Example]:
        self._seq += 1
        event = self._make(self._seq, type_, T0 + int(at_s * S), **data)
        joined = self.bench.policy.joined(event, self.bench.stores, event.recorded_us)
        self.bench.stores.now_us = event.recorded_us
        self.bench.send(event)
        self.examples += joined.examples
        return list(joined.examples)

    def show(self, at_s: float, exposure: str, *items: str, user: str = "u", **more: Any) -> list[Example]:
        rows = [{"item_id": one, "rank": n, "score": n / 10, "propensity": 0.5} for n, one in enumerate(items, 1)]
        return self("exposure.recorded", at_s, exposure_id=exposure, kind="recommend", items=rows, user_id=user, **more)

    def act(self, at_s: float, item: str, action: str = "click", user: str = "u", **more: Any) -> list[Example]:
        return self("interaction.observed", at_s, user_id=user, item_id=item, action=action, **more)


@pytest.fixture
def told(bench: Any, make_event: Any) -> Told:
    return Told(bench, make_event)


def brief(examples: list[Example]) -> list[tuple[str, str, float, float | None, bool]]:
    return [(one.user, one.item, one.label, one.served, one.swaps) for one in examples]


def test_without_an_exposure_an_action_is_an_example_of_its_own(told: Told) -> None:
    assert brief(told.act(1, "a")) == [("u:u", "a", 1.0, None, False)]
    assert brief(told.act(2, "a", "skip")) == [("u:u", "a", 0.0, None, False)]
    assert brief(told.act(3, "a", "view")) == []
    assert brief(told.act(4, "a", "rating", value=4.0)) == [("u:u", "a", 1.0, None, False)]
    assert brief(told.act(5, "a", "rating", value=3.9)) == [("u:u", "a", 0.0, None, False)]


def test_feedback_joins_the_exposure_that_it_names_or_the_latest_that_showed_the_item(told: Told) -> None:
    told.show(1, "x", "a", "b")
    told.show(2, "y", "b", "a")
    assert brief(told.act(3, "a", exposure_id="x")) == [("u:u", "a", 1.0, 0.1, False)]
    [joined] = told.act(4, "b")
    assert (joined.served, joined.at_us, joined.propensity) == (0.1, T0 + 2 * S, 0.5)
    assert told.act(5, "b") == []  # said already


def test_what_got_no_feedback_was_passed_over_when_its_window_closes(told: Told) -> None:
    told.show(0, "x", "a", "b")
    told.act(10, "b")
    assert told.act(59, "z", "view") == []
    closed = told.act(61, "z", "view")
    assert brief(closed) == [("u:u", "a", 0.0, 0.1, False)]
    assert closed[0].at_us == T0


def test_a_late_positive_takes_the_negative_back(told: Told) -> None:
    told.show(0, "x", "a")
    assert brief(told.act(61, "z", "view")) == [("u:u", "a", 0.0, 0.1, False)]
    late = told.act(100, "a")
    assert brief(late) == [("u:u", "a", 1.0, 0.1, True)]
    assert late[0].at_us == T0
    told.show(200, "y", "b")
    assert brief(told.act(261, "b")) == [("u:u", "b", 0.0, 0.1, False), ("u:u", "b", 1.0, 0.1, True)]


def test_past_the_late_window_it_is_organic(told: Told) -> None:
    told.show(0, "x", "a")
    told.act(61, "z", "view")
    assert brief(told.act(700, "a")) == [("u:u", "a", 1.0, None, False)]
    assert len(told.bench.stores["shown"]) == 0
    assert len(told.bench.stores["shown_to"]) == 0


def test_feedback_before_its_exposure_waits_for_it_one_window(told: Told) -> None:
    assert told.act(1, "a", exposure_id="x") == []
    assert brief(told.show(2, "x", "a")) == [("u:u", "a", 1.0, 0.1, False)]
    assert told.act(3, "b", exposure_id="never") == []
    organic = told.act(64, "z", "view")
    assert ("u:u", "b", 1.0, None, False) in brief(organic)
    assert [one.at_us for one in organic if one.item == "b"] == [T0 + 3 * S]
    assert len(told.bench.stores["early"]) == 0


def test_a_judgement_counts_for_the_item_it_names_or_the_only_one(told: Told) -> None:
    told.show(1, "x", "a", "b")
    assert brief(told("feedback.given", 2, exposure_id="x", value=-1.0, item_id="b")) == [("u:u", "b", 0.0, 0.2, False)]
    assert told("feedback.given", 3, exposure_id="x", value=1.0) == []  # of which item?
    told.show(4, "y", "c")
    assert brief(told("feedback.given", 5, exposure_id="y", value=0.5)) == [("u:u", "c", 1.0, 0.1, False)]


def test_many_windows_close_a_few_at_each_event(told: Told) -> None:
    for n in range(100):
        told.show(0, f"x{n}", "a", user=f"u{n}")
    first = len(told.act(61, "z", "view"))
    assert 0 < first < 100
    assert first + len(told.act(62, "z", "view")) == 100


def test_history_is_a_ring_and_seen_is_kept(told: Told) -> None:
    for n in range(5):
        told.act(n, f"i{n}", "click" if n % 2 else "view")
    server = told.bench.server
    assert [one.item_id for one in server.history("u:u")] == ["i4", "i3", "i2"]
    assert [one.label for one in server.history("u:u")] == [None, 1.0, None]
    assert server.seen("u:u", ["i0", "i1", "x"], ["click"]).tolist() == [False, True, False]
    assert server.seen("u:u", ["i0", "i1", "x"], ["view", "click"]).tolist() == [True, True, False]
    assert server.history("u:nobody") == []


def test_items_and_users_are_told_by_categories_and_properties(told: Told) -> None:
    told("item.upserted", 1, item_id="a", text="long", categories=["Drama", "Comedy"], properties={"y": 1, "p": 2.5})
    told("item.patched", 2, item_id="a", title="A", properties={"y": None, "tags": ["k"]})
    told("user.upserted", 3, user_id="u", properties={"country": "NO"})
    assert told.bench.server.tokens("u:u", ["a", "b"]) == (("country=NO",), [("Comedy", "Drama", "tags=k"), ()])
    assert told.bench.server.item("a").fields["text"] == "long"
    [example] = told.act(4, "a")
    assert (example.user_tokens, example.item_tokens) == (("country=NO",), ("Comedy", "Drama", "tags=k"))
    told("item.upserted", 5, item_id="a")
    assert told.bench.server.item("a").fields == {}
    told("item.deleted", 6, item_id="a")
    assert told.bench.server.listed(["a", "b"], T0).tolist() == [False, True]


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="click"):
        ActivityConfig(negative=("click",))
    with pytest.raises(ConfigError, match="window_s"):
        ActivityConfig(window_s=0)
    assert user_key(None, None) == ""
