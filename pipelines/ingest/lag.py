"""How far the intake is behind the broker: a thread asks for the ends of the partitions, with a connection of its own.

So taking records costs nothing more, and partitions that are paused, from which nothing is fetched, are seen too. What
was found is for this process's metrics and, in the ledger, for ``/v1/status`` of whoever serves.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kafka.errors import KafkaError

from streamfold.core.errors import LedgerError
from streamfold.core.ledger.abc import IntakeEnd
from streamfold.pipelines.node import Node

log = logging.getLogger("streamfold.ingest.lag")

LOOK_S = 3.0
"""How often the broker is asked; what changed since is written."""
TELL_S = 30.0
"""What did not change is written again after so long, so that the ledger tells who still looks."""
_TIMEOUT_MS = 5000


@dataclass(frozen=True, slots=True, kw_only=True)
class Stand:
    """Where a partition's intake stands.

    ``taken``: the offset in the ledger, 0 before there is one. ``next``: that of the next record; it may be further,
    past what is no record (the end of a transaction) or is gone from the topic. None while neither is known.
    """

    workspace: str
    intake: str
    topic: str
    taken: int
    next: int | None


class LagWatch:
    """Asks the broker now and then.

    Parameters
    ----------
    node : the process's wiring.
    connect : makes a consumer that is not used for anything else.
    stands : where the partitions stand that this process reads, now.
    """

    def __init__(self, node: Node, connect: Callable[[], Any], stands: Callable[[], Mapping[Any, Stand]]) -> None:
        self._node = node
        self._connect = connect
        self._stands = stands
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="lag", daemon=True)
        self._told: dict[str, tuple[float, dict[str, int]]] = {}
        self.lags: dict[Any, tuple[Stand, int]] = {}
        """By partition: where it stood, and how many offsets it was behind; what could not be asked is not there."""

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout=_TIMEOUT_MS / 1000)

    def _loop(self) -> None:
        consumer: Any = None
        while not self._stopping.wait(LOOK_S):
            try:
                consumer = consumer or self._connect()
                self.look(consumer)
            except (KafkaError, LedgerError, OSError) as error:
                self.lags = {}
                log.info("lag_unknown error=%r", error)  # the intake itself says what is down
            except Exception:
                self.lags = {}
                log.exception("lag_failed; looking again")
        if consumer is not None:
            consumer.close(autocommit=False, timeout_ms=1000)

    def look(self, consumer: Any) -> None:
        """Ask once, and write what is new."""
        ends = consumer.end_offsets(list(self._stands()), timeout_ms=_TIMEOUT_MS)
        stands = self._stands()  # after the ends: what was taken meanwhile is no lag
        self.lags = {
            tp: (stand, max(0, ends[tp] - stand.next))
            for tp, stand in stands.items()
            if tp in ends and stand.next is not None
        }
        found: dict[str, list[IntakeEnd]] = {}
        seen_us = self._node.context.clock.now_us()
        for stand, lag in self.lags.values():
            end = IntakeEnd(intake=stand.intake, topic=stand.topic, next_offset=stand.taken + lag, seen_us=seen_us)
            found.setdefault(stand.workspace, []).append(end)
        for workspace, ends_ in found.items():
            self._tell(workspace, ends_)

    def _tell(self, workspace: str, ends: list[IntakeEnd]) -> None:
        now, new = time.monotonic(), {end.intake: end.next_offset for end in ends}
        at, old = self._told.get(workspace, (0.0, {}))
        if new != old or now - at >= TELL_S:
            self._node.ledger.note_ends(workspace, ends)
            self._told[workspace] = (now, new)
