"""Readers beside a writer, by the wall clock: 2,000 inserts and 240 deletes a second, two threads that search."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np

from vectors import data
from vectors.engines import Engine

INSERTS, DELETES = 2_000, 240  # a second
READERS = 2
_BEATS = 50  # a second: each inserts and deletes its share
_CHECKED = 200


def mixed(engine: Engine, stream: data.Stream, seconds: float) -> dict[str, Any]:
    """Write at the given pace, or as near to it as the engine comes, and let two threads search meanwhile."""
    stop = threading.Event()
    waits: list[list[float]] = [[] for _ in range(READERS)]

    def read(number: int) -> None:
        mine, at = waits[number], number * 17
        while not stop.is_set():
            query = stream.queries[at % len(stream.queries), None]
            start = time.perf_counter()
            engine.search(query, data.K)
            mine.append(time.perf_counter() - start)
            at += 1

    ids, vectors = stream.live()
    gone = np.random.default_rng(stream.rows).permutation(len(ids))
    inserted = deleted = 0
    calls: list[float] = []
    threads = [threading.Thread(target=read, args=(i,)) for i in range(READERS)]
    for thread in threads:
        thread.start()
    begun = time.perf_counter()
    beat = 0
    while (now := time.perf_counter() - begun) < seconds:
        if now < beat / _BEATS:
            time.sleep(beat / _BEATS - now)
        beat += 1
        new = np.arange(inserted, min(inserted + INSERTS // _BEATS, len(stream.extra)))
        old = gone[deleted : int(min(beat * DELETES / _BEATS, len(gone) // 2))]
        start = time.perf_counter()
        if len(new):
            engine.add(stream.rows + len(stream.drift) + new, stream.extra[new])
        if len(old):
            engine.delete(ids[old])
        calls.append(time.perf_counter() - start)
        inserted += len(new)
        deleted += len(old)
    wall = time.perf_counter() - begun
    stop.set()
    for thread in threads:
        thread.join()
    left = gone[deleted:]
    all_ids = np.concatenate([ids[left], stream.rows + len(stream.drift) + np.arange(inserted)])
    rows = np.concatenate([vectors[left], stream.extra[:inserted]])
    queries = stream.queries[:_CHECKED]
    took = np.concatenate([np.array(w) for w in waits]) * 1e3
    return {
        "mixed_reads_per_s": len(took) / wall,
        "mixed_read_p50_ms": float(np.percentile(took, 50)),
        "mixed_read_p99_ms": float(np.percentile(took, 99)),
        "mixed_inserts_per_s": inserted / wall,
        "mixed_deletes_per_s": deleted / wall,
        "mixed_write_p99_ms": float(np.percentile(calls, 99)) * 1e3,
        "mixed_told": engine.figures(),
        "mixed_recall": data.recall(engine.search(queries, data.K), data.nearest(queries, rows, all_ids)),
    }
