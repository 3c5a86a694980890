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
    _compare(events, early, late)
    last = 2_000 if quick else 10_000
    documents = Figure(f"CPU per document at {last:,} documents over that at 200", "×", 1.2)
    early, late = _windows("document", last, (200, 1_000), 20)
    _compare(documents, early, late)
    return [events, documents]


def _compare(figure: Figure, early: list[float], late: list[float]) -> None:
    """Compare medians of batches, so that a checkpoint is not charged to the window it falls into; means beside."""
    figure.repeats = [float(np.median(late) / np.median(early))]
    figure.notes = {
        "early µs": f"{np.median(early) * 1e6:.1f}",
        "late µs": f"{np.median(late) * 1e6:.1f}",
        "means with checkpoints": f"{np.mean(late) / np.mean(early):.2f} ×",
        "load": harness.load(),
    }


def _windows(kind: str, last: int, first: tuple[int, int], size: int) -> tuple[list[float], list[float]]:
    """Return each batch's CPU seconds per event, in the first window and in the last one of the same length."""
    rng = np.random.default_rng(harness.SEED)
    late = (last - (first[1] - first[0]), last)
    costs: dict[tuple[int, int], list[float]] = {first: [], late: []}
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
            for window in costs:
                if window[0] <= start < window[1]:
                    costs[window].append(used / size)
        node.close()
    return costs[first], costs[late]


def in_process(quick: bool, repeats: int) -> list[Figure]:
    """Append → visible of single events in one idle process, without HTTP and a client."""
    p50 = Figure("append → visible in process, idle, p50", "ms", 3, 1.5)
    p99 = Figure("append → visible in process, idle, p99", "ms", 20, 5)
    with tempfile.TemporaryDirectory(prefix="streamfold-idle-") as folder:
        backends = {"encoder": {"use": "hashing"}, "chunker": {"use": "sentences"}}
        node = Node(Settings(data=Path(folder), backends=backends, policies={"trending": {}}))
        view = node.start_serving().workspace("default")
        rng = np.random.default_rng(harness.SEED)
        for repeat in range(repeats):
            samples = []
            for n in range(120 if quick else 520):
                e = harness.interaction(1_000_000 * repeat + n, rng)
                event = node.acceptor.accept_data(e["type"], e["data"], id=e["id"], source=e["source"])
                begun = time.monotonic()
                done = node.ledger.append("default", [event], recorded_us=node.context.clock.now_us())
                node.appended("default")
                view.wait(done.head, None, 10)
                samples.append(time.monotonic() - begun)
                time.sleep(0.02)
            found = harness.percentiles(samples[20:])
            p50.repeats.append(found[50])
            p99.repeats.append(found[99])
        node.close()
    p99.notes = p50.notes = {"load": harness.load()}
    return [p50, p99]
