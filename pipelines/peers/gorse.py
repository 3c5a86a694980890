"""Gorse's users, items and feedback, to events and back."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from streamfold.core.events.types import NO_NEGATIVE
from streamfold.pipelines.peers.rows import Made, action_of, flat, parse_time, unflat

SOURCE = "streamfold:gorse"
"""``source`` of events made of Gorse's rows, sent or imported."""
ZERO_TIME = "0001-01-01T00:00:00Z"
"""What Gorse shows where it knows no time."""
_COMMENT = "_comment"
"""Property that keeps a user's comment."""
_LABELS = "labels"
"""Property that keeps labels which are no object."""
Patch = Mapping[str, Any]


class User(msgspec.Struct, kw_only=True):
    """A user; fields that are not named here are passed over, as Gorse does."""

    UserId: str
    Labels: Any = None
    Comment: str | None = None


class Item(msgspec.Struct, kw_only=True):
    """An item."""

    ItemId: str
    IsHidden: bool = False
    Categories: list[str] | None = None
    Timestamp: str | None = None
    Labels: Any = None
    Comment: str | None = None


class Feedback(msgspec.Struct, kw_only=True):
    """What a user did with an item."""

    FeedbackType: str
    UserId: str
    ItemId: str
    Value: float | None = None
    Timestamp: str | None = None
    Labels: Any = None
    Comment: str | None = None


class UserPatch(msgspec.Struct, kw_only=True):
    """Fields of a user to change."""

    Labels: Any = None
    Comment: str | None = None


class ItemPatch(msgspec.Struct, kw_only=True):
    """Fields of an item to change."""

    IsHidden: bool | None = None
    Categories: list[str] | None = None
    Timestamp: str | None = None
    Labels: Any = None
    Comment: str | None = None


# -- to events ---------------------------------------------------------------------------------------------------------
def user_event(row: User) -> Made:
    """Make ``user.upserted``."""
    properties = labels(row.Labels) | ({_COMMENT: row.Comment} if row.Comment else {})
    return Made(type="user.upserted", data={"user_id": row.UserId, "properties": properties})


def item_event(row: Item) -> Made:
    """Make ``item.upserted``: hidden is unavailable, the comment is the title, the time says when it was published."""
    data = {
        "item_id": row.ItemId,
        "available": not row.IsHidden,
        "categories": row.Categories or [],
        "properties": labels(row.Labels),
        "title": row.Comment or None,
        "published_at": _rfc3339(row.Timestamp),
    }
    return Made(type="item.upserted", data=data)


def feedback_event(row: Feedback, known: Collection[str]) -> Made:
    """Make ``interaction.observed``; ``known``: the actions there are. The type's own name stays in the context."""
    if row.Value is not None and not math.isfinite(row.Value):
        raise ValueError("Value is not a finite number")
    if row.Value is not None and row.Value < 0:
        raise ValueError(f"Value is {row.Value:g}: {NO_NEGATIVE}")
    action = action_of(row.FeedbackType, known)
    if action == "rating" and row.Value is None:
        raise ValueError(f"FeedbackType {row.FeedbackType[:64]!r} is a rating and needs a Value")
    if not row.FeedbackType:
        raise ValueError("FeedbackType is empty")
    context = {} if action == row.FeedbackType else {"feedback_type": row.FeedbackType}
    context |= {"comment": row.Comment} if row.Comment else {}
    context |= {f"label.{name}": value for name, value in labels(row.Labels).items()}
    value = row.Value if action == "rating" else row.Value or None  # Gorse shows 0 where none was given
    data = {"user_id": row.UserId, "item_id": row.ItemId, "action": action, "value": value, "context": context or None}
    return Made(type="interaction.observed", data=data, time=parse_time(row.Timestamp, "Timestamp"))


def user_patch(user_id: str, row: UserPatch, stored: Patch) -> Made:
    """Make ``user.patched``; ``stored``: the properties as they are, as labels replace all labels."""
    old = {name: None for name in stored if name != _COMMENT}
    properties = old | labels(row.Labels) if row.Labels is not None else {}
    properties |= {} if row.Comment is None else {_COMMENT: row.Comment or None}
    return Made(type="user.patched", data={"user_id": user_id, "properties": properties})


def item_patch(item_id: str, row: ItemPatch, stored: Patch) -> Made:
    """Make ``item.patched``; ``stored``: the properties as they are, as labels replace all labels."""
    data: dict[str, Any] = {"item_id": item_id}
    data |= {} if row.IsHidden is None else {"available": not row.IsHidden}
    data |= {} if row.Categories is None else {"categories": row.Categories}
    data |= {} if row.Timestamp is None else {"published_at": _rfc3339(row.Timestamp)}
    data |= {} if row.Labels is None else {"properties": dict.fromkeys(stored) | labels(row.Labels)}
    data |= {} if row.Comment is None else {"title": row.Comment or None}
    return Made(type="item.patched", data=data)


def labels(value: Any) -> dict[str, Any]:
    """Return labels as properties."""
    named = value if isinstance(value, dict) else {} if value is None else {_LABELS: value}
    return {name: flat(name, one) for name, one in named.items() if one is not None}


def _rfc3339(text: str | None) -> str | None:
    time = parse_time(text, "Timestamp")
    return None if time is None else time.isoformat()


# -- and back ----------------------------------------------------------------------------------------------------------
def shown_user(user_id: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Show a stored user."""
    properties = fields.get("properties") or {}
    return {"UserId": user_id, "Labels": _shown_labels(properties), "Comment": properties.get(_COMMENT) or ""}


def shown_item(item_id: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Show a stored item."""
    return {
        "ItemId": item_id,
        "IsHidden": fields.get("available") is False,
        "Categories": fields.get("categories") or [],
        "Timestamp": fields.get("published_at") or ZERO_TIME,
        "Labels": _shown_labels(fields.get("properties") or {}),
        "Comment": fields.get("title") or "",
    }


def shown_feedback(data: Any, time: str | None) -> dict[str, Any]:
    """Show a logged interaction (its data)."""
    context = data.get("context") or {}
    told = {name.removeprefix("label."): one for name, one in context.items() if name.startswith("label.")}
    return {
        "FeedbackType": context.get("feedback_type") or data["action"],
        "UserId": data.get("user_id") or "",
        "ItemId": data["item_id"],
        "Value": data.get("value") or 0,
        "Timestamp": (time or ZERO_TIME).replace(".000000Z", "Z"),
        "Labels": _shown_labels(told),
        "Comment": context.get("comment") or "",
    }


def _shown_labels(properties: Mapping[str, Any]) -> Any:
    shown = {name: unflat(value) for name, value in properties.items() if name != _COMMENT}
    return shown[_LABELS] if set(shown) == {_LABELS} else shown or None
