"""How far Kafka intakes are behind: from what their own processes left in the ledger, while they are there to look."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from streamfold.core.ledger.abc import IntakeEnd

_FRESH_US = 90_000_000
"""An ingest process tells at least every 30 s; what is older than this says nothing about now."""


def lag(ends: Iterable[IntakeEnd], offsets: Mapping[str, int], now_us: int) -> tuple[int | None, int | None]:
    """Sum up how far a topic's partitions are behind, and tell when the one looked at longest ago was.

    The lag is None while nobody looks at one of them. A topic that was deleted and made again has other intakes than
    before: the newer ones count.

    Parameters
    ----------
    ends : of the topic.
    offsets : where its intakes stand, by name.
    """
    ends = list(ends)
    if not ends:
        return None, None
    newest = max(ends, key=lambda end: end.seen_us).intake.rpartition(":")[0]
    mine = [end for end in ends if end.intake.rpartition(":")[0] == newest]
    at_us = min(end.seen_us for end in mine)
    behind = sum(max(0, end.next_offset - offsets.get(end.intake, 0)) for end in mine)
    return (behind if now_us - at_us <= _FRESH_US else None), at_us
