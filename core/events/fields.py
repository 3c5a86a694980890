"""Constraints shared by the event types: ids, flat maps, numbers, times.

What msgspec can check while it decodes is written as ``Annotated`` types, so that it costs nothing and shows in the
JSON Schema; what it cannot (bytes instead of characters, NUL, years) is a function that raises ``InvalidEvent``.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import msgspec

from streamfold.core.errors import InvalidEvent

MAX_ID_BYTES = 256
MAX_KEYS = 256
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LAST = datetime(9998, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
"""The last time that an event may name: one year before ``datetime.max``, so that arithmetic on it cannot overflow."""

Id = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID_BYTES, description="1–256 bytes of UTF-8, no NUL")]
Time = Annotated[datetime, msgspec.Meta(tz=True, description="RFC 3339 with an offset, years 1970..9998")]
Rank = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Unit = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Integer = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Value = str | Integer | float | bool | None | list[str]
Flat = Annotated[dict[str, Value], msgspec.Meta(max_length=MAX_KEYS)]
"""A flat map: scalars and lists of strings. ``null`` counts as absent."""


def to_us(time: datetime) -> int:
    """Return microseconds since 1970-01-01 UTC, exactly (``timestamp()`` goes through a float)."""
    since = time - EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


LAST_US = to_us(LAST)


def from_us(us: int) -> datetime:
    """Return the aware UTC time of microseconds since the epoch."""
    return EPOCH + timedelta(microseconds=us)


def check_text(value: str, pointer: str, *, limit: int = MAX_ID_BYTES, code: str = "invalid-value") -> None:
    """Refuse an identifier that is empty, longer than ``limit`` bytes, or that holds NUL or a lone surrogate."""
    if not value:
        raise InvalidEvent(code, f"{pointer} is empty: give 1 to {limit} bytes", pointer)
    if "\0" in value:
        raise InvalidEvent(code, f"{pointer} contains a NUL character: remove it", pointer)
    if value.isascii():
        size = len(value)
    else:
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            raise InvalidEvent(code, f"{pointer} contains a lone surrogate: send valid Unicode", pointer) from None
    if size > limit:
        raise InvalidEvent(code, f"{pointer} has {size} bytes: at most {limit} are allowed", pointer)


def id_check(*names: str, rest: Callable[[Any], None] | None = None) -> Callable[[Any], None]:
    """Make a ``check`` for the id fields ``names`` of a struct, followed by the rules of ``rest``."""
    fields = tuple((name, f"/data/{name.rstrip('_')}") for name in names)

    def check(data: Any) -> None:
        for name, pointer in fields:
            value = getattr(data, name)
            if value is not None:
                check_text(value, pointer)
        if rest is not None:
            rest(data)

    return check


def exactly_one(data: Any, names: tuple[str, ...], pointer: str) -> str:
    """Return which one of ``names`` is set; none or several is an ``InvalidEvent``."""
    given = [name for name in names if getattr(data, name) is not None]
    if len(given) != 1:
        got = " and ".join(given) if given else "none"
        raise InvalidEvent("invalid-event", f"{pointer} needs exactly one of {', '.join(names)}; got {got}", pointer)
    return given[0]


def utc_times(data: msgspec.Struct, *names: str) -> None:
    """Bring time fields to UTC in place, so that one instant has one canonical form; for ``__post_init__``.

    Raises ``ValueError`` (msgspec makes it a ``ValidationError``) outside the years 1970..9998.
    """
    for name in names:
        value = getattr(data, name)
        if not isinstance(value, datetime):
            continue
        if value.tzinfo is None:
            raise ValueError(f"{name} needs an offset, as in 2026-01-31T12:00:00Z")
        if not EPOCH <= value <= LAST:
            raise ValueError(f"{name} is outside the years 1970..9998")
        if value.tzinfo is not UTC:
            msgspec.structs.force_setattr(data, name, value.astimezone(UTC))
