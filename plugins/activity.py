"""Policy ``activity``: the items, the users, and what users did lately: the facts that recommending rests on.

It serves the catalogue: what an item is and whether it may be shown, what a user has seen, a user's history; and it
makes the examples that rankers learn from (see ``_feedback.py``). Rankers read it, so one group holds them all and one
cut of the view answers. An interaction writes three small rows, however long the user's history is: a ring of the last
``history`` actions, what was done with this item, and how many actions there were.

What an item or user is told by (``tokens``): categories, and properties with few values: ``name=value`` of strings,
truth values and whole numbers, and each string of a list. What a property with endless values (a price) tells is for a
policy that reads it from the event.

Erasing a user or an item folds the group afresh: rings and counts of others have seen what is to be forgotten.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from streamfold.core import (
    LEARNED_FROM,
    Acted,
    Blobs,
    ConfigError,
    Event,
    Example,
    Policy,
    Prepared,
    StoredItem,
    StoredUser,
    Stores,
    Table,
    View,
    user_key,
)
from streamfold.plugins._feedback import SEP, Joined, labels, tables
from streamfold.plugins._settings import at_least

_US = 1_000_000
_MOST_TOKENS = 32
_MOST_TEXT = 64


class Item(msgspec.Struct, frozen=True, array_like=True):
    """An item as stored; its text is kept on disk."""

    fields: dict[str, Any]
    tokens: tuple[str, ...]
    available: bool
    expires_us: int | None
    published_us: int | None
    has_text: bool
    event_id: str
    position: int
    updated_us: int


class User(msgspec.Struct, frozen=True, array_like=True):
    """A user as stored."""

    fields: dict[str, Any]
    tokens: tuple[str, ...]
    event_id: str
    position: int
    updated_us: int


class Last(msgspec.Struct, frozen=True, array_like=True):
    """How often a user acted, and when last."""

    acted: int
    at_us: int


class Action(msgspec.Struct, frozen=True, array_like=True):
    """One place of a user's ring."""

    item: str
    action: str
    at_us: int
    label: float | None


class Seen(msgspec.Struct, frozen=True, array_like=True):
    """What a user did with an item."""

    actions: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivityConfig:
    """What counts as liked, how long feedback is waited for, and bounds.

    Parameters
    ----------
    positive, negative : actions that say that an item is liked, or is not. Others (``view``) say neither.
    like_from : a ``rating`` is liked from this value on.
    window_s : what was shown and got no feedback in this time was passed over.
    late_s : for so long after it a positive still replaces that.
    history : actions kept per user.
    """

    positive: tuple[str, ...] = ("click", "like", "cart", "purchase")
    negative: tuple[str, ...] = ("dislike", "skip")
    like_from: float = 4.0
    window_s: float = 1800.0
    late_s: float = 86_400.0
    history: int = 50
    max_items: int = 1_000_000
    max_users: int = 1_000_000
    max_seen: int = 5_000_000
    max_exposures: int = 100_000

    def __post_init__(self) -> None:
        if both := set(self.positive) & set(self.negative):
            raise ConfigError(f"activity: {min(both)!r} is in positive and in negative: choose one")
        if not (0 < self.window_s < math.inf and 0 <= self.late_s < math.inf and math.isfinite(self.like_from)):
            raise ConfigError("activity: window_s must be a positive number of seconds, late_s 0 or more")
        at_least("activity", self, 1, "history", "max_items", "max_users", "max_seen", "max_exposures")


