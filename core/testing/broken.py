"""A broken policy for each check: what the check is for, and the proof that it sees it.

Each class makes one mistake that authors make, and keeps the rest of the contract, so that no other check sees it.
``BROKEN`` maps the check's name to its policy.
"""

from __future__ import annotations

import math
import random
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import msgspec

from streamfold.core.events import Event, Subject
from streamfold.core.policy import Batch, Candidates, Policy, Prepared, Stores, Tools, View
from streamfold.core.stores.declare import Declaration, Table

BROKEN: dict[str, type[Policy]] = {}


class _Counting(Policy):
    """Counts interactions by item, rightly: what the broken ones start from."""

    version = 1
    handles: ClassVar[tuple[str, ...]] = ("interaction.observed",)
    stores: tuple[Declaration, ...] = (Table("count", key=str, value=int, max_rows=10_000),)

    def fold(self, event: Event, prepared: Prepared, stores: Stores) -> None:
        count, item = stores["count"], event.data.item_id
        count.put(item, count.get(item, 0) + 1)


Kind = TypeVar("Kind", bound=type[Policy])


def _breaks(check: str) -> Callable[[Kind], Kind]:
    """Name a policy for the check that has to see what is wrong with it."""

    def register(kind: Kind) -> Kind:
        kind.name = check
        BROKEN[check] = kind
        return kind

    return register


@_breaks("spec")
class Misspelled(_Counting):
    """Handles an event type that does not exist, so it would never get an event."""

    handles = ("interaction.observd",)


@_breaks("folds")
class Idle(_Counting):
    """Waits for an action that never comes."""

    def fold(self, event: Event, prepared: Prepared, stores: Stores) -> None:
        if event.data.action == "viewed":
            super().fold(event, prepared, stores)


@_breaks("repeatable")
class Identified(_Counting):
    """Makes ids of its own."""

    stores = (Table("id", key=str, value=str, max_rows=10_000),)

    def fold(self, event: Event, prepared: Prepared, stores: Stores) -> None:
        stores["id"].put(event.data.item_id, uuid.uuid4().hex)


@_breaks("clock")
class Clocked(_Counting):
    """Keeps when an event was folded instead of when it happened."""

    stores = (Table("at", key=str, value=float, max_rows=10_000),)

    def fold(self, event: Event, prepared: Prepared, stores: Stores) -> None:
        stores["at"].put(event.data.item_id, time.time())


@_breaks("random_state")
class Sampling(_Counting):
    """Draws a sample from the global generator."""

    def fold(self, event: Event, prepared: Prepared, stores: Stores) -> None:
        if random.random() < 0.5:
            super().fold(event, prepared, stores)


@_breaks("hash_seed")
class Hashed(_Counting):
    """Spreads items over buckets with hash(), which differs between processes."""

    stores = (Table("bucket", key=int, value=int, max_rows=1024),)

    def fold(self, event: Event, prepared: Prepared, stores: Stores) -> None:
        bucket, key = stores["bucket"], hash(event.data.item_id) % 1024
        bucket.put(key, bucket.get(key, 0) + 1)


@_breaks("dict_order")
class FirstKey(_Counting):
    """Takes the first key of a map for the most important one."""

    def fold(self, event: Event, prepared: Prepared, stores: Stores) -> None:
        count, name = stores["count"], next(iter(event.data.context or {"none": 1}))
        count.put(name, count.get(name, 0) + 1)


@_breaks("prepare")
class Numbering(_Counting):
    """Numbers what it prepares: the value depends on what was prepared before."""

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._number = 0

    def prepare(self, event: Event, tools: Tools) -> tuple[str, int]:
        self._number += 1
        return event.data.item_id, self._number

    def fold(self, event: Event, prepared: Prepared, stores: Stores) -> None:
        count = stores["count"]
        count.put(prepared[0], count.get(prepared[0], 0) + 1)


@_breaks("resume")
class Remembering(_Counting):
    """Keeps a running maximum on itself: gone with the process."""

    stores = (Table("largest", key=str, value=float, max_rows=10),)

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._largest = -math.inf

    def fold(self, event: Event, prepared: Prepared, stores: Stores) -> None:
        self._largest = max(self._largest, event.data.value or 0.0)
        stores["largest"].put("largest", self._largest)


@_breaks("redelivery")
class SeenBefore(_Counting):
    """Passes over what it believes to have folded, though the commit may have been lost."""

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._last = 0

    def fold(self, event: Event, prepared: Prepared, stores: Stores) -> None:
        if event.seq > self._last:
            super().fold(event, prepared, stores)
            self._last = event.seq


