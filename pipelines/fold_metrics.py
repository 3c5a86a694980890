"""What folding costs, counted in the process that folds: the embedded service, or a worker."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

from streamfold.core.hooks import hookimpl

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class FoldMetrics:
    """A plugin that hears of each commit."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._seconds = Histogram(
            "streamfold_commit_seconds",
            "Time of a group's commit",
            ["workspace", "group"],
            buckets=SECONDS,
            registry=registry,
        )
        self._folded = Counter("streamfold_folded_events", "Events folded", ["workspace", "group"], registry=registry)

    @hookimpl
    def committed(self, workspace: str, group: str, events: int, seconds: float) -> None:
        self._folded.labels(workspace, group).inc(events)
        self._seconds.labels(workspace, group).observe(seconds)
