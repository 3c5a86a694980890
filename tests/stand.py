"""Real processes of the distributed shape on real services, and what a test sends to them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from streamfold.core.settings import Settings, load_settings
from streamfold.pipelines.node import Node
from tests import waiting
from tests.waiting import LONG_S

Record = tuple[bytes | None, bytes | None, list[tuple[str, bytes]]]
"""Key, value and headers."""

STRUCTURED = [("content-type", b"application/cloudevents+json; charset=utf-8")]


class Stand:
    """A settings file on real services, processes started from it, and a node of the test to look at the result."""

    def __init__(self, folder: Path, kafka: str, postgres: str, redis: str) -> None:
        self.folder = folder
        self.kafka = kafka
        self.topic = f"shop-{uuid.uuid4().hex[:8]}"
        self.file = folder / "streamfold.toml"
        self.running: list[subprocess.Popen[bytes]] = []
        self._nodes: list[Node] = []
        self._producer: Any = None
        self.file.write_text(f"""
data = "{folder}/data"
[backends.encoder]
use = "hashing"
[backends.chunker]
use = "sentences"
[policies.trending]
[policies.graph_index]
[ledger]
url = "{postgres}"
[broker]
url = "{redis}"
[fold]
lease_s = 2.0
sweep_s = 0.5
[log]
format = "json"
[kafka]
bootstrap = "{kafka}"
[kafka.topics.{self.topic}]
kind = "item"
[kafka.topics.{self.topic}-docs]
kind = "document"
decoder = "json"
[kafka.topics.{self.topic}-rows]
decoder = "json"
source = "/rows"
options = {{ type = "interaction.observed", id = "{{n}}", data = {{ user_id = "who", item_id = "what", action = {{ value = "click" }} }} }}
""")  # noqa: E501

    @property
    def settings(self) -> Settings:
        return load_settings(self.file)

    def start(self, module: str, *words: str, **environ: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", f"streamfold.pipelines.{module}", "--config", str(self.file), *words]
        with (self.folder / f"{len(self.running)}-{module}.log").open("wb") as log:
            process = subprocess.Popen(command, stderr=log, stdout=log, env={**os.environ, **environ})
        self.running.append(process)
        return process

    def stop(self, process: subprocess.Popen[bytes]) -> int:
        process.send_signal(signal.SIGTERM)
        return process.wait(timeout=LONG_S)

    def create_topics(self, partitions: int = 1) -> None:
        from kafka.admin import KafkaAdminClient, NewTopic

        admin = KafkaAdminClient(bootstrap_servers=self.kafka)
        names = [self.topic, f"{self.topic}-docs", f"{self.topic}-rows"]
        try:
            admin.create_topics([NewTopic(name, partitions, 1) for name in names])
        finally:
            admin.close()

    def send(self, *records: Record, topic: str | None = None, partition: int | None = None) -> None:
        if self._producer is None:
            from kafka import KafkaProducer

            self._producer = KafkaProducer(bootstrap_servers=self.kafka, linger_ms=5)
        for key, value, headers in records:
            self._producer.send(topic or self.topic, value=value, key=key, headers=headers, partition=partition)
        self._producer.flush(timeout=LONG_S)

    def node(self) -> Node:
        node = Node(self.settings)
        self._nodes.append(node)
        return node

    def logs(self) -> str:
        return "\n".join(f"--- {p.name}\n{p.read_text()[-4000:]}" for p in sorted(self.folder.glob("*.log")))

    def close(self) -> None:
        for process in self.running:
            if process.poll() is None:
                process.kill()
                process.wait(timeout=10)
        if self._producer is not None:
            self._producer.close(timeout=5)
        for node in self._nodes:
            node.close()


def until(what: str, ready: Callable[[], Any], stand: Stand) -> Any:
    """Wait for what is ready; what the processes logged is told where it never is."""
    return waiting.until(ready, lambda: f"{what}\n{stand.logs()}")


def click(number: int, item: str = "lamp", **more: Any) -> Record:
    event = {
        "specversion": "1.0",
        "id": f"click-{number}",
        "source": "/shop",
        "type": "interaction.observed",
        "time": "2026-01-01T00:00:00Z",
        "data": {"user_id": f"user-{number % 7}", "item_id": item, "action": "click"},
        **more,
    }
    return (None, json.dumps(event).encode(), STRUCTURED)
