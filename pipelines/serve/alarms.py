"""Alarms of watching policies, made known: a ``drift.detected`` event each, a warning in the log, a count.

The event's id is made of the alarm, so whatever process logs it, and however often, it is in the log once. Alarms of
more than a day ago are not raised again: those of a policy that is folded afresh are old news.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from hashlib import blake2b

from prometheus_client import CollectorRegistry, Counter

from streamfold.core.views import WorkspaceView
from streamfold.core.watching import Alarm, Watcher
from streamfold.pipelines.node import Node
from streamfold.pipelines.serve.logs import logger
from streamfold.pipelines.serve.own_events import OwnEvents, own_event
from streamfold.pipelines.serve.rounds import Rounds, open_views

SOURCE = "streamfold:watch"
"""``source`` of the events."""
_LOOK_S = 1.0
_NEWS_US = 86_400_000_000
_REMEMBERED = 10_000
_NAMES = ("policy", "detector", "statistic", "threshold", "at_position")


class AlarmLog:
    """Looks after the alarms of one serving process.

    Parameters
    ----------
    events : logs them (blocks).
    """

    def __init__(
        self,
        node: Node,
        events: OwnEvents,
        registry: CollectorRegistry,
    ) -> None:
        self._events = events
        self._known: dict[tuple[str, str], None] = {}
        self._log = logger()
        self._count = Counter(
            "streamfold_drift_alarms", "Alarms of drift", ["workspace", "policy", "detector"], registry=registry
        )
        self._rounds = Rounds("alarms", partial(open_views, node), self._look, every_s=_LOOK_S)

    def close(self) -> None:
        self._rounds.close()

    def _look(self, view: WorkspaceView) -> None:
        since_us = view.context.clock.now_us() - _NEWS_US
        for group, member in view.servers(Watcher):
            with view.reading([group]):
                alarms: Sequence[Alarm] = member.server.alarms()
            for alarm in alarms:
                if alarm.at_us >= since_us and (view.name, _id(alarm)) not in self._known:
                    self._raise(view, alarm)

    def _raise(self, view: WorkspaceView, alarm: Alarm) -> None:
        data = {name: getattr(alarm, name) for name in _NAMES}
        if "accepted" in self._events.log(view, [own_event(SOURCE, "drift.detected", _id(alarm), data)]):
            self._count.labels(view.name, alarm.policy, alarm.detector).inc()
            self._log.warning("drift_detected", workspace=view.name, **data)
        self._known[view.name, _id(alarm)] = None
        if len(self._known) > _REMEMBERED:
            del self._known[next(iter(self._known))]


def _id(alarm: Alarm) -> str:
    named = f"{alarm.policy}\0{alarm.detector}\0{alarm.at_position}".encode()
    return f"drift-{alarm.at_position}-{blake2b(named, digest_size=8).hexdigest()}"
