"""A policy whose events are about targets: it embeds their texts, and keeps what documents, items and users say."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from streamfold.core import Blobs, Event, EventError, Policy, Stores, Subject, Target, Tools
from streamfold.plugins._embedding import embedded_texts
from streamfold.plugins._targets import KINDS, TEXT, packed, text_of, thing_of, vector_of

THINGS = (
    *("document.upserted", "document.deleted", "document.erased"),
    *("item.upserted", "item.deleted", "item.erased"),
    *("user.upserted", "user.erased"),
)
"""Events by which the vectors of things are known."""
THINGS_STORE = Blobs("things", fold_reads=True)


class OfTargets(Policy):
    """Handles :data:`THINGS` and others; among its stores is :data:`THINGS_STORE`."""

    backends: ClassVar[tuple[str, ...]] = ("encoder",)

    @abstractmethod
    def text_in(self, event: Event) -> str:
        """Return the text of an event that is about no thing; empty: nothing is embedded."""

    def prepare_batch(self, events: Sequence[Event], tools: Tools) -> list[Any]:
        """Embed all texts of a batch in one call."""
        texts = [text_of(event) if _says(event) else self.text_in(event) for event in events]
        return embedded_texts(texts, tools)

    def fold_thing(self, event: Event, prepared: Any, stores: Stores) -> None:
        """Keep the vector of what a thing says now."""
        if prepared is None:
            stores["things"].delete(key_of(event.subject))
        else:
            stores["things"].put(key_of(event.subject), packed(prepared))

    def unseen(self, target: Target, stores: Stores) -> str | None:
        """Name the thing that a target is if nothing is known of it, or it has no text."""
        thing = thing_of(target)
        return thing if thing is not None and stores["things"].get(thing) is None else None

    def _phi(self, target: Target, prepared: Any, stores: Stores) -> tuple[str, bytes]:
        """The target's space and vector."""
        if target.features is not None:
            space, vector = vector_of(target.features)
            return space, packed(vector)
        if (thing := thing_of(target)) is not None:
            stored: bytes | None = stores["things"].get(thing)
            if stored is None:
                raise unknown_target(thing)
            return TEXT, stored
        if prepared is None:
            raise EventError("the text is empty: there is nothing to embed", code="empty-text")
        return TEXT, packed(prepared)

    def skipped(self, event: Event, stores: Stores) -> None:
        """What a thing's text said before is not what it says now."""
        if _says(event):
            stores["things"].delete(key_of(event.subject))


def unknown_target(thing: str, waited: str = "") -> EventError:
    """Say what to do about a target of which nothing is known."""
    kind, _, id_ = thing.partition(":")
    return EventError(
        f"nothing is known of {kind} {id_[:64]!r}, or it has no text{waited}: send {kind}.upserted, then retry this "
        "event",
        code="unknown-target",
    )


def key_of(subject: Subject) -> str:
    """Name a thing as ``kind:id``."""
    return f"{subject.kind}:{subject.id}"


def _says(event: Event) -> bool:
    return event.type.endswith(".upserted") and event.subject.kind in KINDS
