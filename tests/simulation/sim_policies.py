"""Policies that are folded in the simulator, and what must come of a log: plain Python over its rows."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

from streamfold.core import Blobs, Event, EventError, Policy, Stores, Table, Text
from streamfold.core.context import Context, Group
from streamfold.core.ledger.abc import NORMAL, Ledger

POISON = "bad"
Trouble = Any


class Counts(Policy):
    """Counts items, and chains what it folded: one event lost, doubled or out of order changes the chain."""

    name, version, handles = "counts", 1, ("interaction.observed", "item.deleted")
    stores = (Table("count", value=int), Table("chain", value=int), Table("draw", value=float))
    trouble: Trouble = staticmethod(lambda event: None)

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        count, chain = stores["count"], stores["chain"]
        if event.type == "item.deleted":
            for table in ("count", "chain", "draw"):
                stores[table].delete(event.subject.id)
            return
        item = event.data.item_id
        count.put(item, count.get(item, 0) + 1)
        chain.put(item, link(chain.get(item, 0), event.seq))
        stores["draw"].put(item, float(stores.rng.random()))
        type(self).trouble(event)
        if item == POISON:
            raise EventError("poison")


class Before(Policy):
    """Reads ``counts`` as it was before each event."""

    name, version, handles, reads = "before", 1, ("interaction.observed",), ("counts",)
    stores = (Table("before", key=int, value=int),)

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        stores["before"].put(event.seq, stores.of("counts")["count"].get(event.data.item_id, 0))


class Notes(Policy):
    """Keeps documents in three stores that must agree; has a prepare step."""

    name, version, handles = "notes", 1, ("document.upserted", "document.deleted")
    stores = (Table("docs", value=int), Blobs("texts"), Text("index"))

    def prepare(self, event: Event, tools: Any) -> Any:
        return None if event.type == "document.deleted" else event.data.text.upper()

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        name = event.subject.id
        key = zlib.crc32(name.encode())
        if event.type == "document.deleted":
            stores["docs"].delete(name)
            stores["texts"].delete(name)
            stores["index"].delete([key])
            return
        stores["docs"].put(name, event.seq)
        stores["texts"].put(name, prepared.encode())
        stores["index"].put([key], [{"text": prepared}])


POLICIES = (Counts, Before, Notes)


def link(before: int, seq: int) -> int:
    return zlib.crc32(f"{before} {seq}".encode())


class Oracle:
    """What the stores must hold at each position of the log."""

    def __init__(self, ledger: Ledger, workspace: str, decode: Any) -> None:
        self._ledger, self._workspace, self._decode = ledger, workspace, decode
        self.ids: list[str] = []
        self._states: list[dict[str, Mapping[Any, Any]]] = [
            {"count": {}, "chain": {}, "before": {}, "docs": {}, "texts": {}}
        ]
        self.poison: list[int] = []

    def moved(self, ledger: Ledger) -> None:
        """Begin again with another ledger: one that a power cut has left."""
        self.__init__(ledger, self._workspace, self._decode)  # type: ignore[misc]  # the same, afresh

    def read(self) -> None:
        """Take in what was appended since."""
        while rows := self._ledger.read(self._workspace, len(self.ids), 500).rows:
            for row in rows:
                assert row.seq == len(self.ids) + 1, f"the log has a hole at {len(self.ids) + 1}"
                event = self._decode(row)
                self.ids.append(event.id)
                self._states.append(self._after(self._states[-1], event) if row.effect == NORMAL else self._states[-1])

    def _after(self, state: dict[str, Mapping[Any, Any]], event: Event) -> dict[str, Mapping[Any, Any]]:
        count, chain = dict(state["count"]), dict(state["chain"])
        before, docs, texts = state["before"], dict(state["docs"]), dict(state["texts"])
        if event.type == "interaction.observed":
            item = event.data.item_id
            before = {**before, event.seq: count.get(item, 0)}
            if item == POISON:
                self.poison.append(event.seq)
            else:
                count[item] = count.get(item, 0) + 1
                chain[item] = link(chain.get(item, 0), event.seq)
        elif event.type == "item.deleted":
            count.pop(event.subject.id, None)
            chain.pop(event.subject.id, None)
        elif event.type == "document.upserted":
            docs[event.subject.id], texts[event.subject.id] = event.seq, event.data.text.upper().encode()
        else:
            docs.pop(event.subject.id, None)
            texts.pop(event.subject.id, None)
        return {"count": count, "chain": chain, "before": before, "docs": docs, "texts": texts}

    def at(self, position: int) -> dict[str, Mapping[Any, Any]]:
        if position >= len(self._states):
            self.read()
        return self._states[position]


def held(group: Group, by_runtime: Mapping[str, Any], between: Any = lambda: None) -> dict[str, Mapping[Any, Any]]:
    """What a group's stores hold, in the oracle's form; ``between``: called between the stores."""
    found: dict[str, Mapping[Any, Any]] = {}
    for runtime in group.runtimes:
        stores = by_runtime[runtime.key]
        if runtime.instance.name == "counts":
            found["count"] = dict(stores["count"].items())
            between()
            found["chain"] = dict(stores["chain"].items())
            assert set(dict(stores["draw"].items())) == set(found["chain"]), "half of an event is seen"
        elif runtime.instance.name == "before":
            found["before"] = dict(stores["before"].items())
        else:
            found["docs"] = dict(stores["docs"].items())
            between()
            found["texts"] = {name: stores["texts"].get(name) for name in stores["texts"].keys()}  # noqa: SIM118
            between()
            assert len(stores["index"]) == len(found["docs"]), "the index and the documents disagree"
        between()
    return found


def group_names(context: Context, workspace: str) -> list[str]:
    return [group.name for group in context.groups(workspace)]
