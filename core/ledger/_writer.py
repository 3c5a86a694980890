"""Group commit: concurrent transactions of one SQLite connection share a ``COMMIT``, hence an fsync.

Callers queue their job and wait for the writer's lock. Whoever gets it runs all jobs queued by then in one transaction,
each in a savepoint so that a failing one does not hurt the others; the rest find theirs done. A thread of its own would
do the same at the price of two hand-overs per transaction, each up to a switch interval (5 ms) beside a busy fold.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from streamfold.core.errors import LedgerUnavailable
from streamfold.core.ledger._tx import SqliteTx, Tx

T = TypeVar("T")
_MOST = 64
"""Jobs in one transaction: bounds what the first of them waits for."""


class _Job:
    __slots__ = ("done", "durable", "error", "run", "value")

    def __init__(self, run: Callable[[Tx], Any], durable: bool) -> None:
        self.run = run
        self.durable = durable
        self.value: Any = None
        self.error: BaseException | None = None
        self.done = False


class GroupWriter:
    """The one connection that writes."""

    def __init__(self, tx: SqliteTx) -> None:
        self.lock = threading.Lock()
        self.commits = 0
        self._tx = tx
        self._raw: sqlite3.Connection = tx.raw
        self._queue: deque[_Job] = deque()
        self._closed = False
        self._full = True

    def close(self) -> None:
        """Close the connection; the caller holds ``lock``."""
        self._closed = True
        self._tx.sa.close()

    def drop_cache(self) -> None:
        """Forget cached pages; the caller holds ``lock``."""
        self._raw.execute("pragma shrink_memory")

    def write(self, run: Callable[[Tx], T], *, durable: bool = True) -> T:
        """Run a job in a transaction that is durable when this returns.

        ``durable=False`` leaves the fsync out, for what can be computed again from the log (fold commits, leases,
        backend results): a killed process loses nothing, a power cut at most a suffix of such transactions, since the
        WAL is a sequence and every durable transaction syncs all before it.
        """
        job = _Job(run, durable)
        self._queue.append(job)
        with self.lock:
            while not job.done:
                self._turn()
        if job.error is not None:
            raise job.error
        value: T = job.value
        return value

    def _turn(self) -> None:
        jobs = [self._queue.popleft() for _ in range(min(len(self._queue), _MOST))]
        try:
            if self._closed:
                raise sqlite3.ProgrammingError("the ledger is closed")
            self._transact(jobs)
        except sqlite3.Error as error:
            # Nothing of this turn is durable, whichever job it was that broke the transaction.
            for job in jobs:
                job.error = job.error or unavailable(error)
        except BaseException as error:
            for job in jobs:
                job.error = job.error or LedgerUnavailable(f"the ledger's writer was interrupted: {error!r}")
            raise
        finally:
            for job in jobs:
                job.done = True
            if not self._closed and self._raw.in_transaction:
                self._raw.rollback()

    def _transact(self, jobs: list[_Job]) -> None:
        full = any(job.durable for job in jobs)
        if full != self._full:
            self._raw.execute(f"pragma synchronous={'full' if full else 'normal'}")
            self._full = full
        self._raw.execute("begin immediate")
        if len(jobs) == 1:
            self._alone(jobs[0])
            return
        for job in jobs:
            self._raw.execute("savepoint job")
            try:
                job.value = job.run(self._tx)
            except Exception as error:
                job.error = _translated(error)
                if not self._raw.in_transaction:  # disk full or I/O: SQLite has rolled all of it back
                    raise sqlite3.OperationalError(str(error)) from error
                self._raw.execute("rollback to job")
            self._raw.execute("release job")
        self._commit()

    def _alone(self, job: _Job) -> None:
        try:
            job.value = job.run(self._tx)
        except Exception as error:
            job.error = _translated(error)
        else:
            self._commit()

    def _commit(self) -> None:
        self._raw.execute("commit")
        self.commits += 1


def _translated(error: Exception) -> Exception:
    cause = getattr(error, "orig", error)  # SQLAlchemy wraps the driver's errors
    return unavailable(cause) if isinstance(cause, sqlite3.OperationalError) else error


def unavailable(error: BaseException) -> LedgerUnavailable:
    made = LedgerUnavailable(f"SQLite: {error}; nothing was written, try again")
    made.__cause__ = error
    return made
