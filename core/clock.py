"""Time, injected: nothing in core reads the wall clock except through a ``Clock``.

Times are integers of microseconds since 1970-01-01 UTC, named ``*_us``; durations carry their unit too.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol

US = 1_000_000
"""Microseconds in a second."""


class Clock(Protocol):
    """Where "now" comes from."""

    def now_us(self) -> int:
        """Return microseconds since 1970-01-01 UTC."""
        ...


class SystemClock:
    """The machine's clock."""

    def now_us(self) -> int:
        return time.time_ns() // 1000


class ManualClock:
    """A clock that tests move by hand."""

    def __init__(self, now_us: int = 1_700_000_000 * US) -> None:
        self._now_us = now_us

    def now_us(self) -> int:
        return self._now_us

    def advance(self, seconds: float) -> None:
        self._now_us += int(seconds * US)


def to_rfc3339(us: int) -> str:
    """Format microseconds since the epoch as RFC 3339 UTC with microseconds."""
    return datetime.fromtimestamp(us / US, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
