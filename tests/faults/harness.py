"""What the fault tests share: processes to kill, a load with known ids, and an oracle of what must have come of it.

The oracle never asks streamfold: it counts events by their ids, interactions by item, and keeps the newest text of each
document. All interactions have one time, so the decayed count of an item is its plain number of interactions: one event
lost or folded twice is one off.
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from streamfold.core.context import Group
from streamfold.core.errors import LedgerBusy, LedgerUnavailable
from streamfold.core.fold import verify_group
from streamfold.core.fold.stores import GroupStores, recover
from streamfold.core.settings import Settings
from streamfold.pipelines.node import Node
from streamfold.pipelines.services.process import free_port

KILLS = int(os.environ.get("STREAMFOLD_FAULTS", "15"))
"""How many kill -9 the folder makes in all; `make faults` asks for 50."""
SEED = int(os.environ.get("STREAMFOLD_FAULTS_SEED", "1"))
LONG_S = 240.0
"""How long something is waited for: what has not come by then will not come, however busy the machine is."""
FOLD = {"checkpoint_min_bytes": 4000, "lease_s": 2.0, "sweep_s": 0.3, "min_free_bytes": 0}
TIME = "2026-01-02T03:04:05Z"
_TIME_S = 1_767_323_045.0
_RATE = math.log(2) / 86_400.0

Event = dict[str, Any]


def share_of_kills(share: float) -> int:
    return max(1, round(KILLS * share))


def pick(points: Sequence[str], count: int, seed: int) -> list[str]:
    """The named points in their order, then "random" and more of them, as the seed says."""
    rng = random.Random(seed)
    return [points[i] if i < len(points) else rng.choice(["random", *points]) for i in range(count)]


# -- load -------------------------------------------------------------------------------------------------------------
class Load:
    """An endless stream of events with known ids; everything follows from seed and name."""

    def __init__(self, name: str, seed: int, *, documents: int = 30, items: int = 20) -> None:
        self.name = name
        self._rng = random.Random(f"{name} {seed}")
        self._documents = documents
        self._items = items
        self.made: list[Event] = []

    def batch(self, size: int) -> list[Event]:
        events = [self._event(len(self.made) + i) for i in range(size)]
        self.made += events
        return events

    def _event(self, number: int) -> Event:
        rng = self._rng
        kind, data = "interaction.observed", {}
        if rng.random() < 0.75:
            data = {"user_id": f"u{rng.randrange(9)}", "item_id": f"i{rng.randrange(self._items)}", "action": "click"}
        else:
            document = f"{self.name}-d{rng.randrange(self._documents)}"
            data = {"document_id": document}
            kind = "document.deleted"
            if rng.random() < 0.85:
                kind = "document.upserted"
                words = " ".join(rng.choices(["brown", "fox", "jumps", "over", "lazy", "dog", "river"], k=12))
                data |= {"title": f"Title of {document}", "text": f"Version {number} says: {words}. " * 3}
        return {
            "specversion": "1.0", "id": f"{self.name}-{number}", "source": "faults", "type": kind, "time": TIME,
            "data": data,
        }  # fmt: skip


@dataclass(slots=True)
class Expected:
    """What must be known after exactly these events, in this order (per document)."""

    ids: set[str] = field(default_factory=set)
    clicks: Counter[str] = field(default_factory=Counter)
    texts: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, events: Iterable[Event]) -> Expected:
        expected = cls()
        for event in events:
            if event["id"] in expected.ids:
                continue
            expected.ids.add(event["id"])
            data = event["data"]
            if event["type"] == "interaction.observed":
                expected.clicks[data["item_id"]] += 1
            elif event["type"] == "document.upserted":
                expected.texts[data["document_id"]] = data["text"]
            else:
                expected.texts.pop(data["document_id"], None)
        return expected


# -- checks -----------------------------------------------------------------------------------------------------------
def wait_for(what: str, true: Callable[[], bool], timeout_s: float = LONG_S, every_s: float = 0.05) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s in vain: {what}"
        time.sleep(every_s)


def logged_ids(node: Node, workspace: str = "default") -> list[str]:
    """The ids of all events in the log, in its order."""
    ids: list[str] = []
    after = 0
    while True:
        rows = node.ledger.read(workspace, after, 5000).rows
        ids += [node.registry.event_types.decode(row).id for row in rows]
        if len(rows) < 5000:
            return ids
        after = rows[-1].seq


def is_caught_up(node: Node, workspace: str = "default") -> bool:
    """Has every live group folded what it handles?"""
    marks = node.ledger.watermarks(workspace)
    return all(
        not node.ledger.read(workspace, marks[g.name][0], 1, types=sorted(g.handles)).rows
        for g in node.context.groups(workspace, fresh=True)
        if g.slot == "live"
    )


def check_state(node: Node, events: Sequence[Event], *, workspace: str = "default") -> None:
    """The log holds each of the events once, the stores what comes of them, and replay gives the same."""
    ids = logged_ids(node, workspace)
    twice = [id_ for id_, count in Counter(ids).items() if count > 1]
    assert not twice, f"in the log twice: {twice[:10]}"
    expected = Expected.of(events)
    assert set(ids) == expected.ids, (
        f"lost: {sorted(expected.ids - set(ids))[:10]}, from nowhere: {sorted(set(ids) - expected.ids)[:10]}"
    )
    groups = node.context.groups(workspace, fresh=True)
    assert groups, "no policy is folded here"
    for group in groups:
        _check_group(node, workspace, group, expected)
        verdict = verify_group(node.context, workspace, group)
        assert verdict.equal, "\n".join(verdict.differences)


def _check_group(node: Node, workspace: str, group: Group, expected: Expected) -> None:
    state = node.ledger.group(workspace, group.name)
    assert state.halted is None, state.halted
    stores = GroupStores(node.context, group, side="view")
    try:
        recover(node.context, workspace, group, stores)
        for runtime in group.runtimes:
            named = stores.by_runtime[runtime.key]
            if runtime.instance.use == "trending":
                rows = named["score_0"].top(1_000_000)
                found = {item: round(math.exp(value - _TIME_S * _RATE), 6) for item, value in rows}
                assert found == {item: float(count) for item, count in expected.clicks.items()}
            elif runtime.instance.use in ("vector_index", "graph_index"):
                found_texts = {key: (named["texts"].get(key) or b"").decode() for key, _ in named["documents"].items()}
                assert found_texts == expected.texts
                chunks = sum(len(row.keys) for _, row in named["documents"].items())
                assert len(named["chunks"]) == len(named["vectors"]) == chunks
                if "graph" in named:
                    keys = {key for key, _ in named["chunks"].items()}
                    assert {node for node in named["graph"].nodes() if isinstance(node, int)} == keys
    finally:
        stores.close()


def open_node(settings: Settings, *, timeout_s: float = LONG_S) -> Node:
    """Open a node of the test's own, waiting for a killed process's lock or a database that comes back."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return Node(settings)
        except (LedgerBusy, LedgerUnavailable):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def fold_to_the_end(settings: Settings) -> None:
    """Recover and fold in this process as the embedded service does, until nothing is left; then stop gracefully."""
    node = open_node(settings)
    try:
        node.start_serving()
        wait_for("the folds to catch up", lambda: is_caught_up(node))
    finally:
        node.close()


