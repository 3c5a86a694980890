"""Declared policies folded in this process from empty stores, beside no service: what an evaluation scores.

The policies that were asked for and all that they read, as the settings declare them (a name that they do not declare
is a registered policy with its default configuration). One copy serves all: what reads a policy does not change it, so
each scores as it would alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from streamfold.core import Catalogue, Classifier, Ranker
from streamfold.core.context import Context, Group, Runtime
from streamfold.core.errors import ConfigError, StreamfoldError, nearest
from streamfold.core.events.model import Event
from streamfold.core.fold.one import fold_one
from streamfold.core.fold.prepare import prepare_inline
from streamfold.core.fold.stores import FoldStores, GroupStores, readers
from streamfold.core.fold.tools import InstanceTools
from streamfold.core.ledger import open_ledger
from streamfold.core.policy import Tools
from streamfold.core.registry import Registry
from streamfold.core.settings import Settings
from streamfold.plugins import builtin

_WORKSPACE = "default"
_DRAIN = 1024
"""Events after which the stores forget what a commit would have carried."""


class PolicyFailed(StreamfoldError):
    """A policy raised something else than ``EventError``."""


class Stack:
    """The fold of an evaluation; close it, or use it in a ``with``.

    Parameters
    ----------
    names : the policies to fold; what they read comes along.
    plugins : modules or objects with hooks, beside the built-in ones and those that the settings name.
    """

    def __init__(self, settings: Settings, names: Sequence[str], plugins: Iterable[Any] = ()) -> None:
        modules = [builtin, *plugins]
        self._open = ExitStack()
        folder = Path(self._open.enter_context(tempfile.TemporaryDirectory(prefix="streamfold-evaluate-")))
        try:
            tables = closure(settings, Registry(settings, modules), names)
            narrowed = settings.model_copy(update={"policies": tables, "data": folder, "checkpoints": ""})
            self.registry = Registry(narrowed, modules)
            self._open.callback(self.registry.close)
            ledger = open_ledger(f"sqlite:///{folder / 'ledger.db'}")
            self._open.callback(ledger.close)
            self._context = Context(
                settings=narrowed, registry=self.registry, ledger=ledger, scratch=folder / "scratch"
            )
            self._folded = [self._opened(group) for group in self._context.pin(_WORKSPACE)]
        except BaseException:
            self._open.close()
            raise
        self.skipped = 0
        self._count = 0
        self.handles = frozenset().union(*(folded.group.handles for folded in self._folded))
        self.servers: dict[str, Any] = {}
        for folded in self._folded:
            self.servers |= folded.servers

    def _opened(self, group: Group) -> _Folded:
        folded = _Folded(self._context, group)
        self._open.callback(folded.stores.close)
        return folded

    def __enter__(self) -> Stack:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._open.close()

    def prepare(self, events: Sequence[Event]) -> None:
        """Prepare events that are folded next, in batches."""
        for folded in self._folded:
            folded.prepare(events)

    def fold(self, event: Event) -> None:
        """Fold one event in every policy that handles it; an event that a policy refuses is skipped there."""
        for folded in self._folded:
            if event.type in folded.group.handles:
                self.skipped += folded.fold(event)
        self._count += 1
        if self._count % _DRAIN == 0:
            for folded in self._folded:
                folded.stores.drain()

    def ranker(self, name: str) -> Ranker:
        """What a policy scores with. Raises ``ConfigError`` where it scores nothing."""
        server = self.servers[name]
        if not isinstance(server, Ranker):
            rankers = [other for other, one in self.servers.items() if isinstance(one, Ranker)]
            raise ConfigError(f"policy {name!r} ranks no items{nearest(name, rankers)}")
        return server

    def classifier(self, name: str) -> Classifier:
        """What a policy classifies with. Raises ``ConfigError`` where it has no heads."""
        server = self.servers[name]
        if not isinstance(server, Classifier):
            raise ConfigError(f"policy {name!r} classifies nothing")
        return server

    def state_bytes(self) -> int:
        """What the stores of all policies hold."""
        return sum(folded.stores.state_bytes() for folded in self._folded)

    def catalogues(self) -> list[str]:
        """Policies that make examples."""
        return sorted(name for name, server in self.servers.items() if isinstance(server, Catalogue))


class _Folded:
    """One group: its stores, and what each member serves with, as of the events folded so far."""

    def __init__(self, context: Context, group: Group) -> None:
        self.group = group
        self._context = context
        self.stores = GroupStores(context, group, side="both")
        reads = readers(group, self.stores)
        self._values: dict[tuple[str, int], Any] = {}
        self._fold = {
            r.key: FoldStores(r, self.stores.by_runtime[r.key], reads[r.key], group.stack) for r in group.runtimes
        }
        read = {name: one for named in reads.values() for name, one in named.items()}
        self.servers = {
            r.instance.name: read[r.instance.name].server
            if r.instance.name in read  # its answers are kept for all who ask of the same event
            else r.policy.serve(_Live(context, r, self.stores.by_runtime[r.key], reads[r.key]))
            for r in group.runtimes
        }

    def fold(self, event: Event) -> int:
        """Fold an event, dependents first; returns how many members skipped it."""
        skipped = 0
        for runtime in self.group.runtimes:
            if event.type in runtime.handles:
                skipped += self._one(runtime, event) + len(self._fold[runtime.key].refused())
        return skipped

    def _one(self, runtime: Runtime, event: Event) -> bool:
        try:
            return fold_one(runtime, event, self._prepared(runtime, event), self._fold[runtime.key]) is not None
        except Exception as error:
            raise PolicyFailed(
                f"policy {runtime.instance.name!r} failed at event {event.id!r} ({event.type}, number {event.seq}): "
                f"{type(error).__name__}: {error}"
            ) from error

    def prepare(self, events: Sequence[Event]) -> None:
        for runtime in self.group.runtimes:
            wanted = [event for event in events if event.type in runtime.handles] if runtime.prepares else []
            if wanted:
                try:
                    values = prepare_inline(self._context, _WORKSPACE, runtime, wanted)
                except Exception:  # fold prepares one by one, and names the event
                    continue
                self._values |= {(runtime.key, e.seq): value for e, value in zip(wanted, values, strict=True)}

    def _prepared(self, runtime: Runtime, event: Event) -> Any:
        if not runtime.prepares:
            return None
        if (runtime.key, event.seq) in self._values:
            return self._values.pop((runtime.key, event.seq))
        [value] = prepare_inline(self._context, _WORKSPACE, runtime, [event])
        return value


class _Live:
    """A member's view: its stores as they are now."""

    def __init__(self, context: Context, runtime: Runtime, named: Mapping[str, Any], reads: Mapping[str, Any]) -> None:
        self.tools: Tools = InstanceTools(context, _WORKSPACE, runtime, keep=True)  # what fold embedded, too
        self._named, self._reads = named, reads

    def __getitem__(self, name: str) -> Any:
        return self._named[name]

    def of(self, policy: str) -> Any:
        return self._reads[policy]


def closure(settings: Settings, registry: Registry, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The settings' tables of some policies and of all that they read. Raises ``ConfigError`` for an unknown name."""
    wanted, found = list(names), dict[str, dict[str, Any]]()
    while wanted:
        name = wanted.pop()
        if name in found:
            continue
        if name not in settings.policies and name not in registry.policies:
            known = sorted({*settings.policies, *registry.policies})
            raise ConfigError(f"no policy named {name!r} is declared or registered{nearest(name, known)}")
        found[name] = dict(settings.policies.get(name, {}))
        values = dict(found[name])
        use = values.pop("use", name)
        kind = registry.policy_class(use)
        wanted += kind(registry.make_config(name, kind, values)).reads
    return found