@_breaks("batch")
class OncePerBatch(_Counting):
    """Counts an item once in a batch, however often it is there."""

    def fold_batch(self, batch: Batch, stores: Stores) -> None:
        count = stores["count"]
        for item in sorted({event.data.item_id for event, _ in batch}):
            count.put(item, count.get(item, 0) + 1)


@_breaks("checkpoint")
class Copying(_Counting):
    """Serves a copy from when the view was opened, so a restart changes the answers."""

    def serve(self, view: View) -> Candidates:
        copy = [(item, float(count)) for item, count in view["count"].top(100)]
        return Candidates(lambda request: copy[: request.n])


class Row(msgspec.Struct):
    """A row that can be changed in place."""

    count: int = 0


@_breaks("half_way")
class InPlace(_Counting):
    """Changes a row in place before it is put: an undo cannot take that back."""

    stores = (Table("rows", key=str, value=Row, max_rows=10_000),)

    def fold(self, event: Event, prepared: Prepared, stores: Stores) -> None:
        row = stores["rows"].get(event.data.item_id) or Row()
        row.count += 1
        stores["rows"].put(event.data.item_id, row)


@_breaks("serve_writes_nothing")
class CountingRequests(_Counting):
    """Counts requests in a store of the view."""

    stores = (*_Counting.stores, Table("requests", key=str, value=int, max_rows=10))

    def serve(self, view: View) -> Candidates:
        def candidates(request: Any) -> list[tuple[str, float]]:
            view["requests"].put("all", view["requests"].get("all", 0) + 1)
            return list(view["count"].top(request.n))

        return Candidates(candidates)


@_breaks("reading_grows_nothing")
class KnowingUsers(_Counting):
    """Reads a defaultdict, which makes an entry for every user who asks."""

    def serve(self, view: View) -> Candidates:
        seen: defaultdict[str, list[str]] = defaultdict(list)

        def candidates(request: Any) -> list[tuple[str, float]]:
            return [row for row in view["count"].top(request.n) if row[0] not in seen[request.user]]

        return Candidates(candidates)


@_breaks("bounds")
class TwoTables(_Counting):
    """Believes that two tables always have the same rows; each evicts by its own rule."""

    stores = (*_Counting.stores, Table("first", key=str, value=tuple[str, float], max_rows=10_000))

    def fold(self, event: Event, prepared: Prepared, stores: Stores) -> None:
        item, user = event.data.item_id, event.data.user_id or ""
        if item not in stores["count"]:
            stores["first"].put(item, (user, event.at_s))
        elif stores["first"].get(item)[0] == user:
            return
        super().fold(event, prepared, stores)


@_breaks("cost")
class Ranking(_Counting):
    """Goes through all rows at each event."""

    stores = (*_Counting.stores, Table("rank", key=str, value=int, max_rows=10_000))

    def fold(self, event: Event, prepared: Prepared, stores: Stores) -> None:
        super().fold(event, prepared, stores)
        mine = stores["count"].get(event.data.item_id)
        above = sum(1 for _, count in stores["count"].items() if count > mine)
        stores["rank"].put(event.data.item_id, above)


@_breaks("compacted")
class Tallying(_Counting):
    """Counts how often an item was said, and declares that the newest time is enough."""

    handles = ("interaction.observed", "item.upserted")
    newest_suffices = True


@_breaks("forget")
class HalfForgetting(_Counting):
    """Forgets an item's count, and leaves the item in the list of the last seen."""

    stores = (*_Counting.stores, Table("last", key=str, value=str, max_rows=10_000))

    def fold(self, event: Event, prepared: Prepared, stores: Stores) -> None:
        super().fold(event, prepared, stores)
        stores["last"].put(event.data.action, event.data.item_id)

    def forget(self, subject: Subject, events: Batch, stores: Stores) -> None:
        if subject.kind != "item":
            super().forget(subject, events, stores)
        stores["count"].delete(subject.id)


@_breaks("bad_events")
class Logarithm(_Counting):
    """Takes the logarithm of a value that nobody promised to be positive."""

    stores = (Table("log", key=str, value=float, max_rows=10_000),)

    def fold(self, event: Event, prepared: Prepared, stores: Stores) -> None:
        if event.data.value is not None:
            stores["log"].put(event.data.item_id, math.log(event.data.value))
