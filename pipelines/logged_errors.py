"""Errors as metrics: whatever a process tells of as a warning or an error is counted by the name of its log line."""

from __future__ import annotations

import logging
import re

from prometheus_client import CollectorRegistry, Counter, Gauge

_NAME = re.compile(r"[a-z0-9]+(?:_[a-z0-9]+)+")


class LoggedErrors(logging.Handler):
    """Counts what streamfold's loggers say, as ``ledger_unavailable``, from the warnings on.

    The name is the first word of the message before anything is put into it, so there are no more than in the code.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        super().__init__(logging.WARNING)
        self._count = Counter(
            "streamfold_errors", "Warnings and errors by the name of their log line", ["error"], registry=registry
        )
        self._last = Gauge(
            "streamfold_last_error_timestamp_seconds", "When it was logged last", ["error"], registry=registry
        )

    def emit(self, record: logging.LogRecord) -> None:
        said = record.msg.get("event", "") if isinstance(record.msg, dict) else record.msg
        found = _NAME.match(str(said))
        name = found[0] if found else "other"
        self._count.labels(name).inc()
        self._last.labels(name).set(record.created)
