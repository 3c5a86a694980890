"""The decoder ``debezium``, on envelopes as its PostgreSQL and MySQL connectors write them, up to accepted events."""

from __future__ import annotations

import json
from typing import Any

import pytest

from streamfold.core.clock import SystemClock
from streamfold.core.errors import ConfigError, InvalidEvent
from streamfold.core.events import Acceptor, CloudEvent, EventTypes, KafkaRecord, NewEvent, builtin_types
from streamfold.core.events.kafka import decode_kafka
from streamfold.core.settings import TopicSettings
from streamfold.pipelines.ingest.take import TopicIntake, topic_mapping

PRODUCTS = {
    "kind": "item",
    "id": "sku",
    "data": {"title": "name", "text": "description", "properties.price": {"column": "price", "type": "float"}},
}
RATINGS = {
    "type": "interaction.observed",
    "data": {"user_id": "user", "item_id": "sku", "value": "stars", "action": {"value": "rating"}},
}
TABLES = {"products": PRODUCTS, "ratings": RATINGS}
LAMP = {"sku": "lamp", "name": "Desk lamp", "description": "A lamp for desks.", "price": "39.90"}
TYPES = EventTypes(builtin_types())


def source(table: str = "products", **more: Any) -> dict[str, Any]:
    """The block ``source`` of Debezium's PostgreSQL connector 2.x."""
    return {
        "version": "2.7.0.Final", "connector": "postgresql", "name": "shop", "ts_ms": 1_700_000_000_123,
        "snapshot": "false", "db": "shop", "sequence": '["24023119","24023128"]', "schema": "public", "table": table,
        "txId": 555, "lsn": 24023128, "xmin": None, **more,
    }  # fmt: skip


def change(op: str, before: Any = None, after: Any = None, table: str = "products", **more: Any) -> dict[str, Any]:
    return {
        "before": before, "after": after, "source": source(table, **more), "op": op, "ts_ms": 1_700_000_000_999,
        "transaction": None,
    }  # fmt: skip


def record(value: Any, key: Any = None, topic: str = "shop.public.products", offset: int = 9) -> KafkaRecord:
    return KafkaRecord(
        topic=topic,
        partition=2,
        offset=offset,
        key=None if key is None else json.dumps(key).encode(),
        value=None if value is None else json.dumps(value).encode(),
        timestamp_ms=1_700_000_001_000,
    )


def decode(found: KafkaRecord, tables: Any = TABLES, **settings: Any) -> CloudEvent | InvalidEvent | None:
    return decode_kafka(found, topic_mapping(TopicSettings(decoder="debezium", options={"tables": tables}, **settings)))


def data(event: CloudEvent | InvalidEvent | None) -> Any:
    """The data of an event that the acceptor takes."""
    assert isinstance(event, CloudEvent), event
    assert isinstance(Acceptor(TYPES, SystemClock()).accept(event), NewEvent)
    return json.loads(bytes(event.data))


@pytest.mark.parametrize("op", ["c", "r", "u"])
@pytest.mark.parametrize("with_schema", [False, True])
def test_a_row_becomes_an_upsert_of_its_subject(op: str, with_schema: bool) -> None:
    value: dict[str, Any] = change(op, None, LAMP)
    if with_schema:
        value = {"schema": {"type": "struct", "fields": []}, "payload": value}
    event = decode(record(value))
    assert data(event) == {
        "item_id": "lamp", "title": "Desk lamp", "text": "A lamp for desks.", "properties": {"price": 39.9}
    }  # fmt: skip
    assert isinstance(event, CloudEvent)
    assert (event.type, event.source) == ("item.upserted", "kafka:shop.public.products")
    assert event.time is not None
    assert event.time.timestamp() == 1_700_000_000.123  # when it was committed


def test_null_columns_are_absent_fields() -> None:
    assert data(decode(record(change("u", None, LAMP | {"description": None, "price": None})))) == {
        "item_id": "lamp", "title": "Desk lamp"
    }  # fmt: skip


@pytest.mark.parametrize("before", [None, {"sku": "lamp"}, LAMP])
def test_a_deleted_row_deletes_its_subject_by_its_key(before: Any) -> None:
    event = decode(record(change("d", before), {"schema": {}, "payload": {"sku": "lamp"}}))
    assert data(event) == {"item_id": "lamp"}
    assert isinstance(event, CloudEvent)
    assert event.type == "item.deleted"


