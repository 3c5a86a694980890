"""A service and the command line, as several modules use them; a module may define its own ``service``."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streamfold.pipelines.cli import main
from streamfold.pipelines.cli.subservice import SubService
from tests.stand import Stand

Run = Callable[..., tuple[int, Any, str]]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SubService]:
    running = SubService(tmp_path_factory.mktemp("service"), encoder="hashing").start()
    yield running
    running.stop()


@pytest.fixture
def run(
    service: SubService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run a command; return its exit code, its body and what it said on stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STREAMFOLD_URL", service.url)

    def run(*arguments: str) -> tuple[int, Any, str]:
        capsys.readouterr()
        code = main([*arguments, "--json"])
        said = capsys.readouterr()
        return code, json.loads(said.out) if said.out else None, said.err

    return run


@pytest.fixture
def stand(tmp_path: Path, kafka_url: str, postgres_database: str, redis_url: str) -> Iterator[Stand]:
    made = Stand(tmp_path, kafka_url, postgres_database, redis_url)
    yield made
    made.close()
