"""Whether what is sent comes in order of time: a log is folded as it was sent, and nothing else would tell.

A dump sorted by user, say, has rankers learn a user's whole year before the next one's, and most of it lands in
stretches of time of the quality series that later ones have taken already.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

import msgspec

_LATE_S = 86_400.0
_SHARE = 0.05


class _Timed(msgspec.Struct):
    time: datetime | None = None


class Order:
    """Counts events that are more than a day older than one before them."""

    def __init__(self) -> None:
        self._decoder = msgspec.json.Decoder(_Timed)
        self._newest_s = float("-inf")
        self._timed = self._late = 0

    def add(self, events: Iterable[bytes]) -> None:
        """Look at the times of events, as JSON; what has none, or none that can be read, does not count."""
        for event in events:
            try:
                at = self._decoder.decode(event).time
            except msgspec.DecodeError:
                continue
            if at is not None:
                at_s = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
                self._timed += 1
                self._late += at_s < self._newest_s - _LATE_S
                self._newest_s = max(self._newest_s, at_s)

    @property
    def said(self) -> str:
        """What there is to say; empty while it is only now and then."""
        if self._late <= _SHARE * self._timed:
            return ""
        return (
            f"note: {self._late:,} of {self._timed:,} events are over a day older than one that was sent before them; "
            "they are folded in the order in which they were sent: sort the input by time where that matters, as for "
            "rankers and their quality"
        )
