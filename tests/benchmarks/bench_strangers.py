"""Reading for endless strangers: state, caches and the process after a million users whom nobody knows.

Run: ``python tests/benchmarks/bench_strangers.py [--unknown 1000000] [--only NAME …]``. Each user comes once, with ten
items, five of which nobody knows either, and asks one server everything that a request may ask of it
(``strangers.py``); ``recommend``: what ``POST /v1/recommend`` does, without HTTP. Each server in a process of its own;
``reloop2_topk``, on top of the other memories and all rankers, asks them all. Before and after: bytes and digests of
all stores of all policies, which must be equal; entries of every cache, none above its bound; MB of the process, which
grow until the caches are full, and no more.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import harness
import psutil
import strangers
from strangers import SERVERS, Read

from streamfold.core.testing import World
from streamfold.pipelines.serve import recommend

TENTHS = 10


def recommending(world: World) -> Read:
    """Return what answers ``POST /v1/recommend`` for stranger number ``n``."""
    view = world.view

    def read(n: int) -> None:
        body = recommend.Recommend(user_id=f"stranger{n}", exclude_seen=["purchase"], explore=0.1 * (n % 2))
        stack = recommend.stack_of(view, None, body.user_id)
        with view.reading(stack.groups, stack.among):
            items, fallback, _ = recommend._Recommending(view, stack, body, None).answer(f"x{n}")
        assert len(items) == 10
        assert fallback == "popular"

    return read


def resident() -> float:
    """Return the process's memory, MB."""
    gc.collect()
    return float(psutil.Process().memory_info().rss / 2**20)


def run(name: str, count: int) -> None:
    """Print a row: the state before and after, the process before, after each tenth and at the end."""
    with (
        tempfile.TemporaryDirectory(prefix="streamfold-strangers-") as folder,
        strangers.recommender(Path(folder)) as world,
    ):
        view = world.view
        read = recommending(world) if name == "recommend" else strangers.reader(name, view.member(name).server)
        state, size, kept = strangers.held(view), strangers.state_bytes(view), strangers.caches()
        print(f"| `{name}` | {sum(size.values()):,} | {resident():.0f}", end="", flush=True)
        read(-1)  # kernels are compiled or loaded
        spent = 0.0
        for tenth in range(TENTHS):
            began = time.process_time()
            for n in range(tenth * count // TENTHS, (tenth + 1) * count // TENTHS):
                read(n)
            spent += time.process_time() - began
            assert strangers.held(view) == state
            print(f" {resident():.0f}", end="", flush=True)
        after, full = strangers.state_bytes(view), strangers.caches()
        assert after == size
        assert not strangers.unbounded(kept, full), strangers.unbounded(kept, full)
        entries = sum(entries for entries, _ in full.values())
        print(f" | {sum(after.values()):,}, equal | {entries:,} | {spent / count * 1e6:.0f} |", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--unknown", type=int, default=1_000_000)
    parser.add_argument("--only", nargs="+", choices=[*SERVERS, "recommend"])
    given = parser.parse_args(arguments)
    names = given.only or [*SERVERS, "recommend"]
    if len(names) == 1:
        run(names[0], given.unknown)
        return
    print(f"{given.unknown:,} strangers (load {harness.load()})")
    print("server | state, bytes | MB of the process: before, after each tenth | state after | cached | µs a stranger")
    for name in names:
        subprocess.run([sys.executable, __file__, "--unknown", str(given.unknown), "--only", name], check=True)


if __name__ == "__main__":
    main()
