"""Bring a database to the newest migration, one process at a time, all or nothing."""

from __future__ import annotations

import logging
import uuid

from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from streamfold.core.errors import LedgerError
from streamfold.core.ledger.schema import metadata

log = logging.getLogger("streamfold.ledger")

LOCATION = "streamfold.migrations:"
_LOCK = 0x5F0D_1ED6
"""Key of PostgreSQL's advisory lock: whoever comes second finds nothing left to do."""


def upgrade(connection: Connection) -> None:
    """Run what is missing, inside the caller's transaction, and give a new database its timeline."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("set local lock_timeout = '30s'"))
        connection.execute(text("set local statement_timeout = 0"))
        connection.execute(text(f"select pg_advisory_xact_lock({_LOCK})"))
    if not current(connection) and not _is_newer(connection):
        config = _config()
        config.attributes["connection"] = connection
        level = logging.getLogger("alembic").level
        logging.getLogger("alembic").setLevel(logging.WARNING)
        try:
            command.upgrade(config, "head")
        finally:
            logging.getLogger("alembic").setLevel(level)
    for name in ("timeline_id", "erasure_key"):
        connection.execute(
            text("insert into meta (name, value) values (:name, :value) on conflict do nothing"),
            {"name": name, "value": uuid.uuid4().hex},
        )


def current(connection: Connection) -> bool:
    """Whether the database stands at the newest migration."""
    return MigrationContext.configure(connection).get_current_revision() == newest()


def _is_newer(connection: Connection) -> bool:
    """Whether a newer version has migrated the database, in a way that this one can go on beside it.

    Migrations add first and take away a release later, so a process of the release before goes on, and may be started
    again, in the midst of a rolling upgrade. A migration that takes away says so in ``meta``: ``needs`` is the oldest
    migration whose code can use the database from then on.

    Raises
    ------
    LedgerError : this version is older than that.
    """
    at = MigrationContext.configure(connection).get_current_revision()
    known = {script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()}
    if at is None or at in known:
        return False
    needs = connection.execute(text("select value from meta where name = 'needs'")).scalar()
    if needs is not None and needs not in known:
        raise LedgerError(
            f"the database is at migration {at} and needs a streamfold that knows {needs}, this one knows up to "
            f"{newest()}: start the newer version"
        )
    log.warning("database_is_newer at=%s newest_known=%s: going on beside the newer version", at, newest())
    return True


def newest() -> str | None:
    return ScriptDirectory.from_config(_config()).get_current_head()


def require(connection: Connection) -> None:
    """Refuse a database that was not migrated."""
    if not current(connection) and not _is_newer(connection):
        raise LedgerError(f"the database is not at migration {newest()}; run `streamfold migrate`")


def differences(connection: Connection) -> list[object]:
    """What the database has that the models have not, or the other way round."""
    return list(compare_metadata(MigrationContext.configure(connection), metadata))


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", LOCATION)
    config.set_main_option("path_separator", "os")
    return config
