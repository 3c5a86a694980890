"""Which names are one entity: merges, aliases and new names, by events, reversible, whatever documents come and go.

A name (its key: words in lower case) that was merged into another, or given as its alias, has a row in ``names`` and an
edge ``m:name → c:other`` in the graph. Mentions stay with the name that the text has; who is one is looked up at query
time, so taking a merge back needs no more than removing its row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from streamfold.core import Event, EventError, Stores
from streamfold.plugins._names import words

_MOST_STEPS = 64
"""Of merges into one another that are followed."""


class Name(msgspec.Struct, frozen=True, array_like=True):
    """A row of ``names``: what a name was merged into, and how the entity is shown."""

    into: str | None = None
    shown: str | None = None


def entity_key(text: str) -> str:
    """Return the key of a name.

    >>> entity_key("Marie  CURIE")
    'marie curie'
    """
    return " ".join(words(text).keys)


@dataclass(frozen=True, slots=True)
class Identities:
    """Who is one, read off the stores of a view."""

    names: Any
    graph: Any

    @property
    def apart(self) -> bool:
        """Whether no name was merged or renamed."""
        return not len(self.names)

    def canonical(self, key: str) -> str:
        """The name that an entity goes by."""
        for _ in range(_MOST_STEPS if len(self.names) else 0):
            row: Name | None = self.names.get(key)
            if row is None or row.into is None:
                break
            key = row.into
        return key

    def canonical_many(self, keys: list[str]) -> list[str]:
        """The names that entities go by."""
        return keys if self.apart else list(map(self.canonical, keys))

    def members(self, key: str) -> list[str]:
        """All names of the entity that goes by ``key``, itself first."""
        found = {key: None}
        for name in list(self._merged(key)) if len(self.names) else ():
            found.setdefault(name)
        return list(found)

    def _merged(self, key: str) -> Iterator[str]:
        seen, ring = {key}, [key]
        while ring:
            names = [node[2:] for one in ring for node in self.graph.sources("c:" + one)[0]]
            ring = [name for name in names if name not in seen]
            seen.update(ring)
            yield from ring

    def one(self, key: str) -> list[str]:
        """All names of the entity that a name belongs to."""
        return self.members(self.canonical(key)) if len(self.names) else [key]

    def shown(self, key: str) -> str | None:
        """How an entity was renamed to be shown."""
        row: Name | None = self.names.get(key)
        return None if row is None else row.shown


def fold_names(event: Event, stores: Stores) -> None:
    """Fold an ``entity.*`` event. Raises ``EventError`` for a merge in a circle, and a split of what is not merged."""
    data = event.data
    key = _key(data.entity_id)
    table = stores["names"]
    if event.type == "entity.renamed":
        _put(key, msgspec.structs.replace(_row(table, key), shown=None if data.undo else data.name), stores)
    elif event.type == "entity.merged":
        _merge(key, None if data.undo else _key(_one(data.into)), stores)
    elif event.type == "entity.aliased":
        if not data.aliases:
            raise EventError("name the aliases that are taken back", code="invalid-event")
        for alias in dict.fromkeys(map(_key, data.aliases)):
            _merge(alias, None if data.undo else key, stores)
    else:
        for name in dict.fromkeys(map(_key, [data.into] if isinstance(data.into, str) else data.into or [])):
            row = _row(table, name)
            if not data.undo and row.into != key:
                raise EventError(
                    f"{name!r} was not merged into {key!r}: a split takes out names that were", code="not-merged"
                )
            _merge(name, key if data.undo else None, stores)


def _key(text: str) -> str:
    key = entity_key(text)
    if not key:
        raise EventError(f"{text[:80]!r} holds no word: it names no entity", code="no-name")
    return key


def _one(into: Any) -> str:
    if not isinstance(into, str):
        raise EventError("into must be one entity: send an event for each merge", code="invalid-event")
    return into


def _row(table: Any, key: str) -> Name:
    return table.get(key) or Name()


def _merge(name: str, into: str | None, stores: Stores) -> None:
    table = stores["names"]
    step = into
    for _ in range(_MOST_STEPS):
        if step is None:
            break
        if step == name:
            raise EventError(f"{name!r} cannot be merged into {into!r}: that is merged into it", code="merge-circle")
        step = _row(table, step).into
    else:
        raise EventError(f"{name!r}: more than {_MOST_STEPS} merges into one another", code="merge-circle")
    _put(name, msgspec.structs.replace(_row(table, name), into=into), stores)


def _put(key: str, row: Name, stores: Stores) -> None:
    graph, table = stores["graph"], stores["names"]
    if row == Name():
        table.delete(key)
    else:
        table.put(key, row)
    if row.into is None:
        graph.delete("m:" + key)
    else:
        begin = ["b:" + " ".join(key.split(" ", 2)[:2])] if " " in key else []
        graph.put("m:" + key, ["c:" + row.into, *begin], [FAINT] * (1 + len(begin)))


FAINT = 1e-6
"""Weight of edges that are for looking up alone: PageRank does not walk along them."""
HANDLED: Mapping[str, str] = {
    "entity.merged": "one name is another's entity",
    "entity.split": "names that were merged are taken out again",
    "entity.renamed": "how an entity is shown",
    "entity.aliased": "other names of an entity",
}
