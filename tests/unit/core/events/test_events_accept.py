"""Accepting and decoding events."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamfold.core.clock import US, ManualClock
from streamfold.core.errors import InvalidEvent, PluginError
from streamfold.core.events import (
    Acceptor,
    CloudEvent,
    Event,
    EventType,
    EventTypes,
    ItemPatched,
    ItemUpserted,
    NewEvent,
    Subject,
    builtin_types,
    decode_http,
    dedup_key,
    encode_json,
    id_prefix,
    patched,
)
from streamfold.core.events.fields import from_us, to_us
from streamfold.core.ledger.abc import LogRow

NOW = 1_750_000_000 * US
TYPES = EventTypes(builtin_types(["dwell"]))
ACCEPTOR = Acceptor(TYPES, ManualClock(NOW))
VIEW = {"user_id": "u", "item_id": "i", "action": "view"}

ids = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=64)
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
numbers = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(min_value=0, allow_infinity=False)
integers = st.integers(-(2**63), 2**63 - 1)
values = st.none() | st.booleans() | integers | numbers | texts | st.lists(texts, max_size=3)
flat = st.dictionaries(texts, values, max_size=6)
interactions = st.fixed_dictionaries(
    {"item_id": ids, "action": st.sampled_from(["view", "click", "dwell"]), "user_id": ids},
    optional={"session_id": ids, "value": positive, "exposure_id": ids, "rank": st.integers(0, 99), "context": flat},
)
items = st.fixed_dictionaries(
    {"item_id": ids},
    optional={
        "title": texts,
        "categories": st.lists(texts, max_size=4),
        "properties": flat,
        "available": st.booleans(),
        "expires_at": st.integers(0, 250_000_000_000).map(lambda s: from_us(s * US).isoformat()),
    },
)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def event(data: Any, type: str = "interaction.observed", **envelope: Any) -> dict[str, Any]:
    return {"specversion": "1.0", "id": "1", "source": "s", "type": type, "data": data, **envelope}


def accept_bytes(body: bytes) -> NewEvent:
    [raw] = decode_http("application/cloudevents+json", {}, body)
    if isinstance(raw, InvalidEvent):
        raise raw
    return ACCEPTOR.accept(raw)


def accept(data: Any, type: str = "interaction.observed", **envelope: Any) -> NewEvent:
    return accept_bytes(msgspec.json.encode(event(data, type, **envelope)))


def logged(new: NewEvent) -> Event:
    return TYPES.decode(LogRow(7, NOW, new.type, new.body))


def refusal(data: Any, type: str = "interaction.observed", **envelope: Any) -> InvalidEvent:
    with pytest.raises(InvalidEvent) as caught:
        accept(data, type, **envelope)
    return caught.value


def test_an_interaction_becomes_an_event_about_its_user() -> None:
    found = logged(accept(VIEW, time="2025-01-02T03:04:05.000006+01:00", sequence="12", traceparent="00-a-b-01"))
    assert found.subject == Subject("user", "u")
    assert (found.sequence, found.traceparent, found.seq, found.recorded_us) == (12, "00-a-b-01", 7, NOW)
    assert from_us(found.time_us).isoformat() == "2025-01-02T02:04:05.000006+00:00"


def test_without_a_user_the_session_is_the_main_subject() -> None:
    new = accept({"session_id": "s", "item_id": "i", "action": "view", "exposure_id": "e"})
    assert new.subject == Subject("session", "s")
    subjects = TYPES.get(new.type).subjects(logged(new).data)
    assert [subject.kind for subject in subjects] == ["session", "item", "exposure"]


def test_time_defaults_to_acceptance() -> None:
    assert logged(accept(VIEW)).time_us == NOW


def test_a_configured_action_is_accepted() -> None:
    assert logged(accept({**VIEW, "action": "dwell"})).data.action == "dwell"


@pytest.mark.parametrize(
    ("data", "code", "pointer"),
    [
        ({"user_id": "u", "item_id": "i"}, "invalid-event", "/data/action"),
        ({**VIEW, "action": "vew"}, "invalid-value", "/data/action"),
        ({**VIEW, "action": "rating"}, "invalid-event", "/data/value"),
        ({**VIEW, "iten_id": "x"}, "unknown-field", "/data/iten_id"),
        ({**VIEW, "value": "5"}, "invalid-value", "/data/value"),
        ({**VIEW, "value": -1}, "invalid-value", "/data/value"),
        ({**VIEW, "action": "rating", "value": -1e-300}, "invalid-value", "/data/value"),
        ({**VIEW, "user_id": ""}, "invalid-value", "/data/user_id"),
        ({**VIEW, "user_id": "é" * 129}, "invalid-value", "/data/user_id"),
        ({**VIEW, "user_id": "a\0b"}, "invalid-value", "/data/user_id"),
        ({**VIEW, "context": {"a": {"b": 1}}}, "invalid-value", "/data/context"),
        ({**VIEW, "context": {"a": 2**70}}, "invalid-value", "/data/context"),
        ({**VIEW, "context": {"a": ["x\0"]}}, "invalid-value", "/data"),
        ({**VIEW, "context": {str(i): i for i in range(257)}}, "invalid-value", "/data/context"),
        ({"item_id": "i", "action": "view"}, "invalid-event", "/data/user_id"),
        ([], "invalid-value", "/data"),
    ],
)
def test_bad_interactions_are_refused_with_a_pointer(data: Any, code: str, pointer: str) -> None:
    found = refusal(data)
    assert (found.code, found.pointer) == (code, pointer), found.detail


def test_a_negative_value_is_refused_with_what_to_do_and_nought_is_a_value() -> None:
    said = refusal({**VIEW, "action": "rating", "value": -2.5}).detail
    assert said.startswith("/data/value is -2.5: ")
    assert "shift a rating scale" in said
    assert "action 'dislike'" in said
    for value in (0, -0.0, 1e308):
        assert logged(accept({**VIEW, "action": "rating", "value": value})).data.value == value


def test_what_a_log_has_taken_is_taken_again_whatever_checks_came_later() -> None:
    raw = msgspec.json.decode(msgspec.json.encode(event({**VIEW, "value": -1})), type=CloudEvent)
    new = ACCEPTOR.accept(raw, was_logged=True)
    assert logged(new).data.value == -1
    with pytest.raises(InvalidEvent, match="negative"):
        ACCEPTOR.accept(raw)
    raw.data = msgspec.Raw(b'{"item_id": 1}')
    with pytest.raises(InvalidEvent):  # what cannot be decoded was in no log
        ACCEPTOR.accept(raw, was_logged=True)


@pytest.mark.parametrize(
    ("envelope", "code"),
    [
        ({"specversion": "0.3"}, "invalid-event"),
        ({"id": ""}, "invalid-event"),
        ({"id": "x" * 257}, "invalid-event"),
        ({"id": None}, "invalid-event"),
        ({"source": "x" * 1025}, "invalid-event"),
        ({"source": ""}, "invalid-event"),
        ({"type": "interaction.observd"}, "unknown-type"),
        ({"type": ""}, "invalid-event"),
        ({"subject": "other"}, "invalid-event"),
        ({"time": "2025-01-01T00:00:00"}, "invalid-event"),
        ({"time": "yesterday"}, "invalid-event"),
        ({"time": "1969-12-31T23:59:59Z"}, "invalid-event"),
        ({"time": "9999-12-31T23:59:59-12:00"}, "invalid-event"),
        ({"time": "0001-01-01T00:00:00+12:00"}, "invalid-event"),
        ({"sequence": -1}, "invalid-event"),
        ({"sequence": 2**63}, "invalid-event"),
        ({"sequence": "1e3"}, "invalid-event"),
        ({"traceparent": "x" * 300}, "invalid-event"),
        ({"datacontenttype": "text/xml"}, "invalid-event"),
    ],
)
def test_bad_envelopes_are_refused(envelope: dict[str, Any], code: str) -> None:
    assert refusal(VIEW, **envelope).code == code


def test_a_refusal_names_the_nearest_valid_word() -> None:
    assert "'item_id'" in refusal({**VIEW, "iten_id": "x"}).detail
    assert "'interaction.observed'" in refusal(VIEW, "interaction.observd").detail
    assert "'click'" in refusal({**VIEW, "action": "clik"}).detail


def test_five_minutes_ahead_is_the_limit() -> None:
    def at(us: int) -> str:
        return from_us(us).isoformat()

    assert logged(accept(VIEW, time=at(NOW + 300 * US))).at_us == NOW
    assert refusal(VIEW, time=at(NOW + 300 * US + 1)).code == "invalid-event"


def test_extension_attributes_are_ignored() -> None:
    assert accept(VIEW, subject="u", partitionkey="x", recordedtime=3).subject.id == "u"


def test_data_over_the_limit_is_too_large() -> None:
    assert refusal({"document_id": "d", "text": "x" * (1 << 20)}, "document.upserted").code == "too-large"


def test_text_about_nul_escapes_is_no_nul() -> None:
    new = accept({"document_id": "d", "text": "write \\u0000"}, "document.upserted")
    assert logged(new).data.text == "write \\u0000"


def test_one_instant_has_one_digest() -> None:
    first = accept({"item_id": "i", "expires_at": "2025-01-01T01:00:00+01:00"}, "item.upserted")
    second = accept({"item_id": "i", "expires_at": "2025-01-01T00:00:00Z"}, "item.upserted")
    assert first.digest == second.digest


@pytest.mark.parametrize("time", ["1969-01-01T00:00:00Z", "9999-01-01T00:00:00Z", "2025-01-01T00:00:00"])
def test_times_in_data_are_bounded(time: str) -> None:
    assert refusal({"item_id": "i", "expires_at": time}, "item.upserted").code == "invalid-value"
    assert refusal({"item_id": "i", "published_at": time}, "item.patched").code == "invalid-value"


@pytest.mark.parametrize("value", [1.01, -1.01])
def test_feedback_is_between_minus_one_and_one(value: float) -> None:
    assert refusal({"exposure_id": "e", "value": value}, "feedback.given").code == "invalid-value"


def test_a_label_may_be_null_but_not_missing() -> None:
    target = {"text": "hello"}
    assert logged(accept({"head": "h", "target": target, "label": None}, "label.observed")).data.label is None
    assert refusal({"head": "h", "target": target}, "label.observed").code == "invalid-event"
    both = {"text": "hello", "item_id": "i"}
    assert refusal({"head": "h", "target": both, "label": "a"}, "label.observed").code == "invalid-event"


def test_an_exposed_item_is_exactly_one_thing() -> None:
    def exposure(*shown: dict[str, Any]) -> dict[str, Any]:
        return {"exposure_id": "e", "kind": "rank", "items": list(shown), "user_id": "u"}

    new = accept(exposure({"item_id": "i", "rank": 1}, {"item_id": "i", "rank": 2}), "exposure.recorded")
    subjects = TYPES.get(new.type).subjects(logged(new).data)
    assert subjects == (Subject("exposure", "e"), Subject("user", "u"), Subject("item", "i"))
    found = refusal(exposure({"item_id": "i", "label": "l", "rank": 1}), "exposure.recorded")
    assert found.pointer == "/data/items/0"
    found = refusal(exposure({"item_id": "i", "rnk": 1}), "exposure.recorded")
    assert (found.code, "'rank'" in found.detail) == ("unknown-field", True)


@pytest.mark.parametrize(
    ("type", "data"),
    [
        ("class.upserted", {"head": "h", "class": "c"}),
        ("class.merged", {"head": "h", "class": "c", "into": "d"}),
        ("entity.merged", {"entity_id": "a", "into": "b"}),
        ("entity.split", {"entity_id": "a", "into": ["b", "c"]}),
        ("entity.aliased", {"entity_id": "a", "aliases": ["b"]}),
        ("document.extracted", {"document_id": "d", "input_position": 3, "chunk_hash": "x", "extractor": "e"}),
        ("drift.detected", {"policy": "p", "detector": "adwin"}),
        ("rule.applied", {"rule": "r", "do": "shadow", "policy": "p", "outcome": "applied", "alarm_position": 3}),
    ],
)
def test_the_rarer_types_round_trip(type: str, data: dict[str, Any]) -> None:
    assert msgspec.to_builtins(logged(accept(data, type)).data) == data


def test_every_type_that_ends_in_deleted_or_erased_deletes() -> None:
    assert set(TYPES.deleting()) == {name for name in TYPES.names() if name.endswith((".deleted", ".erased"))}


@pytest.mark.parametrize("name", TYPES.names())
def test_every_type_has_a_schema_that_closes_its_fields(name: str) -> None:
    schema = TYPES.json_schema(name)
    assert schema["title"] == name
    assert all(part["additionalProperties"] is False for part in schema["$defs"].values() if "properties" in part)


def test_a_type_declared_twice_is_refused() -> None:
    with pytest.raises(PluginError, match="declared twice"):
        EventTypes((*builtin_types(), *builtin_types()))


def test_a_logged_row_of_an_unknown_type_is_an_invalid_event() -> None:
    with pytest.raises(InvalidEvent) as caught:
        TYPES.decode(LogRow(1, NOW, "gone.plugin", b""))
    assert caught.value.code == "unknown-type"
    with pytest.raises(InvalidEvent):
        TYPES.decode(LogRow(1, NOW, "item.deleted", b"\xff"))


def test_a_type_without_subjects_is_refused_not_crashing() -> None:
    class Nothing(msgspec.Struct):
        pass

    types = EventTypes([EventType(name="nothing.done", data=Nothing, subjects=lambda data: ())])
    raw = CloudEvent(specversion="1.0", id="1", source="s", type="nothing.done", data=msgspec.Raw(b"{}"))
    [result] = Acceptor(types, ManualClock(NOW)).accept_many([raw])
    assert isinstance(result, InvalidEvent)


def test_dedup_keys_of_one_id_share_their_prefix() -> None:
    new = accept(VIEW)
    assert new.dedup == dedup_key("s", "1")
    assert dedup_key("other", "1")[:10] == id_prefix("1") == new.dedup[:10]
    assert dedup_key("other", "1") != new.dedup


def test_data_made_here_passes_the_same_rules() -> None:
    new = ACCEPTOR.accept_data("item.upserted", ItemUpserted(item_id="i"), id="1", source="s", time_us=5)
    assert logged(new).time_us == 5
    with pytest.raises(InvalidEvent):
        ACCEPTOR.accept_data("item.upserted", {"item_id": "\ud800"}, id="1", source="s")
    with pytest.raises(InvalidEvent):
        ACCEPTOR.accept_data("item.upserted", {"item_id": "i"}, id="\ud800", source="\ud800")


def test_a_patch_deletes_with_null_and_keeps_what_it_does_not_name() -> None:
    base = ItemUpserted(item_id="i", title="t", url="u", properties={"a": 1, "b": 2}, available=False)
    patch = logged(accept({"item_id": "i", "url": None, "properties": {"a": None, "c": 3}}, "item.patched")).data
    assert isinstance(patch, ItemPatched)
    changed = patched(base, patch)
    assert changed == ItemUpserted(item_id="i", title="t", properties={"b": 2, "c": 3}, available=False)


def test_a_logged_event_can_be_sent_again() -> None:
    new = accept({**VIEW, "value": 2.5}, time="2025-01-02T03:04:05Z", sequence=4)
    assert accept_bytes(encode_json(logged(new))) == new


@given(interactions)
def test_decoding_gives_the_data_that_was_accepted(data: dict[str, Any]) -> None:
    found = logged(accept(data)).data
    assert found == msgspec.convert(data, type(found))


@given(items)
def test_items_survive_the_log(data: dict[str, Any]) -> None:
    found = logged(accept(data, "item.upserted")).data
    assert found == msgspec.convert(data, ItemUpserted)


@given(interactions, st.randoms(use_true_random=False))
def test_the_digest_does_not_depend_on_the_order_of_keys(data: dict[str, Any], random: Any) -> None:
    def shuffled(value: dict[str, Any]) -> dict[str, Any]:
        pairs = [(key, shuffled(item) if isinstance(item, dict) else item) for key, item in value.items()]
        random.shuffle(pairs)
        return dict(pairs)

    assert accept(shuffled(data)).digest == accept(data).digest


@given(st.binary() | anything.map(lambda value: repr(value).encode("utf-8", "replace")))
def test_no_bytes_raise_anything_but_invalid_event(body: bytes) -> None:
    for media in ("application/json", "application/x-ndjson", "application/cloudevents-batch+json"):
        try:
            ACCEPTOR.accept_many(decode_http(media, {}, body))
        except InvalidEvent:
            pass


@given(
    st.sampled_from(TYPES.names()),
    anything | st.dictionaries(st.sampled_from(["item_id", "target", "items"]), anything),
)
def test_no_data_raises_anything_but_invalid_event(type: str, data: Any) -> None:
    try:
        body = msgspec.json.encode(event(data, type))
    except (ValueError, OverflowError):
        return
    try:
        accept_bytes(body)
    except InvalidEvent:
        pass


@given(st.dictionaries(st.sampled_from(["id", "source", "type", "time", "subject", "sequence", "data"]), anything))
def test_no_envelope_raises_anything_but_invalid_event(members: dict[str, Any]) -> None:
    try:
        body = msgspec.json.encode(event(VIEW) | members)
    except (ValueError, OverflowError):
        return
    try:
        accept_bytes(body)
    except InvalidEvent:
        pass


HOSTILE = [
    b"[" * 200_000,
    b'{"a":' * 200_000,
    b'{"data":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    b'{"specversion":"1.0","id":"\\ud800","source":"s","type":"item.deleted","data":{"item_id":"i"}}',
    b'{"specversion":"1.0","id":"1","source":"s","type":"item.deleted","data":{"item_id":"\\udc00"}}',
    b'{"specversion":"1.0","id":"1","source":"s","type":"item.deleted","data":{"item_id":"\xff"}}',
    b'{"specversion":"1.0","id":"1","source":"s","type":"item.deleted","data":{"\xff":1}}',
    b'{"specversion":"1.0","id":"1","source":"s","type":"item.deleted","data":' + b"[" * 900 + b"]" * 900 + b"}",
    b'{"specversion":"1.0","id":"1","source":"s","type":"feedback.given","data":{"exposure_id":"e","value":NaN}}',
    b'{"specversion":"1.0","id":"1","source":"s","type":"feedback.given","data":{"exposure_id":"e","value":1e999}}',
    b'{"specversion":"1.0","id":"1","source":"s","type":"feedback.given","data":{"exposure_id":"e","value":'
    + b"9" * 5000
    + b"}}",
    b'{"specversion":"1.0","id":"1","source":"s","type":"user.patched","data":{"user_id":"u","properties":{"a":'
    + b"9" * 5000
    + b"}}}",
    b'{"specversion":"1.0","id":"1","source":"s","type":"item.deleted","data_base64":"!!"}',
    b'{"specversion":"1.0","id":"1","source":"s","type":"item.deleted"}',
    b"\x00",
    b"",
]


@pytest.mark.parametrize("body", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_bodies_end_as_invalid_events(body: bytes) -> None:
    with pytest.raises(InvalidEvent) as caught:
        accept_bytes(body)
    str(caught.value).encode()


@given(st.integers(0, to_us(from_us(253_370_764_800 * US)) - 1))
def test_times_are_exact_to_the_microsecond(us: int) -> None:
    assert to_us(from_us(us)) == us
