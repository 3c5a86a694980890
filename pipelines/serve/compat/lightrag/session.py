"""Who is asking, and is anybody there: ``health``, ``auth-status``, ``login``.

Our keys take the part of LightRAG's accounts: the password of a login is a key, whatever the user is called, and the
token that it gives is the key itself.
"""

from __future__ import annotations

from typing import Any

from starlette.responses import Response

from streamfold.core.policy import ContextRetriever
from streamfold.pipelines.serve.auth import GUEST
from streamfold.pipelines.serve.call import Call, answer
from streamfold.pipelines.serve.compat.lightrag.dialect import API_VERSION, Refused, endpoint, own_version
from streamfold.pipelines.serve.compat.lightrag.form import read_form, required
from streamfold.pipelines.serve.compat.lightrag.shelf import reading
from streamfold.pipelines.serve.problems import Problem

_DISABLED = "Authentication is disabled. Using guest access."


def _guest() -> dict[str, Any]:
    return {"access_token": GUEST, "token_type": "bearer", "message": _DISABLED}


def _about(call: Call) -> dict[str, Any]:
    return {
        "auth_mode": "disabled" if call.service.keys.is_open else "enabled",
        "core_version": own_version(),
        "api_version": API_VERSION,
        "webui_title": None,
        "webui_description": None,
        "ai_content_notice_enabled": False,
    }


async def auth_status(call: Call) -> Response:
    """Whether a key is asked for; a guest's token where none is."""
    if not call.service.keys.is_open:
        return answer({"auth_configured": True, **_about(call)})
    return answer({"auth_configured": False} | _guest() | _about(call))


async def login(call: Call) -> Response:
    """Give the key back as a token, if it is one."""
    form = await read_form(call)
    required(form, "username")
    password = required(form, "password").value.decode("utf-8", "replace").strip()
    if call.service.keys.is_open:
        return answer(_guest() | _about(call))
    try:
        call.service.keys.principal({"x-api-key": password})
    except Problem:
        raise Refused(401, "Incorrect credentials") from None
    return answer({"access_token": password, "token_type": "bearer"} | _about(call))


async def health(call: Call) -> Response:
    """Whether it answers; to who has a key also what it is made of."""
    value = {
        "status": "healthy",
        "webui_available": False,
        "workspace_available": False,
        "api_docs_available": False,
        "pipeline_busy": False,
        "pipeline_active": False,
    } | _about(call)
    try:
        call.principal = call.service.keys.principal(call.request.headers)
    except Problem:
        return answer(value)
    if not call.service.ready:
        return answer(value | {"status": "starting"})
    async with call.service.using(call.workspace):
        busy = bool(await reading(call, lambda shelf: shelf.waiting()))
        value |= {"pipeline_busy": busy, "pipeline_active": busy, **_configuration(call)}
    return answer(value)


def _configuration(call: Call) -> dict[str, Any]:
    settings = call.service.settings
    encoder = settings.backends.get("encoder", {})
    graphs = [member.runtime.instance.name for _, member in call.view.servers(ContextRetriever)]
    stored = {f"{kind}_storage": "streamfold" for kind in ("kv", "doc_status", "vector")}
    return {
        "working_directory": str(settings.data),
        "input_directory": "",
        "configuration": {
            "llm_binding": "none",
            "llm_binding_host": "",
            "llm_model": "",
            "embedding_binding": "streamfold",
            "embedding_binding_host": "",
            "embedding_model": str(encoder.get("use", "")),
            "graph_storage": graphs[0] if graphs else "",
            **stored,
            "workspace": call.workspace,
            "enable_rerank": False,
            "max_graph_nodes": 1000,
        },
    }


ENDPOINTS = [
    endpoint("GET", "/health", health, "Whether it answers", scope=None),
    endpoint("GET", "/auth-status", auth_status, "Whether a key is asked for", scope=None),
    endpoint(
        "POST", "/login", login, "Log in: the password is a key", scope=None,
        media=("application/x-www-form-urlencoded",), example={"username": "anyone", "password": "sf_…"},
    ),
]  # fmt: skip
