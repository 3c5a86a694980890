"""The next version of streamfold, made from this one: a copy that differs where versions may differ.

A clone without history has no older version to run, so the other side is made: a copy of the four packages with an
additional migration, checkpoints of a newer format (it reads both) and wake-ups with one argument more. What this
stands for is any release that keeps to the rules of a rolling upgrade; it says nothing about one that breaks them.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from streamfold.core.ledger.migrate import newest

_MIGRATION = '''"""What the next version adds: a column and a table that this one knows nothing of."""

import sqlalchemy as sa
from alembic import op

revision = "0099_next"
down_revision = "{before}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("log", sa.Column("next_note", sa.Text(), nullable=True))
    op.add_column("fold_groups", sa.Column("next_note", sa.Text(), server_default="", nullable=False))
    op.create_table("next_table", sa.Column("workspace", sa.Text(), primary_key=True))
'''
_CHANGES = {
    "core/stores/checkpoint.py": [
        ("_FORMAT = 1\n", "_FORMAT = 2\n"),
        ('if manifest["format"] != _FORMAT or', 'if manifest["format"] not in (1, _FORMAT) or'),
    ],
    "pipelines/tasks.py": [("[workspace, position],", '[workspace, position, "next"],')],
    "pipelines/worker.py": [
        (
            "def fold(workspace: str, position: int = 0) -> None:",
            "def fold(workspace: str, position: int = 0, *_: object) -> None:",
        )
    ],
}  # fmt: skip


def make_next_version(folder: Path) -> Path:
    """Write the next version below a folder; returns what goes into ``PYTHONPATH``."""
    root = folder / "next"
    for package in ("core", "plugins", "pipelines", "migrations"):
        found = import_module(f"streamfold.{package}").__file__
        assert found is not None
        shutil.copytree(Path(found).parent, root / "streamfold" / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, changes in _CHANGES.items():
        file = root / "streamfold" / name
        text = file.read_text()
        for old, new in changes:
            assert text.count(old) == 1, f"{name} reads otherwise now: {old!r} is to be changed"
            text = text.replace(old, new)
        file.write_text(text)
    migration = root / "streamfold" / "migrations" / "versions" / "0099_next.py"
    migration.write_text(_MIGRATION.format(before=newest()))
    return root


_LOOK = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import harness
import streamfold.core.stores.checkpoint as made
from streamfold.core.settings import load_settings
assert made.__file__.startswith(sys.argv[2]), made.__file__
harness.check_when_quiet(load_settings(sys.argv[3]), json.loads(Path(sys.argv[4]).read_text()))
"""


def check_by(root: Path, config: Path, events: Sequence[dict[str, Any]]) -> None:
    """Compare an installation with the oracle, by the next version's code."""
    sent = root / "events.json"
    sent.write_text(json.dumps(list(events)))
    words = [str(Path(__file__).parent), str(root), str(config), str(sent)]
    done = subprocess.run(
        [sys.executable, "-c", _LOOK, *words],
        env=os.environ | {"PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
