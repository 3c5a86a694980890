"""Points at which fault tests kill the process: ``point(name)`` does nothing unless ``STREAMFOLD_CRASH`` is set.

``STREAMFOLD_CRASH="append.in:3"`` kills the process by SIGKILL at the third hit of ``append.in``, which is what a power
cut or the kernel's out-of-memory killer does: no handler runs, no buffer is flushed. The variable is read once, at
import, so that an unarmed point costs one call and one comparison.
"""

from __future__ import annotations

import os
import signal
import threading

_SPEC = os.environ.get("STREAMFOLD_CRASH", "")
_NAME, _, _COUNT = _SPEC.partition(":")
_left = int(_COUNT or 1)
_lock = threading.Lock()

ARMED = bool(_SPEC)
"""Whether this process is to be killed; ledgers then take the path that has a moment inside the transaction."""


def point(name: str) -> None:
    """Kill the process if this is the hit that the environment asks for."""
    if ARMED and name == _NAME:
        _hit()


def _hit() -> None:
    global _left
    with _lock:
        _left -= 1
        if _left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
