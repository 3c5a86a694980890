"""Is anybody there, and the metrics, which are ours."""

from __future__ import annotations

from starlette.responses import PlainTextResponse, Response

from streamfold.pipelines.serve.call import Call
from streamfold.pipelines.serve.compat.metarank.dialect import endpoint
from streamfold.pipelines.serve.health import metrics
from streamfold.pipelines.serve.problems import unavailable


async def health(call: Call) -> Response:
    """Answer with nothing, as Metarank does, once this replica can answer."""
    if not call.service.ready:
        raise unavailable("the views are being recovered", 1)
    return PlainTextResponse("")


ENDPOINTS = [
    endpoint("GET", "/health", health, "This replica can answer", scope=None, errors=(503,)),
    endpoint("GET", "/metrics", metrics, "Metrics in Prometheus' text form", scope="admin", view=False),
]
