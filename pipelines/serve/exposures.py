"""What was shown, logged off the request path: a bounded buffer, appended in batches by a thread of its own.

An answer never waits for the log. While the ledger does not answer, exposures wait in the buffer; past its bound they
are dropped and counted, and the answer says so (``exposure_id`` is null, ``degraded`` names it).
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

from prometheus_client import CollectorRegistry, Counter

from streamfold.core.errors import LedgerError
from streamfold.core.events import CloudEvent
from streamfold.core.views import Arm, WorkspaceView
from streamfold.pipelines.serve.logs import logger
from streamfold.pipelines.serve.own_events import OwnEvents, own_event

SOURCE = "streamfold:serve"
"""``source`` of the exposures that this service logs."""
_MOST = 10_000
_AT_ONCE = 500
_RETRY_S = 0.5
_REST_S = 0.02
"""Between writes: each is a transaction, whatever it is of, and takes time from who answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exposed:
    """One item, or one label, of a response, in the order of its rank. ``rank``: where it is not its place."""

    item_id: str | None = None
    score: float | None = None
    propensity: float | None = None
    label: str | None = None
    rank: int | None = None


class Exposures:
    """The buffer of one serving process.

    Parameters
    ----------
    events : logs them (blocks).
    """

    def __init__(
        self,
        events: OwnEvents,
        registry: CollectorRegistry,
    ) -> None:
        self._events = events
        self._waiting: deque[tuple[WorkspaceView, CloudEvent]] = deque()
        self._ready = threading.Condition()
        self._stopped = False
        self._closing = threading.Event()
        self._log = logger()
        self._count = Counter(
            "streamfold_exposures", "Exposures by what became of them", ["workspace", "outcome"], registry=registry
        )
        self._thread = threading.Thread(target=self._loop, name="exposures", daemon=True)
        self._thread.start()

    def log(
        self,
        view: WorkspaceView,
        kind: Literal["recommend", "rank", "classify"],
        items: Sequence[Exposed],
        *,
        exposure_id: str,
        user_id: str | None = None,
        session_id: str | None = None,
        policies: Mapping[str, str],
        context: Mapping[str, Any] | None = None,
        arms: Sequence[Arm] = (),
    ) -> bool:
        """Have a response logged soon; False: the buffer is full, it is dropped."""
        data = {
            "exposure_id": exposure_id,
            "kind": kind,
            "items": [
                {
                    "item_id": one.item_id,
                    "label": one.label,
                    "rank": one.rank or place,
                    "score": one.score,
                    "propensity": one.propensity,
                }
                for place, one in enumerate(items, 1)
            ],
            "user_id": user_id,
            "session_id": session_id,
            "policies": dict(policies),
            "context": dict(context) if context else None,
            "arms": [_arm(one) for one in arms] or None,
        }
        event = own_event(SOURCE, "exposure.recorded", exposure_id, data)
        with self._ready:
            full = len(self._waiting) >= _MOST or self._stopped
            if not full:
                self._waiting.append((view, event))
                self._ready.notify()
        if full:
            self._count.labels(view.name, "dropped").inc()
        return not full

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Wait until everything is logged; False: not in time."""
        with self._ready:
            return self._ready.wait_for(lambda: not self._waiting, timeout_s)

    def close(self) -> None:
        """Log what waits, if the ledger answers."""
        with self._ready:
            self._stopped = True
            self._ready.notify_all()
        self._closing.set()
        self._thread.join(timeout=10)

    def _loop(self) -> None:
        rests_until = 0.0
        while True:
            with self._ready:
                self._ready.wait_for(lambda: self._waiting or self._stopped)
            if (rest_s := rests_until - time.monotonic()) > 0:
                self._closing.wait(rest_s)
            with self._ready:
                batch = list(islice(self._waiting, _AT_ONCE))
            if not batch:
                return
            try:
                self._write(batch)
            except LedgerError as error:
                self._log.warning("exposures_wait", waiting=len(self._waiting), error=str(error))
                with self._ready:
                    if self._ready.wait_for(lambda: self._stopped, _RETRY_S):
                        return
                continue
            except Exception as error:
                self._log.error("exposures_lost", lost=len(batch), error=repr(error), exc_info=error)
            rests_until = time.monotonic() + _REST_S
            with self._ready:
                for _ in batch:
                    self._waiting.popleft()
                self._ready.notify_all()

    def _write(self, batch: Sequence[tuple[WorkspaceView, CloudEvent]]) -> None:
        by_view: dict[str, tuple[WorkspaceView, list[CloudEvent]]] = {}
        for view, event in batch:
            by_view.setdefault(view.name, (view, []))[1].append(event)
        for name, (view, raws) in by_view.items():
            outcomes = self._events.log(view, raws)
            refused = outcomes.count(None)
            self._count.labels(name, "logged").inc(len(outcomes) - refused)
            if refused:
                self._count.labels(name, "refused").inc(refused)


def _arm(one: Arm) -> dict[str, Any]:
    return {name: getattr(one, name) for name in ("experiment", "arm", "share", "candidate", "live", "weighted")}


def new_id() -> str:
    """A new exposure's id; it also seeds what the response draws."""
    return uuid.uuid4().hex
