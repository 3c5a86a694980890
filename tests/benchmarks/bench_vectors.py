"""Measure the vector index beside FAISS, hnswlib and usearch: ``make bench-vectors``.

Every engine goes through the same stream (``vectors/protocol.py``) in a process of its own, on one thread, in CPU time;
with ``--repeat`` the engines take turns. The table and the verdicts go to stdout, everything to a JSON record, and the
plots beside it. Nothing here fails for being slow.
"""

from __future__ import annotations

import os

if __name__ == "__main__":
    for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[_name] = "1"  # before numpy and faiss read them

import argparse
import json
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import harness
from vectors import data, engines, mixed, plots, protocol, report, runbook

BUILD = Path(__file__).resolve().parents[2] / "build" / "bench-vectors"
PARTS = ("stream", "mixed", "drift", "runbook")
QUICK_ROWS = 20_000


def main() -> None:
    options = arguments()
    if options.worker:
        job = json.loads(options.worker)
        Path(job["out"]).write_text(json.dumps(work(job)))
        return
    missing = [name for name in options.engines if not engines.installed(name)]
    if missing:
        sys.exit(f"not installed: {', '.join(missing)}: run make bench-vectors, which installs the extra bench")
    record: dict[str, Any] = {"machine": machine(), "command": sys.argv[1:], "runs": [], "runbooks": []}
    print(json.dumps(record["machine"], ensure_ascii=False), flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    for job in jobs(options):
        print(f"{time.strftime('%H:%M:%S')} {job['engine']} {job['rows']:,} {job['part']} …", flush=True)
        found = run(job, options.out / "worker.json")
        print(f"  {report.line(found)}", flush=True)
        record["runbooks" if job["part"] == "runbook" else "runs"].append(found)
        (options.out / "record.json").write_text(json.dumps(record, indent=1) + "\n")
    report.show(record)
    for file in [options.out / "record.json", *plots.draw(record, options.out)]:
        print(file)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="*", default=[100_000, 300_000], help="sizes (%(default)s)")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROWS:,} rows: about a minute")
    parser.add_argument("--repeat", type=int, default=1, help="times that the engines take turns (%(default)s)")
    parser.add_argument("--engines", nargs="+", choices=engines.ENGINES, default=list(engines.DEFAULT))
    parser.add_argument("--data", choices=("clusters", "minilm"), default="clusters")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="stream always runs")
    parser.add_argument("--mixed-s", type=float, help="seconds of readers beside a writer (20; quick: 3)")
    parser.add_argument("--runbook-rows", type=int, help="rows inserted in a runbook (100,000; quick: 20,000)")
    parser.add_argument("--out", type=Path, default=BUILD, help="folder of record, plots and data (%(default)s)")
    parser.add_argument("--seed", type=int, default=harness.SEED)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.rows = [QUICK_ROWS]
    options.mixed_s = options.mixed_s or (3.0 if options.quick else 20.0)
    options.runbook_rows = options.runbook_rows or (QUICK_ROWS if options.quick else 100_000)
    return options


def jobs(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return what each process is to do, engines taking turns."""
    made = []
    for rows in options.rows:
        stream = stream_file(options.out / "data", options.data, rows, options.mixed_s, options.seed)
        shared = {
            "part": "stream", "rows": rows, "stream": str(stream), "seed": options.seed, "data": options.data,
            "mixed_s": options.mixed_s if "mixed" in options.parts else 0.0, "drift": "drift" in options.parts,
        }  # fmt: skip
        turns = range(options.repeat)
        made += [shared | {"engine": engine, "repeat": turn} for turn in turns for engine in options.engines]
    if "runbook" in options.parts:
        shared = {"part": "runbook", "rows": options.runbook_rows, "seed": options.seed}
        made += [shared | {"engine": engine} for engine in options.engines]
    return made


def stream_file(folder: Path, kind: str, rows: int, mixed_s: float, seed: int) -> Path:
    """Return the stream's file, made where it is not there yet."""
    extra = int(mixed.INSERTS * mixed_s)
    file = folder / f"{kind}-{rows}-{extra}-{seed}.npz"
    source: data.Source = data.Clusters(seed) if kind == "clusters" else data.Passages(folder)
    if isinstance(source, data.Passages):
        print(f"minilm: {source.count:,} real passages; every row is one of them with noise of their own spectrum")
    if not file.exists():
        print(f"making {file} …", flush=True)
        data.make(source, rows, extra, seed).save(file)
    return file


def run(job: dict[str, Any], out: Path) -> dict[str, Any]:
    """Do a job in a process of its own, which leaves its result in ``out``."""
    out.unlink(missing_ok=True)
    subprocess.run([sys.executable, __file__, "--worker", json.dumps(job | {"out": str(out)})], check=True)
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def work(job: dict[str, Any]) -> dict[str, Any]:
    """The job itself, in its process."""
    make = engines.ENGINES[job["engine"]]
    started = time.perf_counter()
    load = harness.load()
    if job["part"] == "runbook":
        found = {"books": runbook.follow(make, job["rows"], job["seed"])}
    else:
        stream = data.Stream.load(Path(job["stream"]))
        found = protocol.Run(make, stream, mixed_s=job["mixed_s"], drift=job["drift"]).measure()
    took = {"load": [load, harness.load()], "wall_s": time.perf_counter() - started}
    return job | found | took


def machine() -> dict[str, Any]:
    """The machine, with the versions of the libraries that are compared."""
    found = harness.machine()
    packages = [p for p in ("hnswlib", "usearch") if engines.find_spec(p)]
    return found | {"packages": found["packages"] | {name: version(name) for name in packages}}


if __name__ == "__main__":
    main()
