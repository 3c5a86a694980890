"""Warnings and errors are counted by the name of their log line, whatever the line says beside it."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry

from streamfold.pipelines.logged_errors import LoggedErrors


@pytest.fixture
def registry() -> Iterator[CollectorRegistry]:
    made = CollectorRegistry()
    handler, logger = LoggedErrors(made), logging.getLogger("streamfold")
    logger.addHandler(handler)
    yield made
    logger.removeHandler(handler)


def count(registry: CollectorRegistry, name: str) -> float | None:
    return registry.get_sample_value("streamfold_errors_total", {"error": name})


def test_a_line_is_counted_by_its_first_word(registry: CollectorRegistry) -> None:
    log = logging.getLogger("streamfold.worker")
    for seconds in (0.1, 0.2):
        log.warning("ledger_unavailable retry_s=%.1f", seconds)
    log.error("group_halted workspace=%s", "shop")
    log.info("worker_started role=%s", "fold")
    assert (count(registry, "ledger_unavailable"), count(registry, "group_halted")) == (2, 1)
    assert count(registry, "worker_started") is None
    when = {"error": "group_halted"}
    assert (registry.get_sample_value("streamfold_last_error_timestamp_seconds", when) or 0) > 1_700_000_000


def test_what_has_no_name_makes_no_label_of_its_own(registry: CollectorRegistry) -> None:
    log = logging.getLogger("streamfold.plugins.theirs")
    log.warning("Could not read /data/1")
    log.warning(f"Could not read /data/{2}")
    log.error({"event": "job_failed", "job_id": "7"})
    assert (count(registry, "other"), count(registry, "job_failed")) == (2, 1)
