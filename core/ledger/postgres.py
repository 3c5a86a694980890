"""The ledger in PostgreSQL, for many processes: one pool, hot statements on psycopg's own connections."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psycopg
from psycopg.adapt import Buffer, Dumper
from psycopg.pq import Format
from sqlalchemy import Connection, Engine, create_engine
from sqlalchemy.exc import DBAPIError, TimeoutError

from streamfold.core import crash
from streamfold.core.errors import LedgerError, LedgerUnavailable
from streamfold.core.events.model import NewEvent
from streamfold.core.ledger import backup as backups
from streamfold.core.ledger import migrate as migrations
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
from streamfold.core.ledger._groups import ADVANCE, GroupMixin, fenced
from streamfold.core.ledger._letters import LetterMixin
from streamfold.core.ledger._log import LogMixin
from streamfold.core.ledger._prepare import PrepareMixin
from streamfold.core.ledger._retention import RetainMixin
from streamfold.core.ledger._tx import PostgresTx, Row, Tx
from streamfold.core.ledger._versions import VersionMixin
from streamfold.core.ledger.abc import Appended, DeadLetter, ErasedGroup, IntakeMove, Lease
from streamfold.core.ledger.schema import metadata

T = TypeVar("T")
_OPTIONS = "-c statement_timeout=60s -c lock_timeout=20s -c idle_in_transaction_session_timeout=5s -c timezone=UTC"

# The head's row is locked by a statement of its own, so that the next one sees what its former holder committed. Then
# one statement finds the known events, gives positions to the others only (no holes) and returns the known.
_APPEND = """with u as materialized (
    select * from unnest(%s::bytea[], %s::bytea[], %s::text[], %s::text[], %s::text[], %s::bytea[])
    with ordinality as u(dedup, digest, type, kind, id, body, o)
), old as materialized (
    select d.dedup, d.seq, d.digest from u join dedup d on d.workspace = %s and d.dedup = u.dedup
), new as materialized (
    select u.*, %s::bigint + row_number() over (order by o) as seq
    from u where u.dedup not in (select dedup from old)
), ids as (
    insert into dedup (workspace, dedup, seq, digest, recorded_us) select %s, dedup, seq, digest, %s from new
), entries as (
    insert into log (workspace, seq, recorded_us, type, subject_kind, subject_id, body)
    select %s, seq, %s, type, kind, id, body from new
), moved as (
    update log_head set seq = seq + n, bytes = bytes + size
    from (select count(*) as n, coalesce(sum(length(body)), 0) as size from new) as added where workspace = %s
)
select dedup, seq, digest from old"""
_RETRY = "update log set retry_of = ? where workspace = ? and seq = ?"
_COMMIT = f"""with f as ({ADVANCE} returning 1)
    insert into commits (workspace, grp, commit_no, watermark, changes, at_us)
    select ?, ?, ?::bigint, ?::bigint, ?::bytea, ?::bigint where exists (select 1 from f)"""


class _Bytes(list[bytes]):
    """A list that is sent as ``bytea[]``."""


class _Texts(list[str]):
    """A list that is sent as ``text[]``."""


class _ArrayDumper(Dumper):
    """Write an array in PostgreSQL's binary form by one join: a third of the cost of psycopg's item by item."""

    format = Format.BINARY
    item = 0

    def dump(self, obj: Any) -> Buffer | None:
        return _array(self.item, obj)


class _BytesDumper(_ArrayDumper):
    item = 17
    oid = 1001


class _TextsDumper(_ArrayDumper):
    item = 25
    oid = 1009

    def dump(self, obj: list[str]) -> Buffer | None:
        return _array(self.item, [text.encode() for text in obj])


_length = struct.Struct(">i").pack


def _array(item: int, values: Sequence[bytes]) -> bytes:
    """One dimension, no nulls, the item's type, how many, from index 1; then each item's length and bytes."""
    parts = [struct.pack(">iiiii", 1, 0, item, len(values), 1)] if values else [struct.pack(">iii", 0, 0, item)]
    for value in values:
        parts += (_length(len(value)), value)
    return b"".join(parts)


def make_engine(url: str) -> Engine:
    """Make connections in autocommit mode: a hot statement alone needs no ``BEGIN`` and no ``COMMIT``."""
    return create_engine(
        url,
        isolation_level="AUTOCOMMIT",
        pool_size=8,
        max_overflow=24,
        pool_timeout=30,
        pool_use_lifo=True,
        connect_args={
            "options": _OPTIONS,
            "connect_timeout": 10,
            "keepalives_idle": 30,
            "application_name": "streamfold",
        },
    )


def open_postgres(url: str, migrate: bool) -> PostgresLedger:
    """Open the ledger at a URL, migrating it first if asked to."""
    engine = make_engine(url)
    try:
        with engine.connect() as connection:
            if migrate:
                _upgrade(connection)
            else:
                migrations.require(connection)
        return PostgresLedger(engine)
    except DBAPIError as error:
        engine.dispose()
        raise _unavailable(error) from error
    except BaseException:
        engine.dispose()
        raise


def _upgrade(connection: Connection) -> None:
    raw: Any = connection.connection.driver_connection
    with raw.transaction():
        migrations.upgrade(connection)


class PostgresLedger(
    LogMixin, GroupMixin, VersionMixin, PrepareMixin, LetterMixin, AccessMixin, AlertMixin, EraseMixin, RetainMixin
):
    """See ``streamfold.core.ledger.abc.Ledger``."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.timeline_id = self._meta("timeline_id")
        self.erasure_key = self._meta("erasure_key").encode()

    def close(self) -> None:
        self._engine.dispose()

    def _read(self, job: Callable[[Tx], T]) -> T:
        return self._lend(job)

    def _write(self, job: Callable[[Tx], T], *, durable: bool = True) -> T:
        def transaction(tx: Tx) -> T:
            with tx.raw.transaction():
                return job(tx)

        return self._lend(transaction)

    def _lend(self, job: Callable[[Tx], T]) -> T:
        """Lend a pooled connection; errors of the database or of the way there become ``LedgerUnavailable``."""
        try:
            with self._engine.connect() as connection:
                tx = PostgresTx(connection)
                try:
                    return job(tx)
                except (psycopg.OperationalError, psycopg.InterfaceError):
                    self._distrust(connection, tx)
                    raise
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            raise _unavailable(error) from error
        except TimeoutError as error:
            raise _unavailable(error) from error
        except DBAPIError as error:
            if isinstance(error.orig, psycopg.OperationalError | psycopg.InterfaceError):
                raise _unavailable(error.orig) from error
            raise

    def _distrust(self, connection: Connection, tx: Tx) -> None:
        """Drop a connection that failed; if it is dead so are its idle siblings: one error, not eight."""
        if tx.raw.closed:
            self._engine.dispose()
        connection.invalidate()

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
            row = tx.one("select seq, erased_us from log_head where workspace = ? for no key update", (workspace,))
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

    # -- commit ------------------------------------------------------------------------------------------------
    def _commit(
        self,
        workspace: str,
        lease: Lease,
        advance: Sequence[Any],
        keep: Sequence[Any] | None,
        dead: Sequence[DeadLetter],
        erased: Sequence[ErasedGroup],
    ) -> None:
        """Fence and effects in one statement; in several with dead letters, or for a fault test's moment within."""
        if dead or erased or crash.ARMED:
            super()._commit(workspace, lease, advance, keep, dead, erased)
            return
        sql, params = (ADVANCE, advance) if keep is None else (_COMMIT, (*advance, *keep))
        if self._lend(lambda tx: tx.run(sql, params)) != 1:
            raise fenced(workspace, lease)

    def _serialise_claims(self, tx: Tx, workspace: str, instance_id: int) -> None:
        tx.all("select pg_advisory_xact_lock(hashtextextended(?, ?))::text", (workspace, instance_id))

    def _contains(self, column: str) -> str:
        return f"position(?::bytea in {column}) > 0"

    def backup(
        self,
        folder: Path,
        progress: Callable[[int, int], None] = lambda done, total: None,
        *,
        archive: Path | None = None,
    ) -> dict[str, Any]:
        """Read all tables in one snapshot."""
        part = backups.start_folder(folder)

        def job(tx: Tx) -> tuple[dict[str, int], list[Row]]:
            raw = tx.raw
            with raw.transaction():
                raw.execute("set transaction isolation level repeatable read, read only")
                raw.execute("set local statement_timeout = 0")
                raw.execute("set local idle_in_transaction_session_timeout = 0")
                at = backups.positions(tx)
                total = sum(at.values())
                for table in metadata.sorted_tables:
                    columns = [str(column.name) for column in table.columns]
                    for count in backups.write_table(part, table.name, columns, _batches(raw, table.name, columns)):
                        if table.name == "log":
                            progress(count, total)
                named = tx.all(backups.NAMED)
            return at, named

        try:
            if archive is not None:
                backups.copy_archive(archive, part)
            at, named = self._lend(job)
            if archive is not None:
                backups.complete_archive(archive, part, named, self._all(backups.NAMED))
            return backups.finish_folder(part, folder, kind="postgresql", timeline=self.timeline_id, at=at)
        finally:
            backups.drop_folder(part)

    def settle(self) -> None:
        """Vacuum the tables that held traces: their dead tuples' space is given up for new rows."""
        tables = "log, dedup, commits, prepared, results, dead_letters, deletions, sequences, erasures"

        def job(tx: Tx) -> None:
            tx.raw.execute("set statement_timeout = 0")
            try:
                tx.raw.execute(f"vacuum {tables}")
            finally:
                tx.raw.execute("reset statement_timeout")

        self._lend(job)

    def size_bytes(self) -> dict[str, int]:
        sql = """select pg_total_relation_size('log'), pg_total_relation_size('commits'),
            pg_total_relation_size('results'), pg_total_relation_size('dead_letters'),
            pg_database_size(current_database())"""
        parts = ("log", "feed", "results", "dead_letters", "total")
        return dict(zip(parts, self._all(sql)[0], strict=True))


