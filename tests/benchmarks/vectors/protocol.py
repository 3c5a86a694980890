"""Run the stream on one engine, and take the CPU time of every call.

Half of the rows come in bulk; the others stream in one by one, in batches of 64 and of 1,024. A fifth is deleted, half
of that comes back under the old ids with new vectors, and 100 rows are updated one by one. Then come the queries. What
an engine puts off is done between the calls, and counted in the sustained rates.
"""

from __future__ import annotations

import gc
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from vectors import data
from vectors.engines import Engine
from vectors.mixed import mixed

TARGET = 0.95
_SINGLES, _BATCHES = 200, 40
_LONG_S = 0.1  # of maintenance: only then it is asked whether it trained anew
_PATIENCE = 30_000  # queries
_ENOUGH = 0.985  # recall at which a sweep ends
_NEAR = 0.85  # recall from which times are taken


def cpu_s(call: Callable[..., Any], *arguments: Any) -> float:
    """Return the CPU seconds of one call, of all threads of this process."""
    start = time.process_time()
    call(*arguments)
    return time.process_time() - start


class Run:
    """One engine, one stream, and what was measured: a flat ``dict`` of numbers, and the sweep."""

    def __init__(self, make: type[Engine], stream: data.Stream, *, mixed_s: float, drift: bool) -> None:
        self.make = make
        self.stream = stream
        self.mixed_s = mixed_s
        self.drift = drift
        self.found: dict[str, Any] = {}
        self.maintained_s = 0.0
        self.retrained_s = 0.0  # of that, in calls that trained anew
        self.retrains = 0

    def measure(self) -> dict[str, Any]:
        """Do everything, in order."""
        stream = self.stream
        capacity = stream.rows + len(stream.drift) + len(stream.extra)
        warm = self.make(data.K, 128)  # imports are paid before
        warm.close()
        del warm
        gc.collect()
        before = psutil.Process().memory_info().rss
        self.engine = self.make(stream.rows, capacity)
        self._write()
        gc.collect()
        resident = psutil.Process().memory_info().rss - before
        ids, vectors = stream.live()
        self.found["bytes_per_row"] = resident / len(ids)
        self.engine.half_grown(ids, vectors)
        if self.engine.tunes:
            self._tuned()
        self._sweep()
        if self.engine.filters:
            self._filtered()
        self.found["told"] = self.engine.figures()
        self._saved()
        if self.drift:
            self._drifted()
        self.engine.close()
        return self.found

    # -- writes -------------------------------------------------------------------------------------------------------
    def _timed(self, call: Callable[..., Any], *arguments: Any) -> float:
        took = cpu_s(call, *arguments)
        maintained = cpu_s(self.engine.maintain)
        self.maintained_s += maintained
        if maintained > _LONG_S and (count := self.engine.retrains()) != self.retrains:
            self.retrains = count
            self.retrained_s += maintained
        return took

    def _in_turn(self, call: Callable[..., Any], size: int, *arrays: Any) -> list[float]:
        return [
            self._timed(call, *(array[at : at + size] for array in arrays)) for at in range(0, len(arrays[0]), size)
        ]

    def _write(self) -> None:
        stream, engine, found = self.stream, self.engine, self.found
        ids = np.arange(stream.rows)
        half = stream.rows // 2
        took = self._timed(engine.bulk, ids[:half], stream.vectors[:half])
        found["bulk_rows_per_s"] = half / (took + self.maintained_s)

        singles = half + min(_SINGLES, half // 4)
        batches = singles + 64 * min(_BATCHES, half // 256)
        parts = {1: slice(half, singles), 64: slice(singles, batches), 1024: slice(batches, stream.rows)}
        self.maintained_s = self.retrained_s = took = 0.0
        for size, part in parts.items():
            times = self._in_turn(engine.add, size, ids[part], stream.vectors[part])
            took += sum(times)
            found[f"insert{size}_ms"] = float(np.median(times[:-1] or times)) * 1e3  # the last may be smaller
        found["insert_rows_per_s"] = (stream.rows - half) / took
        found["merged_rows_per_s"] = (stream.rows - half) / (took + self.maintained_s - self.retrained_s)
        found["sustained_rows_per_s"] = (stream.rows - half) / (took + self.maintained_s)

        one, many = stream.deleted[:50], stream.deleted[50:]
        found["delete1_ms"] = float(np.median(self._in_turn(engine.delete, 1, one))) * 1e3
        times = self._in_turn(engine.delete, 1_000, many)
        found["delete1000_ms"] = float(np.median(times[:-1] or times)) * 1e3

        again = stream.vectors[stream.rows :]
        self.maintained_s = 0.0
        took = sum(self._in_turn(engine.add, 1_024, stream.again, again[: len(stream.again)]))
        found["again_rows_per_s"] = len(stream.again) / (took + self.maintained_s)

        new = again[len(stream.again) :][: len(stream.updated)]
        times = self._in_turn(engine.update, 1, stream.updated, new)
        found["update1_ms"] = float(np.median(times)) * 1e3

    # -- reads --------------------------------------------------------------------------------------------------------
    def _recall(self, queries: data.Floats, truth: data.Ids) -> float:
        parts = [self.engine.search(queries[at : at + 64], data.K) for at in range(0, len(truth), 64)]
        return data.recall(np.concatenate(parts)[: len(truth)], truth)

    def _latency(self) -> dict[str, float]:
        queries, search = self.stream.queries, self.engine.search
        one = np.array([cpu_s(search, queries[i, None], data.K) for i in range(data.QUERIES)]) * 1e3
        many = [cpu_s(search, queries[at : at + 64], data.K) for at in range(0, 15 * 64, 64)]
        p10, p50, p95 = map(float, np.percentile(one, [10, 50, 95]))
        return {"p10_ms": p10, "p50_ms": p50, "p95_ms": p95, "batch64_per_s": 64 / float(np.median(many))}

    def _tuned(self) -> None:
        """Let it see queries, and find its own setting; then measure that."""
        for at in range(data.QUERIES, 2 * data.QUERIES):
            self.engine.search(self.stream.queries[at, None], data.K)
            self.engine.maintain()
        self.found["tuned_recall"] = self._recall(self.stream.queries, self.stream.truth)
        self.found["tuned_setting"] = self.engine.figures()["nprobe"]
        self.found |= {f"tuned_{name}": value for name, value in self._latency().items()}

    def _sweep(self) -> None:
        sweep = []
        for setting in self.engine.settings:
            self.engine.choose(setting)
            point: dict[str, float] = {"setting": setting}
            point["recall"] = self._recall(self.stream.queries, self.stream.truth)
            if point["recall"] >= _NEAR:
                point |= self._latency()
                sweep.append(point)
            if point["recall"] >= _ENOUGH:
                break
        self.found["sweep"] = sweep
        best = next((point for point in sweep if point["recall"] >= TARGET), sweep[-1] if sweep else point)
        self.found |= best
        self.engine.choose(int(best["setting"]))

    def _filtered(self) -> None:
        stream = self.stream
        queries = stream.queries[: data.FILTER_QUERIES]
        for percent, allowed, truth in zip(data.PERCENTS, stream.allowed, stream.allowed_truth, strict=True):
            chosen = self.engine.filter_of(allowed)
            found = self.engine.filtered(queries, data.K, chosen)
            self.found[f"filtered{percent}_recall"] = data.recall(found, truth)
            self.found[f"filtered{percent}_ms"] = self._filtered_ms(chosen)
            if self.engine.takes_ids:
                self.found[f"filtered{percent}_ids_ms"] = self._filtered_ms(allowed)

    def _filtered_ms(self, chosen: Any) -> float:
        queries, search = self.stream.queries, self.engine.filtered
        return float(np.median([cpu_s(search, queries[i, None], data.K, chosen) for i in range(50)])) * 1e3

    # -- files, readers beside a writer, drift ------------------------------------------------------------------------
    def _saved(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="streamfold-vectors-"))
        try:
            start = time.perf_counter()
            self.engine.save(folder / "index")
            self.found["snapshot_s"] = time.perf_counter() - start
            start = time.perf_counter()
            other = self.engine.opened(folder / "index", background=True)
            other.search(self.stream.queries[:1], data.K)
            self.found["open_s"] = time.perf_counter() - start
            if self.mixed_s and self.engine.concurrent:
                other.choose(int(self.found["setting"]))
                self.found |= mixed(other, self.stream, self.mixed_s)
            other.close()
        finally:
            shutil.rmtree(folder)

    def _drifted(self) -> None:
        stream = self.stream
        ids = np.arange(stream.rows, stream.rows + len(stream.drift))
        before = self.engine.retrains()
        self._in_turn(self.engine.add, 1_024, ids, stream.drift)
        self.found["drift_recall"] = self._recall(stream.drift_queries, stream.drift_truth)
        if self.engine.tunes:
            self.found["drift_noticed"] = self._queries_until_retrained(before)
            self.found["noticed_recall"] = self._recall(stream.drift_queries, stream.drift_truth)
        before = self.engine.retrains()
        took = cpu_s(self.engine.retrain)
        if self.engine.retrains() > before:
            self.found["retrain_s"] = took
            self.found["retrained_recall"] = self._recall(stream.drift_queries, stream.drift_truth)

    def _queries_until_retrained(self, before: int) -> int:
        """Ask for new clusters until it has noticed, by its probes, that it must train anew."""
        for count in range(_PATIENCE):
            if count % 100 == 0:
                self.engine.maintain()
                if self.engine.retrains() > before:
                    return count
            self.engine.search(self.stream.drift_queries[count % data.DRIFT_QUERIES, None], data.K)
        return _PATIENCE
