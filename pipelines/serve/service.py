"""What the routes share in one process: the node, thread pools, keys, pressure, waiters, jobs and metrics."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from streamfold.core.errors import InvalidEvent
from streamfold.core.events import CloudEvent, NewEvent
from streamfold.core.ledger.abc import Appended, IntakeMove
from streamfold.core.views import Views, WorkspaceView
from streamfold.pipelines.node import Node
from streamfold.pipelines.quota import FULL_RETRY_S, Limits, Rate
from streamfold.pipelines.serve.access import Access
from streamfold.pipelines.serve.alarms import AlarmLog
from streamfold.pipelines.serve.answers import Answers
from streamfold.pipelines.serve.auth import Keys
from streamfold.pipelines.serve.exposures import Exposures
from streamfold.pipelines.serve.fair import FairPool
from streamfold.pipelines.serve.gate import Gate
from streamfold.pipelines.serve.helping import Helpers
from streamfold.pipelines.serve.jobs import Jobs
from streamfold.pipelines.serve.logs import logger
from streamfold.pipelines.serve.merging import Merging
from streamfold.pipelines.serve.metrics import Metrics
from streamfold.pipelines.serve.own_events import OwnEvents
from streamfold.pipelines.serve.pressure import Pressure
from streamfold.pipelines.serve.problems import rate_limited, unavailable
from streamfold.pipelines.serve.rules import Rules
from streamfold.pipelines.serve.takeovers import Takeovers
from streamfold.pipelines.serve.waiting import Waiters

_MAX_WAKES = 8
"""Wake-ups that may queue for a slow broker; more are dropped, the workers' sweep finds the work without them."""


