"""The intake against a real broker that takes nobody without TLS and SASL."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaProducer
from kafka.admin import KafkaAdminClient, NewTopic

from streamfold.core.settings import load_settings
from streamfold.pipelines.node import Node
from streamfold.pipelines.services import SecureKafka
from tests.waiting import LONG_S, until

TOPIC = "secured"


def settings_file(folder: Path, kafka: SecureKafka, postgres: str, **security: str) -> Path:
    options = "\n".join(f'{name} = "{value}"' for name, value in security.items())
    file = folder / "streamfold.toml"
    file.write_text(f"""
data = "{folder}/data"
[policies.trending]
[ledger]
url = "{postgres}"
[kafka]
bootstrap = "{kafka.url}"
[kafka.topics.{TOPIC}]
kind = "item"
decoder = "json"
[kafka.security]
{options}
""")
    return file


def start(file: Path, **environ: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "streamfold.pipelines.ingest", "--config", str(file)]
    with (file.parent / "ingest.log").open("ab") as log:
        return subprocess.Popen(command, stderr=log, stdout=log, env={**os.environ, **environ})


def send(kafka: SecureKafka, first: int, n: int, **options: Any) -> None:
    producer = KafkaProducer(bootstrap_servers=kafka.url, **options)
    for number in range(first, first + n):
        producer.send(TOPIC, json.dumps({"item_id": f"i{number}"}).encode())
    producer.flush(timeout=LONG_S)
    producer.close(timeout=5)


def test_events_come_in_through_tls_and_sasl_and_by_no_other_way(
    tmp_path: Path, own_service: Any, postgres_database: str
) -> None:
    kafka = own_service.secure_kafka()
    options = kafka.client_options()
    admin = KafkaAdminClient(bootstrap_servers=kafka.url, **options)
    admin.create_topics([NewTopic(TOPIC, 2, 1)])
    admin.close()
    send(kafka, 0, 50, **options)

    # The broker speaks no plain Kafka there, and its certificate is trusted by nobody who was not told to.
    with socket.create_connection(("127.0.0.1", kafka.port), timeout=60) as plain:
        plain.sendall(struct.pack(">ihhih?", 11, 3, 4, 1, -1, False))
        assert plain.recv(64)[:1] in (b"", b"\x15")  # closed, or a TLS alert
    with socket.create_connection(("127.0.0.1", kafka.port), timeout=60) as plain, pytest.raises(ssl.SSLError):
        ssl.create_default_context().wrap_socket(plain, server_hostname="127.0.0.1").close()

    # The password of the settings is wrong, that of the environment right: secrets need not be in the file.
    file = settings_file(tmp_path, kafka, postgres_database, **kafka.client_options(password="wrong"))
    node, log = Node(load_settings(file)), tmp_path / "ingest.log"
    ingest = start(file)
    try:
        until(lambda: "kafka_unavailable" in log.read_text(), log.read_text)
        assert node.ledger.head("default") == 0
        ingest.send_signal(signal.SIGTERM)
        assert ingest.wait(timeout=LONG_S) == 0

        ingest = start(file, STREAMFOLD_KAFKA__SECURITY__SASL_PLAIN_PASSWORD=options["sasl_plain_password"])
        until(lambda: node.ledger.head("default") == 50, log.read_text)
        send(kafka, 50, 50, **kafka.client_options("PLAIN"))
        until(lambda: node.ledger.head("default") == 100, log.read_text)
        kafka.kill()
        kafka.restart()
        send(kafka, 100, 20, **options)
        until(lambda: node.ledger.head("default") == 120, log.read_text)
        assert sum(state.duplicates for state in node.ledger.intakes("default")) == 0
        ingest.send_signal(signal.SIGTERM)
        assert ingest.wait(timeout=LONG_S) == 0
    finally:
        if ingest.poll() is None:
            ingest.kill()
            ingest.wait(timeout=10)
        node.close()
    assert options["sasl_plain_password"] not in log.read_text()
