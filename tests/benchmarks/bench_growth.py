"""Cost per event as state grows: interactions up to 10⁶, in one process, by CPU time alone."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import harness
import numpy as np
from harness import Figure

from streamfold.core.settings import Settings
from streamfold.pipelines.node import Node


def growth(quick: bool, repeats: int) -> list[Figure]:
    """CPU per interaction, and per document, appended and folded until visible, early against late."""
    del repeats  # growth is one run; its spread is that of the windows
    last = 200_000 if quick else 1_000_000
    events = Figure(f"CPU per event at {last:,} interactions over that at 10,000", "×", 1.2)
    early, late = _windows("interaction", last, (10_000, 20_000), 500)
    events.repeats = [late / early]
    events.notes = {"early µs": f"{early * 1e6:.1f}", "late µs": f"{late * 1e6:.1f}"}
    last = 2_000 if quick else 10_000
    documents = Figure(f"CPU per document at {last:,} documents over that at 200", "×", 1.2)
    early, late = _windows("document", last, (200, 600), 20)
    documents.repeats = [late / early]
    documents.notes = {"early µs": f"{early * 1e6:.0f}", "late µs": f"{late * 1e6:.0f}"}
    return [events, documents]


def _windows(kind: str, last: int, first: tuple[int, int], size: int) -> tuple[float, float]:
    """Return CPU seconds per event in the first window and in the last one of the same length."""
    rng = np.random.default_rng(harness.SEED)
    late = (last - (first[1] - first[0]), last)
    sums = {first: 0.0, late: 0.0}
    make = harness.interaction if kind == "interaction" else harness.document
    with tempfile.TemporaryDirectory(prefix="streamfold-growth-") as folder:
        backends = {"encoder": {"use": "hashing"}, "chunker": {"use": "sentences"}}
        policies: dict[str, dict[str, object]] = {"trending" if kind == "interaction" else "vector_index": {}}
        node = Node(Settings(data=Path(folder), backends=backends, policies=policies))
        view = node.start_serving().workspace("default")
        for start in range(0, last, size):
            made = [make(n, rng) for n in range(start, start + size)]
            begun = time.process_time()
            events = [node.acceptor.accept_data(e["type"], e["data"], id=e["id"], source=e["source"]) for e in made]
            done = node.ledger.append("default", events, recorded_us=node.context.clock.now_us())
            node.appended("default")
            if not view.wait(done.head, None, 60):
                raise TimeoutError("an append did not become visible in 60 s")
            used = time.process_time() - begun
            for window in sums:
                if window[0] <= start < window[1]:
                    sums[window] += used
        node.close()
    length = first[1] - first[0]
    return sums[first] / length, sums[late] / length
