"""The tests here share ``vector_harness.py`` (pytest's importlib mode finds no siblings by itself)."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
DIM = 12


@pytest.fixture
def new() -> Iterator[Callable[..., Any]]:
    """Make indexes that are closed after the test."""
    from vector_harness import close, make

    made: list[Any] = []

    def make_one(kind: str, dim: int = DIM, **changes: Any) -> Any:
        made.append(make(kind, dim, **changes))
        return made[-1]

    yield make_one
    for index in made:
        close(index)
