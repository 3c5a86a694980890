"""Debezium's change events (op ``c u d r``, before and after) as events: rows of tables are subjects, or happenings.

A topic's options say, per table, what its rows are::

    [kafka.topics."shop.public.products".options.tables.products]
    kind = "item"                     # a subject: c, u, r → item.upserted, d and tombstones → item.deleted
    id = "sku"                        # a column, or a template as "{shop}-{sku}"; of the key for deletions
    data = { title = "name", "properties.price" = { column = "price", type = "float" } }

    [kafka.topics."shop.public.ratings".options.tables.ratings]
    type = "interaction.observed"     # something that happened: c, r and u → an event; what is deleted stays observed
    data = { user_id = "user", item_id = "sku", value = "stars", action = { value = "rating" } }

The event's id is made from the change's place in the database's log (Debezium's ``source``), so that a connector that
starts again and repeats itself gives duplicates. A column that PostgreSQL did not send, as its large value has not
changed, becomes a patch that leaves it alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import msgspec

from streamfold.core.errors import ConfigError, InvalidEvent, nearest
from streamfold.core.events.accept import CloudEvent
from streamfold.core.events.fields import from_us
from streamfold.core.events.mapping import EventMapping, map_row
from streamfold.core.events.problems import DECODING_ERRORS

if TYPE_CHECKING:
    from streamfold.core.events.kafka import KafkaRecord, TopicMapping

UNAVAILABLE = "__debezium_unavailable_value"
KINDS = ("document", "item", "user")
_IGNORED_OPS = frozenset("m")
"""Messages of the database's own log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableMapping:
    """What the rows of one table are: subjects of a ``kind``, or (``kind`` None) events of a type."""

    kind: str | None
    event: EventMapping
    key: EventMapping | None = None
    """Of a kind: its id alone, from a key."""

    @classmethod
    def parse(cls, table: str, settings: object) -> TableMapping:
        """Read one table of the options; raises ``ConfigError``."""
        where = f"debezium: tables.{table}"
        if not isinstance(settings, Mapping):
            raise ConfigError(f"{where} must be a table with kind and id, or type")
        values = dict(settings)
        for name in values:
            if name not in ("kind", "id", "type", "data"):
                raise ConfigError(f"{where}: unknown key '{name}'{nearest(str(name), ('kind', 'id', 'type', 'data'))}")
        if ("kind" in values) == ("type" in values):
            raise ConfigError(f"{where}: give either kind (rows are subjects) or type (rows are events)")
        data = values.get("data", {})
        if "type" in values:
            return cls(kind=None, event=EventMapping.parse({"type": values["type"], "data": data}))
        kind, id_ = values["kind"], values.get("id")
        if kind not in KINDS:
            raise ConfigError(f"{where}: kind '{kind}'{nearest(str(kind), KINDS)}")
        if not isinstance(id_, str) or not id_:
            raise ConfigError(f"{where}: id is missing: name the column of the {kind}'s id")
        if not isinstance(data, Mapping):
            raise ConfigError(f"{where}: data must be a table")
        # The id goes through the template of an event's id, from where it is taken over.
        template = {"type": f"{kind}.upserted", "id": id_ if "{" in id_ else f"{{{id_}}}"}
        return cls(
            kind=kind,
            event=EventMapping.parse({**template, "data": data}),
            key=EventMapping.parse({**template, "data": {}}),
        )


def parse_tables(options: Mapping[str, object]) -> dict[str, TableMapping]:
    """Read the options of a topic with the decoder ``debezium``; raises ``ConfigError``."""
    for name in options:
        if name != "tables":
            raise ConfigError(f"debezium: unknown option '{name}'{nearest(name, ('tables',))}")
    tables = options.get("tables")
    if not isinstance(tables, Mapping) or not tables:
        raise ConfigError("debezium: options need a table for each database table: [….options.tables.NAME]")
    return {str(name): TableMapping.parse(str(name), table) for name, table in tables.items()}


def decode_debezium(record: KafkaRecord, mapping: TopicMapping) -> CloudEvent | None:
    """Decoder ``debezium``: one change of one row. None: a change that means nothing here."""
    tables = mapping.tables or parse_tables(mapping.options)
    if record.value is None:
        return _tombstone(record, mapping, tables)
    change = _payload(record.value, "the value")
    op = change.get("op")
    if op in _IGNORED_OPS:
        return None
    if op not in ("c", "u", "d", "r"):
        raise InvalidEvent("malformed", f"op {op!r} is none of c, u, d, r: not a change of one row", "/op")
    source = change.get("source")
    source = source if isinstance(source, dict) else {}
    name = str(source.get("table") or source.get("collection") or record.topic.rpartition(".")[2])
    table = tables.get(name)
    if table is None:
        raise InvalidEvent("invalid-event", f"table '{name}' is not in the topic's options{nearest(name, tables)}")
    if op == "d":
        if table.kind is None:
            return None
        row = _row(change, "before") | (_payload(record.key, "the key") if record.key else {})
        event = _deletion(record, mapping, table, row)
    else:
        event = _upsert(_row(change, "after"), _row(change, "before"), table)
    event.id = _id(name, op, source, change) if source else record.place
    event.source = mapping.source_of(record)
    event.time = _time(record, source, change)
    return event


