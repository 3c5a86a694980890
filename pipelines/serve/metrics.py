"""Metrics in Prometheus' text form, from a registry of our own. Names are documented in docs/reference/metrics.md."""

from __future__ import annotations

import math
from collections import Counter as Tally
from collections import deque
from collections.abc import Iterable, Iterator
from time import monotonic
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from streamfold.core.errors import LedgerError
from streamfold.core.ledger.abc import Appended
from streamfold.core.stores import LiveVectors
from streamfold.pipelines.fold_metrics import SECONDS, FoldMetrics
from streamfold.pipelines.node import Node
from streamfold.pipelines.serve.pressure import live_lag

_RATE_S = 10.0
_VECTOR_GAUGES = (
    ("recall", "Recall of the last probed queries against exact search; NaN before there are any"),
    ("nprobe", "Lists per search"),
    ("dead", "Deleted or replaced rows that await a merge"),
    ("frozen", "Rows in buffers that await a merge"),
    ("retrains", "Trainings of the lists since the start"),
)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counters of this process, and gauges read when asked for."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.registry = CollectorRegistry()
        make: dict[str, Any] = {"registry": self.registry}
        self.events = Counter("streamfold_events", "Events by what became of them", ["workspace", "outcome"], **make)
        self.requests = Counter("streamfold_http_requests", "HTTP requests", ["method", "route", "status"], **make)
        self.request_seconds = Histogram(
            "streamfold_http_seconds", "Time to answer", ["route"], buckets=SECONDS, **make
        )
        self.visible_seconds = Histogram(
            "streamfold_visible_seconds",
            "From an event's arrival to its being visible in this process",
            ["workspace"],
            buckets=SECONDS,
            **make,
        )
        self._folds = FoldMetrics(self.registry)
        self.registry.register(_Gauges(node))
        self._recent: dict[str, deque[tuple[float, int]]] = {}
        self._totals: dict[str, Tally[str]] = {}
        node.registry.manager.register(self._folds, name="streamfold-metrics")

    def close(self) -> None:
        self._node.registry.manager.unregister(self._folds)

    def saw(self, workspace: str, seconds: float) -> None:
        """An event became visible (the views' ``samples``)."""
        self.visible_seconds.labels(workspace).observe(seconds)

    def took(self, workspace: str, done: Appended) -> None:
        """Count what an append did."""
        tally = Tally(done.outcomes)
        self.count(workspace, tally)
        if done.superseded:
            self.events.labels(workspace, "superseded").inc(done.superseded)

    def count(self, workspace: str, outcomes: dict[Any, int]) -> None:
        total = self._totals.setdefault(workspace, Tally())
        for outcome, number in outcomes.items():
            self.events.labels(workspace, outcome).inc(number)
            total[outcome] += number
        recent = self._recent.setdefault(workspace, deque(maxlen=10_000))
        recent.append((monotonic(), outcomes.get("accepted", 0)))

    def http_intake(self, workspace: str) -> dict[str, Any]:
        """Return the HTTP intake's line of ``/v1/status``."""
        total = self._totals.get(workspace, Tally[str]())
        since = monotonic() - _RATE_S
        rate = sum(number for at, number in list(self._recent.get(workspace, ())) if at >= since) / _RATE_S
        return {
            "name": "http",
            "kind": "http",
            "offsets": {},
            "lag_events": 0,
            "rate_per_s": round(rate, 3),
            "events": total["accepted"],
            "duplicates": total["duplicate"],
            "rejected": total["rejected"] + total["reused"],
        }

    def text(self, workspace: str | None = None) -> bytes:
        """Write all metrics, or leave out the lines of other workspaces."""
        text = generate_latest(self.registry)
        if workspace is None:
            return text
        own = b'workspace="%s"' % workspace.replace("\\", "\\\\").replace('"', '\\"').encode()
        lines = text.splitlines(keepends=True)
        return b"".join(line for line in lines if line[:1] == b"#" or b'workspace="' not in line or own in line)


class _Gauges:
    """What is read from the ledger and the views at each scrape."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        head = GaugeMetricFamily("streamfold_position", "Newest position of the log", labels=["workspace"])
        lag = GaugeMetricFamily("streamfold_lag_events", "Events behind the log", labels=["workspace", "group"])
        live = GaugeMetricFamily("streamfold_live_lag_events", "Lag of the slowest live group", labels=["workspace"])
        halted = GaugeMetricFamily("streamfold_halted", "1: the group is halted", labels=["workspace", "group"])
        dead = GaugeMetricFamily("streamfold_dead_letters", "Dead letters", labels=["workspace"])
        stores = GaugeMetricFamily(
            "streamfold_store_bytes", "Bytes of a store in this process", labels=["workspace", "policy", "store"]
        )
        vectors = [
            GaugeMetricFamily(f"streamfold_vector_{name}", text, labels=["workspace", "policy", "store"])
            for name, text in _VECTOR_GAUGES
        ]
        ledger = GaugeMetricFamily("streamfold_ledger_bytes", "Bytes of the ledger by part", labels=["part"])
        up = GaugeMetricFamily("streamfold_ledger_up", "1: the ledger answers")
        node = self._node
        try:
            for view in node.views.opened() if node.views is not None else ():
                head.add_metric([view.name], view.head)
                live.add_metric([view.name], live_lag(view))
                dead.add_metric([view.name], node.ledger.dead_letter_count(view.name))
                for group in list(view.groups.values()):
                    lag.add_metric([view.name, group.group.name], max(0, view.head - group.watermark))
                    halted.add_metric([view.name, group.group.name], float(view.halted(group)))
                    with group.lock.read():
                        if view.closed:
                            break
                        for key, store in group.stores.stores.items():
                            policy, _, name = key.partition("/")
                            stores.add_metric([view.name, policy, name], store.state_bytes())
                            if isinstance(store, LiveVectors) and (stats := store.stats()) is not None:
                                for gauge, (field, _) in zip(vectors, _VECTOR_GAUGES, strict=True):
                                    value = getattr(stats, field)
                                    gauge.add_metric([view.name, policy, name], math.nan if value is None else value)
            for part, size in node.ledger.size_bytes().items():
                ledger.add_metric([part], size)
            up.add_metric([], 1)
        except LedgerError:
            up.add_metric([], 0)
        yield from (head, lag, live, halted, dead, stores, *vectors, ledger, up)
