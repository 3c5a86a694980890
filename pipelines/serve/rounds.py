"""A thread that goes through workspaces again and again, beside the requests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from streamfold.core.errors import LedgerError
from streamfold.core.views import WorkspaceView
from streamfold.pipelines.node import Node
from streamfold.pipelines.serve.logs import logger

T = TypeVar("T", WorkspaceView, str)


class Rounds(Generic[T]):
    """Looks at each in turns; what fails is logged, and looked at again in the next round.

    Parameters
    ----------
    name : of the thread, and in the log.
    each : what to look at in a round: views, or names of workspaces.
    look : called with each.
    every_s : between two rounds. failed_s : after an unforeseen error.
    """

    def __init__(
        self,
        name: str,
        each: Callable[[], Iterable[T]],
        look: Callable[[T], None],
        *,
        every_s: float,
        failed_s: float = 0.0,
    ) -> None:
        self._name = name
        self._each: Callable[[], Iterable[T]] = each
        self._look: Callable[[T], None] = look
        self._every_s, self._failed_s = every_s, failed_s
        self._stop = threading.Event()
        self._log = logger()
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    def stopped(self, wait_s: float = 0.0) -> bool:
        """Wait; True: it is to end."""
        return self._stop.wait(wait_s)

    def close(self) -> None:
        """End, after the look that is under way."""
        self._stop.set()
        self._thread.join(timeout=10)

    def _loop(self) -> None:
        while not self._stop.wait(self._every_s):
            with self._logged(None):
                for one in self._each():
                    with self._logged(str(getattr(one, "name", one))):
                        self._look(one)

    @contextmanager
    def _logged(self, workspace: str | None) -> Iterator[None]:
        """Log what fails, and go on."""
        try:
            yield
        except LedgerError as error:
            self._log.warning(f"{self._name}_wait", workspace=workspace, error=str(error))
        except Exception as error:
            self._log.error(f"{self._name}_failed", workspace=workspace, error=repr(error), exc_info=error)
            self._stop.wait(self._failed_s)


def open_views(node: Node) -> list[WorkspaceView]:
    """Those that are open in this process."""
    return node.views.opened() if node.views is not None else []
