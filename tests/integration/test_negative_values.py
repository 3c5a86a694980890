"""A negative value of an interaction: refused by every way in, and folded as ever where an old log holds one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from streamfold.core.clock import SystemClock
from streamfold.core.events import Acceptor, EventTypes, builtin_types
from streamfold.core.ledger.abc import DeadLetter
from streamfold.core.settings import Settings
from streamfold.pipelines.cli import main
from streamfold.pipelines.node import Node
from tests.integration.test_rest import BACKENDS, serving, wait_job

POLICIES: dict[str, dict[str, Any]] = {"activity": {}, "count_stack": {"ids": 1024, "crosses": 1024}, "trending": {}}
WHAT_TO_DO = "it must not be negative: shift a rating scale"


def rated(id_: str, value: float, user: str = "ann", item: str = "jazz", action: str = "rating") -> dict[str, Any]:
    data = {"user_id": user, "item_id": item, "action": action, "value": value}
    return {"specversion": "1.0", "id": id_, "source": "/shop", "type": "interaction.observed", "data": data}


def old_release() -> Acceptor:
    """Accepts as releases before this check did."""
    types = [
        dataclasses.replace(one, check=None) if one.name == "interaction.observed" else one for one in builtin_types()
    ]
    return Acceptor(EventTypes(types), SystemClock())


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[httpx.Client, Node]]:
    settings = Settings(
        backends=BACKENDS, data=tmp_path / "data", policies=POLICIES,
        retention={"keep_s": 0.001, "every_s": 10**6},  # type: ignore[arg-type]  # pydantic builds the section
        fold={"sweep_s": 0.2, "lease_s": 2.0, "min_free_bytes": 0},  # type: ignore[arg-type]
    )  # fmt: skip
    node = Node(settings)
    with serving(settings, node) as client:
        node.acceptor, now = old_release(), node.acceptor
        old = [rated("old-1", -3.0), rated("old-2", 5.0, item="rock"), rated("old-3", -1.0, "bob", "rock")]
        sent = client.post("/v1/events", params={"wait": "visible", "wait_ms": 30_000}, json=old)
        assert (sent.json()["accepted"], sent.json()["visible"]) == (3, True), sent.text
        node.acceptor = now
        yield client, node


def done(client: httpx.Client, path: str, **body: Any) -> dict[str, Any]:
    answer = client.post(path, json=body)
    assert answer.status_code == 202, answer.text
    job = wait_job(client, answer.json()["job_id"])
    assert job["state"] == "done", job
    result: dict[str, Any] = job["result"] or {}
    return result


def scores(client: httpx.Client) -> dict[str, float]:
    body = {"user_id": "ann", "item_ids": ["jazz", "rock"], "log_exposure": False}
    found = client.post("/v1/rank", params={"min_position": 3, "wait_ms": 30_000}, json=body).raise_for_status().json()
    return {one["item_id"]: one["score"] for one in found["items"]}


def test_what_an_old_log_holds_is_folded_archived_replayed_and_retried_as_ever(
    served: tuple[httpx.Client, Node], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    client, node = served
    before = scores(client)
    assert before["rock"] > before["jazz"], "a rating below 0 is no like"
    assert client.get("/v1/events/old-1").json()["event"]["data"]["value"] == -3.0
    assert client.get("/v1/dead-letters").json()["items"] == []
    assert done(client, "/v1/retention")["expired"] > 0
    assert client.get("/v1/retention").json()["archived"]["events"] > 0
    done(client, "/v1/policies/count_stack/rebuild", reason="test")
    for policy in ("count_stack", "trending"):
        assert done(client, f"/v1/policies/{policy}/verify", reason="test")["equal"]
    assert scores(client) == pytest.approx(before, rel=1e-3)  # what is remembered decays

    [instance] = [one for one in node.ledger.instances("default") if one.name == "trending"]
    letter = DeadLetter(
        stage="fold", code="full", detail="test", policy=instance.key, skipped_by=instance.lineage, position=3,
        event_id="old-3",
    )  # fmt: skip
    node.ledger.append("default", [], recorded_us=1, dead=[letter])
    [shown] = client.get("/v1/dead-letters").json()["items"]
    retried = client.post(f"/v1/dead-letters/{shown['dead_letter_id']}/retry")
    assert retried.status_code == 202, retried.text

    config = tmp_path / "dev.toml"
    config.write_text(f'data = "{tmp_path / "dev"}"\n')
    options = ["--url", str(client.base_url), "--config", str(config), "--json"]
    capsys.readouterr()
    assert main(["dev", "trending", "--events", "tail:100", "--once", *options]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["refused"] == 0


def test_a_new_one_is_refused_by_rest_alone_and_in_a_batch(served: tuple[httpx.Client, Node]) -> None:
    client, _ = served
    alone = client.post("/v1/events", json=rated("new-1", -2.0))
    assert alone.status_code == 422
    [error] = alone.json()["errors"]
    assert (alone.json()["code"], error["pointer"]) == ("invalid-value", "/data/value")
    assert f"/data/value is -2: {WHAT_TO_DO}" in alone.json()["detail"]
    lines = "\n".join(json.dumps(rated(f"line-{n}", value, action="view")) for n, value in enumerate((0.0, -1.0, 4.0)))
    batch = client.post("/v1/events", content=lines, headers={"Content-Type": "application/x-ndjson"})
    assert (batch.status_code, batch.json()["accepted"], batch.json()["rejected"]) == (202, 2, 1)
    [result] = batch.json()["results"]
    assert (result["index"], result["problem"]["code"]) == (1, "invalid-value")
    assert client.get("/v1/events/line-1").status_code == 404


def test_files_are_refused_by_line_unless_their_mapping_shifts_the_scale(
    served: tuple[httpx.Client, Node],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    client, _ = served
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STREAMFOLD_URL", str(client.base_url))
    Path("stars.csv").write_text("user,item,stars\nzoe,jazz,-5\nzoe,rock,2.5\n")
    mapping = """type = "interaction.observed"
source = "/stars%s"
[data]
user_id = "user"
item_id = "item"
action = { value = "rating" }
value = { column = "stars", type = "float"%s }
"""
    Path("as-is.toml").write_text(mapping % ("", ""))
    Path("shifted.toml").write_text(mapping % ("/shifted", ", add = 5"))

    def send(name: str, *more: str) -> tuple[int, Any, str]:
        capsys.readouterr()
        code = main(["send", "stars.csv", "--map", name, "--json", *more])
        said = capsys.readouterr()
        return code, json.loads(said.out), said.err

    for more in (("--dry-run",), ("--wait",)):
        code, told, said = send("as-is.toml", *more)
        assert (code, told["accepted"], told["rejected"]) == (3, 1, 1)
        assert f"/data/value is -5: {WHAT_TO_DO}" in said + json.dumps(told)
    code, told, _ = send("shifted.toml", "--wait")
    assert (code, told["rejected"]) == (0, 0)
    rows = client.get("/v1/events", params={"type": "interaction.observed", "subject": "zoe"}).json()["items"]
    assert sorted(row["event"]["data"]["value"] for row in rows) == [0.0, 2.5, 7.5]
