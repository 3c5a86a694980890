"""Workers of the distributed shape: a real Celery worker for prompt hints, and a sweep that needs no broker.

A task's body is the work: it folds, or prepares, until nothing is left. What is to be done is found by query, so the
broker may lose, double or delay messages, or be down: then the sweep alone keeps everything going, a second later.

``fold`` workers are single (one thread; scale by processes: whoever holds a group's lease folds it), ``prepare``
workers have as many threads as asked for; ``all`` is both in one process. Never prefork: FAISS and torch do not
survive a fork.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Literal

from prometheus_client import CollectorRegistry

from streamfold.core.caches import Erasures
from streamfold.core.context import Context
from streamfold.core.errors import ConfigError, LedgerError, LedgerUnavailable
from streamfold.core.fold import LANES, Eraser, Extracting, FoldRunner, Keeper, LedgerPrepared, Preparer
from streamfold.core.settings import Settings, load_settings
from streamfold.pipelines import tasks
from streamfold.pipelines.exporter import exporting
from streamfold.pipelines.node import Node
from streamfold.pipelines.serve.logs import configure_logs
from streamfold.pipelines.worker_metrics import WorkerMetrics

log = logging.getLogger("streamfold.worker")

Role = Literal["prepare", "fold", "all"]
_BACKFILL_EVERY_S = 0.1
_IDLE_S = 0.02
"""How soon a watermark that was to rest is looked at again: who reads with ``min_position`` waits for it."""


class Turns:
    """Runs a function of a workspace, one run at a time each; a wake-up during a run makes it run once more.

    Parameters
    ----------
    head : the log's head of a workspace, read before each run: what a run began with covers older wake-ups.
    work : does all there is to do.
    """

    def __init__(self, head: Callable[[str], int], work: Callable[[str], None]) -> None:
        self._head = head
        self._work = work
        self._lock = threading.Lock()
        self._running: set[str] = set()
        self._again: set[str] = set()
        self._covered: dict[str, int] = {}
        self.runs = 0
        self.skipped = 0

    def run(self, workspace: str, position: int = 0) -> None:
        """Run now, unless a run that covers the position was made, or one is under way (which then repeats)."""
        with self._lock:
            if 0 < position <= self._covered.get(workspace, 0):
                self.skipped += 1
                return
            if workspace in self._running:
                self._again.add(workspace)
                self.skipped += 1
                return
            self._running.add(workspace)
        try:
            while True:
                head = self._head(workspace)
                self._covered[workspace] = head
                self.runs += 1
                self._work(workspace)
                with self._lock:
                    if workspace not in self._again:
                        self._running.discard(workspace)
                        return
                    self._again.discard(workspace)
        except BaseException:
            with self._lock:
                self._running.discard(workspace)
                self._again.discard(workspace)
                self._covered.pop(workspace, None)
            raise


class Shifts:
    """Runs a function of a workspace in at most ``most`` threads; what is asked for meanwhile is taken by who is done.

    A hint may be dropped, but not because it came in the moment between a thread's last look and its end.
    """

    def __init__(self, most: int, work: Callable[[str], None]) -> None:
        self._free = threading.BoundedSemaphore(most)
        self._work = work
        self._asked: dict[str, None] = {}
        self._lock = threading.Lock()

    def run(self, workspace: str) -> None:
        """Work, or leave it to the threads that do already."""
        with self._lock:
            self._asked[workspace] = None
        while self._asked and self._free.acquire(blocking=False):
            try:
                with self._lock:
                    taken = next(iter(self._asked), None)
                    self._asked.pop(taken or "", None)
                if taken is not None:
                    self._work(taken)
            finally:
                self._free.release()


class Sweep:
    """A thread that calls ``visit`` for workspaces it is nudged about, and for all of them every ``every_s``."""

    def __init__(
        self, name: str, every_s: float, all_of: Callable[[], list[str]], visit: Callable[[str], None]
    ) -> None:
        self._every_s = every_s
        self._all_of = all_of
        self._visit = visit
        self._nudged: dict[str, float] = {}
        self._ready = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def nudge(self, workspace: str, after_s: float = 0.0) -> None:
        with self._ready:
            at = time.monotonic() + after_s
            self._nudged[workspace] = min(at, self._nudged.get(workspace, at))
            self._ready.notify()

    def stop(self) -> None:
        with self._ready:
            self._stopped = True
            self._ready.notify()
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    def _loop(self) -> None:
        due = time.monotonic()
        backoff_s = 0.5
        while True:
            with self._ready:
                while not self._stopped and (left_s := min([due, *self._nudged.values()]) - time.monotonic()) > 0:
                    self._ready.wait(left_s)
                if self._stopped:
                    return
                now = time.monotonic()
                wanted = {workspace for workspace, at in self._nudged.items() if at <= now}
                for workspace in wanted:
                    del self._nudged[workspace]
            try:
                if time.monotonic() >= due:
                    due = time.monotonic() + self._every_s
                    wanted |= set(self._all_of())
                for workspace in sorted(wanted):
                    if not self._stopped:
                        self._visit(workspace)
                backoff_s = 0.5
            except Exception as error:
                log.warning("sweep_failed retry_s=%.1f error=%s", backoff_s, error, exc_info=_is_bug(error))
                due = time.monotonic() + backoff_s
                backoff_s = min(backoff_s * 2, 10.0)


class Worker:
    """What one worker process does, wired together; usable without Celery (tests, no broker)."""

    def __init__(self, node: Node, role: Role, concurrency: int, *, registry: CollectorRegistry | None = None) -> None:
        self.node = node
        self.role: Role = role
        self.concurrency = concurrency
        self.stopping = threading.Event()
        self._pinned: dict[str, float] = {}
        self._pinning = threading.Lock()
        self._folded_at: dict[str, float] = {}
        self._hinted_at: dict[str, float] = {}
        context, ledger, every_s = node.context, node.ledger, node.settings.fold.sweep_s
        prepared = LedgerPrepared(context)
        live, backfill = LANES
        self.runner = FoldRunner(context, prepared, on_prepare_needed=self._prepare_needed, lane=live)
        self.backfill = FoldRunner(context, prepared, lane=backfill)
        self.preparer = Preparer(context, prepared)
        self.backfill_preparer = Preparer(context, prepared)
        self.metrics = WorkerMetrics(
            node, lambda: self.runner.warm() | self.backfill.warm(), registry or CollectorRegistry()
        )
        self.folds = Turns(ledger.head, self._fold)
        self._prepares = Shifts(concurrency, self._prepare)
        self._erasures = Erasures(ledger)
        self._sweeps: dict[str, Sweep] = {
            "caches": Sweep("caches", every_s, self._look_for_erasures, lambda workspace: None)
        }
        often_s = min(every_s, _BACKFILL_EVERY_S)
        if role in ("fold", "all"):
            self._sweeps["fold"] = Sweep("sweep-fold", every_s, self._to_visit, self._sweep_fold)
            self._sweeps["backfill"] = Sweep("backfill", often_s, self._to_backfill, self._backfill)
            eraser = Eraser(context, (self.runner, self.backfill))
            self._sweeps["erase"] = Sweep(
                "sweep-erase", every_s, ledger.erasing_workspaces, lambda workspace: self._erase(eraser, workspace)
            )
            keeper = Keeper(context, (self.runner, self.backfill))
            self._sweeps["retention"] = Sweep(
                "sweep-retention", every_s, keeper.due, lambda workspace: self._keep(keeper, workspace)
            )
        if role in ("prepare", "all"):
            self._sweeps["prepare"] = Sweep("sweep-prepare", every_s, self._to_visit, self.prepare)
            self._sweeps["backfill-prepare"] = Sweep("backfill-prepare", often_s, ledger.behind, self._prepare_backfill)
        self.extracting = Extracting(context, on_append=self._extracted)
        if role in ("prepare", "all") and self.extracting.is_configured:
            self._sweeps["extract"] = Sweep("extract", often_s, lambda: list(self._pinned), self._extract)

    def _look_for_erasures(self) -> list[str]:
        """Empty caches where somebody was erased; no workspace is to be visited for it."""
        self._erasures.look()
        return []

    def _to_visit(self) -> list[str]:
        """The workspaces that a sweep looks at: those behind, those warm here, and once those not met before."""
        ledger = self.node.ledger
        new = set(ledger.workspaces()) - self._pinned.keys()
        return [*new, *ledger.behind(), *self.runner.warm(), *self.backfill.warm()]

    def _to_backfill(self) -> list[str]:
        """Also those where something stands beside what is live, behind or not: it may be about to take over."""
        groups = self.node.context.groups
        beside = [name for name in list(self._pinned) if any(group.slot == "shadow" for group in groups(name))]
        return [*self._to_visit(), *beside]

    def start(self) -> None:
        for sweep in self._sweeps.values():
            sweep.start()

    def stop(self) -> None:
        """Finish the turn in hand, give the leases back."""
        self.stopping.set()
        self.extracting.stop()
        self.runner.stop()
        self.backfill.stop()
        for sweep in self._sweeps.values():
            sweep.stop()

    # -- fold -----------------------------------------------------------------------------------------------------
    def fold(self, workspace: str, position: int = 0) -> None:
        """Fold what there is in a workspace; the body of the task ``streamfold.fold``."""
        self.folds.run(workspace, position)

    def _fold(self, workspace: str) -> None:
        _pin(self, workspace)
        self._folded_at[workspace] = time.monotonic()
        while not self.stopping.is_set() and self.runner.run(workspace):
            pass
        for idling in self.runner.idling():
            if "fold" in self._sweeps:
                self._sweeps["fold"].nudge(idling, _IDLE_S)

    def _sweep_fold(self, workspace: str) -> None:
        """Fold where there is lag; visit quiet workspaces often enough to keep their leases, hence warm stores."""
        _pin(self, workspace)
        keep_s = self.node.settings.fold.lease_s / 4
        idle_s = time.monotonic() - self._folded_at.get(workspace, 0.0)
        if (idle_s > keep_s and workspace in self.runner.warm()) or self.runner.lagging(workspace):
            self.fold(workspace)

    def _erase(self, eraser: Eraser, workspace: str) -> None:
        """Go on with a workspace's erasures, here as far as this process has its groups' leases."""
        _pin(self, workspace)
        eraser.run(workspace)

    def _keep(self, keeper: Keeper, workspace: str) -> None:
        """Let events leave the log; whoever has the archive's lease does, each writes checkpoints of its own groups."""
        _pin(self, workspace)
        keeper.run(workspace)

    def _prepare_needed(self, workspace: str) -> None:
        """Ask for prepare when a fold waits for it, not more often than is of use."""
        now = time.monotonic()
        if now - self._hinted_at.get(workspace, 0.0) < 0.1:
            return
        self._hinted_at[workspace] = now
        tasks.publish_prepare(self.node.settings, workspace)
        if "prepare" in self._sweeps:
            self._sweeps["prepare"].nudge(workspace)

    # -- prepare --------------------------------------------------------------------------------------------------
    def prepare(self, workspace: str) -> None:
        """Prepare until no claim is left; the body of the task ``streamfold.prepare``."""
        self._prepares.run(workspace)

    def _prepare(self, workspace: str) -> None:
        _pin(self, workspace)
        while not self.stopping.is_set():
            marks = self.node.ledger.watermarks(workspace)
            done = self.preparer.run(workspace, marks, lane=self.runner.lane)
            if done == 0:
                return
            self.metrics.prepared(workspace, done)
            tasks.publish_fold(self.node.settings, workspace)
            if "fold" in self._sweeps:
                self._sweeps["fold"].nudge(workspace)

    # -- backfill -------------------------------------------------------------------------------------------------
    def _backfill(self, workspace: str) -> None:
        """Fold what stands beside the live groups, in a thread of its own: nothing live waits for it."""
        _pin(self, workspace)
        self.backfill.run(workspace)

    def _prepare_backfill(self, workspace: str) -> None:
        _pin(self, workspace)
        while not self.stopping.is_set() and self.backfill.prepares(workspace):
            marks = self.node.ledger.watermarks(workspace)
            done = self.backfill_preparer.run(workspace, marks, lane=self.backfill.lane)
            if done == 0:
                return
            self.metrics.prepared(workspace, done)

    # -- extraction -----------------------------------------------------------------------------------------------
    def _extract(self, workspace: str) -> None:
        """Ask the extractor about documents; each call takes some, so that workspaces take turns."""
        _pin(self, workspace)
        self.extracting.run(workspace)

    def _extracted(self, workspace: str) -> None:
        """What was found is in the log: have it folded."""
        tasks.publish_fold(self.node.settings, workspace)
        if "fold" in self._sweeps:
            self._sweeps["fold"].nudge(workspace)


