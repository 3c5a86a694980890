"""Keys, binding, backpressure, and the process itself."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from streamfold.core.errors import ConfigError
from streamfold.core.settings import FoldSettings, KeySettings, ServeSettings, Settings
from streamfold.pipelines.serve import run

sys.path.insert(0, str(Path(__file__).parent))
from test_rest import BACKENDS, is_problem, serving, view_event

sys.path.pop(0)


def key(name: str, **values: Any) -> KeySettings:
    return KeySettings(sha256=hashlib.sha256(name.encode()).hexdigest(), **values)


def test_a_key_opens_its_workspace_and_its_scopes_only(tmp_path: Path) -> None:
    keys = (key("all", workspace="a"), key("other", workspace="b"), key("ask", workspace="a", scopes=("query",)))
    with serving(Settings(backends=BACKENDS, data=tmp_path, serve=ServeSettings(keys=keys))) as client:

        def by(name: str) -> dict[str, str]:
            return {"Authorization": f"Bearer {name}"}

        is_problem(client.get("/v1/status"), 401, "unauthenticated")
        is_problem(client.get("/v1/status", headers=by("nobody")), 401, "unauthenticated")
        assert client.get("/healthz").status_code == 200
        assert client.post("/v1/events?wait=visible", json=view_event("1"), headers=by("all")).status_code == 200
        assert client.get("/v1/events/1", headers={"X-API-Key": "ask"}).status_code == 200
        is_problem(client.get("/v1/events/1", headers=by("other")), 404, "not-found")
        is_problem(client.post("/v1/events", json=view_event("2"), headers=by("ask")), 403, "scope-missing")
        is_problem(client.get("/v1/status", headers=by("all") | {"X-Workspace": "b"}), 404, "not-found")
        backup = client.post("/v1/backups", json={"target": "b"}, headers=by("all"))
        assert is_problem(backup, 403, "scope-missing"), "a backup holds all workspaces"


def test_binding_beyond_loopback_without_keys_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="without keys"):
        run(Settings(backends=BACKENDS, data=tmp_path, serve=ServeSettings(host="0.0.0.0", port=0)))


def test_a_full_disk_holds_intake_back(tmp_path: Path) -> None:
    fold = FoldSettings(min_free_bytes=2**62)
    with serving(Settings(backends=BACKENDS, data=tmp_path, fold=fold)) as client:
        response = client.post("/v1/events", json=view_event("1"))
        is_problem(response, 429, "backpressure")
        assert response.headers["retry-after"]
        is_problem(client.put("/v1/documents/a", json={"text": "t"}), 429, "backpressure")
        assert client.get("/v1/health").status_code == 503
        assert client.get("/readyz").status_code == 200


PROGRAM = """
import sys
from pathlib import Path
from streamfold.core.settings import Settings
from streamfold.pipelines.serve import run
backends = {"encoder": {"use": "hashing"}, "chunker": {"use": "sentences"}}
run(Settings(backends=backends, data=Path(sys.argv[1]), serve={"port": 0}))
"""


def test_the_process_says_where_it_listens_and_stops_gracefully(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            line = next(line for line in process.stderr if "serves on" in line)
            url = line.rsplit(" ", 1)[1].strip()
            assert httpx.get(f"{url}/healthz").status_code == 200
        finally:
            process.send_signal(signal.SIGTERM)
        process.stderr.read()
        assert process.wait(timeout=300) == 0
    assert not list((tmp_path / "scratch").iterdir())
