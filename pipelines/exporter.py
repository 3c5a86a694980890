"""``GET /metrics`` of processes that serve nothing else: ingest and workers; off unless a port is given."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server

from streamfold.core.errors import ConfigError
from streamfold.core.settings import MetricsSettings
from streamfold.pipelines.logged_errors import LoggedErrors

log = logging.getLogger("streamfold.metrics")


@contextmanager
def exporting(settings: MetricsSettings) -> Iterator[CollectorRegistry]:
    """Yield a registry, which a thread answers from while this is open, errors that were logged included.

    Raises
    ------
    ConfigError : the address cannot be bound.
    """
    registry = CollectorRegistry()
    if settings.port is None:
        yield registry
        return
    try:
        server, thread = start_http_server(settings.port, settings.host, registry)
    except OSError as error:
        raise ConfigError(
            f"[metrics] {settings.host}:{settings.port} cannot be bound ({error}): each process needs a port of its own"
        ) from error
    errors = LoggedErrors(registry)
    logger = logging.getLogger("streamfold")
    logger.addHandler(errors)
    log.info("metrics_at url=http://%s:%d/metrics", settings.host, server.server_port)
    try:
        yield registry
    finally:
        logger.removeHandler(errors)
        server.shutdown()
        server.server_close()
        thread.join()
