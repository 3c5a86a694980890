"""A ledger of each database, with the workspace that the tests write to."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from streamfold.core.ledger import open_ledger
from streamfold.core.ledger.abc import Ledger
from streamfold.core.testing.ledger_contract import WORKSPACE


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    return str(request.getfixturevalue("postgres_database"))


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    opened = open_ledger(url)
    opened.ensure_workspace(WORKSPACE)
    yield opened
    opened.close()
