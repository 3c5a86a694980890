"""The declared event types by name: decoding of logged rows, JSON Schemas, which types delete."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, Protocol

import msgspec

from streamfold.core.errors import InvalidEvent, PluginError, nearest
from streamfold.core.events.model import Envelope, Event, EventType, Subject
from streamfold.core.events.problems import DECODING_ERRORS, problem


class LoggedRow(Protocol):
    """What ``EventTypes.decode`` needs of a row of the log."""

    @property
    def seq(self) -> int: ...
    @property
    def recorded_us(self) -> int: ...
    @property
    def type(self) -> str: ...
    @property
    def body(self) -> bytes: ...
    @property
    def retry_of(self) -> int | None: ...


class EventTypes:
    """All event types that this process knows.

    Raises ``PluginError`` when a name is declared twice or the data class is not a msgspec Struct.
    """

    def __init__(self, types: Iterable[EventType]) -> None:
        self._types: dict[str, EventType] = {}
        self._decoders: dict[str, msgspec.json.Decoder[Any]] = {}
        for declared in types:
            if declared.name in self._types:
                raise PluginError(f"event type '{declared.name}' is declared twice")
            data: object = declared.data  # a plugin may not have been type-checked
            if not (isinstance(data, type) and issubclass(data, msgspec.Struct)):
                raise PluginError(f"event type '{declared.name}': data must be a msgspec Struct class")
            self._types[declared.name] = declared
            self._decoders[declared.name] = msgspec.json.Decoder(declared.data)
        self._envelope = msgspec.msgpack.Decoder(Envelope).decode
        self._decode_data = {name: decoder.decode for name, decoder in self._decoders.items()}

    def get(self, name: str) -> EventType:
        """Return a type; an unknown one is ``InvalidEvent("unknown-type")`` that names the nearest."""
        found = self._types.get(name)
        if found is None:
            shown = name[:64].encode("utf-8", "replace").decode()
            raise InvalidEvent("unknown-type", f"unknown event type '{shown}'{nearest(shown, self._types)}", "/type")
        return found

    def names(self) -> tuple[str, ...]:
        """Return all names, sorted."""
        return tuple(sorted(self._types))

    def deleting(self) -> tuple[str, ...]:
        """Return the names, sorted, of the types whose main subject is no longer served (erasing ones too)."""
        return tuple(sorted(name for name, kind in self._types.items() if kind.deletes or kind.erases))

    def erasing(self) -> frozenset[str]:
        """Return the names of the types that remove all traces of their main subject."""
        return frozenset(name for name, kind in self._types.items() if kind.erases)

    def stating(self, kind: Literal["whole", "part"]) -> frozenset[str]:
        """Return the names of the types that say all about their main subject, or change some of it."""
        return frozenset(name for name, declared in self._types.items() if declared.states == kind)

    def subjects(self, event: Event) -> tuple[Subject, ...]:
        """Return all subjects of a logged event, the main one first."""
        return self._types[event.type].subjects(event.data)

    def json_schema(self, name: str) -> dict[str, Any]:
        """Return the JSON Schema (2020-12) of a type's data."""
        declared = self.get(name)
        schema = msgspec.json.schema(declared.data)
        schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
        schema["title"] = name
        if declared.doc:
            schema["description"] = declared.doc
        return schema

    def decoder(self, name: str) -> msgspec.json.Decoder[Any]:
        """Return the prebuilt decoder of a type's data."""
        self.get(name)
        return self._decoders[name]

    def decode(self, row: LoggedRow) -> Event:
        """Return the event of a logged row.

        Raises ``InvalidEvent``: ``unknown-type`` when the type's plugin is gone, ``malformed`` or another code when
        the stored data no longer decodes.
        """
        try:
            decode_data = self._decode_data[row.type]
        except KeyError:
            self.get(row.type)
            raise
        try:
            envelope = self._envelope(row.body)
            data = decode_data(envelope.data)
        except DECODING_ERRORS as error:
            raise problem(error, self._types[row.type].data, "/data") from error
        return Event(
            row.seq,
            envelope.type,
            envelope.source,
            envelope.id,
            Subject(envelope.subject_kind, envelope.subject_id),
            data,
            envelope.time_us,
            row.recorded_us,
            envelope.sequence,
            envelope.traceparent,
            row.retry_of,
        )
