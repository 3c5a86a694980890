"""What an ingest process counts and knows. Names are documented in docs/reference/metrics.md."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric

from streamfold.core.ledger.abc import Appended, DeadLetter
from streamfold.pipelines.fold_metrics import SECONDS
from streamfold.pipelines.ingest.place import Part

if TYPE_CHECKING:
    from streamfold.pipelines.ingest.loop import Ingest


class IntakeMetrics:
    """Counters of one ingest, and gauges read from it at each scrape."""

    def __init__(self, ingest: Ingest, registry: CollectorRegistry) -> None:
        topic = ["workspace", "topic"]
        self._records = Counter("streamfold_intake_records", "Records taken from Kafka", topic, registry=registry)
        self._events = Counter(
            "streamfold_events", "Events by what became of them", ["workspace", "outcome"], registry=registry
        )
        self._dead = Counter(
            "streamfold_intake_dead_letters", "Records that were not taken, by reason", [*topic, "code"],
            registry=registry,
        )  # fmt: skip
        self._append = Histogram(
            "streamfold_append_seconds", "Time to log a batch, waiting for the ledger included", ["workspace"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        registry.register(_Gauges(ingest))

    def appended(self, workspace: str, parts: Sequence[Part], done: Appended, seconds: float) -> None:
        """Count what an append did."""
        self._append.labels(workspace).observe(seconds)
        for outcome, number in Tally(done.outcomes).items():
            self._events.labels(workspace, outcome).inc(number)
        if done.superseded:
            self._events.labels(workspace, "superseded").inc(done.superseded)
        for part in parts:
            topic, dead = part.partition.topic, part.taken.dead
            self._records.labels(workspace, topic).inc(part.records)
            if dead:
                self._events.labels(workspace, "rejected").inc(len(dead))
                self.dead(workspace, topic, dead)

    def dead(self, workspace: str, topic: str, letters: Iterable[DeadLetter]) -> None:
        for letter in letters:
            self._dead.labels(workspace, topic, letter.code).inc()


class _Gauges:
    """What the ingest knows at a scrape."""

    def __init__(self, ingest: Ingest) -> None:
        self._ingest = ingest

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        lag = GaugeMetricFamily(
            "streamfold_intake_lag_events",
            "Offsets from the next record to the end of the partition; absent while unknown",
            labels=["workspace", "topic", "partition"],
        )
        for tp, (stand, behind) in self._ingest.lag.lags.items():
            lag.add_metric([stand.workspace, tp.topic, str(tp.partition)], behind)
        paused = GaugeMetricFamily(
            "streamfold_intake_paused",
            "1: the workspace's topics wait: lag of a fold, disk, or a quota",
            labels=["workspace", "reason"],
        )
        for workspace, reason in dict(self._ingest.paused).items():
            paused.add_metric([workspace, reason], 1)
        yield from (lag, paused)
