"""The ingest process: which partitions it reads, from where, and what happens when something is down.

Partitions are assigned by hand: those whose number is ``share.index`` modulo ``share.count``. Processes that share a
partition by mistake, or on purpose as hot stand-bys, sort themselves out: whoever loses a compare-and-set leaves the
partition alone for a while, and takes it up again from the ledger's position, which the other one may have left.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kafka import OffsetAndMetadata, TopicPartition
from kafka.errors import KafkaError
from prometheus_client import CollectorRegistry

from streamfold.core import crash
from streamfold.core.errors import ConfigError, IntakeConflict, LedgerError
from streamfold.core.ledger.abc import Appended, DeadLetter, IntakeMove
from streamfold.core.settings import Settings
from streamfold.pipelines import tasks
from streamfold.pipelines.exporter import exporting
from streamfold.pipelines.ingest.consumer import connect, position
from streamfold.pipelines.ingest.lag import LagWatch, Stand
from streamfold.pipelines.ingest.metrics import IntakeMetrics
from streamfold.pipelines.ingest.place import Part, Place, Share, Stats, drop_parked, intake_name, pressure, quiet_logs
from streamfold.pipelines.ingest.take import TopicIntake
from streamfold.pipelines.node import Node
from streamfold.pipelines.quota import Limits

log = logging.getLogger("streamfold.ingest")

_LOOK_S = 1.0
"""How often new topics and partitions are looked for."""
_YIELD_S = 3.0
"""How long a partition is left to whoever won it."""
_REPORT_S = 5.0

Wake = Callable[[str, int, Sequence[str]], None]


class Ingest:
    """One consumer of the configured topics.

    Parameters
    ----------
    node : the process's wiring.
    share : which of the partitions it reads.
    wake : called with (workspace, head, types) after an append that accepted something.
    registry : where its metrics go.
    """

    def __init__(
        self,
        node: Node,
        *,
        share: Share | None = None,
        wake: Wake | None = None,
        registry: CollectorRegistry | None = None,
    ) -> None:
        settings = node.settings
        if not settings.kafka.bootstrap or not settings.kafka.topics:
            raise ConfigError("[kafka] set bootstrap and at least one table [kafka.topics.NAME]")
        self.node = node
        self.stats = Stats()
        self.stopping = threading.Event()
        self.paused: dict[str, str] = {}
        """Workspaces under back-pressure or above a quota, and why."""
        self.limits = Limits(node.ledger, settings.quotas)
        self._share = share or Share()
        self._wake: Wake = wake or (lambda workspace, head, types: None)
        refuse = node.registry.hook.refuse_event
        self._topics = {
            topic: TopicIntake(
                topic, table, node.registry.decoders, node.acceptor, refuse if refuse.get_hookimpls() else None
            )
            for topic, table in settings.kafka.topics.items()
        }
        self._places: dict[Any, Place] = {}
        self.lag = LagWatch(node, self._connect, self._stands)
        self.metrics = IntakeMetrics(self, registry or CollectorRegistry())
        self._uncommitted: dict[Any, int] = {}
        self._committed_at = self._looked_at = self._checked_at = 0.0
        self._reported = (time.monotonic(), 0)

    # -- running --------------------------------------------------------------------------------------------------
    def run(self) -> None:
        """Take records until ``stopping`` is set; Kafka or the database being down is waited out."""
        quiet_logs()
        backoff_s = 0.2
        while not self.stopping.is_set():
            started = time.monotonic()
            try:
                self._retry(self._ensure_workspaces)
                self._session()
            except (KafkaError, LedgerError, OSError) as error:
                backoff_s = 0.2 if time.monotonic() - started > 30 else min(backoff_s * 2, 5.0)
                log.warning("kafka_unavailable retry_s=%.1f error=%r", backoff_s, error)
                self.stopping.wait(backoff_s)

    def _ensure_workspaces(self) -> None:
        for intake in self._topics.values():
            self.node.ledger.ensure_workspace(intake.workspace)

    def _session(self) -> None:
        consumer = self._connect()
        self._places.clear()
        self._looked_at = 0.0
        try:
            while not self.stopping.is_set():
                self.step(consumer)
            self._uncommitted = {tp: place.expect for tp, place in self._places.items() if place.expect is not None}
            self._commit(consumer, wait=True)
        finally:
            consumer.close(autocommit=False, timeout_ms=2000)

    def _connect(self) -> Any:
        return connect(self.node.settings.kafka)

    def step(self, consumer: Any) -> None:
        """Look around if it is time, poll once, append what came."""
        now = time.monotonic()
        if now - self._looked_at >= _LOOK_S:
            self._looked_at = now
            self._look(consumer)
        if now - self._checked_at >= 0.5:
            self._checked_at = now
            self._retry(self._check_pressure)
            self._pause(consumer)
            for tp, place in self._places.items():  # nothing that was polled is waiting here
                place.reached = position(consumer, tp)
        self._report(now)
        if not self._places:
            self.stopping.wait(0.2)
            return
        polled = consumer.poll(timeout_ms=200, max_records=self.node.settings.kafka.poll_records)
        if polled:
            crash.point("ingest.polled")
            self.take(consumer, polled)
        if self._uncommitted and time.monotonic() - self._committed_at > 0.5:
            self._commit(consumer)

    # -- partitions and positions ---------------------------------------------------------------------------------
    def _look(self, consumer: Any) -> None:
        """Assign what is there by now; places whose topic was made anew get another name, hence another position."""
        names = {tp: name for tp in self._mine(consumer) if (name := intake_name(consumer, tp)) is not None}
        if set(names) != set(self._places):
            log.info("assigned partitions=%s", sorted(f"{tp.topic}/{tp.partition}" for tp in names))
            consumer.assign(list(names))
            for gone in set(self._places) - set(names):
                del self._places[gone]
        moved = [tp for tp, name in names.items() if tp not in self._places or self._places[tp].intake != name]
        now = time.monotonic()
        ready = [tp for tp, place in self._places.items() if place.yielded_until and now >= place.yielded_until]
        for tp in moved:
            self._places[tp] = Place(names[tp], None)
        self._seek(consumer, {*moved, *ready})

    def _mine(self, consumer: Any) -> list[Any]:
        return [
            TopicPartition(topic, number)
            for topic in self._topics
            for number in consumer.partitions_for_topic(topic)
            if number % self._share.count == self._share.index
        ]

    def _seek(self, consumer: Any, partitions: set[Any]) -> None:
        """Go to where the ledger stands; to the beginning of what the ledger does not know."""
        if not partitions:
            return
        stored = self._retry(self._stored)
        if stored is None:
            return
        for tp in partitions:
            place = self._places[tp]
            place.expect = stored.get((self._topics[tp.topic].workspace, place.intake))
            place.yielded_until, place.reached = 0.0, None
            if place.expect is None:
                consumer.seek_to_beginning(tp)
            else:
                consumer.seek(tp, place.expect)
        self._pause(consumer)

    def _stored(self) -> dict[tuple[str, str], int]:
        workspaces = {intake.workspace for intake in self._topics.values()}
        return {(w, state.intake): state.next_offset for w in workspaces for state in self.node.ledger.intakes(w)}

    def _stands(self) -> dict[Any, Stand]:
        """Where the partitions stand that are not left to another consumer; asked by other threads."""
        return {
            tp: Stand(
                workspace=self._topics[tp.topic].workspace,
                intake=place.intake,
                topic=tp.topic,
                taken=place.expect or 0,
                next=place.next,
            )
            for tp, place in list(self._places.items())
            if not place.yielded_until
        }

    # -- taking ---------------------------------------------------------------------------------------------------
    def take(self, consumer: Any, polled: Mapping[Any, Sequence[Any]]) -> None:
        """Append what was polled, one transaction per workspace."""
        now_us = self.node.context.clock.now_us()
        by_workspace: dict[str, list[Part]] = {}
        for tp, records in polled.items():
            place = self._places.get(tp)
            if place is None or place.yielded_until or (place.expect is not None and records[0].offset < place.expect):
                continue
            intake = self._topics[tp.topic]
            part = Part(tp, place, records[-1].offset + 1, len(records), intake.take(records, now_us))
            by_workspace.setdefault(intake.workspace, []).append(part)
            self.stats.records += len(records)
        for workspace, parts in by_workspace.items():
            self._append(consumer, workspace, parts, now_us)
            self.limits.took(workspace, sum(len(part.taken.records) + len(part.taken.dead) for part in parts))
            if self.limits.take(workspace, "events_per_s", 0):
                self.paused.setdefault(workspace, "events_per_s")
                self._pause(consumer)

    def _append(self, consumer: Any, workspace: str, parts: list[Part], now_us: int) -> None:
        events = [event for part in parts for event in part.taken.events]
        dead = [letter for part in parts for letter in part.taken.dead]
        moves = [
            IntakeMove(
                intake=part.place.intake,
                expect=part.place.expect,
                next=part.next,
                rejected=len(part.taken.dead),
                topic=part.partition.topic,
                took=len(part.taken.events),
            )
            for part in parts
        ]
        ledger, started = self.node.ledger, time.perf_counter()
        try:
            done = self._retry(lambda: ledger.append(workspace, events, recorded_us=now_us, moves=moves, dead=dead))
        except IntakeConflict as error:
            self._conflict(consumer, workspace, parts, error)
            return
        if done is None:
            return  # stopping: nothing was appended, or the ledger knows that it was
        crash.point("ingest.appended")
        for part in parts:
            part.place.expect = part.next
            self._uncommitted[part.partition] = part.next
        self.metrics.appended(workspace, parts, done, time.perf_counter() - started)
        self._appended(workspace, parts, done, now_us)
        if len(events) >= self.node.settings.kafka.poll_records or time.monotonic() - self._committed_at > 0.5:
            self._commit(consumer)

    def _appended(self, workspace: str, parts: list[Part], done: Appended, now_us: int) -> None:
        reused: list[DeadLetter] = []
        accepted = done.outcomes.count("accepted")
        if accepted:
            types = sorted({event.type for part in parts for event in part.taken.events})
            self._wake(workspace, done.head, types)
        if "reused" in done.outcomes:
            pairs = ((part, i) for part in parts for i in range(len(part.taken.events)))
            for (part, i), outcome in zip(pairs, done.outcomes, strict=True):
                if outcome == "reused":
                    event, intake = part.taken.events[i], self._topics[part.partition.topic]
                    detail = f"source {event.source!r} and id {event.id!r} came before with another content"
                    record = part.taken.records[i]
                    letter = intake.letter(record, "validate", "event-id-reused", detail, event.id, now_us)
                    reused.append(letter)
                    self.metrics.dead(workspace, intake.topic, [letter])
            self._retry(lambda: self.node.ledger.append(workspace, [], recorded_us=now_us, dead=reused))
        self.stats.accepted += accepted
        self.stats.rejected += len(reused) + sum(len(part.taken.dead) for part in parts)
        self.stats.duplicates += len(done.outcomes) - accepted - len(reused)

    def _conflict(self, consumer: Any, workspace: str, parts: list[Part], error: IntakeConflict) -> None:
        """Another consumer was faster, or an append whose answer was lost did succeed: stand where the ledger does."""
        stored = self._retry(self._stored)
        if stored is None:
            return
        self.stats.conflicts += 1
        again = set()
        for part in parts:
            at = stored.get((workspace, part.place.intake))
            again.add(part.partition)
            if at not in (part.place.expect, part.next):
                log.warning("intake_conflict intake=%s stands_at=%s: %s", part.place.intake, at, error)
                part.place.yielded_until = time.monotonic() + _YIELD_S
        for tp in {tp for tp in again if self._places[tp].yielded_until}:
            consumer.pause(tp)
            again.discard(tp)
        self._seek(consumer, again)

    def _retry(self, call: Callable[[], Any]) -> Any:
        """Call until it succeeds; None when stopping meanwhile. What was polled is kept, so nothing is lost."""
        backoff_s = 0.1
        while True:
            try:
                return call()
            except IntakeConflict:
                raise
            except Exception as error:
                log.warning("ledger_unavailable retry_s=%.1f error=%s", backoff_s, error, exc_info=backoff_s > 3)
                if self.stopping.wait(backoff_s):
                    return None
                backoff_s = min(backoff_s * 2, 5.0)

    def _commit(self, consumer: Any, *, wait: bool = False) -> None:
        """Tell the broker, for people's monitors; nobody reads it back."""
        if not self._uncommitted:
            return
        offsets = {tp: OffsetAndMetadata(offset, "", -1) for tp, offset in self._uncommitted.items()}
        self._uncommitted = {}
        self._committed_at = time.monotonic()
        try:
            if wait:
                consumer.commit(offsets, timeout_ms=2000)
            else:
                consumer.commit_async(offsets, callback=lambda offsets, answer: None)
        except KafkaError as error:
            log.info("broker_commit_failed error=%r", error)
        crash.point("ingest.committed")

    # -- pressure -------------------------------------------------------------------------------------------------
    def _check_pressure(self) -> None:
        """Find the workspaces that must wait: live folds far behind, little disk left, a quota used up."""
        workspaces = {intake.workspace for intake in self._topics.values()}
        self.limits.given = self.node.ledger.quotas()
        found = pressure(self.node, workspaces, self.paused)
        changed = found.keys() != {name for name, why in self.paused.items() if why in ("disk", "lag")}
        for workspace in workspaces - found.keys():
            if (quota := self.limits.held_back(workspace)) is not None:
                found[workspace] = quota
        if changed:  # a workspace at its quota comes and goes each second: no line for that
            log.info("pressure paused=%s", found)
        self.paused = found

    def _pause(self, consumer: Any) -> None:
        """Pause what is under pressure or left to another consumer, resume the rest; polling goes on."""
        for tp, place in self._places.items():
            if place.yielded_until or self._topics[tp.topic].workspace in self.paused:
                consumer.pause(tp)
            else:
                consumer.resume(tp)
                drop_parked(consumer, tp)

    def _report(self, now: float) -> None:
        at, records = self._reported
        if now - at >= _REPORT_S:
            s = self.stats
            log.info(
                "ingest_rate per_s=%.0f records=%d accepted=%d duplicates=%d rejected=%d conflicts=%d",
                (s.records - records) / (now - at), s.records, s.accepted, s.duplicates, s.rejected, s.conflicts,
            )  # fmt: skip
            self._reported = (now, s.records)


def run(settings: Settings, *, share: Share | None = None) -> None:
    """Run one ingest process until SIGTERM or SIGINT; the batch in hand is appended first."""
    stopping = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stopping.set())
    if not settings.kafka.bootstrap or not settings.kafka.topics:
        raise ConfigError("[kafka] set bootstrap and at least one table [kafka.topics.NAME]")
    with exporting(settings.metrics) as registry:
        tasks.warm_up(settings)
        node = tasks.open_node(settings, stopping)
        if node is None:
            return
        try:
            preparing = tasks.preparing_types(node.registry)

            def wake(workspace: str, head: int, types: Sequence[str]) -> None:
                tasks.publish_wake(settings, workspace, head, types, preparing=preparing)

            ingest = Ingest(node, share=share, wake=wake, registry=registry)
            ingest.stopping = stopping
            ingest.lag.start()
            try:
                ingest.run()
            finally:
                ingest.lag.stop()
            log.info("ingest_stopped records=%d accepted=%d", ingest.stats.records, ingest.stats.accepted)
        finally:
            tasks.flush(settings, timeout_s=1.0)
            node.close()
