"""Measure throughput, freshness, growth and bytes: ``make bench`` or ``python tests/benchmarks/run.py``.

Nothing here fails for being slow: figures beside the bars are what it is for. Processes that it starts, it ends.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import bench_distributed
import bench_embedded
import bench_erasure
import bench_fold
import bench_growth
import bench_recommend
import bench_workspaces
import harness
from harness import Figure

BENCHES: dict[str, Callable[[bool, int], list[Figure]]] = {
    "embedded": bench_embedded.throughput,
    "embedded-freshness": bench_embedded.freshness,
    "in-process": bench_growth.in_process,
    "documents": bench_embedded.documents,
    "fold": bench_fold.fold,
    "recovery": bench_fold.recovery,
    "growth": bench_growth.growth,
    "isolation": bench_workspaces.isolation,
    "workspaces": bench_workspaces.many,
    "erasure": bench_erasure.erasure,
    "recommend": bench_recommend.recommend,
    "recommend-large": bench_recommend.large,
    "recommend-stack": bench_recommend.stack,
    "kafka": bench_distributed.throughput,
    "kafka-freshness": bench_distributed.freshness,
    "hidden": bench_distributed.hidden,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=BENCHES, help="this one (may come again)")
    parser.add_argument("--quick", action="store_true", help="fewer events")
    parser.add_argument("--repeats", type=int, default=3, help="of what is quick to repeat (%(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures there, too")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    print(json.dumps(harness.machine(), ensure_ascii=False), flush=True)
    figures: list[Figure] = []
    for name in options.only or BENCHES:
        print(f"{name} …", flush=True)
        found = BENCHES[name](options.quick, max(1, options.repeats))
        figures += found
        harness.report(found)
    if options.json is not None:
        harness.save(figures, options.json)


if __name__ == "__main__":
    main()
