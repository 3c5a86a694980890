"""RabbitMQ as the broker of wake-ups: with a sweep every ten minutes only its messages make work happen."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from streamfold.core.events import NewEvent
from streamfold.core.settings import Settings, load_settings
from streamfold.pipelines import tasks
from streamfold.pipelines.node import Node
from tests.waiting import LONG_S, until


class Stand:
    """Workers of their own process, and a node of the test that appends and publishes as the API does."""

    def __init__(self, folder: Path, postgres: str, broker: str) -> None:
        self.file = folder / "streamfold.toml"
        self.log = folder / "worker.log"
        self.file.write_text(f"""
data = "{folder}/data"
[backends.encoder]
use = "hashing"
[backends.chunker]
use = "sentences"
[policies.trending]
[policies.vector_index]
[ledger]
url = "{postgres}"
[broker]
url = "{broker}"
[fold]
sweep_s = 600.0
[log]
format = "json"
""")
        self.settings: Settings = load_settings(self.file)
        self.node = Node(self.settings)
        self.node.ledger.ensure_workspace("default")
        self.sent = 0
        self.workers: list[subprocess.Popen[bytes]] = []

    def start(self, *roles: str) -> None:
        for role in roles:
            command = [sys.executable, "-m", "streamfold.pipelines.worker", "--config", str(self.file), "--role", role]
            with self.log.open("ab") as log:
                self.workers.append(subprocess.Popen(command, stderr=log, stdout=log, env=dict(os.environ)))

    def append(self) -> None:
        """Log a document and an interaction, and say so through the broker."""
        self.sent += 1
        accept, n = self.node.acceptor.accept_data, self.sent
        click = {"user_id": "u", "item_id": "i", "action": "click"}
        events: list[NewEvent] = [
            accept("document.upserted", {"document_id": f"d{n}", "text": f"Text {n}."}, id=f"d{n}", source="t"),
            accept("interaction.observed", click, id=f"c{n}", source="t"),
        ]
        done = self.node.ledger.append("default", events, recorded_us=self.node.context.clock.now_us())
        tasks.publish_wake(self.settings, "default", done.head, [event.type for event in events])

    def folded(self) -> bool:
        marks = self.node.ledger.watermarks("default")
        head = self.node.ledger.head("default")
        return len(marks) == 2 and all(mark == head for mark, _ in marks.values())

    def works(self) -> None:
        """Send until what was sent is folded after its one message, twice: a worker that starts looks by itself, and
        may hear nothing before its consumers have connected."""

        def heard() -> bool:
            self.append()
            end = time.monotonic() + 20
            while not self.folded() and time.monotonic() < end:
                time.sleep(0.05)
            time.sleep(0.5)  # it looks once more after a fold
            return self.folded()

        until(lambda: heard() and heard(), lambda: self.log.read_text()[-6000:])

    def close(self) -> None:
        for worker in self.workers:
            if worker.poll() is None:
                worker.kill()
                worker.wait(timeout=10)
        self.node.close()


def test_rabbitmq_carries_the_wake_ups_and_may_crash(tmp_path: Path, own_service: Any, postgres_database: str) -> None:
    broker = own_service.rabbitmq()
    stand = Stand(tmp_path, postgres_database, broker.url)
    try:
        stand.start("fold", "prepare")
        stand.works()
        broker.kill()
        stand.append()  # its wake-up is lost with the broker
        broker.restart()
        stand.works()
        for worker in stand.workers:
            worker.send_signal(signal.SIGTERM)
        assert [worker.wait(timeout=LONG_S) for worker in stand.workers] == [0, 0]
        owners = [state.owner for state in stand.node.ledger.groups("default")]
        assert owners == [None, None]  # leases were given back
    finally:
        stand.close()
