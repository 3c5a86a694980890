"""The raw drivers beside the engine: the log's rows of the same events, in batches of 500, and nothing else."""

from __future__ import annotations

import sqlite3
import tempfile
import time
from pathlib import Path
from typing import Any

import harness

from streamfold.core.clock import SystemClock
from streamfold.core.events import Acceptor, decode_http
from streamfold.core.registry import Registry
from streamfold.core.settings import Settings
from streamfold.plugins import builtin

_ROWS = "insert into log values (?, ?, ?, ?, ?, ?, ?, ?)"
_UNNEST = """insert into raw_log select 'w', o + %s, d, g, t, k, i, b
    from unnest(%s::bytea[], %s::bytea[], %s::text[], %s::text[], %s::text[], %s::bytea[])
    with ordinality as u(d, g, t, k, i, b, o)"""


def rows(bodies: list[bytes]) -> list[list[tuple[Any, ...]]]:
    """Return what the log would hold of each body."""
    settings = Settings(backends={"encoder": {"use": "hashing"}, "chunker": {"use": "sentences"}})
    acceptor = Acceptor(Registry(settings, [builtin]).event_types, SystemClock(), max_event_bytes=1 << 20)
    batches, seq = [], 0
    for body in bodies:
        events: list[Any] = acceptor.accept_many(decode_http("application/cloudevents-batch+json", {}, body))
        batch = []
        for e in events:
            seq += 1
            batch.append(("w", seq, e.dedup, e.digest, e.type, e.subject.kind, e.subject.id, e.body))
        batches.append(batch)
    return batches


def sqlite(bodies: list[bytes]) -> dict[str, float]:
    """``executemany`` in ``BEGIN IMMEDIATE``, WAL, ``synchronous=FULL``: events/s and CPU µs per event."""
    batches = rows(bodies)
    with tempfile.TemporaryDirectory(prefix="streamfold-raw-") as folder:
        db = sqlite3.connect(Path(folder) / "raw.db", isolation_level=None)
        db.execute("pragma journal_mode=wal")
        db.execute("pragma synchronous=full")
        db.execute(
            "create table log (workspace text, seq integer, dedup blob, digest blob, type text, kind text, id text, "
            "body blob, primary key (workspace, seq), unique (workspace, dedup)) "
        )
        wall, cpu = time.monotonic(), time.process_time()
        for batch in batches:
            db.execute("begin immediate")
            db.executemany(_ROWS, batch)
            db.execute("commit")
        wall, cpu = time.monotonic() - wall, time.process_time() - cpu
        db.close()
    count = sum(map(len, batches))
    return {"per_s": count / wall, "cpu_us": cpu / count * 1e6}


def postgres(bodies: list[bytes], url: str, server_pid: int) -> dict[str, float]:
    """``insert … select unnest`` by psycopg; CPU of driver and server."""
    import psycopg

    batches = rows(bodies)
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as db:
        db.execute("drop table if exists raw_log")
        db.execute(
            "create table raw_log (workspace text, seq bigint, dedup bytea, digest bytea, type text, kind text, "
            "id text, body bytea, primary key (workspace, seq), unique (workspace, dedup))"
        )
        wall, cpu, server = time.monotonic(), time.process_time(), harness.cpu_s(server_pid)
        for batch in batches:
            columns = [list(column) for column in zip(*batch, strict=True)]
            db.execute(_UNNEST, (batch[0][1] - 1, *columns[2:]))
        wall, cpu = time.monotonic() - wall, time.process_time() - cpu
        server = harness.cpu_s(server_pid) - server
        db.execute("drop table raw_log")
    count = sum(map(len, batches))
    return {"per_s": count / wall, "cpu_us": (cpu + server) / count * 1e6}
