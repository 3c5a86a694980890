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
from streamfold.core.fold import versions
from streamfold.core.fold.checkpoint import checkpoint_group
from streamfold.core.fold.eraser import Eraser
from streamfold.core.fold.extract import Extracting
from streamfold.core.fold.group import GroupFold
from streamfold.core.fold.lanes import LANES, Lane, in_lane
from streamfold.core.fold.prepare import Preparer
from streamfold.core.fold.prepared import PreparedValues
from streamfold.core.fold.retention import Keeper
from streamfold.core.fold.stores import checkpoint_root
from streamfold.core.ledger.abc import Lease
from streamfold.core.stores.checkpoint import drop_old_checkpoints

log = logging.getLogger("streamfold.runner")
_LOOK_AFTER_S = 0.1
_SWEEP_S = 1.0
_IDLE_S = 0.01
_BACKFILL_EVERY_S = 0.05
_EVERYTHING = 2**63 - 1


class FoldRunner:
    """All folds of this process; ``run`` is called by one thread at a time (a lock makes sure).

    Parameters
    ----------
    on_commit : called with (workspace, group name) after a turn that moved a watermark.
    on_prepare_needed : called with a workspace when a fold waits for prepare.
    lane : which groups it folds; ``None``: all.
    """

    def __init__(
        self,
        context: Context,
        prepared: PreparedValues,
        *,
        on_commit: Callable[[str, str], None] = lambda workspace, group: None,
        on_prepare_needed: Callable[[str], None] = lambda workspace: None,
        lane: Lane | None = None,
    ) -> None:
        self.context = context
        self.prepared = prepared
        self.lane = lane
        self.on_commit = on_commit
        self.on_prepare_needed = on_prepare_needed
        self._folds: dict[tuple[str, str], GroupFold] = {}
        self._lock = threading.RLock()
        self._checkpointing: set[tuple[str, str]] = set()
        self._checkpointers: list[threading.Thread] = []
        self._stopped = threading.Event()
        self._looked_after: dict[tuple[str, str], float] = {}
        self._idling: set[str] = set()

    def groups(self, workspace: str) -> list[Group]:
        """The groups of this runner's lane."""
        return in_lane(self.context.groups(workspace), self.lane)

    def prepares(self, workspace: str) -> bool:
        """Whether anything of this lane has a prepare step."""
        return any(runtime.prepares for group in self.groups(workspace) for runtime in group.runtimes)

    def run(self, workspace: str, *, rounds: int = 10_000) -> bool:
        """Fold what there is in a workspace, in turns; True when something is left to do soon.

        ``rounds``: how often each group gets its turn before other workspaces do.
        """
        left = False
        if self.lane != "live" and self._is_due((workspace, ""), _SWEEP_S):
            versions.sweep(self.context, workspace)
        for _ in range(rounds):
            again = False
            groups = self.groups(workspace)
            self._let_go(workspace, {group.name for group in groups})
            for group in groups:
                if self._stopped.is_set():
                    return False
                with self._lock:
                    again |= self._turn(workspace, group)
            left = again
            if not again:
                break
        return left

    def idling(self) -> set[str]:
        """The workspaces with a watermark that is to move soon past events that its group does not handle; once."""
        found = set(self._idling)
        self._idling -= found  # another thread may be adding
        return found

    def _turn(self, workspace: str, group: Group) -> bool:
        key = (workspace, group.name)
        fold = self._fold_of(workspace, group)
        before = fold.lease.watermark if fold.lease else -1
        turn = fold.turn()
        if turn.events:
            self._folds[key] = self._folds.pop(key)  # the one that folded last comes last
        if turn.waits:
            self.on_prepare_needed(workspace)
        if turn.idles:
            self._idling.add(workspace)
        if fold.lease is not None and fold.lease.watermark != before:
            self.on_commit(workspace, group.name)
        self._maybe_checkpoint(workspace, group, fold)
        if group.slot == "shadow" and fold.lease is not None and not turn.more and self._is_due(key, _LOOK_AFTER_S):
            versions.advance(self.context, workspace, group, fold.lease.watermark)
        return turn.more and not turn.waits

    def _fold_of(self, workspace: str, group: Group) -> GroupFold:
        key = (workspace, group.name)
        fold = self._folds.get(key)
        if fold is not None and fold.group.runtimes is group.runtimes:
            fold.group = group  # its slot or rate may have changed
            return fold
        if fold is not None:
            fold.drop()
        fold = self._folds[key] = GroupFold(self.context, workspace, group, self.prepared)
        self._close_surplus()
        return fold

    @contextmanager
    def holding(self, workspace: str, group: Group) -> Iterator[GroupFold | None]:
        """Keep this runner's folds still, with the group's lease; None: another process has it, or it is busy."""
        with self._lock:
            fold = None
            if not self._stopped.is_set() and (workspace, group.name) not in self._checkpointing:
                fold = self._fold_of(workspace, group)
                try:
                    fold = fold if fold.acquire() else None
                except Fenced:
                    fold = None
            yield fold

    @contextmanager
    def _to_checkpoint(self, workspace: str, group: Group) -> Iterator[tuple[GroupFold, Lease] | None]:
        """Have a group's lease, and nobody else holding its fold while its checkpoint is written; None: not now."""
        key = (workspace, group.name)
        with self.holding(workspace, group) as fold:
            if fold is not None and fold.lease is not None:
                held = fold, fold.lease
                self._checkpointing.add(key)
            else:
                held = None
        try:
            yield held
        finally:
            if held is not None:
                self._checkpointing.discard(key)

    def checkpoint(self, workspace: str, group: Group, least: int) -> bool:
        """Write a purged checkpoint at or past a position and drop all others; False: not now, or not here."""
        with self._to_checkpoint(workspace, group) as held:
            if held is None:
                return False
            fold, lease = held
            written = checkpoint_group(self.context, workspace, group, lease, purge=True)
            state = self.context.ledger.group(workspace, group.name)
            if not written or state.checkpoint is None or state.checkpoint_watermark < least:
                return False
            fold.checkpoint_bytes = written
            drop_old_checkpoints(checkpoint_root(self.context, workspace, group.name), {state.checkpoint})
            return True

    def compact(self, workspace: str, group: Group) -> bool:
        """Write a checkpoint of a group whose lease this runner has or gets; False: not now, or not here."""
        with self._to_checkpoint(workspace, group) as held:
            if held is None:
                return False
            fold, lease = held
            fold.checkpoint_bytes = checkpoint_group(self.context, workspace, group, lease) or fold.checkpoint_bytes
            return True

    def _is_due(self, key: tuple[str, str], every_s: float) -> bool:
        """Look after versions now and then, not at each turn (without a lane: whenever driven)."""
        now = time.monotonic()
        if self.lane is not None and now - self._looked_after.get(key, -every_s) < every_s:
            return False
        self._looked_after[key] = now
        return True

    def _let_go(self, workspace: str, wanted: set[str]) -> None:
        """Drop the warm stores of groups that were retired or changed lanes."""
        for key in [key for key in self._folds if key[0] == workspace and key[1] not in wanted]:
            with self._lock:
                fold = self._folds.pop(key)
                fold.drop()
            if not any(group.name == key[1] for group in self.context.groups(workspace)):
                for runtime in fold.group.runtimes:
                    self.prepared.drop(workspace, runtime, _EVERYTHING)

    def _close_surplus(self) -> None:
        """Give up the warm stores of the groups that have not folded for longest; they recover when needed."""
        keys = list(self._folds)
        for key in keys[: max(0, len(keys) - self.context.settings.fold.max_warm_groups)]:
            if key not in self._checkpointing:
                self._folds.pop(key).release()

    def warm(self) -> set[str]:
        """The workspaces whose stores are warm here: they want to be visited, so that their leases are kept."""
        return {workspace for workspace, _ in list(self._folds)}

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
        return any(marks.get(g.name, (0, 0))[0] < head for g in self.groups(workspace))

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
    """Threads of the embedded service: per lane one folds, one prepares.

    Those of the live lane are woken by the ledger's writer, and by a sweep; those of the backfill lane look often.
    """

    def __init__(self, context: Context, prepared: PreparedValues, *, on_commit: Callable[[str, str], None]) -> None:
        self.context = context
        self.preparer = Preparer(context, prepared)
        self._backfill_preparer = Preparer(context, prepared)
        self._fold_wake = threading.Condition()
        self._pending: set[str] = set()
        self._prepare_pending: set[str] = set()
        self._prepare_wake = threading.Condition()
        self._stop = threading.Event()
        live, backfill = LANES
        self.runner = FoldRunner(context, prepared, on_commit=on_commit, on_prepare_needed=self.wake_prepare, lane=live)
        self.backfill = FoldRunner(context, prepared, on_commit=on_commit, lane=backfill)
        self.eraser = Eraser(context, (self.runner, self.backfill))
        self.keeper = Keeper(context, (self.runner, self.backfill))
        self._erase_wake = threading.Event()
        self._keep_wake = threading.Event()
        self._threads = [
            threading.Thread(target=self._fold_loop, name="fold", daemon=True),
            threading.Thread(target=self._prepare_loop, name="prepare", daemon=True),
            threading.Thread(target=self._backfill, args=(self._fold_backfill,), name="backfill", daemon=True),
            threading.Thread(
                target=self._backfill, args=(self._prepare_backfill,), name="backfill-prepare", daemon=True
            ),
            threading.Thread(target=self._erase_loop, name="erase", daemon=True),
            threading.Thread(target=self._keep_loop, name="retention", daemon=True),
        ]
        self.extracting = Extracting(context, on_append=self.wake)
        self._extract_wake = threading.Event()
        if self.extracting.is_configured:
            self._threads.append(threading.Thread(target=self._extract_loop, name="extract", daemon=True))

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def wake(self, workspace: str) -> None:
        """Something was appended to a workspace's log."""
        with self._fold_wake:
            self._pending.add(workspace)
            self._fold_wake.notify()
        self._extract_wake.set()

    def wake_prepare(self, workspace: str) -> None:
        with self._prepare_wake:
            self._prepare_pending.add(workspace)
            self._prepare_wake.notify()

    def _fold_loop(self) -> None:
        sweep_s = self.context.settings.fold.sweep_s
        swept = 0.0
        while not self._stop.is_set():
            idling = self.runner.idling()
            with self._fold_wake:
                if not self._pending:
                    self._fold_wake.wait(timeout=_IDLE_S if idling else sweep_s / 5)
                pending, self._pending = self._pending | idling, set()
            try:
                if time.monotonic() - swept > sweep_s:
                    swept = time.monotonic()
                    pending |= set(self.context.ledger.behind()) | self.runner.warm()
                for workspace in pending:
                    if self.runner.run(workspace, rounds=1):  # in turns: a full log must not hold up the others
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
                        workspace, self.context.ledger.watermarks(workspace), lane=self.runner.lane
                    ):
                        self.wake(workspace)
                except Exception:
                    log.exception("prepare_loop_failed; going on in 1 s")
                    self._stop.wait(1.0)

    def _backfill(self, work: Callable[[str], object]) -> None:
        left = False
        while not self._stop.wait(0 if left else _BACKFILL_EVERY_S):
            try:
                turns = [work(workspace) for workspace in self.context.opened()]  # all have theirs
                left = any(turns)
            except Exception:
                log.exception("backfill_loop_failed; going on in 1 s")
                self._stop.wait(1.0)

    def _fold_backfill(self, workspace: str) -> bool:
        return self.backfill.run(workspace, rounds=1)

    def _prepare_backfill(self, workspace: str) -> None:
        while not self._stop.is_set() and self.backfill.prepares(workspace):
            marks = self.context.ledger.watermarks(workspace)
            if not self._backfill_preparer.run(workspace, marks, lane=self.backfill.lane):
                return

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

    def wake_keep(self) -> None:
        """Retention was asked for."""
        self._keep_wake.set()

    def _keep_loop(self) -> None:
        while not self._stop.is_set():
            try:
                for workspace in self.keeper.due():
                    self.keeper.run(workspace)
            except Exception:
                log.exception("retention_failed; going on in 10 s")
                self._stop.wait(10.0)
            self._keep_wake.wait(self.context.settings.fold.sweep_s * 2)
            self._keep_wake.clear()

    def _extract_loop(self) -> None:
        while not self._stop.is_set():
            self._extract_wake.wait(self.context.settings.fold.sweep_s / 5)
            self._extract_wake.clear()
            try:
                for workspace in self.context.opened():
                    if self.extracting.run(workspace):
                        self._extract_wake.set()
            except Exception:
                if not self._stop.is_set():
                    log.exception("extract_loop_failed; going on in 1 s")
                self._stop.wait(1.0)

    def stop(self) -> None:
        """Stop gracefully: the turn in hand is committed, leases are given back."""
        self._stop.set()
        self.extracting.stop()
        self._extract_wake.set()
        self.runner.stop_soon()
        self.backfill.stop_soon()
        self._erase_wake.set()
        self._keep_wake.set()
        with self._fold_wake:
            self._fold_wake.notify_all()
        with self._prepare_wake:
            self._prepare_wake.notify_all()
        for thread in self._threads:
            thread.join(timeout=30)
        self.runner.stop()
        self.backfill.stop()
