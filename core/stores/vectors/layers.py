"""What the layers are made of at a moment, and the few short steps that change it, each under the writer's lock.

Readers load :attr:`Layers.view` once, without a lock: a tuple of immutable segments and of buffers, the last of which
is growing. A location is ``number << 32 | slot``: the number of a segment or buffer, and a slot in it.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from streamfold.core.stores.abc import Floats, Ids
from streamfold.core.stores.vectors.growing import Growing
from streamfold.core.stores.vectors.idmap import IdMap
from streamfold.core.stores.vectors.replica import MakeReplica
from streamfold.core.stores.vectors.segment import Coarse, HnswSegment, IvfSegment

AnySegment = IvfSegment | HnswSegment

_SLOT = (1 << 32) - 1
_FIRST = 256
_BATCH = 65_536
"""Most rows of one buffer: a large batch gets a buffer of its own, so that it is merged at once."""


class View(NamedTuple):
    """What a search reads, oldest first."""

    segments: tuple[AnySegment, ...] = ()
    buffers: tuple[Growing, ...] = ()


class Taken(NamedTuple):
    """The live rows of a frozen buffer at the start of a merge."""

    buffer: Growing
    slots: Ids

    @property
    def ids(self) -> Ids:
        return self.buffer.ids[self.slots]

    @property
    def rows(self) -> Floats:
        return self.buffer.matrix[self.slots]


class Layers:
    """Segments, buffers, and where each id lies.

    Parameters
    ----------
    dim : length of the rows.
    exact_rows : rows of the first buffer, before there is any segment.
    growing_rows : rows of the later ones; None: N/128 within 512 … 2048.
    replicate : copies a segment's index to where it is searched (a GPU), or None.
    """

    def __init__(
        self, dim: int, exact_rows: int, growing_rows: int | None, replicate: MakeReplica | None = None
    ) -> None:
        self.dim = dim
        self._replicate = replicate
        self.exact_rows = exact_rows
        self._growing_rows = growing_rows
        self.lock = threading.RLock()
        self.reset()

    def reset(self) -> None:
        self.map = IdMap()
        self.coarse: Coarse | None = None
        self.moved = 0
        """Counts updates: rows that appeared in a new place and went from their old one."""
        self.written = 0
        self._next = 0
        self._places: dict[int, AnySegment | Growing] = {}
        growing = self._open(min(_FIRST, self.exact_rows))
        self.view = View((), (growing,))

    def take_number(self) -> int:
        self._next += 1
        return self._next

    def _open(self, capacity: int) -> Growing:
        growing = Growing(capacity, self.dim, self.take_number())
        self._places[growing.number] = growing
        return growing

    # -- writes -------------------------------------------------------------------------------------------------------
    @property
    def growing_rows(self) -> int:
        return self._growing_rows or min(max(len(self.map) // 128, 512), 2048)

    def put1(self, key: int, row: Floats) -> bool:
        """Insert or replace one row ``(dim,)``; returns whether a buffer was frozen for it."""
        froze = False
        growing = self.view.buffers[-1]
        if not growing.room:
            froze = self._make_room(1)
            growing = self.view.buffers[-1]
        slot = growing.count
        growing.matrix[slot] = row
        growing.ids[slot] = key
        growing.count = slot + 1  # published first, ...
        self.written += 1
        old = self.map.exchange1(key, growing.number << 32 | slot)
        if old >= 0:
            self.moved += 1
            self._places[old >> 32].kill1(old & _SLOT)  # ... then the old version goes
        return froze

    def put(self, keys: Ids, rows: Floats) -> bool:
        """Insert or replace rows of distinct ids; returns whether a buffer was frozen for them."""
        froze, start = False, 0
        while start < len(keys):
            if not self.view.buffers[-1].room:
                froze |= self._make_room(len(keys) - start)
            growing = self.view.buffers[-1]
            part = slice(start, start + min(growing.room, len(keys) - start))
            slot = growing.count
            growing.append(keys[part], rows[part])
            n = growing.count - slot
            old = self.map.exchange(keys[part], (growing.number << 32) + np.arange(slot, slot + n))
            self._kill(old[old >= 0], moved=True)
            start += n
        self.written += len(keys)
        exact = len(self.view.buffers) == 1 and not self.view.segments
        if not exact and self.view.buffers[-1].count > self.growing_rows:  # a large batch's own buffer
            self.freeze()
            froze = True
        return froze

    def delete1(self, key: int) -> None:
        old = self.map.remove1(key)
        if old >= 0:
            self.written += 1
            self._places[old >> 32].kill1(old & _SLOT)

    def delete(self, keys: Ids) -> None:
        old = self.map.remove(keys)
        self.written += len(keys)
        self._kill(old[old >= 0], moved=False)

    def _kill(self, locations: Ids, *, moved: bool) -> None:
        if not len(locations):
            return
        self.moved += moved
        numbers, slots = locations >> 32, locations & _SLOT
        for number in np.unique(numbers).tolist():
            self._places[number].kill(slots[numbers == number])

    def _make_room(self, wanted: int) -> bool:
        """The growing buffer is full: enlarge it while everything is searched exactly, else freeze it."""
        growing = self.view.buffers[-1]
        capacity = len(growing.ids)
        if not self.view.segments and len(self.view.buffers) == 1:
            if growing.live <= capacity * 3 // 4:
                self._replace(growing, self._compacted(growing, capacity))
                return False
            if capacity < self.exact_rows:
                self._replace(growing, growing.enlarged(min(self.exact_rows, max(4 * capacity, capacity + wanted))))
                return False
        fresh = self._open(max(self.growing_rows, min(wanted, _BATCH)))
        self.view = View(self.view.segments, (*self.view.buffers, fresh))
        return True

    def freeze(self) -> None:
        """Close the growing buffer, so that all rows can be merged."""
        if self.view.buffers[-1].count:
            self.view = View(self.view.segments, (*self.view.buffers, self._open(self.growing_rows)))

    def _compacted(self, growing: Growing, capacity: int) -> Growing:
        live = growing.live_slots()
        fresh = Growing(capacity, self.dim, self.take_number())
        fresh.append(growing.ids[live], growing.matrix[live])
        self.map.exchange(growing.ids[live], (fresh.number << 32) + np.arange(len(live)))
        del self._places[growing.number]
        return fresh

    def _replace(self, old: Growing, new: Growing) -> None:
        self._places[new.number] = new
        self.view = View(self.view.segments, tuple(new if b is old else b for b in self.view.buffers))

    # -- reads --------------------------------------------------------------------------------------------------------
    def locate(self, keys: Ids) -> tuple[View, dict[int, Ids]]:
        """A view, and the slots of these ids in each of its places; repeated as the ids are."""
        with self.lock:
            found = self.map.get(keys)
            view = self.view
        numbers, slots = found >> 32, found & _SLOT  # an id that is not there has the number −1
        return view, {
            place.number: chosen
            for place in (*view.segments, *view.buffers)
            if len(chosen := slots[numbers == place.number])
        }

    # -- what upkeep puts in ------------------------------------------------------------------------------------------
    def merge(self, taken: Sequence[Taken], tail: AnySegment | None, new: AnySegment | None) -> None:
        """Take a segment with the taken rows behind the tail's in, and tail and buffers out."""
        self._copy(new)
        with self.lock:
            if new is not None:
                old_slots = 0 if tail is None else len(tail.ids)
                alive = np.zeros(len(new.ids), np.bool_)
                if tail is not None:
                    alive[:old_slots] = tail.alive()
                start = old_slots
                for buffer, slots in taken:
                    end = start + len(slots)
                    ids = new.ids[start:end]
                    still = self.map.get(ids) == (buffer.number << 32) + slots
                    alive[start:end] = still
                    self.map.exchange(ids[still], (new.number << 32) + start + np.flatnonzero(still))
                    start = end
                new.set_alive(alive)
                self._places[new.number] = new
            for buffer, _ in taken:
                del self._places[buffer.number]
            gone = {buffer.number for buffer, _ in taken}
            segments = [s for s in self.view.segments if s is not tail]
            self.view = View(
                (*segments, new) if new is not None else self.view.segments,
                tuple(b for b in self.view.buffers if b.number not in gone),
            )

    def swap(self, old: Sequence[AnySegment], new: AnySegment | None, moves: Sequence[Ids]) -> None:
        """Take a segment in for others; ``moves`` says where each one's slots went (−1: was dead)."""
        self._copy(new)
        with self.lock:
            if new is not None:
                alive = np.zeros(len(new.ids), np.bool_)
                for segment, move in zip(old, moves, strict=True):
                    held = segment.alive() & (move >= 0)
                    alive[move[held]] = True
                    if segment.number != new.number:
                        self.map.exchange(segment.ids[held], (new.number << 32) + move[held])
                new.set_alive(alive)
            for segment in old:
                del self._places[segment.number]
            if new is not None:
                self._places[new.number] = new
            gone = set(map(id, old))
            segments: list[AnySegment] = []
            for segment in self.view.segments:
                if id(segment) not in gone:
                    segments.append(segment)
                elif segment is old[0] and new is not None:
                    segments.append(new)
            self.view = View(tuple(segments), self.view.buffers)

    def _copy(self, segment: AnySegment | None) -> None:
        if self._replicate is not None and isinstance(segment, IvfSegment) and segment.index.ntotal >= self.exact_rows:
            segment.replicate(self._replicate)

    def load(self, segments: Sequence[AnySegment], coarse: Coarse | None) -> None:
        """Start from segments that were read from files."""
        for segment in segments:
            self._copy(segment)
        with self.lock:
            self.reset()
            self.coarse = coarse
            self._next = max((s.number for s in segments), default=0) + 1
            self.map = IdMap(sum(s.live for s in segments))
            self._places = {s.number: s for s in segments}
            for segment in segments:
                slots = np.flatnonzero(segment.alive())
                self.map.exchange(segment.ids[slots], (segment.number << 32) + slots)
            capacity = self.growing_rows if segments else min(_FIRST, self.exact_rows)
            self.view = View(tuple(segments), (self._open(capacity),))
