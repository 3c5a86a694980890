"""Labels of documents, items and users that are not there yet: they wait for what the target says, for so long.

What waits is a row per target, made and taken away by events alone. The clock is the fold's (when events were
recorded), looked at with each event: whoever folds the log again sees the same labels wait, be learned and run out. A
label that ran out becomes a dead letter that counts as skipped, so a fold afresh leaves it out from the start and comes
to the same rows. A target that is forgotten takes along what waited for it.
"""

from __future__ import annotations

from typing import Any

import msgspec

from streamfold.core import Refusal, Stores, Table
from streamfold.plugins._of_targets import unknown_target

_MOST_EACH = 16


class Observed(msgspec.Struct, frozen=True, array_like=True):
    """What a ``label.observed`` event said of its target."""

    head: str
    label: str
    weight: float
    seq: int
    at_us: int
    source: str
    event_id: str

    def refused(self, error: Any) -> Refusal:
        """The event, as what cannot be learned."""
        return Refusal(self.seq, self.source, self.event_id, error)


class Awaited(msgspec.Struct, frozen=True, array_like=True):
    """Labels that wait for a target, oldest first, and when the first of them came (the fold's clock)."""

    since_us: int
    labels: tuple[Observed, ...]


def waiting_store(targets: int) -> Table:
    """Declare where labels wait, by target."""
    return Table("waiting", key=str, value=Awaited, max_rows=max(1, targets), on_full="refuse")


def wait(thing: str, label: Observed, stores: Stores, *, most: int) -> None:
    """Have a label wait for its target. Raises ``EventError`` where no more may wait."""
    waiting = stores["waiting"]
    held: Awaited | None = waiting.get(thing)
    if held is None:
        if len(waiting) >= most:
            raise unknown_target(thing, f", and {most} targets are waited for already (max_waiting)" if most else "")
        held = Awaited(stores.now_us, ())
    if len(held.labels) >= _MOST_EACH:
        raise unknown_target(thing, f", and {_MOST_EACH} labels wait for it already")
    waiting.put(thing, Awaited(held.since_us, (*held.labels, label)))


def withdraw(thing: str, head: str, stores: Stores) -> None:
    """Let go of what waits for a target in one head: it was taken back."""
    held: Awaited | None = stores["waiting"].get(thing)
    if held is None:
        return
    labels = tuple(label for label in held.labels if label.head != head)
    if labels:
        stores["waiting"].put(thing, Awaited(held.since_us, labels))
    else:
        stores["waiting"].delete(thing)


def arrived(thing: str, stores: Stores) -> tuple[Observed, ...]:
    """Take what waited for a target, in the order in which it came."""
    held: Awaited | None = stores["waiting"].get(thing)
    if held is None:
        return ()
    stores["waiting"].delete(thing)
    return held.labels


def give_up(stores: Stores, wait_us: int) -> None:
    """Refuse the labels of all targets that did not come in time.

    All at once, however many they are: in a fold afresh those that were refused never wait, and the others have to
    be where they are here.
    """
    waiting = stores["waiting"]
    while len(waiting):
        thing, held = waiting.first()
        if stores.now_us - held.since_us < wait_us:
            return
        waiting.delete(thing)
        for label in held.labels:
            stores.refuse(label.refused(unknown_target(thing, f" in {wait_us / 1e6:g} s")))
