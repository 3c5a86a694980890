"""streamfold's core: one log, many folds. Everything that a plugin needs is importable from here.

A policy is a class with ``name``, ``version``, ``handles``, ``stores`` and ``fold``; see :class:`Policy`.
"""

from streamfold.core.errors import (
    ConfigError,
    EventError,
    InvalidEvent,
    NeedsRebuild,
    StoreError,
    StoreFull,
    StreamfoldError,
)
from streamfold.core.events import CloudEvent, Event, EventType, KafkaRecord, NewEvent, Subject, TopicMapping
from streamfold.core.hooks import GateRule, hookimpl
from streamfold.core.ledger.abc import Instance
from streamfold.core.policy import (
    Backend,
    Batch,
    CandidateRequest,
    Candidates,
    CandidateSource,
    Chunk,
    Chunker,
    Encoder,
    NoConfig,
    Policy,
    Prepared,
    ReadOnly,
    Retrieval,
    Retriever,
    ScoredChunk,
    StoredDocument,
    Stores,
    Tools,
    View,
)
from streamfold.core.stores.declare import Blobs, Table, Text, Vectors

__all__ = [
    "Backend",
    "Batch",
    "Blobs",
    "CandidateRequest",
    "CandidateSource",
    "Candidates",
    "Chunk",
    "Chunker",
    "CloudEvent",
    "ConfigError",
    "Encoder",
    "Event",
    "EventError",
    "EventType",
    "GateRule",
    "Instance",
    "InvalidEvent",
    "KafkaRecord",
    "NeedsRebuild",
    "NewEvent",
    "NoConfig",
    "Policy",
    "Prepared",
    "ReadOnly",
    "Retrieval",
    "Retriever",
    "ScoredChunk",
    "StoreError",
    "StoreFull",
    "StoredDocument",
    "Stores",
    "StreamfoldError",
    "Subject",
    "Table",
    "Text",
    "Tools",
    "TopicMapping",
    "Vectors",
    "View",
    "hookimpl",
]
