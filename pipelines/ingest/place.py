"""Where the partitions of an ingest process stand, how they are named, and when their workspaces must wait."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from streamfold.pipelines.ingest.take import Taken
from streamfold.pipelines.node import Node


@dataclass(frozen=True, slots=True)
class Share:
    """Which partitions are mine: ``number % count == index``."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Share:
        index, _, count = text.partition("/")
        share = cls(int(index), int(count or 1))
        if not 0 <= share.index < share.count:
            raise ValueError(f"share {text!r}: write i/n with 0 ≤ i < n")
        return share


@dataclass(slots=True)
class Stats:
    """Counts since the start."""

    records: int = 0
    accepted: int = 0
    duplicates: int = 0
    rejected: int = 0
    conflicts: int = 0


@dataclass(slots=True)
class Place:
    """Where a partition stands: its intake's name, what the ledger should hold, and how far the consumer got."""

    intake: str
    expect: int | None
    yielded_until: float = 0.0
    reached: int | None = None

    @property
    def next(self) -> int | None:
        """The offset of the next record to take, as far as it is known."""
        return max((at for at in (self.expect, self.reached) if at is not None), default=None)


@dataclass(slots=True)
class Part:
    """One partition's share of a batch, ready to be appended."""

    partition: Any
    place: Place
    next: int
    records: int
    taken: Taken


def quiet_logs() -> None:
    """Let kafka-python say once per attempt that a broker cannot be reached, not four times."""
    logging.getLogger("kafka").setLevel(logging.ERROR)
    for name in ("kafka.net.transport", "kafka.net.connection", "kafka.coordinator", "kafka.cluster"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def intake_name(consumer: Any, tp: Any) -> str | None:
    """Name a partition for good; None while the cluster's metadata is not known.

    A topic deleted and made again has another id, so that its offsets start anew. kafka-python shows neither cluster
    id nor topic ids in its public interface.
    """
    cluster = consumer._cluster
    if cluster.cluster_id is None:
        return None
    topic_id = cluster.topic_id(tp.topic)
    known = topic_id is not None and getattr(topic_id, "int", 0) != 0
    return f"kafka:{cluster.cluster_id}:{topic_id if known else tp.topic}:{tp.partition}"


def drop_parked(consumer: Any, tp: Any) -> None:
    """Let a resumed partition be fetched from its position again.

    kafka-python 3.0.12 parks what it had fetched of a paused partition, and gives it out again only if no other
    partition was read since: else the partition would stand still for good.
    """
    getattr(consumer._fetcher, "_paused_partition_records", {}).pop(tp, None)


def pressure(node: Node, workspaces: Iterable[str], paused: Mapping[str, str]) -> dict[str, str]:
    """Find the workspaces whose intake must wait, and why: live folds far behind, or little disk left."""
    fold = node.settings.fold
    free = shutil.disk_usage(node.settings.data).free
    found: dict[str, str] = {}
    for workspace in workspaces:
        bound = fold.max_lag_events * (0.8 if workspace in paused else 1.0)  # no flutter around the bound
        if free < fold.min_free_bytes:
            found[workspace] = "disk"
        elif live_lag(node, workspace) > bound:
            found[workspace] = "lag"
    return found


def live_lag(node: Node, workspace: str) -> int:
    """Events that the slowest live group, unless halted or paused by hand, is behind the log.

    From the ledger's rows alone: an ingest process needs no code of the policies.
    """
    ledger = node.ledger
    live = {instance.group for instance in ledger.instances(workspace) if instance.slot == "live"}
    marks = [g.watermark for g in ledger.groups(workspace) if g.group in live and g.halted is None and not g.paused]
    return ledger.head(workspace) - min(marks) if marks else 0
