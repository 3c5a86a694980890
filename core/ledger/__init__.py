"""The ledger: the durable record of events, positions and commits, in SQLite (embedded) or PostgreSQL (distributed).

``open_ledger`` picks the database by URL and migrates it. The contract is ``abc.Ledger``; all SQL of streamfold is in
this folder.
"""

from __future__ import annotations

import shutil
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamfold.core.errors import ConfigError, LedgerError
from streamfold.core.ledger.abc import Ledger

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection

__all__ = ["Ledger", "check_migrations", "open_ledger", "restore_ledger"]


def open_ledger(url: str, *, migrate: bool = True) -> Ledger:
    """Open the ledger at ``sqlite:///path`` or ``postgresql+psycopg://…``.

    Parameters
    ----------
    url : SQLAlchemy URL of the database.
    migrate : bring the database to the newest migration first; otherwise an older one is refused.

    Raises
    ------
    LedgerBusy : another process (or another ledger of this one) holds the SQLite file.
    LedgerUnavailable : the database cannot be reached.
    """
    if _parsed(url).get_backend_name() == "sqlite":
        return _open_sqlite(url, migrate)
    if _parsed(url).get_backend_name() == "postgresql":
        from streamfold.core.ledger.postgres import open_postgres

        return open_postgres(url, migrate)
    raise ConfigError(f"ledger URL {url!r}: use sqlite:///path or postgresql+psycopg://…")


def check_migrations(url: str) -> bool:
    """Say whether the database at ``url`` stands at the newest migration, without changing it."""
    from streamfold.core.ledger import migrate as migrations

    if _parsed(url).get_backend_name() == "sqlite":
        from streamfold.core.ledger.sqlite import make_engine

        path = _path(url)
        if not path.exists():
            return False
        engine = make_engine(path)
    else:
        from streamfold.core.ledger.postgres import make_engine as make_postgres

        engine = make_postgres(url)
    try:
        with engine.connect() as connection:
            return migrations.current(connection)
    finally:
        engine.dispose()


def _parsed(url: str) -> URL:
    from sqlalchemy import make_url  # not before a ledger is opened: plugins import core without one

    return make_url(url)


def restore_ledger(folder: Path, url: str, *, archive_root: Path | None = None) -> dict[str, Any]:
    """Restore a backup into a ledger that does not exist yet; returns the new timeline and what the backup said.

    ``archive_root``: where the backup's archive is put, in a folder named for the new timeline.

    Raises
    ------
    LedgerError : the folder is no whole backup, is one of the other database, or the target is not empty.
    """
    from streamfold.core.ledger.backup import read_manifest, restore_archive

    manifest = read_manifest(folder)
    kind = _parsed(url).get_backend_name()
    if manifest["kind"] != kind:
        raise LedgerError(f"{folder} is a backup of {manifest['kind']}, the ledger's URL names {kind}")
    timeline = uuid.uuid4().hex
    home = None if archive_root is None else restore_archive(folder, archive_root, timeline)
    try:
        if kind == "sqlite":
            from streamfold.core.ledger.sqlite import restore as restore_sqlite

            restore_sqlite(folder, _path(url), timeline)
        else:
            from streamfold.core.ledger.postgres import restore as restore_postgres

            restore_postgres(folder, url, manifest, timeline)
    except BaseException:
        if home is not None:
            shutil.rmtree(home, ignore_errors=True)
        raise
    return {"timeline_id": timeline, "made_at": manifest["made_at"], "positions": manifest["positions"]}


def _path(url: str) -> Path:
    database = _parsed(url).database
    if not database or database == ":memory:":
        raise ConfigError(f"ledger URL {url!r} names no file: use sqlite:///path")
    return Path(database).absolute()


def _open_sqlite(url: str, migrate: bool) -> Ledger:
    from streamfold.core.ledger import migrate as migrations
    from streamfold.core.ledger._sqlite_files import ProcessLock
    from streamfold.core.ledger.sqlite import SqliteLedger, make_engine

    path = _path(url)
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as undo:
        held = ProcessLock(path)
        undo.callback(held.release)
        engine = make_engine(path)
        with engine.connect() as connection:
            if migrate:
                _upgrade_sqlite(connection)
            else:
                migrations.require(connection)
        ledger = SqliteLedger(path, engine, held)
        undo.pop_all()
    return ledger


def _upgrade_sqlite(connection: Connection) -> None:
    """Migrate inside one explicit transaction: SQLite can roll schema changes back, its driver commits."""
    from streamfold.core.ledger import migrate as migrations

    connection.exec_driver_sql("begin immediate")
    try:
        migrations.upgrade(connection)
        connection.exec_driver_sql("commit")
    except BaseException:
        if connection.connection.driver_connection.in_transaction:  # type: ignore[union-attr]
            connection.exec_driver_sql("rollback")
        raise
