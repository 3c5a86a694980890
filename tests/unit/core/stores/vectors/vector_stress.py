"""Readers, writers and upkeep on one index at once, until the time is over; run as a process of its own.

``python vector_stress.py KIND SECONDS SEED FOLDER`` ends with 0 and a JSON line of counts, or with a traceback.

Two sorts of rows:

- **Steady** ids are only ever updated. The vector of version ``v`` has its own axis and, in a plane that they share,
  the angle ``v``: a score tells which version answered. A reader notes the version written before it asks and the
  version begun when it has its answer; what it finds must lie between, and never before what it found last.
- **Changing** ids come and go. Each has a clock that is odd while the id is absent or being written; if the clock
  stood still over a search, the id must (even) or must not (odd, absent) be found.

No reader holds a lock of this file while it asks.
"""

from __future__ import annotations

import faulthandler
import json
import shutil
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamfold.core.stores.vectors import LayeredVectors

Array = npt.NDArray[Any]

STEADY = 12
PLANE = slice(STEADY, STEADY + 2)
DIM = STEADY + 2 + 18
TURN = 16
"""Versions to a turn of the plane."""
CHANGING = 3000
FIRST = 1000
"""Ids of changing rows start here."""
K = 16
TOLERANCE = 0.02
ABSENT, WRITING = 1, 3
"""Clock modulo 4: 0 present, 1 absent (since its deletion returned), 3 being written or deleted."""


def angle(version: int) -> tuple[float, float]:
    turn = 2 * np.pi * version / TURN
    return float(np.cos(turn)), float(np.sin(turn))


def steady_row(key: int, version: int) -> Array:
    row = np.zeros(DIM, np.float32)
    row[key] = 0.8
    cos, sin = angle(version)
    row[PLANE] = 0.6 * cos, 0.6 * sin
    return row


def steady_score(asked: int, version: int) -> float:
    """The score of a version to the query that is a quarter of a turn ahead of ``asked``."""
    return 0.64 + 0.36 * float(np.cos(2 * np.pi * (asked + TURN / 4 - version) / TURN))


def changing_row(key: int, life: int) -> Array:
    rng = np.random.default_rng([key, life])
    row = np.zeros(DIM, np.float32)
    row[STEADY + 2 :] = np.random.default_rng(key % 40).normal(size=18) + rng.normal(size=18)
    scaled: Array = row / np.linalg.norm(row)
    return scaled


