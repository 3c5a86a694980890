"""Two lanes of work: what is served, and what stands beside it. A backfill never makes a live fold wait for its turn.

A candidate that answers a share of the users is served. Each lane has threads of its own. A group that is promoted, or
put into a split, changes lanes; for a moment both may hold it under one lease, which the compare-and-set of each commit
makes harmless: the slower one is fenced and drops its copy.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from streamfold.core.context import Group

Lane = Literal["live", "backfill"]
LANES: tuple[Lane, ...] = ("live", "backfill")


def in_lane(groups: Iterable[Group], lane: Lane | None) -> list[Group]:
    """The groups of a lane; of both for ``None``."""
    return [group for group in groups if lane is None or group.answers == (lane == "live")]
