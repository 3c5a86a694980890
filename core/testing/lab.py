"""Where a policy is tried: what is under test (:class:`Case`), worlds and bare folds for it (:class:`Lab`).

A :class:`Bench` folds without ledger and lease, in the order and with the undo of the real fold, so that a check can
stop between two writes, count, or look at the stores after each event. Checks that concern recovery use a real
:class:`~streamfold.core.testing.world.World`.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import msgspec

from streamfold.core.clock import US, ManualClock
from streamfold.core.codec import pack
from streamfold.core.context import Context, Group, Runtime
from streamfold.core.errors import EventError
from streamfold.core.events import Acceptor, Event, EventType, Subject
from streamfold.core.fold.one import fold_one
from streamfold.core.fold.prepare import prepare_inline
from streamfold.core.fold.stores import FoldStores, GroupStores, readers
from streamfold.core.fold.tools import InstanceTools
from streamfold.core.hooks import hookimpl
from streamfold.core.ledger.abc import LogRow
from streamfold.core.policy import Backend, Policy, Tools
from streamfold.core.testing.backends import BACKENDS
from streamfold.core.testing.streams import Given, stream
from streamfold.core.testing.world import World

Make = Callable[[], Policy]
START_US = 1_700_000_000 * US
STREAM = 24
_SETTINGS = {"max_skips": 1_000_000, "checkpoint_min_bytes": 1 << 40, "turn_ms": 60_000}


class CheckFailed(AssertionError):
    """A policy does not keep the contract; the message says what was seen and what to do."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A policy under test.

    Parameters
    ----------
    make : the policy class, or a function that makes a policy with the configuration to test.
    plugins : modules that offer what the policy needs; default: the module it is defined in, if that is a plugin.
    policies : settings of other instances that it ``reads``.
    backends : the settings' ``backends`` table; default: small deterministic ones of the kit.
    events : ``(type, data)`` that go in front of the generated stream, for what it may not hit.
    """

    make: Make
    plugins: tuple[Any, ...] = ()
    policies: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    backends: Mapping[str, Mapping[str, Any]] | None = None
    events: tuple[Given, ...] = ()

    @property
    def name(self) -> str:
        return str(getattr(self.make, "name", None) or getattr(self.make, "__name__", "policy"))


class Lab:
    """Opens what the checks need of one case; close it, or use it in a ``with``."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.policy = case.make()
        self.kind = type(self.policy)
        self.config: dict[str, Any] = msgspec.to_builtins(self.policy.config)
        self._kept, self._open = ExitStack(), ExitStack()
        self._folder = Path(self._kept.enter_context(tempfile.TemporaryDirectory(prefix="streamfold-kit-")))
        self._count = 0
        self._base: dict[type[Policy], World] = {}
        self._given: dict[tuple[Any, ...], list[Given]] = {}
        self._events: list[Event] | None = None

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.clear()
        self._kept.close()

    def clear(self) -> None:
        """Close the worlds and benches that a check opened; what all checks use (:meth:`base`, the stream) stays."""
        self._open.close()

    # -- worlds and benches -------------------------------------------------------------------------------------------
    def world(self, kind: type[Policy] | None = None, *, beside: World | None = None, **fold: Any) -> World:
        """Open a world with this policy; ``beside``: another process on the same ledger, as after a crash."""
        world = self._world(kind, beside=beside, **fold)
        self._open.callback(world.close)
        return world

    def _world(self, kind: type[Policy] | None = None, *, beside: World | None = None, **fold: Any) -> World:
        self._count += 1
        kind = kind or self.kind
        policies = {name: dict(table) for name, table in self.case.policies.items()}
        policies[kind.name] = {"use": kind.name, **self.config}
        for name in self.policy.reads:
            policies.setdefault(name, {})
        needed = {b for one in (kind, *_offered(self.case, self.kind)) for b in one.backends}
        defaults = {k: {"use": "kit"} for k in needed if any(b.kind == k for b in BACKENDS)}
        return World(
            beside.context.settings.data if beside else self._folder / f"world-{self._count}",
            [_Offer(self.case, self.kind, kind)],
            policies,
            backends={**defaults, **(self.case.backends or {})},
            ledger=beside.ledger if beside else None,
            clock=beside.clock if beside else ManualClock(START_US),
            fold={**_SETTINGS, **fold},
            owner=f"world-{self._count}",
        )

    def base(self, kind: type[Policy] | None = None) -> World:
        """The world whose registry and ledger benches share (nothing is logged there)."""
        kind = kind or self.kind
        if kind not in self._base:
            self._base[kind] = self._world(kind)
            self._kept.callback(self._base[kind].close)
        return self._base[kind]

    def bench(self, kind: type[Policy] | None = None, *, side: Literal["fold", "both"] = "fold") -> Bench:
        """Open a bench with a new policy object; ``side``: what the fold writes to (``both``: it serves, too)."""
        bench = Bench(self.base(kind), kind or self.kind, side=side)
        self._open.callback(bench.close)
        return bench

    # -- events -------------------------------------------------------------------------------------------------------
    def handles(self) -> tuple[str, ...]:
        """Event types of the policy and of those it reads."""
        return tuple(sorted(self.base().group(self.kind.name).handles))

    def given(self, n: int = STREAM, **options: Any) -> list[Given]:
        """The case's own events, then ``n`` generated ones (see :func:`stream`), most of which change a store."""
        key = (n, *sorted(options.items()))
        if key not in self._given:
            types = self.base().registry.event_types
            if n > 100 or options.get("odd") or options.get("fresh"):
                self._given[key] = stream(types, self.handles(), n, **options)
            else:
                self._given[key] = [
                    *self.case.events,
                    *self._telling(stream(types, self.handles(), 6 * n, **options), n),
                ]
        return self._given[key]

    def _telling(self, candidates: list[Given], n: int) -> list[Given]:
        """Choose ``n`` events in order: up to three in four change a store, the others do not."""
        telling: list[int] = []
        idle: list[int] = []
        bench = self.bench()
        for index, event in enumerate(self.logged(candidates)):
            if len(telling) >= n - n // 4:
                break
            try:
                bench.fold(event)
            except Exception:  # for the check to see
                telling.append(index)
                continue
            (telling if bench.commit() else idle).append(index)
        idle += range(len(telling) + len(idle), len(candidates))
        return [candidates[index] for index in sorted([*telling, *idle[: n - len(telling)]])]

    def events(self) -> list[Event]:
        """The usual stream as logged events, one a second."""
        if self._events is None:
            self._events = self.logged(self.given())
        return self._events

    def logged(self, given: Iterable[Given], *, first: int = 1) -> list[Event]:
        """Accept and decode events as core does, with positions from ``first``."""
        registry = self.base().registry
        clock = ManualClock(START_US)
        acceptor = Acceptor(registry.event_types, clock)
        events = []
        for seq, (type_, data) in enumerate(given, first):
            clock.advance((START_US + seq * US - clock.now_us()) / US)
            new = acceptor.accept_data(type_, data, id=f"e{seq}", source="kit", time_us=START_US + late_us(seq, type_))
            row = LogRow(seq, START_US + seq * US, new.type, new.body)
            events.append(registry.event_types.decode(row))
        return events