def check_everything(settings: Settings, events: Sequence[Event]) -> None:
    """Check an installation whose processes have stopped; an embedded one is folded to the end here first."""
    if settings.is_embedded:
        fold_to_the_end(settings)
    node = open_node(settings)
    try:
        check_state(node, events)
    finally:
        node.close()


def check_when_quiet(settings: Settings, events: Sequence[Event]) -> None:
    """Let running processes log and fold all of it, then compare with the oracle."""
    node = open_node(settings)
    try:
        wanted = {event["id"] for event in events}
        wait_for("the log to have everything", lambda: wanted <= set(logged_ids(node)), every_s=0.2)
        wait_for("the folds to catch up", lambda: is_caught_up(node))
        time.sleep(0.3)  # a checkpoint may be under way
        check_state(node, events)
    finally:
        node.close()


# -- settings ---------------------------------------------------------------------------------------------------------
def write_settings(folder: Path, **tables: Mapping[str, Any]) -> Path:
    """Write a streamfold.toml for tests: the hashing encoder, small checkpoints, short leases."""
    values: dict[str, Any] = {
        "data": str(folder / "data"),
        "backends": {"encoder": {"use": "hashing"}, "chunker": {"use": "sentences"}},
        "fold": FOLD,
        "log": {"level": "info", "format": "json"},
        **tables,
    }
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "streamfold.toml"
    file.write_text("".join(_toml((), values)))
    return file


def _toml(path: tuple[str, ...], table: Mapping[str, Any]) -> list[str]:
    plain = [f"{json.dumps(k)} = {json.dumps(v)}\n" for k, v in table.items() if not isinstance(v, Mapping)]
    head = ["[" + ".".join(map(json.dumps, path)) + "]\n"] if path else []
    lines = head + plain
    for key, value in table.items():
        if isinstance(value, Mapping):
            lines += _toml((*path, key), value)
    return lines


