"""CloudEvents 1.0 on HTTP: structured, batch, NDJSON and binary mode; and the structured form of a logged event.

A failure of the whole body is raised; a failure of one event is an ``InvalidEvent`` in its place, so that the rest of
a batch is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

import msgspec

from streamfold.core.errors import InvalidEvent
from streamfold.core.events.accept import CloudEvent, is_json
from streamfold.core.events.fields import from_us
from streamfold.core.events.model import Event
from streamfold.core.events.problems import DECODING_ERRORS, problem

MAX_BATCH_EVENTS = 10_000
STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
NDJSON = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl"})

_MAX_COMMAS = 2_000_000
"""A batch that fails is split into raw items; this bounds their memory (a hostile ``[0,0,0,…`` of 16 MiB)."""

_one = msgspec.json.Decoder(CloudEvent).decode
_many = msgspec.json.Decoder(list[CloudEvent]).decode
_raw_items = msgspec.json.Decoder(list[msgspec.Raw]).decode
_raw_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_ATTRIBUTES = frozenset(
    ("specversion", "id", "source", "type", "subject", "time", "dataschema", "sequence", "traceparent")
)  # fmt: skip


def decode_structured(body: bytes | msgspec.Raw) -> CloudEvent:
    """Decode one structured JSON event; raises ``InvalidEvent``."""
    try:
        return _one(body)
    except DECODING_ERRORS as error:
        raise problem(error, CloudEvent) from error


def decode_with_defaults(body: bytes, defaults: Mapping[str, str]) -> CloudEvent:
    """Decode one structured event whose missing attributes are taken from ``defaults`` (Kafka: id, source)."""
    try:
        return _one(body)
    except DECODING_ERRORS as error:
        first = error
    try:
        members = _raw_members(body)
        missing = {name: value for name, value in defaults.items() if name not in members}
        if missing:
            return _one(msgspec.json.encode({**members, **missing}))
    except DECODING_ERRORS as error:
        raise problem(error, CloudEvent) from error
    raise problem(first, CloudEvent) from first


def decode_batch(body: bytes) -> list[CloudEvent | InvalidEvent]:
    """Decode a JSON array of structured events, item by item where one fails."""
    try:
        events = _many(body)
    except DECODING_ERRORS:
        return _batch_by_item(body)
    _check_count(len(events))
    return list(events)


def _batch_by_item(body: bytes) -> list[CloudEvent | InvalidEvent]:
    if body.count(b",") > _MAX_COMMAS:
        raise InvalidEvent("too-large", "the batch holds too many values: send smaller batches")
    try:
        items = _raw_items(body)
    except DECODING_ERRORS as error:
        raise InvalidEvent("malformed", str(problem(error, CloudEvent))) from error
    _check_count(len(items))
    return [_result(item) for item in items]


def decode_lines(body: bytes) -> list[CloudEvent | InvalidEvent]:
    """Decode NDJSON: one structured event a line, blank lines skipped, each line its own result."""
    if body.count(b"\n") > 10 * MAX_BATCH_EVENTS:
        _check_count(body.count(b"\n"))
    lines = [line for line in _lines(body) if line]
    _check_count(len(lines))
    return [_result(line) for line in lines]


def _lines(body: bytes) -> Iterator[bytes]:
    return (line.strip(b" \t\r") for line in body.split(b"\n"))


def _result(body: bytes | msgspec.Raw) -> CloudEvent | InvalidEvent:
    try:
        return _one(body)
    except DECODING_ERRORS as error:
        return problem(error, CloudEvent)


def _check_count(count: int) -> None:
    if count > MAX_BATCH_EVENTS:
        raise InvalidEvent("too-large", f"the batch holds {count} events: at most {MAX_BATCH_EVENTS} are allowed")


def decode_binary(attributes: Mapping[str, str], content_type: str | None, body: bytes) -> CloudEvent:
    """Make the event of binary mode from its attributes (without their prefix); raises ``InvalidEvent``."""
    known = {name: value for name, value in attributes.items() if name in _ATTRIBUTES}
    try:
        event = msgspec.convert(known, CloudEvent)
    except DECODING_ERRORS as error:
        raise problem(error, CloudEvent) from error
    event.data = msgspec.Raw(body)
    event.datacontenttype = content_type or None
    return event


def decode_http(content_type: str, headers: Mapping[str, str], body: bytes) -> list[CloudEvent | InvalidEvent]:
    """Decode the body of ``POST /v1/events``.

    Parameters
    ----------
    content_type : the request's; ``application/json`` is told apart by shape.
    headers : the request's; names in any case.

    Raises
    ------
    InvalidEvent
        ``unsupported-media-type``, ``malformed`` or ``too-large``: the whole body is refused.
    """
    media, charset = _media(content_type)
    if charset not in ("utf-8", "utf8", "us-ascii"):
        raise InvalidEvent("unsupported-media-type", f"charset '{charset}': send UTF-8")
    if media == STRUCTURED:
        return _single(body)
    if media == BATCH:
        return decode_batch(body)
    if media in NDJSON:
        return decode_lines(body)
    attributes = {
        name[3:]: unquote(value, errors="replace")
        for key, value in headers.items()
        if (name := key.lower()).startswith("ce-")
    }
    if "specversion" in attributes:
        if media and not is_json(media):
            raise InvalidEvent("unsupported-media-type", f"event data must be application/json, not '{media[:64]}'")
        try:
            return [decode_binary(attributes, media, body)]
        except InvalidEvent as error:
            return [error]
    if media == "application/json":
        return decode_batch(body) if body.lstrip(b" \t\r\n")[:1] == b"[" else _single(body)
    known = ", ".join((STRUCTURED, BATCH, "application/x-ndjson", "application/json"))
    raise InvalidEvent("unsupported-media-type", f"content type '{media[:64]}' is not one of {known}")


def _single(body: bytes) -> list[CloudEvent | InvalidEvent]:
    result = _result(body)
    if isinstance(result, InvalidEvent) and result.code == "malformed":
        raise result
    return [result]


def _media(content_type: str) -> tuple[str, str]:
    """Split a content type into its media type and its charset, in lower case."""
    media, *parameters = content_type.split(";")
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "charset":
            return media.strip().lower(), value.strip().strip('"').lower()
    return media.strip().lower(), "utf-8"


def encode(event: Event) -> dict[str, Any]:
    """Return a logged event as structured CloudEvents JSON values, with the extension ``recordedtime``."""
    value: dict[str, Any] = {
        "specversion": "1.0",
        "id": event.id,
        "source": event.source,
        "type": event.type,
        "subject": event.subject.id,
        "time": _rfc3339(event.time_us),
        "recordedtime": _rfc3339(event.recorded_us),
        "datacontenttype": "application/json",
        "data": msgspec.to_builtins(event.data),
    }
    if event.sequence is not None:
        value["sequence"] = event.sequence
    if event.traceparent is not None:
        value["traceparent"] = event.traceparent
    return value


def encode_json(event: Event) -> bytes:
    """Return :func:`encode` as bytes; such bytes can be sent again."""
    return msgspec.json.encode(encode(event))


def _rfc3339(us: int) -> str:
    return from_us(us).isoformat(timespec="microseconds").replace("+00:00", "Z")
