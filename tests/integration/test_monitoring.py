"""What operators see of ingest and workers: their metrics, and how far Kafka is ahead, through real processes."""

from __future__ import annotations

import re
import socket
from pathlib import Path
from typing import Any

import httpx
import psutil
from kafka import KafkaProducer
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from streamfold.core import Event, Policy, Prepared, Stores, hookimpl
from streamfold.core.ledger.abc import Quotas
from streamfold.core.settings import LedgerSettings, Settings
from streamfold.pipelines.node import Node
from streamfold.pipelines.worker import Worker
from tests import waiting
from tests.stand import STRUCTURED, Stand, click, until


class Seen:
    """One scrape."""

    def __init__(self, text: str) -> None:
        families = text_string_to_metric_families(text)
        self._samples = [sample for family in families for sample in family.samples]

    def one(self, name: str, **labels: str) -> float | None:
        """The value of a metric whose other labels do not matter; None where there is none."""
        return next((value for _, value in self._of(name, labels)), None)

    def by(self, label: str, name: str, **labels: str) -> dict[str, float]:
        return {found[label]: value for found, value in self._of(name, labels)}

    def _of(self, name: str, labels: dict[str, str]) -> list[tuple[dict[str, str], float]]:
        found = [(one.labels, one.value) for one in self._samples if one.name == f"streamfold_{name}"]
        return [(had, value) for had, value in found if labels.items() <= had.items()]


class Scraped:
    """A process that answers ``GET /metrics``, where its log says."""

    def __init__(self, stand: Stand, log: str) -> None:
        file, told = stand.folder / log, r"http://127\.0\.0\.1:\d+/metrics"
        self._url = until("it tells its port", lambda: re.search(told, file.read_text()), stand)[0]

    def now(self) -> Seen:
        return Seen(httpx.get(self._url, trust_env=False).raise_for_status().text)


def test_ingest_and_workers_count_what_they_do(stand: Stand) -> None:
    stand.create_topics()
    stand.start("cli", "ingest", "--metrics-port", "0")
    stand.start("cli", "worker", "--role", "all", "--metrics-port", "0")
    ingest, worker = Scraped(stand, "0-cli.log"), Scraped(stand, "1-cli.log")
    stand.send(*(click(n) for n in range(20)), click(3), click(4, item="other"), (None, b"{not json", STRUCTURED))
    stand.send((None, b'{"document_id":"d1","text":"Oil lamps burn oil."}', []), topic=f"{stand.topic}-docs")

    def records(topic: str) -> float | None:
        return ingest.now().one("intake_records_total", workspace="default", topic=topic)

    until("all taken", lambda: records(stand.topic) == 23, stand)
    until("the document taken", lambda: records(f"{stand.topic}-docs") == 1, stand)
    seen = ingest.now()
    assert seen.by("outcome", "events_total") == {"accepted": 21, "duplicate": 1, "reused": 1, "rejected": 1}
    dead = seen.by("code", "intake_dead_letters_total", topic=stand.topic)
    assert dead == {"malformed": 1, "event-id-reused": 1}
    assert (seen.one("append_seconds_count", workspace="default") or 0) >= 1
    lag = {"topic": stand.topic, "partition": "0"}
    until("the lag is known", lambda: ingest.now().one("intake_lag_events", **lag) == 0, stand)

    node = stand.node()

    def folded() -> bool:
        marks = node.ledger.watermarks("default").values()
        return bool(marks) and all(mark == 21 for mark, _ in marks)

    until("folded", folded, stand)
    seen, groups = worker.now(), {state.group for state in node.ledger.groups("default")}
    zero = dict.fromkeys(groups, 0.0)
    assert [seen.by("group", name) for name in ("lag_events", "halted", "skipped_events")] == [zero, zero, zero]
    folded_events = {name.partition("@")[0]: n for name, n in seen.by("group", "folded_events_total").items()}
    assert folded_events == {"trending": 20, "graph_index": 1}
    for name in ("commit_seconds_count", "state_bytes"):
        assert seen.by("group", name).keys() == groups
        assert min(seen.by("group", name).values()) > 0
    assert seen.one("prepared_events_total", workspace="default") == 1
    assert seen.one("ledger_up") == 1
    assert [stand.stop(process) for process in stand.running] == [0, 0]


