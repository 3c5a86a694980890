"""Forgetting a subject: which logged events are about it, and how a group's stores forget them.

A group forgets at the erasing event's own position, in order, in a commit: what came after is folded onto stores that
never knew the subject, so a subject that comes back is simply new. The subject's events are found by one scan of the
log for its id, whose result the ledger keeps until the erasure is complete; an index of all subjects would cost every
append.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from streamfold.core.context import Context, Group, Runtime
from streamfold.core.errors import EventError, InvalidEvent, NeedsRebuild
from streamfold.core.events.model import Envelope, Event, Subject
from streamfold.core.events.registry import EventTypes
from streamfold.core.fold.prepare import prepare_inline
from streamfold.core.fold.stores import FoldStores, GroupStores
from streamfold.core.ledger.abc import NORMAL, ErasedGroup, Erasure, Ledger, LogRow

_MOST_AT_ONCE = 16
"""Subjects in one scan: each costs a search of every row, reading the rows costs more."""
_envelope = msgspec.msgpack.Decoder(Envelope).decode


class ForgetFailed(Exception):
    """A policy's ``forget`` raised something else than ``NeedsRebuild``."""

    def __init__(self, policy: str, error: BaseException) -> None:
        super().__init__(f"{policy} failed to forget: {error!r}")
        self.policy = policy
        self.error = error


# -- the subject's events ---------------------------------------------------------------------------------------------
def patterns(subject: Subject) -> list[bytes]:
    """Return the bytes one of which is in the canonical data of every event that names the subject."""
    whole = msgspec.json.encode(subject.id)
    return [whole, whole[:-1] + b"#"] if subject.kind == "document" else [whole]  # a chunk's id starts so


def is_about(types: EventTypes, row: LogRow, subject: Subject) -> bool:
    """Whether a logged event is about a subject, be it by a chunk of a document."""
    try:
        found: Sequence[Subject] = types.subjects(types.decode(row))
    except InvalidEvent:  # its plugin is gone: the main subject is known without it
        envelope = _envelope(row.body)
        found = [Subject(envelope.subject_kind, envelope.subject_id)]
    chunk = f"{subject.id}#" if subject.kind == "document" else None
    return any(s == subject or (chunk and s.kind == "chunk" and s.id.startswith(chunk)) for s in found)


def positions(context: Context, workspace: str, erasure: Erasure) -> list[int]:
    """Return the positions of the subject's events before the erasure; found once, with what other erasures need."""
    if erasure.found is not None:
        return erasure.found
    ledger, types = context.ledger, context.registry.event_types
    others = [e for e in ledger.erasures(workspace) if e.found is None and e.position != erasure.position]
    asked = [erasure, *others[: _MOST_AT_ONCE - 1]]
    found: dict[int, list[int]] = {e.position: [] for e in asked}
    needles = [pattern for e in asked for pattern in patterns(e.subject)]
    for row in context.history.scan(workspace, max(e.position for e in asked), [e.subject for e in asked], needles):
        for e in asked:
            if row.seq < e.position and is_about(types, row, e.subject):
                found[e.position].append(row.seq)
    ledger.set_found(workspace, found)
    return found[erasure.position]


def events_of(context: Context, workspace: str, erasure: Erasure) -> tuple[list[LogRow], list[Erasure]]:
    """Return the rows of the subject's events that a fold has seen and not forgotten, and what was to forget others.

    An event of two erased subjects goes with the first erasure; the second is to leave it alone.
    """
    own = set(positions(context, workspace, erasure))
    earlier = [e for e in context.ledger.erasures(workspace) if e.position < erasure.position]
    shared = {e.position: own.intersection(positions(context, workspace, e)) for e in earlier}
    rows = context.history.rows(workspace, sorted(own.difference(*shared.values())))
    return [row for row in rows if row.effect == NORMAL], [e for e in earlier if shared[e.position]]


