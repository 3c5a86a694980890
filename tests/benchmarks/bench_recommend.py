"""Recommending over HTTP, embedded: answers, and from a click to the recommendation that it changes."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import harness
import numpy as np
import psutil
from harness import BATCH, Client, Figure

from streamfold.core.context import Group
from streamfold.core.events import Event
from streamfold.core.fold.one import fold_one
from streamfold.core.fold.order import FoldOrder
from streamfold.core.fold.stores import FoldStores, GroupStores, fold_stores
from streamfold.core.ledger.abc import LogRow
from streamfold.core.policy import Policy
from streamfold.core.settings import Settings
from streamfold.pipelines.node import Node

STACK = ("trending", "activity", "cooccurrence", "newest", "count_stack", "factorization", "ensemble", "quality")
_COMMIT = 512
_GENRES = [f"genre{n}" for n in range(20)]


def _item(number: int, rng: np.random.Generator) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": f"item-{number}",
        "source": "/bench/shop",
        "type": "item.upserted",
        "data": {
            "item_id": f"item-{number}",
            "title": f"Item {number}",
            "categories": sorted(rng.choice(_GENRES, 3, replace=False).tolist()),
        },
    }


def _action(number: int, items: int, rng: np.random.Generator) -> dict[str, Any]:
    event = harness.interaction(number, rng)
    event["data"] |= {"item_id": f"item-{int(items * rng.random() ** 3)}"}
    event["data"]["action"] = ("dislike", "click", "purchase")[int(rng.integers(3))]
    return event


def _ask(client: Client, path: str, body: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    headers = {"content-type": "application/json"}
    begun = time.perf_counter()
    status, answer = client._ask("POST", path, json.dumps(body).encode(), headers)
    took = time.perf_counter() - begun
    if status != 200:
        raise RuntimeError(f"{path}: {status} {answer[:300]!r}")
    return took, json.loads(answer)


def recommend(quick: bool, repeats: int) -> list[Figure]:
    """10,000 items: rank 100 candidates, recommend 10, and a click until it is in the next recommendation."""
    return _measured(10_000, 20_000 if quick else 60_000, repeats, 50)


def large(quick: bool, repeats: int) -> list[Figure]:
    """The same with 1,000,000 items."""
    return _measured(100_000 if quick else 1_000_000, 60_000, repeats, 100)


def _measured(items: int, actions: int, repeats: int, bar_ms: float) -> list[Figure]:
    rank = Figure(f"rank 100 candidates over HTTP, {items:,} items, p99", "ms", 20)
    listed = Figure(f"recommend 10 of {items:,} items over HTTP, p99", "ms", bar_ms)
    fresh = Figure("click → next recommendation, idle, p99", "ms", 50)
    tenth = Figure("click → next recommendation, at a tenth of the load limit, p99", "ms", 50)
    half = Figure("click → next recommendation, at half of the load limit, p99", "ms", 250)
    asked_for = Figure("click → recommendation with its min_position, idle, p99", "ms", 50)
    rng = np.random.default_rng(harness.SEED)
    with harness.processes(policies=STACK) as run:
        client = run.serve()
        for start in range(0, items, BATCH):
            batch = json.dumps([_item(n, rng) for n in range(start, min(items, start + BATCH))]).encode()
            client.post(batch)
        while not client.post(batch, visible=True)["visible"]:
            pass
        events = [_action(n, items, rng) for n in range(actions)]
        client.post(json.dumps(events[:BATCH]).encode(), visible=True)  # kernels are compiled or loaded now
        begun = time.perf_counter()
        for start in range(BATCH, actions, BATCH):
            client.post(json.dumps(events[start : start + BATCH]).encode(), visible=start + BATCH >= actions)
        limit = (actions - BATCH) / (time.perf_counter() - begun)
        for _ in range(repeats):
            asked = [
                _ask(client, "/v1/rank", {"user_id": f"user-{int(rng.integers(10_000))}", "log_exposure": False,
                     "item_ids": [f"item-{n}" for n in rng.choice(items, 100, replace=False).tolist()]})[0]
                for _ in range(300)
            ]  # fmt: skip
            rank.repeats.append(harness.percentiles(asked)[99])
            asked = [_recommend(client, f"user-{int(rng.integers(10_000))}")[0] for _ in range(300)]
            listed.repeats.append(harness.percentiles(asked)[99])
            for figure, share in ((fresh, 0.0), (tenth, 0.1), (half, 0.5)):
                with _Load(client.twin(), share * limit, items):
                    took = [_click(client, n, items, rng) for n in range(100)]
                figure.repeats.append(harness.percentiles(took)[99])
            took = [_click(client, n, items, rng, waits=True) for n in range(100)]
            asked_for.repeats.append(harness.percentiles(took)[99])
        resident = f"{psutil.Process(client.pid).memory_info().rss / 2**20:.0f}"
    for figure in (rank, listed, fresh, tenth, half, asked_for):
        figure.notes = {"load": harness.load(), "resident MB": resident, "load limit, events/s": f"{limit:,.0f}"}
    return [rank, listed, fresh, tenth, half, asked_for]


class _Load:
    """Sends interactions at a steady rate, beside."""

    def __init__(self, client: Client, per_s: float, items: int) -> None:
        self._client, self._per_s, self._items = client, per_s, items
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send, name="load")

    def __enter__(self) -> None:
        if self._per_s:
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._per_s:
            self._thread.join()

    def _send(self) -> None:
        rng = np.random.default_rng(int(self._per_s))
        size = max(1, round(self._per_s / 20))
        number, next_s = 20_000_000, time.perf_counter()
        while not self._stop.is_set():
            batch = [_action(number + n + int(rng.integers(1 << 40)), self._items, rng) for n in range(size)]
            self._client.post(json.dumps(batch).encode())
            number, next_s = number + size, next_s + size / self._per_s
            self._stop.wait(max(0.0, next_s - time.perf_counter()))


def _recommend(client: Client, user: str, *, log: bool = True, min_position: int = 0) -> tuple[float, dict[str, Any]]:
    body = {"user_id": user, "n": 10, "exclude_seen": ["purchase"], "log_exposure": log}
    return _ask(client, f"/v1/recommend?min_position={min_position}&wait_ms=10000", body)


def _click(client: Client, number: int, items: int, rng: np.random.Generator, *, waits: bool = False) -> float:
    """Buy what is recommended; how long until it is recommended no more, s. ``waits``: asked once, by position."""
    user = f"fresh-{number}-{int(rng.integers(1 << 30))}"
    first = _recommend(client, user)[1]["items"][0]["item_id"]
    event = _action(10_000_000 + int(rng.integers(1 << 40)), items, rng)
    event["data"] |= {"user_id": user, "item_id": first, "action": "purchase"}
    event.pop("time")
    position = client.post(json.dumps([event]).encode())["position"]
    begun = time.perf_counter()
    while True:
        found = _recommend(client, user, log=False, min_position=position if waits else 0)[1]["items"]
        if first not in [one["item_id"] for one in found]:
            return time.perf_counter() - begun
        if waits:
            raise RuntimeError(f"{user} bought {first}, and is recommended it again")
        time.sleep(0.002)


def stack(quick: bool, repeats: int) -> list[Figure]:
    """What the fold of the whole stack takes per event, in process, decoding and SQL apart (CPU time)."""
    count, items = 10_000 if quick else 40_000, 10_000
    figures = []
    for policies in (STACK, ("activity",)):
        figure = Figure(f"fold of {' + '.join(policies)}, one core", "events/s", 10_000, higher=True)
        with tempfile.TemporaryDirectory(prefix="streamfold-stack-") as folder:
            table: dict[str, dict[str, Any]] = {name: {} for name in policies}
            node = Node(Settings(data=Path(folder), policies=table))
            groups = node.context.pin("default")
            for repeat in range(repeats + 1):
                figure.repeats.append(_folded(node, groups, count, items, np.random.default_rng(repeat)))
            del figure.repeats[0]  # kernels were compiled or loaded
            node.close()
        figure.notes = {"load": harness.load()}
        figures.append(figure)
    return figures


def _folded(node: Node, groups: Sequence[Group], count: int, items: int, rng: np.random.Generator) -> float:
    """Fold made-up events as groups' folds do, a commit's worth at a time; events per second of CPU."""
    rows = [_action(n, items, rng) for n in range(count)]
    start_us = 1_800_000_000_000_000
    events = []
    for seq, one in enumerate(rows, 1):
        new = node.acceptor.accept_data(one["type"], one["data"], id=one["id"], source="bench")
        events.append(node.registry.event_types.decode(LogRow(seq, start_us + seq * 1000, new.type, new.body)))
    took = 0.0
    for group in groups:
        stores = GroupStores(node.context, group, side="fold")
        named = fold_stores(group, stores)
        begun = time.process_time()
        _fold(group, named, stores, events)
        took += time.process_time() - begun
        stores.close()
    return count / took


def _fold(group: Group, named: dict[str, FoldStores], stores: GroupStores, events: list[Event]) -> None:
    first, *others = group.runtimes
    order = FoldOrder(group, named)
    for start in range(0, len(events), _COMMIT):
        batch = events[start : start + _COMMIT]
        if not others and type(first.policy).fold_batch is not Policy.fold_batch:
            first.policy.fold_batch([(event, None) for event in batch], named[first.key])
        else:
            order.fold(batch, lambda runtime, event: fold_one(runtime, event, None, named[runtime.key]))
        stores.drain()
