"""Drive the folds and prepares of one process: wake-ups make it prompt, the sweep makes it sure.

``run_once`` does all the work there is now; threads of the embedded service and tasks of the Celery worker call it.
Losing or doubling a wake-up changes nothing: the owner looks again after its turn, and the sweep finds lag without one.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from streamfold.core.context import Context, Group
from streamfold.core.errors import Fenced, LedgerUnavailable
from streamfold.core.fold.checkpoint import checkpoint_group
from streamfold.core.fold.eraser import Eraser
from streamfold.core.fold.group import GroupFold
from streamfold.core.fold.prepare import Preparer
from streamfold.core.fold.prepared import PreparedValues
from streamfold.core.fold.stores import checkpoint_root
from streamfold.core.stores.checkpoint import drop_old_checkpoints

log = logging.getLogger("streamfold.runner")


class FoldRunner:
    """All folds of this process; ``run`` is called by one thread at a time (a lock makes sure).

    Parameters
    ----------
    on_commit : called with (workspace, group name) after a turn that moved a watermark.
    on_prepare_needed : called with a workspace when a fold waits for prepare.
    """

    def __init__(
        self,
        context: Context,
        prepared: PreparedValues,
        *,
        on_commit: Callable[[str, str], None] = lambda workspace, group: None,
        on_prepare_needed: Callable[[str], None] = lambda workspace: None,
    ) -> None:
        self.context = context
        self.prepared = prepared
        self.on_commit = on_commit
        self.on_prepare_needed = on_prepare_needed
        self._folds: dict[tuple[str, str], GroupFold] = {}
        self._lock = threading.RLock()
        self._checkpointing: set[tuple[str, str]] = set()
        self._checkpointers: list[threading.Thread] = []
        self._stopped = threading.Event()

    def run(self, workspace: str) -> bool:
        """Fold what there is in a workspace, in turns; True when something is left to do soon."""
        left = False
        for _ in range(10_000):
            again = False
            for group in self.context.groups(workspace):
                if self._stopped.is_set():
                    return False
                with self._lock:
                    again |= self._turn(workspace, group)
            left = again
            if not again:
                break
        return left

    def _turn(self, workspace: str, group: Group) -> bool:
        fold = self._fold_of(workspace, group)
        before = fold.lease.watermark if fold.lease else -1
        turn = fold.turn()
        if turn.waits:
            self.on_prepare_needed(workspace)
        if fold.lease is not None and fold.lease.watermark != before:
            self.on_commit(workspace, group.name)
        self._maybe_checkpoint(workspace, group, fold)
        if group.slot == "shadow" and turn.watermark and not turn.more:
            self._maybe_replace(workspace, group, turn.watermark)
        return turn.more and not turn.waits

    def _fold_of(self, workspace: str, group: Group) -> GroupFold:
        key = (workspace, group.name)
        fold = self._folds.get(key)
        if fold is None or fold.group is not group:
            if fold is not None:
                fold.drop()
            fold = self._folds[key] = GroupFold(self.context, workspace, group, self.prepared)
        return fold

    @contextmanager
    def holding(self, workspace: str, group: Group) -> Iterator[GroupFold | None]:
        """Keep this process's folds still, with the group's lease; None: another process has it, or it is busy."""
        with self._lock:
            fold = None
            if not self._stopped.is_set() and (workspace, group.name) not in self._checkpointing:
                fold = self._fold_of(workspace, group)
                try:
                    fold = fold if fold.acquire() else None
                except Fenced:
                    fold = None
            yield fold

    def checkpoint(self, workspace: str, group: Group, least: int) -> bool:
        """Write a purged checkpoint at or past a position and drop all others; False: not now, or not here."""
        key = (workspace, group.name)
        with self.holding(workspace, group) as fold:
            if fold is None or fold.lease is None:
                return False
            lease = fold.lease
            self._checkpointing.add(key)
        try:
            written = checkpoint_group(self.context, workspace, group, lease, purge=True)
            state = self.context.ledger.group(workspace, group.name)
            if not written or state.checkpoint is None or state.checkpoint_watermark < least:
                return False
            fold.checkpoint_bytes = written
            drop_old_checkpoints(checkpoint_root(self.context, workspace, group.name), {state.checkpoint})
            return True
        finally:
            self._checkpointing.discard(key)

    def _maybe_replace(self, workspace: str, group: Group, watermark: int) -> None:
        """Let a declared policy's changed instance take over once it has caught up (``on_change = "replace"``)."""
        ctx = self.context
        if ctx.settings.on_change != "replace":
            return
        names = {r.instance.name for r in group.runtimes}
        old = {i.group for i in ctx.ledger.instances(workspace) if i.slot == "live" and i.name in names}
        marks = ctx.ledger.watermarks(workspace)
        if any(marks.get(name, (0, 0))[0] > watermark for name in old):
            return
        ctx.ledger.set_slot(workspace, group.name, "live")
        for name in old:
            ctx.ledger.set_slot(workspace, name, "retired")
        ctx.ledger.audit(
            workspace,
            actor="settings",
            action="replace",
            target=group.name,
            reason=f"declared policy changed; replaces {', '.join(sorted(old))}",
            at_us=ctx.clock.now_us(),
        )
        log.info("replaced workspace=%s group=%s old=%s", workspace, group.name, sorted(old))
        ctx.groups(workspace, fresh=True)

    def _maybe_checkpoint(self, workspace: str, group: Group, fold: GroupFold) -> None:
        key = (workspace, group.name)
        least = max(self.context.settings.fold.checkpoint_min_bytes, fold.checkpoint_bytes)
        lease = fold.lease
        if lease is None or fold.feed_bytes < least or key in self._checkpointing:
            return
        self._checkpointing.add(key)
        fold.feed_bytes = 0

        def work() -> None:
            try:
                written = checkpoint_group(self.context, workspace, group, lease)
                fold.checkpoint_bytes = written or fold.checkpoint_bytes
            except Exception:
                log.exception("checkpoint_failed workspace=%s group=%s", workspace, group.name)
            finally:
                self._checkpointing.discard(key)

        thread = threading.Thread(target=work, name=f"checkpoint-{group.name}", daemon=True)
        self._checkpointers = [t for t in self._checkpointers if t.is_alive()] + [thread]
        thread.start()

    def lagging(self, workspace: str) -> bool:
        """Whether any group of the workspace is behind the log's head (one cheap query each)."""
        head = self.context.ledger.head(workspace)
        marks = self.context.ledger.watermarks(workspace)
        return any(marks.get(g.name, (0, 0))[0] < head for g in self.context.groups(workspace))

    @property
    def is_stopping(self) -> bool:
        return self._stopped.is_set()

    def stop_soon(self) -> None:
        """Begin no further turn and no further rebuild."""
        self._stopped.set()

    def stop(self) -> None:
        """Finish the turn in hand, give the leases back."""
        self.stop_soon()
        with self._lock:
            for thread in self._checkpointers:
                thread.join(timeout=30)
            for fold in self._folds.values():
                try:
                    fold.release()
                except LedgerUnavailable:
                    fold.drop()
            self._folds.clear()


