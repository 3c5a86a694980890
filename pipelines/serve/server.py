"""The process: bind, say where, serve, stop gracefully."""

from __future__ import annotations

import gc
import signal
import socket
import sys
from typing import Any

import uvicorn

from streamfold.core.errors import ConfigError, StreamfoldError
from streamfold.core.settings import Settings
from streamfold.pipelines.node import Node
from streamfold.pipelines.serve.app import create_app
from streamfold.pipelines.serve.auth import check_binding
from streamfold.pipelines.serve.logs import configure_logs

_GRACE_S = 10


class Server(uvicorn.Server):
    """Uvicorn that prints where it listens: with port 0 nobody else knows."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # Modules, classes and routes stay to the end: no full collection need go through them, .1 s each time.
        gc.collect()
        gc.freeze()
        for server in getattr(self, "servers", ()):
            for bound in server.sockets:
                host, port = bound.getsockname()[:2]
                print(f"streamfold serves on http://{f'[{host}]' if ':' in host else host}:{port}", file=sys.stderr)
        sys.stderr.flush()


def run(settings: Settings, *, node: Node | None = None) -> None:
    """Serve until SIGTERM or SIGINT.

    Raises
    ------
    ConfigError : listening beyond loopback without keys, or a port that cannot be had.
    StreamfoldError : the ledger is held, cannot be reached, or the views cannot be recovered.
    """
    configure_logs(settings.log)
    _check_port(settings.serve.host, settings.serve.port)
    node = node or Node(settings)
    try:
        check_binding(settings.serve, node.ledger)
        app = create_app(node)
        server = Server(
            uvicorn.Config(
                app,
                host=settings.serve.host,
                port=settings.serve.port,
                access_log=False,
                log_config=None,
                lifespan="on",
                server_header=False,
                timeout_graceful_shutdown=_GRACE_S,
            )
        )
        service = app.state.service

        def stop() -> None:
            server.should_exit = True

        service.on_failure = stop
        # Uvicorn raises the signal again once it has stopped; the default would end us before the node is closed.
        before: Any = signal.signal(signal.SIGTERM, lambda *_: None)
        try:
            server.run()
        except KeyboardInterrupt:
            pass
        finally:
            signal.signal(signal.SIGTERM, before)
        if service.failure is not None:
            failure = service.failure
            raise failure if isinstance(failure, StreamfoldError) else StreamfoldError(f"cannot serve: {failure!r}")
    finally:
        node.close()


def _check_port(host: str, port: int) -> None:
    """Fail before the ledger is opened, and with our words: uvicorn would log and exit."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {host}:{port}: {error.strerror}; choose another with --port"
            ) from error
