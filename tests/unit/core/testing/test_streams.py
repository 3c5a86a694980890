"""Event streams: accepted, repeatable, meeting the same subjects again, at the edges when asked."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from streamfold.core.clock import ManualClock
from streamfold.core.events import Acceptor, EventTypes, builtin_types
from streamfold.core.testing import stream
from streamfold.core.testing.strategies import event_data, streams

TYPES = EventTypes(builtin_types())
ACCEPTOR = Acceptor(TYPES, ManualClock())


def ids(events: Any, field: str) -> list[str]:
    return [data[field] for _, data in events if field in data]


@pytest.mark.parametrize("odd", [False, True])
@pytest.mark.parametrize("name", TYPES.names())
def test_a_stream_of_any_type_is_accepted_and_repeatable(name: str, odd: bool) -> None:
    events = stream(TYPES, [name], 30, seed=7, odd=odd)
    assert len(events) == 30
    for number, (type_, data) in enumerate(events):
        ACCEPTOR.accept_data(type_, data, id=str(number), source="test")
    assert events == stream(TYPES, [name], 30, seed=7, odd=odd)
    assert events != stream(TYPES, [name], 30, seed=8, odd=odd)


def test_subjects_meet_again_unless_fresh_ids_are_asked_for() -> None:
    usual = ids(stream(TYPES, ["interaction.observed"], 60), "item_id")
    assert len(set(usual)) == 6
    fresh = ids(stream(TYPES, ["interaction.observed"], 60, fresh=True), "item_id")
    assert len(set(fresh)) == 60


def test_deletions_are_rarer_than_what_they_delete_and_absent_from_fresh_streams() -> None:
    handles = ["item.upserted", "item.deleted"]
    types = [type_ for type_, _ in stream(TYPES, handles, 100)]
    assert 0 < types.count("item.deleted") < types.count("item.upserted") / 2
    assert {type_ for type_, _ in stream(TYPES, handles, 100, fresh=True)} == {"item.upserted"}


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(events=streams(["interaction.observed", "label.observed", "entity.merged"], odd=True))
def test_strategies_draw_what_is_accepted(events: list[Any]) -> None:
    for number, (type_, data) in enumerate(events):
        ACCEPTOR.accept_data(type_, data, id=str(number), source="test")


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=event_data("document.upserted"))
def test_the_data_of_one_type_can_be_drawn(data: dict[str, Any]) -> None:
    ACCEPTOR.accept_data("document.upserted", data, id="1", source="test")


def test_without_hypothesis_the_strategies_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(ImportError, match="pip install hypothesis"):
        streams(["interaction.observed"])


def test_a_type_whose_check_refuses_everything_is_named() -> None:
    import msgspec

    from streamfold.core.errors import InvalidEvent
    from streamfold.core.events import EventType, Subject

    class Data(msgspec.Struct):
        item_id: str

    def refuse(data: Any) -> None:
        raise InvalidEvent("invalid-value", "never right")

    never = EventType(name="never.right", data=Data, subjects=lambda d: (Subject("item", d.item_id),), check=refuse)
    with pytest.raises(AssertionError, match=r"never\.right.*events of your own"):
        stream(EventTypes([never]), ["never.right"], 1)
