"""Live stores, events and backends, without ledger and runner: what a policy's test needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from streamfold.core import Event, Policy, Refusal, Subject, Tools
from streamfold.core.codec import pack, unpack
from streamfold.core.events import builtin_types
from streamfold.core.stores import open_store
from streamfold.plugins.hashing import Hashing
from streamfold.plugins.sentences import Sentences

TYPES = {kind.name: kind for kind in builtin_types()}
START_US = 1_700_000_000_000_000


def event(seq: int, type_: str, at_us: int | None = None, **data: Any) -> Event:
    """A logged event; its data is decoded from JSON as core does it."""
    at = START_US + seq * 1_000_000 if at_us is None else at_us
    kind = TYPES[type_]
    value = msgspec.json.decode(msgspec.json.encode(data), type=kind.data)
    subject = kind.subjects(value)[0]
    return Event(
        seq=seq, type=type_, source="test", id=f"e{seq}", subject=subject, data=value, time_us=at, recorded_us=at
    )


class CountingEncoder(Hashing):
    """Counts calls and remembers what was embedded."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[list[str]] = []

    def encode(self, texts: Any) -> Any:
        self.calls.append(list(texts))
        return super().encode(texts)


class PlainTools:
    """Backends without a cache."""

    extractor_id: str | None = None

    def __init__(self) -> None:
        self.encoder = CountingEncoder()
        self.chunker = Sentences(40)


class FoldStores(dict[str, Any]):
    """A policy's stores on the fold's side."""

    now_us = 0
    stack = ""
    rng = np.random.default_rng(0)

    def __init__(self) -> None:
        super().__init__()
        self.refused: list[Refusal] = []

    def of(self, policy: str) -> Any:
        raise KeyError(policy)

    def refuse(self, past: Refusal) -> None:
        self.refused.append(past)


class ReadView(dict[str, Any]):
    """A policy's stores on the read side."""

    def __init__(self, stores: Mapping[str, Any], tools: PlainTools) -> None:
        super().__init__(stores)
        self.tools: Tools = tools

    def of(self, policy: str) -> Any:
        raise KeyError(policy)


class Bench:
    """One policy with both sides of its stores; ``send`` folds and commits, ``server`` answers from the view."""

    def __init__(self, policy: Policy, folder: Path, opened: ExitStack) -> None:
        self.policy = policy
        self.tools = PlainTools()
        self.stores = FoldStores()
        self.view = ReadView({}, self.tools)
        self.changes: list[dict[str, bytes]] = []
        for side, into in (("fold", self.stores), ("view", self.view)):
            for declared in policy.stores:
                place = folder / side / declared.name
                place.mkdir(parents=True)
                into[declared.name] = store = open_store(declared, folder=place, side=side)  # type: ignore[arg-type]  # a literal
                opened.callback(store.close)
        self.server: Any = policy.serve(self.view)

    def prepare(self, events: Iterable[Event]) -> list[Any]:
        """Prepare, and pass each value through its stored form."""
        kind = getattr(self.policy, "Prepared", Any)
        found = self.policy.prepare_batch(list(events), self.tools)
        return [None if value is None else unpack(pack(value), kind) for value in found]

    def send(self, *events: Event) -> None:
        for one, prepared in zip(events, self.prepare(events), strict=True):
            self.fold(lambda one=one, prepared=prepared: self.policy.fold(one, prepared, self.stores))
        self.commit()

    def fold(self, change: Any) -> None:
        """Run a change as one event: kept, or undone when it raises."""
        for store in self.stores.values():
            store.begin()
        try:
            change()
        except BaseException:
            for store in self.stores.values():
                store.undo()
            raise
        for store in self.stores.values():
            store.keep()

    def forget(self, kind: str, id_: str, *events: Event) -> None:
        batch = list(zip(events, self.prepare(events), strict=True))
        self.fold(lambda: self.policy.forget(Subject(kind, id_), batch, self.stores))
        self.commit()

    def commit(self) -> None:
        drained = {name: store.drain() for name, store in self.stores.items()}
        self.changes.append({name: data for name, data in drained.items() if data is not None})
        for name, data in self.changes[-1].items():
            self.view[name].apply(data)

    def fingerprint(self) -> dict[str, Any]:
        return {name: store.fingerprint() for name, store in self.view.items()}


class Benches:
    def __init__(self, folder: Path, opened: ExitStack) -> None:
        self._folder, self._opened, self._count = folder, opened, 0

    def __call__(self, policy: Policy) -> Bench:
        self._count += 1
        return Bench(policy, self._folder / str(self._count), self._opened)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Benches]:
    """Make a bench for a policy."""
    with ExitStack() as opened:
        yield Benches(tmp_path, opened)


@pytest.fixture
def make_event() -> Any:
    return event
