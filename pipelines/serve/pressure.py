"""When to hold intake back: the log is the buffer, its bounds are the disk and the live lag."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass

from streamfold.core.settings import Settings
from streamfold.core.views import GroupView, WorkspaceView
from streamfold.pipelines.serve.problems import Problem

_KEEP_S = 0.5


@dataclass(frozen=True, slots=True)
class Reading:
    """Live lag of a workspace in events, free bytes of the data folder's disk."""

    lag_events: int
    free_bytes: int


def live_lag(view: WorkspaceView) -> int:
    """Events that the slowest live group has to fold; halted and paused groups are an alert, not a brake for others.

    Nor is a candidate that answers a share of the users: an experiment does not stop the intake. Its lag is an alert
    (see ``answering_lag``), and who waits for an event waits for it too, until the split is ended.
    """
    return _lag(view, view.live())


def answering_lag(view: WorkspaceView) -> int:
    """The same of all that answer users: what is live, and candidates of live A/Bs."""
    return _lag(view, view.answerers())


def _lag(view: WorkspaceView, groups: Iterable[GroupView]) -> int:
    behind = [
        view.head - group.watermark
        for group in groups
        if not view.halted(group) and ((state := view.states.get(group.group.name)) is None or not state.paused)
    ]
    return max(0, *behind) if behind else 0


class Pressure:
    """The cheap check before each write: measured at most twice a second."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._kept: dict[str, tuple[float, Reading]] = {}

    def read(self, view: WorkspaceView) -> Reading:
        now = time.monotonic()
        kept = self._kept.get(view.name)
        if kept is not None and now - kept[0] < _KEEP_S:
            return kept[1]
        reading = Reading(live_lag(view), shutil.disk_usage(self._settings.data).free)
        self._kept[view.name] = (now, reading)
        return reading

    def check(self, view: WorkspaceView) -> None:
        """Refuse a write with 429 ``backpressure``."""
        reading, fold = self.read(view), self._settings.fold
        if reading.lag_events > fold.max_lag_events:
            raise _held_back(
                f"the folds are {reading.lag_events} events behind (limit {fold.max_lag_events}): send again later", 2
            )
        if reading.free_bytes < fold.min_free_bytes:
            raise _held_back(
                f"the disk has {reading.free_bytes} bytes left (limit {fold.min_free_bytes}): free some space", 30
            )


def _held_back(detail: str, retry_after_s: int) -> Problem:
    return Problem("backpressure", detail, headers={"Retry-After": str(retry_after_s)})