def _pin(worker: Worker, workspace: str) -> None:
    """Make sure of a workspace's instances at first sight, and look for changed ones every few seconds."""
    context: Context = worker.node.context
    with worker._pinning:
        seen = worker._pinned.get(workspace)
        now = time.monotonic()
        if seen is None:
            context.pin(workspace)
        elif now - seen > 2.0:
            context.groups(workspace, fresh=True)
        else:
            return
        worker._pinned[workspace] = now


def _is_bug(error: BaseException) -> bool:
    return not isinstance(error, LedgerError)


# -- Celery -----------------------------------------------------------------------------------------------------------
def add_tasks(app: Any, worker: Worker) -> None:
    """Register the task bodies; they never raise: the sweep does again what failed."""

    def guarded(work: Callable[..., None], *arguments: Any) -> None:
        try:
            work(*arguments)
        except LedgerUnavailable as error:
            log.warning("ledger_unavailable error=%s; the sweep goes on", error)
        except Exception:
            log.exception("task_failed; the sweep goes on")

    @app.task(name=tasks.FOLD, shared=False)  # type: ignore[untyped-decorator]  # Celery has no types
    def fold(workspace: str, position: int = 0) -> None:
        guarded(worker.fold, workspace, position)

    @app.task(name=tasks.PREPARE, shared=False)  # type: ignore[untyped-decorator]  # Celery has no types
    def prepare(workspace: str) -> None:
        guarded(worker.prepare, workspace)


