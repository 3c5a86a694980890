"""Full text search at 100,000 passages of 78 words: CPU milliseconds an insert, a delete and a question of 12 words.

Run: ``python tests/benchmarks/bench_text.py [passages]``. Synthetic Zipf text over 60,000 word forms, seed fixed;
process CPU time of one thread. The bars: insert ≤ .5 ms, question ≤ 3 ms.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import json
import platform
import sys
import time

import numpy as np

from streamfold.core.stores import LiveTable, LiveText, Table, Text
from streamfold.core.stores.text.analyser import stem

SEED = 7
LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz"))


def words(rng: np.random.Generator, count: int) -> list[str]:
    lengths = rng.integers(4, 11, count)
    return ["".join(LETTERS[rng.integers(0, 26, n)]) for n in lengths]


def spread(samples: list[float]) -> dict[str, float]:
    p = np.percentile(np.array(samples) * 1e3, [50, 90, 99])
    return {"mean_ms": round(float(np.mean(samples)) * 1e3, 4)} | dict(
        zip(("p50_ms", "p90_ms", "p99_ms"), map(float, p.round(4)), strict=True)
    )


def main(passages: int = 100_000) -> dict[str, object]:
    rng = np.random.default_rng(SEED)
    vocabulary = words(rng, 60_000)
    weights = 1 / np.arange(2, 60_002) ** 1.05
    cumulative = np.cumsum(weights / weights.sum())

    def text(n: int) -> str:
        return " ".join(vocabulary[i] for i in np.searchsorted(cumulative, rng.random(n)).clip(max=59_999))

    store = LiveText(Text("bench", weights={"text": 1}))
    inserts, queries, deletes = [], [], []
    for key in range(passages):
        value = {"text": text(78)}
        start = time.process_time()
        store.begin()
        store.put([key], [value])
        store.keep()
        inserts.append(time.process_time() - start)
        if key % 1000 == 0:
            store.drain()
    for _ in range(500):
        # A question's words lie less towards the head of the distribution than running text: drawn from its root.
        question = " ".join(vocabulary[int(60_000 ** rng.random())] for _ in range(12))
        start = time.process_time()
        store.search(question, 10)
        queries.append(time.process_time() - start)
    running = []
    for _ in range(200):
        question = text(12)
        start = time.process_time()
        store.search(question, 10)
        running.append(time.process_time() - start)
    for key in rng.permutation(passages)[: passages // 4].tolist():
        start = time.process_time()
        store.delete([key])
        store.keep()
        deletes.append(time.process_time() - start)
    result = {
        "passages": passages,
        "seed": SEED,
        "machine": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "insert": spread(inserts),
        "insert_last_tenth": spread(inserts[-passages // 10 :]),
        "query_log_uniform_words": spread(queries),
        "query_running_text_words": spread(running),
        "delete": spread(deletes),
        "slowest_delete_ms": round(max(deletes) * 1e3, 1),
        "stems_cached": stem.cache_info().currsize,
        "table": table(passages),
    }
    print(json.dumps(result, indent=1))
    return result


def table(rows: int) -> dict[str, float]:
    store = LiveTable(Table("t", key=str, value=float, max_rows=rows))
    keys = [f"item-{i}" for i in range(rows + rows // 2)]
    numbers = np.random.default_rng(SEED).random(len(keys)).tolist()
    start = time.process_time()
    for key, number in zip(keys[:rows], numbers, strict=False):
        store.begin()
        store.put(key, store.get(key, 0.0) + number)
        store.keep()
    filled = time.process_time()
    for key in keys[:rows]:
        store.put(key, store.get(key, 0.0) + 1.0)
    updated = time.process_time()
    store.keep()
    for key, number in zip(keys[rows:], numbers[rows:], strict=True):
        store.begin()
        store.put(key, number + 1.0)
        store.keep()
    evicted = time.process_time()
    store.top(100)
    tops = []
    for key in keys[-200:]:
        store.put(key, 2.5)
        store.keep()
        begun = time.process_time()
        store.top(100)
        tops.append(time.process_time() - begun)
    return {
        "event_get_put_us": round((filled - start) / rows * 1e6, 3),
        "get_put_us": round((updated - filled) / rows * 1e6, 3),
        "event_with_eviction_us": round((evicted - updated) / (rows // 2) * 1e6, 3),
        "top_100_ms": spread(tops)["p50_ms"],
    }


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
