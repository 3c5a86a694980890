"""The Celery application and its messages: hints that there is work, never the work itself.

``streamfold.fold`` is broadcast: each fold worker hears it, the owner of the group (or whoever wins a free lease)
folds. ``streamfold.prepare`` goes to one worker of an ordinary queue. What is to be done is found by query, so losing
or doubling a message changes nothing, and the workers' sweep finds lag without any.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Container, Iterable
from typing import Any

from streamfold.core.errors import ConfigError, LedgerError
from streamfold.core.policy import Policy
from streamfold.core.registry import Registry
from streamfold.core.settings import Settings
from streamfold.pipelines.node import Node

log = logging.getLogger("streamfold.tasks")

FOLD = "streamfold.fold"
PREPARE = "streamfold.prepare"
FOLD_QUEUE = "streamfold.fold"
PREPARE_QUEUE = "prepare"
_EXPIRES_S = 30
_APART_S = 0.005
"""One message per workspace in this time: a message costs 2.5–5 ms of CPU in all (measured)."""


def make_app(settings: Settings) -> Any:
    """Make a Celery application for the settings' broker; raises ``ConfigError`` without one.

    Wake-ups are acknowledged early: they are hints, and a redelivered one would only repeat what the sweep does.
    """
    from celery import Celery
    from kombu.common import Broadcast
    from kombu.entity import Queue

    if not settings.broker.url:
        raise ConfigError("[broker] url is empty: set redis://… or amqp://…, or run on the sweep alone")
    broadcast: Any = Broadcast  # kombu has no types here
    queue: Any = Queue
    app = Celery("streamfold", broker=settings.broker.url, backend=None, set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        event_serializer="json",
        task_ignore_result=True,
        task_acks_late=False,
        task_queues=[broadcast(FOLD_QUEUE), queue(PREPARE_QUEUE)],
        task_default_queue=PREPARE_QUEUE,
        task_create_missing_queues=False,
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=3,
        broker_transport_options={"socket_connect_timeout": 3, "socket_keepalive": True},
        task_publish_retry=False,
        enable_utc=True,
    )
    return app


class Waker:
    """Publishes wake-ups from a thread of its own: callers never wait, never fail, and bursts become one message."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ready = threading.Condition()
        self._fold: dict[str, int] = {}
        self._prepare: set[str] = set()
        self._busy = False
        self._app: Any = None
        self._producer: Any = None
        self._failed = 0
        self.published = 0
        threading.Thread(target=self._loop, name="wake-ups", daemon=True).start()

    def wake(self, workspace: str, position: int, *, fold: bool = True, prepare: bool = False) -> None:
        """Queue a wake-up; ``position`` 0 means: whatever there is."""
        with self._ready:
            if fold:
                self._fold[workspace] = max(position, self._fold.get(workspace, 0))
            if prepare:
                self._prepare.add(workspace)
            self._ready.notify_all()

    def flush(self, timeout_s: float) -> None:
        """Wait until everything queued is published or dropped."""
        with self._ready:
            self._ready.wait_for(lambda: not (self._fold or self._prepare or self._busy), timeout_s)

    def _loop(self) -> None:
        try:
            self._connect()
        except Exception as error:
            self._drop(error)
        while True:
            with self._ready:
                self._busy = False
                self._ready.notify_all()
                self._ready.wait_for(lambda: self._fold or self._prepare)
                fold, self._fold = self._fold, {}
                prepare, self._prepare = self._prepare, set()
                self._busy = True
            try:
                self._publish(fold, prepare)
                self._failed = 0
                time.sleep(_APART_S)
            except Exception as error:
                self._drop(error)

    def _connect(self) -> None:
        if self._app is None:
            self._app = make_app(self._settings)
        if self._producer is None:
            connection = self._app.connection_for_write()
            connection.ensure_connection(max_retries=1, timeout=3)
            self._producer = self._app.amqp.Producer(connection, auto_declare=False)

    def _publish(self, fold: dict[str, int], prepare: set[str]) -> None:
        self._connect()
        queue = self._app.amqp.queues[FOLD_QUEUE]
        for workspace in prepare:
            self._app.send_task(
                PREPARE, [workspace], queue=PREPARE_QUEUE, producer=self._producer, expires=_EXPIRES_S, retry=False
            )
        for workspace, position in fold.items():
            self._app.send_task(
                FOLD,
                [workspace, position],
                queue=queue,
                declare=[queue.exchange],  # on Redis an exchange that was not declared is taken for a direct one
                producer=self._producer,
                expires=_EXPIRES_S,
                retry=False,
            )
        self.published += len(fold) + len(prepare)

    def _drop(self, error: Exception) -> None:
        """Forget the connection and what was to be said: the sweep finds the lag."""
        if self._failed % 100 == 0:
            log.warning("wake_up_dropped error=%r; the workers' sweep finds the work", error)
        self._failed += 1
        producer, self._producer = self._producer, None
        try:
            if producer is not None:
                producer.connection.release()
        except Exception as closing:
            log.debug("closing the broker's connection: %r", closing)
        time.sleep(min(0.1 * self._failed, 2.0))


