"""What rows of peers have in common: actions, free values, times, ids made of content."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

from streamfold.core.events.types import ACTIONS

SYNONYMS: Mapping[str, str] = {
    "read": "view", "impression": "view", "watch": "view", "star": "like", "favorite": "like", "thumbs_up": "like",
    "thumbs_down": "dislike", "add_to_cart": "cart", "buy": "purchase", "order": "purchase", "rate": "rating",
}  # fmt: skip
"""Names that peers' settings and examples use for our actions."""
UNKNOWN = "click"
"""What any other name counts as: peers name what is wanted of users, so it is taken as liked."""
_JSON_TEXT = ("[", "{", '"')
_GO_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:\.(\d+))? ([+-]\d{4})(?: \S+)?")
_UNIX = re.compile(r"\d{1,16}")
_FIRST = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """An event made of a row; ``time``: when it happened, None if the row does not say."""

    type: str
    data: Mapping[str, Any]
    time: datetime | None = None

    @property
    def content_id(self) -> str:
        """An id made of all that the row tells."""
        when = None if self.time is None else self.time.isoformat()
        content = json.dumps([self.type, self.data, when], sort_keys=True).encode()
        return blake2b(content, digest_size=16).hexdigest()


def actions(extra: Iterable[str] = ()) -> frozenset[str]:
    """Return the actions that events may have; ``extra``: the configured ones (``limits.actions``)."""
    return frozenset((*ACTIONS, *extra))


def action_of(name: str, known: Collection[str]) -> str:
    """Return our action for a peer's name of one.

    >>> known = actions(["share"])
    >>> [action_of(name, known) for name in ("like", "share", "read", "Add_To_Cart", "bookmarked")]
    ['like', 'share', 'view', 'cart', 'click']
    """
    lower = name.lower()
    return next((one for one in (name, lower, SYNONYMS.get(lower, "")) if one in known), UNKNOWN)


def flat(name: str, value: Any) -> Any:
    """Return a value as a property may hold it: what is no scalar and no list of texts becomes JSON text.

    So does a text that is JSON itself, so that :func:`unflat` gives back what was there.

    >>> flat("size", 3), flat("genres", ["a", "b"]), flat("vector", [0.5, 1]), flat("of", {"a": 1})
    (3, ['a', 'b'], '[0.5, 1]', '{"a": 1}')
    """
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        raise ValueError(f"{name[:64]} is beyond 64 bits")
    ambiguous = isinstance(value, str) and unflat(value) != value
    return json.dumps(value, ensure_ascii=False) if ambiguous or isinstance(value, list | dict) else value


def unflat(value: Any) -> Any:
    """Undo :func:`flat`."""
    if isinstance(value, str) and value.startswith(_JSON_TEXT):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def parse_time(value: Any, name: str, *, unix: float = 1.0) -> datetime | None:
    """Read a time: RFC 3339, Go's way to print one, a date, or a number of ``unix`` seconds; zero is None.

    >>> parse_time("2020-01-01 01:01:01.000000001 +0000 UTC", "Timestamp").isoformat()
    '2020-01-01T01:01:01+00:00'
    >>> parse_time("1599391467000", "timestamp", unix=0.001).isoformat()
    '2020-09-06T11:24:27+00:00'
    >>> parse_time("0001-01-01T00:00:00Z", "Timestamp") is None
    True
    """
    if value is None or value == "" or isinstance(value, bool):
        return None
    try:
        text = f"{value:.0f}" if isinstance(value, float) else str(value).strip()
        if _UNIX.fullmatch(text):
            found = datetime.fromtimestamp(int(text) * unix, UTC)
        else:
            found = datetime.fromisoformat(_iso(text))
        if found.year <= 1:  # Go's zero time, whatever its offset
            return None
        found = found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        raise ValueError(f"{name} is {str(value)[:40]!r}: give RFC 3339, as in 2026-01-31T12:00:00Z") from None
    if found < _FIRST or found.year > 9998:
        raise ValueError(f"{name} is {str(value)[:40]!r}: outside the years 1970..9998")
    return found


def _iso(text: str) -> str:
    match = _GO_TIME.fullmatch(text)
    if match is None:
        return text
    day, clock, fraction, offset = match.groups()
    return f"{day}T{clock}.{(fraction or '0')[:6]:0<6}{offset}"
