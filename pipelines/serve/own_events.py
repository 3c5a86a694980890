"""The events that a serving process writes itself: exposures, alarms, merges of names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from streamfold.core.errors import InvalidEvent
from streamfold.core.events import CloudEvent, NewEvent
from streamfold.core.ledger.abc import Appended, IntakeMove, Outcome
from streamfold.core.views import WorkspaceView


class OwnEvents:
    """Validates and logs them as any other events.

    Parameters
    ----------
    accept : validates events of a workspace.
    append : logs them, together with moves of intakes (blocks).
    """

    def __init__(
        self,
        accept: Callable[[str, Sequence[CloudEvent | InvalidEvent]], list[NewEvent | InvalidEvent]],
        append: Callable[[WorkspaceView, Sequence[NewEvent], Sequence[IntakeMove]], Appended],
    ) -> None:
        self._accept, self._append = accept, append

    def log(
        self, view: WorkspaceView, raws: Sequence[CloudEvent], moves: Sequence[IntakeMove] = ()
    ) -> list[Outcome | None]:
        """Log events, and move intakes in the same transaction. Blocks.

        Returns
        -------
        What became of each; None: it was refused.

        Raises
        ------
        LedgerError : the ledger does not answer. IntakeConflict : another process moved an intake first.
        """
        found = self._accept(view.name, raws)
        events = [one for one in found if not isinstance(one, InvalidEvent)]
        logged = iter(self._append(view, events, moves).outcomes if events or moves else ())
        return [None if isinstance(one, InvalidEvent) else next(logged) for one in found]


def own_event(source: str, type_: str, id_: str, data: Any) -> CloudEvent:
    """Make an event of this service; logged twice under one id it counts once."""
    return CloudEvent(specversion="1.0", id=id_, source=source, type=type_, data=msgspec.Raw(msgspec.json.encode(data)))
