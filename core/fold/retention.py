"""Let events leave the log: compacted, or older than the retention; into the archive first, then out of the log.

An event may leave once every group has folded it, in whatever slot, and has a checkpoint past it, and no erasure is
under way. A file of the archive is written whole, then recorded in the ledger, then its rows are deleted in batches:
whoever dies between, the next run first deletes unrecorded files and then goes on deleting rows. Events without an
archive are recorded and deleted in one transaction each batch.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from streamfold.core import crash
from streamfold.core.archive.files import Reader, Writer, require
from streamfold.core.archive.history import file_name
from streamfold.core.clock import US
from streamfold.core.context import Context
from streamfold.core.errors import Fenced
from streamfold.core.fold.archiving import archive_lease, departure_of, ttl_us
from streamfold.core.fold.lanes import in_lane
from streamfold.core.ledger.abc import NORMAL, Departure, Floor, LogKey, LogRow, Reason, Retention
from streamfold.core.settings import RetentionSettings

if TYPE_CHECKING:
    from streamfold.core.fold.runner import FoldRunner

log = logging.getLogger("streamfold.retention")

_PAGE = 2000
_BATCH = 1000
"""Rows deleted in one transaction: no lock is held for longer than that takes."""
_READ = 250
"""Events held at a time, each of up to a mebibyte."""
_FILE_EVENTS, _FILE_BYTES = 200_000, 128 << 20
_SUBJECTS = 500_000
"""Subjects whose newest event is remembered at a time; more are gone through in several passes."""
_AGAIN = 0.1
"""Compaction reads the keys of the whole log: it waits until this share of it is new."""
_WAIT_S = 30.0
"""How long a run waits for other processes' checkpoints."""
_IDS = 5000


@dataclass(slots=True)
class Report:
    """What has left, or would leave."""

    position: int = 0
    expired_upto: int = 0
    expired: int = 0
    compacted: int = 0
    files: list[str] = field(default_factory=list)
    ids: int = 0
    held_by: list[dict[str, Any]] = field(default_factory=list)
    """Groups that need events which are old enough to leave."""
    waits_for: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Cuts:
    """Up to which position events are old enough, and needed by no group: to leave, and to be compacted."""

    old: int
    compactable: int
    floors: list[Floor]


class _Interrupted(Exception):
    """An erasure came, or a group needs what was to leave: the rest leaves another time."""


