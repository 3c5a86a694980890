"""A simulated installation: the real ledger, folds, leases, feed, views and Kafka intake, under one schedule.

``embedded``: one process with the threads of the embedded service. ``distributed``: two workers, an API host and two
ingest processes that fight over one partition. In both, clients send, some events twice, and try again until they are
told that an event is logged. At the end faults stop, and everything has to come to rest where the oracle says.
"""

from __future__ import annotations

import itertools
import logging
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import msgspec
from kafka import TopicPartition
from kafka.errors import KafkaError
from sim_disk import Disk, SimOs, SimShutil, room_for
from sim_kernel import (
    EPOCH_S,
    Broken,
    Decision,
    Kernel,
    Killed,
    Process,
    Schedule,
    SimClock,
    SimEvent,
    SimLock,
    SimThreading,
    SimTime,
)
from sim_policies import POISON, POLICIES, Counts, Oracle, held

from streamfold.core import crash, files
from streamfold.core.context import Context
from streamfold.core.errors import CorruptCheckpoint, LedgerUnavailable
from streamfold.core.events import Acceptor
from streamfold.core.fold import EmbeddedRunner, MemoryPrepared, verify_group
from streamfold.core.fold.stores import GroupStores
from streamfold.core.ledger import _sqlite_files, open_ledger
from streamfold.core.ledger.abc import Ledger
from streamfold.core.registry import Registry
from streamfold.core.settings import Settings
from streamfold.core.stores import checkpoint as checkpoint_files
from streamfold.core.stores.table import LiveTable
from streamfold.core.testing import plugin
from streamfold.core.views import Views
from streamfold.core.views import view as view_module
from streamfold.pipelines import worker as worker_module
from streamfold.pipelines.ingest import loop as ingest_module
from streamfold.plugins import builtin

UNDER = (
    "streamfold.core.",
    "streamfold.pipelines.worker",
    "streamfold.pipelines.ingest.",
    "streamfold.pipelines.quota",
)
REAL = ("streamfold.core.ledger", "streamfold.core.crash", "streamfold.core.clock", "streamfold.core.testing")
"""The ledger's own threads and time stay real: a call of it is one step, which nothing interrupts but a kill."""
_numbers = itertools.count()
"""Of runs on a ledger that others have used: each has a workspace of its own."""
PARTITION = TopicPartition("events", 0)
REST_S = 90.0


def simulated_modules() -> list[Any]:
    """Modules that wait, lock, start threads or read the time: they get the simulator's ``time`` and ``threading``."""
    found = [m for n, m in sorted(sys.modules.items()) if n.startswith(UNDER) and not n.startswith(REAL)]
    return [m for m in found if {"time", "threading"} & vars(m).keys()]


@dataclass
class Broker:
    """One partition of a simulated Kafka, and consumers of it as ``Ingest`` uses them."""

    records: list[Any] = field(default_factory=list)

    def produce(self, body: bytes) -> None:
        headers = [("content-type", b"application/cloudevents+json")]
        self.records.append(
            SimpleNamespace(
                topic="events", partition=0, offset=len(self.records), key=None, value=body, headers=headers,
                timestamp=EPOCH_S * 1000, timestamp_type=0,
            )
        )  # fmt: skip


class Consumer:
    """A consumer of the broker's one partition: its position is its own, as with kafka-python."""

    def __init__(self, kernel: Kernel, broker: Broker) -> None:
        self._kernel, self._broker = kernel, broker
        self._at = 0
        self._paused = False

    def partitions_for_topic(self, topic: str) -> set[int]:
        return {0}

    def assign(self, partitions: Any) -> None:
        pass

    def seek(self, tp: Any, offset: int) -> None:
        self._at = offset

    def seek_to_beginning(self, tp: Any) -> None:
        self._at = 0

    def pause(self, tp: Any) -> None:
        self._paused = True

    def resume(self, tp: Any) -> None:
        self._paused = False

    def poll(self, timeout_ms: int, max_records: int) -> dict[Any, list[Any]]:
        fault = self._kernel.point("poll", ("kill", "down"))
        if fault is not None:
            raise KafkaError("simulated: the broker is away")
        found = [] if self._paused else self._broker.records[self._at : self._at + max_records]
        self._at += len(found)
        if not found:
            self._kernel.pause(self._kernel.now + timeout_ms / 1000, None, "poll")
        return {PARTITION: found} if found else {}

    def commit(self, offsets: Any, timeout_ms: int) -> None:
        pass

    def commit_async(self, offsets: Any, callback: Any) -> None:
        pass

    def close(self, **_: Any) -> None:
        pass


