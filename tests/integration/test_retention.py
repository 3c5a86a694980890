"""Retention as a user meets it: settings, command, REST, refusals, backup and restore with the archive."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy

from streamfold.core.errors import ConfigError
from streamfold.core.ledger import restore_ledger
from streamfold.core.settings import Settings, load_settings
from streamfold.pipelines.cli import main
from streamfold.pipelines.node import Node
from streamfold.pipelines.worker import Worker

sys.path.insert(0, str(Path(__file__).parent))
from test_rest import BACKENDS, is_problem, serving, wait_job

from tests.waiting import until

sys.path.pop(0)
REASON = {"reason": "test"}
POLICIES: dict[str, dict[str, Any]] = {"vector_index": {}, "trending": {}}


def settings_of(folder: Path, *, url: str = "", **retention: Any) -> Settings:
    """A millisecond's retention, which runs when it is asked to."""
    given = {"keep_s": 0.001, "compact": True, "compact_after_s": 0.001, "every_s": 10**6} | retention
    fold = {"sweep_s": 0.2, "lease_s": 2.0, "min_free_bytes": 0}
    return Settings(backends=BACKENDS, data=folder, ledger={"url": url}, retention=given, fold=fold, policies=POLICIES)  # type: ignore[arg-type]  # pydantic builds the sections


@contextmanager
def running(settings: Settings) -> Iterator[tuple[httpx.Client, Node]]:
    """A service and, where it does not fold itself, a worker."""
    node = Node(settings)
    worker = None if settings.is_embedded else Worker(Node(settings), "all", 1)
    try:
        if worker is not None:
            worker.start()
        with serving(settings, node) as client:
            yield client, node
    finally:
        if worker is not None:
            worker.stop()
            worker.node.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    return "" if request.param == "sqlite" else str(request.getfixturevalue("postgres_database"))


def send(client: httpx.Client, count: int = 40, *, name: str = "e") -> int:
    events = []
    for i in range(count):
        data: dict[str, Any] = {"user_id": f"user-{i % 3}", "item_id": f"i{i % 5}", "action": "click"}
        kind = "interaction.observed"
        if i % 4 == 0:
            kind, data = (
                "document.upserted",
                {"document_id": f"d{i % 16}", "text": f"Document {i % 16}, the {i}th text."},
            )
        events.append({"specversion": "1.0", "id": f"{name}{i}", "source": "s", "type": kind, "data": data})
    answer = client.post("/v1/events", json=events, params={"wait": "visible", "wait_ms": 30_000})
    assert answer.json()["accepted"] == count, answer.text
    return int(answer.json()["position"])


def let_go(client: httpx.Client, *, dry_run: bool = False) -> dict[str, Any]:
    job = wait_job(client, client.post("/v1/retention", json={"dry_run": dry_run}).json()["job_id"])
    assert job["state"] == "done", job
    report: dict[str, Any] = job["result"]
    return report


def rebuilds(client: httpx.Client) -> dict[str, tuple[str, int]]:
    items = client.get("/v1/policies").json()["items"]
    return {item["policy"]: (item["rebuild"], item["rebuildable_from"]) for item in items}


