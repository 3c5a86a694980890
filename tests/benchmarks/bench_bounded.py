"""Endless ids: what state and process hold while every event has a user and an item that never came before.

Run: ``python tests/benchmarks/bench_bounded.py [--ids 10000000] [--only NAME …]``. Default configurations, but for
``activity``: a row of it is a Python object, so its bounds are lowered until all of them are reached
(``--rows``, seen pairs and places of rings; a fifth of it users), and what a row takes tells what the defaults would.
Bytes after 1 %, 10 % and all; each policy in a process of its own, so that what one leaves is not another's.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import harness
import msgspec
import numpy as np
import psutil

from streamfold.core import Event, Example
from streamfold.core.events import builtin_types
from streamfold.core.testing import Lab
from streamfold.core.testing.lab import Case
from streamfold.plugins import builtin

RANKERS = ("count_stack", "factorization", "implicit_ftrl", "deepfm")
MEMORIES = ("residual_table", "reloop2_lsh", "reloop2_topk")
BATCH = 10_000
TYPES = {kind.name: kind for kind in builtin_types()}
KINDS = {kind.name: kind for kind in builtin.register_policies()}
Feed = Callable[[int], None]


def feeder(name: str, bench: Any) -> Feed:
    """What makes a policy take ``BATCH`` examples or events of new ids from a number on."""
    policy, stores = bench.policy, bench.stores()
    base = np.full(BATCH, 0.5)

    def examples(first: int) -> None:
        made = [_example(n) for n in range(first, first + BATCH)]
        if name in MEMORIES:
            policy.remember(made, base, stores)
        else:
            policy.learn(made, stores)
        for one in policy.stores:
            stores[one.name].keep()

    def events(first: int) -> None:
        for n in range(first, first + BATCH):
            bench.fold_prepared(bench.runtime, _event(n), None)

    return events if name == "activity" else examples


def _example(n: int) -> Example:
    return Example(n, 0, f"u:{n}", f"i{n}", float(n % 3 == 0), n * 1000, (), ("drama", "war") if n % 2 else ("noir",))


def _event(n: int) -> Event:
    kind = TYPES["interaction.observed"]
    told = msgspec.convert({"user_id": f"{n}", "item_id": f"i{n}", "action": "click"}, kind.data)
    return Event(
        seq=n + 1, type=kind.name, source="bench", id=f"{n}", subject=kind.subjects(told)[0], data=told,
        time_us=n * 1000, recorded_us=n * 1000,
    )  # fmt: skip


def endless(name: str, count: int, rows: int) -> None:
    """Print bytes of state and process at 1 %, 10 % and the end, and how many a second were taken."""
    configs: dict[str, Any] = {"activity": {"max_seen": rows, "max_users": rows // 5}}
    configs |= {memory: {"base": "count_stack"} for memory in MEMORIES}
    kind: Any = KINDS[name]
    config = kind.Config(**configs.get(name, {}))
    with Lab(Case(make=lambda: kind(config), plugins=(builtin,))) as lab:
        bench = lab.bench()
        feed = feeder(name, bench)
        live = bench.live.by_runtime[bench.runtime.key]
        spent = 0.0
        print(f"| `{name}` |", end="", flush=True)
        for first in range(0, count, BATCH):
            start = time.process_time()
            feed(first)
            for store in live.values():
                store.drain()
            spent += time.process_time() - start
            if (done := first + BATCH) in (count // 100, count // 10, count):
                state = sum(store.state_bytes() for store in live.values()) / 1e6
                print(
                    f" {done:,}: {state:.1f} / {psutil.Process().memory_info().rss / 2**20:.0f} |", end="", flush=True
                )
    print(f" {count / spent:,.0f}/s |", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ids", type=int, default=10_000_000)
    parser.add_argument("--rows", type=int, default=500_000, help="bound of activity's tables")
    parser.add_argument("--only", nargs="+", choices=[*RANKERS, *MEMORIES, "activity"])
    given = parser.parse_args(arguments)
    names = given.only or [*RANKERS, *MEMORIES, "activity"]
    if len(names) == 1:
        endless(names[0], given.ids, given.rows)
        return
    print(f"policy | ids: MB of state / MB of the process | (load {harness.load()})", flush=True)
    for name in names:
        subprocess.run(
            [sys.executable, __file__, "--ids", str(given.ids), "--rows", str(given.rows), "--only", name], check=True
        )


if __name__ == "__main__":
    main()