class SimLedger:
    """A process's connection to the ledger: each call is a point, at which it may fail before or after, or half-way."""

    def __init__(self, world: World, process: Process) -> None:
        self._world, self._process = world, process

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._world.ledger, name)
        if not callable(found):
            return found

        def call(*arguments: Any, **options: Any) -> Any:
            return self._world.call(name, arguments, options)

        return call


class World:
    """One run of the simulation.

    Parameters
    ----------
    schedule : what happens; its seed also says what the installation looks like.
    template : a migrated SQLite ledger to copy.
    ledger : another ledger to use, on which no disk faults are made.
    """

    def __init__(self, schedule: Schedule, template: Path, *, ledger: Ledger | None = None) -> None:
        self.schedule = schedule
        self.kernel = Kernel(schedule)
        self.disk = Disk(self.kernel)
        rng = self.rng = random.Random(f"world {schedule.seed}")
        shm = Path("/dev/shm")
        self.folder = Path(tempfile.mkdtemp(prefix="streamfold-sim-", dir=shm if shm.is_dir() else None))
        self.embedded = ledger is None and rng.random() < 0.4
        self.given = ledger
        self.workspace = f"s{next(_numbers)}" if ledger is not None else "default"
        self.image = 0
        self.fold = {
            "batch_events": rng.choice([1, 3, 1000]), "lease_s": rng.choice([0.5, 2.0]), "sweep_s": 0.5,
            "checkpoint_min_bytes": rng.choice([100, 600]), "min_free_bytes": 0, "turn_ms": rng.choice([1, 20, 200]),
            "view_poll_ms": rng.choice([20, 100]), "prepare_batch": rng.choice([1, 8]), "max_skips": 10_000,
            "prepare_timeout_s": 1000.0,
        }  # fmt: skip
        self.settings = self._settings()
        self.registry = Registry(self.settings, [builtin, plugin(POLICIES)])
        self.broker = Broker()
        self.acknowledged: list[str] = []
        self.produced: list[str] = []
        self.client_done = False
        self.commits: dict[str, tuple[int, int]] = {}
        self.processes: list[Process] = []
        self.power_cut = False
        self.reads = 0
        self.resets = 0
        self._synced_wal = 0
        self._template = template
        self._checker: Context | None = None

    def _settings(self) -> Settings:
        return Settings(
            data=self.folder / f"image-{self.image}",
            policies={kind.name: {} for kind in POLICIES},
            fold=self.fold,  # type: ignore[arg-type]  # pydantic builds the section
            ledger={} if self.embedded else {"url": "postgresql+psycopg://simulated"},  # type: ignore[arg-type]
            kafka={"bootstrap": "simulated", "poll_records": 3, "topics": {"events": {"workspace": self.workspace}}},  # type: ignore[arg-type]
        )

    # -- the ledger -----------------------------------------------------------------------------------------------
    def open(self) -> None:
        folder = self.settings.data
        folder.mkdir(parents=True, exist_ok=True)
        if self.given is not None:
            self.ledger: Any = self.given
            return
        path = folder / "ledger.db"
        if not path.exists():
            shutil.copyfile(self._template, path)
        self.disk.adopt(folder)
        self.ledger = open_ledger(f"sqlite:///{path}", migrate=False)
        self._wal = path.with_name("ledger.db-wal")
        writer = self.ledger._writer
        commit = writer._commit

        def synced() -> None:
            commit()
            if writer._raw.execute("pragma synchronous").fetchone()[0] >= 2:
                self._synced_wal = self._wal_size()

        writer._commit = synced
        self._synced_wal = self._wal_size()

    def _wal_size(self) -> int:
        return self._wal.stat().st_size if self._wal.exists() else 0

    _READS = ("read", "head", "watermarks", "group", "groups", "instances", "feed", "behind", "deletions")

    def call(self, name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        """One call of the ledger, with what the schedule does to it."""
        kernel = self.kernel
        kinds = ["kill", "down", "lost", "power"]
        if self.given is None and name not in self._READS:
            kinds.append("disk")
        fault = kernel.point(f"ledger.{name}", kinds)
        kind = fault.kind if fault else ""
        if kind == "down":
            raise LedgerUnavailable("simulated: the database is away")
        kernel.atomic += 1
        try:
            if kind == "disk" and fault is not None:
                with room_for(self._wal_size() + fault.arg % 20_000):
                    result = getattr(self.ledger, name)(*arguments, **options)
            else:
                result = getattr(self.ledger, name)(*arguments, **options)
        finally:
            kernel.atomic -= 1
            self._observe(name, arguments)
        if kind == "lost":
            raise LedgerUnavailable("simulated: the answer was lost")
        return result

    def _observe(self, name: str, arguments: tuple[Any, ...]) -> None:
        """Commits are numbered without gaps, and watermarks never go back: looked up, since an answer may be lost."""
        if name == "commit":
            group = arguments[1].group
            before = self.commits.get(group)
            watermark, commit_no = self.ledger.watermarks(self.workspace)[group]
            if before is not None and not (before[0] <= commit_no <= before[0] + 1 and before[1] <= watermark):
                self.kernel.fail(Broken(f"group {group} went from {before} to {(commit_no, watermark)}"))
            self.commits[group] = (commit_no, watermark)
            self.kernel.note(f"commit {group.partition('@')[0]} no {commit_no} watermark {watermark}")
        elif name == "reset_group":
            self.resets += 1
            self.commits.pop(arguments[1], None)
            self.kernel.note(f"reset {arguments[1]}")

    def crash_point(self, name: str) -> None:
        kernel = self.kernel
        kinds = ["kill", "power"]
        if name == "checkpoint.in":
            kinds.append("enospc")
        if kernel.point(f"point {name}", kinds) is not None:
            raise OSError(28, "No space left on device")

    def cut_power(self) -> None:
        """All processes die at once; the supervisor then makes the disk what the cut has left of it."""
        self.power_cut = True
        for process in self.processes:
            self.kernel.kill(process)

    def _after_power_cut(self) -> None:
        kernel = self.kernel
        dead = [task for task in kernel.tasks if not task.process.alive]
        kernel.pause(None, lambda: all(task.done for task in dead), "unwinding")
        rng = random.Random(f"power {self.schedule.seed} {self.image}")
        source, wal_size = self.settings.data, self._wal_size()
        self.image += 1
        self.settings = self._settings()
        target = self.settings.data
        target.mkdir(parents=True)
        shutil.copyfile(source / "ledger.db", target / "ledger.db")
        if self._wal.exists():
            kept = rng.randint(self._synced_wal, wal_size)
            (target / "ledger.db-wal").write_bytes(self._wal.read_bytes()[:kept])
            kernel.note(f"power cut: write-ahead log {wal_size} -> {kept} (synced {self._synced_wal})")
        checkpoints = source / "checkpoints"
        if checkpoints.exists() and (rng.random() < 0.5 or self._entry_is_durable(checkpoints)):
            lost = self.disk.after_power_cut(checkpoints, target / "checkpoints", rng)
            kernel.note(f"power cut: lost {', '.join(lost) or 'no file'}")
        self.ledger.close()
        shutil.rmtree(source)
        self.open()
        self.commits.clear()
        self.oracle.moved(self.ledger)
        self.oracle.read()
        self._all_acknowledged_are_logged()
        self._checkpoints_are_whole()
        self.power_cut = False

    def _entry_is_durable(self, folder: Path) -> bool:
        parent = self.disk._folders.get(folder.parent.stat().st_ino, {})
        return folder.name in parent

    def _checkpoints_are_whole(self) -> None:
        """What the ledger points to can be read: it was on the disk before the pointer was."""
        context = self._context(Process("check", immortal=True), raw=True)
        for group in context.groups(self.workspace):
            state = self.ledger.group(self.workspace, group.name)
            if state.checkpoint is None:
                continue
            stores = GroupStores(context, group, side="view")
            try:
                root = f"{self.settings.checkpoint_root}/{self.workspace}/{group.name}"
                checkpoint_files.read_checkpoint(stores.stores, root, state.checkpoint)
            except CorruptCheckpoint as error:
                raise Broken(f"the ledger points to a checkpoint that the power cut destroyed: {error}") from error
            finally:
                stores.close()

    # -- processes ------------------------------------------------------------------------------------------------
    def _context(self, process: Process, *, raw: bool = False) -> Context:
        ledger: Any = self.ledger if raw else SimLedger(self, process)
        return Context(
            settings=self.settings,
            registry=self.registry,
            ledger=ledger,
            clock=SimClock(self.kernel, process),
            owner=f"{process.name}.{process.life}",
            scratch=self.folder / "scratch" / f"{process.name}.{process.life}",
            _lock=SimLock(self.kernel),  # type: ignore[arg-type]  # a lock all the same
        )

    def _process(self, name: str, boot: Callable[[Process], None]) -> None:
        process = Process(name, skew_s=self.rng.choice([0.0, 0.0, 0.4, -0.4]))
        process.parts["boot"] = boot
        self.processes.append(process)
        self._boot(process)

    def _boot(self, process: Process) -> None:
        process.life += 1
        process.alive = True
        process.frozen_until = 0.0
        boot = process.parts["boot"]
        process.parts = {"boot": boot}

        def start() -> None:
            while True:
                try:
                    boot(process)
                    return
                except LedgerUnavailable:
                    self.time.sleep(0.3)

        self.kernel.spawn(process, "main", start)

    def _node(self, context: Context) -> Any:
        acceptor = Acceptor(self.registry.event_types, context.clock)
        return SimpleNamespace(
            settings=context.settings, context=context, ledger=context.ledger, registry=self.registry, acceptor=acceptor
        )

    def _boot_embedded(self, process: Process) -> None:
        context = self._context(process)
        context.pin(self.workspace)
        views = Views(context, now=self.time.monotonic)
        views.workspace(self.workspace)
        runner = EmbeddedRunner(
            context, MemoryPrepared(context), on_commit=lambda workspace, group: views.wake(workspace)
        )
        views.start()
        runner.start()
        process.parts |= {"views": views, "runner": runner}
        self.kernel.spawn(process, "reader", lambda: self._reader(process, views))

    def _boot_api(self, process: Process) -> None:
        context = self._context(process)
        context.pin(self.workspace)
        views = Views(context, now=self.time.monotonic)
        views.workspace(self.workspace)
        views.start()
        process.parts |= {"views": views}
        self.kernel.spawn(process, "reader", lambda: self._reader(process, views))

    def _boot_worker(self, process: Process) -> None:
        context = self._context(process)
        worker = worker_module.Worker(self._node(context), "all", 1)
        worker.start()
        process.parts |= {"worker": worker}

    def _boot_ingest(self, process: Process) -> None:
        ingest = ingest_module.Ingest(self._node(self._context(process)))
        ingest._connect = lambda: Consumer(self.kernel, self.broker)  # type: ignore[method-assign]  # in place of sockets
        process.parts |= {"ingest": ingest}
        ingest.run()

    def _supervise(self) -> None:
        """Start again what was killed, after a while."""
        kernel = self.kernel

        def due() -> bool:
            quiet = self.schedule.quiet
            return self.power_cut or any(not p.alive and (quiet or p.restart_at <= kernel.now) for p in self.processes)

        while True:
            kernel.pause(kernel.now + 0.1, due, "supervise")
            if self.power_cut:
                self._after_power_cut()
            for process in self.processes:
                if not process.alive and (self.schedule.quiet or process.restart_at <= kernel.now):
                    kernel.pause(None, lambda process=process: kernel.is_unwound(process), "unwinding")  # type: ignore[misc]  # bound now
                    if self.power_cut:  # meanwhile
                        break
                    kernel.note(f"start {process.name}")
                    self._boot(process)

    # -- who uses it ----------------------------------------------------------------------------------------------
    def _reader(self, process: Process, views: Views) -> None:
        """Ask again and again: each answer is what the oracle says for its position, and none goes back."""
        newest: dict[str, tuple[int, int]] = {}
        while True:
            self.time.sleep(0.03)
            try:
                with views.using(self.workspace) as view:
                    self._read(view, newest)
            except LedgerUnavailable:
                continue

    def _read(self, view: Any, newest: dict[str, tuple[int, int]]) -> None:
        for group in view.live():
            with view.reading([group]):
                found = held(group.group, group.stores.by_runtime, lambda: self.kernel.point("reading") and None)
                position, resets = group.watermark, self.resets
            self._compare(group.group.name, found, position, "a view")
            before, then = newest.get(group.group.name, (0, 0))
            if position < before and resets == then:
                raise Broken(f"a view of {group.group.name} went back from {before} to {position}")
            newest[group.group.name] = (position, resets)
            self.reads += 1

    def _compare(self, group: str, found: dict[str, Any], position: int, who: str) -> None:
        expected = self.oracle.at(position)
        for store, rows in found.items():
            if rows != expected[store]:
                odd = {k: (rows.get(k), expected[store].get(k)) for k in {*rows, *expected[store]}}
                odd = {k: v for k, v in sorted(odd.items(), key=str) if v[0] != v[1]}
                raise Broken(f"{who} of {group} at position {position}: {store} has (found, expected) {odd}")

    def _client(self, process: Process) -> None:
        """Send batches, over HTTP so to speak, and produce to the broker; some events come twice."""
        rng = random.Random(f"client {self.schedule.seed}")
        acceptor = Acceptor(self.registry.event_types, SimClock(self.kernel, process))
        ledger = SimLedger(self, process)
        sent: list[tuple[str, str, dict[str, Any]]] = []
        for number in range(rng.choice([10, 25])):
            batch = [self._event(rng, f"h{number}-{i}") for i in range(rng.randint(1, 4))]
            again = rng.sample(sent, min(len(sent), 2)) if rng.random() < 0.3 else []
            self._send(ledger, acceptor, batch + again)
            self.acknowledged += [id_ for id_, _, _ in batch]
            sent += batch
            if not self.embedded:
                for i in range(rng.randint(0, 3)):
                    self._produce(rng, f"k{number}-{i}")
            self.time.sleep(rng.choice([0.0, 0.02, 0.2]))
        self.client_done = True

    def _event(self, rng: random.Random, id_: str) -> tuple[str, str, dict[str, Any]]:
        draw = rng.random()
        if draw < 0.6:
            item = rng.choice(["a", "b", "c", POISON] if rng.random() < 0.3 else ["a", "b"])
            return id_, "interaction.observed", {"user_id": "u", "item_id": item, "action": "click"}
        if draw < 0.68:
            return id_, "item.deleted", {"item_id": rng.choice("abc")}
        document = f"d{rng.randrange(4)}"
        if draw < 0.75:
            return id_, "document.deleted", {"document_id": document}
        return id_, "document.upserted", {"document_id": document, "title": "T", "text": f"text of {id_}"}

    def _send(self, ledger: Any, acceptor: Acceptor, batch: Sequence[tuple[str, str, dict[str, Any]]]) -> None:
        time_us = EPOCH_S * 1_000_000
        events = [acceptor.accept_data(t, dict(d), id=i, source="sim", time_us=time_us) for i, t, d in batch]
        while True:
            try:
                now_us = int((EPOCH_S + self.kernel.now) * 1_000_000)
                ledger.append(self.workspace, events, recorded_us=now_us)
                break
            except LedgerUnavailable:
                self.time.sleep(0.1)
        for process in self.processes:
            runner = process.parts.get("runner")
            if runner is not None and process.alive and self.kernel.point("wake-up", ("drop",)) is None:
                runner.wake(self.workspace)

    def _produce(self, rng: random.Random, id_: str) -> None:
        _, kind, data = self._event(rng, id_)
        body = {"specversion": "1.0", "id": id_, "source": "sim", "type": kind, "data": data}
        copies = 2 if rng.random() < 0.2 else 1
        for _ in range(copies):
            self.broker.produce(msgspec.json.encode(body | {"time": "2023-11-14T22:13:20Z"}))
        self.produced.append(id_)

    def _trouble(self, event: Any) -> None:
        """A policy that fails now and then: its group halts, rolls back and tries again."""
        if self.kernel.current is not None and self.kernel.point("fold", ("raise",)) is not None:
            raise ZeroDivisionError("simulated bug")

    # -- the end --------------------------------------------------------------------------------------------------
    def _judge(self) -> None:
        """Let faults happen until the client is done and a while longer; then everything must come to rest, right."""
        kernel = self.kernel
        kernel.pause(None, lambda: self.client_done, "client")
        self.time.sleep(self.rng.choice([0.0, 0.5, 2.0]))
        self.schedule.quiet = True
        kernel.note("no faults from here")
        deadline = kernel.now + REST_S
        while (left := self._unrest()) is not None:
            if kernel.now > deadline:
                raise Broken(f"no rest {REST_S:g} s after the last fault: {left}")
            self.time.sleep(0.25)
        self._check_end()
        kernel.end()

    def _unrest(self) -> str | None:
        if dead := [p.name for p in self.processes if not p.alive]:
            return f"{dead} not started again"
        self.oracle.read()
        if missing := set(self.produced) - set(self.oracle.ids):
            return f"not in the log: {sorted(missing)[:5]}"
        head = len(self.oracle.ids)
        marks = self.ledger.watermarks(self.workspace)
        groups = self._checking().groups(self.workspace, fresh=True)
        if len(groups) < 2:
            return "the policies are not pinned yet"
        if late := [p.name for p in self.processes if p.name in ("service", "api") and "views" not in p.parts]:
            return f"{late} not ready"
        for group in groups:
            mark = marks[group.name][0]
            if mark < head and self.ledger.read(self.workspace, mark, 1, types=sorted(group.handles)).rows:
                return f"group {group.name} stands at {marks[group.name]} of {head}"
            for process in self.processes:
                views = process.parts.get("views")
                opened = views.opened() if views is not None else []
                if views is not None and (not opened or group.name not in opened[0].groups):
                    return f"{process.name} has no view of {group.name}"
                for view in opened:
                    if view.groups[group.name].commit_no != marks[group.name][1]:
                        return f"the view of {process.name} stands at {view.groups[group.name].commit_no}"
        return None

    def _checking(self) -> Context:
        """A context of nobody's, past all faults."""
        if self._checker is None or self._checker.settings is not self.settings:
            self._checker = self._context(Process("check", immortal=True), raw=True)
        return self._checker

    def _all_acknowledged_are_logged(self) -> None:
        counts = Counter(self.oracle.ids)
        if twice := [id_ for id_, count in counts.items() if count > 1]:
            raise Broken(f"in the log twice: {twice}")
        if lost := [id_ for id_ in self.acknowledged if id_ not in counts]:
            raise Broken(f"acknowledged, but not in the log: {lost}")

    def _check_end(self) -> None:
        self._all_acknowledged_are_logged()
        context = self._checking()
        head = len(self.oracle.ids)
        for process in self.processes:
            for view in process.parts["views"].opened() if "views" in process.parts else ():
                for group in view.live():
                    self._compare(group.group.name, held(group.group, group.stores.by_runtime), head, "the last view")
        skipped = [
            letter.position
            for letter in self.ledger.dead_letters(self.workspace, limit=1000)
            if letter.policy is not None
        ]
        if sorted(skipped) != self.oracle.poison:
            raise Broken(f"skipped {sorted(skipped)}, poison is at {self.oracle.poison}")
        for group in context.groups(self.workspace):
            state = self.ledger.group(self.workspace, group.name)
            if state.halted is not None:
                raise Broken(f"group {group.name} is still halted: {state.halted[:200]}")
            verdict = verify_group(context, self.workspace, group)
            if not verdict.equal:
                raise Broken(f"a replay of {group.name} differs: {verdict.differences}")

    # -- running --------------------------------------------------------------------------------------------------
    @property
    def time(self) -> SimTime:
        return SimTime(self.kernel)

    def run(self) -> None:
        """Run to the end; raises what is broken."""
        with self._under_simulation():
            try:
                self.open()
                self.ledger.ensure_workspace(self.workspace)
                self.oracle = Oracle(self.ledger, self.workspace, self.registry.event_types.decode)
                outside = [Process(name, immortal=True) for name in ("client", "judge", "supervisor")]
                if self.embedded:
                    self._process("service", self._boot_embedded)
                else:
                    self._process("worker-1", self._boot_worker)
                    self._process("worker-2", self._boot_worker)
                    self._process("api", self._boot_api)
                    self._process("ingest-1", self._boot_ingest)
                    self._process("ingest-2", self._boot_ingest)
                client, judge, supervisor = outside
                self.kernel.spawn(client, "send", lambda: self._client(client))
                self.kernel.spawn(judge, "judge", self._judge)
                self.kernel.spawn(supervisor, "supervise", self._supervise)
                self.kernel.run()
            finally:
                if self.given is None and hasattr(self, "ledger"):
                    self.ledger.close()
                shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def _under_simulation(self) -> Iterator[None]:
        kernel = self.kernel
        kernel.on_power = self.cut_power if self.given is None else None
        kernel.on_kill = lambda process: process.parts.update({k: v for k, v in process.parts.items() if k == "boot"})
        time, threading = self.time, SimThreading(kernel)
        simulated_os, simulated_shutil = SimOs(kernel, self.disk), SimShutil(kernel)
        patches: list[Any] = [
            patch.object(crash, "point", self.crash_point),
            patch.object(files, "os", simulated_os),
            patch.object(checkpoint_files, "os", simulated_os),
            patch.object(checkpoint_files, "shutil", simulated_shutil),
            patch.object(_sqlite_files, "_EVERY_S", 1e6),
            patch.object(view_module, "_FEED_BYTES", 150),
            patch.object(ingest_module, "intake_name", lambda consumer, tp: "kafka:sim:events:0"),
            patch.object(ingest_module, "drop_parked", lambda consumer, tp: None),
            patch.object(ingest_module, "position", lambda consumer, tp: consumer._at),
            patch.object(LiveTable, "save", _save_with_little_room(kernel, LiveTable.save)),
            patch.object(Counts, "trouble", staticmethod(self._trouble)),
        ]
        for module in simulated_modules():
            patches += [patch.object(module, "time", time)] if "time" in vars(module) else []
            patches += [patch.object(module, "threading", threading)] if "threading" in vars(module) else []
        disabled = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        for one in patches:
            one.start()
        try:
            yield
        finally:
            for one in reversed(patches):
                one.stop()
            logging.disable(disabled)


def _save_with_little_room(kernel: Kernel, save: Callable[..., None]) -> Callable[..., None]:
    def limited(self: Any, folder: Path) -> None:
        fault = kernel.point("save", ("enospc",))
        if fault is None:
            save(self, folder)
        else:
            with room_for(fault.arg % 64):
                save(self, folder)
            raise OSError(28, "No space left on device")  # what was to be written was smaller than the room

    return limited


def simulate(
    seed: int, template: Path, *, only: Sequence[Decision] | None = None, ledger: Ledger | None = None
) -> tuple[World, BaseException | None]:
    """Run one schedule; the world as it ended, and what was broken, if anything."""
    world = World(Schedule(seed, only=only), template, ledger=ledger)
    try:
        world.run()
    except (Exception, Killed) as error:
        return world, error
    return world, None


__all__ = ["SimEvent", "World", "simulate", "simulated_modules"]