def test_the_null_value_after_a_deletion_is_one_too() -> None:
    event = decode(record(None, {"sku": "lamp"}))
    assert isinstance(event, CloudEvent)
    assert (event.type, event.id, data(event)) == ("item.deleted", "shop.public.products/2/9", {"item_id": "lamp"})
    alone = decode(record(None, {"sku": "lamp"}, topic="anything"), {"products": PRODUCTS})
    assert data(alone) == {"item_id": "lamp"}
    assert isinstance(decode(record(None)), InvalidEvent)
    assert isinstance(decode(record(None, {"sku": "lamp"}, topic="anything")), InvalidEvent)


def test_rows_of_an_event_table_are_events_and_their_deletion_is_nothing() -> None:
    row = {"id": 7, "user": 12, "sku": "lamp", "stars": 4}
    tables = {"ratings": RATINGS | {"data": RATINGS["data"] | {"user_id": {"column": "user", "type": "str"}}}}  # type: ignore[operator]
    for op in "cru":
        event = decode(record(change(op, None, row, "ratings"), topic="x"), tables)
        assert data(event) == {"user_id": "12", "item_id": "lamp", "value": 4, "action": "rating"}
    assert decode(record(change("d", row, None, "ratings"), {"id": 7}), tables) is None
    assert decode(record(None, {"id": 7}, topic="shop.public.ratings"), tables) is None


def test_what_a_connector_repeats_has_the_same_id_and_another_change_another() -> None:
    first = record(change("u", None, LAMP))
    again = record(change("u", None, LAMP, version="2.7.1.Final"), offset=77)
    later = record(change("u", None, LAMP, lsn=24023999), offset=78)
    other = record(change("u", None, LAMP | {"sku": "sofa"}), offset=79)  # the same statement, another row
    ids = [event.id for found in (first, again, later, other) if isinstance(event := decode(found), CloudEvent)]
    assert ids[0] == ids[1]
    assert len(set(ids)) == 3


def test_mysqls_source_and_composite_keys() -> None:
    tables = {"stock": {"kind": "item", "id": "{shop}-{sku}", "data": {"title": "name"}}}
    value = change("c", None, {"shop": 3, "sku": "lamp", "name": "Lamp"}, "stock")
    value["source"] = {
        "version": "2.7.0.Final", "connector": "mysql", "name": "db", "ts_ms": 1_700_000_000_000, "snapshot": "false",
        "db": "shop", "table": "stock", "server_id": 223344, "gtid": None, "file": "mysql-bin.000003", "pos": 484,
        "row": 0, "thread": 7, "query": None,
    }  # fmt: skip
    assert data(decode(record(value), tables)) == {"item_id": "3-lamp", "title": "Lamp"}
    assert data(decode(record(None, {"shop": 3, "sku": "lamp"}, topic="db.shop.stock"), tables)) == {
        "item_id": "3-lamp"
    }


# -- large columns that PostgreSQL did not send --------------------------------------------------------------------
UNSENT = "__debezium_unavailable_value"


def test_a_column_that_was_not_sent_is_left_alone_by_a_patch() -> None:
    event = decode(record(change("u", None, LAMP | {"description": UNSENT, "price": None})))
    assert data(event) == {"item_id": "lamp", "title": "Desk lamp", "properties": {"price": None}}
    assert isinstance(event, CloudEvent)
    assert event.type == "item.patched"


def test_a_column_that_was_not_sent_is_taken_from_before_if_it_is_there() -> None:
    event = decode(record(change("u", LAMP, LAMP | {"description": UNSENT, "name": "Lamp"})))
    assert data(event) == {
        "item_id": "lamp", "title": "Lamp", "text": "A lamp for desks.", "properties": {"price": 39.9}
    }  # fmt: skip


def test_a_column_that_was_not_sent_and_is_not_mapped_changes_nothing() -> None:
    event = decode(record(change("u", None, LAMP | {"image": UNSENT})))
    assert isinstance(event, CloudEvent)
    assert event.type == "item.upserted"


