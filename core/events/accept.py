"""From a decoded CloudEvent to a ``NewEvent``: validate, canonicalise, hash. Every rejection is an ``InvalidEvent``.

Canonical data is the typed struct encoded again, fields in declared order and maps sorted, so key order and white
space never make the same content look like another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import msgspec

from streamfold.core.clock import US, Clock
from streamfold.core.errors import InvalidEvent
from streamfold.core.events.fields import EPOCH, LAST, check_text, from_us, to_us
from streamfold.core.events.model import Envelope, EventType, NewEvent, Subject
from streamfold.core.events.problems import DECODING_ERRORS, problem
from streamfold.core.events.registry import EventTypes

MAX_EVENT_BYTES = 1 << 20
MAX_AHEAD_US = 5 * 60 * US
MAX_SEQUENCE = 2**63 - 1
_NO_DATA = msgspec.Raw(b"")


class CloudEvent(msgspec.Struct, kw_only=True):
    """The CloudEvents 1.0 envelope as it came in; other extension attributes are tolerated and ignored.

    ``data`` is JSON text. ``data_base64`` is the structured form's way to carry bytes, here of the same JSON.
    """

    specversion: str
    id: str
    source: str
    type: str
    subject: str | None = None
    time: datetime | None = None
    data: msgspec.Raw = _NO_DATA
    data_base64: bytes | None = None
    datacontenttype: str | None = None
    dataschema: str | None = None
    sequence: int | str | None = None
    traceparent: str | None = None


@lru_cache(maxsize=4096)
def _source_hash(source: str) -> bytes:
    check_text(source, "/source", limit=1024, code="invalid-event")
    return blake2b(source.encode()).digest()[:6]


def id_prefix(event_id: str) -> bytes:
    """Return the first 10 bytes of a dedup key: all events of one id, whatever their source, share them."""
    return blake2b(event_id.encode()).digest()[:10]


def dedup_key(source: str, event_id: str) -> bytes:
    """Return the 16 bytes by which ``source`` + ``id`` are known in the ledger."""
    return id_prefix(event_id) + _source_hash(source)


def is_json(content_type: str) -> bool:
    """Tell whether a media type is JSON (``application/json``, ``text/json``, anything ``+json``)."""
    media = content_type.partition(";")[0].strip().lower()
    return media.endswith(("/json", "+json"))


class Acceptor:
    """Validates events against the declared types.

    Parameters
    ----------
    types : the declared event types.
    clock : says what "now" is; an event without ``time`` gets it.
    max_event_bytes : limit of an event's data, as sent.
    """

    def __init__(self, types: EventTypes, clock: Clock, *, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._types = types
        self._clock = clock
        self._max_bytes = max_event_bytes
        self._known: dict[str, tuple[EventType, Callable[[Any], Any]]] = {
            name: (types.get(name), types.decoder(name).decode) for name in types.names()
        }
        self._encode_data = msgspec.json.Encoder(order="deterministic").encode
        self._encode_body = msgspec.msgpack.Encoder().encode

    def accept(self, raw: CloudEvent, *, was_logged: bool = False) -> NewEvent:
        """Return the event ready to be appended; raises ``InvalidEvent`` and nothing else.

        ``was_logged``: a log has taken it; the check of its type may have become stricter since and is not asked.
        """
        return self._accept(raw, self._clock.now_us(), was_logged)

    def accept_many(self, raws: Iterable[CloudEvent | InvalidEvent]) -> list[NewEvent | InvalidEvent]:
        """Accept a batch, item by item, at one reading of the clock; rejections stay in their places."""
        now_us, accept = self._clock.now_us(), self._accept
        results: list[NewEvent | InvalidEvent] = []
        add = results.append
        for raw in raws:
            if isinstance(raw, InvalidEvent):
                add(raw)
                continue
            try:
                add(accept(raw, now_us))
            except InvalidEvent as error:
                add(error)
        return results

    def accept_data(
        self,
        type: str,
        data: msgspec.Struct | dict[str, Any],
        *,
        id: str,
        source: str,
        time_us: int | None = None,
        sequence: int | None = None,
        traceparent: str | None = None,
    ) -> NewEvent:
        """Accept data made in this process (an exposure, an extraction, a ``PUT``), by the same rules."""
        try:
            encoded = msgspec.Raw(self._encode_data(data))
            time = None if time_us is None else from_us(time_us)
        except DECODING_ERRORS as error:
            raise InvalidEvent("invalid-value", f"/data cannot be written as JSON: {error}", "/data") from error
        return self.accept(
            CloudEvent(
                specversion="1.0", id=id, source=source, type=type, time=time, data=encoded,
                sequence=sequence, traceparent=traceparent,
            )
        )  # fmt: skip

    def _accept(self, raw: CloudEvent, now_us: int, was_logged: bool = False) -> NewEvent:
        known = self._known.get(raw.type)
        if known is None:
            check_text(raw.type, "/type", code="invalid-event")
            self._types.get(raw.type)
        assert known is not None
        declared, decode = known
        if raw.specversion != "1.0":
            raise InvalidEvent("invalid-event", "specversion must be '1.0'", "/specversion")
        id_ = raw.id
        check_text(id_, "/id", code="invalid-event")
        source_hash = _source_hash(raw.source)
        data, canonical = self._data(raw, declared, decode, None if was_logged else declared.check)
        try:
            subjects = declared.subjects(data)
            main = subjects[0]
        except IndexError:
            raise InvalidEvent("invalid-event", f"/data of {raw.type} names no subject", "/data") from None
        if raw.subject is not None and raw.subject != main.id:
            detail = f"subject differs from the main subject of the data ({main.kind} '{main.id}'): correct or omit it"
            raise InvalidEvent("invalid-event", detail, "/subject")
        time_us = now_us if raw.time is None else _time_us(raw.time, now_us)
        sequence = None if raw.sequence is None else _sequence(raw.sequence)
        if raw.traceparent is not None:
            check_text(raw.traceparent, "/traceparent", code="invalid-event")
        body = Envelope(
            raw.type, raw.source, id_, main.kind, main.id, time_us, canonical, sequence, raw.traceparent
        )  # fmt: skip
        return NewEvent(
            type=raw.type,
            id=id_,
            source=raw.source,
            subject=Subject(main.kind, main.id),
            dedup=blake2b(id_.encode()).digest()[:10] + source_hash,
            digest=blake2b(raw.type.encode() + b"\0" + canonical, digest_size=8).digest(),
            body=self._encode_body(body),
            deletes=declared.deletes or declared.erases,
            sequence=sequence,
            erases=declared.erases,
            subjects=subjects,
            time_us=time_us,
        )

    def _data(
        self,
        raw: CloudEvent,
        declared: EventType,
        decode: Callable[[Any], Any],
        check: Callable[[Any], None] | None,
    ) -> tuple[Any, bytes]:
        """Return the typed data and its canonical JSON."""
        content: msgspec.Raw | bytes = raw.data
        if raw.data_base64 is not None:
            if len(raw.data):
                raise InvalidEvent("invalid-event", "give data or data_base64, not both", "/data_base64")
            content = raw.data_base64
        if not len(content):
            raise InvalidEvent("invalid-event", "missing field 'data'", "/data")
        if raw.datacontenttype is not None and not is_json(raw.datacontenttype):
            raise InvalidEvent("invalid-event", "datacontenttype must be JSON (application/json)", "/datacontenttype")
        if len(content) > self._max_bytes:
            detail = f"the event's data has {len(content)} bytes: at most {self._max_bytes} are allowed"
            raise InvalidEvent("too-large", detail, "/data")
        try:
            data = decode(content)
            if check is not None:
                check(data)
            canonical = self._encode_data(data)
        except DECODING_ERRORS as error:
            raise problem(error, declared.data, "/data") from error
        if b"\\u0000" in canonical and _holds_nul(msgspec.json.decode(canonical)):
            raise InvalidEvent("invalid-value", "/data contains a NUL character: remove it", "/data")
        return data, canonical


def _holds_nul(value: Any) -> bool:
    """Look for a real NUL: the six characters ``\\u0000`` may also be text about programming."""
    if isinstance(value, str):
        return "\0" in value
    if isinstance(value, dict):
        return any(_holds_nul(key) or _holds_nul(item) for key, item in value.items())
    return isinstance(value, list) and any(map(_holds_nul, value))


def _time_us(time: datetime, now_us: int) -> int:
    if time.tzinfo is None:
        raise InvalidEvent("invalid-event", "time needs an offset, as in 2026-01-31T12:00:00Z", "/time")
    if not EPOCH <= time <= LAST:
        raise InvalidEvent("invalid-event", "time is outside the years 1970..9998", "/time")
    time_us = to_us(time)
    if time_us > now_us + MAX_AHEAD_US:
        raise InvalidEvent("invalid-event", "time is more than 5 minutes ahead of this server's clock", "/time")
    return time_us


def _sequence(value: int | str) -> int:
    """Return a sequence as an integer; CloudEvents' own extension sends it as a decimal string."""
    if isinstance(value, str):
        if not (value.isascii() and value.isdecimal() and len(value) <= 19):
            raise InvalidEvent("invalid-event", "sequence must be a decimal integer ≥ 0", "/sequence")
        value = int(value)
    if not 0 <= value <= MAX_SEQUENCE:
        raise InvalidEvent("invalid-event", "sequence must be in 0..2^63-1", "/sequence")
    return value
