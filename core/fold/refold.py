"""Fold the log afresh into stores of one's own, beside the live fold: for ``verify``, and for a state to swap in."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from streamfold.core.archive.history import Lack
from streamfold.core.context import Context, Group, Runtime
from streamfold.core.errors import EventError
from streamfold.core.events.model import Event
from streamfold.core.fold.erasure import forget
from streamfold.core.fold.one import fold_one, refusal_letter
from streamfold.core.fold.order import FoldOrder, GatheredFailed
from streamfold.core.fold.prepare import prepare_inline
from streamfold.core.fold.stores import FoldStores, GroupStores, fold_stores
from streamfold.core.ledger.abc import NORMAL, DeadLetter, ErasedGroup, LogRow
from streamfold.core.policy import Policy, Refusal

log = logging.getLogger("streamfold.fold")
_PAGE = 2048
Progress = Callable[[int, int], None]


def refold(
    context: Context,
    workspace: str,
    group: Group,
    stores: GroupStores,
    *,
    upto: int,
    after: int | None = None,
    skipped: Mapping[str, Collection[int]] | None = None,
    progress: Progress = lambda done, total: None,
) -> int:
    """Fold the log up to a position into fresh stores, honouring recorded skips and retries.

    From the group's start, or from ``after``: then what was erased is not forgotten, since not all of it was folded.
    ``skipped``: the positions that each member skipped, by its key; those of now, where they are not given.
    """
    fold = Refold(context, workspace, group, stores, forgets=after is None, skipped=skipped)
    if after is not None:
        fold.after = after
    return fold.run(upto, progress)


@dataclass(slots=True)
class Refold:
    """A fold that stands at ``after`` and can go on.

    Parameters
    ----------
    without : positions that are passed over, as if they had never come.
    batched : use ``fold_batch`` and gather where the live fold would, for speed, beginning at the group's start;
        ``verify`` loops, as an independent check.
    forgets : forget at an erasure; otherwise its event is folded as it is.
    skipped : positions that each member skipped, by its key; default: those of now.
    partial : events that have left the log and the archive are passed over; otherwise ``ArchiveMissing`` is raised.
    keep_skips : an event that a policy refuses now is skipped and put into ``dead``; otherwise the error is raised.
    """

    context: Context
    workspace: str
    group: Group
    stores: GroupStores
    without: frozenset[int] = frozenset()
    batched: bool = False
    forgets: bool = True
    keep_skips: bool = False
    partial: bool = False
    skipped: Mapping[str, Collection[int]] | None = None
    after: int = 0
    count: int = 0
    dead: list[DeadLetter] = field(default_factory=list)
    unforgotten: list[ErasedGroup] = field(default_factory=list)
    """Erasures on the way, not in ``without``, that ask for another time."""
    _folds: dict[str, FoldStores] = field(default_factory=dict)
    _order: FoldOrder | None = None
    _skipped: Mapping[str, Collection[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ledger = self.context.ledger
        self._begin()
        self._skipped = self.skipped or {
            r.key: ledger.skipped_seqs(self.workspace, r.instance.lineage) for r in self.group.runtimes
        }

    def _begin(self) -> None:
        self.after, self.count = self.group.start_seq, 0
        self.dead.clear()
        self.unforgotten.clear()
        self._folds = fold_stores(self.group, self.stores)
        self._order = FoldOrder(self.group, self._folds) if self.batched else None

    @property
    def _may_lack(self) -> Lack:
        return "all" if self.partial else "compacted" if self.group.newest_suffices else "nothing"

    def run(self, upto: int, progress: Progress = lambda done, total: None) -> int:
        """Fold up to a position; returns how many events were folded since the start."""
        while True:
            try:
                return self._run(upto, progress)
            except GatheredFailed:
                log.exception("gathered_failed group=%s: beginning again, one by one", self.group.name)
                self.batched = False
                self.stores.empty()
                self._begin()

    def _run(self, upto: int, progress: Progress) -> int:
        erasing = self.context.registry.event_types.erasing()
        types = sorted(self.group.handles | erasing)
        while self.after < upto:
            page = self.context.history.read(
                self.workspace, self.after, _PAGE, upto=upto, types=types, may_lack=self._may_lack
            )
            rows = [r for r in page.rows if r.effect == NORMAL and r.seq not in self.without]
            start = 0
            for index, row in enumerate(rows):
                if row.type in erasing:
                    self._fold(rows[start:index])
                    start = index if self._keeps(row) else index + 1
            self._fold(rows[start:])
            self.stores.drain()
            self.after = page.rows[-1].seq if len(page.rows) == _PAGE else upto
            progress(self.after, upto)
        return self.count

    def _keeps(self, row: LogRow) -> bool:
        """Forget at an erasing event, as the live fold does; True when the event is to be folded as it is."""
        erasure = self.context.ledger.erasure(self.workspace, row.seq) if self.forgets else None
        if erasure is not None:
            done = forget(self.context, self.workspace, self.group, self.stores, self._folds, erasure, row)
            if done.method == "exact":
                return False
            self.unforgotten.append(done)
        return row.type in self.group.handles

    def _fold(self, rows: Sequence[LogRow]) -> None:
        if not rows:
            return
        events = [self.context.registry.event_types.decode(r) for r in rows]
        prepared = {r.key: self._prepared(r, events) for r in self.group.runtimes if r.prepares}
        self.count += len(events)
        if not (self.batched and self._fold_batch(events, prepared)):
            self._fold_each(events, prepared)
        for runtime in self.group.runtimes:
            for past in self._folds[runtime.key].refused():
                self._dead(runtime, past)

    def _fold_each(self, events: Sequence[Event], prepared: dict[str, dict[int, Any]]) -> None:
        skips_of = self.context.ledger.skips_of
        retries = {e.seq: set(skips_of(self.workspace, e.retry_of)) for e in events if e.retry_of is not None}

        def one(runtime: Runtime, event: Event) -> None:
            only = retries.get(event.seq)
            if only is None or runtime.instance.lineage in only:
                self._fold_one(runtime, event, prepared.get(runtime.key, {}).get(event.seq))

        if self._order is None:
            for event in events:
                for runtime in self.group.runtimes:
                    if event.type in runtime.handles:
                        one(runtime, event)
            return
        skipped = [seqs for seqs in self._skipped.values() if seqs]
        alone = {e.seq for e in events if any(e.seq in seqs for seqs in skipped)}
        self._order.fold(events, one, alone=alone | retries.keys())

    def _prepared(self, runtime: Runtime, events: Sequence[Event]) -> dict[int, Any]:
        skipped = self._skipped[runtime.key]
        mine = [e for e in events if e.type in runtime.handles and e.seq not in skipped]
        values = prepare_inline(self.context, self.workspace, runtime, mine)
        return {event.seq: value for event, value in zip(mine, values, strict=True)}

    def _fold_batch(self, events: Sequence[Event], prepared: dict[str, dict[int, Any]]) -> bool:
        """Fold in one call where that is allowed; False: nothing was folded."""
        runtime, *others = self.group.runtimes
        skipped = self._skipped[runtime.key]
        if others or skipped or type(runtime.policy).fold_batch is Policy.fold_batch:
            return False
        values = prepared.get(runtime.key, {})
        if any(e.retry_of is not None or isinstance(values.get(e.seq), EventError) for e in events):
            return False
        view = self._folds[runtime.key]
        view.seq, view.now_us = events[-1].seq, events[-1].recorded_us
        try:
            runtime.policy.fold_batch([(e, values.get(e.seq)) for e in events], view)
        except Exception:  # as the live fold: one by one, which says whose error it is
            view.undo()
            return False
        view.keep()
        return True

    def _fold_one(self, runtime: Runtime, event: Event, value: Any) -> None:
        skip = event.seq in self._skipped[runtime.key]
        error = fold_one(runtime, event, value, self._folds[runtime.key], skip=skip)
        if error is None:
            return
        if not self.keep_skips:
            raise error
        self._dead(runtime, Refusal(event.seq, event.source, event.id, error))

    def _dead(self, runtime: Runtime, past: Refusal) -> None:
        self.dead.append(refusal_letter(runtime, past, at_us=self.context.clock.now_us()))