def test_a_documents_text_without_its_title_asks_for_the_full_row() -> None:
    tables = {"pages": {"kind": "document", "id": "id", "data": {"text": "body", "title": "title"}}}
    found = decode(record(change("u", None, {"id": 1, "body": "New.", "title": UNSENT}, "pages")), tables)
    assert isinstance(found, InvalidEvent)
    assert "REPLICA IDENTITY" in found.detail
    event = decode(record(change("u", None, {"id": 1, "body": UNSENT, "title": "New"}, "pages")), tables)
    assert data(event) == {"document_id": "1", "title": "New"}


# -- what is refused -----------------------------------------------------------------------------------------------
def test_users_are_erased_only_where_the_topic_permits_it() -> None:
    tables = {"users": {"kind": "user", "id": "id", "data": {"properties.country": "country"}}}
    gone = record(change("d", {"id": 5}, None, "users"), {"id": 5})
    refused = decode(gone, tables)
    assert isinstance(refused, InvalidEvent)
    assert "allow_user_erasure" in refused.detail
    event = decode(gone, tables, allow_user_erasure=True)
    assert isinstance(event, CloudEvent)
    assert (event.type, data(event)) == ("user.erased", {"user_id": "5"})


@pytest.mark.parametrize(
    "value",
    [
        {"op": "t", "source": source()},
        {"op": "x"},
        {"no": "envelope"},
        {"schema": {}, "payload": None},
        change("c", None, None),
        change("c", None, LAMP, "prodcts"),
        change("c", None, {"name": "no key"}),
        [1],
        "text",
    ],
)
def test_what_is_no_change_of_a_known_row_is_a_dead_letter(value: Any) -> None:
    found = decode(record(value))
    assert isinstance(found, InvalidEvent)
    assert found.detail


def test_a_message_of_the_databases_log_is_nothing() -> None:
    assert decode(record({"op": "m", "source": source(), "message": {"prefix": "x"}})) is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "tables"),
        ({"table": {}}, "tables"),
        ({"tables": {"a": {"kind": "itm", "id": "x"}}}, "item"),
        ({"tables": {"a": {"kind": "item"}}}, "id is missing"),
        ({"tables": {"a": {"kind": "item", "id": "x", "type": "y"}}}, "either"),
        ({"tables": {"a": {"id": "x"}}}, "either"),
        ({"tables": {"a": {"kind": "item", "id": "x", "dta": {}}}}, "data"),
        ({"tables": {"a": {"kind": "item", "id": "x", "data": 3}}}, "data"),
        ({"tables": {"a": 3}}, "must be a table"),
    ],
)
def test_options_that_make_no_sense_are_refused_at_the_start(options: dict[str, Any], says: str) -> None:
    settings = TopicSettings(decoder="debezium", options=options)
    with pytest.raises(ConfigError, match=says):
        TopicIntake("t", settings, {"debezium": len}, Acceptor(TYPES, SystemClock()))  # type: ignore[dict-item]


def test_the_intake_passes_over_what_means_nothing() -> None:
    from types import SimpleNamespace

    from streamfold.core.events.kafka import DECODERS

    def fetched(found: KafkaRecord) -> Any:
        return SimpleNamespace(
            topic=found.topic, partition=found.partition, offset=found.offset, key=found.key, value=found.value,
            headers=[], timestamp=found.timestamp_ms,
        )  # fmt: skip

    settings = TopicSettings(decoder="debezium", options={"tables": TABLES})
    intake = TopicIntake("t", settings, DECODERS, Acceptor(TYPES, SystemClock()))
    stars = {"id": 7, "user": "u", "sku": "lamp", "stars": -3}
    rated = fetched(record(change("c", None, stars, "ratings"), offset=6))
    [letter] = intake.take([rated], 0).dead
    assert (letter.stage, letter.code) == ("validate", "invalid-value")
    assert letter.detail.startswith("/data/value is -3: it must not be negative")
    records = [
        fetched(record({"op": "m"}, offset=1)),
        fetched(record(change("c", None, LAMP), offset=2)),
        fetched(record({"op": "t"}, offset=3)),
        fetched(record(change("d", LAMP), {"sku": "lamp"}, offset=4)),
        fetched(record(None, {"sku": "lamp"}, offset=5)),
    ]
    taken = intake.take(records, 1)
    assert [(event.type, found.offset) for event, found in zip(taken.events, taken.records, strict=True)] == [
        ("item.upserted", 2), ("item.deleted", 4), ("item.deleted", 5)
    ]  # fmt: skip
    assert [letter.offset for letter in taken.dead] == ["shop.public.products/2/3"]
