"""Policy ``trending``: how much attention each item had lately.

The decayed count of an item at time ``t`` is ``c(t) = Σ_i w_i 2^{−(t − t_i)/h}`` over its interactions ``i`` at
``t_i`` with weight ``w_i`` (by action) and half-life ``h``. Stored is the forward-decayed logarithm (Cormode et al.,
Forward Decay, ICDE 2009, doi:10.1109/ICDE.2009.65)::

    L = ln Σ_i w_i e^{λ t_i},   λ = ln 2 / h,   c(t) = e^{L − λ t}

which no passing of time changes, does not depend on the order of the events (up to float rounding), and never
overflows. One event costs one logarithm and one exponential per half-life.

Categories: an item's count belongs to the categories that the item has *now*, all of it, also what came before the
item's own event. So a count per (category, item) would equal the item's own, and none is kept: a category's list is
the ranking restricted to its items. Listing takes the best n, 4n, 16n … rows until n of them fit: for a category
that is a share p of all items about n/p rows, at most the table.

An item that is deleted is gone with its count; a later interaction starts it anew. Items marked unavailable or past
``expires_at`` keep their count and are not listed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import UNSET

from streamfold.core import (
    Batch,
    CandidateRequest,
    Candidates,
    ConfigError,
    Event,
    NeedsRebuild,
    Policy,
    Prepared,
    Stores,
    Subject,
    Table,
    View,
)

WEIGHTS: Mapping[str, float] = {"view": 1, "click": 1, "rating": 1, "like": 2, "cart": 3, "purchase": 4} | {
    "dislike": 0,
    "skip": 0,
}
_MAX_EXPONENT = 700.0


class Listed(msgspec.Struct, frozen=True, array_like=True):
    """What is kept of an item's own events."""

    categories: tuple[str, ...] = ()
    available: bool = True
    expires_us: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrendingConfig:
    """Half-lives in seconds (the first is the default), the bound on items, weights by action (unlisted: 1)."""

    half_lives_s: tuple[float, ...] = (86_400.0,)
    max_items: int = 100_000
    weights: dict[str, float] = field(default_factory=lambda: dict(WEIGHTS))

    def __post_init__(self) -> None:
        if not self.half_lives_s or not all(0 < h < math.inf for h in self.half_lives_s):
            raise ConfigError(f"trending: half_lives_s is {self.half_lives_s}: give one or more positive seconds")
        if len(set(self.half_lives_s)) < len(self.half_lives_s):
            raise ConfigError(f"trending: half_lives_s is {self.half_lives_s}: each may come once")
        if self.max_items < 1:
            raise ConfigError(f"trending: max_items is {self.max_items}: it must be at least 1")
        bad = [action for action, weight in self.weights.items() if not 0 <= weight < math.inf]
        if bad:
            raise ConfigError(f"trending: the weight of {bad[0]!r} is {self.weights[bad[0]]}: it must be 0 or more")