class EmbeddedRunner:
    """Threads of the embedded service: one folds, one prepares; both woken by the ledger's writer, and by a sweep."""

    def __init__(self, context: Context, prepared: PreparedValues, *, on_commit: Callable[[str, str], None]) -> None:
        self.context = context
        self.preparer = Preparer(context, prepared)
        self._fold_wake = threading.Condition()
        self._pending: set[str] = set()
        self._prepare_pending: set[str] = set()
        self._prepare_wake = threading.Condition()
        self._stop = threading.Event()
        self.runner = FoldRunner(context, prepared, on_commit=on_commit, on_prepare_needed=self.wake_prepare)
        self.eraser = Eraser(context, self.runner)
        self._erase_wake = threading.Event()
        self._threads = [
            threading.Thread(target=self._fold_loop, name="fold", daemon=True),
            threading.Thread(target=self._prepare_loop, name="prepare", daemon=True),
            threading.Thread(target=self._erase_loop, name="erase", daemon=True),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def wake(self, workspace: str) -> None:
        """Something was appended to a workspace's log."""
        with self._fold_wake:
            self._pending.add(workspace)
            self._fold_wake.notify()

    def wake_prepare(self, workspace: str) -> None:
        with self._prepare_wake:
            self._prepare_pending.add(workspace)
            self._prepare_wake.notify()

    def _fold_loop(self) -> None:
        sweep_s = self.context.settings.fold.sweep_s
        swept = 0.0
        while not self._stop.is_set():
            with self._fold_wake:
                if not self._pending:
                    self._fold_wake.wait(timeout=sweep_s / 5)
                pending, self._pending = self._pending, set()
            try:
                if time.monotonic() - swept > sweep_s:
                    swept = time.monotonic()
                    pending |= set(self.context.ledger.workspaces())
                for workspace in pending:
                    if self.runner.run(workspace):
                        self.wake(workspace)
            except Exception:
                log.exception("fold_loop_failed; going on in 1 s")
                self._stop.wait(1.0)

    def _prepare_loop(self) -> None:
        while not self._stop.is_set():
            with self._prepare_wake:
                if not self._prepare_pending:
                    self._prepare_wake.wait(timeout=1.0)
                pending, self._prepare_pending = self._prepare_pending, set()
            for workspace in pending:
                try:
                    while not self._stop.is_set() and self.preparer.run(
                        workspace, self.context.ledger.watermarks(workspace)
                    ):
                        self.wake(workspace)
                except Exception:
                    log.exception("prepare_loop_failed; going on in 1 s")
                    self._stop.wait(1.0)

    def wake_erase(self) -> None:
        """An erasure was logged."""
        self._erase_wake.set()

    def _erase_loop(self) -> None:
        while not self._stop.is_set():
            self._erase_wake.wait(self.context.settings.fold.sweep_s / 5)
            self._erase_wake.clear()
            try:
                for workspace in self.context.ledger.erasing_workspaces():
                    self.eraser.run(workspace)
            except Exception:
                log.exception("erase_loop_failed; going on in 1 s")
                self._stop.wait(1.0)

    def stop(self) -> None:
        """Stop gracefully: the turn in hand is committed, leases are given back."""
        self._stop.set()
        self.runner.stop_soon()
        self._erase_wake.set()
        with self._fold_wake:
            self._fold_wake.notify_all()
        with self._prepare_wake:
            self._prepare_wake.notify_all()
        for thread in self._threads:
            thread.join(timeout=30)
        self.runner.stop()
