"""The contract of policies that watch others: they raise alarms, and change nothing.

Alarms are rows of a policy's stores, so they are a function of the log. The serving process logs each as a
``drift.detected`` event, once, however many processes see it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import msgspec


class Alarm(msgspec.Struct, frozen=True, array_like=True):
    """A change that was seen.

    ``policy``: whose; ``detector``: which one saw it, and of what; ``at_position``: the event that brought it about.
    """

    policy: str
    detector: str
    statistic: float
    threshold: float
    at_position: int
    at_us: int


@runtime_checkable
class Watcher(Protocol):
    """Raises alarms; a pure read."""

    def alarms(self) -> Sequence[Alarm]:
        """The alarms that are kept, oldest first."""
        ...


@runtime_checkable
class LossReport(Protocol):
    """Notes the losses of another policy's predictions, for policies that read this one while folding."""

    @property
    def ranker(self) -> str:
        """The policy whose predictions these are."""
        ...

    def losses(self, after: int) -> tuple[int, list[tuple[int, float]]]:
        """How many examples there were, and of those past the first ``after`` position and log loss, as far as kept."""
        ...
