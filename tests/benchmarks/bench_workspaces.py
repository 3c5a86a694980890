"""Many workspaces in one embedded service: what a flooding neighbour costs, and what a thousand of them cost.

``python tests/benchmarks/bench_workspaces.py 1000 100`` measures so many workspaces of so many documents alone.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import harness
import numpy as np
import psutil
from harness import Client, Figure

from streamfold.core.settings import load_settings
from streamfold.pipelines.node import Node

JSON = {"content-type": "application/json"}
_FLOOD = """import json, sys, threading, time
sys.path.insert(0, sys.argv[1])
import harness, numpy as np
port, until = int(sys.argv[2]), time.monotonic() + float(sys.argv[3])
def run(seed):
    client, rng, counts = harness.Client(port), np.random.default_rng(seed), {}
    head = {"content-type": "application/json", "x-workspace": "flood"}
    n = 0
    while time.monotonic() < until:
        n += 1
        batch = json.dumps([harness.interaction(10_000_000 * seed + 10 * n + i, rng) for i in range(10)]).encode()
        for path, body in (("/v1/events", batch), ("/v1/query", b'{"query": "bada fare", "top_k": 10}')):
            status, _ = client._ask("POST", path, body, head)
            counts[status] = counts.get(status, 0) + 1
    print(json.dumps(counts), flush=True)
threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
for t in threads: t.start()
for t in threads: t.join()
"""


def _ask(client: Client, workspace: str, rng: np.random.Generator) -> float:
    """Query a workspace once; return the seconds."""
    body = json.dumps({"query": " ".join(harness.word(int(n)) for n in rng.integers(1, 2000, 4))}).encode()
    begun = time.monotonic()
    status, answer = client._ask("POST", "/v1/query", body, JSON | {"x-workspace": workspace})
    taken = time.monotonic() - begun
    if status != 200:
        raise RuntimeError(f"{status}: {answer[:300]!r}")
    return taken


def _put(client: Client, workspace: str, **quotas: float) -> None:
    status, answer = client._ask("PUT", f"/v1/workspaces/{workspace}", json.dumps({"quotas": quotas}).encode(), JSON)
    if status != 200:
        raise RuntimeError(f"{status}: {answer[:300]!r}")


def isolation(quick: bool, repeats: int) -> list[Figure]:
    """Queries of one workspace, alone and beside one that sends and asks as fast as four connections can."""
    figures = []
    count = 200 if quick else 600
    with harness.processes() as run:
        client, rng = run.serve(), np.random.default_rng(harness.SEED)
        _put(client, "calm")
        _put(client, "flood")
        for workspace in ("calm", "flood"):
            batch = json.dumps([harness.document(n, rng) for n in range(500)]).encode()
            headers = JSON | {"x-workspace": workspace}
            client._ask("POST", "/v1/events?wait=visible&wait_ms=30000", batch, headers)
        for name, quotas in (("with quotas", {"events_per_s": 200.0, "queries_per_s": 20.0}), ("without quotas", {})):
            ratio = Figure(f"p99 of a workspace's queries beside a flooding one, {name}, over alone", "×", 2.0)
            _put(client, "flood", **quotas)
            for _ in range(repeats):
                alone = _calm(client, rng, count)
                words = [str(Path(__file__).parent), str(client.port), str(count * 0.02 + 2)]
                with subprocess.Popen([sys.executable, "-c", _FLOOD, *words], stdout=subprocess.PIPE) as flood:
                    time.sleep(1)
                    beside = _calm(client, rng, count)
                    assert flood.stdout is not None
                    lines = [json.loads(line) for line in flood.stdout]
                ratio.repeats.append(beside[99] / alone[99])
                answers: dict[str, int] = {}
                for line in lines:
                    answers = {key: answers.get(key, 0) + line.get(key, 0) for key in {*answers, *line}}
                ratio.notes = {
                    "alone p50/p99": f"{alone[50]:.1f}/{alone[99]:.1f} ms",
                    "beside p50/p99": f"{beside[50]:.1f}/{beside[99]:.1f} ms",
                    "the flood's answers": answers,
                    "load": harness.load(),
                }
            figures.append(ratio)
    return figures


def _calm(client: Client, rng: np.random.Generator, count: int) -> dict[int, float]:
    samples = []
    for _ in range(count):
        samples.append(_ask(client, "calm", rng))
        time.sleep(0.015)
    return harness.percentiles(samples)


def many(quick: bool, repeats: int, workspaces: int = 0, documents: int = 0) -> list[Figure]:
    """Workspaces of documents, written by one process; then a service that opens each when it is first asked."""
    del repeats
    workspaces, documents = workspaces or (100 if quick else 1000), documents or (50 if quick else 1000)
    size = f"{workspaces:,} workspaces of {documents:,} documents"
    names = [f"w{n:04d}" for n in range(workspaces)]
    with harness.processes(policies=["vector_index"]) as run:
        wall_s = _fill(run.file, names, documents)
        client = run.serve()
        process = psutil.Process(client.pid)
        before = process.memory_info().rss
        rng, order = np.random.default_rng(harness.SEED), random.Random(harness.SEED).sample(names, len(names))
        cold = [_ask(client, name, rng) for name in order]
        after = process.memory_info().rss
        warm = [_ask(client, order[-1], rng) for _ in range(100)]
        limit = load_settings(run.file).serve.max_open_workspaces
        found = harness.percentiles(cold)
        notes: dict[str, Any] = {"size": size, "open at most": limit, "load": harness.load()}
        p50 = Figure("first query of a workspace, p50", "ms", 100, repeats=[found[50]], notes=notes)
        p99 = Figure("first query of a workspace, p99", "ms", 500, repeats=[found[99]], notes=notes)
        again = Figure("next query, p50", "ms", 20, repeats=[harness.percentiles(warm)[50]], notes=notes)
        memory = Figure(
            "memory after all were asked, over the start's", "MiB", 2048, repeats=[(after - before) / 2**20]
        )
        memory.notes = notes | {"at the start": f"{before / 2**20:.0f} MiB", "filled in": f"{wall_s:.0f} s"}
    return [p50, p99, again, memory]


def _fill(file: Path, names: list[str], documents: int) -> float:
    """Write and fold the documents of all workspaces, in this process; return the seconds."""
    begun, rng = time.monotonic(), np.random.default_rng(harness.SEED)
    node = Node(load_settings(file))
    node.start_serving([])
    for name in names:
        node.context.pin(name)
        made = [harness.document(n, rng) for n in range(documents)]
        accept = node.acceptor.accept_data
        events = [accept(e["type"], e["data"], id=e["id"], source=e["source"]) for e in made]
        node.ledger.append(name, events, recorded_us=node.context.clock.now_us())
        node.appended(name)
        harness.until(lambda: len(node.ledger.behind()) < 20, 600)
    harness.until(lambda: not node.ledger.behind(), 600)
    node.close()
    return time.monotonic() - begun


if __name__ == "__main__":
    harness.report(many(False, 1, *map(int, sys.argv[1:])))
