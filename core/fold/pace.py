"""How fast a shadow may go: a token bucket that holds at most one second's worth."""

from __future__ import annotations

import time
from collections.abc import Callable


class Pace:
    """At most ``rate`` events per second; 0: no limit.

    Parameters
    ----------
    rate : events per second.
    now : a monotonic clock in seconds.
    """

    def __init__(self, rate: int, now: Callable[[], float] = time.monotonic) -> None:
        self.rate = rate
        self._now = now
        self._at = now()
        self._left = 1.0

    def allows(self, most: int) -> int:
        """How many of ``most`` events may be taken now."""
        if not self.rate:
            return most
        now = self._now()
        self._left = min(max(1.0, self.rate), self._left + (now - self._at) * self.rate)
        self._at = now
        return min(most, int(self._left))

    def took(self, events: int) -> None:
        """Count what was taken."""
        if self.rate:
            self._left -= events
