"""Migrations make what the models say, and can be run again."""

from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect
from sqlalchemy.pool import NullPool

from streamfold.core.errors import LedgerError
from streamfold.core.ledger import check_migrations, migrate, open_ledger
from streamfold.core.ledger.schema import metadata


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    return str(request.getfixturevalue("postgres_database"))


def test_the_migrated_database_equals_the_models(url: str) -> None:
    open_ledger(url).close()
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        assert migrate.differences(connection) == []
        assert set(inspect(connection).get_table_names()) == {*metadata.tables, "alembic_version"}
    engine.dispose()


def test_opening_again_migrates_nothing(url: str) -> None:
    first = open_ledger(url)
    first.close()
    second = open_ledger(url)
    second.close()
    assert first.timeline_id == second.timeline_id
    assert check_migrations(url)


def test_an_old_database_is_refused_unless_it_may_be_migrated(url: str) -> None:
    with pytest.raises(LedgerError, match="migrat"):
        open_ledger(url, migrate=False)
    open_ledger(url).close()


def test_every_key_starts_with_the_workspace() -> None:
    firsts = {table.name: next(iter(table.primary_key)).name for table in metadata.tables.values()}
    assert {name for name, first in firsts.items() if first != "workspace"} == {"meta"}