class Stress:
    def __init__(self, kind: str, seconds: float, seed: int, folder: Path) -> None:
        self.kind, self.seed, self.folder = kind, seed, folder
        self.exact = kind != "hnsw"
        self.pause_s = 0.0005 if self.exact else 0.1
        """Between writes: a graph takes half a millisecond per row, and its upkeep must keep up."""
        self.parameters: dict[str, Any] = {
            "kind": kind, "exact_rows": 256, "growing_rows": 8, "segment_rows": 1024, "nprobe": 1_000_000,
            "probe_every": 50, "seed": seed,
        }  # fmt: skip
        self.index = LayeredVectors(DIM, **self.parameters)
        self.begun = [0] * STEADY
        self.written = [0] * STEADY
        self.clocks = np.full(CHANGING, ABSENT, np.int64)
        self.lives = np.zeros(CHANGING, np.int64)
        self.live = 0
        self.end = time.monotonic() + seconds
        self.counts: Counter[str] = Counter()
        self.stop = threading.Event()
        self.failure = ""
        self.index.upsert(np.arange(STEADY), np.stack([steady_row(key, 0) for key in range(STEADY)]))

    # -- writers: one of steady ids, two of changing ids (each its half) ----------------------------------------------
    def update_steady(self, rng: np.random.Generator) -> None:
        keys = rng.choice(STEADY, rng.choice([1, 1, 3, STEADY]), replace=False).tolist()
        for key in keys:
            self.begun[key] += 1
        self.index.upsert(np.array(keys), np.stack([steady_row(key, self.begun[key]) for key in keys]))
        for key in keys:
            self.written[key] = self.begun[key]
        self.counts["updates"] += len(keys)
        time.sleep(self.pause_s)

    def change(self, half: int) -> Callable[[np.random.Generator], None]:
        mine = np.arange(half, CHANGING, 2)

        def work(rng: np.random.Generator) -> None:
            some = rng.choice(mine, rng.choice([1, 8, 60, 300 if self.exact else 20]), replace=False)
            present = self.clocks[some] % 4 == 0
            if rng.random() < 0.4:
                self.clocks[some] |= WRITING
                self.index.delete(some + FIRST)
                self.clocks[some] += 4 + ABSENT - WRITING
                self.counts["deletes"] += int(present.sum())
            else:
                self.clocks[some] |= WRITING
                self.lives[some] += 1
                rows = np.stack([changing_row(key, self.lives[key]) for key in some.tolist()])
                if rng.random() < 0.3:  # the old row and the new one in one batch: the last wins
                    self.index.upsert(np.tile(some + FIRST, 2), np.concatenate([-rows, rows]))
                else:
                    self.index.upsert(some + FIRST, rows)
                self.clocks[some] += 4 - WRITING
                self.counts["inserts"] += len(some)
            time.sleep(self.pause_s)

        return work

    # -- readers ------------------------------------------------------------------------------------------------------
    def well_formed(self, ids: Array, scores: Array) -> None:
        for line, line_scores in zip(ids, scores, strict=True):
            found = line[line >= 0].tolist()
            assert len(set(found)) == len(found), f"an id twice: {line}"
            assert (np.diff(line_scores[: len(found)]) <= 1e-4).all(), f"not best first: {line_scores}"
            assert not np.isnan(line_scores).any()

    def read_steady(self) -> Callable[[np.random.Generator], None]:
        seen = [0] * STEADY
        allows = (None, None, np.arange(STEADY), np.arange(STEADY + FIRST + CHANGING) % 3 == 0)
        allows[3][:STEADY] = True

        def work(rng: np.random.Generator) -> None:
            keys = rng.choice(STEADY, rng.choice([1, 4]), replace=False).tolist()
            low = [max(self.written[key], seen[key]) for key in keys]
            queries = np.stack([steady_row(key, 0) for key in keys])
            for row, version in zip(queries, low, strict=True):
                row[PLANE] = 0.6 * np.array(angle(version)[::-1]) * (-1, 1)  # a quarter of a turn ahead
            ids, scores = self.index.search(queries, K, allows[rng.integers(0, len(allows))])
            high = [self.begun[key] for key in keys]
            self.well_formed(ids, scores)
            for i, key in enumerate(keys):
                at = np.flatnonzero(ids[i] == key)
                assert len(at), f"steady id {key} was not found: {ids[i]} {scores[i]}"
                score = float(scores[i, at[0]])
                fits = [v for v in range(low[i], high[i] + 1) if abs(steady_score(low[i], v) - score) < TOLERANCE]
                assert fits, f"steady id {key}: score {score} is of no version in {low[i]}…{high[i]}"
                seen[key] = fits[0]
            self.counts["steady searches"] += 1

        return work

    def read_changing(self, rng: np.random.Generator) -> None:
        keys = rng.choice(CHANGING, rng.choice([1, 1, 6]), replace=False)
        before, lives = self.clocks.copy(), self.lives[keys].copy()
        queries = np.stack([changing_row(key, life) for key, life in zip(keys.tolist(), lives.tolist(), strict=True)])
        allow: Array | None = None
        form = rng.integers(0, 4)
        if form == 1:  # a mask with about a tenth, and those asked for
            allow = rng.random(CHANGING + FIRST) < 0.1
            allow[keys + FIRST] = True
        elif form == 2:
            allow = np.concatenate([keys + FIRST, rng.integers(0, CHANGING + FIRST, 30)])
        ids, scores = self.index.search(queries, K, allow)
        after = self.clocks.copy()
        self.well_formed(ids, scores)
        found = ids[ids >= 0]
        if allow is not None:
            inside = allow[found] if allow.dtype == np.bool_ else np.isin(found, allow)
            assert inside.all(), f"not allowed: {found[~inside]}"
        assert ((found < STEADY) | ((found >= FIRST) & (found < FIRST + CHANGING))).all(), f"from nowhere: {found}"
        changing = found[found >= FIRST] - FIRST
        still = before[changing] == after[changing]
        dead = changing[still & (after[changing] % 4 == ABSENT)]
        assert not len(dead), f"deleted ids were found: {dead + FIRST}"
        for i, key in enumerate(keys.tolist()):
            if before[key] == after[key] and after[key] % 4 == 0 and self.lives[key] == lives[i]:
                at = np.flatnonzero(ids[i] == key + FIRST)
                self.counts["present"] += 1
                if not self.exact and not len(at):
                    self.counts["missed by the graph"] += 1
                    continue
                assert len(at), f"id {key + FIRST} is there and was not found: {ids[i]} {scores[i]}"
                score = float(scores[i, at[0]])
                assert score > 1 - TOLERANCE, f"id {key + FIRST}: score {score} is of an older vector"
        self.counts["changing searches"] += 1

    # -- upkeep -------------------------------------------------------------------------------------------------------
    def upkeep(self, rng: np.random.Generator) -> None:
        action = rng.integers(0, 6)
        if action == 0:
            self.index.retrain()
        elif action == 1:
            self.index.maintain(everything=bool(rng.random() < 0.3))
        elif action == 2:
            self.snapshot()
        else:
            stats = self.index.stats()
            assert 0 <= stats.rows <= STEADY + CHANGING
            assert len(self.index) <= STEADY + CHANGING
            assert 0 in self.index
        time.sleep(0.03)

    def snapshot(self) -> None:
        low = list(self.written)
        self.counts["snapshots"] += 1
        path = self.folder / str(self.counts["snapshots"])
        self.index.snapshot(path)
        high = list(self.begun)
        copy = LayeredVectors(DIM, background=False, **self.parameters)
        copy.restore(path)
        ids, rows = copy.export()
        assert len(np.unique(ids)) == len(ids) == len(copy)
        assert ids[:STEADY].tolist() == list(range(STEADY))
        for key in range(STEADY):
            versions = range(low[key], high[key] + 1)
            assert any(np.allclose(rows[key], steady_row(key, v), atol=TOLERANCE) for v in versions), (
                f"snapshot: steady id {key} is of no version in {versions}: {rows[key]}"
            )
        self.well_formed(*copy.search(rows[:: max(1, len(rows) // 5)], K))
        copy.close()
        old = self.folder / str(self.counts["snapshots"] - 2)
        shutil.rmtree(old, ignore_errors=True)

    # -- all ----------------------------------------------------------------------------------------------------------
    def loop(self, number: int, work: Callable[[np.random.Generator], None]) -> None:
        rng = np.random.default_rng([self.seed, number])
        try:
            while not self.stop.is_set():
                work(rng)
        except BaseException:
            self.failure = self.failure or traceback.format_exc()
            self.stop.set()

    def enough(self) -> bool:
        """The time is over and everything has happened, however slow the machine is."""
        stats = self.index.stats()
        return (
            time.monotonic() > self.end
            and stats.merges > 1
            and stats.retrains > 0
            and all(self.counts[name] > 50 for name in ("updates", "deletes", "inserts", "present", "steady searches"))
            and self.counts["snapshots"] > 0
        )

    def run(self) -> dict[str, Any]:
        works = [
            self.update_steady, self.change(0), self.change(1), self.read_steady(), self.read_steady(),
            self.read_changing, self.read_changing, self.upkeep,
        ]  # fmt: skip
        threads = [threading.Thread(target=self.loop, args=pair, daemon=True) for pair in enumerate(works)]
        for thread in threads:
            thread.start()
        while not self.stop.is_set() and not self.enough():
            time.sleep(0.05)
        self.stop.set()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive() or self.failure, "a thread hangs"
        if self.failure:
            raise AssertionError(self.failure)
        self.check_end()
        stats = self.index.stats()
        self.index.close()
        counts = dict(self.counts)
        return counts | {"rows": stats.rows, "merges": stats.merges, "retrains": stats.retrains, "probes": stats.probes}

    def check_end(self) -> None:
        """At rest everything is exactly as written."""
        expected = {key: steady_row(key, self.written[key]) for key in range(STEADY)}
        for key in np.flatnonzero(self.clocks % 4 == 0).tolist():
            expected[key + FIRST] = changing_row(key, int(self.lives[key]))
        for settle in (self.index.wait, lambda: self.index.maintain(everything=True)):
            settle()
            ids, rows = self.index.export()
            assert ids.tolist() == sorted(expected)
            assert len(self.index) == len(expected)
            np.testing.assert_allclose(rows, np.stack([expected[key] for key in ids.tolist()]), atol=TOLERANCE)
        if not self.exact:
            missed = self.counts["missed by the graph"]
            assert missed <= 0.1 * self.counts["present"], f"{missed} of {self.counts['present']} missed"


if __name__ == "__main__":
    faulthandler.enable()
    name, duration, start, place = sys.argv[1:]
    faulthandler.dump_traceback_later(10 * float(duration) + 300, exit=True)
    sys.setswitchinterval(1e-6)  # threads take turns as often as they can
    print(json.dumps(Stress(name, float(duration), int(start), Path(place)).run()))
