"""The REST service: events in, answers out, and what an operator needs; the contract is ``docs``' v1 page.

``run(settings)`` is the process, ``create_app(node)`` the ASGI application around a node that somebody else owns
(tests, an embedding program). Routes are plain functions ``(Call) -> Response`` declared as ``Endpoint`` s, grouped by
topic; what they share (keys, request ids, problems, metrics, logs) is in one place around them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastapi import FastAPI

    from streamfold.core.settings import Settings
    from streamfold.pipelines.node import Node

__all__ = ["create_app", "run"]


def run(settings: Settings, **kwargs: Any) -> None:
    """Serve until SIGTERM or SIGINT; raises ``StreamfoldError`` when the service cannot start."""
    from streamfold.pipelines.serve.server import run as serve

    serve(settings, **kwargs)


def create_app(node: Node) -> FastAPI:
    """Make the application of a node; it starts serving the node when the application starts."""
    from streamfold.pipelines.serve.app import create_app as create

    return create(node)
