"""The views that one process has open: each opened when first asked for, the least recently used closed above a bound.

A view that is asked is followed at each poll. One that nobody has asked for a while is followed once a second, so that
many open workspaces cost little, and brought up to date when it is asked again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from streamfold.core.caches import Erasures
from streamfold.core.context import Context
from streamfold.core.errors import LedgerUnavailable
from streamfold.core.views.view import WorkspaceView

log = logging.getLogger("streamfold.views")

_QUIET_S = 10.0
"""After this long without a question a view is quiet …"""
_QUIET_POLL_S = 1.0
"""… and is followed this often."""


class _Open:
    """An open view, who uses it, and when it was used and followed last."""

    __slots__ = ("followed", "used", "users", "view")

    def __init__(self, view: WorkspaceView, now: float) -> None:
        self.view = view
        self.users = 0
        self.used = self.followed = now


class Views:
    """The open views of a process, and the thread that keeps them fresh.

    Parameters
    ----------
    samples : called with (workspace, seconds) when an event of this process became visible.
    now : monotonic seconds.
    """

    def __init__(
        self,
        context: Context,
        *,
        samples: Callable[[str, float], None] = lambda workspace, seconds: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.context = context
        self.error: str | None = None
        self._most = context.settings.serve.max_open_workspaces
        self._samples = samples
        self._now = now
        self._lock = threading.Lock()
        self._open: dict[str, _Open] = {}
        """Least recently used first."""
        self._opening: dict[str, threading.Lock] = {}
        self._woken: set[str] = set()
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._erasures = Erasures(context.ledger)
        self._thread = threading.Thread(target=self._loop, name="views", daemon=True)

    # -- opening and closing --------------------------------------------------------------------------------------
    def workspace(self, name: str) -> WorkspaceView:
        """The view of a workspace, opened now if it is not; it may be closed when it is not used (see ``using``)."""
        view = self.enter(name)
        self.leave(view)
        return view

    @contextmanager
    def using(self, name: str) -> Iterator[WorkspaceView]:
        """The view of a workspace, not closed meanwhile. Raises ``LedgerUnavailable`` when it cannot be opened."""
        view = self.enter(name)
        try:
            yield view
        finally:
            self.leave(view)

    def enter(self, name: str) -> WorkspaceView:
        """Open a view if need be, bring it up to date if it was quiet, and count one user more. May take long."""
        found = self._take(name) or self._add(name)
        if self._now() - found.followed > 2 * _QUIET_POLL_S or self._is_quiet(found):
            self._follow(found)
        found.used = self._now()
        return found.view

    def enter_if_fresh(self, name: str) -> WorkspaceView | None:
        """Like ``enter`` where that takes no time, else None."""
        found = self._take(name, fresh=True)
        if found is None:
            return None
        found.used = self._now()
        return found.view

    def leave(self, view: WorkspaceView) -> None:
        """Count one user less."""
        with self._lock:
            found = self._open[view.name]
            found.users -= 1
            found.used = self._now()

    def _take(self, name: str, *, fresh: bool = False) -> _Open | None:
        """Count one user more of an open view."""
        with self._lock:
            found = self._open.get(name)
            if found is None or (fresh and self._is_quiet(found)):
                return None
            found.users += 1
            self._open[name] = self._open.pop(name)  # the most recently used one comes last
            return found

    def _add(self, name: str) -> _Open:
        """Open a view with one user: by one thread, other workspaces beside it."""
        with self._lock:
            opening = self._opening.setdefault(name, threading.Lock())
        with opening:
            found = self._take(name)
            if found is None:
                view = WorkspaceView(self.context, name, self._samples)
                with self._lock:
                    self._opening.pop(name, None)
                    found = self._open.setdefault(name, _Open(view, self._now()))
                    found.users += 1
                if found.view is not view:  # it was opened, closed and opened again while this thread waited
                    view.close()
                self._close_surplus()
        return found

    def _close_surplus(self) -> None:
        """Close those above the bound that nobody uses; what is in use now is looked at again at the next poll."""
        if len(self._open) <= self._most:
            return
        with self._lock:
            unused = [name for name, found in self._open.items() if not found.users]
            surplus = [self._open.pop(name) for name in unused[: max(0, len(self._open) - self._most)]]
        for found in surplus:
            found.view.close()

    def opened(self) -> list[WorkspaceView]:
        with self._lock:
            return [found.view for found in self._open.values()]

    # -- following ------------------------------------------------------------------------------------------------
    def start(self) -> None:
        self._thread.start()

    def wake(self, workspace: str | None = None) -> None:
        """A commit was made in this process: follow now."""
        if workspace is not None:
            self._woken.add(workspace)
        self._wake.set()

    def _is_quiet(self, found: _Open) -> bool:
        return self._now() - found.used > _QUIET_S

    def _due(self) -> list[_Open]:
        woken, self._woken = self._woken, set()
        now = self._now()
        with self._lock:
            return [
                found
                for name, found in self._open.items()
                if name in woken or found.users or not self._is_quiet(found) or now - found.followed > _QUIET_POLL_S
            ]

    def _loop(self) -> None:
        poll_s = self.context.settings.fold.view_poll_ms / 1000
        while not self._stop.is_set():
            self._wake.wait(poll_s)
            self._wake.clear()
            for found in self._due():
                if not self._follow(found):
                    self._stop.wait(0.5)
            self._close_surplus()
            self._look_for_erasures()

    def _look_for_erasures(self) -> None:
        """After the views have followed: what they hold is then without what was erased."""
        try:
            self._erasures.look()
        except LedgerUnavailable as error:
            self.error = str(error)

    def _follow(self, found: _Open) -> bool:
        """Apply what is new; False when that failed: the view answers on from what it has."""
        try:
            found.view.follow()
        except LedgerUnavailable as error:
            self.error = str(error)
            return False
        except Exception as error:
            self.error = repr(error)
            log.exception("view_follow_failed workspace=%s", found.view.name)
            return False
        self.error = None
        found.followed = self._now()
        return True

    def stop(self) -> None:
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)
        for view in self.opened():
            view.close()