# -- forgetting -------------------------------------------------------------------------------------------------------
def forget(
    context: Context,
    workspace: str,
    group: Group,
    stores: GroupStores,
    folds: Mapping[str, FoldStores],
    erasure: Erasure,
    at: LogRow,
) -> ErasedGroup:
    """Let each member of a group forget a subject's events; all of them or, when one cannot, none.

    Raises ``ForgetFailed``. ``at`` is the erasing event's row.
    """
    rows, earlier = events_of(context, workspace, erasure)
    if any(stage_of(context.ledger, workspace, group.name, e) == "rebuild" for e in earlier):
        return ErasedGroup(erasure.position, group.name, "rebuild", "rebuild", len(rows))
    mine = {r.key: _handled(context, workspace, r, rows) for r in group.runtimes}
    removed = len({row.seq for part in mine.values() for row in part})
    if context.reach(workspace, group).rebuild == "impossible":
        # Events that are gone may have been the subject's: what they left in the stores is known to nobody.
        return ErasedGroup(erasure.position, group.name, "rebuild", "rebuild", removed)
    if not removed:
        return ErasedGroup(erasure.position, group.name, "exact", "done", 0)
    if any(at.seq in context.ledger.skipped_seqs(workspace, r.instance.lineage) for r in group.runtimes):
        return ErasedGroup(erasure.position, group.name, "rebuild", "rebuild", removed)  # skipped by hand: it failed
    live = [store for r in group.runtimes for store in stores.by_runtime[r.key].values()]
    for store in live:
        store.begin()
    try:
        for runtime in group.runtimes:
            if mine[runtime.key]:
                view = folds[runtime.key]
                view.seq, view.now_us = at.seq, at.recorded_us
                batch = _prepared(context, workspace, runtime, mine[runtime.key])
                _forget_one(runtime, erasure.subject, batch, view)
    except NeedsRebuild:
        for store in live:
            store.undo()
        return ErasedGroup(erasure.position, group.name, "rebuild", "rebuild", removed)
    for store in live:
        store.keep()
    return ErasedGroup(erasure.position, group.name, "exact", "checkpoint", removed)


def _forget_one(runtime: Runtime, subject: Subject, batch: list[tuple[Event, Any]], view: FoldStores) -> None:
    try:
        runtime.policy.forget(subject, batch, view)
    except NeedsRebuild:
        raise
    except Exception as error:
        raise ForgetFailed(runtime.key, error) from error


def _handled(context: Context, workspace: str, runtime: Runtime, rows: Sequence[LogRow]) -> list[LogRow]:
    """Return the rows that an instance has folded: of its types, not skipped, a retry only where it was for it."""
    ledger = context.ledger
    rows = [r for r in rows if r.type in runtime.handles and r.seq > runtime.instance.start_seq]
    if not rows:
        return []
    skipped = ledger.skipped_seqs(workspace, runtime.instance.lineage)
    return [
        r
        for r in rows
        if r.seq not in skipped
        and (r.retry_of is None or runtime.instance.lineage in ledger.skips_of(workspace, r.retry_of))
    ]


def _prepared(context: Context, workspace: str, runtime: Runtime, rows: Sequence[LogRow]) -> list[tuple[Event, Any]]:
    events = [context.registry.event_types.decode(row) for row in rows]
    if not runtime.prepares:
        return [(event, None) for event in events]
    values = prepare_inline(context, workspace, runtime, events)
    return [(event, v) for event, v in zip(events, values, strict=True) if not isinstance(v, EventError)]


# -- for those who change roles ---------------------------------------------------------------------------------------
def stage_of(ledger: Ledger, workspace: str, group: str, erasure: Erasure) -> str | None:
    """How far a group is with an erasure: ``rebuild``, ``checkpoint`` or ``done``; None before it came to it."""
    notes = ledger.erased_groups(workspace, erasure.position)
    return next((note.state for note in notes if note.group == group), None)


def holds_erased(ledger: Ledger, workspace: str, group: str) -> list[int]:
    """Return the erasures whose subject a group's state may hold: it must not be promoted or rolled back to."""
    return [e.position for e in ledger.erasures(workspace) if stage_of(ledger, workspace, group, e) != "done"]
