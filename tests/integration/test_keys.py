"""Keys and quotas over a real server: made, listed, revoked, bound to a workspace, and held to account."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from streamfold.core.errors import ConfigError
from streamfold.core.settings import QuotaSettings, ServeSettings, Settings
from streamfold.pipelines.cli import main
from streamfold.pipelines.node import Node
from streamfold.pipelines.serve import run
from tests.waiting import until

sys.path.insert(0, str(Path(__file__).parent))
from test_rest import BACKENDS, is_problem, serving, view_event

sys.path.pop(0)


def settings(folder: Path, **values: Any) -> Settings:
    return Settings(backends=BACKENDS, policies={"trending": {}}, data=folder, **values)


def by(key: str, workspace: str | None = None) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} | ({"X-Workspace": workspace} if workspace else {})


def make(client: httpx.Client, *scopes: str, key: str | None = None, workspace: str | None = None) -> str:
    headers = by(key, workspace) if key else {}
    response = client.post("/v1/keys", json={"name": "test", "scopes": scopes}, headers=headers)
    assert response.status_code == 201, response.text
    assert response.headers["cache-control"] == "no-store"
    return str(response.json()["key"])


def test_the_first_key_closes_the_service_and_revoking_it_does_not_open_it_again(tmp_path: Path) -> None:
    with serving(settings(tmp_path)) as client:
        assert client.get("/v1/status").status_code == 200
        ask = make(client, "query")
        assert client.get("/v1/status").status_code == 200  # nobody could make another key: still open here
        is_problem(client.post("/v1/events", json=view_event("1"), headers=by(ask)), 403, "scope-missing")
        is_problem(client.get("/v1/status", headers=by("sf_unknown_key")), 401, "unauthenticated")
        admin = make(client, "admin", "query")
        problem = client.get("/v1/status")
        is_problem(problem, 401, "unauthenticated")
        assert problem.headers["www-authenticate"] == "Bearer"
        items = client.get("/v1/keys", headers=by(admin)).json()["items"]
        assert [(item["scopes"], item["created_by"]) for item in items] == [
            (["query"], "local"),
            (["query", "admin"], "local"),
        ]
        assert "sha256" not in items[0]
        assert client.delete(f"/v1/keys/{items[1]['key_id']}", headers=by(admin)).status_code == 204
        is_problem(client.get("/v1/keys", headers=by(admin)), 401, "unauthenticated")
        is_problem(client.get("/v1/status"), 401, "unauthenticated")
        assert client.get("/v1/status", headers=by(ask)).status_code == 200


def test_an_admin_manages_the_keys_of_its_workspace_only(tmp_path: Path) -> None:
    with serving(settings(tmp_path)) as client:
        operator = make(client, "operator")
        assert client.put("/v1/workspaces/other", headers=by(operator)).status_code == 200
        here, there = (make(client, "admin", key=operator, workspace=w) for w in ("default", "other"))
        [one] = client.get("/v1/keys", headers=by(there)).json()["items"]
        assert (one["workspace"], one["revoked_at"]) == ("other", None)
        is_problem(client.delete(f"/v1/keys/{one['key_id']}", headers=by(here)), 404, "not-found")
        listed = client.get("/v1/keys", headers=by(here)).json()["items"]
        assert [item["scopes"] for item in listed] == [["admin"]]  # not the operator's, though it lives here
        every = client.get("/v1/keys", headers=by(operator)).json()["items"]
        [operators] = [item["key_id"] for item in every if item["scopes"] == ["operator"]]
        is_problem(client.delete(f"/v1/keys/{operators}", headers=by(here)), 404, "not-found")
        body = {"name": "up", "scopes": ["operator"]}
        is_problem(client.post("/v1/keys", json=body, headers=by(here)), 403, "scope-missing")
        is_problem(client.put("/v1/workspaces/mine", headers=by(here)), 403, "scope-missing")
        is_problem(client.get("/v1/keys", headers=by(here, "other")), 404, "not-found")
        is_problem(client.get("/v1/keys", headers=by(operator, "nowhere")), 404, "not-found")


def test_an_operator_works_in_the_workspace_it_names(tmp_path: Path) -> None:
    with serving(settings(tmp_path)) as client:
        operator = make(client, "operator")
        client.put("/v1/workspaces/b", headers=by(operator))
        sent = client.post("/v1/events?wait=visible", json=view_event("1"), headers=by(operator, "b"))
        assert sent.status_code == 200, sent.text
        assert client.get("/v1/events/1", headers=by(operator, "b")).status_code == 200
        is_problem(client.get("/v1/events/1", headers=by(operator)), 404, "not-found")
        names = [item["name"] for item in client.get("/v1/workspaces", headers=by(operator)).json()["items"]]
        assert names == ["b", "default"]
        admin = make(client, "admin", key=operator, workspace="b")
        metrics = client.get("/metrics", headers=by(admin)).text
        assert 'workspace="b"' in metrics
        assert 'workspace="default"' not in metrics
        assert 'workspace="default"' in client.get("/metrics", headers=by(operator)).text


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"name": "x"}, "invalid-value"),
        ({"scopes": ["query"]}, "invalid-value"),
        ({"name": "x", "scopes": []}, "invalid-value"),
        ({"name": "x", "scopes": ["root"]}, "invalid-value"),
        ({"name": "", "scopes": ["query"]}, "invalid-value"),
        ({"name": "a\0b", "scopes": ["query"]}, "invalid-value"),
        ({"name": "x", "scopes": ["query"], "scope": 1}, "unknown-field"),
    ],
)
def test_a_key_that_makes_no_sense_is_refused(tmp_path: Path, body: dict[str, Any], code: str) -> None:
    with serving(settings(tmp_path)) as client:
        is_problem(client.post("/v1/keys", json=body), 422, code)
        assert client.get("/v1/keys").json()["items"] == []


@pytest.mark.parametrize("name", ["-a", "a b", "a%2Fb", "%C3%A4", "x" * 65])
def test_a_workspace_has_a_plain_name(tmp_path: Path, name: str) -> None:
    with serving(settings(tmp_path)) as client:
        assert client.put(f"/v1/workspaces/{name}").status_code in (404, 422)
        assert client.put("/v1/workspaces/a.b-C_1").status_code == 200
        is_problem(client.put("/v1/workspaces/a", json={"quotas": {"bytes": -1}}), 422, "invalid-value")
        is_problem(client.put("/v1/workspaces/a", json={"quotas": {"byte": 1}}), 422, "unknown-field")


def test_keys_are_neither_kept_nor_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with serving(settings(tmp_path)) as client:
        key = make(client, "operator")
        assert client.get("/v1/status", headers=by(key)).status_code == 200
        assert client.get("/v1/keys", headers={"X-API-Key": key}).text.find(key) == -1
    secret = key.split("_", 2)[2]
    assert len(caplog.records) > 3
    assert secret not in caplog.text
    assert not any(secret.encode() in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())


def test_a_revocation_reaches_another_process(tmp_path: Path, postgres_database: str) -> None:
    """Two nodes of one PostgreSQL ledger: what one revokes the other refuses, without a restart."""
    both = [settings(tmp_path / name, ledger={"url": postgres_database}) for name in "ab"]
    with serving(both[0]) as one, serving(both[1]) as two:
        operator = make(one, "operator")
        ask = make(one, "query", key=operator)
        [key_id] = [
            k["key_id"] for k in one.get("/v1/keys", headers=by(operator)).json()["items"] if "query" in k["scopes"]
        ]
        states: list[int] = []
        until(lambda: two.get("/v1/status", headers=by(ask)).status_code == 200)
        assert one.delete(f"/v1/keys/{key_id}", headers=by(operator)).status_code == 204
        is_problem(one.get("/v1/status", headers=by(ask)), 401, "unauthenticated")
        until(lambda: states.append(two.get("/v1/status", headers=by(ask)).status_code) or states[-1] == 401)
        assert set(states) <= {200, 401}


# -- the first key, by hand ----------------------------------------------------------------------------------------
def test_the_first_key_is_made_without_a_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["keys", "create", "ops", "--bootstrap"]) == 0
    operator = capsys.readouterr().out.strip()
    with serving(settings(tmp_path / ".streamfold")) as client:
        is_problem(client.get("/v1/status"), 401, "unauthenticated")
        assert main(["keys", "create", "second", "--bootstrap"]) == 1
        assert "stop the service" in capsys.readouterr().err
        monkeypatch.setenv("STREAMFOLD_API_KEY", operator)
        url = ["--url", str(client.base_url)]
        assert main([*url, "keys", "create", "shop", "--scope", "ingest", "--json"]) == 0
        made = capsys.readouterr().out
        key_id = httpx.Response(200, text=made).json()["key_id"]
        assert main([*url, "keys", "revoke", key_id]) == 0
        assert main([*url, "keys", "list"]) == 0
        listed = capsys.readouterr().out
        assert key_id in listed
        assert operator not in listed
        assert main([*url, "keys", "revoke", "nothing"]) == 1


def test_beyond_loopback_a_key_of_the_ledger_is_enough(tmp_path: Path) -> None:
    """A process that binds to all addresses: refused without a key, and with one closed to whoever has none."""
    beyond = settings(tmp_path, serve=ServeSettings(host="0.0.0.0", port=0))
    with pytest.raises(ConfigError, match="--bootstrap"):
        run(beyond)
    assert main(["keys", "create", "ask", "--bootstrap", "--scope", "query", "--config", _file(tmp_path)]) == 0
    with serving(beyond) as client:
        is_problem(client.get("/v1/status"), 401, "unauthenticated")
    program = f"""
