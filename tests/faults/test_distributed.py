"""kill -9 of ingest, worker and API, and restarts of Kafka, PostgreSQL and Redis, under load from Kafka and HTTP.

One installation with services of its own lives through all of it. After each fault every event sent is in the log once,
the stores hold what the oracle says, and ``verify`` is equal.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from harness import (
    FOLD,
    LONG_S,
    SEED,
    Event,
    Load,
    Proc,
    Sender,
    Service,
    check_when_quiet,
    logged_ids,
    open_node,
    pick,
    share_of_kills,
    wait_for,
    write_settings,
)
from next_version import check_by, make_next_version

from streamfold.core.settings import Settings, load_settings
from streamfold.pipelines.services import Service as Server

pytestmark = [
    pytest.mark.services,
    # kafka-python leaves the sockets to the collector whose connecting failed while its broker was down.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

POINTS = [
    "worker commit.in", "ingest ingest.appended", "api random", "ingest ingest.polled", "worker random",
    "ingest ingest.committed", "ingest append.in", "worker commit.before", "worker commit.after", "api append.in",
    "worker checkpoint.in", "worker checkpoint.pointer.after", "ingest append.after", "worker checkpoint.written",
    "ingest random",
]  # fmt: skip


def _target(choice: str, seed: int) -> str:
    return (
        random.Random(seed).choice(["ingest random", "worker random", "api random"]) if choice == "random" else choice
    )


KILLS = [(n, _target(c, SEED + n)) for n, c in enumerate(pick(POINTS, share_of_kills(1 / 3), SEED))]


class Stack:
    """Kafka, PostgreSQL and Redis of our own, an API host, an ingest process and a worker."""

    def __init__(self, folder: Path, own: dict[str, Server]) -> None:
        self.services = own
        self.kafka = own["kafka"]
        config = write_settings(
            folder,
            ledger={"url": own["postgres"].url},
            broker={"url": own["redis"].url},
            # A claim to prepare outlives its killed worker by prepare_timeout_s + 10 s.
            fold=FOLD | {"prepare_timeout_s": 0.5},
            kafka={"bootstrap": self.kafka.url, "poll_records": 50, "topics": {"events": {}}},
        )
        self.config = config
        self.settings = load_settings(config)
        common = ("--config", str(config))
        self.api = Service(folder, config)
        self.ingest = Proc(folder, "ingest", "streamfold.pipelines.ingest", *common)
        self.zombie = Proc(folder, "zombie", "streamfold.pipelines.ingest", *common)
        self.worker = Proc(folder, "worker", "streamfold.pipelines.worker", *common, "--role", "all")
        self.processes: dict[str, Proc] = {"api": self.api, "ingest": self.ingest, "worker": self.worker}
        open_node(self.settings).close()  # migrates
        self.load = Load("k", SEED)
        self.sender = Sender(Load("h", SEED), SEED)
        self.sent: list[Event] = []
        self._producer: Any = None

    def close(self) -> None:
        for process in (self.ingest, self.zombie, self.worker):
            process.kill()
        self.api.close()
        if self._producer is not None:
            self._producer.close(timeout=2)

    def ensure_running(self) -> None:
        for name, process in self.processes.items():
            if not process.alive():
                process.start()
                if name == "api":
                    self.api.wait_ready()

    def produce(self, size: int) -> None:
        """Send to Kafka; a record is sent when the broker has acknowledged it."""
        if self._producer is None:
            from kafka import KafkaProducer

            self._producer = KafkaProducer(
                bootstrap_servers=self.kafka.url, acks="all", enable_idempotence=True, metrics_enabled=False,
                delivery_timeout_ms=300_000, request_timeout_ms=5_000, reconnect_backoff_max_ms=500,
            )  # fmt: skip
        events = self.load.batch(size)
        headers = [("content-type", b"application/cloudevents+json")]
        futures = [self._producer.send("events", json.dumps(e).encode(), headers=headers) for e in events]
        for future in futures:
            future.get(timeout=330)
        self.sent += events

    def pump(self, until: Callable[[], bool], timeout_s: float = LONG_S) -> None:
        """Keep both intakes busy until something has happened."""
        deadline = time.monotonic() + timeout_s
        while not until():
            assert time.monotonic() < deadline, "in vain: " + "\n".join(p.tail() for p in self.processes.values())
            self.produce(25)
            if self.api.alive() and not self.sender.send_one(self.api, size=20):
                time.sleep(0.05)

    def check(self, look: Callable[[Settings, list[Event]], None] = check_when_quiet) -> None:
        """Let everything go quiet, then compare with the oracle (``look``: by this version's code, or another's)."""
        self.ensure_running()
        deadline = time.monotonic() + LONG_S
        while self.sender.pending:
            assert self.sender.send_one(self.api) or time.monotonic() < deadline, self.api.tail()
        events = self.sent + self.sender.acknowledged
        try:
            look(self.settings, events)
        except AssertionError as error:
            raise AssertionError("\n".join([str(error), *(p.tail() for p in self.processes.values())])) from error
        last = self.sender.acknowledged[-1:]
        wait_for("the API's view to follow", lambda: (self.api.send(last, wait=True) or {}).get("visible", False))


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, own_services: dict[str, Server]) -> Iterator[Stack]:
    made = Stack(tmp_path_factory.mktemp("distributed"), own_services)
    with ExitStack() as undo:
        undo.callback(made.close)
        made.produce(10)
        made.ensure_running()
        made.pump(lambda: len(made.sender.acknowledged) > 50)
        made.check()
        yield made


@pytest.mark.parametrize(("number", "choice"), KILLS, ids=[f"{n}-{c.replace(' ', '-')}" for n, c in KILLS])
def test_a_killed_process_loses_and_doubles_nothing(stack: Stack, number: int, choice: str) -> None:
    seed = SEED * 1000 + number
    print(f"seed={seed} {choice}")
    rng = random.Random(seed)
    name, point = choice.split()
    process = stack.processes[name]
    stack.ensure_running()
    if point == "random":
        moment = rng.uniform(0, 0.4)
        least = len(stack.sent) + rng.randint(50, 300)
        stack.pump(lambda: len(stack.sent) >= least)
        timer = threading.Timer(moment, process.kill)
        timer.start()
        stack.pump(lambda: not process.alive())
        timer.join()
    else:
        process.kill()  # a life that is armed: it also takes up what was left lying
        count = 1 if point.startswith("checkpoint") else rng.randint(3, 6)
        process.start(crash=f"{point}:{count}")
        if process is stack.api:
            stack.api.wait_ready()
        stack.pump(lambda: not process.alive())
    assert process.was_killed(), process.tail()
    stack.check()


@pytest.mark.parametrize("name", ["redis", "postgres", "kafka"])
def test_a_service_killed_and_restarted_under_load(stack: Stack, name: str) -> None:
    stack.ensure_running()
    service = stack.services[name]
    failed: list[BaseException] = []

    def restart() -> None:
        try:
            service.kill()
            time.sleep(1.0)
            service.start()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=restart)
    least = len(stack.sent) + 100
    stack.pump(lambda: len(stack.sent) >= least)
    thread.start()
    stack.pump(lambda: not thread.is_alive())
    thread.join()
    assert not failed, failed
    for process in stack.processes.values():
        assert process.alive(), process.tail()
    stack.check()


def test_a_zombie_consumer_wakes_up_after_a_rebalance(stack: Stack) -> None:
    """One ingest process sleeps with records in hand while another takes over its partitions; then it wakes up."""
    stack.ensure_running()
    stack.produce(100)
    first = stack.ingest
    assert first._process is not None
    os.kill(first._process.pid, signal.SIGSTOP)
    try:
        stack.zombie.start()
        before = len(stack.sent)
        stack.produce(200)
        node = open_node(stack.settings)
        try:
            wanted = {event["id"] for event in stack.sent[before:]}
            wait_for("the other consumer", lambda: wanted <= set(logged_ids(node)), every_s=0.2)
        finally:
            node.close()
    finally:
        os.kill(first._process.pid, signal.SIGCONT)
    more = len(stack.sent) + 300
    stack.pump(lambda: len(stack.sent) >= more)
    assert first.alive(), first.tail()
    assert stack.zombie.alive(), stack.zombie.tail()
    stack.check()
    stack.zombie.kill()
    stack.check()


def test_a_rolling_upgrade_loses_and_doubles_nothing(stack: Stack, tmp_path: Path) -> None:
    """Processes of this version and of the next side by side, one after the other replaced; the older also come back.

    The next version is a copy with another migration, checkpoint format and wake-up (see ``next_version.py``).
    """
    stack.ensure_running()
    root = make_next_version(tmp_path)
    code = {"PYTHONPATH": str(root)}
    config = stack.config
    newer_api = Service(tmp_path, config)
    newer = {
        "worker": Proc(tmp_path, "worker", "streamfold.pipelines.worker", "--config", str(config), "--role", "all"),
        "ingest": Proc(tmp_path, "ingest", "streamfold.pipelines.ingest", "--config", str(config)),
        "api": newer_api,
    }
    older = dict(stack.processes)

    def pump_more(events: int = 200) -> None:
        least = len(stack.sent) + events
        stack.pump(lambda: len(stack.sent) >= least)

    def formats() -> set[int]:
        """The formats of the checkpoints that the ledger points to."""
        node = open_node(stack.settings)
        try:
            found = set()
            for state in node.ledger.groups("default"):
                file = Path(f"{stack.settings.checkpoint_root}/default/{state.group}/{state.checkpoint}/manifest.json")
                found |= {json.loads(file.read_text())["format"]} if file.exists() else set()
            return found
        finally:
            node.close()

    try:
        for process in newer.values():
            process.environment = code
        newer_api.start()  # readers first: it migrates, while all others are of this version
        newer_api.wait_ready()
        pump_more()
        newer["worker"].start()
        pump_more()
        older["worker"].stop()  # whose groups the newer one takes over, and writes checkpoints of its own
        stack.pump(lambda: 2 in formats())
        older["worker"].start()  # comes back, say after a restart of its host, and cannot read these
        pump_more()
        newer["worker"].kill()  # nobody can fold on now: the older one waits, instead of folding afresh
        stack.produce(50)
        wait_for("the older worker to leave the groups", lambda: "group_left" in older["worker"].log.read_text())
        newer["worker"].start()
        pump_more()
        newer["ingest"].start()
        pump_more()
        older["ingest"].stop()
        older["worker"].stop()
        pump_more()
        for process in (*newer.values(), older["api"]):
            assert process.alive(), process.tail()
        stack.processes = {**newer}
        stack.check(lambda _, events: check_by(root, config, events))
        assert newer_api.get("/v1/trending") == 200
        for process in older.values():
            assert "checkpoint_corrupt" not in process.log.read_text(), "an older process has folded afresh"
    finally:
        stack.processes = older
        for process in newer.values():
            process.kill()
        newer_api.close()