class Keeper:
    """Keeps the log as the settings say; used by one thread.

    Parameters
    ----------
    runners : this process's, of all lanes: they write the checkpoints that a run needs.
    """

    def __init__(self, context: Context, runners: Sequence[FoldRunner] = ()) -> None:
        self.context = context
        self._runners = runners
        self._settings: RetentionSettings = context.settings.retention
        self._waiting: dict[str, int] = {}

    def due(self) -> list[str]:
        """The workspaces in which it is time to look what may leave."""
        return self.context.ledger.retention_due(self.context.clock.now_us(), int(self._settings.every_s * US))

    # -- a run ----------------------------------------------------------------------------------------------------
    def plan(self, workspace: str) -> Report:
        """Say what a run asked for now would do; nothing is changed."""
        cuts = self._cuts(workspace, written=True)
        report = self._report(workspace, cuts)
        if self._settings.compact:
            report.compacted = sum(1 for _ in self._compacted(workspace, cuts))
        report.expired = sum(1 for _ in self._expired(workspace, cuts))
        if before_us := self._forgets_before_us():
            report.ids = self.context.ledger.old_dedup(workspace, before_us)
        return report

    def run(self, workspace: str) -> Report | None:
        """Do what is due in a workspace; None: not now, or another process does."""
        context, ledger = self.context, self.context.ledger
        if self._settings.archive and (self._settings.keep_s or self._settings.compact):
            require()
        state = ledger.retention(workspace)
        if not self._has_checkpoints(workspace, state):
            return None
        erasures = ledger.erasures_seen(workspace)
        if erasures is None:
            return None  # an erasure is under way
        with archive_lease(context, workspace) as epoch:
            if epoch is None:
                return None
            try:
                return _Run(self, workspace, epoch, erasures, state).all()
            except (_Interrupted, Fenced) as error:
                log.info("retention_interrupted workspace=%s: %s", workspace, error)
                return None

    def _has_checkpoints(self, workspace: str, state: Retention) -> bool:
        """Write the checkpoints without which events that are old enough could not leave; wait for others' a while."""
        cuts = self._cuts(workspace)
        wanted = max(self._old_upto(workspace, self._settings.keep_s), self._compactable_upto(workspace))
        lacking = {f.group for f in cuts.floors if f.position < min(wanted, f.watermark)}
        for group in self.context.groups(workspace, fresh=True):
            for runner in self._runners:
                if group.name in lacking and in_lane([group], runner.lane) and runner.compact(workspace, group):
                    lacking.discard(group.name)
        now_us = self.context.clock.now_us()
        since_us = self._waiting.setdefault(workspace, now_us)
        if lacking and now_us < since_us + _WAIT_S * US:
            return False
        self._waiting.pop(workspace, None)
        return True

    # -- what may leave -------------------------------------------------------------------------------------------
    def _old_upto(self, workspace: str, age_s: float) -> int:
        if not age_s:
            return 0
        return self.context.ledger.seq_before(workspace, self.context.clock.now_us() - int(age_s * US))

    def _compactable_upto(self, workspace: str) -> int:
        if not self._settings.compact:
            return 0
        before_us = self.context.clock.now_us() - int(self._settings.compact_after_s * US)
        return self.context.ledger.seq_before(workspace, before_us)

    def _cuts(self, workspace: str, *, written: bool = False) -> _Cuts:
        """``written``: as if every group had just written a checkpoint, which a run has them do."""
        floors = self.context.ledger.floors(workspace)
        if written:
            floors = [replace(floor, position=floor.watermark) for floor in floors]
        needed = min((floor.position for floor in floors), default=self.context.ledger.head(workspace))
        old = min(needed, self._old_upto(workspace, self._settings.keep_s))
        return _Cuts(old, min(needed, self._compactable_upto(workspace)), floors)

    def _report(self, workspace: str, cuts: _Cuts) -> Report:
        wanted = max(self._old_upto(workspace, self._settings.keep_s), self._compactable_upto(workspace))
        held = [
            {"group": f.group, "position": f.position, "watermark": f.watermark}
            for f in cuts.floors
            if f.position < wanted
        ]
        waits = "" if self.context.ledger.erasures_seen(workspace) else "an erasure is under way"
        head = self.context.ledger.head(workspace)
        return Report(position=head, expired_upto=cuts.old, held_by=held, waits_for=waits)

    def _forgets_before_us(self) -> int:
        window_s = self._settings.dedup_window_s
        return self.context.clock.now_us() - int(window_s * US) if window_s else 0

    def _expired(self, workspace: str, cuts: _Cuts) -> Iterator[LogKey]:
        """The keys of what is too old; with compaction, what states a subject leaves by it alone."""
        stating = frozenset().union(*self._states()) if self._settings.compact else frozenset()
        for key in self._keys(workspace, cuts.old):
            if key.type not in stating or key.effect != NORMAL:
                yield key

    def _compacted(self, workspace: str, cuts: _Cuts) -> Iterator[LogKey]:
        """The keys of upserts, patches and deletions that a later upsert or deletion of their subject replaces, and
        of deletions that are too old: what they delete is gone before them.

        A retried event counts neither way: only some instances fold it.
        """
        whole, part, deleting = self._states()
        replacing = whole | deleting
        stating = replacing | part

        def mine(key: LogKey) -> bool:
            return key.type in stating and key.effect == NORMAL and key.retry_of is None

        counts = self.context.ledger.count_types(workspace, 0, cuts.compactable)
        passes = 1 + sum(count for type_, count in counts.items() if type_ in replacing) // _SUBJECTS
        for number in range(passes):
            newest: dict[bytes, int] = {}
            for key in self._keys(workspace, cuts.compactable):
                if mine(key) and key.type in replacing and (name := _name(key))[0] % passes == number:
                    newest[name] = key.seq
            for key in self._keys(workspace, cuts.compactable):
                if mine(key) and (name := _name(key))[0] % passes == number:
                    too_old = key.type in deleting and key.seq <= cuts.old
                    if too_old or newest.get(name, 0) > key.seq:
                        yield key

    def _keys(self, workspace: str, upto: int) -> Iterator[LogKey]:
        after = 0
        while after < upto:
            keys = self.context.ledger.keys(workspace, after, upto, _PAGE)
            yield from keys
            if len(keys) < _PAGE:
                return
            after = keys[-1].seq

    def _states(self) -> tuple[frozenset[str], frozenset[str], frozenset[str]]:
        """The types that say all about their subject, those that change some of it, and those that delete it."""
        types = self.context.registry.event_types
        return types.stating("whole"), types.stating("part"), frozenset(types.deleting())


