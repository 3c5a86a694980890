"""SQLite's pages after an erasure: nothing of what was deleted, and a sound database."""

from __future__ import annotations

import random
import sqlite3
from pathlib import Path

from streamfold.core.ledger import open_ledger

MARK = b"something that has to go"


def test_what_page_splits_left_is_overwritten_and_everything_else_is_as_it_was(tmp_path: Path) -> None:
    rng = random.Random(7)
    ledger = open_ledger(f"sqlite:///{tmp_path}/ledger.db")
    ledger.ensure_workspace("w")
    keys = [rng.randbytes(16) for _ in range(3000)]
    kept = {}
    for i, key in enumerate(keys):  # random keys of uneven rows split pages everywhere
        value = (MARK if i % 3 else b"stays") + rng.randbytes(rng.randrange(10, 900))
        ledger.results_put("w", "b", {key: value})
        if not i % 3:
            kept[key] = value
    gone = [key for key in keys if key not in kept]
    sql = "delete from results where workspace = 'w' and backend = 'b' and hash = ?"
    ledger._write(lambda tx: tx.many(sql, [(key,) for key in gone]))  # type: ignore[attr-defined]  # as erasures do
    ledger.settle()
    assert ledger._gaps.find() == []  # type: ignore[attr-defined]  # SQLite's own
    assert MARK not in (tmp_path / "ledger.db").read_bytes()
    assert (tmp_path / "ledger.db-wal").stat().st_size == 0
    assert ledger.results_get("w", "b", keys) == kept
    ledger.results_put("w", "b", dict.fromkeys(gone, b"again"))  # the writer's cache brings nothing back
    ledger.settle()
    assert MARK not in (tmp_path / "ledger.db").read_bytes()
    ledger.close()
    connection = sqlite3.connect(tmp_path / "ledger.db")
    assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
    connection.close()
