"""The benchmark of the vector index stays runnable: our own engine, few rows, no peer."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "bench_vectors.py"


def test_the_vectors_benchmark_measures_our_engine_from_bulk_load_to_runbook(tmp_path: Path) -> None:
    words = ["--rows", "2000", "--mixed-s", "0.2", "--runbook-rows", "2000", "--engines", "streamfold", "--out"]
    done = subprocess.run([sys.executable, SCRIPT, *words, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "record.json").read_text())
    [run], [book] = record["runs"], record["runbooks"]
    assert run["told"]["rows"] == 1_800  # 2,000, less a fifth, plus half of that
    # Float16 may swap neighbours whose scores are all but equal.
    assert min(run["recall"], run["filtered10_recall"], run["drift_recall"], run["mixed_recall"]) > 0.98
    assert min(step["lowest"] for step in book["books"].values()) > 0.98
    assert "insert one, µs" in done.stdout
    assert record["machine"]["packages"]["faiss-cpu"]
