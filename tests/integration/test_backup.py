"""Backups under load, restored: nothing that was backed up is lost, what came later comes again, and once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from streamfold.core.fold import verify_group
from streamfold.core.ledger import open_ledger, restore_ledger
from streamfold.core.settings import load_settings
from streamfold.pipelines.cli import main
from streamfold.pipelines.cli.subservice import SubService
from streamfold.pipelines.node import Node
from tests.waiting import LONG_S, until


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SubService]:
    running = SubService(tmp_path_factory.mktemp("backup"), encoder="hashing").start()
    yield running
    running.stop()


def event(number: int) -> dict[str, Any]:
    made = {"specversion": "1.0", "id": f"e{number}", "source": "load", "time": "2026-01-01T00:00:00Z"}
    if number % 10 == 0:
        data = {"document_id": f"d{number % 70}", "text": f"Text {number} tells of {number * number}."}
        return made | {"type": "document.upserted", "data": data}
    data = {"user_id": f"u{number % 7}", "item_id": f"i{number % 9}", "action": "click"}
    return made | {"type": "interaction.observed", "data": data}


class Sending:
    """A client that sends batches until told to stop."""

    def __init__(self, url: str) -> None:
        self.sent: list[dict[str, Any]] = []
        self._url = url
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Sending:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=120, trust_env=False) as client:
            while not self._stop.is_set():
                batch = [event(len(self.sent) + i) for i in range(20)]
                assert client.post("/v1/events", json=batch).json()["accepted"] == 20
                self.sent += batch


def test_a_backup_under_load_restores_to_a_state_that_goes_on(
    service: SubService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STREAMFOLD_URL", service.url)
    target = tmp_path / "kept" / "one"
    with Sending(service.url) as sending:
        until(lambda: len(sending.sent) >= 200)
        assert main(["backup", str(target), "--json", "--quiet"]) == 0
        backed_up = json.loads(capsys.readouterr().out)["result"]["positions"]["default"]
        at_backup = len(sending.sent)
        until(lambda: len(sending.sent) >= at_backup + 200)
    sent = sending.sent
    assert 200 <= backed_up < len(sent)

    monkeypatch.delenv("STREAMFOLD_URL")
    other = SubService(tmp_path / "other", encoder="hashing")
    monkeypatch.chdir(other.folder)
    assert main(["restore", str(target)]) == 0
    assert f"default at {backed_up}" in capsys.readouterr().out
    assert main(["restore", str(target)]) == 1
    assert "already there" in capsys.readouterr().err
    other.start()
    try:
        with httpx.Client(base_url=other.url, timeout=120, trust_env=False) as client:
            again = [client.post("/v1/events?wait=visible", json=sent[i : i + 500]) for i in range(0, len(sent), 500)]
            assert sum(answer.json()["duplicates"] for answer in again) == backed_up
            assert client.get("/v1/status").json()["position"] == len(sent)
    finally:
        other.stop()
    node = Node(load_settings(other.folder / "streamfold.toml", data=other.folder / "data"))
    try:
        rows = node.ledger.read("default", 0, 100_000).rows
        counts = Counter(node.registry.event_types.decode(row).id for row in rows)
        assert counts == Counter(one["id"] for one in sent)
        for group in node.context.groups("default", fresh=True):
            assert verify_group(node.context, "default", group).equal
    finally:
        node.close()


@pytest.mark.parametrize("target", ["", " ", "relative/../../out", "a\0b", "{data}/backups"])
def test_bad_targets_are_problems(service: SubService, target: str) -> None:
    body = {"target": target.format(data=service.folder / "data")}
    answer = httpx.post(f"{service.url}/v1/backups", json=body, trust_env=False)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-value")


def test_a_relative_target_lies_below_the_data_folder(service: SubService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMFOLD_URL", service.url)
    assert main(["backup", "nightly/1", "--quiet"]) == 0
    assert (service.folder / "data" / "backups" / "nightly" / "1" / "manifest.json").is_file()
    assert main(["backup", "nightly/1", "--quiet"]) == 1, "it is there already"


def test_what_is_no_backup_is_not_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["restore", str(tmp_path)]) == 1
    assert not (tmp_path / ".streamfold" / "ledger.db").exists()


# -- Kafka, PostgreSQL ------------------------------------------------------------------------------------------------
def _settings(folder: Path, name: str, database: str, kafka: str, topic: str) -> Path:
    file = folder / f"{name}.toml"
    file.write_text(
        f'data = "{folder}/{name}"\n[backends.encoder]\nuse = "hashing"\n[backends.chunker]\nuse = "sentences"\n'
        f'[ledger]\nurl = "{database}"\n[fold]\nsweep_s = 0.3\nlease_s = 2.0\n[kafka]\nbootstrap = "{kafka}"\n'
        f"[kafka.topics.{topic}]\n"
    )
    return file


def _ingest(config: Path, log: Path) -> subprocess.Popen[bytes]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("STREAMFOLD_")}
    with log.open("ab") as out:
        command = [sys.executable, "-m", "streamfold.pipelines.ingest", "--config", str(config)]
        return subprocess.Popen(command, stdout=out, stderr=out, env=environment)


def _send(kafka: str, topic: str, numbers: range) -> None:
    from kafka import KafkaProducer

    producer = KafkaProducer(bootstrap_servers=kafka, linger_ms=5)
    headers = [("content-type", b"application/cloudevents+json; charset=utf-8")]
    for number in numbers:
        producer.send(topic, value=json.dumps(event(number)).encode(), headers=headers)
    producer.flush(timeout=LONG_S)
    producer.close(timeout=5)


def test_after_a_restore_kafka_goes_on_at_the_ledgers_offset(
    tmp_path: Path, postgres_database: str, kafka_url: str
) -> None:
    import sqlalchemy
    from kafka.admin import KafkaAdminClient, NewTopic

    topic = f"backup-{uuid.uuid4().hex[:8]}"
    admin = KafkaAdminClient(bootstrap_servers=kafka_url)
    admin.create_topics([NewTopic(topic, 2, 1)])
    admin.close()
    second = sqlalchemy.make_url(postgres_database).set(database=f"restored_{uuid.uuid4().hex[:12]}")
    databases = sqlalchemy.create_engine(
        postgres_database, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.pool.NullPool
    )
    with databases.connect() as connection:
        connection.execute(sqlalchemy.text(f'create database "{second.database}"'))
    second_url = second.render_as_string(hide_password=False)
    log, running = tmp_path / "ingest.log", []
    ledger = open_ledger(postgres_database)
    ledger.ensure_workspace("default")
    try:
        running.append(_ingest(_settings(tmp_path, "one", postgres_database, kafka_url, topic), log))
        sending = threading.Thread(target=_send, args=(kafka_url, topic, range(3000)))
        sending.start()
        until(lambda: ledger.head("default") > 200, log.read_text)
        backed_up = ledger.backup(tmp_path / "kept")["positions"]["default"]  # while records come in
        sending.join()
        until(lambda: ledger.head("default") == 3000, log.read_text)
        running[0].send_signal(signal.SIGTERM)
        assert running[0].wait(LONG_S) == 0
        assert 200 < backed_up <= 3000

        restore_ledger(tmp_path / "kept", second_url)
        _send(kafka_url, topic, range(3000, 3100))
        config = _settings(tmp_path, "two", second_url, kafka_url, topic)
        node = Node(load_settings(config))
        try:
            assert node.ledger.head("default") == backed_up
            running.append(_ingest(config, log))
            until(lambda: node.ledger.head("default") == 3100, log.read_text)
            states = node.ledger.intakes("default")
            assert sum(state.next_offset for state in states) == 3100
            assert sum(state.duplicates for state in states) == 0, "it went on where the ledger stood"
            rows = node.ledger.read("default", 0, 10_000).rows
            counts = Counter(node.registry.event_types.decode(row).id for row in rows)
            assert counts == Counter(f"e{n}" for n in range(3100))
            node.start_serving()
            runner = _worker(config, log)
            running.append(runner)
            until(lambda: {m for m, _ in node.ledger.watermarks("default").values()} == {3100}, log.read_text)
            for group in node.context.groups("default", fresh=True):
                assert verify_group(node.context, "default", group).equal
        finally:
            node.close()
    finally:
        for process in running:
            process.kill()
            process.wait()
        ledger.close()
        with databases.connect() as connection:
            connection.execute(sqlalchemy.text(f'drop database "{second.database}" with (force)'))
        databases.dispose()


def _worker(config: Path, log: Path) -> subprocess.Popen[bytes]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("STREAMFOLD_")}
    with log.open("ab") as out:
        command = [sys.executable, "-m", "streamfold.pipelines.worker", "--config", str(config)]
        return subprocess.Popen(command, stdout=out, stderr=out, env=environment)
