"""Memory stays within the declared bounds under endless new ids, and an event costs the same however much is stored."""

from __future__ import annotations

import dataclasses
import tempfile
from itertools import chain
from pathlib import Path
from typing import Any

from streamfold.core.errors import StoreFull
from streamfold.core.events import Event
from streamfold.core.policy import Policy
from streamfold.core.stores import Array, Blobs, Declaration, Graph
from streamfold.core.testing.checks.serving import held_items
from streamfold.core.testing.lab import Bench, Lab, needs, told

_ROWS, _BYTES = 24, 4096
_WARM = 120
_POOL = 60
"""More ids than rows: what comes again may have been evicted from one store and not from another."""
_SLACK_BYTES = 4096
_WINDOW = 120
_FEW, _MANY = 1600, 600
"""Events on two subjects (so a value bounded at 200 entries has reached its bound in time), and on new ones."""


def check_bounds(lab: Lab) -> None:
    """Under endless new ids every event is still folded, and neither stores nor policy keep growing."""
    bench = lab.bench(_bounded(lab.kind))
    sizes: list[int] = []
    held: list[int] = []
    new, again = (
        lab.given(3 * _WARM // 2, fresh=True),
        lab.given(3 * _WARM // 2, fresh=False, pool=_POOL)[-3 * _WARM // 2 :],
    )
    events = lab.logged(chain.from_iterable(zip(new, again, strict=True)))
    for number, event in enumerate(events, 1):
        _fold(bench, event)
        bench.commit()
        if number % _WARM == 0:
            sizes.append(_saved_bytes(bench))
            held.append(held_items([bench.policy], []))
    needs(
        held[2] - held[1] < _WARM // 2,
        f"with every new id the policy itself holds more ({held[1]} objects after {2 * _WARM} events, {held[2]} after "
        f"{3 * _WARM}): keep nothing on self; what is remembered belongs into stores, which have a bound",
    )
    needs(
        sizes[2] <= sizes[1] * 1.25 + _SLACK_BYTES,
        f"with full stores the state still grows: {sizes[1]} bytes after {2 * _WARM} events, {sizes[2]} after "
        f"{3 * _WARM}. Some row's value grows without end: bound it (keep the newest n), or give each entry a row",
    )


def _fold(bench: Bench, event: Event) -> None:
    try:
        bench.fold(event)
    except StoreFull:
        pass  # a store that refuses says so before acceptance; the event waits
    except Exception as error:
        needs(
            False,
            f"with full stores, fold raised {type(error).__name__}: {error} at {told(event)}. Rows "
            "may have been evicted from one store and not from another: handle a missing row (get(key) is None)",
        )


def _small(one: Declaration) -> Declaration:
    """A store with a small bound; an array's bound is its shape."""
    if isinstance(one, Array):
        return one
    if isinstance(one, Blobs | Graph):
        return dataclasses.replace(one, max_bytes=min(one.max_bytes, _BYTES))
    return dataclasses.replace(one, max_rows=min(one.max_rows, _ROWS))


_variants: dict[type[Policy], type[Policy]] = {}


def _bounded(kind: type[Policy]) -> type[Policy]:
    """Make a variant of the policy whose stores have small bounds."""
    if kind not in _variants:

        def __init__(self: Any, config: Any = None) -> None:
            kind.__init__(self, config)
            self.stores = tuple(map(_small, self.stores))

        _variants[kind] = type(kind.__name__, (kind,), {"__init__": __init__, "__module__": __name__})
    return _variants[kind]


def _saved_bytes(bench: Bench) -> int:
    """Bytes of the policy's stores as a checkpoint would write them."""
    total = 0
    for store in bench.view.by_runtime[bench.runtime.key].values():
        with tempfile.TemporaryDirectory(prefix="streamfold-kit-") as folder:
            store.save(Path(folder))
            total += sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return total


# -- cost -------------------------------------------------------------------------------------------------------------
def check_cost(lab: Lab) -> None:
    """Store operations and changed bytes of an event do not grow with what is stored (counted, not timed)."""
    few = lab.given(_FEW, seed=5, pool=2)
    many = lab.given(_MANY, seed=6, fresh=True)
    for what, given in (("new ids all the time", many), ("the same few ids again and again", few)):
        bench = lab.bench()
        counter = _Counter()
        bench.wrap = counter.around
        operations: list[int] = []
        changed: list[int] = []
        for event in lab.logged(given):
            counter.count = 0
            bench.fold(event)
            operations.append(counter.count)
            changed.append(sum(map(len, bench.commit().values())))
        _flat(operations, "store operations", what)
        _flat(changed, "changed bytes", what)


def _flat(costs: list[int], unit: str, what: str) -> None:
    first, last = len(costs) // 4, len(costs) - _WINDOW
    early, late = (_mean(costs[start : start + _WINDOW]) for start in (first, last))
    # where few events cost anything, how many do is chance: what grows costs more each time, too
    of_any = [_mean([cost for cost in part if cost]) for part in (costs[:last], costs[last:])]
    needs(
        late <= early * 1.6 + 4 or of_any[1] <= of_any[0] * 1.25 + 4,
        f"an event costs more the more is stored: with {what}, {early:.1f} {unit} per event after {first} events, "
        f"{late:.1f} after {last}. Look rows up by key instead of going through items() or top(), and keep a row's "
        "value small (a list that grows is written whole each time: bound it, or give each entry a row)",
    )


def _mean(costs: list[int]) -> float:
    return sum(costs) / len(costs) if costs else 0.0


class _Counter:
    """Counts what a fold asks of its stores: one per row that is looked at or written."""

    def __init__(self) -> None:
        self.count = 0

    def around(self, name: str, store: Any) -> Any:
        return _Counted(store, self)

    def add(self, number: int) -> None:
        self.count += number


class _Counted:
    _WHOLE = frozenset(("items", "keys", "top", "search", "search_terms"))
    _MANY = frozenset(("get_many", "put", "upsert", "delete"))

    def __init__(self, store: Any, counter: _Counter) -> None:
        self._store = store
        self._counter = counter

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if not callable(method):
            return method

        def counted(*arguments: Any, **more: Any) -> Any:
            self._counter.add(self._rows(name, arguments))
            return method(*arguments, **more)

        return counted

    def _rows(self, name: str, arguments: tuple[Any, ...]) -> int:
        if name in self._WHOLE:
            return max(1, len(self._store))
        if name in self._MANY and arguments and not isinstance(arguments[0], (str, int)):
            return max(1, len(arguments[0]))
        return 1

    def __contains__(self, key: Any) -> bool:
        self._counter.add(1)
        return key in self._store

    def __len__(self) -> int:
        return len(self._store)