def _payload(value: bytes, what: str) -> dict[str, Any]:
    """Read an envelope, with or without its schema beside it."""
    try:
        decoded = msgspec.json.decode(value, type=dict[str, Any])
    except DECODING_ERRORS as error:
        raise InvalidEvent("malformed", f"{what} is not a JSON object: {error}") from error
    payload = decoded.get("payload") if "schema" in decoded else decoded
    if not isinstance(payload, dict):
        raise InvalidEvent("malformed", f"{what} has no payload: set the converter to JSON objects")
    return payload


def _row(change: Mapping[str, Any], which: str) -> dict[str, Any]:
    row = change.get(which)
    return row if isinstance(row, dict) else {}


def _upsert(row: dict[str, Any], before: Mapping[str, Any], table: TableMapping) -> CloudEvent:
    if not row:
        raise InvalidEvent("malformed", "the change has no row in 'after'", "/after")
    for name, value in row.items():
        if value == UNAVAILABLE and before.get(name, UNAVAILABLE) != UNAVAILABLE:
            row[name] = before[name]
    unsent = {name for name, value in row.items() if value == UNAVAILABLE}
    absent = {path for path, field in table.event.data.items() if field.column in unsent}
    event = map_row({name: value for name, value in row.items() if name not in unsent}, table.event)
    if table.kind is None:
        if absent:
            raise InvalidEvent("invalid-event", f"the database did not send {', '.join(sorted(absent))}")
        return event
    data = msgspec.json.decode(event.data, type=dict[str, Any])
    if absent:
        _patch(data, row, table, absent)
        event.type = f"{table.kind}.patched"
    event.data = msgspec.Raw(msgspec.json.encode({f"{table.kind}_id": event.id, **data}))
    return event


def _patch(data: dict[str, Any], row: Mapping[str, Any], table: TableMapping, absent: set[str]) -> None:
    """Turn an upsert's data into a patch of all but the absent fields: what is null in the row is taken away."""
    if table.kind == "document" and "text" in data:
        detail = f"the database did not send {', '.join(sorted(absent))}: set the table's REPLICA IDENTITY to FULL"
        raise InvalidEvent("invalid-event", detail)
    for path, field in table.event.data.items():
        if field.column is not None and field.column in row and row[field.column] is None:
            *above, last = path.split(".")
            here = data
            for part in above:
                here = here.setdefault(part, {})
            here[last] = None


def _deletion(record: KafkaRecord, mapping: TopicMapping, table: TableMapping, row: Mapping[str, Any]) -> CloudEvent:
    assert table.key is not None
    if table.kind == "user" and not mapping.allow_user_erasure:
        detail = "a deleted row would erase the user for good: set allow_user_erasure for this topic to permit it"
        raise InvalidEvent("invalid-event", detail)
    event = map_row(row, table.key)
    event.data = msgspec.Raw(msgspec.json.encode({f"{table.kind}_id": event.id}))
    event.type = "user.erased" if table.kind == "user" else f"{table.kind}.deleted"
    return event


def _tombstone(record: KafkaRecord, mapping: TopicMapping, tables: Mapping[str, TableMapping]) -> CloudEvent | None:
    """A null value follows each deletion, and is all that compaction leaves of it: a deletion of the key."""
    name = record.topic.rpartition(".")[2]
    table = tables.get(name) or (next(iter(tables.values())) if len(tables) == 1 else None)
    if table is None:
        raise InvalidEvent("invalid-event", f"a null value of topic {record.topic} names no table of its options")
    if table.kind is None:
        return None
    if not record.key:
        raise InvalidEvent("invalid-event", "a null value deletes its key: the record has none")
    event = _deletion(record, mapping, table, _payload(record.key, "the key"))
    event.id, event.source, event.time = record.place, mapping.source_of(record), _time(record, {}, {})
    return event


def _id(table: str, op: str, source: Mapping[str, Any], change: Mapping[str, Any]) -> str:
    """Name a change by its place in the database's log, and by its row, as one statement may change many."""
    place = {name: value for name, value in source.items() if name != "version"}
    what = [table, op, place, change.get("before"), change.get("after")]
    return blake2b(msgspec.json.encode(what, order="deterministic"), digest_size=16).hexdigest()


def _time(record: KafkaRecord, source: Mapping[str, Any], change: Mapping[str, Any]) -> Any:
    """When the change was committed; when Debezium saw it; when Kafka took it."""
    for value in (source.get("ts_ms"), change.get("ts_ms"), record.timestamp_ms):
        if isinstance(value, int) and value > 0:
            try:
                return from_us(value * 1000)
            except OverflowError:
                continue
    return None


decode_debezium.takes_tombstones = True  # type: ignore[attr-defined]  # told to decode_kafka