def test_what_leaves_is_archived_and_folds_read_it_there(tmp_path: Path, url: str) -> None:
    with running(settings_of(tmp_path / "data", url=url)) as (client, node):
        position = send(client)
        plan = let_go(client, dry_run=True)
        assert len(node.ledger.read("default", 0, 100).rows) == 40, "nothing was changed"
        reports: list[dict[str, Any]] = []
        # a run goes on without a worker's checkpoint that is late: the next one has it
        until(lambda: reports.append(let_go(client)) or len(node.ledger.read("default", 0, 100).rows) == 4)
        gone = [sum(one[how] for one in reports) for how in ("expired", "compacted")]
        assert sum(gone) == plan["expired"] + plan["compacted"] == 36
        assert len(reports) > 1 or gone == [plan["expired"], plan["compacted"]]
        shown = client.get("/v1/retention").json()
        assert shown["archived"]["events"] == 36
        assert shown["archived"]["missing"] == []
        assert rebuilds(client) == {"vector_index": ("exact", 0), "trending": ("exact", 0)}
        assert client.get("/v1/events/e1").json()["position"] == 2, "an archived event is found by its id"
        for policy in ("trending", "vector_index"):
            job = wait_job(client, client.post(f"/v1/policies/{policy}/rebuild", json=REASON).json()["job_id"])
            assert job["state"] == "done", job
            job = wait_job(client, client.post(f"/v1/policies/{policy}/verify", json=REASON).json()["job_id"])
            assert job["result"]["equal"], job
            assert job["result"]["watermark"] == position
        added = client.post(
            "/v1/policies", json={"name": "trending", "config": {"half_lives_s": [60]}, "reason": "test"}
        ).json()
        assert added["estimate"]["events"] == 30
        assert wait_job(client, added["job_id"])["state"] == "done"
        assert "retention" in [entry["action"] for entry in client.get("/v1/audit").json()["items"]]


def test_a_rebuild_from_what_is_gone_is_refused(tmp_path: Path, url: str) -> None:
    with running(settings_of(tmp_path / "data", url=url, archive=False)) as (client, _):
        send(client)
        # a run goes on without a worker's checkpoint that is late: the next one has it
        wanted = {"vector_index": ("compacted", 0), "trending": ("impossible", 40)}
        until(lambda: let_go(client) and rebuilds(client) == wanted, lambda: str(rebuilds(client)))
        body = is_problem(client.post("/v1/policies/trending/rebuild", json=REASON), 409, "policy-conflict")
        assert body["rebuildable_from"] == 40
        add = {"name": "trending", "config": {"half_lives_s": [60]}, "reason": "test"}
        body = is_problem(client.post("/v1/policies", json=add), 409, "policy-conflict")
        assert "--from now" in body["detail"]
        job = wait_job(client, client.post("/v1/policies/vector_index/rebuild", json=REASON).json()["job_id"])
        assert job["state"] == "done", job
        assert client.post("/v1/policies", json=add | {"from": "now"}).status_code == 202
        assert client.get("/v1/retention").json()["gone"] == 36


def test_files_that_are_missing_are_named(tmp_path: Path) -> None:
    with running(settings_of(tmp_path / "data")) as (client, node):
        send(client)
        let_go(client)
        for file in node.context.history.folder("default").iterdir():
            file.rename(tmp_path / file.name)
        missing = client.get("/v1/retention").json()["archived"]["missing"]
        assert len(missing) == 2
        health = client.get("/v1/health")
        assert health.status_code == 503
        assert [check["name"] for check in health.json()["checks"] if not check["ok"]] == ["archive"]
        body = is_problem(client.post("/v1/policies/trending/rebuild", json=REASON), 409, "policy-conflict")
        assert missing[1] in body["detail"]
        erasure = client.post("/v1/erasures", json={"user_id": "user-9"}).json()["erasure_id"]
        assert missing[0] in client.get(f"/v1/erasures/{erasure}").json()["not_covered"][0]
        for name in missing:
            (tmp_path / name).rename(node.context.history.folder("default") / name)
        assert rebuilds(client)["trending"] == ("exact", 0)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "malformed"),
        (b'{"dry": true}', 422, "unknown-field"),
        (b'{"dry_run": "yes"}', 422, "invalid-value"),
        (b"[]", 422, "invalid-value"),
    ],
)
def test_bad_input_is_a_problem(bad_client: httpx.Client, body: bytes, status: int, code: str) -> None:
    headers = {"content-type": "application/json"}
    is_problem(bad_client.post("/v1/retention", content=body, headers=headers), status, code)


@pytest.fixture(scope="module")
def bad_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with running(settings_of(tmp_path_factory.mktemp("bad"))) as (client, _):
        yield client


