"""Complete erasures: every group without the subject, its state written afresh, then the ledger's traces emptied.

An erasure goes from *accepted* (logged; hidden from every answer by the views' next look) to *hidden*, and once every
group has forgotten and nothing of it is left in checkpoints and feed, to *scrubbed* (log, digests, results, letters
emptied in one transaction), *settling* (looked through, the erasing event itself emptied) and *complete* (old versions
of the rows given up). Each step is found from the ledger and may be repeated, so a killed process's successor goes on
wherever it died.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import msgspec

from streamfold.core import crash
from streamfold.core.caches import empty_caches
from streamfold.core.clock import US
from streamfold.core.context import Context, Group, Runtime
from streamfold.core.errors import EventError, Fenced, VersionConflict
from streamfold.core.events.accept import dedup_key
from streamfold.core.events.model import Envelope
from streamfold.core.fold.archiving import archive_lease, leave_out
from streamfold.core.fold.checkpoint import checkpoint_meta
from streamfold.core.fold.erasure import positions, stage_of
from streamfold.core.fold.extract import used_extractions
from streamfold.core.fold.lanes import in_lane
from streamfold.core.fold.refold import Refold
from streamfold.core.fold.residue import (
    Looked,
    Needles,
    choose_needles,
    letters_about,
    look_through_ledger,
    look_through_stores,
)
from streamfold.core.fold.stores import GroupStores, checkpoint_root
from streamfold.core.fold.tools import RecordingTools
from streamfold.core.ledger.abc import (
    ERASED,
    NORMAL,
    AuditEntry,
    ErasedGroup,
    Erasure,
    LogRow,
    Traces,
)
from streamfold.core.policy import prepares
from streamfold.core.stores.checkpoint import drop_old_checkpoints, write_checkpoint

if TYPE_CHECKING:
    from streamfold.core.fold.runner import FoldRunner

log = logging.getLogger("streamfold.erase")
_CLOSE = 4096
"""Events behind the live fold at which a rebuild stops it to catch up."""
_envelope = msgspec.msgpack.Decoder(Envelope).decode


class _Stopping(Exception):
    """The process is to end: what was begun is begun again by its successor."""


class Eraser:
    """Does what there is to do for erasures in the groups whose leases this process has; used by one thread.

    Parameters
    ----------
    runners : this process's, of all lanes.
    """

    def __init__(self, context: Context, runners: Sequence[FoldRunner]) -> None:
        self.context = context
        self._runners = runners

    def _runner(self, group: Group) -> FoldRunner:
        """The runner of the lane that a group is in; if it changes lanes meanwhile, its lease fences one of both."""
        return next(runner for runner in self._runners if in_lane([group], runner.lane))

    def run(self, workspace: str) -> bool:
        """Go on with a workspace's erasures; True when one was completed."""
        ledger = self.context.ledger
        pending = ledger.erasures(workspace)
        self._hide(workspace, pending)
        groups = self.context.groups(workspace, fresh=True)
        self._retire_stuck(workspace, groups, pending)
        self._reset_retired(workspace, pending)
        try:
            for group in groups:
                try:
                    self._forget(workspace, group, pending)
                except Fenced as error:  # another process, or the other lane, has it: again with the next look
                    log.info("erase_fenced group=%s: %s", group.name, error)
        except _Stopping:
            return False
        for erasure in ledger.erasures(workspace):
            self._complete(workspace, erasure)
        return self._settle(workspace)

    def _settle(self, workspace: str) -> bool:
        """End what is done but for the old versions of changed rows, together: giving them up is the same for all."""
        ledger = self.context.ledger
        unsettled = ledger.unsettled(workspace)
        if not unsettled:
            return False
        ledger.settle()
        crash.point("erase.settled")
        empty_caches()
        for erasure in unsettled:
            left = [line["store"] for line in json.loads(erasure.report)["stores"] if line["residue"]]
            state = "failed" if left else "complete"
            ledger.end_erasure(workspace, erasure.position, state, self.context.clock.now_us())
            log.info("erased workspace=%s position=%d left=%s", workspace, erasure.position, left)
        return True

    def _hide(self, workspace: str, pending: Sequence[Erasure]) -> None:
        """Every view looks at the log's head each ``view_poll_ms``; after two of them all have seen the erasure."""
        now_us = self.context.clock.now_us()
        long_ago_us = now_us - 2000 * self.context.settings.fold.view_poll_ms
        for erasure in pending:
            if not erasure.hidden_us and erasure.requested_us <= long_ago_us:
                self.context.ledger.set_hidden(workspace, erasure.position, now_us)

    # -- groups -------------------------------------------------------------------------------------------------------
    def _retire_stuck(self, workspace: str, groups: Sequence[Group], pending: Sequence[Erasure]) -> None:
        """Retire what stands beside a live version and would keep the erased, since it does not move.

        That is a demoted version that is halted or paused, hence nothing to roll back to, and a demoted or superseded
        one whose code is gone from every process. A shadow that may yet be promoted is waited for.
        """
        context, ledger = self.context, self.context.ledger
        now_us, lease_us = context.clock.now_us(), int(context.settings.fold.lease_s * US)
        old = [e for e in pending if e.requested_us + 2 * lease_us < now_us]
        if not old:
            return
        folded = {group.name for group in groups}
        rows = [i for i in ledger.instances(workspace) if i.slot != "retired"]
        newest = {i.name: i.group for i in rows}  # in the order in which they were made
        shadows = {i.group for i in rows if i.slot == "shadow"}
        superseded = {i.group for i in rows if newest[i.name] != i.group}
        for state in ledger.groups(workspace):
            abandoned = state.group not in folded and state.lease_until_us < now_us
            abandoned = abandoned and bool(state.retire_us or state.group in superseded)
            stands = state.retire_us and (state.halted is not None or state.paused)
            if state.group not in shadows or not (abandoned or stands):
                continue
            if all(stage_of(ledger, workspace, state.group, erasure) == "done" for erasure in old):
                continue
            reason = "it stands still and holds what is to be erased"
            audit = AuditEntry(actor="streamfold", action="retire", target=state.group, reason=reason, at_us=now_us)
            try:
                ledger.retire(workspace, state.group, audit=audit)
            except VersionConflict:
                continue  # retired by another process just now
            log.warning("retired_for_erasure workspace=%s group=%s", workspace, state.group)

    def _reset_retired(self, workspace: str, pending: Sequence[Erasure]) -> None:
        """Nobody folds a retired group's log on: it loses its state, which the log can give again."""
        ledger = self.context.ledger
        folded = {group.name for group in self.context.groups(workspace)}
        instances = ledger.instances(workspace)
        used = {i.group for i in instances if i.slot != "retired"}
        for name in sorted({i.group for i in instances} - used - folded):
            open_ = [e for e in pending if stage_of(ledger, workspace, name, e) != "done"]
            if not open_:
                continue
            start = min(i.start_seq for i in instances if i.group == name)
            ledger.reset_group(workspace, name, watermark=start)
            drop_old_checkpoints(checkpoint_root(self.context, workspace, name), set())
            ledger.note_groups(workspace, [ErasedGroup(e.position, name, "rebuild", "done", 0) for e in open_])

    def _forget(self, workspace: str, group: Group, pending: Sequence[Erasure]) -> None:
        """Bring a group's part of all pending erasures to its end: one rebuild, or one checkpoint, for all of them."""
        ledger = self.context.ledger
        notes = {
            note.position: note
            for e in pending
            for note in ledger.erased_groups(workspace, e.position)
            if note.group == group.name
        }
        after = [e for e in pending if e.position <= group.start_seq and e.position not in notes]
        if after:  # it began after them
            ledger.note_groups(workspace, [ErasedGroup(e.position, group.name, "exact", "done", 0) for e in after])
        rebuild = [e for e in pending if (n := notes.get(e.position)) is not None and n.state == "rebuild"]
        if rebuild:
            self._rebuild(workspace, group, rebuild, notes)
        newest = max((n.position for n in notes.values() if n.state == "checkpoint"), default=0)
        if newest and self._runner(group).checkpoint(workspace, group, newest):
            crash.point("erase.checkpointed")
            written = [n for n in notes.values() if n.state == "checkpoint" and n.position <= newest]
            ledger.note_groups(workspace, [_with(n, state="done") for n in written])

    def _rebuild(
        self, workspace: str, group: Group, erasures: Sequence[Erasure], notes: dict[int, ErasedGroup]
    ) -> None:
        """Fold the log afresh without the subjects while the old state serves, then put the new one in its place."""
        context, ledger, runner = self.context, self.context.ledger, self._runner(group)
        with runner.holding(workspace, group) as owner:
            if owner is None:
                return
        without = {p for e in erasures for p in (e.position, *positions(context, workspace, e))}
        stores = GroupStores(context, group, side="both")
        try:
            fold = Refold(
                context, workspace, group, stores, without=frozenset(without), batched=True, keep_skips=True,
                partial=True,
            )  # fmt: skip
            while (mark := ledger.group(workspace, group.name).watermark) - fold.after > _CLOSE:
                fold.run(mark, self._unless_stopping)
            with runner.holding(workspace, group) as owner:
                if owner is None or owner.lease is None:
                    return
                lease = owner.lease
                fold.run(lease.watermark)
                root = checkpoint_root(context, workspace, group.name)
                at = {"commit_no": lease.commit_no + 1, "watermark": lease.watermark}
                name = write_checkpoint(stores.stores, root, meta=checkpoint_meta(context, workspace, group.name, **at))
                crash.point("erase.rebuilt")
                ledger.swap_state(
                    workspace,
                    lease,
                    checkpoint=name,
                    state_bytes=stores.state_bytes(),
                    dead=fold.dead,
                    done=[*(_with(notes[e.position], state="checkpoint") for e in erasures), *fold.unforgotten],
                )
                owner.drop()
                drop_old_checkpoints(root, {name})
                forgotten = [_with(notes[e.position], state="done") for e in erasures]
                ledger.note_groups(workspace, forgotten)
            log.info("rebuilt group=%s without=%d events=%d", group.name, len(without), fold.count)
        finally:
            stores.close()
        notes |= {note.position: note for note in forgotten}
        runner.on_commit(workspace, group.name)

    def _unless_stopping(self, done: int, total: int) -> None:
        if any(runner.is_stopping for runner in self._runners):
            raise _Stopping

    # -- the ledger ---------------------------------------------------------------------------------------------------
    def _complete(self, workspace: str, erasure: Erasure) -> None:
        ledger = self.context.ledger
        if erasure.state != "scrubbed":
            if not erasure.hidden_us or not self._all_done(workspace, erasure):
                return
            if not self._scrub(workspace, erasure):
                return
            crash.point("erase.scrubbed")
        if not self._sweep(workspace):
            return
        again = ledger.erasure(workspace, erasure.position)
        assert again is not None
        report = json.loads(again.report)
        report["stores"] += look_through_ledger(self.context, workspace, erasure)
        crash.point("erase.looked")
        own = sum(len(row.body) for row in ledger.rows(workspace, [erasure.position]))
        freed = report.pop("freed") + own
        ledger.empty_erasure(workspace, erasure.position, json.dumps(report, sort_keys=True), freed=freed)

    def _all_done(self, workspace: str, erasure: Erasure) -> bool:
        notes = {n.group: n.state for n in self.context.ledger.erased_groups(workspace, erasure.position)}
        return all(notes.get(state.group) == "done" for state in self.context.ledger.groups(workspace))

    def _scrub(self, workspace: str, erasure: Erasure) -> bool:
        context, ledger = self.context, self.context.ledger
        found = context.history.rows(workspace, positions(context, workspace, erasure))
        rows = [row for row in found if row.effect != ERASED]  # others may have gone with another subject
        seqs = [row.seq for row in rows]
        needles = choose_needles(context, workspace, erasure, rows)
        looked = look_through_stores(context, workspace, needles)
        if self._retry_by_rebuild(workspace, erasure, {line.group for line in looked if line.residue}):
            return False
        crash.point("erase.before_scrub")
        results = used_results(context, workspace, [row for row in rows if row.effect == NORMAL])
        with archive_lease(context, workspace) as epoch:
            if epoch is None:
                return False
            traces = Traces(
                subject=erasure.subject,
                seqs=seqs,
                dedups=[_dedup(row) for row in [*rows, *ledger.rows(workspace, [erasure.position])]],
                results=sorted(results),
                letters=letters_about(context, workspace, erasure.subject, set(seqs)),
                files=leave_out(context, workspace, seqs, epoch),
                epoch=epoch,
            )
            crash.point("erase.archive_written")
            return self._scrub_ledger(workspace, erasure, traces, needles, looked)

    def _scrub_ledger(
        self, workspace: str, erasure: Erasure, traces: Traces, needles: Needles, looked: Sequence[Looked]
    ) -> bool:
        ledger = self.context.ledger
        logged = ledger.rows(workspace, traces.seqs)  # what has left the log weighs nothing in it any more
        report: dict[str, Any] = {
            "stores": [
                {"store": f"{line.group}/{line.store}", "scanned": line.scanned, "residue": line.residue}
                for line in looked
            ],
            "looked_for": {"id": needles.subject is not None, "texts": len(needles.texts)},
            "freed": sum(len(row.body) for row in logged),
            "removed": {
                "events": len(traces.seqs),
                "results": len(traces.results),
                "dead_letters": len(traces.letters),
                "archive_files": len(traces.files),
            },
        }
        return ledger.scrub(workspace, erasure.position, traces, json.dumps(report)) is not None

    def _sweep(self, workspace: str) -> bool:
        """Delete the files that were replaced, which hold what was erased; False: another process has the archive."""
        if not self.context.history.folder(workspace).is_dir():
            return True
        with archive_lease(self.context, workspace) as epoch:
            if epoch is not None:
                self.context.history.sweep(workspace, epoch)
                crash.point("erase.archive_swept")
            return epoch is not None

    def _retry_by_rebuild(self, workspace: str, erasure: Erasure, groups: set[str]) -> bool:
        """A group that says it forgot exactly and did not is folded afresh; whoever was already stays reported."""
        notes = self.context.ledger.erased_groups(workspace, erasure.position)
        wrong = [n for n in notes if n.group in groups and n.method == "exact"]
        for note in wrong:
            log.error("forget_left_traces group=%s position=%d: folding it afresh", note.group, note.position)
        self.context.ledger.note_groups(workspace, [_with(n, method="rebuild", state="rebuild") for n in wrong])
        return bool(wrong)