def _name(key: LogKey) -> bytes:
    return blake2b(f"{key.subject.kind}\0{key.subject.id}".encode(), digest_size=16).digest()


class _Run:
    """One run under one lease."""

    def __init__(self, keeper: Keeper, workspace: str, epoch: int, erasures: tuple[int, int], state: Retention) -> None:
        self._keeper = keeper
        self._context = keeper.context
        self._ledger = keeper.context.ledger
        self._workspace = workspace
        self._epoch = epoch
        self._erasures = erasures
        self._state = state
        self._settings = keeper._settings

    def all(self) -> Report:
        """Finish what a run before has begun, then go through everything once."""
        keeper, ledger, workspace = self._keeper, self._ledger, self._workspace
        self._context.history.sweep(workspace, self._epoch)
        for departure in ledger.departures(workspace):
            if not departure.cleared:
                self._clear(departure, Reader(self._context.history.path(workspace, departure)).seqs())
        cuts = keeper._cuts(workspace)
        report = keeper._report(workspace, cuts)
        compacted_upto = self._state.compacted_upto
        if self._settings.compact and self._is_worth_it(cuts):
            report.compacted = self._leave("compacted", keeper._compacted(workspace, cuts), report)
            compacted_upto = max(compacted_upto, cuts.compactable)
        report.expired = self._leave("expired", keeper._expired(workspace, cuts), report)
        report.ids = self._forget_ids()
        at_us = max(self._context.clock.now_us(), self._state.asked_us)  # another host's clock may be ahead
        text = json.dumps(report.as_json(), sort_keys=True)
        ledger.end_retention(workspace, self._epoch, at_us=at_us, compacted_upto=compacted_upto, report=text)
        log.info("retention workspace=%s %s", workspace, text)
        return report

    def _is_worth_it(self, cuts: _Cuts) -> bool:
        """When it was asked for, always; by itself when enough has come since, so that an event's share is flat."""
        asked = self._state.asked_us > self._state.ran_us
        return asked or cuts.compactable - self._state.compacted_upto > _AGAIN * cuts.compactable

    # -- leaving --------------------------------------------------------------------------------------------------
    def _leave(self, reason: Reason, keys: Iterator[LogKey], report: Report) -> int:
        take = self._into_files if self._settings.archive else self._away
        return take(reason, keys, report)

    def _into_files(self, reason: Reason, keys: Iterator[LogKey], report: Report) -> int:
        count = 0
        for batch in _batches(keys, _FILE_EVENTS):
            start = 0
            while start < len(batch):
                start += self._into_file(reason, batch[start:], report)
            count += len(batch)
        return count

    def _into_file(self, reason: Reason, seqs: Sequence[int], report: Report) -> int:
        """Write the first of these events to one file, and delete them; returns how many."""
        path = self._context.history.folder(self._workspace) / file_name(seqs[0], self._epoch)
        writer = Writer(path)
        try:
            for rows in self._rows(seqs):
                for row in rows:
                    writer.add(row)
                if writer.size >= _FILE_BYTES:
                    break
            crash.point("retention.writing")
            writer.close()
        except BaseException:
            writer.drop()
            raise
        crash.point("retention.written")
        departure = departure_of(writer, reason, self._context.clock.now_us())
        self._depart(departure)
        crash.point("retention.departed")
        report.files.append(departure.name)
        number = next(d.number for d in self._ledger.departures(self._workspace) if d.name == departure.name)
        gone = [seq for seq in seqs if seq <= departure.last]
        self._clear(replace(departure, number=number), gone)
        return len(gone)

    def _rows(self, seqs: Sequence[int]) -> Iterator[list[LogRow]]:
        for start in range(0, len(seqs), _READ):
            self._ledger.archive_renew(
                self._workspace, self._epoch, now_us=self._context.clock.now_us(), ttl_us=ttl_us(self._context)
            )
            yield self._ledger.rows(self._workspace, seqs[start : start + _READ])

    def _away(self, reason: Reason, keys: Iterator[LogKey], report: Report) -> int:
        """Delete without an archive: what is gone is recorded in the transaction that deletes it."""
        count = 0
        for batch in _batched_keys(keys, _BATCH):
            types: dict[str, tuple[int, int]] = {}
            for key in batch:
                if key.effect != NORMAL:
                    continue  # nobody folds it
                types[key.type] = (types.get(key.type, (0, 0))[0] + 1, key.seq)
            seqs = [key.seq for key in batch]
            now_us = self._context.clock.now_us()
            self._depart(
                Departure(
                    name="", reason=reason, first=seqs[0], last=seqs[-1], events=len(seqs), types=types, made_us=now_us
                ),
                seqs,
            )
            crash.point("retention.away")
            count += len(seqs)
        return count

    def _depart(self, departure: Departure, seqs: Sequence[int] = ()) -> None:
        done = self._ledger.depart(
            self._workspace, self._epoch, departure, erasures=self._erasures, seqs=seqs,
            now_us=self._context.clock.now_us(), ttl_us=ttl_us(self._context),
        )  # fmt: skip
        if not done:
            self._context.history.sweep(self._workspace, self._epoch)
            raise _Interrupted("an erasure came, or a group is to be folded afresh")

    def _clear(self, departure: Departure, seqs: Sequence[int]) -> None:
        """Delete the rows of a file, some at a time: no appending waits for more than one batch."""
        for start in range(0, len(seqs), _BATCH):
            self._ledger.clear(
                self._workspace, self._epoch, departure.number, seqs[start : start + _BATCH],
                last=start + _BATCH >= len(seqs), now_us=self._context.clock.now_us(), ttl_us=ttl_us(self._context),
            )  # fmt: skip
            crash.point("retention.cleared")

    def _forget_ids(self) -> int:
        before_us = self._keeper._forgets_before_us()
        count, after = 0, b""
        while before_us:
            after, forgotten = self._ledger.prune_dedup(self._workspace, before_us, after, _IDS)
            count += forgotten
            if forgotten:
                crash.point("retention.pruned")
            self._ledger.archive_renew(
                self._workspace, self._epoch, now_us=self._context.clock.now_us(), ttl_us=ttl_us(self._context)
            )
            if not after:
                break
        return count


def _batches(keys: Iterator[LogKey], size: int) -> Iterator[list[int]]:
    for batch in _batched_keys(keys, size):
        yield [key.seq for key in batch]


def _batched_keys(keys: Iterator[LogKey], size: int) -> Iterator[list[LogKey]]:
    batch: list[LogKey] = []
    for key in keys:
        batch.append(key)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
