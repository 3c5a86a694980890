"""The author's way, as docs/tutorial/write-a-plugin.md prints it: each command a process, the plugin installed."""

from __future__ import annotations

import json
import os
import re
import site
import subprocess
import sys
import urllib.error
import urllib.request
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import waiting

TUTORIAL = Path(__file__).parents[2] / "docs/tutorial/write-a-plugin.md"


class Shell:
    """A folder and an environment with a virtual environment of its own, which sees ours."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        venv.create(folder / "venv", with_pip=False)
        self.python = folder / "venv/bin/python"
        [packages] = (folder / "venv/lib").glob("python*/site-packages")
        ours = site.getsitepackages()[0]  # with its .pth files: an editable install is one
        (packages / "ours.pth").write_text(f"import site; site.addsitedir({ours!r})\n")
        self.cwd = folder
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("STREAMFOLD_")}

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run ``streamfold …`` (or ``pip …``) to its end; return what it printed."""
        done = subprocess.run(
            self._command(arguments), cwd=self.cwd, env=self.environment, capture_output=True, text=True
        )
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def start(self, *arguments: str, to: Path) -> subprocess.Popen[bytes]:
        with to.open("wb") as file:
            return subprocess.Popen(
                self._command(arguments), cwd=self.cwd, env=self.environment, stdout=file, stderr=subprocess.STDOUT
            )

    def _command(self, arguments: tuple[str, ...]) -> list[str]:
        if arguments[0] == "pip":  # without the network: what it needs to build is here
            options = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
            return [sys.executable, "-m", "pip", "--python", str(self.python), *arguments[1:], *options]
        return [str(self.python), "-m", "streamfold.pipelines.cli", *arguments]


def until(said: Callable[[], Any], what: str) -> Any:
    return waiting.until(said, lambda: what)


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=120) as answer:
        return json.load(answer)


def is_ready(url: str) -> bool:
    try:
        return bool(get(f"{url}/readyz"))
    except urllib.error.HTTPError:
        return False


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    running: list[subprocess.Popen[bytes]] = []
    yield running
    for one in running:
        one.terminate()
        one.wait(30)


def test_from_init_to_a_plugin_that_serves(shell: Shell, processes: list[subprocess.Popen[bytes]]) -> None:
    shell.run("init", "app")
    shell.cwd = shell.folder / "app"
    settings = shell.cwd / "streamfold.toml"
    quick = '[backends.encoder]\nuse = "hashing"\n[backends.chunker]\nuse = "sentences"\n'
    settings.write_text(settings.read_text() + quick)

    def serve() -> str:
        log = shell.folder / f"serve-{len(processes)}.log"
        processes.append(shell.start("serve", "--port", "0", to=log))
        found = until(lambda: re.search(r"serves on (http://\S+)", log.read_text()), f"serve: {log.read_text()}")
        until(lambda: is_ready(found[1]), "readyz")
        shell.environment["STREAMFOLD_URL"] = found[1]
        return str(found[1])

    serve()
    assert shell.run("send", "sample.jsonl", "--wait") == "accepted 7 duplicates 0 rejected 0 position 7\n"
    assert "pip install -e dwell" in shell.run("new-plugin", "dwell")
    shell.run("pip", "install", "-e", "dwell")
    assert json.loads(shell.run("check-plugin", "dwell", "--json", "--quiet"))["passed"]

    # dev: the newest events of the service, and again on each save
    out = shell.folder / "dev.log"
    processes.append(shell.start("dev", "dwell", "--events", "tail:1000", to=out))
    until(lambda: "watching streamfold_dwell.py" in out.read_text(), "the first pass of dev")
    assert "+ mean['kettle'] = 42.0" in out.read_text()
    assert "3 events folded, 2 changed a store" in out.read_text()
    source = shell.cwd / "dwell/src/streamfold_dwell.py"
    source.write_text(source.read_text().replace("(total + data.value) / (count + 1)", "(total + data.value) * 100"))
    until(lambda: "+ mean['kettle'] = 4200.0" in out.read_text(), "the saved code")
    source.write_text(source.read_text().replace("* 100", "* 100)"))
    until(lambda: "SyntaxError" in out.read_text(), "a syntax error said, and dev still watching")
    source.write_text(source.read_text().replace("* 100)", "/ (count + 1)"))
    until(lambda: out.read_text().count("+ mean['kettle'] = 42.0") == 2, "the code as it was")

    # An installed plugin is found by its name from anywhere, and does nothing until the settings name it.
    here, shell.cwd = shell.cwd, shell.folder
    assert "1 changed a store" in shell.run("dev", "dwell", "--events", "tail:2", "--once")
    shell.cwd = here
    assert "dwell" not in {one["policy"] for one in json.loads(shell.run("status", "--json"))["policies"]}
    processes[0].terminate()
    processes[0].wait(30)
    settings.write_text('plugins = ["dwell"]\n' + settings.read_text() + "[policies.dwell]\n")
    url = serve()
    until(
        lambda: all(one["lag_events"] == 0 for one in get(f"{url}/v1/status")["policies"]), "dwell has folded the log"
    )
    answer = until(lambda: get(f"{url}/v1/trending?policy=dwell")["items"], "the answer of the plugin's policy")
    assert [item["item_id"] for item in answer] == ["kettle", "lamp"]
    shown = json.loads(shell.run("recommend", "u1", "--policy", "dwell", "--explain", "--url", url, "--json"))
    assert [(item["item_id"], item["score"]) for item in shown["items"]] == [("kettle", 42.0), ("lamp", 8.0)]


def test_the_tests_of_a_new_plugin_pass(shell: Shell) -> None:
    shell.run("new-plugin", "stay")
    environment = {**shell.environment, "PYTHONPATH": str(shell.folder / "stay/src")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "stay"],
        cwd=shell.folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "21 passed" in done.stdout


def test_the_embedded_service_fixture_serves(embedded_service: Any) -> None:
    service = embedded_service(policies={"trending": {}})
    click = ("interaction.observed", {"user_id": "ada", "item_id": "lamp", "action": "click"})
    assert service.send([click])["visible"] is True
    assert [item["item_id"] for item in service.get("/v1/trending")["items"]] == ["lamp"]
    with pytest.raises(RuntimeError, match="no installed distribution offers it"):
        embedded_service(plugins=["nobody"], policies={})