class Trending(Policy):
    """Decayed counts of interactions per item, served as candidates."""

    name = "trending"
    version = 1
    handles = (
        "interaction.observed",
        "item.upserted",
        "item.patched",
        "item.deleted",
        "item.erased",
    )
    Config = TrendingConfig

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        half_lives: tuple[float, ...] = self.config.half_lives_s
        bound: int = self.config.max_items
        self._rates = tuple((f"score_{i}", math.log(2) / h) for i, h in enumerate(half_lives))
        self._logs = {action: math.log(w) if w > 0 else None for action, w in self.config.weights.items()}
        self.stores = (
            *(Table(name, key=str, value=float, max_rows=bound, on_full="evict") for name, _ in self._rates),
            Table("items", key=str, value=Listed, max_rows=bound, on_full="evict"),
        )

    def fold(self, event: Event, prepared: Prepared, stores: Stores) -> None:
        """Add an interaction to its item's counts, or take over an item's categories."""
        if event.type != "interaction.observed":
            self._fold_item(event, stores)
            return
        data = event.data
        weight = self._logs.get(data.action, 0.0)
        if weight is None:
            return
        at_s, item_id = event.at_s, data.item_id
        for name, rate in self._rates:
            table = stores[name]
            table.put(item_id, _logaddexp(table.get(item_id), at_s * rate + weight))

    def fold_batch(self, batch: Batch, stores: Stores) -> None:
        """Fold a batch, writing each item's row once: bit-equal to the loop, which is taken when a row may go."""
        tables = [(stores[name], rate) for name, rate in self._rates]
        plain = all(event.type == "interaction.observed" for event, _ in batch)
        if not plain or any(len(table) + len(batch) > self.config.max_items for table, _ in tables):
            super().fold_batch(batch, stores)
            return
        logs = self._logs
        for table, rate in tables:
            rows: dict[str, float] = {}
            for event, _ in batch:
                data = event.data
                weight = logs.get(data.action, 0.0)
                if weight is not None:
                    item_id = data.item_id
                    old = rows[item_id] if item_id in rows else table.get(item_id)
                    rows[item_id] = _logaddexp(old, event.at_s * rate + weight)
            for item_id, value in rows.items():
                table.put(item_id, value)

    def _fold_item(self, event: Event, stores: Stores) -> None:
        items, data = stores["items"], event.data
        if event.type in ("item.deleted", "item.erased"):
            self._remove(data.item_id, stores)
            return
        old = items.get(data.item_id) if event.type == "item.patched" else None
        items.put(data.item_id, _listed(old or Listed(), data))

    def _remove(self, item_id: str, stores: Stores) -> None:
        for name, _ in self._rates:
            stores[name].delete(item_id)
        stores["items"].delete(item_id)

    def forget(self, subject: Subject, events: Batch, stores: Stores) -> None:
        """Remove an item exactly while nothing was evicted; others' interactions are sums: fold afresh."""
        if subject.kind == "item":
            if any(len(stores[table.name]) >= self.config.max_items for table in self.stores):
                raise NeedsRebuild("trending: rows were evicted, perhaps for the item to forget: fold afresh")
            self._remove(subject.id, stores)
        elif any(
            e.type == "interaction.observed" and self._logs.get(e.data.action, 0.0) is not None for e, _ in events
        ):
            super().forget(subject, events, stores)

    def serve(self, view: View) -> Candidates:
        """Serve the items with the highest counts."""
        half_lives: tuple[float, ...] = self.config.half_lives_s

        def candidates(request: CandidateRequest) -> list[tuple[str, float]]:
            half_life_s = request.half_life_s if request.half_life_s is not None else half_lives[0]
            if half_life_s not in half_lives:
                valid = ", ".join(f"{h:g}" for h in half_lives)
                raise ValueError(f"half_life_s {half_life_s:g} is not configured; configured: {valid}")
            name, rate = self._rates[half_lives.index(half_life_s)]
            rows = _best(view[name], view["items"], request)
            # Without a time of request the counts are relative to the first one.
            now = request.at_us / 1e6 * rate if request.at_us else max((value for _, value in rows), default=0.0)
            return [(item_id, math.exp(min(value - now, _MAX_EXPONENT))) for item_id, value in rows]

        return Candidates(candidates)


def _logaddexp(a: float | None, b: float) -> float:
    """Return ``ln(e^a + e^b)``; ``None`` is the logarithm of zero."""
    if a is None:
        return b
    if a < b:
        a, b = b, a
    return a + math.log1p(math.exp(b - a))


def _listed(old: Listed, data: Any) -> Listed:
    """Apply an upserted or patched item's fields (absent in a patch: unchanged; None: the default)."""
    categories, available, expires = data.categories, data.available, data.expires_at
    return Listed(
        categories=old.categories if categories is UNSET else tuple(categories or ()),
        available=old.available if available is UNSET else available is not False,
        expires_us=old.expires_us if expires is UNSET else expires and round(expires.timestamp() * 1e6),
    )


def _best(scores: Any, items: Any, request: CandidateRequest) -> list[tuple[str, float]]:
    """Return the best ``request.n`` rows that may be listed, looking at n, 4n, 16n … of them."""
    found: list[tuple[str, float]] = []
    size, looked_at, rows = len(scores), 0, request.n
    while len(found) < request.n and looked_at < size:
        top: Sequence[tuple[str, float]] = scores.top(min(rows, size))[looked_at:]
        if not top:
            break
        listed = items.get_many([item_id for item_id, _ in top])
        found += [row for row, item in zip(top, listed, strict=True) if _fits(item, request)]
        looked_at += len(top)
        rows *= 4
    return found[: max(0, request.n)]


def _fits(item: Listed | None, request: CandidateRequest) -> bool:
    if item is None:
        return request.category is None
    alive = item.expires_us is None or item.expires_us > request.at_us
    return item.available and alive and (request.category is None or request.category in item.categories)
