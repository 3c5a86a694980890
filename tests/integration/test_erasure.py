"""Erasure over REST and the command line, embedded and on PostgreSQL with workers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from streamfold.core.fold import verify_group
from streamfold.core.ledger.abc import ERASED
from streamfold.core.settings import Settings, load_settings
from streamfold.pipelines.cli import main
from streamfold.pipelines.cli.subservice import SubService
from streamfold.pipelines.node import Node
from streamfold.pipelines.serve import erasures
from streamfold.pipelines.services.process import free_port
from tests.integration.test_rest import BACKENDS, serving
from tests.waiting import ended_erasure, ended_job, patient, until

SECRET = "xyzzy-4711-subject"
STORY = "The quick brown fox of Mrs. Plugh jumps over the lazy dog near Colossal Cave, twice."


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SubService]:
    running = SubService(tmp_path_factory.mktemp("erasure"), encoder="hashing").start()
    yield running
    running.stop()


@pytest.fixture
def client(service: SubService) -> Iterator[httpx.Client]:
    hooks = {"request": [patient]}
    with httpx.Client(base_url=service.url, timeout=120, trust_env=False, event_hooks=hooks) as client:
        yield client


def click(id_: str, user: str, item: str) -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": id_,
        "source": "shop",
        "type": "interaction.observed",
        "data": {"user_id": user, "item_id": item, "action": "click"},
    }


def files_with(folder: Path, *needles: str) -> list[str]:
    files = [file for file in folder.rglob("*") if file.is_file() and "log" not in file.suffix]
    return [f"{n} in {file}" for file in files for n in needles if n.encode() in file.read_bytes()]


def test_a_user_is_hidden_with_the_answer_and_gone_when_complete(service: SubService, client: httpx.Client) -> None:
    events = [click(f"a{i}", SECRET if i % 5 == 0 else f"u{i % 3}", f"i{i % 4}") for i in range(50)]
    assert client.post("/v1/events?wait=visible", json=events).status_code == 200
    before = {i["item_id"]: i["score"] for i in client.get("/v1/trending").json()["items"]}
    answer = client.post("/v1/erasures", json={"user_id": SECRET})
    assert answer.status_code == 202
    shown = client.get("/v1/events", params={"limit": 1000}).text
    assert SECRET not in shown, "hidden from the log's pages at once"
    assert client.get("/v1/events/a0").status_code == 404
    report = ended_erasure(client, answer.json()["erasure_id"])
    assert report["state"] == "complete", report
    assert report["hidden_at"] <= report["completed_at"]
    assert report["removed"]["events"] == 10
    assert {p["policy"]: (p["method"], p["state"]) for p in report["policies"]} == {
        "trending@1": ("rebuild", "done"),
        "graph_index@1": ("exact", "done"),
    }
    assert all(store["residue"] == 0 for store in report["stores"])
    assert report["not_covered"]
    assert files_with(service.folder / "data", SECRET) == []
    again = client.post("/v1/events", json=events[:10]).json()
    assert (again["accepted"], again["duplicates"]) == (0, 10)
    after = {i["item_id"]: i["score"] for i in client.get("/v1/trending").json()["items"]}
    assert sum(after.values()) < sum(before.values())
    assert SECRET not in json.dumps(report)


def test_a_document_is_not_found_by_the_next_question(service: SubService, client: httpx.Client) -> None:
    client.put(f"/v1/documents/{SECRET}?wait=visible", json={"text": STORY, "title": "Cave"})
    client.put("/v1/documents/other?wait=visible", json={"text": "Lamps burn oil in the evening."})
    found = client.post("/v1/query", json={"query": "Who jumps near the Colossal Cave?"}).json()["chunks"]
    assert found[0]["document_id"] == SECRET
    answer = client.post("/v1/erasures", json={"document_id": SECRET}).json()
    found = client.post("/v1/query", json={"query": "Who jumps near the Colossal Cave?"}).json()["chunks"]
    assert SECRET not in {chunk["document_id"] for chunk in found}
    assert client.get(f"/v1/documents/{SECRET}").status_code == 404
    report = ended_erasure(client, answer["erasure_id"])
    assert report["state"] == "complete", report
    assert report["looked_for"]["texts"] >= 1
    assert files_with(service.folder / "data", SECRET, "Plugh", "Colossal") == []
    assert client.get("/v1/documents/other").status_code == 200


def test_deleting_a_user_erases_it(service: SubService, client: httpx.Client) -> None:
    client.post("/v1/events?wait=visible", json=[click("del", "goes-by-delete", "i1")])
    position = client.delete("/v1/users/goes-by-delete").json()["position"]
    assert ended_erasure(client, str(position))["state"] == "complete"
    assert files_with(service.folder / "data", "goes-by-delete") == []


@pytest.mark.parametrize(
    "body",
    [{}, {"user_id": "a", "item_id": "b"}, {"user_id": ""}, {"user": "a"}, {"user_id": 3}, [], {"user_id": "x" * 300}],
)
def test_bad_erasures_are_problems(client: httpx.Client, body: Any) -> None:
    answer = client.post("/v1/erasures", json=body)
    assert answer.status_code in (400, 422), answer.text
    assert answer.json()["code"] in ("invalid-value", "unknown-field", "malformed", "invalid-event")


@pytest.mark.parametrize("name", ["999999999", "nobody", "-1", "9" * 30])
def test_an_unknown_erasure_is_not_found(client: httpx.Client, name: str) -> None:
    assert client.get(f"/v1/erasures/{name}").status_code == 404


@pytest.fixture
def beside(service: SubService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands ask the service, and find no settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STREAMFOLD_URL", service.url)


def test_the_command_waits_and_prints_the_report(
    beside: None, client: httpx.Client, capsys: pytest.CaptureFixture[str]
) -> None:
    client.post("/v1/events?wait=visible", json=[click("cli", "by-command", "i1")])
    assert main(["erase", "user", "by-command", "--wait", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["state"], report["removed"]["events"]) == ("complete", 1)
    assert main(["erase", "item", "i1"]) == 0
    assert "accepted at position" in capsys.readouterr().out
    assert main(["erase", "user", "nobody-at-all", "--wait"]) == 0
    assert "0 traces left" in capsys.readouterr().out
    assert main(["erase", "cat", "tom"]) == 2


def test_workers_on_postgresql_erase(tmp_path: Path, postgres_database: str) -> None:
    """An API host, a fold worker and a prepare worker as processes; no broker: the sweeps find the work."""
    import os
    import subprocess
    import sys

    config = tmp_path / "streamfold.toml"
    config.write_text(
        f'data = "{tmp_path}/data"\n[backends.encoder]\nuse = "hashing"\n[backends.chunker]\nuse = "sentences"\n'
        f'[ledger]\nurl = "{postgres_database}"\n[fold]\nsweep_s = 0.3\nlease_s = 2.0\n'
    )
    settings: Settings = load_settings(config)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("STREAMFOLD_")}
    port = free_port()
    commands = [["worker", "--role", "fold"], ["worker", "--role", "prepare"], ["serve", "--port", str(port)]]
    node = Node(settings)
    with (tmp_path / "out.log").open("wb") as log:
        running = [
            subprocess.Popen(
                [sys.executable, "-m", "streamfold.pipelines.cli", "--config", str(config), *words],
                env=environment, stdout=log, stderr=log,
            )
            for words in commands
        ]  # fmt: skip
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120, trust_env=False) as client:
            until(lambda: _is_ready(client), (tmp_path / "out.log").read_text)
            events = [click(f"a{i}", SECRET if i % 5 == 0 else f"u{i % 3}", f"i{i % 4}") for i in range(100)]
            assert client.post("/v1/events?wait=visible&wait_ms=30000", json=events).status_code == 200
            client.put(f"/v1/documents/{SECRET}?wait=visible&wait_ms=30000", json={"text": STORY})
            ids = [
                client.post("/v1/erasures", json=body).json()["erasure_id"]
                for body in ({"user_id": SECRET}, {"document_id": SECRET})
            ]
            for erasure_id in ids:
                report = ended_erasure(client, erasure_id)
                assert report["state"] == "complete", report
                assert all(store["residue"] == 0 for store in report["stores"])
            assert client.get(f"/v1/documents/{SECRET}").status_code == 404
            assert client.post("/v1/events", json=events[:5]).json()["duplicates"] == 5
        rows = node.ledger.read("default", 0, 1000).rows
        assert sum(row.effect == ERASED for row in rows) == 20 + 1 + 2
        assert not any(SECRET.encode() in row.body for row in rows)
        assert files_with(tmp_path / "data", SECRET, "Plugh") == []
        for group in node.context.pin("default"):
            assert verify_group(node.context, "default", group).equal
    finally:
        for process in running:
            process.kill()
            process.wait()
        node.close()


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def test_the_command_holds_what_is_left_against_the_log_folded_afresh(
    beside: None, client: httpx.Client, capsys: pytest.CaptureFixture[str]
) -> None:
    client.post("/v1/events?wait=visible", json=[click("cmp", "to-compare", "i1"), click("stays", "who-stays", "i1")])
    assert main(["erase", "user", "to-compare", "--verify"]) == 0
    said = capsys.readouterr().out
    assert "trending: equal to the log folded afresh without it" in said
    assert "trending@1: rebuild, done, 1 events; max |Δstate| 0 (0 of the largest entry)" in said
    assert main(["--json", "erase", "user", "who-stays", "--verify"]) == 0
    assert json.loads(capsys.readouterr().out)["verified"]["trending"] == []


def test_the_report_tells_how_far_each_policy_is_from_the_log_folded_afresh_once_it_was_compared(
    client: httpx.Client,
) -> None:
    client.post("/v1/events?wait=visible", json=[click("far", "to-measure", "i1")])
    erasure_id = client.post("/v1/erasures", json={"user_id": "to-measure"}).json()["erasure_id"]
    before = {one["policy"]: one for one in ended_erasure(client, erasure_id)["policies"]}
    assert {one["max_abs_delta"] for one in before.values()} == {None}
    assert "streamfold erase --verify" in before["trending@1"]["not_compared"]
    job = ended_job(client, client.post("/v1/policies/trending/verify", json={}))
    assert job["result"]["deltas"]["trending@1"]["max_abs"] == 0.0, job
    after = {one["policy"]: one for one in client.get(f"/v1/erasures/{erasure_id}").json()["policies"]}
    assert (after["trending@1"]["max_abs_delta"], after["trending@1"]["not_compared"]) == (0.0, None)
    delta = after["trending@1"]["delta"]
    assert (delta["relative"], delta["only_live"], delta["only_afresh"], delta["unequal"]) == (0.0, 0, 0, 0)
    assert delta["position"] >= int(erasure_id)
    assert after["graph_index@1"] == before["graph_index@1"], "nobody asked for it"


def test_who_is_told_that_an_erasure_is_complete_is_answered_accordingly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However far this process's view is behind what the folds have committed."""
    monkeypatch.setattr(erasures, "_HIDDEN_WITHIN_S", 0.1)
    settings = Settings(backends=BACKENDS, data=tmp_path, policies={"trending": {}})
    node = Node(settings)
    with serving(settings, node) as client, ThreadPoolExecutor(1) as thread:
        events = [click("gone", "goes", "theirs"), click("kept", "stays", "ours")]
        assert client.post("/v1/events?wait=visible", json=events).status_code == 200
        assert node.views is not None
        view, followed_for_it = node.views.workspace("default"), threading.Event()
        follow = view.follow

        def followed() -> bool:
            if "view" not in threading.current_thread().name:
                followed_for_it.set()
            return follow()

        def told_and_asked() -> list[str]:
            erasure_id = client.post("/v1/erasures", json={"user_id": "goes"}).json()["erasure_id"]
            assert ended_erasure(client, erasure_id)["state"] == "complete"
            return [one["item_id"] for one in client.get("/v1/trending").json()["items"]]

        monkeypatch.setattr(view, "follow", followed)
        with view._lock:  # it cannot follow
            answer = thread.submit(told_and_asked)
            until(lambda: followed_for_it.is_set() or answer.done())
        assert answer.result() == ["ours"]
