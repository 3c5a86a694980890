"""What core costs around a policy's fold, how fast a policy is folded afresh, and how long a large state takes back."""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import numpy as np
from harness import Figure

from streamfold.core import Event, Policy, Stores, Table
from streamfold.core.fold.group import GroupFold
from streamfold.core.fold.refold import Refold
from streamfold.core.fold.stores import GroupStores, recover
from streamfold.core.testing.world import World, plugin
from streamfold.plugins import builtin

BATCH = 2_048
RATE = math.log(2) / 86_400


def fold(quick: bool, repeats: int) -> list[Figure]:
    """CPU per event of the fold around ``Trending``, decode and SQL apart, over a bare loop with a dict."""
    count = 50_000 if quick else 200_000
    overhead = Figure("fold overhead of core per event over a bare loop", "µs", 5.0)
    rebuilt = Figure("trending folded in fold_batch", "events/s", 50_000, higher=True)
    whole = Figure("trending folded afresh, reading and decoding included", "events/s", 50_000, higher=True)
    with (
        tempfile.TemporaryDirectory(prefix="streamfold-fold-") as folder,
        World(Path(folder), [builtin], {"trending": {}}) as world,
    ):
        _append(world, count)
        rows = [row for page in _pages(world) for row in page]
        events = {row.seq: world.registry.event_types.decode(row) for row in rows}
        group = world.group("trending")
        for _ in range(repeats):
            bare = _bare(list(events.values()))
            spent = _folded(world, group, rows, events)
            overhead.repeats.append((spent - bare) / count * 1e6)
            overhead.notes = {"bare µs": f"{bare / count * 1e6:.2f}", "load": harness.load()}
            rebuilt.repeats.append(count / spent)
            stores = GroupStores(world.context, group, side="view")
            started = time.process_time()
            fold_afresh = Refold(world.context, "default", group, stores, batched=True)
            fold_afresh.run(world.ledger.head("default"), lambda done, total: None)
            whole.repeats.append(count / (time.process_time() - started))
            stores.close()
    return [overhead, rebuilt, whole]


def _append(world: World, count: int) -> None:
    rng = np.random.default_rng(harness.SEED)
    made = [harness.interaction(n, rng) for n in range(count)]
    for start in range(0, count, 5_000):
        part = made[start : start + 5_000]
        events = [world.acceptor.accept_data(e["type"], e["data"], id=e["id"], source=e["source"]) for e in part]
        world.ledger.append("default", events, recorded_us=world.clock.now_us())


def _pages(world: World) -> Any:
    after = 0
    while rows := world.ledger.read("default", after, BATCH, upto=None, types=None).rows:
        yield rows
        after = rows[-1].seq


def _bare(events: list[Event]) -> float:
    """The same arithmetic in a loop with a dict."""
    started = time.process_time()
    scores: dict[str, float] = {}
    for event in events:
        item, value = event.data.item_id, event.at_s * RATE
        old = scores.get(item)
        if old is None:
            scores[item] = value
        else:
            high, low = (old, value) if old > value else (value, old)
            scores[item] = high + math.log1p(math.exp(low - high))
    return time.process_time() - started


def _folded(world: World, group: Any, rows: list[Any], events: dict[int, Event]) -> float:
    """Core's fold of all rows, their events decoded before, drained at each commit."""
    folding = GroupFold(world.context, "default", group, world.prepared)
    types = world.registry.event_types
    decode = types.decode
    assert folding.acquire()
    assert folding._stores is not None
    try:
        types.decode = lambda row: events[row.seq]  # type: ignore[method-assign]  # decoding is not what is measured
        started = time.process_time()
        for start in range(0, len(rows), BATCH):
            folding._fold_rows(rows[start : start + BATCH], {})
            folding._stores.drain()
        return time.process_time() - started
    finally:
        types.decode = decode  # type: ignore[method-assign]
        folding.release()


class Large(Policy):
    """Rows of a kilobyte."""

    name, version, handles = "large", 1, ("item.upserted",)
    stores = (Table("rows", key=str, value=bytes, on_full="refuse"),)

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        stores["rows"].put(event.data.item_id, (event.data.title or "").encode())


def recovery(quick: bool, repeats: int) -> list[Figure]:
    """Seconds until a group with 100 MB of state is warm again: checkpoint, and the feed after it."""
    megabytes = 10 if quick else 100
    figure = Figure(f"recovery of a group with {megabytes} MB of state", "s", 3.0)
    with (
        tempfile.TemporaryDirectory(prefix="streamfold-recovery-") as folder,
        World(Path(folder), [plugin([Large])], {"large": {}}) as world,
    ):
        for start in range(0, megabytes * 1_000, 500):
            text = "x" * 1_000
            events = [("item.upserted", {"item_id": f"i{n}", "title": text}) for n in range(start, start + 500)]
            world.send_many(events)
            world.fold()
        group = world.group("large")
        for _ in range(repeats):
            stores = GroupStores(world.context, group, side="fold")
            started = time.perf_counter()
            commit, _ = recover(world.context, "default", group, stores)
            figure.repeats.append(time.perf_counter() - started)
            state = world.ledger.group("default", group.name)
            size = stores.state_bytes() / 1e6
            stores.close()
            figure.notes = {
                "MB": f"{size:.0f}",
                "commits after the checkpoint": commit - state.checkpoint_commit,
                "load": harness.load(),
            }
    return [figure]
