"""Exposures wait for the ledger, never the answer for them; past the bound they are dropped and counted."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from prometheus_client import CollectorRegistry

from streamfold.core.clock import SystemClock
from streamfold.core.errors import LedgerUnavailable
from streamfold.core.events import Acceptor, CloudEvent, EventTypes, NewEvent, builtin_types
from streamfold.core.ledger.abc import Appended, IntakeMove
from streamfold.pipelines.serve import exposures
from streamfold.pipelines.serve.exposures import Exposed, Exposures
from streamfold.pipelines.serve.own_events import OwnEvents


class Log:
    """A ledger that can be away."""

    def __init__(self) -> None:
        self.acceptor = Acceptor(EventTypes(builtin_types()), SystemClock())
        self.ids: list[str] = []
        self.away = threading.Event()
        self.tried = threading.Event()

    def accept(self, workspace: str, raws: Sequence[CloudEvent]) -> Any:
        return self.acceptor.accept_many(raws)

    def append(self, view: Any, events: Sequence[NewEvent], moves: Sequence[IntakeMove]) -> Appended:
        self.tried.set()
        if self.away.is_set():
            raise LedgerUnavailable("away")
        self.ids += [event.id for event in events]
        return Appended(outcomes=["accepted"] * len(events), positions=[0] * len(events), superseded=0, head=0)


def shown(buffer: Exposures, id_: str) -> bool:
    view: Any = SimpleNamespace(name="default")
    items = [Exposed(item_id="a", score=0.5), Exposed(item_id="b")]
    return buffer.log(view, "recommend", items, exposure_id=id_, user_id="u", policies={"trending": "1"})


def counted(registry: CollectorRegistry, outcome: str) -> float:
    labels = {"workspace": "default", "outcome": outcome}
    return registry.get_sample_value("streamfold_exposures_total", labels) or 0.0


def test_they_are_logged_in_order(monkeypatch: Any) -> None:
    log, registry = Log(), CollectorRegistry()
    buffer = Exposures(OwnEvents(log.accept, log.append), registry)
    assert all(shown(buffer, f"x{n}") for n in range(1200))
    assert buffer.flush(60)
    assert log.ids == [f"x{n}" for n in range(1200)]
    buffer.close()
    assert counted(registry, "logged") == 1200
    assert not shown(buffer, "late")


def test_while_the_ledger_is_away_they_wait_and_then_are_dropped(monkeypatch: Any) -> None:
    monkeypatch.setattr(exposures, "_MOST", 3)
    monkeypatch.setattr(exposures, "_RETRY_S", 0.01)
    log, registry = Log(), CollectorRegistry()
    log.away.set()
    buffer = Exposures(OwnEvents(log.accept, log.append), registry)
    assert [shown(buffer, f"x{n}") for n in range(5)] == [True, True, True, False, False]
    assert log.tried.wait(60)
    log.away.clear()
    assert buffer.flush(60)
    assert log.ids == ["x0", "x1", "x2"]
    assert counted(registry, "dropped") == 2
    buffer.close()