def _batches(raw: Any, table: str, columns: Sequence[str]) -> Iterator[list[Any]]:
    names = ", ".join(columns)
    with raw.cursor(name=f"backup_{table}") as cursor:
        cursor.itersize = backups.ROWS
        cursor.execute(f"select {names} from {table}")
        while rows := cursor.fetchmany(backups.ROWS):
            yield rows


def restore(folder: Path, url: str, manifest: dict[str, Any], timeline: str) -> None:
    """Load a backup's tables into an empty database, all or nothing, with a timeline of its own."""
    if manifest["migration"] != migrations.newest():
        raise LedgerError(
            f"{folder} is of migration {manifest['migration']}, this version's newest is {migrations.newest()}: "
            "restore with the version that made it, then start this one"
        )
    engine = make_engine(url)
    try:
        with engine.connect() as connection:
            raw: Any = connection.connection.driver_connection
            with raw.transaction():
                migrations.upgrade(connection)
                tx = PostgresTx(connection)
                if tx.one("select 1 from log_head limit 1") is not None:
                    raise LedgerError("the database holds a ledger: name an empty one, nothing was restored")
                tx.run("set local statement_timeout = 0")
                for table in metadata.sorted_tables:
                    raw.execute(f"truncate {table.name}")
                    _load(raw, table.name, backups.table_file(folder, table.name))
                backups.begin_timeline(tx, timeline)
    except DBAPIError as error:
        raise _unavailable(error) from error
    finally:
        engine.dispose()


