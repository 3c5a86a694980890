"""Fixtures for tests of plugins, active wherever streamfold is installed (entry point ``pytest11``).

- ``event_stream(handles, n)``: events of these types
- ``folded_view(Policy, events)``: the policy with these events folded: its server, its stores, what it skipped
- ``embedded_service(plugins=…, policies=…)``: a real ``streamfold serve`` with the plugin enabled

Nothing heavy is imported until a test asks for a fixture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from streamfold.core.testing.folded import Folded
    from streamfold.core.testing.service import EmbeddedService
    from streamfold.core.testing.streams import Given


@pytest.fixture
def event_stream() -> Callable[..., list[Given]]:
    """Make events: ``event_stream(["interaction.observed"], n=100, seed=1)``; ``event_types=`` for types of plugins."""
    from streamfold.core.events import EventTypes, builtin_types
    from streamfold.core.testing.streams import stream

    def make(handles: Iterable[str], n: int = 24, *, event_types: Iterable[Any] = (), **options: Any) -> list[Given]:
        return stream(EventTypes([*builtin_types(), *event_types]), tuple(handles), n, **options)

    return make


@pytest.fixture
def folded_view() -> Iterator[Callable[..., Folded]]:
    """Fold events with a policy: ``folded_view(Dwell, [("item.deleted", {"item_id": "a"})])``; options as ``Case``."""
    from streamfold.core.testing.folded import Folded

    with ExitStack() as opened:

        def make(policy: Any, events: Iterable[Given] = (), **options: Any) -> Folded:
            folded = Folded(policy, **options)
            opened.callback(folded.close)
            folded.send(events)
            return folded

        yield make


@pytest.fixture
def embedded_service(tmp_path: Path) -> Iterator[Callable[..., EmbeddedService]]:
    """Start a service: ``embedded_service(plugins=["dwell"], policies={"dwell": {}})``."""
    from streamfold.core.testing.service import EmbeddedService

    with ExitStack() as opened:

        def start(**options: Any) -> EmbeddedService:
            service = EmbeddedService(tmp_path / f"service-{len(list(tmp_path.iterdir()))}", **options)
            opened.callback(service.stop)
            return service

        yield start