def late_us(seq: int, type_: str) -> int:
    """When event number ``seq`` says that it happened: most a moment before it was logged, some late.

    Erasures say that they happened before everything: the ledger gives no effect to events of an erased subject that
    are older than its erasure, and a fold without a ledger does not know that.
    """
    if type_.endswith(".erased"):
        return -3600 * US
    return seq * US - (30 * US if seq % 7 == 3 else US // 4)


def send(world: World, given: Sequence[Given], *, first: int = 1) -> None:
    """Log events one by one with the ids, times and positions that :meth:`Lab.logged` gives them."""
    for seq, (type_, data) in enumerate(given, first):
        world.clock.advance(max(0.0, (START_US + seq * US - world.clock.now_us()) / US))
        world.send(type_, data, id=f"e{seq}", source="kit", time_us=START_US + late_us(seq, type_))


class Bench:
    """A group's stores on both sides; folds event by event as core does, without ledger and lease."""

    def __init__(self, world: World, kind: type[Policy], *, side: Literal["fold", "both"] = "fold") -> None:
        base = world.context
        context = Context(
            settings=base.settings, registry=base.registry, ledger=base.ledger, clock=base.clock, scratch=base.scratch
        )
        self.context, self.workspace = context, world.workspace
        self.group: Group = context.group(world.workspace, kind.name)
        self.runtime = next(r for r in self.group.runtimes if isinstance(r.policy, kind))
        self.live = GroupStores(context, self.group, side=side)
        self.view = self.live if side == "both" else GroupStores(context, self.group, side="view")
        self._reads = readers(self.group, self.live)
        self.wrap: Callable[[str, Any], Any] = lambda name, store: store
        """Put something around each of the policy's live stores before it is given to the fold."""

    @property
    def policy(self) -> Policy:
        return self.runtime.policy

    def stores(self, runtime: Runtime | None = None) -> FoldStores:
        """What a fold gets as ``stores``."""
        runtime = runtime or self.runtime
        wrap = self.wrap if runtime is self.runtime else lambda name, store: store
        named = {name: wrap(name, store) for name, store in self.live.by_runtime[runtime.key].items()}
        return FoldStores(runtime, named, self._reads[runtime.key], self.group.stack)

    def prepare(self, events: Sequence[Event], runtime: Runtime | None = None) -> list[Any]:
        """Prepare through the stored form; ``EventError`` s stay in their places."""
        runtime = runtime or self.runtime
        if not runtime.prepares:
            return [None] * len(events)
        return prepare_inline(self.context, self.workspace, runtime, events)

    def fold(self, event: Event) -> EventError | None:
        """Fold one event in every member that handles it; returns the error by which the tested policy skipped it."""
        skipped = None
        for runtime in self.group.runtimes:
            if event.type not in runtime.handles:
                continue
            [value] = self.prepare([event], runtime)
            error = self.fold_prepared(runtime, event, value)
            if runtime is self.runtime:
                skipped = error
        return skipped

    def fold_prepared(self, runtime: Runtime, event: Event, value: Any) -> EventError | None:
        """Fold one event with its prepared value; a skip is undone and told to the policy."""
        return fold_one(runtime, event, value, self.stores(runtime))

    def once(self, runtimes: Sequence[Runtime], change: Callable[[], None]) -> None:
        """Run a change of the stores of some members as one event: kept, or undone when it raises."""
        live = [store for runtime in runtimes for store in self.live.by_runtime[runtime.key].values()]
        for store in live:
            store.begin()
        try:
            change()
        except BaseException:
            for store in live:
                store.undo()
            raise
        for store in live:
            store.keep()

    def commit(self) -> dict[str, bytes]:
        """Drain the changes into the view's side; returns them by the policy's own store names."""
        found = {}
        for key, store in self.live.stores.items():
            changes = store.drain()
            if changes is not None:
                found[key] = changes
                if self.view is not self.live:
                    self.view.stores[key].apply(changes)
        prefix = self.runtime.store_key("")
        return {key.removeprefix(prefix): changes for key, changes in found.items() if key.startswith(prefix)}

    def run(self, events: Iterable[Event]) -> Bench:
        """Fold and commit event by event."""
        for event in events:
            self.fold(event)
            self.commit()
        return self

    def forget(self, subject: Subject, events: Sequence[Event]) -> None:
        """Let the group forget a subject, as core does: each member in turn, in a commit, all of them or none.

        ``NeedsRebuild`` passes through, whichever member asks for it: the whole group is folded afresh then.
        """

        def change() -> None:
            for runtime in self.group.runtimes:
                mine = [event for event in events if event.type in runtime.handles]
                if mine:
                    pairs = zip(mine, self.prepare(mine, runtime), strict=True)
                    batch = [(event, None if isinstance(value, EventError) else value) for event, value in pairs]
                    stores = self.stores(runtime)
                    stores.seq, stores.now_us = events[-1].seq + 1, events[-1].recorded_us
                    runtime.policy.forget(subject, batch, stores)

        self.once(self.group.runtimes, change)
        self.commit()

    def contents(self) -> dict[str, dict[Any, Any]]:
        """What the tested policy's stores hold at the last commit."""
        return {name: rows(store) for name, store in self.view.by_runtime[self.runtime.key].items()}

    def server(self) -> Any:
        """What ``serve`` returns over the view's side."""
        return self.policy.serve(_BenchView(self))

    def close(self) -> None:
        self.live.close()
        if self.view is not self.live:
            self.view.close()


class _BenchView:
    """The read side for ``serve``."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.tools: Tools = InstanceTools(bench.context, bench.workspace, bench.runtime, keep=False)

    def __getitem__(self, name: str) -> Any:
        return self._bench.view.by_runtime[self._bench.runtime.key][name]

    def of(self, policy: str) -> Any:
        return readers(self._bench.group, self._bench.view)[self._bench.runtime.key][policy]


# -- contents ---------------------------------------------------------------------------------------------------------
def rows(store: Any) -> dict[Any, Any]:
    """Return a store's content as rows that can be compared and shown."""
    store.begin()
    if hasattr(store, "items"):
        return dict(store.items())
    if hasattr(store, "keys"):
        return {key: store.get(key) for key in store.keys()}  # noqa: SIM118  # Blobs is no mapping
    return {"content": store.fingerprint()}


def difference(one: Mapping[str, Mapping[Any, Any]], other: Mapping[str, Mapping[Any, Any]]) -> str:
    """Say the first difference of two contents, to the byte; empty when there is none."""
    for name, mine in one.items():
        theirs = other[name]
        for key in [*mine, *(key for key in theirs if key not in mine)]:
            if key not in mine or key not in theirs:
                has, lacks = ("the first", "the second") if key in mine else ("the second", "the first")
                return f"store {name!r}: {has} has a row {shown(key)}, {lacks} has none"
            if pack(mine[key]) != pack(theirs[key]):
                return f"store {name!r}, row {shown(key)}: {shown(mine[key])} against {shown(theirs[key])}"
    return ""


def shown(value: Any, width: int = 120) -> str:
    text = repr(value)
    return text if len(text) <= width else text[: width - 1] + "…"


def told(event: Event) -> str:
    """Say an event in a line: its type and its data as JSON, long texts cut."""
    data = msgspec.to_builtins(event.data)
    short = {k: v if not isinstance(v, str) or len(v) < 60 else f"{v[:40]}… ({len(v)})" for k, v in data.items()}
    text = msgspec.json.encode(short).decode()
    return f"{event.type} {text if len(text) <= 400 else text[:399] + '…'}"


# -- plugins ----------------------------------------------------------------------------------------------------------
def plugin_of(kind: type[Policy]) -> ModuleType | None:
    """Return the module that a policy is defined in if it is a plugin that registers it."""
    module = sys.modules.get(kind.__module__)
    register = getattr(module, "register_policies", None)
    if module is None or not hasattr(register, "streamfold_impl") or register is None:
        return None
    return module if kind in register() else None


def _plugins(case: Case, kind: type[Policy]) -> tuple[Any, ...]:
    own = plugin_of(kind)
    return case.plugins or ((own,) if own is not None else ())


def _offered(case: Case, kind: type[Policy]) -> list[type[Policy]]:
    return [p for one in _plugins(case, kind) if hasattr(one, "register_policies") for p in one.register_policies()]


class _Offer:
    """The case's plugins as one, with the policy's class replaced by a variant of it."""

    def __init__(self, case: Case, kind: type[Policy], variant: type[Policy]) -> None:
        plugins = _plugins(case, kind)
        self._policies = [variant, *(p for p in _offered(case, kind) if p.name != variant.name)]
        self._backends = [
            *BACKENDS,
            *(b for one in plugins if hasattr(one, "register_backends") for b in one.register_backends()),
        ]
        self._types = [t for one in plugins if hasattr(one, "register_event_types") for t in one.register_event_types()]

    @hookimpl
    def register_policies(self) -> list[type[Policy]]:
        return self._policies

    @hookimpl
    def register_backends(self) -> list[Backend]:
        return self._backends

    @hookimpl
    def register_event_types(self) -> list[EventType]:
        return self._types


def needs(condition: object, message: str) -> None:
    """Raise :class:`CheckFailed` unless the condition holds."""
    if not condition:
        raise CheckFailed(message)


def folding(events: Iterable[Event], bench: Bench) -> Iterator[tuple[Event, EventError | None]]:
    """Fold events and yield each with the error that skipped it; anything else than ``EventError`` fails the check."""
    for event in events:
        try:
            error = bench.fold(event)
        except Exception as problem:
            raise CheckFailed(_escaped(event, problem)) from problem
        bench.commit()
        yield event, error


def _escaped(event: Event, problem: BaseException) -> str:
    return (
        f"fold raised {type(problem).__name__}: {problem} at {told(event)}. Anything but EventError "
        "halts the policy: check the data, and raise EventError('what is wrong') for what cannot be folded"
    )
