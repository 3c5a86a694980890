"""Wait for a position without holding a thread: each commit wakes the event loop, which looks once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from streamfold.core.views import WorkspaceView

_LOOK_AGAIN_S = 0.05
"""A position that no group handles becomes visible without a commit, so that nobody calls."""


class Waiters:
    """All requests that wait on one workspace's view."""

    def __init__(self, view: WorkspaceView, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: dict[asyncio.Future[None], Callable[[], bool]] = {}
        self.view = view
        view.listeners.append(self._moved)

    def close(self) -> None:
        self.view.listeners.remove(self._moved)

    def _moved(self) -> None:
        if self._waiting and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._look)

    def _look(self) -> None:
        for future, reached in list(self._waiting.items()):
            if not future.done() and reached():
                future.set_result(None)

    async def until(self, reached: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until a cheap condition on the view holds; False when time runs out."""
        deadline = time.monotonic() + timeout_s
        while True:
            future: asyncio.Future[None] = self._loop.create_future()
            self._waiting[future] = reached
            try:
                if reached():  # after the entry: a commit in between is not missed
                    return True
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                await asyncio.wait((future,), timeout=min(left, _LOOK_AGAIN_S))
            finally:
                del self._waiting[future]