from streamfold.core.settings import Settings
from streamfold.pipelines.serve import run
run(Settings(backends={BACKENDS!r}, data={str(tmp_path)!r}, serve={{"host": "0.0.0.0", "port": 0}}))
"""
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = next((line for line in process.stderr if "serves on" in line), "")
        process.terminate()
        process.stderr.read()
    assert "serves on" in line


def _file(folder: Path) -> str:
    file = folder / "streamfold.toml"
    file.write_text(f'data = "{folder}"\n')
    return str(file)


# -- quotas --------------------------------------------------------------------------------------------------------
def test_a_workspace_above_its_quota_waits_and_the_others_do_not(tmp_path: Path) -> None:
    with serving(settings(tmp_path)) as client:
        operator = make(client, "operator")
        quotas = {"events_per_s": 0.001, "queries_per_s": 0.001}
        put = client.put("/v1/workspaces/small", json={"quotas": quotas}, headers=by(operator))
        assert put.json() == {"name": "small", "quotas": quotas | {"bytes": None}}
        client.put("/v1/workspaces/free", headers=by(operator))
        small, free = by(operator, "small"), by(operator, "free")
        batch = [view_event(f"{n}") for n in range(100)]
        assert client.post("/v1/events", json=batch, headers=small).json()["accepted"] == 100
        refused = client.post("/v1/events", json=view_event("more"), headers=small)
        is_problem(refused, 429, "rate-limited")
        assert int(refused.headers["retry-after"]) == 3600
        is_problem(client.put("/v1/items/a", json={"title": "t"}, headers=small), 429, "rate-limited")
        assert client.get("/v1/trending", headers=small).status_code == 200
        is_problem(client.get("/v1/trending", headers=small), 429, "rate-limited")
        assert client.get("/v1/status", headers=small).status_code == 200  # an operator can look
        for number in range(20):
            assert client.post("/v1/events", json=view_event(f"{number}"), headers=free).status_code == 202
            assert client.get("/v1/trending", headers=free).status_code == 200
        client.put("/v1/workspaces/small", headers=by(operator))
        assert client.post("/v1/events", json=view_event("more"), headers=small).status_code == 202


def test_a_full_workspace_takes_nothing_more(tmp_path: Path) -> None:
    with serving(settings(tmp_path, quotas=QuotaSettings(bytes=1000))) as client:
        codes = [client.post("/v1/events", json=view_event(f"{n}")).status_code for n in range(3)]
        assert codes[0] == 202
        until(
            lambda: (
                client.post("/v1/events", json=view_event(f"{id(codes)}-{len(codes)}")).status_code == 429
                or codes.append(0)
            )
        )
        refused = client.post("/v1/events", json=view_event("x"))
        is_problem(refused, 429, "rate-limited")
        assert "bytes" in refused.json()["detail"]
        assert client.get("/v1/trending").status_code == 200


def test_configured_operators_name_their_workspace(tmp_path: Path) -> None:
    import hashlib

    keys = [{"sha256": hashlib.sha256(b"root").hexdigest(), "workspace": "a", "scopes": ["operator"]}]
    with serving(settings(tmp_path, serve=ServeSettings(keys=keys))) as client:
        assert client.put("/v1/workspaces/b", headers=by("root")).status_code == 200
        assert client.post("/v1/events", json=view_event("1"), headers=by("root", "b")).status_code == 202
        is_problem(client.get("/v1/status"), 401, "unauthenticated")


def test_keys_survive_a_restart(tmp_path: Path) -> None:
    node = Node(settings(tmp_path))
    with serving(node.settings, node) as client:
        key = make(client, "operator")
    with serving(settings(tmp_path)) as client:
        assert client.get("/v1/status", headers=by(key)).status_code == 200
        is_problem(client.get("/v1/status"), 401, "unauthenticated")