class Activity(Policy):
    """Items, users, histories, and feedback joined with what was shown."""

    name = "activity"
    version = 1
    handles = (
        *LEARNED_FROM,
        *("item.upserted", "item.patched", "item.deleted", "item.erased"),
        *("user.upserted", "user.patched", "user.erased"),
    )
    Config = ActivityConfig

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        c: ActivityConfig = self.config
        self._labels = labels(c.positive, c.negative)
        self.judging = ("rating", *self._labels)
        self._last_join: tuple[Event, Any, int, Joined] | None = None
        self.stores = (
            Table("items", key=str, value=Item, max_rows=c.max_items, on_full="refuse"),
            Blobs("texts"),
            Table("deleted", key=str, value=int, max_rows=c.max_items),
            Table("users", key=str, value=User, max_rows=c.max_users, on_full="refuse"),
            Table("last", key=str, value=Last, max_rows=c.max_users),
            Table("ring", key=str, value=Action, max_rows=c.max_seen),
            Table("seen", key=str, value=Seen, max_rows=c.max_seen),
            *tables(c.max_exposures),
        )

    def fold(self, event: Event, prepared: Prepared, stores: Stores) -> None:
        """Take over what an item or user is, or join and note what a user did."""
        kind, _, verb = event.type.partition(".")
        if kind in ("item", "user"):
            self._fold_thing(kind, verb, event, stores)
            return
        self.joined(event, stores, stores.now_us).write()
        self._last_join = None
        if event.type == "interaction.observed":
            self._note(event, stores)

    def joined(self, event: Event, stores: Any, now_us: int) -> Joined:
        """What an event does to the join, from the stores as they are; made once for all who ask before the fold."""
        last, shown = self._last_join, stores["shown"]
        if last is not None and last[0] is event and last[1] is shown and last[2] == now_us:
            return last[3]

        def tokens(user: str, item: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
            known, of_user = stores["items"].get(item), stores["users"].get(user[2:]) if user[0] == "u" else None
            return () if of_user is None else of_user.tokens, () if known is None else known.tokens

        made = Joined(
            stores, event, now_us, window_us=int(self.config.window_s * _US), late_us=int(self.config.late_s * _US),
            label=self._label(event), tokens=tokens,
        )  # fmt: skip
        self._last_join = event, shown, now_us, made
        return made

    def _label(self, event: Event) -> float | None:
        data = event.data
        if event.type == "feedback.given":
            return None if data.value == 0 else float(data.value > 0)
        if event.type != "interaction.observed":
            return None
        if data.action == "rating":
            return float(data.value >= self.config.like_from)
        return self._labels.get(data.action)

    def _note(self, event: Event, stores: Stores) -> None:
        """Keep an action in its user's ring, and that the user met the item."""
        data, user = event.data, user_key(event.data.user_id, event.data.session_id)
        last = stores["last"].get(user)
        acted = 0 if last is None else last.acted
        place = f"{user}{SEP}{acted % self.config.history}"
        stores["ring"].put(place, Action(data.item_id, data.action, event.at_us, self._label(event)))
        stores["last"].put(user, Last(acted + 1, event.at_us))
        met = user + SEP + data.item_id
        seen = stores["seen"].get(met)
        if seen is None or data.action not in seen.actions:
            stores["seen"].put(met, Seen(tuple(sorted({*(seen.actions if seen else ()), data.action}))))

    def _fold_thing(self, kind: str, verb: str, event: Event, stores: Stores) -> None:
        table, id_ = stores[f"{kind}s"], event.subject.id
        if verb in ("deleted", "erased"):
            table.delete(id_)
            if kind == "item":
                stores["texts"].delete(id_)
                if verb == "deleted":
                    stores["deleted"].put(id_, event.seq)
                else:
                    stores["deleted"].delete(id_)
            else:
                stores["last"].delete(user_key(id_, None))
            return
        told = msgspec.to_builtins(event.data)
        told.pop(f"{kind}_id")
        old = table.get(id_) if verb == "patched" else None
        if kind == "user":
            fields = _patched({} if old is None else old.fields, told)
            table.put(id_, User(fields, _tokens(fields), event.id, event.seq, event.recorded_us))
            return
        stores["deleted"].delete(id_)
        has_text = old is not None and old.has_text
        if verb == "upserted" or "text" in told:
            text = told.pop("text", None)
            has_text = text is not None
            if has_text:
                stores["texts"].put(id_, text.encode())
            else:
                stores["texts"].delete(id_)
        fields = _patched({} if old is None else old.fields, told)
        published, expires = (_us(fields.get(name)) for name in ("published_at", "expires_at"))
        available = fields.get("available") is not False
        item = Item(
            fields, _tokens(fields), available, expires, published, has_text, event.id, event.seq, event.recorded_us
        )
        table.put(id_, item)

    def serve(self, view: View) -> ActivityServer:
        """Serve the catalogue."""
        return ActivityServer(self, view)


class ActivityServer:
    """Answers from the stores; a ``Catalogue`` that also lists new items as candidates."""

    def __init__(self, policy: Activity, view: Any) -> None:
        self._policy = policy
        self._view = view

    def items(self, item_ids: Sequence[str]) -> list[StoredItem | None]:
        rows = self._view["items"].get_many(item_ids)
        return [None if row is None else self._item(id_, row) for id_, row in zip(item_ids, rows, strict=True)]

    def _item(self, item_id: str, row: Item, *, text: bool = False) -> StoredItem:
        fields: Mapping[str, Any] = row.fields
        if text and row.has_text and (stored := self._view["texts"].get(item_id)) is not None:
            fields = {**fields, "text": bytes(stored).decode()}
        return StoredItem(
            item_id=item_id, fields=fields, tokens=row.tokens, available=row.available, expires_us=row.expires_us,
            published_us=row.published_us, event_id=row.event_id, position=row.position, updated_us=row.updated_us,
        )  # fmt: skip

    def item(self, item_id: str) -> StoredItem | None:
        """One item with its text."""
        row = self._view["items"].get(item_id)
        return None if row is None else self._item(item_id, row, text=True)

    def listed(self, item_ids: Sequence[str], at_us: int) -> npt.NDArray[np.bool_]:
        deleted = self._view["deleted"]
        return np.array(
            [
                id_ not in deleted
                and (row is None or (row.available and (row.expires_us is None or row.expires_us > at_us)))
                for id_, row in zip(item_ids, self._view["items"].get_many(item_ids), strict=True)
            ],
            bool,
        )

    def item_page(self, *, after: str, limit: int) -> list[StoredItem]:
        return [self._item(id_, row) for id_, row in _page(self._view["items"], after, limit)]

    def users(self, user_ids: Sequence[str]) -> list[StoredUser | None]:
        rows = self._view["users"].get_many(user_ids)
        return [None if row is None else _user(id_, row) for id_, row in zip(user_ids, rows, strict=True)]

    def user_page(self, *, after: str, limit: int) -> list[StoredUser]:
        return [_user(id_, row) for id_, row in _page(self._view["users"], after, limit)]

    def history(self, user: str, most: int | None = None) -> list[Acted]:
        last = self._view["last"].get(user)
        if last is None:
            return []
        size = self._policy.config.history
        count = size if most is None else min(size, most)
        newest = range(last.acted - 1, max(-1, last.acted - 1 - count), -1)
        rows = self._view["ring"].get_many([f"{user}{SEP}{n % size}" for n in newest])
        return [Acted(row.item, row.action, row.at_us, row.label) for row in rows if row is not None]

    def seen(self, user: str, item_ids: Sequence[str], actions: Sequence[str]) -> npt.NDArray[np.bool_]:
        wanted = frozenset(actions)
        rows = self._view["seen"].get_many([user + SEP + item for item in item_ids])
        return np.array([row is not None and not wanted.isdisjoint(row.actions) for row in rows], bool)

    def judged(self, user: str, item_ids: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Which of the items the user liked or disliked, as far as it is kept."""
        return self.seen(user, item_ids, self._policy.judging)

    def unjudged(self, user: str, others: Iterable[str], at_us: int) -> tuple[list[str], int]:
        """List, in order of id, what may be shown and the user has not judged, of all items and ``others``; and say
        how many may be shown. O(items log items)."""
        ids = sorted({*(id_ for id_, _ in self._view["items"].items()), *others})
        may = [id_ for id_, listed in zip(ids, self.listed(ids, at_us), strict=True) if listed]
        return [id_ for id_, judged in zip(may, self.judged(user, may), strict=True) if not judged], len(may)

    def count(self, others: Iterable[str] = ()) -> int:
        """How many items there are of which an event of their own told, with those of ``others`` that are not among
        them. O(others)."""
        items = self._view["items"]
        return len(items) + sum(item not in items for item in others)

    def heard_of(self, item_id: str) -> bool:
        """Whether an event of its own ever told of an item."""
        return item_id in self._view["items"] or item_id in self._view["deleted"]

    def tokens(self, user: str, item_ids: Sequence[str]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        of_user = self._view["users"].get(user[2:]) if user.startswith("u:") else None
        items = [() if row is None else row.tokens for row in self._view["items"].get_many(item_ids)]
        return () if of_user is None else of_user.tokens, items

    def examples(self, event: Event, now_us: int) -> Sequence[Example]:
        """What is learned from an event."""
        return self._policy.joined(event, self._view, now_us).examples

    def told_by(self, event: Event) -> tuple[str, ...]:
        """An item's tokens once an ``item.upserted`` or ``item.patched`` is folded; asked before it is."""
        old = self._view["items"].get(event.subject.id) if event.type == "item.patched" else None
        return _tokens(_patched({} if old is None else old.fields, msgspec.to_builtins(event.data)))


def _user(user_id: str, row: User) -> StoredUser:
    return StoredUser(
        user_id=user_id, fields=row.fields, event_id=row.event_id, position=row.position, updated_us=row.updated_us
    )


def _page(table: Any, after: str, limit: int) -> list[tuple[str, Any]]:
    """A page in order of key. O(rows)."""
    keys = heapq.nsmallest(limit, (key for key, _ in table.items() if key > after))
    return list(zip(keys, table.get_many(keys), strict=True))


def _patched(old: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    """Apply told fields: ``None`` removes, maps merge one level deep (RFC 7396)."""
    fields = dict(old)
    for name, value in told.items():
        if isinstance(value, dict):
            merged = {**(fields.get(name) or {}), **value}
            value = {key: one for key, one in merged.items() if one is not None}
        if value is None:
            fields.pop(name, None)
        else:
            fields[name] = value
    return fields


def _us(rfc3339: str | None) -> int | None:
    return None if rfc3339 is None else round(datetime.fromisoformat(rfc3339).timestamp() * _US)


def _tokens(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """What an item or user is told by, at most 32 of them, sorted."""
    found = {name for name in fields.get("categories") or () if name}
    for name, value in (fields.get("properties") or {}).items():
        if isinstance(value, list):
            found.update(f"{name}={one}" for one in value)
        elif isinstance(value, str | bool | int):
            found.add(f"{name}={value}")
    return tuple(sorted(one for one in found if len(one) <= _MOST_TEXT)[:_MOST_TOKENS])
