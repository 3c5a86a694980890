"""The distributed shape on real Kafka, PostgreSQL and Redis: throughput exactly once, and event → visible."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import harness
import numpy as np
import raw
from harness import Figure, Meter, Processes

from streamfold.core.settings import load_settings
from streamfold.pipelines.node import Node
from streamfold.pipelines.services import start_kafka, start_postgres, start_redis

HEADERS = [("content-type", b"application/cloudevents+json; charset=utf-8")]
TOPIC = "bench"


class Stand:
    """Services, a settings file on them, and processes."""

    def __init__(self, folder: Path) -> None:
        self.services = {}
        try:
            for name, start in (("kafka", start_kafka), ("postgres", start_postgres), ("redis", start_redis)):
                self.services[name] = start(folder / "services")
        except BaseException:
            self.close_services()
            raise
        s = self.services
        text = (
            f'[ledger]\nurl = "{s["postgres"].url}"\n[broker]\nurl = "{s["redis"].url}"\n'
            f'[kafka]\nbootstrap = "{s["kafka"].url}"\n[kafka.topics.{TOPIC}]\n'
        )
        self.run = Processes(harness.settings_file(folder, text, policies=["trending"]))

    def topic(self) -> None:
        from kafka.admin import KafkaAdminClient, NewTopic

        admin = KafkaAdminClient(bootstrap_servers=self.services["kafka"].url)
        admin.create_topics([NewTopic(TOPIC, 1, 1)])
        admin.close()

    def producer(self) -> Any:
        from kafka import KafkaProducer

        return KafkaProducer(bootstrap_servers=self.services["kafka"].url, linger_ms=2, batch_size=64 << 10)

    def pids(self) -> dict[str, int]:
        return self.run.pids() | {name: s.pid() or 0 for name, s in self.services.items()}

    def close_services(self) -> None:
        for service in self.services.values():
            service.remove()


@contextmanager
def stand() -> Iterator[Stand]:
    with tempfile.TemporaryDirectory(prefix="streamfold-stand-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o755)
        made = Stand(Path(folder))
        try:
            yield made
        finally:
            made.run.close()
            made.close_services()


def throughput(quick: bool, repeats: int) -> list[Figure]:
    """Kafka → log → fold → view with 1 % duplicates: one ingest, one worker, one service that shows it."""
    count = 50_000 if quick else 150_000
    rate = Figure("Kafka → view, events/s", "events/s", 7_000, 12_000, higher=True)
    cpu = Figure("Kafka → view, CPU per event", "µs", 160, 120)
    with stand() as s:
        s.topic()
        client = s.run.serve()
        ingest = s.run.start("ingest", "ingest")
        s.run.start("worker", "worker", "--role", "fold")
        producer = s.producer()
        head = _send(producer, 0, 5_000)
        _visible(client, head)
        for repeat in range(repeats):
            os.kill(ingest.pid, signal.SIGSTOP)  # the topic is filled first: the producer has no part in the figure
            try:
                head += _send(producer, 1_000_000 * (repeat + 1), count)
                beside = raw.postgres(
                    harness.bodies(harness.interaction, 0, 20_000), s.services["postgres"].url, s.pids()["postgres"]
                )
                meter = Meter(s.pids())
            finally:
                os.kill(ingest.pid, signal.SIGCONT)
            _visible(client, head)
            wall, used = meter.read()
            each = {name: seconds / count * 1e6 for name, seconds in used.items()}
            rate.repeats.append(count / wall)
            cpu.repeats.append(sum(us for name, us in each.items() if name != "kafka"))
            rate.notes = {
                "of raw": f"{count / wall / beside['per_s']:.2f}", "raw/s": f"{beside['per_s']:,.0f}",
                "load": harness.load(),
            }  # fmt: skip
            cpu.notes = {"raw ×": f"{cpu.repeats[-1] / beside['cpu_us']:.2f}"} | {
                k: f"{v:.1f}" for k, v in each.items()
            }
        producer.close()
        status = json.loads(client.get("/v1/status")[1])
        if status["position"] != head:
            raise RuntimeError(f"not exactly once: {head} events were sent, the log has {status['position']}")
        rate.notes["exactly once"] = f"{head:,} of {head:,}"
    return [rate, cpu]


def _send(producer: Any, first: int, count: int) -> int:
    """Send events, every hundredth twice; return how many different ones."""
    rng = np.random.default_rng([harness.SEED, first])
    for n in range(first, first + count):
        value = json.dumps(harness.interaction(n, rng)).encode()
        producer.send(TOPIC, value=value, headers=HEADERS, partition=0)
        if n % 100 == 0:
            producer.send(TOPIC, value=value, headers=HEADERS, partition=0)
    producer.flush(timeout=60)
    return count


def _visible(client: harness.Client, head: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        status, _ = client.get(f"/v1/trending?min_position={head}&wait_ms=20000")
        if status == 200:
            return
    raise TimeoutError(f"position {head} did not become visible")


def freshness(quick: bool, repeats: int) -> list[Figure]:
    """500 events/s from Kafka with three fold workers, until a view that polls every 50 ms shows them."""
    seconds = 8 if quick else 30
    p50 = Figure("event → visible, distributed at 500/s, p50", "ms", 100)
    p99 = Figure("event → visible, distributed at 500/s, p99", "ms", 500, 200)
    with stand() as s:
        s.topic()
        node = Node(load_settings(s.run.file))
        try:
            view = node.start_serving().workspace("default")
            moves: list[tuple[float, int]] = []
            view.listeners.append(lambda: moves.append((time.monotonic(), view.visible_position(None))))
            s.run.start("ingest", "ingest")
            for n in range(3):
                s.run.start(f"worker{n}", "worker", "--role", "fold")
            producer = s.producer()
            sent = _send(producer, 0, 1_000)
            harness.until(lambda: view.visible_position(None) >= sent, 60, lambda: s.run.tail("ingest"))
            time.sleep(3)
            for repeat in range(repeats):
                due = _drip(producer, 1_000_000 * (repeat + 1), 500 * seconds)
                head = sent + len(due)
                harness.until(lambda head=head: view.visible_position(None) >= head, 60)
                seen = iter(sorted(moves))
                samples, (at, upto) = [], next(seen)
                for position, begun in enumerate(due, sent + 1):
                    while upto < position:
                        at, upto = next(seen)
                    samples.append(at - begun)
                found = harness.percentiles(samples)
                p50.repeats.append(found[50])
                p99.repeats.append(found[99])
                sent = head
            producer.close()
        finally:
            node.close()
    p99.notes = p50.notes = {"load": harness.load(), "events": 500 * seconds}
    return [p50, p99]


def _drip(producer: Any, first: int, count: int) -> list[float]:
    """Send at 500/s; return when each event was handed to the producer."""
    rng = np.random.default_rng([harness.SEED, first])
    values = [json.dumps(harness.interaction(n, rng)).encode() for n in range(first, first + count)]
    start, due = time.monotonic() + 0.1, []
    for index, value in enumerate(values):
        wait = start + index / 500 - time.monotonic()
        if wait > 0:
            threading.Event().wait(wait)
        due.append(time.monotonic())
        producer.send(TOPIC, value=value, headers=HEADERS, partition=0)
    producer.flush(timeout=20)
    return due


def hidden(quick: bool, repeats: int) -> list[Figure]:
    """A deletion sent to one replica, until another shows it no more, while nobody folds."""
    count = 20 if quick else 60
    figure = Figure("deletion → hidden on another replica, p99", "ms", 100)
    with stand() as s:
        client, other = s.run.serve(), s.run.serve("other")
        worker = s.run.start("worker", "worker", "--role", "fold")
        items = [f"gone-{n}" for n in range(count * repeats)]
        clicks = [_event("interaction.observed", one, user_id="u", item_id=one, action="click") for one in items]
        client.post(json.dumps(clicks).encode())
        harness.until(lambda: items[-1] in _trending(other), 60)
        os.kill(worker.pid, signal.SIGSTOP)
        try:
            for repeat in range(repeats):
                mine = items[repeat * count : (repeat + 1) * count]
                figure.repeats.append(harness.percentiles([_hide(client, other, one) for one in mine])[99])
        finally:
            os.kill(worker.pid, signal.SIGCONT)
    figure.notes = {"load": harness.load()}
    return [figure]


def _event(type_: str, id_: str, **data: Any) -> dict[str, Any]:
    return {"specversion": "1.0", "id": f"{type_}-{id_}", "source": "/bench", "type": type_, "data": data}


def _trending(client: harness.Client) -> set[str]:
    status, body = client.get("/v1/trending?n=1000")
    return {one["item_id"] for one in json.loads(body)["items"]} if status == 200 else set()


def _hide(client: harness.Client, other: harness.Client, item: str) -> float:
    client.post(json.dumps([_event("item.deleted", item, item_id=item)]).encode())
    begun = time.monotonic()
    while item in _trending(other):
        pass
    return time.monotonic() - begun
