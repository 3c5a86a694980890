"""The tests here share ``harness.py`` (pytest's importlib mode finds no siblings by itself) and services to kill."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamfold.pipelines.services import SERVICES, Service, ServiceError

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module")
def own_services() -> Iterator[dict[str, Service]]:
    """Kafka, PostgreSQL and Redis that belong to one module alone, which kills and restarts them."""
    folder = Path(tempfile.mkdtemp(prefix="streamfold-faults-"))
    folder.chmod(0o755)  # not pytest's own folder: it is closed to the user that PostgreSQL runs as
    made: dict[str, Service] = {}
    try:
        for name, kind in SERVICES.items():
            made[name] = kind(folder)
            try:
                made[name].start()
            except ServiceError as error:
                if os.environ.get("CI", "").lower() in {"1", "true", "yes"}:
                    pytest.fail(f"CI must run this test: {error}", pytrace=False)
                pytest.skip(str(error))
        yield made
    finally:
        for service in made.values():
            service.remove()
        shutil.rmtree(folder, ignore_errors=True)
