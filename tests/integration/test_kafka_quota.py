"""Quotas of workspaces that share one ingest process: who is above its own waits, the others go on."""

from __future__ import annotations

import json
import threading
import uuid
from pathlib import Path

from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient, NewTopic

from streamfold.core.ledger.abc import Quotas
from streamfold.core.settings import KafkaSettings, Settings, TopicSettings
from streamfold.pipelines.ingest import Ingest
from streamfold.pipelines.node import Node
from tests.waiting import LONG_S, until


def test_a_workspace_above_its_quota_is_paused_and_resumed(tmp_path: Path, kafka_url: str) -> None:
    names = {workspace: f"{workspace}-{uuid.uuid4().hex[:8]}" for workspace in ("small", "free")}
    admin = KafkaAdminClient(bootstrap_servers=kafka_url)
    admin.create_topics([NewTopic(name, 1, 1) for name in names.values()])
    admin.close()
    producer = KafkaProducer(bootstrap_servers=kafka_url, linger_ms=5)
    for number in range(1000):
        value = json.dumps({"item_id": f"i{number}"}).encode()
        for name in names.values():
            producer.send(name, value)
    producer.flush(timeout=LONG_S)
    producer.close(timeout=5)
    topics = {names[w]: TopicSettings(workspace=w, kind="item", decoder="json") for w in names}
    node = Node(
        Settings(
            data=tmp_path,
            policies={"trending": {}},
            kafka=KafkaSettings(bootstrap=kafka_url, topics=topics, poll_records=100),
        )
    )
    node.ledger.set_quotas("small", Quotas(events_per_s=0.001), actor="test", at_us=1)
    ingest = Ingest(node)
    thread = threading.Thread(target=ingest.run, daemon=True)
    thread.start()
    try:
        until(lambda: node.ledger.head("free") == 1000)
        until(lambda: ingest.paused.get("small") == "events_per_s")
        taken = node.ledger.head("small")
        assert 0 < taken <= 100  # one poll, then nothing
        node.ledger.set_quotas("small", Quotas(bytes=0), actor="test", at_us=1)
        until(lambda: ingest.paused.get("small") == "bytes")
        assert node.ledger.head("small") == taken
        node.ledger.set_quotas("small", Quotas(), actor="test", at_us=1)
        until(lambda: node.ledger.head("small") == 1000)
        assert sum(state.duplicates for state in node.ledger.intakes("small")) == 0
    finally:
        ingest.stopping.set()
        thread.join(timeout=LONG_S)
        node.close()
