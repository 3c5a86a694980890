"""CloudEvents on HTTP and Kafka, and mappings of rows."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import streamfold.core.events as events
from streamfold.core.errors import ConfigError, InvalidEvent
from streamfold.core.events import (
    CloudEvent,
    EventMapping,
    KafkaRecord,
    TopicMapping,
    decode_http,
    decode_kafka,
    map_row,
)

ONE = {"specversion": "1.0", "id": "1", "source": "s", "type": "item.deleted", "data": {"item_id": "i"}}
BODY = msgspec.json.encode(ONE)


def record(value: bytes | None, **headers: bytes) -> KafkaRecord:
    named = {name.replace("__", "-"): content for name, content in headers.items()}
    return KafkaRecord(topic="t", partition=2, offset=9, key=b"k", value=value, headers=named, timestamp_ms=1000)


def decoded(record: KafkaRecord, **mapping: Any) -> CloudEvent:
    result = decode_kafka(record, TopicMapping(**mapping))
    assert isinstance(result, CloudEvent), result
    return result


def http(content_type: str, body: bytes, **headers: str) -> list[CloudEvent | InvalidEvent]:
    return decode_http(content_type, {name.replace("_", "-"): value for name, value in headers.items()}, body)


def code(content_type: str, body: bytes, **headers: str) -> str:
    with pytest.raises(InvalidEvent) as caught:
        http(content_type, body, **headers)
    return caught.value.code


def test_exported_names_exist_once() -> None:
    assert len(events.__all__) == len(set(events.__all__))  # their order is ruff's (RUF022)
    assert all(hasattr(events, name) for name in events.__all__)


@pytest.mark.parametrize("media", ["application/cloudevents+json; charset=UTF-8", "application/json"])
def test_a_structured_event_is_decoded(media: str) -> None:
    [event] = http(media, BODY)
    assert isinstance(event, CloudEvent)
    assert (event.id, bytes(event.data)) == ("1", b'{"item_id":"i"}')


@pytest.mark.parametrize("media", ["application/cloudevents-batch+json", "application/json"])
def test_a_batch_keeps_failures_in_their_places(media: str) -> None:
    first, second, third = http(media, b"[" + BODY + b',{"id":3},' + BODY + b"]")
    assert isinstance(first, CloudEvent)
    assert isinstance(second, InvalidEvent)
    assert isinstance(third, CloudEvent)


def test_each_line_is_its_own_result() -> None:
    results = http("application/x-ndjson", BODY + b"\r\n\n{oops\n" + BODY)
    assert [isinstance(result, CloudEvent) for result in results] == [True, False, True]


def test_binary_mode_percent_decodes_headers() -> None:
    headers = {"CE_specversion": "1.0", "ce_id": "a%20%C3%A9", "ce_source": "s", "ce_type": "item.deleted"}
    [event] = http("application/json", b'{"item_id":"i"}', ce_time="2025-01-01T00:00:00Z", ce_x="y", **headers)
    assert isinstance(event, CloudEvent)
    assert (event.id, event.datacontenttype) == ("a é", "application/json")
    assert event.time is not None


def test_binary_mode_without_an_id_is_one_invalid_event() -> None:
    [result] = http("application/json", b"{}", ce_specversion="1.0", ce_type="t")
    assert isinstance(result, InvalidEvent)
    assert result.pointer == "/id"


def test_bodies_that_cannot_be_read_at_all_are_refused() -> None:
    assert code("text/xml", b"<a/>") == "unsupported-media-type"
    assert code("application/json; charset=latin-1", b"{}") == "unsupported-media-type"
    assert code("text/plain", b"", ce_specversion="1.0") == "unsupported-media-type"
    assert code("application/cloudevents+json", b"{oops") == "malformed"
    assert code("application/cloudevents-batch+json", b"[{},") == "malformed"


def test_a_batch_has_at_most_ten_thousand_events() -> None:
    assert len(http("application/x-ndjson", (BODY + b"\n") * 10_000)) == 10_000
    assert code("application/x-ndjson", (BODY + b"\n") * 10_001) == "too-large"
    assert code("application/cloudevents-batch+json", b"[" + b"{},".join([b""] * 10_002) + b"{}]") == "too-large"
    assert code("application/cloudevents-batch+json", b"[" + b"0," * 2_000_001 + b"0]") == "too-large"
    assert code("application/x-ndjson", b"\n" * 200_000) == "too-large"


def test_a_null_value_deletes_its_key() -> None:
    event = decoded(record(None), kind="item")
    assert (event.type, event.id, event.source, bytes(event.data)) == (
        "item.deleted",
        "t/2/9",
        "kafka:t",
        b'{"item_id":"k"}',
    )


def test_a_null_value_erases_a_user_only_where_allowed() -> None:
    assert isinstance(decode_kafka(record(None), TopicMapping(kind="user")), InvalidEvent)
    assert decoded(record(None), kind="user", allow_user_erasure=True).type == "user.erased"


@pytest.mark.parametrize("kind", [None, "interaction"])
def test_a_null_value_that_names_nothing_is_refused(kind: str | None) -> None:
    assert isinstance(decode_kafka(record(None), TopicMapping(kind=kind)), InvalidEvent)


def test_kafka_structured_mode_fills_in_a_missing_id() -> None:
    headers = {"content__type": b"application/cloudevents+json; charset=utf-8"}
    assert decoded(record(BODY, **headers)).id == "1"
    anonymous = msgspec.json.encode({name: value for name, value in ONE.items() if name not in ("id", "source")})
    event = decoded(record(anonymous, **headers), source="shop")
    assert (event.id, event.source) == ("t/2/9", "shop")


def test_kafka_binary_mode_reads_headers() -> None:
    value = record(
        b'{"item_id":"i"}', ce_specversion=b"1.0", ce_type=b"item.deleted", content__type=b"application/json"
    )
    event = decoded(value)
    assert (event.type, event.id, event.source) == ("item.deleted", "t/2/9", "kafka:t")


def test_plain_json_is_the_data_of_the_topics_kind() -> None:
    event = decoded(record(b'{"item_id":"i"}'), decoder="json", kind="item")
    assert (event.type, bytes(event.data)) == ("item.upserted", b'{"item_id":"i"}')
    assert event.time is not None
    assert event.time.timestamp() == 1


def test_plain_json_is_mapped_by_fields() -> None:
    fields = EventMapping.parse(
        {
            "type": "interaction.observed",
            "time": {"column": "at", "format": "ms"},
            "data": {
                "user_id": {"column": "user.id", "type": "str"},
                "item_id": "sku",
                "action": {"value": "view"},
                "context.shop": "shop",
            },
        }
    )
    value = msgspec.json.encode({"user": {"id": 42}, "sku": "i", "at": 1_700_000_000_123, "shop": "n"})
    event = decoded(record(value), decoder="json", fields=fields, source="shop")
    assert msgspec.json.decode(event.data) == {
        "user_id": "42",
        "item_id": "i",
        "action": "view",
        "context": {"shop": "n"},
    }
    assert (event.id, event.source) == ("t/2/9", "shop")
    assert event.time is not None
    assert event.time.isoformat() == "2023-11-14T22:13:20.123000+00:00"


def test_a_decoder_that_crashes_gives_an_invalid_event() -> None:
    def broken(record: KafkaRecord, mapping: TopicMapping) -> CloudEvent:
        raise ZeroDivisionError("oops")

    result = decode_kafka(record(b"x"), TopicMapping(decoder="broken"), {"broken": broken})
    assert isinstance(result, InvalidEvent)
    assert isinstance(decode_kafka(record(b"x"), TopicMapping(decoder="jsn")), InvalidEvent)


@given(st.binary(), st.sampled_from(["json", "cloudevents"]), st.dictionaries(st.text(), st.binary()))
def test_no_record_raises(value: bytes, decoder: str, headers: dict[str, bytes]) -> None:
    found = KafkaRecord(topic="t", partition=0, offset=0, value=value, headers={"ce_specversion": b"1.0", **headers})
    decode_kafka(found, TopicMapping(decoder=decoder, kind="item"))


CSV = EventMapping.parse(
    {
        "type": "item.upserted",
        "source": "/csv",
        "time": {"column": "ts", "format": "s"},
        "data": {
            "item_id": "sku",
            "categories": {"column": "tags", "type": "list", "sep": ";"},
            "available": {"column": "stock", "type": "bool"},
            "properties.price": {"column": "price", "type": "float"},
        },
    }
)
ROW = {"sku": "1", "tags": "a; b", "stock": "yes", "price": "2.5", "ts": "1700000000.5"}


def test_a_row_is_converted_by_its_mapping() -> None:
    event = map_row(ROW, CSV)
    assert msgspec.json.decode(event.data) == {
        "item_id": "1",
        "categories": ["a", "b"],
        "available": True,
        "properties": {"price": 2.5},
    }
    assert event.time is not None
    assert event.time.timestamp() == 1_700_000_000.5


def test_a_scale_is_shifted_by_its_mapping() -> None:
    def value(stars: str, **more: Any) -> Any:
        fields = {"value": {"column": "stars", "type": "float", "add": 5, **more}}
        mapping = EventMapping.parse({"type": "interaction.observed", "data": fields})
        return msgspec.json.decode(map_row({"stars": stars}, mapping).data)["value"]

    assert value("-3.5") == 1.5
    assert (value("-5", type="int"), type(value("-5", type="int"))) == (0, int)
    with pytest.raises(InvalidEvent, match="finite"):
        value("1e308", add=1.7e308)


def test_sending_a_file_twice_gives_the_same_ids() -> None:
    assert map_row(ROW, CSV, line=3).id == map_row(dict(reversed(ROW.items())), CSV, line=3).id
    assert map_row(ROW, CSV, line=3).id != map_row(ROW, CSV, line=4).id


def test_an_id_template_is_filled_from_columns() -> None:
    mapping = EventMapping.parse({"type": "item.deleted", "id": "del-{sku}", "data": {"item_id": "sku"}})
    assert map_row({"sku": "7"}, mapping).id == "del-7"
    with pytest.raises(InvalidEvent, match="sku"):
        map_row({"sku": ""}, mapping)


@pytest.mark.parametrize("change", [{"price": "x"}, {"price": "nan"}, {"stock": "maybe"}, {"ts": "1e99"}, {"ts": "x"}])
def test_a_value_that_does_not_convert_is_an_invalid_event(change: dict[str, str]) -> None:
    with pytest.raises(InvalidEvent):
        map_row({**ROW, **change}, CSV)


@given(st.dictionaries(st.sampled_from(list(ROW)), st.text()))
def test_no_row_raises_anything_but_invalid_event(row: dict[str, str]) -> None:
    try:
        map_row(row, CSV)
    except InvalidEvent:
        pass


@pytest.mark.parametrize(
    "settings",
    [
        {"type": "t"},
        {"type": "t", "data": {}, "tim": "x"},
        {"type": "t", "data": {"a": {"column": "b", "value": 1}}},
        {"type": "t", "data": {"a": {"column": "b", "type": "flot"}}},
        {"type": "t", "data": {"a": {"column": "b", "add": 1}}},
        {"type": "t", "data": {"a": {"column": "b", "type": "int", "add": 0.5}}},
        {"type": "t", "data": {"a": {"column": "b", "type": "float", "add": "1"}}},
        {"type": "t", "data": {"a": {"column": "b", "type": "float", "add": True}}},
        {"type": "t", "data": {"a": {"column": "b", "type": "float", "add": float("nan")}}},
        {"type": "t", "data": {}, "time": {"column": "x", "format": "weeks"}},
        {"type": 3, "data": {}},
    ],
)
def test_a_wrong_mapping_is_a_config_error(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        EventMapping.parse(settings)
