"""The event as the rest of streamfold sees it, and the form in which the log keeps it.

``EventType`` declares a type (data class, main subject, all subjects); ``NewEvent`` is an accepted input before it
has a position; ``Event`` is a logged one, as policies see it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NewType

import msgspec

EventId = NewType("EventId", str)
Position = NewType("Position", int)


class Subject(msgspec.Struct, frozen=True, array_like=True):
    """What an event is about: user 42 and item 42 differ by kind."""

    kind: str
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EventType:
    """A declared event type.

    Parameters
    ----------
    name : past tense, ``noun.verbed``.
    data : the msgspec Struct that the event's data must decode to (its JSON Schema is derived).
    subjects : all subjects of a data value, the main one first.
    deletes : the event means that its main subject is no longer served.
    erases : the event means that all traces of its main subject are removed.
    states : ``"whole"``: the event says all there is to say about its main subject, ``"part"``: it changes some of it.
        What a later whole or a deletion replaces may be compacted away; ``""``: the event stands for itself.
    check : extra rules; raises ``InvalidEvent``.
    """

    name: str
    data: type[msgspec.Struct]
    subjects: Callable[[Any], tuple[Subject, ...]]
    deletes: bool = False
    erases: bool = False
    states: Literal["", "whole", "part"] = ""
    check: Callable[[Any], None] | None = None
    doc: str = ""


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    """The stored form of an event in the log (msgpack array): all but seq, recordedtime and retry_of.

    ``data`` is the canonical JSON of the event's data (struct order, sorted maps).
    """

    type: str
    source: str
    id: str
    subject_kind: str
    subject_id: str
    time_us: int
    data: bytes
    sequence: int | None = None
    traceparent: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEvent:
    """An accepted input, ready to be appended.

    ``dedup``: 16 bytes, the first 10 of blake2b(id) and the first 6 of blake2b(source), so that an event can be
    found by its id alone with a range scan. ``digest``: 8 bytes of blake2b over type and canonical data.
    ``body``: msgpack of ``Envelope``.
    """

    type: str
    id: str
    source: str
    subject: Subject
    dedup: bytes
    digest: bytes
    body: bytes
    deletes: bool = False
    sequence: int | None = None
    retry_of: int | None = None
    erases: bool = False
    subjects: tuple[Subject, ...] = ()
    """All subjects, by which an event of an erased one is known."""
    time_us: int = 0


@dataclass(frozen=True, slots=True)
class Event:
    """A logged event, as policies see it.

    ``at_us = min(time, recordedtime)``: when it happened, never in the future of its acceptance. ``data`` is the
    typed struct of the event's type.
    """

    seq: int
    type: str
    source: str
    id: str
    subject: Subject
    data: Any
    time_us: int
    recorded_us: int
    sequence: int | None = None
    traceparent: str | None = None
    retry_of: int | None = None

    @property
    def at_us(self) -> int:
        return min(self.time_us, self.recorded_us)

    @property
    def at_s(self) -> float:
        return self.at_us / 1e6
