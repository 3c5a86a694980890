"""Wait for what other threads and processes do."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest


def until(ready: Callable[[], Any], told: Callable[[], str] = lambda: "", *, timeout_s: float = 60.0) -> Any:
    """Return the first true value; fail with what was told where none comes."""
    deadline = time.monotonic() + timeout_s
    while not (found := ready()):
        if time.monotonic() > deadline:
            pytest.fail(f"never happened in {timeout_s:g} s\n{told()}")
        time.sleep(0.02)
    return found