_wakers: dict[str, Waker] = {}
_opening = threading.Lock()


def _waker(settings: Settings) -> Waker | None:
    """The process's waker of a broker, made at first use; None without a broker."""
    url = settings.broker.url
    if not url:
        return None
    with _opening:
        if url not in _wakers:
            _wakers[url] = Waker(settings)
        return _wakers[url]


def warm_up(settings: Settings) -> None:
    """Connect in the background: the first publish otherwise costs 2 s."""
    _waker(settings)


def flush(settings: Settings, timeout_s: float = 1.0) -> None:
    """Wait a moment until queued wake-ups are out (before the process ends)."""
    if (waker := _waker(settings)) is not None:
        waker.flush(timeout_s)


def preparing_types(registry: Registry) -> frozenset[str]:
    """Event types that a declared policy with a prepare step handles; makes no policy and loads no backend."""
    found: set[str] = set()
    for name, table in registry.settings.policies.items():
        kind = registry.policy_class(str(table.get("use", name)))
        if kind.prepare is not Policy.prepare or kind.prepare_batch is not Policy.prepare_batch:
            found.update(kind.handles)
    return frozenset(found)


def publish_wake(
    settings: Settings,
    workspace: str,
    position: int,
    types: Iterable[str] = (),
    *,
    preparing: Container[str] | None = None,
) -> None:
    """Say that a workspace's log has grown to ``position`` by events of these types.

    One broadcast to the fold workers; one hint to a prepare worker, unless none of the types is in ``preparing``
    (``preparing_types``). Returns at once and never raises: without a broker, or with one that is down, the sweep
    finds the work.
    """
    if (waker := _waker(settings)) is not None:
        waker.wake(workspace, position, prepare=preparing is None or any(t in preparing for t in types))


def publish_prepare(settings: Settings, workspace: str) -> None:
    """Say that a fold waits for prepare."""
    if (waker := _waker(settings)) is not None:
        waker.wake(workspace, 0, fold=False, prepare=True)


def publish_fold(settings: Settings, workspace: str) -> None:
    """Say that prepared values were saved."""
    if (waker := _waker(settings)) is not None:
        waker.wake(workspace, 0)


def open_node(settings: Settings, stopping: threading.Event) -> Node | None:
    """Open the node, waiting for a database that is not there yet; None when stopping meanwhile."""
    backoff_s = 0.2
    while not stopping.is_set():
        try:
            return Node(settings)
        except LedgerError as error:
            log.warning("ledger_unavailable retry_s=%.1f error=%s", backoff_s, error)
            stopping.wait(backoff_s)
            backoff_s = min(backoff_s * 2, 5.0)
    return None
