"""Quotas of workspaces: token buckets in this process, and the size of the log as the ledger counts it.

A bucket belongs to one process: with n replicas a workspace can have up to n times its rate over HTTP. What a batch
holds is known only after its body was read, so a bucket with a token lets any batch pass and goes into debt: the
rate holds on average, and no batch is too large to ever pass.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Literal, Protocol

from streamfold.core.ledger.abc import Quotas
from streamfold.core.settings import QuotaSettings

_KEEP_S = 0.5
FULL_RETRY_S = 60.0
"""A full log gets room only by an operator, or by retention."""

Rate = Literal["events_per_s", "queries_per_s"]


class Bucket:
    """Tokens that come at a rate, up to one second's worth (at least one token).

    level(t + d) = min(burst, level(t) + rate · d), less what was taken.
    """

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        self._burst = max(rate, 1.0) if rate > 0 else 0.0
        self._level = self._burst
        self._at = now

    def take(self, n: float, now: float) -> float:
        """Take ``n`` tokens if there is one (the level may fall below zero); else return the seconds until then."""
        self.owe(0, now)
        if self._level >= 1:
            self._level -= n
            return 0.0
        return (1 - self._level) / self.rate if self.rate > 0 else math.inf

    def owe(self, n: float, now: float) -> None:
        """Take ``n`` tokens whether there are any or not."""
        self._level = min(self._burst, self._level + self.rate * (now - self._at)) - n
        self._at = now


class _Sizes(Protocol):
    def log_bytes(self, workspace: str) -> int: ...


class Limits:
    """The quotas in force, and what is left of them.

    Parameters
    ----------
    ledger : says how many bytes a workspace has logged.
    defaults : for workspaces without quotas of their own.
    now : monotonic seconds.
    """

    def __init__(self, ledger: _Sizes, defaults: QuotaSettings, now: Callable[[], float] = time.monotonic) -> None:
        self._ledger = ledger
        self._defaults = Quotas(**defaults.model_dump())
        self._now = now
        self._lock = threading.Lock()
        self._buckets: dict[tuple[str, str], Bucket] = {}
        self._sizes: dict[str, tuple[float, int]] = {}
        self.given: dict[str, Quotas] = {}
        """Quotas that the ledger has, set by whoever reads them."""

    def of(self, workspace: str) -> Quotas:
        return self.given.get(workspace, self._defaults)

    def take(self, workspace: str, what: Rate, n: float) -> float:
        """Use up ``n`` events or queries (0: only ask); return the seconds to wait when there are none left."""
        now = self._now()
        with self._lock:
            bucket = self._bucket(workspace, what, now)
            return bucket.take(n, now) if bucket is not None else 0.0

    def took(self, workspace: str, events: int) -> None:
        """Count events that cannot be refused any more, as those polled from Kafka."""
        now = self._now()
        with self._lock:
            if (bucket := self._bucket(workspace, "events_per_s", now)) is not None:
                bucket.owe(events, now)

    def _bucket(self, workspace: str, what: Rate, now: float) -> Bucket | None:
        rate: float | None = getattr(self.of(workspace), what)
        if rate is None:
            return None
        bucket = self._buckets.get((workspace, what))
        if bucket is None or bucket.rate != rate:
            bucket = self._buckets[workspace, what] = Bucket(rate, now)
        return bucket

    def is_full(self, workspace: str) -> bool:
        """Whether the log has reached its bytes; read from the ledger at most twice a second."""
        most = self.of(workspace).bytes
        if most is None:
            return False
        now = self._now()
        at, size = self._sizes.get(workspace, (-math.inf, 0))
        if now - at >= _KEEP_S:
            size = self._ledger.log_bytes(workspace)
            self._sizes[workspace] = (now, size)
        return size >= most

    def held_back(self, workspace: str) -> str | None:
        """Why a workspace's Kafka partitions must wait just now, if they must."""
        if self.take(workspace, "events_per_s", 0):
            return "events_per_s"
        return "bytes" if self.is_full(workspace) else None