def _celery(settings: Settings, worker: Worker) -> Any:
    """Make the Celery worker of this process; it connects when started, and waits for a broker that is down."""
    for name in ("celery", "kombu"):  # a line per message says nothing that ours do not
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))
    app = tasks.make_app(settings)
    add_tasks(app, worker)
    queues = {
        "fold": [tasks.FOLD_QUEUE],
        "prepare": [tasks.PREPARE_QUEUE],
        "all": [tasks.FOLD_QUEUE, tasks.PREPARE_QUEUE],
    }
    threads = {"fold": 1, "prepare": worker.concurrency, "all": worker.concurrency + 1}
    return app.Worker(
        pool="threads",
        concurrency=threads[worker.role],
        queues=queues[worker.role],
        hostname=f"{worker.role}-{worker.node.context.owner}@%h",
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=settings.broker.url.startswith("redis"),
        quiet=True,
    )


def _follow_broker(settings: Settings, worker: Worker, stopped: threading.Event) -> None:
    """Run the Celery worker in this thread until SIGTERM; if it dies otherwise, the sweep goes on and it comes back."""
    from celery import signals
    from celery.exceptions import WorkerShutdown, WorkerTerminate

    def stopping(**_: Any) -> None:
        stopped.set()
        threading.Thread(target=worker.stop, name="stop", daemon=True).start()

    signals.worker_shutting_down.connect(stopping, weak=False)
    while not stopped.is_set():
        try:
            _celery(settings, worker).start()
        except (SystemExit, WorkerShutdown, WorkerTerminate):
            break
        except Exception:
            log.exception("celery_worker_failed; the sweep goes on")
        _stop_on_signals(stopped)
        stopped.wait(2.0)


