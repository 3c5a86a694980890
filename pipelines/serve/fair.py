"""A pool of threads that workspaces share fairly: who asks much waits for itself.

Work queues per workspace, and a free thread takes from the workspace that has waited longest, in turns. No workspace
has more than ``threads`` of them, and there is one more for each four: work that hangs in one workspace leaves the
others some.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")
Job = Callable[[], None]


class FairPool:
    """Threads and one queue per workspace that has work waiting.

    Parameters
    ----------
    threads : most that one workspace can have at a time.
    name : prefix of the threads' names.
    """

    def __init__(self, threads: int, name: str) -> None:
        self._most = threads
        self._free = threads + max(1, threads // 4)
        self._pool = ThreadPoolExecutor(self._free, name)
        self._lock = threading.Lock()
        self._waiting: dict[str, deque[Job]] = {}
        """In the order of their turns."""
        self._running: Counter[str] = Counter()

    def submit(self, workspace: str, work: Callable[..., T], *args: Any) -> Future[T]:
        future: Future[T] = Future()

        def job() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work(*args))
                except BaseException as error:
                    future.set_exception(error)

        with self._lock:
            self._waiting.setdefault(workspace, deque()).append(job)
            self._dispatch()
        return future

    def _dispatch(self) -> None:
        """Start what can be started; the lock is held."""
        while self._free:
            turn = next((name for name in self._waiting if self._running[name] < self._most), None)
            if turn is None:
                return
            queue = self._waiting.pop(turn)
            job = queue.popleft()
            if queue:
                self._waiting[turn] = queue  # behind the others
            self._free -= 1
            self._running[turn] += 1
            self._pool.submit(self._run, turn, job)

    def _run(self, workspace: str, job: Job) -> None:
        try:
            job()
        finally:
            with self._lock:
                self._free += 1
                self._running[workspace] -= 1
                if not self._running[workspace]:
                    del self._running[workspace]
                self._dispatch()

    def close(self) -> None:
        """Finish what runs; what waits is never run."""
        with self._lock:
            self._waiting.clear()
            self._free = 0
        self._pool.shutdown(wait=True, cancel_futures=True)
