"""SQLite's files: the lock that keeps a second process out, and the thread that checkpoints the write-ahead log."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from streamfold.core.errors import LedgerBusy

TRUNCATE_BYTES = 64 << 20
_EVERY_S = 1.0


class ProcessLock:
    """Holds ``<database>.lock`` for the life of the ledger; the kernel frees it however the process dies."""

    def __init__(self, database: Path) -> None:
        self._path = database.with_name(database.name + ".lock")
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pid = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._fd)
            raise LedgerBusy(
                f"{database} is held by process {pid}; stop it, or use PostgreSQL for several processes"
            ) from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let go. The file stays: removing it would let two processes lock two files of one name."""
        os.ftruncate(self._fd, 0)
        os.close(self._fd)


class Checkpointer:
    """Copies the write-ahead log into the database once a second, off the commits' path.

    SQLite's own way makes the commit that crosses a threshold wait 170–320 ms. ``PASSIVE`` waits for nobody; a log
    grown past 64 MiB is truncated, for which ``writing`` keeps writers out for a moment.
    """

    def __init__(
        self,
        database: Path,
        connect: Callable[[], sqlite3.Connection],
        commits: Callable[[], int],
        writing: AbstractContextManager[object],
    ) -> None:
        self._wal = database.with_name(database.name + "-wal")
        self._connect = connect
        self._commits = commits
        self._writing = writing
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ledger-checkpoint", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        connection = self._connect()
        seen = -1
        try:
            while not self._stop.wait(_EVERY_S):
                if self._commits() != seen:
                    seen = self._commits()
                    self._checkpoint(connection)
        finally:
            connection.close()

    def _checkpoint(self, connection: sqlite3.Connection) -> None:
        """A checkpoint that fails (disk full, a reader in the way) loses nothing: the next one copies more."""
        try:
            connection.execute("pragma wal_checkpoint(passive)").fetchall()
            if self._wal.stat().st_size > TRUNCATE_BYTES:
                with self._writing:
                    connection.execute("pragma wal_checkpoint(truncate)").fetchall()
        except (sqlite3.OperationalError, FileNotFoundError):
            pass
