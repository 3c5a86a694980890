"""``graph_index`` at 100,000 documents: four clients ask while 50 documents a second stream in, over HTTP.

Documents are LightRAG's harness corpus (120 words, 12 names). Half of what streams in are revisions of documents that
are asked for: an answer is stale if it shows an older revision than the last one that was acknowledged as visible
before the question was sent, and half if a passage comes without its text.

    python tests/benchmarks/bench_graph.py --documents 100000 --seconds 60
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import harness
import httpx
import numpy as np
import psutil

from streamfold.core.testing.service import EmbeddedService

sys.path.insert(0, str(Path(__file__).parents[3] / "shared" / "peers" / "lightrag"))
import bench_common as common  # the peers' harness lies beside the repository

BATCH = 500
REVISED = 200
"""Documents that are sent again and again."""


@dataclass
class Seen:
    """What clients and writer share."""

    revision: dict[int, int] = field(default_factory=dict)
    latencies: list[float] = field(default_factory=list)
    writes: list[float] = field(default_factory=list)
    stale: int = 0
    half: int = 0
    failed: int = 0
    end: float = 0.0


def upsert(event_id: str, number: int, corpus: Any, revision: int = 0) -> dict[str, Any]:
    text = corpus.text(number) + (f" revision {revision} of record {number}" if revision else "")
    data = {"document_id": corpus.doc_id(number), "text": text}
    return {"specversion": "1.0", "id": event_id, "source": "/b", "type": "document.upserted", "data": data}


def load(service: EmbeddedService, corpus: Any, count: int) -> float:
    """Send the corpus and wait until it is visible; return the CPU seconds of the service."""
    pid = service._process.pid
    before = harness.cpu_s(pid)
    position = 0
    for start in range(0, count, BATCH):
        batch = [upsert(f"d{n}", n, corpus) for n in range(start, min(count, start + BATCH))]
        while (answer := service.client.post("/v1/events", json=batch)).status_code == 429:
            time.sleep(float(answer.headers["retry-after"]))
        answer.raise_for_status()
        position = answer.json()["position"]
    visible(service, position)
    return harness.cpu_s(pid) - before


def visible(service: EmbeddedService, position: int) -> None:
    """Wait until a position is visible; what was filled by other code is folded afresh first."""
    wait = {"min_position": position, "wait_ms": 30_000}
    while service.client.post("/v1/query", json={"query": "x"}, params=wait).status_code != 200:
        time.sleep(0.2)


def write(url: str, corpus: Any, seen: Seen, first: int, rate: int) -> None:
    """Send ``rate`` documents a second, in tenths, half of them revisions; each is waited for."""
    rng, number = random.Random(1), first
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        due = time.monotonic()
        while time.monotonic() < seen.end:
            batch, revised = [], {}
            for i in range(rate // 10):
                number += 1
                if i % 2:
                    one = rng.randrange(REVISED)
                    revised[one] = seen.revision.get(one, 0) + 1
                    batch.append(upsert(f"r{number}", one, corpus, revised[one]))
                else:
                    batch.append(upsert(f"n{number}", number, corpus))
            started = time.perf_counter()
            sent = client.post("/v1/events", json=batch, params={"wait": "visible", "wait_ms": 30_000}).json()
            seen.writes.append(time.perf_counter() - started)
            if sent["visible"]:
                seen.revision.update(revised)
            due += 0.1
            time.sleep(max(0.0, due - time.monotonic()))


def ask(url: str, corpus: Any, seen: Seen, seed: int, mode: str) -> None:
    """Ask for revised documents, one question after the other."""
    rng = random.Random(seed)
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        while time.monotonic() < seen.end:
            number = rng.randrange(REVISED)
            least = seen.revision.get(number, 0)
            started = time.perf_counter()
            answer = client.post("/v1/query", json={"query": corpus.query(number), "mode": mode, "log_exposure": False})
            seen.latencies.append(time.perf_counter() - started)
            if answer.status_code != 200:
                seen.failed += 1
                continue
            for chunk in answer.json()["chunks"]:
                seen.half += not chunk["text"]
                if chunk["document_id"] == corpus.doc_id(number) and least:
                    found = re.search(r"revision (\d+) of", chunk["text"])
                    seen.stale += found is None or int(found[1]) < least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--rate", type=int, default=50)
    parser.add_argument("--mode", default="mix")
    parser.add_argument("--filled", type=Path, help="a data folder that holds the documents already; it is copied")
    options = parser.parse_args()
    print(json.dumps(harness.machine()))
    corpus = common.Corpus()
    with tempfile.TemporaryDirectory(prefix="streamfold-graph-") as folder:
        if options.filled:
            shutil.copytree(options.filled, Path(folder) / "data")
        service = EmbeddedService(Path(folder), policies={"graph_index": {}})
        try:
            if options.filled:
                visible(service, service.client.get("/v1/status").json()["position"])
            else:
                started = time.monotonic()
                cpu = load(service, corpus, options.documents)
                took = time.monotonic() - started
                rates = f"{options.documents / cpu:.0f} per CPU second of the service, {options.documents / took:.0f}/s"
                print(f"loaded {options.documents:,} documents: {rates}")
            process = psutil.Process(service._process.pid)
            print(f"resident {process.memory_info().rss / 2**20:.0f} MB", flush=True)
            seen = Seen(end=time.monotonic() + options.seconds)
            clients = [
                threading.Thread(target=ask, args=(service.url, corpus, seen, n, options.mode))
                for n in range(options.clients)
            ]
            writer = threading.Thread(target=write, args=(service.url, corpus, seen, options.documents, options.rate))
            for thread in [*clients, writer]:
                thread.start()
            for thread in [*clients, writer]:
                thread.join()
            for name, values in (("question", seen.latencies), ("write, waited for", seen.writes)):
                p50, p95, p99 = np.quantile(np.array(values) * 1e3, [0.5, 0.95, 0.99])
                print(f"{name}: {len(values) / options.seconds:.0f}/s, p50 {p50:.1f}, p95 {p95:.1f}, p99 {p99:.1f} ms")
            print(f"stale {seen.stale}, half {seen.half}, failed {seen.failed}")
            print(f"resident {process.memory_info().rss / 2**20:.0f} MB")
        finally:
            service.stop()


if __name__ == "__main__":
    main()
