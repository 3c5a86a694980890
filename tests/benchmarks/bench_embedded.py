"""The embedded shape over HTTP: throughput, event → visible, documents, bytes written, start."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence

import harness
import raw
from harness import BATCH, Client, Figure, Meter


def _pour(client: Client, bodies: Sequence[bytes], connections: int) -> None:
    """Post all bodies over several connections; return when all are visible."""
    todo = iter(bodies[:-1])
    lock = threading.Lock()

    def run() -> None:
        own = client.twin()
        while True:
            with lock:
                body = next(todo, None)
            if body is None:
                return
            own.post(body)

    threads = [threading.Thread(target=run) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if client.post(bodies[-1], visible=True)["visible"] is not True:
        raise RuntimeError("the last batch did not become visible")


def throughput(quick: bool, repeats: int) -> list[Figure]:
    """HTTP batches of 500 interactions, folded and visible."""
    count = 40_000 if quick else 100_000
    rate = Figure("embedded, events/s", "events/s", 10_000, 18_000, higher=True)
    cpu = Figure("embedded, CPU per event", "µs", 85)
    ratios = []
    with harness.processes(policies=["trending"]) as run:
        client = run.serve()
        _pour(client, harness.bodies(harness.interaction, 0, 10 * BATCH), 2)
        for repeat in range(repeats):
            bodies = harness.bodies(harness.interaction, 1_000_000 * (repeat + 1), count)
            beside = raw.sqlite(bodies)
            meter = Meter({"serve": client.pid})
            _pour(client, bodies, 2)
            wall, used = meter.read()
            rate.repeats.append(count / wall)
            cpu.repeats.append(used["serve"] / count * 1e6)
            ratios.append((count / wall / beside["per_s"], cpu.repeats[-1] / beside["cpu_us"], beside))
    rate.notes = {"of raw": f"{ratios[0][0]:.2f}", "raw/s": f"{ratios[0][2]['per_s']:,.0f}", "load": harness.load()}
    cpu.notes = {"raw ×": f"{ratios[0][1]:.2f}", "raw µs": f"{ratios[0][2]['cpu_us']:.1f}"}
    return [rate, cpu]


def freshness(quick: bool, repeats: int) -> list[Figure]:
    """Event → visible, as the client sees it (``wait=visible``), idle and at half of 10,000 events/s."""
    figures = [
        Figure("event → visible, idle, p50", "ms", 3, 1.5), Figure("event → visible, idle, p99", "ms", 20, 5),
        Figure("event → visible, half load, p50", "ms", 50, 30),
        Figure("event → visible, half load, p99", "ms", 250, 115),
    ]  # fmt: skip
    with harness.processes(policies=["trending"]) as run:
        client = run.serve()
        for repeat in range(repeats):
            base = 10_000_000 * (repeat + 1)
            singles = harness.bodies(harness.interaction, base, 220 if quick else 620, 1)
            samples = [_paced(client, [body], 0.03)[0] for body in singles][20:]
            batches = harness.bodies(harness.interaction, base + 1_000_000, (60 if quick else 200) * BATCH)
            busy = _paced(client, batches, BATCH / 5_000)
            for figure, (found, p) in zip(figures, [(samples, 50), (samples, 99), (busy, 50), (busy, 99)], strict=True):
                figure.repeats.append(harness.percentiles(found)[p])
    for figure in figures:
        figure.notes = {"load": harness.load()}
    return figures


def _paced(client: Client, bodies: Sequence[bytes], every_s: float) -> list[float]:
    """Post at a fixed pace over two connections; seconds from when each was due to when it was visible."""
    start = time.monotonic() + every_s
    samples: list[float] = []
    todo = iter(enumerate(bodies))
    lock = threading.Lock()

    def run(own: Client) -> None:
        while True:
            with lock:
                index, body = next(todo, (0, b""))
            if not body:
                return
            due = start + index * every_s
            time.sleep(max(0.0, due - time.monotonic()))
            own.post(body, visible=True)
            samples.append(time.monotonic() - due)

    if len(bodies) == 1:
        time.sleep(every_s)
        start = time.monotonic()
        client.post(bodies[0], visible=True)
        return [time.monotonic() - start]
    threads = [threading.Thread(target=run, args=(client.twin(),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return samples


def documents(quick: bool, repeats: int) -> list[Figure]:
    """Documents of 120 words with the hashing encoder, as an index grows; then freshness, bytes, and a start."""
    total = 10_000 if quick else 100_000
    size, step = 100, 1_000 if quick else 5_000
    per_core = Figure("documents/s per core", "docs/s", 500, higher=True)
    flat = Figure("CPU per document, second half over first", "×", 1.2)
    written = Figure("bytes written per document", "kB", 100, 40)
    grown = Figure("bytes written per document, second half over first", "×", 1.2)
    p50 = Figure("document → visible, p50", "ms", 50)
    p99 = Figure("document → visible, p99", "ms", 50)
    start = Figure(f"start with {total:,} documents, after the imports", "s", 3)
    with harness.processes() as run:
        client = run.serve()
        costs, sizes = [], []
        for first in range(0, total, step):
            bodies = harness.bodies(harness.document, first, step, size)
            meter, before = Meter({"serve": client.pid}), harness.written_bytes(client.pid)
            _pour(client, bodies, 2)
            costs.append(meter.read()[1]["serve"] / step)
            sizes.append((harness.written_bytes(client.pid) - before) / step / 1e3)
            print(f"  {first + step:>7} documents: {costs[-1] * 1e6:,.0f} µs CPU, {sizes[-1]:.1f} kB each", flush=True)
        per_core.repeats = [1 / cost for cost in costs[1:]]
        half = len(costs) // 2  # halves: a checkpoint falls into one step or the next
        flat.repeats = [sum(costs[-half:]) / sum(costs[:half])]
        grown.repeats = [sum(sizes[-half:]) / sum(sizes[:half])]
        written.repeats = sizes[1:]
        for repeat in range(repeats):
            singles = harness.bodies(harness.document, 10**7 * (repeat + 1), 120 if quick else 320, 1)
            found = harness.percentiles([_paced(client, [body], 0.03)[0] for body in singles][20:])
            p50.repeats.append(found[50])
            p99.repeats.append(found[99])
        folder = run.file.parent / "data"
        disk = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        written.notes = {"on disk in all, MB": f"{disk / 1e6:.0f}"}
        for _ in range(max(1, repeats)):
            run.stop("serve")
            client = run.serve()
            start.repeats.append(time.monotonic() - run.imported_at())
            ready = [json.loads(x) for x in run.logs["serve"].read_text().splitlines() if '"ready"' in x]
            start.notes = {"of it views s": ready[0]["seconds"] if ready else "?"}
    for figure in (per_core, p99, start):
        figure.notes["load"] = harness.load()
    return [per_core, flat, written, grown, p50, p99, start]
