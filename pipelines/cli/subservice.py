"""A service as a child process with a folder of its own: for the demo and for tests, which kill and restart it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from streamfold.pipelines.cli.state import CliError

_SAID = re.compile(r"streamfold serves on (http://\S+)")
_PYTHON = (sys.executable, "-m", "streamfold.pipelines.cli")


class SubService:
    """``streamfold serve`` below ``folder``: settings, data and log lie there; the port stays the same for life.

    Parameters
    ----------
    folder : made if missing; the child's working directory.
    encoder : the encoder that the settings name.
    policies : those to run, with their settings; none: what runs where nothing is set.
    """

    def __init__(self, folder: Path, *, encoder: str = "minilm", policies: Mapping[str, Any] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.log = folder / "serve.log"
        self.url = ""
        self._process: subprocess.Popen[bytes] | None = None
        (folder / "streamfold.toml").write_text(
            f'data = "data"\n[backends.encoder]\nuse = "{encoder}"\n[backends.chunker]\nuse = "sentences"\n'
            '[log]\nlevel = "warning"\n' + _tables(policies or {}),
            "utf-8",
        )

    def start(self, timeout_s: float = 180.0) -> SubService:
        """Start and wait until it can answer; the log's end is in the error if it cannot."""
        port = self.url.rpartition(":")[2] or "0"
        # settings of the caller's environment stand above the file, and must not lead the child to other data
        environment = {k: v for k, v in os.environ.items() if not k.startswith("STREAMFOLD_")}
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*_PYTHON, "serve", "--port", port], cwd=self.folder, env=environment, stdout=log, stderr=log
            )
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            if self._process.poll() is not None:
                break
            if said := _SAID.search(self.log_text()):
                self.url = said[1]
                if self._is_ready():
                    return self
            time.sleep(0.03)
        self.stop()
        raise CliError(f"the service did not come up; the end of its log:\n{self.log_text()[-2000:]}")

    def _is_ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/readyz", trust_env=False, timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    def log_text(self) -> str:
        return self.log.read_text("utf-8", "replace")

    def kill(self) -> None:
        """``kill -9``: nothing is closed, nothing is flushed."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        """Ask it to end, and wait; kill it if it does not."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(15)
        except subprocess.TimeoutExpired:
            self.kill()


def _tables(policies: Mapping[str, Mapping[str, Any]]) -> str:
    """TOML of policies; numbers, texts and lists are written as in JSON."""
    lines = []
    for name, values in policies.items():
        lines += [f"[policies.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    return "\n".join([*lines, ""])
