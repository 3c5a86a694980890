"""Migrations make what the models say, and can be run again."""

from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import create_engine, inspect, text
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


_INSTANCE = """insert into instances (workspace, instance_id, name, use, version, config_hash, config, code_hash,
    start_seq, slot, grp) values ('w', :n, 'm', 'm', 1, :hash, '{}', '', 0, :slot, :grp)"""


def test_versions_keep_what_an_older_database_holds(url: str) -> None:
    """0002: every shadow took over by itself, and skips were filed under name and version alone."""
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        config = migrate._config()
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        for number, slot, hash_ in ((1, "live", "aaaaaaaa11"), (2, "shadow", "bbbbbbbb22")):
            given = {"n": number, "hash": hash_, "slot": slot, "grp": f"m@1-{hash_[:8]}"}
            connection.execute(text(_INSTANCE), given)
            connection.execute(text("insert into fold_groups (workspace, grp) values ('w', :grp)"), given)
        rows = "('w', 'm@1', 7), ('w', 'x@1', 8)"
        connection.execute(text(f"insert into skips (workspace, policy, position) values {rows}"))
    engine.dispose()
    ledger = open_ledger(url)
    try:
        assert [(g.group, g.auto) for g in ledger.groups("w")] == [("m@1-aaaaaaaa", False), ("m@1-bbbbbbbb", True)]
        assert ledger.skips_of("w", 7) == ["m@1-aaaaaaaa", "m@1-bbbbbbbb"]
        assert ledger.skips_of("w", 8) == ["x@1"]
        assert {i.generation for i in ledger.instances("w")} == {0}
    finally:
        ledger.close()


@pytest.mark.parametrize("needs", [None, "0001", "0099_next"])
def test_a_database_that_a_newer_version_has_migrated_is_used_as_far_as_it_allows(url: str, needs: str | None) -> None:
    """In a rolling upgrade a process of the release before may be started again; not once something was taken away."""
    open_ledger(url).close()
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("update alembic_version set version_num = '0099_next'"))
        if needs is not None:
            connection.execute(text("insert into meta (name, value) values ('needs', :needs)"), {"needs": needs})
    engine.dispose()
    for may_migrate in (True, False):
        if needs == "0099_next":
            with pytest.raises(LedgerError, match="needs a streamfold that knows 0099_next"):
                open_ledger(url, migrate=may_migrate)
        else:
            ledger = open_ledger(url, migrate=may_migrate)
            ledger.ensure_workspace("w")
            ledger.close()