def used_results(context: Context, workspace: str, rows: Sequence[LogRow]) -> set[tuple[str, bytes]]:
    """Return the kept backend results that the events needed: (backend, content hash)."""
    found: set[tuple[str, bytes]] = set()
    for runtime in _runtimes(context, workspace):
        events = [context.registry.event_types.decode(row) for row in rows if row.type in runtime.handles]
        tools = RecordingTools(context, workspace, runtime)
        for event in events:
            try:
                runtime.policy.prepare_batch([event], tools)
            except EventError:
                continue  # it needed what was noted before it was refused
        found |= tools.used | used_extractions(context, workspace, runtime, events)
    return found


def _runtimes(context: Context, workspace: str) -> list[Runtime]:
    """Every instance that prepares and whose code is here, retired ones too."""
    made = []
    for instance in context.ledger.instances(workspace):
        kind = context.registry.policies.get(instance.use)
        if kind is not None and kind.version == instance.version:
            policy = context.registry.make_policy(instance.use, instance.config)
            if prepares(policy):
                handles = frozenset(policy.handles)
                made.append(Runtime(instance=instance, policy=policy, handles=handles, prepares=True))
    return made


def _dedup(row: LogRow) -> tuple[bytes, int]:
    envelope = _envelope(row.body)
    return dedup_key(envelope.source, envelope.id), row.seq


def _with(note: ErasedGroup, **changes: Any) -> ErasedGroup:
    return ErasedGroup(**asdict(note) | changes)