def test_the_command_says_what_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(settings_of(tmp_path / "data")) as (client, node):
        send(client)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("STREAMFOLD_URL", str(client.base_url))
        assert main(["retain", "--dry-run", "--quiet"]) == 0
        assert "30 events older than the retention would leave the log" in capsys.readouterr().out
        assert len(node.ledger.read("default", 0, 100).rows) == 40
        assert main(["retain", "--json", "--quiet"]) == 0
        assert json.loads(capsys.readouterr().out)["result"]["compacted"] == 6
        assert main(["retain", "--quiet"]) == 0
        assert "0 events older than the retention left the log" in capsys.readouterr().out
        shutil.rmtree(node.context.history.root)
        assert main(["policies", "rebuild", "trending", "--quiet"]) == 1
        assert "have left the log" in capsys.readouterr().err
        assert main(["retain", "--wait", "-1"]) == 2


def test_a_restored_ledger_folds_its_own_archive(tmp_path: Path, url: str, request: pytest.FixtureRequest) -> None:
    with running(settings_of(tmp_path / "data", url=url)) as (client, node):
        send(client)
        let_go(client)
        trending = client.get("/v1/trending").json()["items"]
        target = "kept" if not url else str(tmp_path / "data" / "backups" / "kept")
        job = wait_job(client, client.post("/v1/backups", json={"target": target}).json()["job_id"])
        assert job["state"] == "done", job
        send(client, name="later")
        client.post("/v1/erasures", json={"user_id": "user-1"})
        let_go_later = node.context.history.home
    with other_database(url, tmp_path) as second:
        settings = settings_of(tmp_path / "second", url=second, archive_root=str(tmp_path / "data" / "archive"))
        restore_ledger(
            tmp_path / "data" / "backups" / "kept", settings.ledger_url, archive_root=Path(settings.archive_root)
        )
        with running(settings) as (client, node):
            assert node.context.history.home != let_go_later
            assert client.get("/v1/retention").json()["archived"]["missing"] == []
            wait_visible(client)
            found = client.get("/v1/trending").json()["items"]
            assert [one["item_id"] for one in found] == [one["item_id"] for one in trending]
            # it decays with time
            assert [one["score"] for one in found] == pytest.approx([one["score"] for one in trending], rel=0.02)
            for policy in ("trending", "vector_index"):
                job = wait_job(client, client.post(f"/v1/policies/{policy}/verify", json=REASON).json()["job_id"])
                assert job["result"]["equal"], job
            send(client, name="afterwards")
            until(lambda: let_go(client)["expired"] > 0)


def wait_visible(client: httpx.Client) -> None:
    until(lambda: client.get("/v1/trending", params={"min_position": 40}).status_code == 200)


@contextmanager
def other_database(url: str, folder: Path) -> Iterator[str]:
    """The URL of a database that is not there yet."""
    if not url:
        yield f"sqlite:///{folder}/second/ledger.db"
        return
    first = sqlalchemy.make_url(url)
    name = f"{first.database}_second"
    admin = sqlalchemy.create_engine(first, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.pool.NullPool)
    with admin.connect() as connection:
        connection.execute(sqlalchemy.text(f'create database "{name}"'))
    try:
        yield first.set(database=name).render_as_string(hide_password=False)
    finally:
        with admin.connect() as connection:
            connection.execute(sqlalchemy.text(f'drop database if exists "{name}" with (force)'))
        admin.dispose()


def test_a_service_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match=r"streamfold\[archive\]"):
        Node(settings_of(tmp_path))
    Node(settings_of(tmp_path, archive=False)).close()


def test_settings_are_checked(tmp_path: Path) -> None:
    file = tmp_path / "streamfold.toml"
    file.write_text("[retention]\nkeep = 3\n")
    with pytest.raises(ConfigError, match="keep_s"):
        load_settings(file)
    file.write_text("[retention]\nkeep_s = -3\n")
    with pytest.raises(ConfigError, match=r"retention\.keep_s"):
        load_settings(file)
