"""The same events give the same stores, whatever the clock, the generators, the hash seed and the order of maps."""

from __future__ import annotations

import datetime
import random
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import msgspec
import numpy as np

from streamfold.core.codec import pack
from streamfold.core.errors import EventError
from streamfold.core.events import Event
from streamfold.core.testing.hashseed import contents_under
from streamfold.core.testing.lab import Lab, difference, needs, shown, told

_NOON_S = 1_700_000_000.25
_YEAR_S = 400 * 86_400.0
Contents = Mapping[str, Mapping[Any, Any]]


def check_repeatable(lab: Lab) -> None:
    """Two folds of the same events, with clock and generators held, give the same stores."""
    found = difference(_held(lab), _held(lab))
    needs(
        not found,
        f"folded twice, the same events give different stores ({found}): look for uuid4, os.urandom, id(), threads, "
        "default_rng() without a seed, or state that outlives the policy; take stores.rng and stores.now_us",
    )


def check_clock(lab: Lab) -> None:
    """The stores do not depend on the machine's clock."""
    found = _varied(lambda: _held(lab), lambda: _held(lab, now_s=_NOON_S + _YEAR_S))
    needs(
        not found,
        f"the stores depend on the clock ({found}): use event.at_s (when it happened) or stores.now_us (when it was "
        "logged) instead of time.time() and datetime.now()",
    )


def check_random_state(lab: Lab) -> None:
    """The stores do not depend on the global generators of random and numpy."""
    found = _varied(lambda: _held(lab), lambda: _held(lab, seed=2))
    needs(
        not found,
        f"the stores depend on a global random generator ({found}): use stores.rng, which is seeded by instance and "
        "position, so that replay draws the same numbers",
    )


def check_hash_seed(lab: Lab) -> None:
    """The stores do not depend on Python's hash seed (the order of sets), in processes of their own."""
    one, again, other = contents_under(lab, "1", "1", "2")
    if difference(one, again):
        return  # another source of chance: the other checks name it
    found = difference(one, other)
    needs(
        not found,
        f"the stores depend on the hash seed of the process ({found}): go through sets in sorted order, and use "
        "hashlib instead of hash()",
    )


def check_dict_order(lab: Lab) -> None:
    """The stores do not depend on the order of the keys in an event's maps."""
    events = lab.events()
    one, other = lab.bench().run(events).contents(), lab.bench().run([_turned(event) for event in events]).contents()
    same = all(
        mine.keys() == other[name].keys() and all(_equal(mine[key], other[name][key]) for key in mine)
        for name, mine in one.items()
    )
    needs(
        same,
        f"the stores depend on the order of keys in a map ({difference(one, other)}): sort the keys, or look them up "
        "by name",
    )


def check_prepare(lab: Lab) -> None:
    """``prepare`` is pure: alone or in a batch, in any order, once or twice, in another process's policy object."""
    bench, other = lab.bench(), lab.bench()
    if not bench.runtime.prepares:
        return
    events = [event for event in lab.events() if event.type in bench.runtime.handles]
    expected = bench.prepare(events)
    ways: dict[str, Callable[[], list[Any]]] = {
        "a second time": lambda: bench.prepare(events),
        "in reverse order": lambda: bench.prepare(events[::-1])[::-1],
        "one by one": lambda: [other.prepare([event])[0] for event in events],
    }
    for how, run in ways.items():
        for event, one, two in zip(events, expected, run(), strict=True):
            needs(
                _packed(one) == _packed(two),
                f"prepare of {told(event)} gives another value {how}: {shown(one)} against "
                f"{shown(two)}. It may use nothing but the event and tools: no counters, no clock, no caches that show",
            )


# -- holding and varying ----------------------------------------------------------------------------------------------
def _varied(plain: Callable[[], Contents], changed: Callable[[], Contents]) -> str:
    """Say what differs when one thing is changed; nothing when two plain runs differ already."""
    one, again = plain(), plain()
    return "" if difference(one, again) else difference(one, changed())


def _held(lab: Lab, *, now_s: float = _NOON_S, seed: int = 1) -> Contents:
    """Fold the stream with the clock stopped and the global generators seeded."""
    events = lab.events()
    bench = lab.bench()
    with held(sys.modules.get(lab.kind.__module__), now_s=now_s, seed=seed):
        bench.run(events)
    return bench.contents()


@contextmanager
def held(module: ModuleType | None, *, now_s: float, seed: int) -> Iterator[None]:
    """Stop ``time.time``, ``datetime.now`` (where the policy's module names them) and seed the global generators."""
    states = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    wall: dict[str, Any] = {"time": lambda: now_s, "time_ns": lambda: int(now_s * 1e9)}
    real = {name: getattr(time, name) for name in wall}
    still: dict[int, Any] = {
        id(datetime.datetime): _stopped(datetime.datetime, now_s),
        id(datetime.date): _stopped(datetime.date, now_s),
    }
    still |= {id(real[name]): wall[name] for name in wall}
    still[id(datetime)] = _module(datetime, datetime=still[id(datetime.datetime)], date=still[id(datetime.date)])
    own = vars(module) if module is not None else {}
    before = {name: value for name, value in own.items() if id(value) in still}
    vars(time).update(wall)
    own.update({name: still[id(value)] for name, value in before.items()})
    try:
        yield
    finally:
        vars(time).update(real)
        own.update(before)
        random.setstate(states[0])
        np.random.set_state(states[1])


def _stopped(kind: type[Any], now_s: float) -> type[Any]:
    """Make a date or datetime class whose "now" stands still."""

    class Stopped(kind):  # type: ignore[misc]  # the base is one of two classes
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.datetime.fromtimestamp(now_s, tz)

        @classmethod
        def utcnow(cls) -> Any:
            return datetime.datetime.fromtimestamp(now_s, datetime.UTC).replace(tzinfo=None)

        @classmethod
        def today(cls) -> Any:
            today = datetime.datetime.fromtimestamp(now_s)
            return today if issubclass(kind, datetime.datetime) else today.date()

    return Stopped


def _module(like: ModuleType, **changed: Any) -> ModuleType:
    module = ModuleType(like.__name__)
    vars(module).update(vars(like), **changed)
    return module


def _turned(event: Event) -> Event:
    """Return the event with every map of its data in reverse order."""
    data = msgspec.structs.replace(
        event.data,
        **{
            field.name: dict(reversed(value.items()))
            for field in msgspec.structs.fields(event.data)
            if isinstance(value := getattr(event.data, field.name), dict)
        },
    )
    return Event(
        event.seq, event.type, event.source, event.id, event.subject, data, event.time_us, event.recorded_us,
        event.sequence, event.traceparent, event.retry_of,
    )  # fmt: skip


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except ValueError:  # arrays
        return pack(one) == pack(other)


def _packed(value: Any) -> bytes:
    return str(value).encode() if isinstance(value, EventError) else pack(value)