class Service:
    """One serving process."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.settings = node.settings
        self.log = logger()
        self.limits = Limits(node.ledger, node.settings.quotas)
        self.access = Access(node.ledger, self.limits)
        self.keys = Keys(node.settings.serve, self.access)
        self.metrics = Metrics(node)
        self.pressure = Pressure(node.settings)
        self.jobs = Jobs()
        self.answers = Answers(node)
        self.gate = Gate(node.settings.gate)
        self.helpers = Helpers(node)
        self.intake_pool = FairPool(4, "intake")
        self.query_pool = FairPool(node.settings.serve.query_threads, "query")
        self.inserting: set[tuple[str, str]] = set()
        """(workspace, document id) of requests that check whether a document is there before they log it."""
        self.ready = False
        self.failure: BaseException | None = None
        self.started = time.monotonic()
        self.on_failure: Callable[[], None] = lambda: None
        self._refuses = bool(node.registry.hook.refuse_event.get_hookimpls())
        self._wakes = ThreadPoolExecutor(1, "wake")
        own_events = OwnEvents(self.accept, self.append)
        self.rules = Rules(node, own_events, self.metrics.registry)  # first: its settings may be refused
        self.exposures = Exposures(own_events, self.metrics.registry)
        self.merging = Merging(node, own_events)
        self.takeovers = Takeovers(node, self.gate, own_events, self.metrics.registry)
        self.alarms = AlarmLog(node, own_events, self.metrics.registry)
        self._wakes_waiting = 0
        self._waiters: dict[str, Waiters] = {}

    # -- life -------------------------------------------------------------------------------------
    def start(self) -> None:
        """Recover the views in a thread: the port answers meanwhile, ``/readyz`` says 503."""
        self.access.start()
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
        self.merging.close()
        self.takeovers.close()
        self.alarms.close()
        self.rules.close()
        self.exposures.close()
        self.jobs.close()
        self.access.close()
        for pool in (self.intake_pool, self.query_pool, self.answers, self.helpers, self.gate):
            pool.close()
        self._wakes.shutdown(wait=True, cancel_futures=True)
        self.metrics.close()

    # -- views ------------------------------------------------------------------------------------
    def view(self, workspace: str) -> WorkspaceView:
        """Return a workspace's view; 503 while it is being recovered."""
        views = self.node.views
        if not self.ready or views is None:
            raise unavailable("the views are being recovered: try again", 1)
        return views.workspace(workspace)

    @asynccontextmanager
    async def using(self, workspace: str) -> AsyncIterator[None]:
        """Keep a workspace's view open; opened or brought up to date by a thread, as that may take long."""
        views = self.node.views
        if not self.ready or views is None:
            yield
            return
        view = views.enter_if_fresh(workspace)
        if view is None:
            entering = self.query_pool.submit(workspace, views.enter, workspace)
            try:
                view = await asyncio.wrap_future(entering)
            except asyncio.CancelledError:
                entering.add_done_callback(lambda done: _leave(views, done))
                raise
        try:
            yield
        finally:
            views.leave(view)

    def waiters(self, view: WorkspaceView) -> Waiters:
        found = self._waiters.get(view.name)
        if found is None or found.view is not view:  # a view that was closed comes back as another one
            found = self._waiters[view.name] = Waiters(view, asyncio.get_running_loop())
        return found

    async def visible(self, view: WorkspaceView, position: int, types: Iterable[str], wait_ms: int) -> bool:
        """Wait until a position is visible to whoever asks this process."""
        wanted = set(types)
        return await self.waiters(view).until(lambda: view.visible_position(wanted) >= position, wait_ms / 1000)

    # -- intake -----------------------------------------------------------------------------------
    def admit(self, view: WorkspaceView) -> None:
        """Refuse a write with 429 before its body is read: pressure, or a quota that is used up."""
        self.pressure.check(view)
        self.charge(view.name, "events_per_s", 0)

    def charge(self, workspace: str, what: Rate, n: int) -> None:
        """Use up a quota; 429 when nothing is left of it."""
        wait_s = self.limits.take(workspace, what, n)
        if wait_s:
            limit = getattr(self.limits.of(workspace), what)
            raise rate_limited(f"the workspace's quota {what} = {limit:g} is used up: try again later", wait_s)

    def charge_events(self, workspace: str, n: int) -> None:
        """Use up the quotas that events fall under. May ask the ledger."""
        self.charge(workspace, "events_per_s", n)
        if self.limits.is_full(workspace):
            limit = self.limits.of(workspace).bytes
            raise rate_limited(f"the workspace's quota bytes = {limit} is used up", FULL_RETRY_S)

    def accept(self, workspace: str, raws: Sequence[CloudEvent | InvalidEvent]) -> list[NewEvent | InvalidEvent]:
        """Validate; what a plugin refuses is refused too."""
        results = self.node.acceptor.accept_many(raws)
        return [self._refused(workspace, event) for event in results] if self._refuses else results

    def _refused(self, workspace: str, event: NewEvent | InvalidEvent) -> NewEvent | InvalidEvent:
        if isinstance(event, InvalidEvent):
            return event
        reason = self.node.registry.hook.refuse_event(workspace=workspace, event=event)
        return event if reason is None else InvalidEvent("invalid-event", f"refused: {reason}")

    def append(self, view: WorkspaceView, events: Sequence[NewEvent], moves: Sequence[IntakeMove] = ()) -> Appended:
        """Log events, with moves of intakes (durable when this returns), and wake whoever folds them. Blocks."""
        node = self.node
        started = time.monotonic()
        done = node.ledger.append(view.name, events, recorded_us=node.context.clock.now_us(), moves=moves)
        fresh = [p for p, outcome in zip(done.positions, done.outcomes, strict=True) if outcome == "accepted"]
        if fresh:
            types = frozenset(event.type for event in events)
            view.accepted.append((fresh[-1], started, types))
            node.appended(view.name)
            if any(event.deletes for event in events):
                # one that came late (an older `sequence`) deletes nothing: which it was, the view reads
                logged = () if done.superseded else zip(events, done.positions, done.outcomes, strict=True)
                view.hide((e.subject, at) for e, at, outcome in logged if e.deletes and outcome == "accepted")
                self._deleted(view.name, any(event.erases for event in events))
            if not self.settings.is_embedded and self.settings.broker.url:
                self._wake(view.name, fresh[-1], sorted(types))
        self.metrics.took(view.name, done)
        return done

    def _deleted(self, workspace: str, erases: bool) -> None:
        """Something was deleted: have the views of this process hide it now; others' look each ``view_poll_ms``."""
        if self.node.views is not None:
            self.node.views.wake(workspace)
        if erases:
            self.answers.forget()
            self.helpers.forget()
            if self.node.runner is not None:
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


def _leave(views: Views, entered: Future[WorkspaceView]) -> None:
    """Give back a view that was opened for a request which is gone."""
    if not entered.cancelled() and entered.exception() is None:
        views.leave(entered.result())
