"""A policy with events folded, to look at: what it serves, what its stores hold, what it skipped."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from streamfold.core.testing.conformance import case_of
from streamfold.core.testing.lab import Case, Lab, Make
from streamfold.core.testing.streams import Given


class Folded:
    """One policy in a :class:`World`; ``send`` folds at once. Options are those of :class:`Case`."""

    def __init__(self, make: Make | Case, **options: Any) -> None:
        self._lab = Lab(case_of(make, **options))
        self._name = self._lab.kind.name
        self.world = self._lab.world()

    def send(self, events: Iterable[Given]) -> Folded:
        """Log and fold events; raises ``AssertionError`` when the policy was halted."""
        self.world.send_many(events)
        self.world.fold()
        group = self.world.group(self._name)
        halted = self.world.ledger.group(self.world.workspace, group.name).halted
        if halted is not None:
            raise AssertionError(f"the policy was halted: {halted}")
        return self

    @property
    def server(self) -> Any:
        """What the policy's ``serve`` returned."""
        return self.world.view.member(self._name).server

    def __getitem__(self, store: str) -> Any:
        """A store of the view."""
        return self.world.view.member(self._name)[store]

    @property
    def skipped(self) -> list[str]:
        """Why events were skipped (the details of the dead letters), in order."""
        return [letter.detail for letter in self.world.ledger.dead_letters(self.world.workspace)]

    def close(self) -> None:
        self._lab.close()