# -- processes --------------------------------------------------------------------------------------------------------
class Proc:
    """One process of streamfold; its output goes to a file that a failure quotes."""

    def __init__(self, folder: Path, name: str, *words: str) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self.environment: dict[str, str] = {}
        """Variables beside those of this process."""
        self._words = words
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, crash: str = "") -> None:
        assert not self.alive(), f"{self.name} runs already"
        environment = {k: v for k, v in os.environ.items() if k != "STREAMFOLD_CRASH"} | {"PYTHONFAULTHANDLER": "1"}
        environment |= self.environment
        if crash:
            environment["STREAMFOLD_CRASH"] = crash
        with self.log.open("ab") as log:
            log.write(f"-- start crash={crash!r}\n".encode())
            self._process = subprocess.Popen(
                [sys.executable, "-m", *self._words],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=self.log.parent,
            )  # fmt: skip

    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL, as the kernel's out-of-memory killer would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(60)

    def stop(self, timeout_s: float = LONG_S) -> int:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout_s)

    def was_killed(self) -> bool:
        return self._process is not None and self._process.poll() == -signal.SIGKILL

    def tail(self) -> str:
        return f"{self.name} ended with {self._process and self._process.poll()}:\n" + self.log.read_text()[-3000:]


class Service(Proc):
    """``streamfold serve``: the embedded service, or an API host of the distributed shape."""

    def __init__(self, folder: Path, config: Path) -> None:
        self.port = free_port()
        super().__init__(
            folder, "serve", "streamfold.pipelines.cli", "--config", str(config), "serve", "--port", str(self.port)
        )
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)

    def close(self) -> None:
        self.kill()
        self._client.close()

    def wait_ready(self, timeout_s: float = LONG_S) -> None:
        def ready() -> bool:
            assert self.alive(), self.tail()
            return self.get("/readyz") == 200

        wait_for(f"{self.name} to be ready", ready, timeout_s)

    def get(self, path: str) -> int:
        """The status, 0 when there is no answer."""
        try:
            return self._client.get(path).status_code
        except httpx.HTTPError:
            return 0

    def send(self, events: Sequence[Event], *, wait: bool = False) -> dict[str, Any] | None:
        """Post a batch; the answer if it was acknowledged, else None: then nobody knows, and it is to be sent again."""
        try:
            answer = self._client.post(
                "/v1/events",
                params={"wait": "visible", "wait_ms": 20_000} if wait else {},
                content=json.dumps(events),
                headers={"content-type": "application/cloudevents-batch+json"},
            )
        except httpx.HTTPError:
            return None
        if answer.status_code in (429, 500, 503):
            return None
        assert answer.status_code in (200, 202), answer.text
        body: dict[str, Any] = answer.json()
        assert body["rejected"] == 0, body
        return body


class Sender:
    """A client of the service: sends batch after batch, keeps what was acknowledged and what it must send again."""

    def __init__(self, load: Load, seed: int) -> None:
        self.load = load
        self.acknowledged: list[Event] = []
        self.pending: list[Event] = []
        self._rng = random.Random(f"sender {seed}")

    def send_one(self, service: Service, *, size: int = 40) -> bool:
        """Send the pending batch again, or a new one; now and then also an old one, which must change nothing."""
        if not self.pending:
            self.pending = self.load.batch(self._rng.randint(1, size))
        answer = service.send(self.pending)
        if answer is None:
            return False
        assert answer["accepted"] + answer["duplicates"] == len(self.pending), answer
        self.acknowledged += self.pending
        self.pending = []
        if self._rng.random() < 0.1:
            start = self._rng.randrange(len(self.acknowledged))
            old = self.acknowledged[start : start + size]
            again = service.send(old)
            assert again is None or again["duplicates"] == len(old), again
        return True

    def send_until_dead(self, service: Service, *, least: int, after: Callable[[], None], timeout_s: float) -> int:
        """Send until the process is dead; ``after`` is called once when ``least`` events were acknowledged."""
        before, told, deadline = len(self.acknowledged), False, time.monotonic() + timeout_s
        while service.alive() and time.monotonic() < deadline:
            if not self.send_one(service):
                time.sleep(0.02)
            if not told and len(self.acknowledged) - before >= least:
                told = True
                after()
        return len(self.acknowledged) - before


def kill_later(process: Proc, seconds: float) -> None:
    """SIGKILL from a thread after a moment, in the middle of whatever it does then."""
    timer = threading.Timer(seconds, process.kill)
    timer.daemon = True
    timer.start()
