"""``streamfold serve`` in a process of its own, in a temporary folder, for tests of a plugin over REST."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from streamfold.core.testing.streams import Given

_SAID = re.compile(r"streamfold serves on (http://\S+)")
_VISIBLE_S = 300.0
_BACKENDS = {"encoder": {"use": "hashing"}, "chunker": {"use": "sentences"}}


class EmbeddedService:
    """A running service; ``stop`` ends it.

    Parameters
    ----------
    folder : where its data and its log go.
    plugins : names of entry points to enable.
    policies : the settings' ``policies`` table.
    backends : the settings' ``backends`` table; default: the quick ones.
    settings : others, by name. environment : variables of the process.
    """

    def __init__(
        self,
        folder: Path,
        *,
        plugins: Sequence[str] = (),
        policies: Mapping[str, Mapping[str, Any]],
        backends: Mapping[str, Mapping[str, Any]] = _BACKENDS,
        settings: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "serve.log"
        given = {name.upper(): json.dumps(value) for name, value in (settings or {}).items()} | {
            "DATA": str(folder / "data"),
            "PLUGINS": json.dumps(list(plugins)),
            "POLICIES": json.dumps(policies),
            "BACKENDS": json.dumps(backends),
        }
        # settings of the caller must not lead the service to other data
        variables = {name: value for name, value in os.environ.items() if not name.startswith("STREAMFOLD_")}
        variables |= {f"STREAMFOLD_{name}": value for name, value in given.items()} | dict(environment or {})
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "streamfold.pipelines.cli", "serve", "--port", "0"],
                cwd=folder,
                env=variables,
                stdout=log,
                stderr=log,
            )
        self._ids = 0
        self.url = self._started(180.0)
        self.client = httpx.Client(base_url=self.url, timeout=300.0, trust_env=False)

    def _started(self, timeout_s: float) -> str:
        end = time.monotonic() + timeout_s
        while time.monotonic() < end and self._process.poll() is None:
            if said := _SAID.search(self.log()):
                try:
                    if httpx.get(f"{said[1]}/readyz", trust_env=False, timeout=5).status_code == 200:
                        return said[1]
                except httpx.TransportError:
                    pass
            time.sleep(0.05)
        self._process.kill()
        self._process.wait()
        raise RuntimeError(f"the service did not come up; the end of its log:\n{self.log()[-2000:]}")

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    @property
    def process_id(self) -> int:
        return self._process.pid

    def log(self) -> str:
        return self._log.read_text("utf-8", "replace")

    def send(self, events: Iterable[Given]) -> dict[str, Any]:
        """Send events and wait until answers show them; returns the answer of ``POST /v1/events``."""
        lines = []
        for type_, data in events:
            self._ids += 1
            event = {"specversion": "1.0", "id": f"e{self._ids}", "source": "/test", "type": type_, "data": data}
            lines.append(json.dumps(event))
        return send_lines(self.client, lines)

    def get(self, path: str, **params: Any) -> Any:
        return self.client.get(path, params=params).raise_for_status().json()

    def stop(self) -> None:
        """Ask it to end, and wait; kill it if it does not."""
        self.client.close()
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def send_lines(client: httpx.Client, lines: Iterable[str]) -> dict[str, Any]:
    """Send events as they are, one a line, and wait until answers show them; returns the first answer.

    One request waits for half a minute at most. What is sent again counts once.
    """
    content, end = "\n".join(lines), time.monotonic() + _VISIBLE_S
    first: dict[str, Any] | None = None
    while time.monotonic() < end:
        answer = client.post(
            "/v1/events",
            params={"wait": "visible", "wait_ms": 30_000},
            content=content,
            headers={"Content-Type": "application/x-ndjson"},
        )
        said: dict[str, Any] = answer.raise_for_status().json()
        first = first or said
        if said["visible"]:
            return first | {"visible": True}
    raise RuntimeError(f"what was sent did not become visible in {_VISIBLE_S:g} s")
