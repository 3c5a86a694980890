"""Keys and quotas as the ledger had them a moment ago, so that no request waits for a query.

A thread asks for the number of changes twice a second and reads all anew when it has moved: a key that was revoked
anywhere is refused here within a second. While the ledger cannot be reached what was read last stays in force.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from streamfold.core.errors import LedgerError
from streamfold.core.ledger.abc import ApiKey, Ledger
from streamfold.pipelines.quota import Limits
from streamfold.pipelines.serve.logs import logger

POLL_S = 0.5


class Access:
    """The ledger's keys by id, and the limits in force."""

    def __init__(self, ledger: Ledger, limits: Limits) -> None:
        self.ledger = ledger
        self.limits = limits
        self.keys: Mapping[str, ApiKey] = {}
        """By key id, revoked ones too."""
        self.has_admin = False
        """Whether there is, or was, a key with which more can be made."""
        self._workspaces: frozenset[str] = frozenset()
        self._version = -1
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="access", daemon=True)
        self.refresh()

    def refresh(self) -> None:
        """Read what has changed. The version comes first: what changes meanwhile is read again next time."""
        version = self.ledger.access_version()
        if version == self._version:
            return
        self.keys = {key.key_id: key for key in self.ledger.api_keys()}
        self.has_admin = any({"admin", "operator"} & set(key.scopes) for key in self.keys.values())
        self.limits.given = self.ledger.quotas()
        self._version = version

    def knows(self, workspace: str) -> bool:
        """Whether a workspace exists; asks the ledger about those not met before."""
        if workspace not in self._workspaces:
            self._workspaces = frozenset(self.ledger.workspaces())
        return workspace in self._workspaces

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    def _loop(self) -> None:
        while not self._stop.wait(POLL_S):
            try:
                self.refresh()
            except LedgerError as error:
                logger().debug("access_not_read", error=str(error))
