"""Wait for what other threads and processes do.

Deadlines are for what never comes: they are far beyond what the slowest machine needs, and cost nothing where it does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

LONG_S = 300.0


def until(ready: Callable[[], Any], told: Callable[[], str] = lambda: "", *, timeout_s: float = LONG_S) -> Any:
    """Return the first true value; fail with what was told where none comes."""
    deadline = time.monotonic() + timeout_s
    while not (found := ready()):
        if time.monotonic() > deadline:
            pytest.fail(f"never happened in {timeout_s:g} s\n{told()}")
        time.sleep(0.02)
    return found


def patient(request: httpx.Request) -> None:
    """Have a request wait for what is to be visible as long as a service lets it: a hook of a client."""
    asked = request.url.params
    if "wait_ms" not in asked and (asked.get("wait") == "visible" or "min_position" in asked):
        request.url = request.url.copy_merge_params({"wait_ms": 30_000})


def ended_job(client: httpx.Client, answer: httpx.Response) -> dict[str, Any]:
    """Wait for the end of the job that was started; return it, done or failed."""
    assert answer.status_code == 202, answer.text
    return ended(client, f"/v1/jobs/{answer.json()['job_id']}", "done", "failed")


def ended_erasure(client: httpx.Client, erasure_id: str) -> dict[str, Any]:
    """Wait for the end of an erasure; return its report."""
    return ended(client, f"/v1/erasures/{erasure_id}", "complete", "failed")


def ended(client: httpx.Client, path: str, *states: str) -> dict[str, Any]:
    """Wait until what lies there is in one of the states; return it."""
    shown: dict[str, Any] = {}

    def look() -> bool:
        shown.clear()
        shown.update(client.get(path).raise_for_status().json())
        return shown["state"] in states

    until(look, lambda: str(shown))
    return shown


def exposure(client: httpx.Client, exposure_id: str) -> dict[str, Any]:
    """Wait until an exposure is in the log; return its event."""
    asked = {"type": "exposure.recorded", "subject": exposure_id}
    items = until(lambda: client.get("/v1/events", params=asked).raise_for_status().json()["items"])
    found: dict[str, Any] = items[0]["event"]
    return found
