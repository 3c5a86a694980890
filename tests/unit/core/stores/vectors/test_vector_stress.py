"""Readers, writers, merges, retraining and snapshots at once: no crash, no lost, stale, deleted or doubled row.

`STREAMFOLD_STRESS_S` sets the seconds in all (default 8, for CI; 600 before a release).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SECONDS = float(os.environ.get("STREAMFOLD_STRESS_S", "8"))
SEED = int(os.environ.get("STREAMFOLD_STRESS_SEED", "1"))


@pytest.mark.parametrize(("kind", "share"), [("ivf-fp16", 0.5), ("ivf-sq8", 0.25), ("hnsw", 0.25)])
def test_all_at_once(kind: str, share: float, tmp_path: Path) -> None:
    print(f"seed={SEED}")
    script = Path(__file__).parent / "vector_stress.py"
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", str(script), kind, str(share * SECONDS), str(SEED), str(tmp_path)],
        # What was freed is overwritten: reading it is seen.
        env=os.environ | {"MALLOC_PERTURB_": "165", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=20 * SECONDS + 600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{kind} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    counts = json.loads(done.stdout.splitlines()[-1])
    print(kind, counts)
    assert counts["present"] > 0
