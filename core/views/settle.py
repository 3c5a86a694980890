"""Work that servers do after a change, off the requests' path: what was committed counts as visible when it is done.

A server that works something out from its stores (a head solves its sums) is asked after each change whether anything
that requests ask for has changed. If so a thread has it read the stores, works it out, and only then moves the group's
watermark: who waits for a position waits for the answer made from it, and everybody else is answered meanwhile by what
was worked out before. Changes that come meanwhile are worked out together; where they never end, the thread rests for
as long as it worked.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from streamfold.core.policy import Settles
from streamfold.core.views.lock import ReadWriteLock

T = TypeVar("T")
log = logging.getLogger("streamfold.views")
_MOST_REST_S = 0.25


class Settling:
    """What one group's servers work out.

    Parameters
    ----------
    servers : of one set of stores, read under ``lock``.
    reached : called with the position that is worked out. told : called afterwards, off the caller's thread.
    """

    def __init__(
        self,
        servers: Sequence[Settles],
        lock: ReadWriteLock,
        reached: Callable[[int], None],
        told: Callable[[], None] = lambda: None,
    ) -> None:
        self._servers, self._lock, self._reached, self._told = servers, lock, reached, told
        self._state = threading.Lock()
        self._target = 0
        self._changed = False
        """Whether the stores changed after the thread had read them."""
        self._runs = False
        self._closed = threading.Event()

    def moved(self, position: int) -> None:
        """The stores are at a position now, which is reached at once where nothing is to be worked out."""
        unsettled = [server.unsettled() for server in self._servers]
        with self._state:
            self._target = max(self._target, position)
            if self._runs:
                self._changed = True
                return
            if any(unsettled):
                threading.Thread(target=self._run, name="settle", daemon=True).start()
                self._runs = True
            else:
                self._reached(self._target)

    def passed(self, position: int) -> None:
        """The stores, as they are, are at a position now: whatever is being worked out is of this position, too."""
        with self._state:
            self._target = max(self._target, position)
            if not self._runs:
                self._reached(self._target)

    def close(self) -> None:
        """Nothing is reached any more. Whoever closes the stores holds the lock for writing."""
        with self._state:
            self._closed.set()

    def _run(self) -> None:
        while True:
            began = time.monotonic()
            with self._lock.read():
                with self._state:
                    if self._closed.is_set():
                        return
                    target, self._changed = self._target, False
                work = [_guarded(server.look) for server in self._servers]
            for one in work:
                if one is not None:
                    _guarded(one)
            with self._state:
                if self._closed.is_set():
                    return
                self._runs = again = self._changed
                self._reached(target if again else self._target)
            _guarded(self._told)
            if not again:
                return
            time.sleep(min(time.monotonic() - began, _MOST_REST_S))


def _guarded(work: Callable[[], T]) -> T | None:
    """Run what a server does; one that fails is left to do it in its requests, which say what is wrong."""
    try:
        return work()
    except Exception:
        log.exception("settling_failed")
        return None
