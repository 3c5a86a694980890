"""Kafka records to CloudEvents: tombstones, structured and binary mode, plain JSON by a mapping.

A decoder is a callable ``(KafkaRecord, TopicMapping) -> CloudEvent`` known by name; plugins register more. Nothing here
imports a Kafka client.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from streamfold.core.errors import InvalidEvent, nearest
from streamfold.core.events.accept import CloudEvent
from streamfold.core.events.codecs import STRUCTURED, decode_binary, decode_with_defaults
from streamfold.core.events.debezium import TableMapping, decode_debezium
from streamfold.core.events.fields import from_us
from streamfold.core.events.mapping import EventMapping, map_row
from streamfold.core.events.problems import DECODING_ERRORS

DEFAULT_TYPES = {
    "document": "document.upserted",
    "item": "item.upserted",
    "user": "user.upserted",
    "interaction": "interaction.observed",
    "exposure": "exposure.recorded",
    "label": "label.observed",
    "feedback": "feedback.given",
}
"""The type of a plain JSON value of a topic's kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaRecord:
    """One record, free of any client's classes. ``value`` is ``None`` for a tombstone."""

    topic: str
    partition: int
    offset: int
    key: bytes | None = None
    value: bytes | None = None
    headers: Mapping[str, bytes] = field(default_factory=dict)
    timestamp_ms: int | None = None

    @property
    def place(self) -> str:
        """``topic/partition/offset``: the id of a record that brings none."""
        return f"{self.topic}/{self.partition}/{self.offset}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicMapping:
    """What the settings say about a topic; ``kind`` is what its keys name, ``source`` defaults to ``kafka:TOPIC``."""

    kind: str | None = None
    decoder: str = "cloudevents"
    allow_user_erasure: bool = False
    source: str | None = None
    fields: EventMapping | None = None
    tables: Mapping[str, TableMapping] = field(default_factory=dict)
    """What the decoder ``debezium`` needs."""
    options: Mapping[str, object] = field(default_factory=dict)
    """The topic's ``options`` as they stand in the settings, for decoders of plugins."""

    def source_of(self, record: KafkaRecord) -> str:
        return self.source or f"kafka:{record.topic}"


Decoder = Callable[[KafkaRecord, TopicMapping], CloudEvent | None]
"""Returns None for a record that means nothing. One with a true attribute ``takes_tombstones`` gets null values too."""


def decode_kafka(
    record: KafkaRecord, mapping: TopicMapping, decoders: Mapping[str, Decoder] | None = None
) -> CloudEvent | InvalidEvent | None:
    """Decode one record; whatever is wrong with it comes back as an ``InvalidEvent``, for the dead letters.

    None: there is nothing to take, and nothing wrong.
    """
    try:
        known = DECODERS if decoders is None else decoders
        decoder = known.get(mapping.decoder)
        if record.value is None and not getattr(decoder, "takes_tombstones", False):
            return _tombstone(record, mapping)
        if decoder is None:
            hint = nearest(mapping.decoder, known)
            raise InvalidEvent("malformed", f"topic {record.topic}: no decoder '{mapping.decoder}'{hint}")
        return decoder(record, mapping)
    except InvalidEvent as error:
        return error
    except Exception as error:  # a plugin's decoder may raise anything: the record is kept, the topic goes on
        return InvalidEvent("malformed", f"decoder '{mapping.decoder}': {type(error).__name__}: {str(error)[:300]}")


def _tombstone(record: KafkaRecord, mapping: TopicMapping) -> CloudEvent:
    kind = mapping.kind
    if kind is None or not record.key:
        raise InvalidEvent("invalid-event", "a null value deletes its key: the topic needs a kind, the record a key")
    if kind not in ("document", "item", "user"):
        raise InvalidEvent("invalid-event", f"a null value cannot delete a subject of kind '{kind}'")
    if kind == "user" and not mapping.allow_user_erasure:
        detail = "a null value would erase the user for good: set allow_user_erasure for this topic to permit it"
        raise InvalidEvent("invalid-event", detail)
    data = msgspec.json.encode({f"{kind}_id": _utf8(record.key, "the key")})
    return _plain(record, mapping, "user.erased" if kind == "user" else f"{kind}.deleted", data)


def _plain(record: KafkaRecord, mapping: TopicMapping, type_: str, data: bytes) -> CloudEvent:
    try:
        time = None if record.timestamp_ms is None or record.timestamp_ms < 0 else from_us(record.timestamp_ms * 1000)
    except OverflowError:
        raise InvalidEvent("invalid-event", "the record's timestamp is out of range", "/time") from None
    return CloudEvent(
        specversion="1.0",
        id=record.place,
        source=mapping.source_of(record),
        type=type_,
        time=time,
        data=msgspec.Raw(data),
    )


def _utf8(value: bytes, what: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise InvalidEvent("malformed", f"{what} is not UTF-8") from None


def decode_cloudevent(record: KafkaRecord, mapping: TopicMapping) -> CloudEvent:
    """Decoder ``cloudevents``: structured by content type (or without ``ce_`` headers), else binary mode."""
    headers = {name.lower(): value for name, value in record.headers.items()}
    content_type = _utf8(headers.get("content-type", b""), "the content-type header")
    defaults = {"id": record.place, "source": mapping.source_of(record)}
    body = record.value or b""
    if content_type.partition(";")[0].strip().lower() == STRUCTURED or "ce_specversion" not in headers:
        return decode_with_defaults(body, defaults)
    given = {name[3:]: _utf8(value, f"header {name}") for name, value in headers.items() if name.startswith("ce_")}
    return decode_binary({**defaults, **given}, content_type, body)


def decode_json(record: KafkaRecord, mapping: TopicMapping) -> CloudEvent:
    """Decoder ``json``: plain JSON, through ``mapping.fields`` or, without them, as the data of the topic's kind."""
    body = record.value or b""
    if mapping.fields is None:
        type_ = DEFAULT_TYPES.get(mapping.kind or "")
        if type_ is None:
            raise InvalidEvent("malformed", f"topic {record.topic}: decoder 'json' needs fields, or a known kind")
        return _plain(record, mapping, type_, body)
    try:
        row = msgspec.json.decode(body, type=dict[str, object])
    except DECODING_ERRORS as error:
        raise InvalidEvent("malformed", f"not a JSON object: {error}") from error
    event = map_row(row, mapping.fields)
    plain = _plain(record, mapping, event.type, b"")
    if mapping.fields.id is None:
        event.id = record.place
    if mapping.source is not None:
        event.source = mapping.source
    event.time = event.time or plain.time
    return event


DECODERS: Mapping[str, Decoder] = {
    "cloudevents": decode_cloudevent,
    "json": decode_json,
    "debezium": decode_debezium,
}
"""The built-in decoders."""
