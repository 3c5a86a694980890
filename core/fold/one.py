"""Fold one event in one member's stores: the step that every fold is made of, with what a skip leaves behind."""

from __future__ import annotations

from typing import Any

from streamfold.core.context import Runtime
from streamfold.core.errors import EventError
from streamfold.core.events.model import Event
from streamfold.core.fold.stores import FoldStores
from streamfold.core.ledger.abc import DeadLetter
from streamfold.core.policy import Refusal


def fold_one(
    runtime: Runtime, event: Event, value: Any, stores: FoldStores, *, skip: bool = False
) -> EventError | None:
    """Fold an event with its prepared value; returns the error by which the policy skipped it.

    A skipped event leaves nothing but what the policy's ``skipped`` withdraws. Any other exception passes through, with
    the stores as they were. Between events nothing is pending, so none has to begin: each was kept or undone.

    Parameters
    ----------
    value : prepared value, or the ``EventError`` that prepare came to, which skips the event.
    skip : the event was skipped before (a recorded skip): it is only withdrawn.
    """
    stores.seq, stores.now_us = event.seq, event.recorded_us
    error: EventError | None = None
    try:
        if not skip:
            try:
                if isinstance(value, EventError):
                    raise value
                runtime.policy.fold(event, value, stores)
            except EventError as raised:
                error = raised
                stores.undo()
        if skip or error is not None:
            runtime.policy.skipped(event, stores)
    except BaseException:
        stores.undo()
        raise
    stores.keep()
    return error


def refusal_letter(runtime: Runtime, past: Refusal, *, at_us: int, stage: str = "fold") -> DeadLetter:
    """Make the dead letter of an event that a policy does not take; it counts as skipped."""
    return DeadLetter(
        stage=stage,  # type: ignore[arg-type]  # "prepare" or "fold"
        code=past.error.code,
        detail=str(past.error),
        policy=runtime.key,
        skipped_by=runtime.instance.lineage,
        position=past.position,
        event_id=past.event_id,
        source=past.source,
        at_us=at_us,
    )
