"""A Kafka consumer of ours, and what kafka-python does not say in its public interface."""

from __future__ import annotations

from typing import Any

from kafka import KafkaConsumer

from streamfold.core.settings import KafkaSettings


def connect(kafka: KafkaSettings) -> Any:
    """Connect; raises ``KafkaError`` when no broker answers."""
    options: dict[str, Any] = {
        "group_id": kafka.group,
        "enable_auto_commit": False,
        "auto_offset_reset": "earliest",
        "allow_auto_create_topics": False,
        "max_poll_records": kafka.poll_records,
        "max_partition_fetch_bytes": 4 << 20,
        "metadata_max_age_ms": 5000,
        "reconnect_backoff_max_ms": 2000,
        "isolation_level": "read_committed",
        "metrics_enabled": False,
        "bootstrap_timeout_ms": 10_000,
    }
    return KafkaConsumer(bootstrap_servers=kafka.bootstrap.split(","), **{**options, **kafka.security})


def position(consumer: Any, partition: Any) -> int | None:
    """The offset that is fetched next, if it is known; ``consumer.position`` would ask the broker where it is not."""
    found = consumer._subscription.assignment[partition].position
    return None if found is None else int(found.offset)
