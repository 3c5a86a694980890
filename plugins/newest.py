"""Policy ``newest``: items by when they were published, so that what nobody has met yet can be met.

An item without ``published_at`` counts from when it first came. Kept are the newest ``max_items``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from streamfold.core import (
    Batch,
    CandidateRequest,
    Candidates,
    Event,
    NeedsRebuild,
    Policy,
    Prepared,
    Stores,
    Subject,
    Table,
    View,
)
from streamfold.plugins._settings import at_least


@dataclass(frozen=True, slots=True, kw_only=True)
class NewestConfig:
    """How many items are kept."""

    max_items: int = 10_000

    def __post_init__(self) -> None:
        at_least("newest", self, 1, "max_items")


class Newest(Policy):
    """The newest items, served as candidates."""

    name = "newest"
    version = 1
    handles = ("item.upserted", "item.patched", "item.deleted", "item.erased")
    Config = NewestConfig

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.stores = (Table("published", key=str, value=int, max_rows=self.config.max_items, on_full="evict"),)

    def fold(self, event: Event, prepared: Prepared, stores: Stores) -> None:
        """Note when an item was published."""
        published, data = stores["published"], event.data
        if event.type in ("item.deleted", "item.erased"):
            published.delete(data.item_id)
        elif data.published_at:
            published.put(data.item_id, round(data.published_at.timestamp() * 1e6))
        elif data.item_id not in published and event.type == "item.upserted":
            published.put(data.item_id, event.at_us)

    def forget(self, subject: Subject, events: Batch, stores: Stores) -> None:
        """Remove an item, exactly while nothing was evicted; nothing is kept of users."""
        if subject.kind == "item":
            if len(stores["published"]) >= self.config.max_items:
                raise NeedsRebuild("newest: items were evicted, perhaps for the one to forget: fold afresh")
            stores["published"].delete(subject.id)

    def serve(self, view: View) -> Candidates:
        """Serve the newest items."""

        def candidates(request: CandidateRequest) -> list[tuple[str, float]]:
            return [(item_id, float(at_us)) for item_id, at_us in view["published"].top(request.n)]

        return Candidates(candidates)