def _load(raw: Any, table: str, file: Path) -> None:
    with file.open("rb") as opened:
        frames = backups.read_frames(opened)
        columns = ", ".join(next(frames))
        with raw.cursor() as cursor, cursor.copy(f"copy {table} ({columns}) from stdin") as copy:
            for rows in frames:
                for row in rows:
                    copy.write_row(row)


def _append(
    tx: Tx, workspace: str, events: Sequence[NewEvent], head: int, recorded_us: int, screen: Screen
) -> Appended:
    batch, refused = screen.pass_(distinct(events), head + 1)
    known = _insert(tx, workspace, batch, head, recorded_us) if batch else {}
    fresh = [event for event in batch if event.dedup not in known] if known else batch
    known |= refused
    first = head + 1
    result, positions = outcomes(events, known, first)
    retries = [(e.retry_of, workspace, first + i) for i, e in enumerate(fresh) if e.retry_of is not None]
    if retries:
        tx.many(_RETRY, retries)
    late = superseded(tx, workspace, fresh) if any(e.sequence is not None for e in fresh) else set()
    if late:
        mark_superseded(tx, workspace, [first + i for i in late])
    index_deletions(tx, workspace, fresh, first, late)
    screen.enter(fresh, first, late)
    return Appended(result, positions, len(late), head + len(fresh))


def _insert(
    tx: Tx, workspace: str, batch: Sequence[NewEvent], head: int, recorded_us: int
) -> dict[bytes, tuple[int, bytes]]:
    columns = (
        _Bytes([e.dedup for e in batch]),
        _Bytes([e.digest for e in batch]),
        _Texts([e.type for e in batch]),
        _Texts([e.subject.kind for e in batch]),
        _Texts([e.subject.id for e in batch]),
        _Bytes([e.body for e in batch]),
    )
    scalars = (workspace, head, workspace, recorded_us, workspace, recorded_us, workspace)
    rows = tx.raw.execute(_APPEND, (*columns, *scalars), binary=True).fetchall()
    return {dedup: (seq, digest) for dedup, seq, digest in rows}


def _unavailable(error: BaseException) -> LedgerUnavailable:
    return LedgerUnavailable(f"PostgreSQL: {str(error).strip()}; drop the warm state and try again")


psycopg.adapters.register_dumper(_Bytes, _BytesDumper)
psycopg.adapters.register_dumper(_Texts, _TextsDumper)