def _stop_on_signals(stopped: threading.Event) -> None:
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stopped.set())


def run(settings: Settings, role: Role = "all", concurrency: int = 2) -> None:
    """Run one worker process until SIGTERM or SIGINT: the turn in hand is committed, leases are given back.

    Raises
    ------
    ConfigError : the ledger is SQLite, which only one process can hold.
    """
    if settings.is_embedded:
        raise ConfigError(
            "workers need a ledger that several processes can use: set [ledger] url = postgresql+psycopg://…"
        )
    stopped = threading.Event()
    _stop_on_signals(stopped)
    with exporting(settings.metrics) as registry:
        tasks.warm_up(settings)
        node = tasks.open_node(settings, stopped)
        if node is None:
            return
        worker = Worker(node, role, concurrency, registry=registry)
        try:
            worker.start()
            log.info("worker_started role=%s concurrency=%d owner=%s", role, concurrency, node.context.owner)
            if settings.broker.url:
                _follow_broker(settings, worker, stopped)
            stopped.wait()
        finally:
            worker.stop()
            log.info("worker_stopped fold_runs=%d coalesced=%d", worker.folds.runs, worker.folds.skipped)
            tasks.flush(settings, timeout_s=0.5)
            node.close()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m streamfold.pipelines.worker", description=__doc__)
    parser.add_argument("--config", help="settings file (default: streamfold.toml)")
    parser.add_argument("--role", choices=("prepare", "fold", "all"), default="all")
    parser.add_argument("--concurrency", type=int, default=2, help="prepare threads")
    options = parser.parse_args(argv)
    try:
        settings = load_settings(options.config)
        configure_logs(settings.log)
        run(settings, options.role, options.concurrency)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
