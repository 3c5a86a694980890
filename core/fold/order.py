"""In which order the members of a group fold events: each sees the others as they were before the event.

One after the other, dependents first, does that by itself. Members that *gather* (:meth:`Policy.gather`) take many
events in one call instead: at each event they read what it tells them, before anybody folds it; the members that do not
gather fold it at once. Before an event that somebody wants to fold by itself, and at the end, those that gather fold
what they have, who is heard first. They only read each other by what they returned for the very events, so what comes
of it is that of the loop.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

from streamfold.core.context import Group, Runtime
from streamfold.core.events.model import Event
from streamfold.core.fold.stores import FoldStores
from streamfold.core.policy import Policy

log = logging.getLogger("streamfold.fold")

One = Callable[[Runtime, Event], None]


class GatheredFailed(Exception):
    """What was gathered could not be folded: fold the same events one by one from before them, to see which and why."""

    def __init__(self, policy: str, last: Event) -> None:
        super().__init__(f"{policy} failed to fold what it gathered up to position {last.seq}")
        self.policy = policy
        self.seq = last.seq


def gathering(group: Group) -> list[Runtime]:
    """The members that gather, who is heard first; none where one that does is read otherwise than by being heard."""
    found = {
        r.instance.name: r for r in group.runtimes if type(r.policy).gather is not Policy.gather and not r.prepares
    }
    for runtime in group.runtimes:
        heard = set(runtime.policy.hears) if runtime.instance.name in found else set()
        if not heard <= found.keys() or (found.keys() & runtime.policy.reads) - heard:
            return []
    return [r for r in reversed(group.runtimes) if r.instance.name in found]


class FoldOrder:
    """Folds events in the live stores of a group's members."""

    def __init__(self, group: Group, stores: Mapping[str, FoldStores]) -> None:
        self._all = group.runtimes
        members = gathering(group)
        self._gathering = [(r, stores[r.key], list[Any]()) for r in members]
        self._others = tuple(r for r in group.runtimes if r not in members)

    def fold(
        self,
        events: Iterable[Event],
        one: One,
        *,
        alone: Container[int] = (),
        folded: Callable[[Runtime], None] = lambda runtime: None,
    ) -> None:
        """Fold events in order.

        Parameters
        ----------
        one : folds an event in a member that handles it.
        alone : positions of events that everybody folds one by one.
        folded : told of each member that folded what it had gathered.
        """
        last = None
        for event in events:
            gathers = bool(self._gathering) and event.seq not in alone and self._gather(event)
            if gathers:
                last = event
            elif last is not None:
                self._fold_gathered(last, folded)
                last = None
            for runtime in self._others if gathers else self._all:
                if event.type in runtime.handles:
                    one(runtime, event)
        if last is not None:
            self._fold_gathered(last, folded)

    def _gather(self, event: Event) -> bool:
        """Gather an event in all who handle it, or in nobody."""
        found = []
        for runtime, stores, gathered in self._gathering:
            if event.type in runtime.handles:
                stores.seq, stores.now_us = event.seq, event.recorded_us
                try:
                    told = runtime.policy.gather(event, stores)
                except Exception as error:  # a pure read: when it is folded by itself, that says whose error it is
                    log.debug("gather of %s raised %r at %d; folding it alone", runtime.key, error, event.seq)
                    return False
                if told is None:
                    return False
                found.append((gathered, told))
        for gathered, told in found:
            gathered.append(told)
        return True

    def _fold_gathered(self, last: Event, folded: Callable[[Runtime], None]) -> None:
        told: dict[str, Any] = {}
        for runtime, stores, gathered in self._gathering:
            stores.seq, stores.now_us = last.seq, last.recorded_us
            try:
                told[runtime.instance.name] = runtime.policy.fold_gathered(gathered, told, stores)
            except Exception as error:
                raise GatheredFailed(runtime.key, last) from error
            stores.keep()
            gathered.clear()
            folded(runtime)
