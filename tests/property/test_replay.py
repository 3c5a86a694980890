"""I1, I2, I3: whatever happens between commits, replay gives the live stores, and nothing is lost or doubled."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from streamfold.core import Event, EventError, Policy, Stores, Table
from streamfold.core.fold.checkpoint import checkpoint_group
from streamfold.core.testing import World, plugin

ITEMS = st.sampled_from(["a", "b", "c", "bad"])


class Counts(Policy):
    """Counts items in a bounded table; refuses "bad" after writing."""

    name, version, handles = "counts", 1, ("interaction.observed", "item.deleted")
    stores = (Table("count", value=int), Table("recent", value=float, max_rows=2), Table("draw", value=float))

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        if event.type == "item.deleted":
            stores["count"].delete(event.subject.id)
            return
        item = event.data.item_id
        stores["count"].put(item, stores["count"].get(item, 0) + 1)
        stores["recent"].put(item, float(event.seq))
        stores["draw"].put(item, float(stores.rng.random()))
        if item == "bad":
            raise EventError("bad item")


class Batched(Counts):
    """The same, several events at once: the last one of each item decides, a bad one spoils the batch."""

    name = "batched"

    def fold_batch(self, batch: Any, stores: Stores) -> None:
        for event, _ in batch:
            if event.type != "item.deleted" and event.data.item_id == "bad":
                raise EventError("a bad item in the batch")
        rows: dict[str, int] = {}
        for event, _ in batch:
            item = event.subject.id if event.type == "item.deleted" else event.data.item_id
            rows[item] = 0 if event.type == "item.deleted" else rows.get(item, stores["count"].get(item, 0)) + 1
            if event.type != "item.deleted":
                stores.seq = event.seq
                stores["recent"].put(item, float(event.seq))
                stores["draw"].put(item, float(stores.rng.random()))
        for item, count in rows.items():
            if count:
                stores["count"].put(item, count)
            else:
                stores["count"].delete(item)


class Life(RuleBasedStateMachine):
    """Appends (with redelivery), folds, crashes, checkpoints, resets; a model counts what must be there."""

    @initialize(batch=st.sampled_from([1, 2, 7, 4096]))
    def start(self, batch: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        fold = {"batch_events": batch, "max_skips": 10_000}
        policies: dict[str, Any] = {"counts": {}, "batched": {}}
        self.world = World(Path(self.folder.name), [plugin([Counts, Batched])], policies, fold=fold)
        self.model: Counter[str] = Counter()
        self.sent: list[tuple[str, str]] = []

    @rule(items=st.lists(ITEMS, min_size=1, max_size=6))
    def append(self, items: list[str]) -> None:
        for item in items:
            name = f"id{len(self.sent)}"
            self.sent.append((name, item))
            self._send(name, item)
            if item != "bad":
                self.model[item] += 1

    def _send(self, name: str, item: str) -> list[str]:
        data = {"user_id": "u", "item_id": item, "action": "click"}
        return list(self.world.send("interaction.observed", data, id=name).outcomes)

    @rule(data=st.data())
    def redeliver(self, data: st.DataObject) -> None:
        if self.sent:
            assert self._send(*data.draw(st.sampled_from(self.sent))) == ["duplicate"]

    @rule(item=ITEMS)
    def delete(self, item: str) -> None:
        self.world.send("item.deleted", {"item_id": item}, id=f"del{len(self.sent)}-{item}-{self.world._ids}")
        self.model.pop(item, None)

    @rule()
    def fold(self) -> None:
        self.world.fold()

    @rule()
    def crash(self) -> None:
        self.world.forget_warm()

    @rule()
    def checkpoint(self) -> None:
        self.world.fold()
        for group in self.world.context.groups(self.world.workspace):
            fold = self.world.runner._folds.get((self.world.workspace, group.name))
            if fold is not None and fold.lease is not None:
                checkpoint_group(self.world.context, self.world.workspace, group, fold.lease)

    @rule()
    def refold_from_the_start(self) -> None:
        self.world.ledger.reset_group(self.world.workspace, self.world.group("counts").name, watermark=0)

    @invariant()
    def the_view_never_counts_more_than_was_sent(self) -> None:
        if hasattr(self, "world"):
            sent = Counter(item for _, item in self.sent)
            assert all(count <= sent[item] for item, count in self.world.store("counts", "count").items())

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            self.world.forget_warm()  # an idle owner learns of a reset when it renews its lease, seconds later
            self.world.fold()
            assert dict(self.world.store("counts", "count").items()) == dict(self.model)
            for store in ("count", "recent"):
                rows = [dict(self.world.store(policy, store).items()) for policy in ("counts", "batched")]
                assert rows[0] == rows[1], f"fold_batch and fold differ in {store}"
            for verdict in self.world.verify().values():
                assert verdict.equal, verdict.differences
        finally:
            self.world.close()
            self.folder.cleanup()


Life.TestCase.settings = settings(
    max_examples=15, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
TestLife = Life.TestCase
