"""SQLite's files: the lock that keeps a second process out, the write-ahead log's checkpoints, bytes left in pages."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from streamfold.core.errors import LedgerBusy

TRUNCATE_BYTES = 64 << 20
_EVERY_S = 1.0
_INTERIOR, _LEAF = (2, 5), (10, 13)
PAGES = 4096
"""Pages that are read, or overwritten under the writer's lock, at a time."""


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


class Gaps:
    """The unused middle of SQLite's b-tree pages, where a split leaves copies that ``secure_delete`` does not reach.

    Only bytes between a page's cell pointers and its cells are overwritten, which nobody reads: a page that is half
    written is the same page. The file's descriptor stays open, because closing any drops the process's locks on it.
    In databases of 2²⁴ pages and more an overflow page may look like one of a b-tree: they are left alone.
    """

    def __init__(self, database: Path) -> None:
        self._fd = os.open(database, os.O_RDWR | os.O_CLOEXEC)
        head = os.pread(self._fd, 100, 0)
        self._size = int.from_bytes(head[16:18], "big")
        self._size = 65536 if self._size == 1 else self._size

    def close(self) -> None:
        os.close(self._fd)

    def find(self) -> list[int]:
        """Return the numbers, from 0, of the pages with something in their gap."""
        count = os.fstat(self._fd).st_size // self._size
        if count >= 1 << 24:
            return []
        found = []
        for first in range(0, count, PAGES):
            data = os.pread(self._fd, PAGES * self._size, first * self._size)
            for number in range(len(data) // self._size):
                page = data[number * self._size : (number + 1) * self._size]
                start, end = self._gap(page, first + number)
                if start < end and page.count(0, start, end) < end - start:
                    found.append(first + number)
        return found

    def overwrite(self, pages: Sequence[int]) -> None:
        """Overwrite these pages' gaps with zeros; the caller keeps writers out, and nothing is in the WAL."""
        for number in pages:
            page = os.pread(self._fd, self._size, number * self._size)
            start, end = self._gap(page, number)
            if start < end:
                os.pwrite(self._fd, bytes(end - start), number * self._size + start)
        os.fsync(self._fd)

    def _gap(self, page: bytes, number: int) -> tuple[int, int]:
        """Return where the gap starts and ends; (0, 0) for pages that have none."""
        head = 100 if number == 0 else 0
        kind = page[head] if len(page) == self._size else 0
        if kind not in (*_INTERIOR, *_LEAF):
            return 0, 0
        cells = int.from_bytes(page[head + 3 : head + 5], "big")
        content = int.from_bytes(page[head + 5 : head + 7], "big") or 65536
        start = head + (12 if kind in _INTERIOR else 8) + 2 * cells
        return (start, content) if start <= content <= self._size else (0, 0)


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
