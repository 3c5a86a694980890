"""Events to evaluate on, in order of time: from lines of files, or from a log.

A file's events are accepted as the service would accept them (a known id counts once), put into order of time, and
numbered. An event without a time keeps its place: it is given the time of the line before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from streamfold.core.clock import SystemClock
from streamfold.core.errors import InvalidEvent
from streamfold.core.events import Acceptor, Event, EventTypes
from streamfold.core.events.codecs import decode_structured
from streamfold.core.events.fields import EPOCH, from_us
from streamfold.core.ledger.abc import NORMAL, LogRow

_PAGE = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A line that is no valid event."""

    where: str
    code: str
    detail: str
    pointer: str = ""


@dataclass(slots=True)
class Source:
    """Events in memory, as rows of a log (about .5 KB each)."""

    rows: list[LogRow] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    duplicates: int = 0
    timed: bool = True
    """Whether any event said when it happened; otherwise only their order is known."""

    def __len__(self) -> int:
        return len(self.rows)

    def events(self, types: EventTypes, wanted: frozenset[str]) -> Iterator[Event]:
        """Decode the events of some types, in order."""
        for row in self.rows:
            if row.type in wanted:
                yield types.decode(row)


class Intake:
    """Accepts lines into a :class:`Source`."""

    def __init__(self, types: EventTypes, *, max_event_bytes: int) -> None:
        self._acceptor = Acceptor(types, SystemClock(), max_event_bytes=max_event_bytes)
        self._found: list[tuple[int, int, str, bytes]] = []
        self._known: set[bytes] = set()
        self._before_us = 0
        self._source = Source(timed=False)

    def take(self, where: str, line: bytes) -> None:
        """Take one event as JSON; ``where``: how to name its line if it is refused."""
        try:
            raw = decode_structured(line)
            timed = raw.time is not None
            if not timed:
                raw.time = from_us(self._before_us) if self._before_us else EPOCH
            new = self._acceptor.accept(raw)
        except InvalidEvent as error:
            self.refuse(where, error.code, error.detail, error.pointer)
            return
        if new.dedup in self._known:
            self._source.duplicates += 1
            return
        self._known.add(new.dedup)
        self._before_us = new.time_us
        self._source.timed |= timed
        self._found.append((new.time_us, len(self._found), new.type, new.body))

    def refuse(self, where: str, code: str, detail: str, pointer: str = "") -> None:
        self._source.refused.append(Refused(where=where, code=code, detail=detail, pointer=pointer))

    def source(self) -> Source:
        """What was taken, in order of time; recorded when it happened."""
        rows = sorted(self._found, key=lambda row: row[:2])
        self._source.rows = [LogRow(i, time_us, type_, body) for i, (time_us, _, type_, body) in enumerate(rows, 1)]
        return self._source


Read = Callable[[int, int], Sequence[LogRow]]
"""``(after, limit)`` → the log's next rows."""


def from_log(read: Read, upto: int, progress: Callable[[], None] = lambda: None) -> Source:
    """Read a log from its start up to a position; events without effect, and what was retried, are left out."""
    source, after = Source(), 0
    while after < upto:
        rows = read(after, _PAGE)
        if not rows:
            break
        after = rows[-1].seq
        for row in rows:
            if row.effect == NORMAL and row.retry_of is None and row.seq <= upto:
                source.rows.append(row)
            progress()
    return source


def count(rows: Iterable[LogRow], types: frozenset[str]) -> int:
    """How many rows are of some types."""
    return sum(row.type in types for row in rows)
