"""I4: whatever happens between, after an erasure the state is as if the subject's earlier events had never come."""

from __future__ import annotations

import itertools
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import sqlalchemy
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from streamfold.core import Event, EventError, Policy, Stores, Subject, Table
from streamfold.core.fold.checkpoint import checkpoint_group
from streamfold.core.fold.eraser import Eraser
from streamfold.core.ledger import open_ledger
from streamfold.core.ledger.abc import Ledger
from streamfold.core.ledger.schema import metadata
from streamfold.core.testing import World, plugin

USERS = st.sampled_from(["user-anna", "user-bert", "user-cleo"])
ITEMS = st.sampled_from(["item-a", "item-b", "bad-one"])
_numbers = itertools.count()


class Exact(Policy):
    """Counts interactions by user and item; forgets by counting down."""

    name, version, handles = "exact", 1, ("interaction.observed",)
    stores = (Table("pairs", value=int), Table("users", value=int))

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        for table, key in _keys(event):
            stores[table].put(key, stores[table].get(key, 0) + 1)
        if event.data.item_id == "bad-one":
            raise EventError("bad item")

    def forget(self, subject: Subject, events: Any, stores: Stores) -> None:
        for event, _ in events:
            for table, key in _keys(event):
                left = stores[table].get(key) - 1
                if left:
                    stores[table].put(key, left)
                else:
                    stores[table].delete(key)


class Afresh(Policy):
    """The last user of each item and a draw by its generator; cannot forget. Reads ``exact`` as it was before."""

    name, version, handles = "afresh", 1, ("interaction.observed", "item.erased")
    reads = ("exact",)
    stores = (Table("last", value=str), Table("draw", value=float), Table("before", key=int, value=int))

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        if event.type == "item.erased":
            stores["last"].delete(event.subject.id)
            return
        item = event.data.item_id
        stores["last"].put(item, event.data.user_id)
        stores["draw"].put(item, float(stores.rng.random()))
        stores["before"].put(event.seq, stores.of("exact")["users"].get(event.data.user_id, 0))


def _keys(event: Event) -> list[tuple[str, str]]:
    return [("pairs", f"{event.data.user_id}/{event.data.item_id}"), ("users", event.data.user_id)]


class Alone(Exact):
    """The same in a group of its own, so that its ``forget`` is used."""

    name = "alone"


class Life(RuleBasedStateMachine):
    """Appends, redelivers, folds, crashes, checkpoints, resets, erases users and items, step by step or to the end."""

    def __init__(self, ledger: Ledger | None = None) -> None:
        super().__init__()
        self.given = ledger
        """An empty ledger, or a SQLite file in the folder."""

    @initialize(batch=st.sampled_from([1, 3, 4096]))
    def start(self, batch: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        fold = {"batch_events": batch, "max_skips": 10_000}
        policies: dict[str, Any] = {"exact": {}, "afresh": {}, "alone": {}}
        plugins = [plugin([Exact, Afresh, Alone])]
        self.world = World(Path(self.folder.name), plugins, policies, fold=fold, ledger=self.given)
        self.alive: list[tuple[str, str, str]] = []
        self.gone: list[tuple[str, str, str]] = []
        self.sent = 0

    def _send(self, id_: str, user: str, item: str) -> str:
        data = {"user_id": user, "item_id": item, "action": "click"}
        return self.world.send("interaction.observed", data, id=id_).outcomes[0]

    @rule(pairs=st.lists(st.tuples(USERS, ITEMS), min_size=1, max_size=5))
    def append(self, pairs: list[tuple[str, str]]) -> None:
        self.world.clock.advance(1)
        for user, item in pairs:
            self.sent += 1
            self.alive.append((f"id{self.sent}", user, item))
            assert self._send(*self.alive[-1]) == "accepted"

    @rule(data=st.data())
    def redeliver(self, data: st.DataObject) -> None:
        if self.alive + self.gone:
            one = data.draw(st.sampled_from(self.alive + self.gone))
            assert self._send(*one) in (["duplicate"] if one in self.alive else ["duplicate", "erased"])

    @rule(kind=st.sampled_from(["user", "item"]), user=USERS, item=ITEMS)
    def erase(self, kind: str, user: str, item: str) -> None:
        self.sent += 1
        self.world.clock.advance(1)
        id_ = user if kind == "user" else item
        self.world.send(f"{kind}.erased", {f"{kind}_id": id_}, id=f"erase{self.sent}")
        which = 1 if kind == "user" else 2
        self.gone += [one for one in self.alive if one[which] == id_]
        self.alive = [one for one in self.alive if one[which] != id_]

    @rule()
    def fold(self) -> None:
        self.world.fold()

    @rule()
    def crash(self) -> None:
        self.world.forget_warm()

    @rule()
    def one_step_of_erasing(self) -> None:
        self.world.clock.advance(1)
        Eraser(self.world.context, (self.world.runner,)).run("default")

    @rule()
    def complete(self) -> None:
        self.world.erase()
        self._check()

    @rule()
    def checkpoint(self) -> None:
        for group in self.world.context.groups("default"):
            fold = self.world.runner._folds.get(("default", group.name))
            if fold is not None and fold.lease is not None:
                checkpoint_group(self.world.context, "default", group, fold.lease)

    @rule(policy=st.sampled_from(["afresh", "alone"]))
    def refold_from_the_start(self, policy: str) -> None:
        self.world.ledger.reset_group("default", self.world.group(policy).name, watermark=0)
        self.world.forget_warm()

    def _check(self) -> None:
        world = self.world
        kept = [(user, item) for _, user, item in self.alive if item != "bad-one"]
        for name in ("exact", "alone"):
            assert dict(world.store(name, "users").items()) == dict(Counter(user for user, _ in kept))
            assert dict(world.store(name, "pairs").items()) == dict(Counter(f"{u}/{i}" for u, i in kept))
        assert dict(world.store("afresh", "last").items()) == {item: user for _, user, item in self.alive}
        assert len(world.store("afresh", "before")) == len(self.alive)
        for verdict in world.verify().values():
            assert verdict.equal, verdict.differences
        if self.given is not None:  # what the tables hold now, as files
            self.given.backup(Path(self.folder.name) / f"backup-{self.sent}-{next(_numbers)}")
        held = {s for _, user, item in self.alive for s in (user, item)}
        for subject in {s for _, user, item in self.gone for s in (user, item)} - held:
            files = [file for file in Path(self.folder.name).rglob("*") if file.is_file()]
            found = [file for file in files if subject.encode() in file.read_bytes()]
            assert not found, f"{subject} is left in {found}"

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            self.world.erase()
            self._check()
        finally:
            self.world.close()
            self.folder.cleanup()


LIMITS: Any = settings(max_examples=12, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck))


def test_erasures_on_sqlite() -> None:
    run_state_machine_as_test(Life, settings=LIMITS)  # type: ignore[no-untyped-call]


def test_erasures_on_postgresql(postgres_database: str) -> None:
    ledger = open_ledger(postgres_database)
    engine = sqlalchemy.create_engine(postgres_database)
    tables = ", ".join(table.name for table in metadata.sorted_tables if table.name != "meta")

    def on_an_empty_ledger() -> Life:
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text(f"truncate {tables}"))
        return Life(ledger)

    try:
        run_state_machine_as_test(on_an_empty_ledger, settings=LIMITS)  # type: ignore[no-untyped-call]
    finally:
        engine.dispose()
        ledger.close()