def test_the_lag_of_kafka_is_in_the_status_whoever_reads_the_topics(stand: Stand) -> None:
    stand.create_topics()
    node = stand.node()
    node.ledger.ensure_workspace("default")
    node.ledger.set_quotas("default", Quotas(bytes=0), actor="test", at_us=1)  # the intake waits from its start on
    stand.start("cli", "serve", "--port", "0")
    said = until("serving", lambda: re.search(r"streamfold serves on (http://\S+)", stand.logs()), stand)
    stand.start("cli", "ingest", "--metrics-port", "0")
    ingest = Scraped(stand, "1-cli.log")
    producer = KafkaProducer(bootstrap_servers=stand.kafka, transactional_id=stand.topic)
    producer.init_transactions()
    producer.begin_transaction()
    for number in range(30):
        key, value, headers = click(number)
        producer.send(stand.topic, value=value, key=key, headers=headers)
    producer.commit_transaction()
    producer.close()
    stand.send(click(30), click(31), topic=f"{stand.topic}-docs")
    with httpx.Client(base_url=said[1], timeout=30.0, trust_env=False) as client:

        def lags() -> dict[str, Any]:
            answer = client.get("/v1/status")
            lines = answer.json()["intakes"] if answer.status_code == 200 else []
            return {line["name"].removeprefix(stand.topic): line for line in lines if line["kind"] == "kafka"}

        def behind(*expected: int | None) -> bool:
            return tuple(line["lag_events"] for _, line in sorted(lags().items())) == expected

        until("what waits is told", lambda: behind(31, 2, 0), stand)  # 30 records and the end of their transaction
        assert lags()[""]["offsets"] == {}
        paused = ingest.now()
        assert paused.one("intake_lag_events", topic=stand.topic, partition="0") == 31
        assert paused.by("reason", "intake_paused", workspace="default") == {"bytes": 1}
        node.ledger.set_quotas("default", Quotas(), actor="test", at_us=1)
        until("all is taken, and seen to be", lambda: behind(0, 0, 0), stand)
        line = lags()[""]
        assert line["offsets"] == {"0": 30}  # the transaction's end is no record, hence no lag
        assert line["events"] == 30
        assert line["lag_at"] is not None
        assert ingest.now().by("reason", "intake_paused") == {}


def test_a_process_that_waits_for_its_database_says_so(stand: Stand) -> None:
    nowhere = {"STREAMFOLD_LEDGER__URL": "postgresql+psycopg://nobody@127.0.0.1:9/nothing"}
    ingest = stand.start("cli", "ingest", "--metrics-port", "0", **nowhere)
    scraped = Scraped(stand, "0-cli.log")
    what = {"error": "ledger_unavailable"}
    until("told", lambda: (scraped.now().one("errors_total", **what) or 0) >= 2, stand)
    assert (scraped.now().one("last_error_timestamp_seconds", **what) or 0) > 1_700_000_000
    assert stand.stop(ingest) == 0


def test_without_a_port_nothing_listens_and_a_taken_one_is_refused(stand: Stand) -> None:
    stand.create_topics()
    ingest = stand.start("cli", "ingest")
    stand.send(click(1))
    ledger = stand.node().ledger
    until("taken", lambda: ledger.head("default") == 1, stand)
    assert [c for c in psutil.Process(ingest.pid).net_connections("inet") if c.status == psutil.CONN_LISTEN] == []
    assert stand.stop(ingest) == 0
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        refused = stand.start("cli", "worker", "--metrics-port", port)
        assert refused.wait(timeout=120) == 1
        assert f"127.0.0.1:{port} cannot be bound" in stand.logs()


class Fails(Policy):
    """Halts at each event."""

    name, version, handles, stores = "fails", 1, ("interaction.observed",), ()

    def fold(self, event: Event, prepared: Prepared | None, stores: Stores) -> None:
        raise RuntimeError("no")


class Plugin:
    @hookimpl
    def register_policies(self) -> list[type[Policy]]:
        return [Fails]


def test_a_halted_group_is_told_of_by_the_worker_that_has_it(tmp_path: Path, postgres_database: str) -> None:
    settings = Settings(data=tmp_path, policies={"fails": {}}, ledger=LedgerSettings(url=postgres_database))
    node, registry = Node(settings, plugins=[Plugin()]), CollectorRegistry()
    node.ledger.ensure_workspace("default")
    data = {"user_id": "u", "item_id": "i", "action": "click"}
    event = node.acceptor.accept_data("interaction.observed", data, id="1", source="t")
    node.ledger.append("default", [event], recorded_us=node.context.clock.now_us())
    worker = Worker(node, "fold", 1, registry=registry)
    worker.start()
    try:
        waiting.until(lambda: any(state.halted for state in node.ledger.groups("default")))
        [group] = node.context.groups("default")
        seen = Seen(generate_latest(registry).decode())
        assert seen.by("group", "halted") == {group.name: 1}
        assert seen.by("group", "lag_events") == {group.name: 1}
    finally:
        worker.stop()
        node.close()
