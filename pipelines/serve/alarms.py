"""Alarms of watching policies, made known: a ``drift.detected`` event each, a warning in the log, a count.

The event's id is made of the alarm, so whatever process logs it, and however often, it is in the log once. Alarms of
more than a day ago are not raised again: those of a policy that is folded afresh are old news.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, Counter

from streamfold.core.errors import InvalidEvent, LedgerError
from streamfold.core.events import CloudEvent, NewEvent
from streamfold.core.views import WorkspaceView
from streamfold.core.watching import Alarm, Watcher
from streamfold.pipelines.serve.logs import logger

SOURCE = "streamfold:watch"
"""``source`` of the events."""
_LOOK_S = 1.0
_NEWS_US = 86_400_000_000
_REMEMBERED = 10_000


class AlarmLog:
    """Looks after the alarms of one serving process.

    Parameters
    ----------
    views : the open views. accept, append : as of exposures.
    """

    def __init__(
        self,
        views: Callable[[], Sequence[WorkspaceView]],
        accept: Callable[[str, Sequence[CloudEvent]], list[NewEvent | InvalidEvent]],
        append: Callable[[WorkspaceView, Sequence[NewEvent]], Any],
        registry: CollectorRegistry,
    ) -> None:
        self._views, self._accept, self._append = views, accept, append
        self._known: dict[tuple[str, str], None] = {}
        self._stopped = threading.Event()
        self._log = logger()
        self._count = Counter(
            "streamfold_drift_alarms", "Alarms of drift", ["workspace", "policy", "detector"], registry=registry
        )
        self._thread = threading.Thread(target=self._loop, name="alarms", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stopped.set()
        self._thread.join(timeout=10)

    def _loop(self) -> None:
        while not self._stopped.wait(_LOOK_S):
            for view in self._views():
                try:
                    self._look(view)
                except LedgerError as error:
                    self._log.warning("alarms_wait", workspace=view.name, error=str(error))
                except Exception as error:
                    self._log.error("alarms_failed", workspace=view.name, error=repr(error), exc_info=error)

    def _look(self, view: WorkspaceView) -> None:
        since_us = view.context.clock.now_us() - _NEWS_US
        for group, member in view.servers(Watcher):
            with view.reading([group]):
                alarms: Sequence[Alarm] = member.server.alarms()
            for alarm in alarms:
                if alarm.at_us >= since_us and (view.name, _id(alarm)) not in self._known:
                    self._raise(view, alarm)

    def _raise(self, view: WorkspaceView, alarm: Alarm) -> None:
        names = ("policy", "detector", "statistic", "threshold", "at_position")
        data = msgspec.json.encode({name: getattr(alarm, name) for name in names})
        raw = CloudEvent(specversion="1.0", id=_id(alarm), source=SOURCE, type="drift.detected", data=msgspec.Raw(data))
        [event] = self._accept(view.name, [raw])
        if not isinstance(event, InvalidEvent) and "accepted" in self._append(view, [event]).outcomes:
            self._count.labels(view.name, alarm.policy, alarm.detector).inc()
            self._log.warning("drift_detected", workspace=view.name, **{name: getattr(alarm, name) for name in names})
        self._known[view.name, _id(alarm)] = None
        if len(self._known) > _REMEMBERED:
            del self._known[next(iter(self._known))]


def _id(alarm: Alarm) -> str:
    named = f"{alarm.policy}\0{alarm.detector}\0{alarm.at_position}".encode()
    return f"drift-{alarm.at_position}-{blake2b(named, digest_size=8).hexdigest()}"
