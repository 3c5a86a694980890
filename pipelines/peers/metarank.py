"""Metarank's events as ours.

Its ids of item and user events are "not used yet", so that senders repeat them: here each event's id is made of all
that it tells. Whoever has neither a user nor a session is a session of their own, named by the ranking, so that a click
still joins what was shown.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, Literal

import msgspec

from streamfold.core.events.types import NO_NEGATIVE
from streamfold.pipelines.peers.rows import Made, action_of, flat, parse_time

SOURCE = "streamfold:metarank"
"""``source`` of events made of Metarank's, sent or imported."""
_OF_ITEMS = {"title": "title", "text": "text", "description": "text", "url": "url", "categories": "categories"}
"""Fields of items that are ours; all others are properties."""
_VALUES = ("value", "rating")


class Field(msgspec.Struct, kw_only=True):
    """A named value."""

    name: str
    value: Any = None


class Shown(msgspec.Struct, kw_only=True):
    """One item of a ranking."""

    id: str
    relevancy: float | None = None
    fields: list[Field] | None = None


class Event(msgspec.Struct, kw_only=True):
    """One event of any kind; which fields it needs depends on ``event``. Others are passed over."""

    event: Literal["item", "user", "ranking", "interaction"]
    id: str | None = None
    timestamp: str | int | float | None = None
    user: str | None = None
    session: str | None = None
    item: str | None = None
    items: list[Shown] | None = None
    type: str | None = None
    ranking: str | None = None
    fields: list[Field] | None = None


def made(row: Event, known: Collection[str]) -> Made:
    """Make an event of ours; ``known``: the actions that there are."""
    time = parse_time(row.timestamp, "timestamp", unix=0.001)
    type_, data = _MAKERS[row.event](row, known)
    return Made(type=type_, data={name: one for name, one in data.items() if one is not None}, time=time)


def context(fields: Sequence[Field] | None) -> dict[str, Any]:
    """Return fields as a flat map."""
    return {one.name: flat(one.name, one.value) for one in fields or () if one.value is not None}


def _item(row: Event, known: Collection[str]) -> tuple[str, dict[str, Any]]:
    data: dict[str, Any] = {"item_id": _needed(row.item, "item"), "properties": {}}
    for name, value in context(row.fields).items():
        ours = _OF_ITEMS.get(name)
        fits = isinstance(value, list if ours == "categories" else str)
        if ours is not None and fits and ours not in data:
            data[ours] = value
        else:
            data["properties"][name] = value
    return "item.upserted", data


def _user(row: Event, known: Collection[str]) -> tuple[str, dict[str, Any]]:
    return "user.upserted", {"user_id": _needed(row.user, "user"), "properties": context(row.fields)}


def _ranking(row: Event, known: Collection[str]) -> tuple[str, dict[str, Any]]:
    exposure_id = _needed(row.id, "id")
    items = list({one.id: one for one in _needed(row.items, "items")}.values())
    shown = []
    for rank, one in enumerate(items, 1):
        if one.relevancy is not None and not math.isfinite(one.relevancy):
            raise ValueError(f"relevancy of item {one.id[:64]!r} is not a finite number")
        shown.append({"item_id": one.id, "rank": rank, "score": one.relevancy})
    who = {"user_id": row.user or None, "session_id": row.session or None}
    if not any(who.values()):
        who["session_id"] = exposure_id
    told = {"exposure_id": exposure_id, "kind": "rank", "items": shown, "context": context(row.fields) or None}
    return "exposure.recorded", told | who


def _interaction(row: Event, known: Collection[str]) -> tuple[str, dict[str, Any]]:
    name, told = _needed(row.type, "type"), context(row.fields)
    action = action_of(name, known)
    numbers = [one for key in _VALUES if isinstance(one := told.get(key), int | float) and not isinstance(one, bool)]
    if action == "rating" and not numbers:
        raise ValueError("a rating needs a number in a field named value or rating")
    if numbers and numbers[0] < 0:
        raise ValueError(f"the field {' or '.join(_VALUES)} is {numbers[0]:g}: {NO_NEGATIVE}")
    if action != name:
        told["feedback_type"] = name
    who = {"user_id": row.user or None, "session_id": row.session or None}
    if not any(who.values()):
        who["session_id"] = row.ranking or _needed(row.id, "id")
    data = {
        "item_id": _needed(row.item, "item"),
        "action": action,
        "value": numbers[0] if numbers else None,
        "exposure_id": row.ranking or None,
        "context": told or None,
    }
    return "interaction.observed", data | who


def _needed(value: Any, name: str) -> Any:
    if not value:
        raise ValueError(f"{name} is missing or empty")
    return value


_MAKERS = {"item": _item, "user": _user, "ranking": _ranking, "interaction": _interaction}
