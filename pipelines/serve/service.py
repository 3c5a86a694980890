"""What the routes share in one process: the node, thread pools, keys, pressure, waiters, jobs and metrics."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from streamfold.core.errors import InvalidEvent
from streamfold.core.events import CloudEvent, NewEvent
from streamfold.core.ledger.abc import Appended
from streamfold.core.views import WorkspaceView
from streamfold.pipelines.node import Node
from streamfold.pipelines.serve.auth import Keys
from streamfold.pipelines.serve.jobs import Jobs
from streamfold.pipelines.serve.logs import logger
from streamfold.pipelines.serve.metrics import Metrics
from streamfold.pipelines.serve.pressure import Pressure
from streamfold.pipelines.serve.problems import unavailable
from streamfold.pipelines.serve.waiting import Waiters

_MAX_WAKES = 8
"""Wake-ups that may queue for a slow broker; more are dropped, the workers' sweep finds the work without them."""


class Service:
    """One serving process."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.settings = node.settings
        self.log = logger()
        self.keys = Keys(node.settings.serve)
        self.metrics = Metrics(node)
        self.pressure = Pressure(node.settings)
        self.jobs = Jobs()
        self.intake_pool = ThreadPoolExecutor(4, "intake")
        self.query_pool = ThreadPoolExecutor(node.settings.serve.query_threads, "query")
        self.ready = False
        self.failure: BaseException | None = None
        self.started = time.monotonic()
        self.on_failure: Callable[[], None] = lambda: None
        self._refuses = bool(node.registry.hook.refuse_event.get_hookimpls())
        self._wakes = ThreadPoolExecutor(1, "wake")
        self._wakes_waiting = 0
        self._waiters: dict[str, Waiters] = {}

    # -- life -------------------------------------------------------------------------------------
    def start(self) -> None:
        """Recover the views in a thread: the port answers meanwhile, ``/readyz`` says 503."""
        if self.node.views is not None:
            self.ready = True
            return
        threading.Thread(target=self._start, name="start", daemon=True).start()

    def _start(self) -> None:
        try:
            self.node.start_serving(self.keys.workspaces(), samples=self.metrics.saw)
            self.ready = True
            self.log.info("ready", seconds=round(time.monotonic() - self.started, 3))
        except BaseException as error:
            self.failure = error
            self.log.error("start_failed", error=repr(error), exc_info=error)
            self.on_failure()

    def close(self) -> None:
        for waiters in self._waiters.values():
            waiters.close()
        self.jobs.close()
        for pool in (self.intake_pool, self.query_pool, self._wakes):
            pool.shutdown(wait=True, cancel_futures=True)
        self.metrics.close()

    # -- views ------------------------------------------------------------------------------------
    def view(self, workspace: str) -> WorkspaceView:
        """Return a workspace's view; 503 while it is being recovered."""
        views = self.node.views
        if not self.ready or views is None:
            raise unavailable("the views are being recovered: try again", 1)
        return views.workspace(workspace)

    def waiters(self, view: WorkspaceView) -> Waiters:
        found = self._waiters.get(view.name)
        if found is None:
            found = self._waiters[view.name] = Waiters(view, asyncio.get_running_loop())
        return found

    async def visible(self, view: WorkspaceView, position: int, types: Iterable[str], wait_ms: int) -> bool:
        """Wait until a position is visible to whoever asks this process."""
        wanted = set(types)
        return await self.waiters(view).until(lambda: view.visible_position(wanted) >= position, wait_ms / 1000)

    # -- intake -----------------------------------------------------------------------------------
    def accept(self, workspace: str, raws: Sequence[CloudEvent | InvalidEvent]) -> list[NewEvent | InvalidEvent]:
        """Validate; what a plugin refuses is refused too."""
        results = self.node.acceptor.accept_many(raws)
        return [self._refused(workspace, event) for event in results] if self._refuses else results

    def _refused(self, workspace: str, event: NewEvent | InvalidEvent) -> NewEvent | InvalidEvent:
        if isinstance(event, InvalidEvent):
            return event
        reason = self.node.registry.hook.refuse_event(workspace=workspace, event=event)
        return event if reason is None else InvalidEvent("invalid-event", f"refused: {reason}")

    def append(self, view: WorkspaceView, events: Sequence[NewEvent]) -> Appended:
        """Log events (durable when this returns), and wake whoever folds them. Blocks."""
        node = self.node
        started = time.monotonic()
        done = node.ledger.append(view.name, events, recorded_us=node.context.clock.now_us())
        fresh = [p for p, outcome in zip(done.positions, done.outcomes, strict=True) if outcome == "accepted"]
        if fresh:
            types = frozenset(event.type for event in events)
            view.accepted.append((fresh[-1], started, types))
            node.appended(view.name)
            if any(event.deletes for event in events):
                self._deleted(any(event.erases for event in events))
            if not self.settings.is_embedded and self.settings.broker.url:
                self._wake(view.name, fresh[-1], sorted(types))
        self.metrics.took(view.name, done)
        return done

    def _deleted(self, erases: bool) -> None:
        """Something was deleted: have the views of this process hide it now; others' look each ``view_poll_ms``."""
        if self.node.views is not None:
            self.node.views.wake()
        if erases and self.node.runner is not None:
            self.node.runner.wake_erase()

    def _wake(self, workspace: str, position: int, types: list[str]) -> None:
        if self._wakes_waiting >= _MAX_WAKES:
            return
        self._wakes_waiting += 1
        self._wakes.submit(self._publish, workspace, position, types)

    def _publish(self, workspace: str, position: int, types: list[str]) -> None:
        try:
            from streamfold.pipelines.tasks import publish_wake

            publish_wake(self.settings, workspace, position, types)
        except Exception as error:  # a wake-up is a hint: the workers' sweep finds the work without it
            self.log.warning("wake_not_published", workspace=workspace, position=position, error=repr(error))
        finally:
            self._wakes_waiting -= 1

    def prepared(self) -> Any:
        """Return where prepared values are kept: of the folds of this process when it is embedded."""
        runner = self.node.runner
        return runner.preparer.prepared if runner is not None else self.node.prepared()
