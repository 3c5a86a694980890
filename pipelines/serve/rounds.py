"""A thread that goes through the open views again and again, beside the requests."""

from __future__ import annotations

import threading
from collections.abc import Callable

from streamfold.core.errors import LedgerError
from streamfold.core.views import WorkspaceView
from streamfold.pipelines.node import Node
from streamfold.pipelines.serve.logs import logger


class Rounds:
    """Looks at each open view in turns; what fails is logged, and looked at again in the next round.

    Parameters
    ----------
    name : of the thread, and in the log.
    look : called with each open view.
    every_s : between two rounds. failed_s : after an unforeseen error.
    """

    def __init__(
        self, name: str, node: Node, look: Callable[[WorkspaceView], None], *, every_s: float, failed_s: float = 0.0
    ) -> None:
        self._name, self._node, self._look = name, node, look
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
            views = self._node.views
            for view in views.opened() if views is not None else ():
                try:
                    self._look(view)
                except LedgerError as error:
                    self._log.warning(f"{self._name}_wait", workspace=view.name, error=str(error))
                except Exception as error:
                    self._log.error(f"{self._name}_failed", workspace=view.name, error=repr(error), exc_info=error)
                    self._stop.wait(self._failed_s)
