"""Records of one topic become events to append and dead letters; nothing here talks to Kafka or the ledger.

The common record, a structured CloudEvent, goes straight from its bytes to the typed envelope. Whatever is not that,
or fails there, takes the long way through ``decode_kafka``, which knows all forms and all reasons.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from streamfold.core.errors import ConfigError, InvalidEvent, nearest
from streamfold.core.events import Acceptor, CloudEvent
from streamfold.core.events.codecs import STRUCTURED
from streamfold.core.events.debezium import parse_tables
from streamfold.core.events.kafka import Decoder, KafkaRecord, TopicMapping, decode_kafka
from streamfold.core.events.mapping import EventMapping
from streamfold.core.events.model import NewEvent
from streamfold.core.ledger.abc import DeadLetter
from streamfold.core.settings import TopicSettings

_structured = msgspec.json.Decoder(CloudEvent).decode
_STRUCTURED = STRUCTURED.encode()


KEY_HEADER, TOMBSTONE_HEADER = "streamfold-key", "streamfold-tombstone"
"""Headers of a dead letter that keep what a Kafka record says beside its value."""


def topic_mapping(settings: TopicSettings) -> TopicMapping:
    """What a topic's settings mean to decoders. Raises ``ConfigError``."""
    return TopicMapping(
        kind=settings.kind or None,
        decoder=settings.decoder,
        allow_user_erasure=settings.allow_user_erasure,
        source=settings.source or None,
        fields=EventMapping.parse(settings.options) if settings.options and settings.decoder == "json" else None,
        tables=parse_tables(settings.options) if settings.decoder == "debezium" else {},
        options=settings.options,
    )


def kept_record(letter: DeadLetter) -> KafkaRecord | None:
    """The Kafka record that a dead letter keeps; None for letters of other intakes."""
    topic, partition, offset = ([*(letter.offset or "").rsplit("/", 2), "", ""])[:3]
    if not (partition.isdecimal() and offset.isdecimal()):
        return None
    headers = dict(letter.headers)
    key, tombstone = headers.pop(KEY_HEADER, None), headers.pop(TOMBSTONE_HEADER, None)
    return KafkaRecord(
        topic=topic,
        partition=int(partition),
        offset=int(offset),
        key=None if key is None else key.encode(),
        value=None if tombstone else letter.payload,
        headers={name: value.encode() for name, value in headers.items()},
        timestamp_ms=letter.at_us // 1000,
    )


@dataclass(slots=True)
class Taken:
    """What some records of one partition became: events with the records they came from, and dead letters."""

    events: list[NewEvent] = field(default_factory=list)
    records: list[Any] = field(default_factory=list)
    dead: list[DeadLetter] = field(default_factory=list)


class TopicIntake:
    """Decodes and accepts the records of one topic, as its settings say.

    Parameters
    ----------
    topic, settings : the topic and its table in the settings.
    decoders : known decoders by name; an unknown one is a ``ConfigError``.
    acceptor : validates what was decoded.
    refuse : says why an accepted event must not be logged (plugins), or None.
    """

    def __init__(
        self,
        topic: str,
        settings: TopicSettings,
        decoders: Mapping[str, Decoder],
        acceptor: Acceptor,
        refuse: Any = None,
    ) -> None:
        if settings.decoder not in decoders:
            hint = nearest(settings.decoder, decoders)
            raise ConfigError(f"[kafka.topics.{topic}] no decoder named {settings.decoder!r}{hint}")
        self.topic = topic
        self.workspace = settings.workspace
        self._mapping = topic_mapping(settings)
        self._decoders = decoders
        self._acceptor = acceptor
        self._refuse = refuse
        self._is_cloudevents = settings.decoder == "cloudevents"

    def take(self, records: Sequence[Any], now_us: int) -> Taken:
        """Decode and accept records (kafka-python's), in order."""
        decode = self._fast if self._is_cloudevents else self._slow
        decoded = [(record, raw) for record in records if (raw := decode(record)) is not None]
        results = self._acceptor.accept_many([raw for _, raw in decoded])
        taken = Taken()
        for (record, raw), result in zip(decoded, results, strict=True):
            if isinstance(result, InvalidEvent):
                stage = "decode" if raw is result else "validate"
                event_id = None if isinstance(raw, InvalidEvent) else raw.id
                taken.dead.append(self.letter(record, stage, result.code, str(result), event_id, now_us))
                continue
            if self._refuse is not None and (reason := self._refuse(workspace=self.workspace, event=result)):
                taken.dead.append(self.letter(record, "validate", "refused", str(reason), result.id, now_us))
                continue
            taken.events.append(result)
            taken.records.append(record)
        return taken

    def letter(self, record: Any, stage: Any, code: str, detail: str, event_id: str | None, now_us: int) -> DeadLetter:
        """Keep a record that was not taken, whole, with where it came from."""
        return DeadLetter(
            stage=stage,
            code=code,
            detail=detail,
            event_id=event_id,
            source=record.topic,
            offset=f"{record.topic}/{record.partition}/{record.offset}",
            headers={name: (value or b"").decode("utf-8", "replace") for name, value in record.headers or ()}
            | _key_headers(record),
            payload=record.value or b"",
            at_us=now_us,
        )

    def _fast(self, record: Any) -> CloudEvent | InvalidEvent | None:
        headers = record.headers
        if record.value is not None and (not headers or _says_structured(headers)):
            try:
                return _structured(record.value)
            except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, RecursionError):
                pass  # the long way fills defaults in, or finds words for what is wrong
        return self._slow(record)

    def _slow(self, record: Any) -> CloudEvent | InvalidEvent | None:
        plain = KafkaRecord(
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            key=record.key,
            value=record.value,
            headers={name: value or b"" for name, value in record.headers or ()},
            timestamp_ms=record.timestamp,
        )
        return decode_kafka(plain, self._mapping, self._decoders)


def _says_structured(headers: Sequence[tuple[str, bytes | None]]) -> bool:
    return any(
        name.lower() == "content-type" and value is not None and value.startswith(_STRUCTURED)
        for name, value in headers
    )  # fmt: skip


def _key_headers(record: Any) -> dict[str, str]:
    """The record's key, and whether it is a tombstone, so that a retry can tell what the record meant."""
    kept = {} if record.key is None else {KEY_HEADER: record.key.decode("utf-8", "replace")}
    return kept | ({TOMBSTONE_HEADER: "1"} if record.value is None else {})
