"""Read options: at least this position, at most this old, wait so long for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence, Sized
from typing import TypeVar

from streamfold.core.views import GroupView, WorkspaceView
from streamfold.pipelines.serve.call import Call
from streamfold.pipelines.serve.problems import Problem

T = TypeVar("T", bound=Sized)
_LOOK_AGAIN_S = 0.02
_MOST = 10_000
"""Past so many results, looking for ones that may be shown gives up."""


async def wait_fresh(call: Call, view: WorkspaceView, groups: Sequence[GroupView]) -> None:
    """Wait until the groups that answer satisfy ``min_position`` and ``max_age_ms``; 503 when they do not in time."""
    most = 2**63 - 1
    least = call.integer("min_position", 0, least=0, most=most)
    wait_ms = call.integer("wait_ms", 1000, least=0, most=30_000)
    max_age_ms = call.integer("max_age_ms", most, least=0, most=most)
    deadline = time.monotonic() + wait_ms / 1000
    if least and not await call.service.waiters(view).until(lambda: position(view, groups) >= least, wait_ms / 1000):
        here = position(view, groups)
        raise Problem(
            "position-not-reached",
            f"this replica is at position {here}, not yet at {least}: try again, or pass a longer wait_ms",
            headers={"Retry-After": "1"},
            extra={"position": here},
        )
    if max_age_ms == most:
        return
    while (age_ms := await call.ask(view.age_ms, position(view, groups))) > max_age_ms:
        if time.monotonic() >= deadline:
            raise Problem(
                "too-stale",
                f"what would answer is {age_ms} ms old, more than max_age_ms={max_age_ms}: try again later",
                headers={"Retry-After": "1"},
                extra={"position": position(view, groups), "age_ms": age_ms},
            )
        await asyncio.sleep(_LOOK_AGAIN_S)


def position(view: WorkspaceView, groups: Sequence[GroupView]) -> int:
    """Return the lowest watermark of some groups."""
    return min((group.watermark for group in groups), default=view.head)


def enough(n: int, fetch: int, look: Callable[[int], tuple[T, bool]]) -> T:
    """Look among the first ``fetch`` results, and among ever more while fewer than ``n`` may be shown.

    ``look`` returns what may be shown, and whether there may be more beyond.
    """
    while True:
        shown, more = look(fetch)
        if len(shown) >= n or not more or fetch >= _MOST:
            return shown
        fetch *= 4
