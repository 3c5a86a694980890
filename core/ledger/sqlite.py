"""The ledger in one SQLite file, for one process: WAL, ``synchronous=FULL``, group commit, a checkpoint thread."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from streamfold.core import crash
from streamfold.core.errors import LedgerError, LedgerUnavailable
from streamfold.core.events.model import NewEvent
from streamfold.core.ledger import backup as backups
from streamfold.core.ledger._access import AccessMixin
from streamfold.core.ledger._alerts import AlertMixin
from streamfold.core.ledger._append import (
    distinct,
    index_deletions,
    mark_superseded,
    move_intakes,
    outcomes,
    superseded,
)
from streamfold.core.ledger._base import add_dead, no_workspace
from streamfold.core.ledger._erased import EraseMixin, Screen
from streamfold.core.ledger._groups import GroupMixin
from streamfold.core.ledger._letters import LetterMixin
from streamfold.core.ledger._log import LogMixin
from streamfold.core.ledger._prepare import PrepareMixin
from streamfold.core.ledger._retention import RetainMixin
from streamfold.core.ledger._sqlite_files import PAGES, Checkpointer, Gaps, ProcessLock
from streamfold.core.ledger._tx import SqliteTx, Tx
from streamfold.core.ledger._versions import VersionMixin
from streamfold.core.ledger._writer import GroupWriter, unavailable
from streamfold.core.ledger.abc import Appended, DeadLetter, IntakeMove

T = TypeVar("T")
DATABASE = "ledger.db"
"""The database's name in a backup."""
_PRAGMAS = (
    "pragma journal_mode=wal",
    "pragma synchronous=full",
    "pragma foreign_keys=off",
    "pragma secure_delete=on",
    "pragma wal_autocheckpoint=0",
    "pragma busy_timeout=10000",
    "pragma cache_size=-8192",
    "pragma temp_store=memory",
)
_WRITER_CACHE = "pragma cache_size=-65536"
"""64 MiB for the one connection whose keys (hashes) touch pages at random; readers get 8 MiB each."""
_FIND = "select dedup, seq, digest from dedup where workspace = ? and dedup {in}"
_DEDUP = "insert into dedup (workspace, dedup, seq, digest, recorded_us) values (?, ?, ?, ?, ?)"
_LOG = """insert into log (workspace, seq, recorded_us, type, retry_of, subject_kind, subject_id, body)
    values (?, ?, ?, ?, ?, ?, ?, ?)"""

_LOGGED = """select (select coalesce(sum(seq), 0) from log_head) -
    (select coalesce(sum(events), 0) from departures where cleared)"""


def make_engine(path: Path) -> Engine:
    """Make connections in autocommit mode, so that the ledger alone says when transactions begin and end."""
    engine = create_engine(
        f"sqlite:///{path}",
        isolation_level="AUTOCOMMIT",
        poolclass=NullPool,
        connect_args={"check_same_thread": False, "cached_statements": 256},
    )

    @event.listens_for(engine, "connect")
    def _configure(connection: sqlite3.Connection, _: object) -> None:
        for pragma in _PRAGMAS:
            connection.execute(pragma).fetchall()

    return engine


