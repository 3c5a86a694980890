"""The ledger's contract: keys and quotas, their trail, and the size of a workspace's log."""

from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from streamfold.core.ledger import open_ledger
from streamfold.core.ledger.abc import ApiKey, Ledger, Quotas
from streamfold.core.testing.ledger_contract import WORKSPACE, make_event


def make_key(key_id: str, workspace: str = WORKSPACE) -> ApiKey:
    return ApiKey(
        workspace=workspace,
        key_id=key_id,
        name="shop",
        scopes=("ingest", "query"),
        sha256="0" * 64,
        created_by="local",
        created_us=7,
    )


def trail(url: str) -> list[tuple[str, str, str, str]]:
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as connection:
        rows = connection.execute(
            text("select workspace, actor, action, target from audit order by workspace, audit_id")
        )
        found = [tuple(row) for row in rows]
    engine.dispose()
    return found


def test_a_key_is_kept_until_it_is_revoked_and_both_are_audited(ledger: Ledger, url: str) -> None:
    ledger.add_api_key(make_key("a"), actor="ada")
    ledger.add_api_key(make_key("b", "fresh"), actor="ada")
    assert ledger.api_keys() == [make_key("b", "fresh"), make_key("a")]
    assert "fresh" in ledger.workspaces()
    assert not ledger.revoke_api_key("fresh", "a", actor="bob", at_us=9)  # another workspace's
    assert ledger.revoke_api_key(WORKSPACE, "a", actor="bob", at_us=9)
    assert ledger.revoke_api_key(WORKSPACE, "a", actor="bob", at_us=10)  # again: no effect
    assert [key.revoked_us for key in ledger.api_keys()] == [0, 9]
    assert trail(url) == [
        ("fresh", "ada", "key.create", "key:b"),
        (WORKSPACE, "ada", "key.create", "key:a"),
        (WORKSPACE, "bob", "key.revoke", "key:a"),
    ]


def test_every_change_moves_the_version_on(ledger: Ledger) -> None:
    versions = [ledger.access_version()]
    ledger.add_api_key(make_key("a"), actor="ada")
    versions.append(ledger.access_version())
    ledger.revoke_api_key(WORKSPACE, "a", actor="ada", at_us=9)
    versions.append(ledger.access_version())
    ledger.set_quotas(WORKSPACE, Quotas(queries_per_s=1), actor="ada", at_us=9)
    versions.append(ledger.access_version())
    assert versions == sorted(set(versions))


def test_quotas_are_replaced_as_a_whole(ledger: Ledger) -> None:
    ledger.set_quotas(WORKSPACE, Quotas(events_per_s=2.5, bytes=10**12), actor="ada", at_us=9)
    assert ledger.quotas() == {WORKSPACE: Quotas(events_per_s=2.5, bytes=10**12)}
    ledger.set_quotas(WORKSPACE, Quotas(queries_per_s=3), actor="ada", at_us=9)
    ledger.set_quotas("fresh", Quotas(), actor="ada", at_us=9)
    assert ledger.quotas() == {WORKSPACE: Quotas(queries_per_s=3), "fresh": Quotas()}
    assert "fresh" in ledger.workspaces()


def test_the_bytes_of_a_workspaces_log_are_counted_once_per_event(ledger: Ledger) -> None:
    events = [make_event("a"), make_event("b", data=b'"' + b"x" * 1000 + b'"')]
    ledger.append(WORKSPACE, events, recorded_us=1)
    size = sum(len(event.body) for event in events)
    assert ledger.log_bytes(WORKSPACE) == size
    ledger.append(WORKSPACE, [*events, make_event("c"), make_event("c")], recorded_us=2)
    assert ledger.log_bytes(WORKSPACE) == size + len(make_event("c").body)
    assert ledger.log_bytes("other") == 0


def test_migrating_counts_what_was_logged_before(url: str) -> None:
    from streamfold.core.ledger import migrate

    opened = open_ledger(url)
    opened.ensure_workspace(WORKSPACE)
    opened.append(WORKSPACE, [make_event("a"), make_event("b")], recorded_us=1)
    size = opened.log_bytes(WORKSPACE)
    opened.close()
    engine = create_engine(url, poolclass=NullPool)
    with engine.begin() as connection:
        config = migrate._config()
        config.attributes["connection"] = connection
        from alembic import command

        command.downgrade(config, "0003_keys-1")
    engine.dispose()
    again = open_ledger(url)
    assert size > 0
    assert again.log_bytes(WORKSPACE) == size
    again.close()


def test_workspaces_with_a_group_behind_the_log_are_found_at_once(ledger: Ledger) -> None:
    from streamfold.core.testing.ledger_contract import TTL_US, make_lease

    lease = make_lease(ledger)
    assert ledger.behind() == []
    ledger.append(WORKSPACE, [make_event("a")], recorded_us=1)
    assert ledger.behind() == [WORKSPACE]
    ledger.commit(WORKSPACE, lease, watermark=1, changes=b"", now_us=1, ttl_us=TTL_US)
    assert ledger.behind() == []
    ledger.append(WORKSPACE, [make_event("b")], recorded_us=2)
    ledger.set_slot(WORKSPACE, "memory", "retired")
    assert ledger.behind() == []
