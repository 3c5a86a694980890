"""The services themselves: they answer, survive a crash with their data, and leave nothing behind."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
import sqlalchemy

from streamfold.pipelines.services import SERVICES, Redis, ServiceError
from streamfold.pipelines.services.__main__ import main


def test_postgres_keeps_its_data_through_a_crash(own_service):
    postgres = own_service.postgres()
    url = postgres.url.replace("+psycopg", "")
    with psycopg.connect(url) as connection:
        connection.execute("create table kept (value int)")
        connection.execute("insert into kept values (7)")
    port, data = postgres.port, postgres.data
    postgres.kill()
    assert postgres.pid() is None
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)
    postgres.restart()
    assert postgres.port == port
    with psycopg.connect(url) as connection:
        assert connection.execute("select value from kept").fetchall() == [(7,)]
        assert connection.execute("show fsync").fetchone() == ("on",)
        assert connection.execute("show listen_addresses").fetchone() == ("127.0.0.1",)
    postgres.remove()
    assert not data.exists()
    assert not postgres.folder.exists()


def test_each_test_has_a_database_of_its_own(postgres_database):
    engine = sqlalchemy.create_engine(postgres_database)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("create table once (value int)"))
        assert connection.scalar(sqlalchemy.text("select count(*) from once")) == 0
    engine.dispose()


@pytest.mark.slow
def test_kafka_keeps_its_data_through_a_crash(own_service):
    from kafka import KafkaConsumer, KafkaProducer

    kafka = own_service.kafka()
    producer = KafkaProducer(bootstrap_servers=kafka.url)
    for number in range(100):
        producer.send("kept", b"%d" % number)
    producer.flush()
    producer.close()
    kafka.kill()
    kafka.restart()
    consumer = KafkaConsumer(
        "kept", bootstrap_servers=kafka.url, auto_offset_reset="earliest", consumer_timeout_ms=300_000
    )
    values = [int(next(consumer).value) for _ in range(100)]
    consumer.close()
    assert values == list(range(100))


def test_session_kafka_answers(kafka_url):
    host, _, port = kafka_url.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=60):
        pass


def test_one_command_starts_and_another_stops(tmp_path, redis_url, capsys):
    folder, settings = tmp_path / "services", tmp_path / "env"
    words = ["--dir", str(folder), "--only", "redis"]
    argv = [sys.executable, "-m", "streamfold.pipelines.services"]
    up = subprocess.run([*argv, "up", *words, "--env-file", str(settings)], capture_output=True, text=True, check=True)
    redis = Redis(folder)
    try:
        assert re.fullmatch(r"STREAMFOLD_BROKER__URL=redis://127\.0\.0\.1:\d+/0\n", up.stdout)
        assert settings.read_text() == up.stdout
        assert redis.url in up.stdout
        assert redis.url != redis_url
        pid = redis.pid()
        assert redis.start().pid() == pid  # it runs: nothing to do
        assert main(["status", *words]) == 0
        assert main(["down", *words]) == 0
        assert redis.pid() is None
        assert main(["status", *words]) == 1
    finally:
        redis.remove()
    printed = capsys.readouterr().out
    assert f"pid {pid}" in printed
    assert "redis: stopped" in printed


def test_a_recycled_pid_is_not_taken_for_the_server(tmp_path):
    redis = Redis(tmp_path)
    redis.folder.mkdir()
    (redis.folder / "pid").write_text("1 0")
    assert redis.pid() is None
    redis.kill()  # and nothing is killed


@pytest.mark.parametrize("name", SERVICES)
def test_a_missing_program_names_the_packages(name, tmp_path, monkeypatch):
    kind = SERVICES[name]
    monkeypatch.setattr(kind, "missing", classmethod(lambda _: "the-program"))
    with pytest.raises(ServiceError, match=f"the-program is not installed.*{kind.packages[0]}"):
        kind(tmp_path).start()
    assert not Path(tmp_path, name).exists()


def test_an_unknown_service_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["up", "--only", "rabbit"])
    assert "rabbit: not one of kafka, postgres, rabbitmq, redis" in capsys.readouterr().err
