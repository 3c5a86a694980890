"""What a worker counts and knows. Names are documented in docs/reference/metrics.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily, Metric

from streamfold.core.errors import LedgerError
from streamfold.pipelines.fold_metrics import FoldMetrics
from streamfold.pipelines.node import Node

_GROUP = ["workspace", "group"]


class WorkerMetrics:
    """Counters of one worker, and gauges read from the ledger at each scrape.

    Parameters
    ----------
    node : the process's wiring.
    warm : the workspaces in which it folds, or did lately.
    registry : where its metrics go.
    """

    def __init__(self, node: Node, warm: Callable[[], set[str]], registry: CollectorRegistry) -> None:
        self.folds = FoldMetrics(registry)
        self._prepared = Counter(
            "streamfold_prepared_events", "Events prepared, for one policy each", ["workspace"], registry=registry
        )
        registry.register(_Gauges(node, warm))
        node.registry.manager.register(self.folds)

    def prepared(self, workspace: str, events: int) -> None:
        if events:
            self._prepared.labels(workspace).inc(events)


class _Gauges:
    """The groups whose lease this worker had last: so each is told of by one process, and by another when that dies."""

    def __init__(self, node: Node, warm: Callable[[], set[str]]) -> None:
        self._node = node
        self._warm = warm

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        lag = GaugeMetricFamily("streamfold_lag_events", "Events behind the log", labels=_GROUP)
        halted = GaugeMetricFamily("streamfold_halted", "1: the group is halted", labels=_GROUP)
        skips = GaugeMetricFamily("streamfold_skipped_events", "Events that the group has skipped", labels=_GROUP)
        size = GaugeMetricFamily("streamfold_state_bytes", "Bytes of the group's stores", labels=_GROUP)
        up = GaugeMetricFamily("streamfold_ledger_up", "1: the ledger answers")
        ledger, owner = self._node.ledger, self._node.context.owner
        try:
            for workspace in sorted(self._warm()):
                head = ledger.head(workspace)
                for state in ledger.groups(workspace):
                    if state.owner == owner:
                        labels = [workspace, state.group]
                        lag.add_metric(labels, max(0, head - state.watermark))
                        halted.add_metric(labels, float(state.halted is not None))
                        skips.add_metric(labels, state.skips)
                        size.add_metric(labels, state.state_bytes)
            ledger.access_version()
            up.add_metric([], 1)
        except LedgerError:
            up.add_metric([], 0)
        yield from (lag, halted, skips, size, up)
