"""One group's fold: read the log past the watermark, fold event by event, commit; the single fenced writer.

Nothing is folded twice across a committed watermark: the commit moves the watermark and writes all changes in one
transaction, compare-and-set on (epoch, watermark). On any failure the warm stores are dropped and rebuilt from
checkpoint + feed, so a half-folded batch leaves no trace.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from streamfold.core import crash
from streamfold.core.clock import US
from streamfold.core.codec import pack
from streamfold.core.context import Context, Group, Runtime
from streamfold.core.errors import (
    ArchiveMissing,
    CorruptCheckpoint,
    EventError,
    Fenced,
    LedgerUnavailable,
    NewerCheckpoint,
)
from streamfold.core.events.model import Event
from streamfold.core.fold.erasure import ForgetFailed, forget
from streamfold.core.fold.halt import halt_reason
from streamfold.core.fold.one import fold_one, refusal_letter
from streamfold.core.fold.order import FoldOrder, GatheredFailed
from streamfold.core.fold.pace import Pace
from streamfold.core.fold.prepared import PreparedValues
from streamfold.core.fold.stores import FoldStores, GroupStores, checkpoint_root, fold_stores, recover
from streamfold.core.ledger.abc import NORMAL, DeadLetter, ErasedGroup, Erasure, GroupState, Lease, LogRow
from streamfold.core.policy import Policy, Refusal
from streamfold.core.stores import LiveTable
from streamfold.core.stores.checkpoint import CheckpointRoot

log = logging.getLogger("streamfold.fold")
_IDLE_SHARE, _MOST_IDLE_S = 50.0, 0.1
"""Writing a watermark that nothing was folded for rests so many times as long as it took, and no longer than this."""


class PolicyFailure(Exception):
    """A policy raised something else than ``EventError``: the group is halted."""

    def __init__(self, policy: str, event: Event, error: BaseException) -> None:
        super().__init__(f"{policy} failed at position {event.seq}: {error!r}")
        self.policy = policy
        self.event = event
        self.seq = event.seq
        self.error = error


@dataclass(slots=True)
class Turn:
    """What a turn did: events handled, whether more may be waiting, whether it waits for prepare.

    ``idles``: the watermark is to move past events that nobody here handles, a little later.
    """

    events: int = 0
    more: bool = False
    waits: bool = False
    idles: bool = False
    watermark: int = 0


class GroupFold:
    """The warm fold of one group in this process; used by one thread at a time."""

    def __init__(self, context: Context, workspace: str, group: Group, prepared: PreparedValues) -> None:
        self.context = context
        self.workspace = workspace
        self.group = group
        self.prepared = prepared
        self.lease: Lease | None = None
        self._stores: GroupStores | None = None
        self._fold_stores: dict[str, FoldStores] = {}
        self._order: FoldOrder | None = None
        self._upto: int | None = None
        self._alone_upto = 0
        self._skipped: dict[str, set[int]] = {}
        self._skips_in_a_row: dict[str, int] = {}
        self._backoff_until = 0.0
        self._backoff_s = 0.5
        self._halted = False
        self._idle_from = 0.0
        self._pace = Pace(group.rate)
        self.feed_bytes = 0
        self.checkpoint_bytes = 0
        self._renewed = 0.0
        self._erasing = context.registry.event_types.erasing()
        self._types = sorted(group.handles | self._erasing)

    # -- ownership ------------------------------------------------------------------------------------------------
    def acquire(self) -> bool:
        """Take or keep the lease; warm up when it is new or its commit is not where the warm stores are."""
        ctx = self.context
        ttl_us = int(ctx.settings.fold.lease_s * US)
        now = time.monotonic()
        if self.lease is not None and self._stores is not None and now - self._renewed < ctx.settings.fold.lease_s / 3:
            return True
        old = self.lease
        lease = ctx.ledger.acquire(self.workspace, self.group.name, ctx.owner, now_us=ctx.clock.now_us(), ttl_us=ttl_us)
        if lease is None:
            self.drop()
            return False
        self._renewed = now
        if (
            old is not None
            and self._stores is not None
            and (old.epoch, old.commit_no, old.watermark)
            == (
                lease.epoch,
                lease.commit_no,
                lease.watermark,
            )
        ):
            self.lease = lease
            return True
        self.drop()
        self._warm(lease)
        return True

    def _warm(self, lease: Lease) -> None:
        ctx = self.context
        stores = GroupStores(ctx, self.group, side="fold")
        state = ctx.ledger.group(self.workspace, self.group.name)
        try:
            commit_no, watermark = recover(ctx, self.workspace, self.group, stores)
        except CorruptCheckpoint as error:
            stores.close()
            self._refold(state, error)
        except NewerCheckpoint as error:
            stores.close()
            self._leave(lease, error)
        except BaseException:
            stores.close()
            raise
        if commit_no != lease.commit_no or watermark > lease.watermark:
            stores.close()
            raise Fenced(f"group {self.group.name} moved on while it was recovered: take the lease again")
        self._stores = stores
        self.lease = lease
        self._fold_stores = fold_stores(self.group, stores)
        self._order = FoldOrder(self.group, self._fold_stores)
        for runtime in self.group.runtimes:
            self._skipped[runtime.key] = ctx.ledger.skipped_seqs(self.workspace, runtime.instance.lineage)
        state = ctx.ledger.group(self.workspace, self.group.name)
        self.feed_bytes = state.feed_bytes
        if state.checkpoint is not None:  # the next one is due after as many bytes of feed
            root = CheckpointRoot(checkpoint_root(ctx, self.workspace, self.group.name))
            self.checkpoint_bytes = root.size(state.checkpoint)
        self._halted = state.halted is not None and state.halted_at is None
        log.info(
            "group_warm workspace=%s group=%s watermark=%d commit=%d",
            self.workspace,
            self.group.name,
            watermark,
            commit_no,
        )

    def _refold(self, before: GroupState, error: CorruptCheckpoint) -> NoReturn:
        """Fold afresh from the log, unless only a newer checkpoint was written while the old one was read."""
        ctx = self.context
        now = ctx.ledger.group(self.workspace, self.group.name)
        if now.checkpoint == before.checkpoint:
            if ctx.reach(self.workspace, self.group).rebuild == "impossible":
                reason = f"{error}; it cannot be folded afresh, as the log does not reach back: restore a backup"
                self._stand(reason)
                raise Fenced(reason) from error
            log.error("checkpoint_corrupt group=%s: %s; folding afresh from the log", self.group.name, error)
            ctx.ledger.reset_group(self.workspace, self.group.name, watermark=self.group.start_seq)
        self.lease = None
        raise Fenced(f"group {self.group.name} has to be recovered again: {error}") from error

    def _leave(self, lease: Lease, error: NewerCheckpoint) -> NoReturn:
        """Give the lease to whoever can read the state, and do not ask for it for a while (a rolling upgrade)."""
        ctx = self.context
        ctx.ledger.release(self.workspace, lease)
        self._backoff_until = time.monotonic() + ctx.settings.fold.lease_s
        log.warning("group_left workspace=%s group=%s: %s", self.workspace, self.group.name, error)
        raise Fenced(f"group {self.group.name} is left to a newer version: {error}") from error

    def drop(self) -> None:
        """Drop lease knowledge and warm stores: the next turn recovers from checkpoint + feed."""
        self.lease = None
        if self._stores is not None:
            self._stores.close()
            self._stores = None

    def release(self) -> None:
        """Give the lease back (graceful stop)."""
        lease = self.lease
        self.drop()
        if lease is not None:
            self.context.ledger.release(self.workspace, lease)

    # -- folding --------------------------------------------------------------------------------------------------
    def turn(self) -> Turn:
        """Fold until nothing is left, prepare is missing, or the turn's time is up.

        Raises nothing of a policy's making: a failing policy halts the group and backs off.
        """
        if time.monotonic() < self._backoff_until:
            return Turn()
        done = Turn()
        deadline = time.monotonic() + self.context.settings.fold.turn_ms / 1000
        try:
            while True:
                if not self.acquire():
                    return done
                step = self._step()
                done.events += step.events
                done.more, done.waits, done.idles = step.more, step.waits, step.idles
                if not step.more or step.waits or time.monotonic() >= deadline:
                    break
        except Fenced as error:
            log.warning("fenced group=%s: %s", self.group.name, error)
            self.drop()
            done.more = True
        except LedgerUnavailable:
            self.drop()
            raise
        except ArchiveMissing as error:
            self.drop()
            self._stand(str(error))
        except PolicyFailure as failure:
            done.more = not self._halt(failure)
        except GatheredFailed as failed:
            log.exception("gathered_failed group=%s: folding one by one", self.group.name)
            self.drop()
            self._alone_upto = failed.seq
            done.more = True
        except BaseException:
            self.drop()
            raise
        if self.lease is not None:
            done.watermark = self.lease.watermark
        return done

    def _step(self) -> Turn:
        ctx, lease = self.context, self.lease
        assert lease is not None
        assert self._stores is not None
        if self._pace.rate != self.group.rate:
            self._pace = Pace(self.group.rate)
        limit = self._pace.allows(ctx.settings.fold.batch_events)
        if not limit:
            return Turn()
        page = ctx.history.follow(
            self.workspace, lease.watermark, limit, upto=self._upto, types=self._types,
            may_lack="compacted" if self.group.newest_suffices else "nothing",
        )  # fmt: skip
        rows = page.rows
        full = len(rows) == limit
        end = rows[-1].seq if full else min(page.head, self._upto or page.head)
        if erasures := self._erasures(rows):
            first = next(i for i, row in enumerate(rows) if row.seq in erasures)
            if first == 0:
                return self._forget(rows[0], erasures[rows[0].seq], lease)
            rows, end, full = rows[:first], rows[first].seq - 1, True
        values, rows, waits = self._prepared(rows)
        if waits:
            end = rows[-1].seq if rows else lease.watermark
        self._upto = None if not full else self._upto
        if not rows:
            behind = end > lease.watermark and not waits
            return Turn(waits=waits, idles=behind and not self._idle_move(lease, end))
        dead = self._fold_rows(rows, values)
        changes = self._stores.drain()
        self._commit(lease, end, changes, dead, len(rows))
        self._pace.took(len(rows))
        return Turn(events=len(rows), more=full or waits or page.head > end, waits=waits)

    def _erasures(self, rows: Sequence[LogRow]) -> dict[int, Erasure]:
        """The erasures among some rows; each is a step of its own."""
        if not any(row.type in self._erasing and row.effect == NORMAL for row in rows):
            return {}
        there = {row.seq for row in rows}
        return {e.position: e for e in self.context.ledger.erasures(self.workspace) if e.position in there}

    def _forget(self, row: LogRow, erasure: Erasure, lease: Lease) -> Turn:
        """Forget a subject at its erasure. What has to be folded afresh for it takes the event as a deletion for now.

        The commit always has a number, so that a checkpoint past it can be told from one before.
        """
        stores = self._stores
        assert stores is not None
        values, rows, waits = self._prepared([row])
        if waits:
            return Turn(waits=True)
        try:
            done = forget(self.context, self.workspace, self.group, stores, self._fold_stores, erasure, row)
        except ForgetFailed as failure:
            event = self.context.registry.event_types.decode(row)
            raise PolicyFailure(failure.policy, event, failure.error) from failure
        dead: list[DeadLetter] = []
        if done.method == "rebuild":
            dead = self._fold_rows([r for r in rows if r.type in self.group.handles], values)
        log.info("forgot group=%s position=%d method=%s events=%d", done.group, row.seq, done.method, done.removed)
        self._commit(lease, row.seq, stores.drain() or pack({}), dead, 1, erased=[done])
        for store in stores.stores.values():
            if isinstance(store, LiveTable):
                store.purge()
        self._pace.took(1)
        crash.point("erase.forgotten")
        return Turn(events=1, more=True)

    def _idle_move(self, lease: Lease, end: int) -> bool:
        """Move the watermark past events that nobody here handles; False: not yet.

        Who asks for a position waits for it, yet a fiftieth of the time is enough for writing it.
        """
        started = time.monotonic()
        if started < self._idle_from:
            return False
        self._commit(lease, end, None, [], 0)
        now = time.monotonic()
        self._idle_from = now + min(_IDLE_SHARE * (now - started), _MOST_IDLE_S)
        return True

    def _prepared(self, rows: list[LogRow]) -> tuple[dict[str, dict[int, bytes | EventError]], list[LogRow], bool]:
        """Prepared values by runtime and seq; rows before the first one that is still missing."""
        found: dict[str, dict[int, bytes | EventError]] = {}
        cut = len(rows)
        for runtime in self.group.runtimes:
            if not runtime.prepares:
                continue
            seqs = [r.seq for r in rows if r.type in runtime.handles and r.effect == NORMAL]
            values = self.prepared.load(self.workspace, runtime, seqs)
            found[runtime.key] = values
            for index, row in enumerate(rows[:cut]):
                waits = row.type in runtime.handles and row.effect == NORMAL and row.seq not in values
                if waits and row.seq not in self._skipped[runtime.key]:
                    cut = index
                    break
        return found, rows[:cut], cut < len(rows)

    def _fold_rows(self, rows: Sequence[LogRow], values: dict[str, dict[int, bytes | EventError]]) -> list[DeadLetter]:
        ctx = self.context
        decode = ctx.registry.event_types.decode
        dead: list[DeadLetter] = []
        events: list[Event] = []
        retries: dict[int, set[str]] = {}
        for row in rows:
            if row.effect != NORMAL:
                continue
            events.append(decode(row))
            if row.retry_of is not None:
                retries[row.seq] = set(ctx.ledger.skips_of(self.workspace, row.retry_of))
        if len(self.group.runtimes) == 1:
            runtime = self.group.runtimes[0]
            if (
                type(runtime.policy).fold_batch is not Policy.fold_batch
                and not retries
                and not self._skipped[runtime.key]
            ):
                batch = self._batch(runtime, events, values)
                if batch is not None and self._try_batch(runtime, batch):
                    return dead + self._refused()

        def one(runtime: Runtime, event: Event) -> None:
            only = retries.get(event.seq)
            if only is None or runtime.instance.lineage in only:
                self._fold_one(runtime, event, values.get(runtime.key), dead)

        def folded(runtime: Runtime) -> None:
            self._skips_in_a_row[runtime.key] = 0

        assert self._order is not None
        skipped = [seqs for seqs in self._skipped.values() if seqs]
        alone = {e.seq for e in events if e.seq <= self._alone_upto or any(e.seq in seqs for seqs in skipped)}
        alone |= retries.keys()
        self._order.fold(events, one, alone=alone, folded=folded)
        return dead + self._refused()

    def _refused(self) -> list[DeadLetter]:
        """Dead letters of events that were folded before and that a policy has refused now."""
        return [
            refusal_letter(runtime, past, at_us=self.context.clock.now_us())
            for runtime in self.group.runtimes
            for past in self._fold_stores[runtime.key].refused()
        ]

    def _batch(
        self, runtime: Runtime, events: list[Event], values: dict[str, dict[int, bytes | EventError]]
    ) -> list[tuple[Event, object]] | None:
        mine = values.get(runtime.key, {})
        if any(isinstance(value, EventError) for value in mine.values()):
            return None
        decode = self.prepared.decode
        return [
            (e, decode(runtime, mine[e.seq]) if runtime.prepares else None)  # type: ignore[arg-type]  # no EventError left
            for e in events
            if e.type in runtime.handles
        ]

    def _try_batch(self, runtime: Runtime, batch: list[tuple[Event, object]]) -> bool:
        """Fold a batch in one call; False when an event in it must be skipped (the batch is then undone)."""
        stores = self._fold_stores[runtime.key]
        if batch:
            stores.seq, stores.now_us = batch[-1][0].seq, batch[-1][0].recorded_us
        try:
            runtime.policy.fold_batch(batch, stores)
        except Exception as error:
            stores.undo()
            if not isinstance(error, EventError):
                log.debug("fold_batch of %s raised %r; folding one by one", runtime.key, error)
            return False
        stores.keep()
        self._skips_in_a_row[runtime.key] = 0
        return True

    def _fold_one(
        self, runtime: Runtime, event: Event, values: dict[int, bytes | EventError] | None, dead: list[DeadLetter]
    ) -> None:
        key, value = runtime.key, None
        try:
            if values is not None and event.seq not in self._skipped[key]:
                found = values[event.seq]
                value = found if isinstance(found, EventError) else self.prepared.decode(runtime, found)
            skip = event.seq in self._skipped[key]  # replay honours a recorded skip
            error = fold_one(runtime, event, value, self._fold_stores[key], skip=skip)
        except Exception as failure:
            raise PolicyFailure(key, event, failure) from failure
        if error is not None:
            self._skip(runtime, event, "fold" if value is not error else "prepare", error, dead)
        elif not skip:
            self._skips_in_a_row[key] = 0

    def _skip(self, runtime: Runtime, event: Event, stage: str, error: EventError, dead: list[DeadLetter]) -> None:
        key = runtime.key
        self._skips_in_a_row[key] = self._skips_in_a_row.get(key, 0) + (not error.is_limit)
        if self._skips_in_a_row[key] > self.context.settings.fold.max_skips:
            raise PolicyFailure(
                key,
                event,
                RuntimeError(f"more than {self.context.settings.fold.max_skips} skips in a row; last: {error}"),
            )
        past = Refusal(event.seq, event.source, event.id, error)
        dead.append(refusal_letter(runtime, past, stage=stage, at_us=self.context.clock.now_us()))

    def _commit(
        self,
        lease: Lease,
        watermark: int,
        changes: bytes | None,
        dead: list[DeadLetter],
        events: int,
        *,
        erased: Sequence[ErasedGroup] = (),
    ) -> None:
        ctx = self.context
        assert self._stores is not None
        started = time.perf_counter()
        after = ctx.ledger.commit(
            self.workspace,
            lease,
            watermark=watermark,
            changes=changes,
            dead=dead,
            erased=erased,
            state_bytes=self._stores.state_bytes(),
            now_us=ctx.clock.now_us(),
            ttl_us=int(ctx.settings.fold.lease_s * US),
        )
        self.lease = after
        self._renewed = time.monotonic()
        self._backoff_s = 0.5
        took_s = time.perf_counter() - started
        if changes is not None:
            self.feed_bytes += len(changes)
        for letter in dead:
            if letter.policy and letter.position:
                self._skipped[letter.policy].add(letter.position)
        if self._halted:
            ctx.ledger.set_halted(self.workspace, self.group.name, None)  # one that names no position to pass
            self._halted = False
        if events:
            for runtime in self.group.runtimes:
                if runtime.prepares:
                    self.prepared.drop(self.workspace, runtime, watermark)
            ctx.registry.hook.committed(
                workspace=self.workspace,
                group=self.group.name,
                watermark=watermark,
                commit_no=after.commit_no,
                events=events,
                seconds=took_s,
            )
        crash.point("fold.committed")

    def _halt(self, failure: PolicyFailure) -> bool:
        """Roll back; True when halted, False when the events before the failing one are to be folded first."""
        ctx = self.context
        watermark = self.lease.watermark if self.lease else 0
        self.drop()
        if failure.seq - 1 > watermark:
            self._upto = failure.seq - 1
            return False
        reason = halt_reason(failure.policy, failure.event, failure.error, step="fold")
        log.error("group_halted workspace=%s group=%s %s", self.workspace, self.group.name, reason)
        ctx.ledger.set_halted(self.workspace, self.group.name, reason, policy=failure.policy, position=failure.seq)
        self._backoff_until = time.monotonic() + self._backoff_s
        self._backoff_s = min(self._backoff_s * 2, 60.0)
        ctx.registry.hook.failed(
            workspace=self.workspace,
            group=self.group.name,
            policy=failure.policy,
            position=failure.seq,
            error=failure.error,
        )
        return True

    def _stand(self, reason: str) -> None:
        """Halt where no event is to blame, and look again later."""
        if self.context.ledger.group(self.workspace, self.group.name).halted != reason:
            log.error("group_halted workspace=%s group=%s %s", self.workspace, self.group.name, reason)
            self.context.ledger.set_halted(self.workspace, self.group.name, reason)
        self._halted = True
        self._backoff_until = time.monotonic() + self._backoff_s
        self._backoff_s = min(self._backoff_s * 2, 60.0)

    @property
    def backing_off(self) -> bool:
        return time.monotonic() < self._backoff_until
