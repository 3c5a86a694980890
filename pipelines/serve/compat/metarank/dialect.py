"""How Metarank says things: paths, and refusals (``{"status": "error", "error": …}``)."""

from __future__ import annotations

import time
from typing import Any

from starlette.responses import Response

from streamfold.pipelines.serve.call import Endpoint, answer
from streamfold.pipelines.serve.problems import Problem

BASE = "/compat/metarank"


def endpoint(method: str, path: str, run: Any, summary: str, **more: Any) -> Endpoint:
    """Declare a route below ``/compat/metarank``."""
    settings: dict[str, Any] = {"tag": "metarank", "refuse": refused} | more
    return Endpoint(method=method, path=BASE + path, run=run, summary=summary, **settings)


def refused(problem: Problem, request_id: str) -> Response:
    """Write a refusal as JSON; what is not valid is 400."""
    status = 400 if problem.status in (409, 415, 422) else problem.status
    return answer({"status": "error", "error": problem.detail}, status, problem.headers)


def took_ms(started: float) -> int:
    """Return the milliseconds since ``started`` (of ``time.perf_counter``)."""
    return round((time.perf_counter() - started) * 1000)
