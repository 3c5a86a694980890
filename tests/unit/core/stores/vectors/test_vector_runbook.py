"""A runbook in the shape of Big-ANN's streaming track: recall after every step of inserts, deletes, replacements.

NeurIPS'23 Big-ANN benchmarks, streaming track (arXiv 2409.17424): the data come by clusters, so that what is inserted,
deleted and asked for drifts away from what the index was trained on. The recall of each search step is recorded; the
lowest is what counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from vector_harness import Oracle, unit

from streamfold.core.stores.vectors import LayeredVectors

Array = npt.NDArray[Any]
DIM = 32
CLUSTERS = 40
QUERIES = 200
TARGET = 0.95
FLOOR = 0.85
"""No step may fall below."""


class Data:
    """Anisotropic clusters that overlap; as time goes on every centre wanders and the busy clusters change."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.spectrum = np.arange(1, DIM + 1) ** -0.6
        self.spectrum /= np.linalg.norm(self.spectrum)
        self.centres = self.rng.normal(size=(CLUSTERS, DIM)) * self.spectrum
        self.drift = self.rng.normal(size=(CLUSTERS, DIM)) * self.spectrum
        self.axes = np.stack([self.rng.permutation(DIM) for _ in range(CLUSTERS)])

    def rows(self, n: int, moment: float, clusters: Array | None = None) -> Array:
        """``(n, DIM)`` at a moment (0: start, 1: wandered by a length), of some clusters or of the busy ones."""
        if clusters is None:
            busy = np.exp(-0.5 * ((np.arange(CLUSTERS) - moment * CLUSTERS) / 8) ** 2) + 0.05
            clusters = np.arange(CLUSTERS)
            of = self.rng.choice(clusters, n, p=busy / busy.sum())
        else:
            of = self.rng.choice(clusters, n)
        noise = np.take_along_axis(self.rng.normal(size=(n, DIM)) * self.spectrum, self.axes[of], 1)
        centres = self.centres[of] + 2 * moment * self.drift[of]
        return unit(centres + 1.2 * noise)


class Runbook:
    """An index and its oracle, and the recall of every search step."""

    def __init__(self, kind: str, seed: int) -> None:
        self.index = LayeredVectors(
            DIM, kind=kind, exact_rows=1024, segment_rows=3000, recall=TARGET, probe_every=2, background=False,
            seed=seed,
        )  # fmt: skip
        self.oracle = Oracle(DIM)
        self.data = Data(seed)
        self.recalls: dict[str, float] = {}
        self.next = 0

    def insert(self, rows: Array) -> Array:
        ids = np.arange(self.next, self.next + len(rows))
        self.next += len(rows)
        self.replace(ids, rows)
        return ids

    def replace(self, ids: Array, rows: Array) -> None:
        for start in range(0, len(ids), 100):
            part = slice(start, start + 100)
            self.index.upsert(ids[part], rows[part])
            self.oracle.upsert(ids[part], rows[part])
            for row in rows[part][:10]:  # users ask about what is new while more of it comes in
                self.index.search(unit(row + 0.1 * self.data.rng.normal(size=DIM))[None], 10)
            self.index.maintain()

    def delete(self, ids: Array) -> None:
        self.index.delete(ids)
        self.oracle.delete(ids.tolist())
        self.index.maintain()

    def search(self, name: str, queries: Array) -> float:
        keys, rows = self.oracle.content()
        truth = np.argpartition(-(queries @ rows.T), 10, axis=1)[:, :10]
        found = self.index.search(queries, 10)[0]
        assert np.isin(found, keys).all(), f"{name}: deleted ids"
        recall = float(np.mean([len(np.intersect1d(a, keys[b])) / 10 for a, b in zip(found, truth, strict=True)]))
        for query in queries[:20]:
            self.index.search(query[None], 10)
        self.index.maintain()
        self.recalls[f"{len(self.recalls):02} {name} ({len(self.index)} rows)"] = recall
        return recall

    def report(self) -> str:
        lines = [f"{recall:.3f}  {step}" for step, recall in self.recalls.items()]
        lowest = min(self.recalls.values())
        return "\n".join([*lines, f"lowest step recall {lowest:.3f}, mean {np.mean(list(self.recalls.values())):.3f}"])


@pytest.fixture(params=["ivf-fp16", "ivf-sq8", "hnsw"])
def book(request: pytest.FixtureRequest) -> Iterator[Runbook]:
    made = Runbook(request.param, seed=1)
    yield made
    made.index.close()
    print(request.param)
    print(made.report())


def test_recall_holds_through_every_step(book: Runbook) -> None:
    data = book.data
    # Clusters come, one group after the other, each unlike those the index was trained on.
    ids: list[Array] = []
    for group in np.split(np.arange(CLUSTERS), 4):
        ids.append(book.insert(data.rows(700, 0.0, group)))
        book.search("inserts of new clusters", data.rows(QUERIES, 0.0, group))
    book.search("all clusters", data.rows(QUERIES, 0.0, np.arange(CLUSTERS)))
    # A cluster group goes, another loses half, a third is replaced by other vectors under the same ids.
    book.delete(ids[0])
    book.search("a group deleted", data.rows(QUERIES, 0.0, np.arange(CLUSTERS)))
    book.delete(ids[1][::2])
    book.search("half a group deleted", data.rows(QUERIES, 0.0, np.arange(10, 20)))
    book.replace(ids[2], data.rows(700, 0.5, np.arange(20, 30)))
    book.search("a group replaced", data.rows(QUERIES, 0.5, np.arange(20, 30)))
    # A sliding window over drifting data: what is old expires.
    window = [np.concatenate([ids[1][1::2], ids[2], ids[3]])]
    for step in range(10):
        moment = 0.2 + step * 0.1
        window.append(book.insert(data.rows(300, moment)))
        if len(window) > 6:
            book.delete(window.pop(0))
        book.search(f"window at {moment:.1f}", data.rows(QUERIES, moment))
    # Expiry of all but the newest.
    for old in window[:-3]:
        book.delete(old)
    book.search("expiry", data.rows(QUERIES, 1.1))
    # Growth again, far from everything before, then training anew.
    for moment in (1.5, 1.6):
        book.insert(data.rows(900, moment))
        book.search("drifted inserts", data.rows(QUERIES, moment))
    book.index.retrain()
    after = book.search("after retraining", data.rows(QUERIES, 1.6))
    kept = 1.0 if book.index.is_lossless else 0.97  # eight bits themselves cost some
    assert min(book.recalls.values()) >= FLOOR * kept, book.report()
    assert after >= TARGET * kept, book.report()
    stats = book.index.stats()
    assert stats.merges > 5
    assert stats.retrains >= 1
    assert stats.probes > 0
