"""Events: the only way in, and what policies fold.

An event is a CloudEvents 1.0 message about a subject, in the past tense. It goes through four forms::

    bytes ──codecs, kafka, mapping──> CloudEvent ──Acceptor──> NewEvent ──ledger──> log row ──EventTypes──> Event

- ``CloudEvent``: the decoded envelope; its data is still JSON text.
- ``NewEvent``: validated, with canonical data, a dedup key (who it is) and a digest (what it says).
- ``Event``: what a policy sees: a position, times in microseconds and data of the type's own Struct.

Types are values (``EventType``): ``builtin_types()`` are those of the contract, plugins add theirs, and
``EventTypes`` holds all of them. Whatever bytes come in, a rejection is an ``InvalidEvent`` and nothing else.

>>> from streamfold.core.clock import ManualClock
>>> types = EventTypes(builtin_types())
>>> [raw] = decode_http("application/json", {}, b'''{"specversion": "1.0", "id": "1", "source": "shop",
...     "type": "interaction.observed", "data": {"user_id": "u", "item_id": "i", "action": "view"}}''')
>>> Acceptor(types, ManualClock()).accept(raw).subject
Subject(kind='user', id='u')
"""

from streamfold.core.events.accept import Acceptor, CloudEvent, dedup_key, id_prefix
from streamfold.core.events.codecs import decode_http, encode, encode_json
from streamfold.core.events.fields import Flat, Id, Time, check_text
from streamfold.core.events.kafka import DECODERS, Decoder, KafkaRecord, TopicMapping, decode_kafka
from streamfold.core.events.mapping import EventMapping, FieldMapping, map_row
from streamfold.core.events.model import Envelope, Event, EventId, EventType, NewEvent, Position, Subject
from streamfold.core.events.patch import patched
from streamfold.core.events.registry import EventTypes
from streamfold.core.events.types import (
    ACTIONS,
    ClassChanged,
    Data,
    DocumentExtracted,
    DocumentPatched,
    DocumentRef,
    DocumentUpserted,
    DriftDetected,
    EntityChanged,
    ExposedItem,
    ExposureRecorded,
    ExtractedEntity,
    ExtractedRelation,
    FeedbackGiven,
    InteractionObserved,
    ItemPatched,
    ItemRef,
    ItemUpserted,
    LabelObserved,
    LabelTarget,
    UserPatched,
    UserRef,
    UserUpserted,
    builtin_types,
)

__all__ = [
    "ACTIONS",
    "DECODERS",
    "Acceptor",
    "ClassChanged",
    "CloudEvent",
    "Data",
    "Decoder",
    "DocumentExtracted",
    "DocumentPatched",
    "DocumentRef",
    "DocumentUpserted",
    "DriftDetected",
    "EntityChanged",
    "Envelope",
    "Event",
    "EventId",
    "EventMapping",
    "EventType",
    "EventTypes",
    "ExposedItem",
    "ExposureRecorded",
    "ExtractedEntity",
    "ExtractedRelation",
    "FeedbackGiven",
    "FieldMapping",
    "Flat",
    "Id",
    "InteractionObserved",
    "ItemPatched",
    "ItemRef",
    "ItemUpserted",
    "KafkaRecord",
    "LabelObserved",
    "LabelTarget",
    "NewEvent",
    "Position",
    "Subject",
    "Time",
    "TopicMapping",
    "UserPatched",
    "UserRef",
    "UserUpserted",
    "builtin_types",
    "check_text",
    "decode_http",
    "decode_kafka",
    "dedup_key",
    "encode",
    "encode_json",
    "id_prefix",
    "map_row",
    "patched",
]
