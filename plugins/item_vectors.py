"""Policy ``item_vectors``: items by what their text says, for candidates and for similar items.

An item's vector is the encoder's, of its title, categories and text. A user's is the weighted mean of the vectors of
the items that the request gives as seeds (Rocchio's centroid, 1971). So an item is proposed as soon as it is there,
before anybody has met it, and a user after the first click.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np

from streamfold.core import (
    Batch,
    Blobs,
    Event,
    Policy,
    Stores,
    Subject,
    Table,
    Tools,
    Vectors,
    View,
)
from streamfold.plugins._embedding import embedded_texts
from streamfold.plugins._near_seeds import NearSeeds
from streamfold.plugins._settings import at_least

_MOST_TEXT = 2000
"""Characters of an item's text that are embedded: encoders read no further than a few hundred tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemVectorsConfig:
    """The bound on items; past it new ones are refused."""

    max_items: int = 1_000_000

    def __post_init__(self) -> None:
        at_least("item_vectors", self, 1, "max_items")


class ItemVectors(Policy):
    """One vector per item."""

    name = "item_vectors"
    version = 1
    handles = ("item.upserted", "item.deleted", "item.erased")
    backends = ("encoder",)
    newest_suffices = True
    Config = ItemVectorsConfig

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        bound = self.config.max_items
        self.stores = (
            Vectors("vectors", max_rows=bound),
            Table("name", key=int, value=str, max_rows=bound, on_full="refuse", fold_reads=False),
            Blobs("rows"),
        )

    def prepare_batch(self, events: Sequence[Event], tools: Tools) -> list[Any]:
        """Embed all items of a batch in one call."""
        return embedded(events, tools)

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        """Keep an item's vector, or remove it."""
        item_id = event.subject.id
        if prepared is None:
            self._remove(item_id, stores)
            return
        key, row = key_of(item_id), np.asarray(prepared, np.float32)
        stores["vectors"].upsert([key], row[None])
        stores["name"].put(key, item_id)
        stores["rows"].put(item_id, row.astype(np.float16).tobytes())

    def skipped(self, event: Event, stores: Stores) -> None:
        """What an item said before is not what it says now."""
        self._remove(event.subject.id, stores)

    def _remove(self, item_id: str, stores: Stores) -> None:
        key = key_of(item_id)
        stores["vectors"].delete([key])
        stores["name"].delete(key)
        stores["rows"].delete(item_id)

    def forget(self, subject: Subject, events: Batch, stores: Stores) -> None:
        """Remove an item; nothing is kept of users."""
        if subject.kind == "item":
            self._remove(subject.id, stores)

    def serve(self, view: View) -> ItemVectorsServer:
        """Serve candidates and similar items."""
        return ItemVectorsServer(view)


def key_of(item_id: str) -> int:
    """An item's key in the vector store: 63 bits of BLAKE2b of its id."""
    return int.from_bytes(blake2b(item_id.encode(), digest_size=8).digest(), "big") >> 1


def embedded(events: Sequence[Event], tools: Tools) -> list[Any]:
    """Return the vectors of the items that events bring, ``None`` where one brings none."""
    texts = [item_text(event.data) if event.type == "item.upserted" else "" for event in events]
    return embedded_texts(texts, tools)


def item_text(data: Any) -> str:
    """Return what is embedded for an item."""
    parts = [data.title or "", " ".join(data.categories or ()), (data.text or "")[:_MOST_TEXT]]
    return "\n".join(part for part in parts if part)


class ItemVectorsServer(NearSeeds):
    """Answers from the vectors; a ``CandidateSource`` and ``SimilarItems``."""

    def __init__(self, view: View) -> None:
        self._view = view

    def near(self, seeds: Sequence[tuple[str, float]], n: int) -> list[tuple[str, float]]:
        stored = [(self._view["rows"].get(item_id), liking) for item_id, liking in seeds]
        rows = [np.frombuffer(row, np.float16).astype(np.float32) * liking for row, liking in stored if row is not None]
        if not rows:
            return []
        centre = np.sum(rows, axis=0)
        if not float(centre @ centre) > 0:
            return []
        keys, scores = self._view["vectors"].search(centre[None], n + len(seeds))
        given = {item_id for item_id, _ in seeds}
        names = self._view["name"].get_many(keys[0].tolist())
        # rounded: how rows lie in memory decides the last bits of a product
        found = [(name, round(float(score), 5)) for name, score in zip(names, scores[0], strict=True)]
        kept = [(name, score) for name, score in found if name is not None and name not in given]
        return sorted(kept, key=lambda one: (-one[1], one[0]))[:n]
