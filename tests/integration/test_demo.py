"""The demo as a user starts it, with the encoder that needs no weights."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_the_demo_plays_to_its_end_and_every_check_holds() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "streamfold.pipelines.demo", "--encoder", "hashing"],
        capture_output=True,
        text=True,
        timeout=1200,
        env=os.environ | {"COLUMNS": "120"},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    told = ("visible after", "reached from wiki-102", "nothing of it is left", "kill -9", "verify: equal")
    told += ("409, not_worse", "rollback: count_stack@", "a class that nobody had declared", "traces of visitor-5")
    for said in (*told, "All 17 checks held"):
        assert said in done.stdout