class SqliteLedger(
    LogMixin, GroupMixin, VersionMixin, PrepareMixin, LetterMixin, AccessMixin, AlertMixin, EraseMixin, RetainMixin
):
    """See ``streamfold.core.ledger.abc.Ledger``. ``held`` is this process's lock on the file."""

    def __init__(self, path: Path, engine: Engine, held: ProcessLock) -> None:
        self._path = path
        self._engine = engine
        self._held = held
        self._closed = False
        self._idle: deque[SqliteTx] = deque()
        writing = self._connect()
        writing.raw.execute(_WRITER_CACHE)
        self._writer = GroupWriter(writing)
        self._checkpointer = Checkpointer(path, self._connect_plain, lambda: self._writer.commits, self._writer.lock)
        self._gaps = Gaps(path)
        self.timeline_id = self._meta("timeline_id")
        self.erasure_key = self._meta("erasure_key").encode()

    def close(self) -> None:
        if self._closed:
            return
        self._checkpointer.close()
        with self._writer.lock:
            self._closed = True
            self._writer.close()
            self._sweep()
        self._engine.dispose()
        self._gaps.close()
        self._held.release()

    def _sweep(self) -> None:
        """Close idle connections of a closed ledger."""
        while self._closed and self._idle:
            self._idle.pop().sa.close()

    def _connect(self) -> SqliteTx:
        return SqliteTx(self._engine.connect())

    def _connect_plain(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None, timeout=0.2)
        connection.execute("pragma synchronous=full")
        connection.execute("pragma wal_autocheckpoint=0").fetchall()
        return connection

    @contextmanager
    def _reading(self) -> Iterator[SqliteTx]:
        """Lend a connection per concurrent reader; threads come and go, connections stay."""
        if self._closed:
            raise LedgerUnavailable(f"the ledger {self._path} is closed")
        try:
            tx = self._idle.pop()
        except IndexError:
            tx = self._connect()
        try:
            yield tx
        finally:
            self._idle.append(tx)
            self._sweep()  # the ledger may have been closed meanwhile

    def _read(self, job: Callable[[Tx], T]) -> T:
        try:
            with self._reading() as tx:
                return job(tx)
        except (sqlite3.OperationalError, DBAPIError) as error:
            raise unavailable(error) from error

    def _write(self, job: Callable[[Tx], T], *, durable: bool = True) -> T:
        if self._closed:
            raise LedgerUnavailable(f"the ledger {self._path} is closed")
        return self._writer.write(job, durable=durable)

    # -- append ------------------------------------------------------------------------------------------------
    def append(
        self,
        workspace: str,
        events: Sequence[NewEvent],
        *,
        recorded_us: int,
        moves: Sequence[IntakeMove] = (),
        dead: Sequence[DeadLetter] = (),
    ) -> Appended:
        def job(tx: Tx) -> Appended:
            row = tx.one("select seq, erased_us from log_head where workspace = ?", (workspace,))
            if row is None:
                raise no_workspace(workspace)
            screen = Screen(tx, workspace, self.erasure_key, row[1], recorded_us)
            done = _append(tx, workspace, events, int(row[0]), recorded_us, screen)
            move_intakes(tx, workspace, moves, done.outcomes, recorded_us)
            add_dead(tx, workspace, dead)
            crash.point("append.in")
            return done

        crash.point("append.before")
        done = self._write(job)
        crash.point("append.after")
        return done

    def _contains(self, column: str) -> str:
        return f"instr({column}, ?) > 0"

    def backup(
        self,
        folder: Path,
        progress: Callable[[int, int], None] = lambda done, total: None,
        *,
        archive: Path | None = None,
    ) -> dict[str, Any]:
        """Copy the database in one step: a snapshot, which writers do not wait for."""
        part = backups.start_folder(folder)
        try:
            if archive is not None:
                backups.copy_archive(archive, part)
            with self._reading() as tx:
                copy = sqlite3.connect(part / DATABASE)
                try:
                    tx.raw.backup(copy, pages=-1, progress=lambda _, left, total: progress(total - left, total))
                    copy.execute("pragma journal_mode=delete")
                    at = dict(copy.execute("select workspace, seq from log_head order by workspace").fetchall())
                    named = copy.execute(backups.NAMED).fetchall()
                finally:
                    copy.close()
            if archive is not None:
                backups.complete_archive(archive, part, named, self._all(backups.NAMED))
            return backups.finish_folder(part, folder, kind="sqlite", timeline=self.timeline_id, at=at)
        except sqlite3.Error as error:
            raise unavailable(error) from error
        finally:
            backups.drop_folder(part)

    def settle(self) -> None:
        """Truncate the write-ahead log, and overwrite what page splits have left between the cells of pages."""
        self._alone(lambda: None)
        pages = self._gaps.find()
        for start in range(0, len(pages), PAGES):
            part = pages[start : start + PAGES]
            self._alone(lambda part=part: self._gaps.overwrite(part))  # type: ignore[misc]  # bound now

    def _alone(self, job: Callable[[], None]) -> None:
        """Run a job while nobody writes, everything is in the database file, and the writer has no page in its cache.

        The cache would bring the old bytes back with the next change of a page.
        """
        connection = self._connect_plain()
        try:
            for _ in range(200):
                with self._writer.lock:
                    if not connection.execute("pragma wal_checkpoint(truncate)").fetchone()[0]:
                        self._writer.drop_cache()
                        job()
                        return
                time.sleep(0.05)  # a reader still needs the log
        except sqlite3.Error as error:
            raise unavailable(error) from error
        finally:
            connection.close()
        raise LedgerUnavailable("the write-ahead log is read all the time: it cannot be truncated now, try again")

    def size_bytes(self) -> dict[str, int]:
        """Estimate from the newest rows, because SQLite would read everything to say; the total is exact."""

        def sampled(tx: Tx, count: str, sizes: str) -> int:
            n = int((tx.one(count) or (0,))[0] or 0)
            return round(n * float((tx.one(f"select avg(size) from ({sizes} limit 1000)") or (0,))[0] or 0))

        def job(tx: Tx) -> dict[str, int]:
            pages, size = tx.all("pragma page_count")[0][0], tx.all("pragma page_size")[0][0]
            log = "select length(body) + 60 as size from log l join log_head h on h.workspace = l.workspace"
            return {
                "log": sampled(tx, _LOGGED, f"{log} and l.seq > h.seq - 200"),
                "feed": int((tx.one("select sum(feed_bytes) from fold_groups") or (0,))[0] or 0),
                "results": sampled(
                    tx,
                    "select max(rowid) from results",
                    "select length(value) + 80 as size from results order by rowid desc",
                ),
                "dead_letters": sampled(
                    tx,
                    "select count(*) from dead_letters",
                    "select length(payload) + length(detail) + 200 as size from dead_letters order by rowid desc",
                ),
                "total": pages * size,
            }

        return self._read(job)


