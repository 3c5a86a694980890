"""Is anybody there; asked without a key."""

from __future__ import annotations

from starlette.responses import Response

from streamfold.pipelines.serve.call import Call, answer
from streamfold.pipelines.serve.compat.gorse.dialect import endpoint

_STATES = {
    "DataStoreError": None, "CacheStoreError": None, "DataStoreConnected": True, "CacheStoreConnected": True,
}  # fmt: skip


async def live(call: Call) -> Response:
    """The process answers."""
    return answer({"Ready": call.service.ready} | _STATES)


async def ready(call: Call) -> Response:
    """This replica can answer."""
    return answer({"Ready": call.service.ready} | _STATES, 200 if call.service.ready else 503)


ENDPOINTS = [
    endpoint("GET", "/health/live", live, "The process answers", scope=None),
    endpoint("GET", "/health/ready", ready, "This replica can answer", scope=None, errors=(503,)),
]