def _append(
    tx: Tx, workspace: str, events: Sequence[NewEvent], head: int, recorded_us: int, screen: Screen
) -> Appended:
    first = head + 1
    fresh = distinct(events)
    known: dict[bytes, tuple[int, bytes]] = {
        dedup: (seq, digest) for dedup, seq, digest in tx.among(_FIND, (workspace,), [e.dedup for e in fresh])
    }
    if known:
        fresh = [event for event in fresh if event.dedup not in known]
    fresh, refused = screen.pass_(fresh, first)
    known |= refused
    result, positions = outcomes(events, known, first)
    if not fresh:
        return Appended(result, positions, 0, head)
    _insert(tx, workspace, fresh, first, recorded_us)
    late = superseded(tx, workspace, fresh) if any(e.sequence is not None for e in fresh) else set()
    if late:
        mark_superseded(tx, workspace, [first + i for i in late])
    index_deletions(tx, workspace, fresh, first, late)
    screen.enter(fresh, first, late)
    head += len(fresh)
    size = sum(len(event.body) for event in fresh)
    tx.run("update log_head set seq = ?, bytes = bytes + ? where workspace = ?", (head, size, workspace))
    return Appended(result, positions, len(late), head)


def _insert(tx: Tx, workspace: str, fresh: Sequence[NewEvent], first: int, recorded_us: int) -> None:
    dedups: list[tuple[Any, ...]] = []
    rows: list[tuple[Any, ...]] = []
    for seq, e in enumerate(fresh, first):
        subject = e.subject
        dedups.append((workspace, e.dedup, seq, e.digest, recorded_us))
        rows.append((workspace, seq, recorded_us, e.type, e.retry_of, subject.kind, subject.id, e.body))
    tx.many(_DEDUP, dedups)
    tx.many(_LOG, rows)


def restore(folder: Path, path: Path, timeline: str) -> None:
    """Put a backup's database at a path where there is none, with a timeline of its own."""
    if path.exists():
        raise LedgerError(f"{path} is already there: move it away first, nothing was restored")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.restoring")
    part.unlink(missing_ok=True)
    shutil.copyfile(folder / DATABASE, part)
    engine = make_engine(part)
    try:
        with engine.connect() as connection:
            tx = SqliteTx(connection)
            tx.raw.execute("begin immediate")
            backups.begin_timeline(tx, timeline)
            tx.raw.execute("commit")
            tx.raw.execute("pragma wal_checkpoint(truncate)").fetchall()
            tx.raw.execute("pragma journal_mode=delete").fetchall()
    finally:
        engine.dispose()
    os.rename(part, path)
