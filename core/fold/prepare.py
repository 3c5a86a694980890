"""Run the costly, pure step: claim events without a result, prepare them in batches, keep what came out.

Work is found by query, messages are only hints. Waiting never skips: only ``EventError``, or an attempt that itself ran
past the time limit three times, makes the fold skip an event.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import suppress

from streamfold.core.codec import pack
from streamfold.core.context import Context, Group, Runtime
from streamfold.core.errors import EventError, LedgerUnavailable
from streamfold.core.events.model import Event
from streamfold.core.fold.halt import halt_reason
from streamfold.core.fold.lanes import Lane, in_lane
from streamfold.core.fold.pace import Pace
from streamfold.core.fold.prepared import PreparedValues, decode_prepared
from streamfold.core.fold.tools import InstanceTools
from streamfold.core.ledger.abc import PrepareClaim

log = logging.getLogger("streamfold.prepare")
_MAX_TIMEOUTS = 3


class _Failure(Exception):
    """Prepare of one event raised what is neither ``EventError`` nor a timeout."""

    def __init__(self, event: Event, error: Exception) -> None:
        super().__init__(str(error))
        self.event = event
        self.error = error


class Preparer:
    """Prepares for all groups of a workspace; several run side by side (threads or processes)."""

    def __init__(self, context: Context, prepared: PreparedValues) -> None:
        self.context = context
        self.prepared = prepared
        self._tools: dict[tuple[str, int], InstanceTools] = {}
        self._backoff_until: dict[tuple[str, int], float] = {}
        self._paces: dict[tuple[str, int], Pace] = {}
        self._timeouts: dict[tuple[str, int, int], int] = {}

    def run(self, workspace: str, watermarks: dict[str, tuple[int, int]], *, lane: Lane | None = None) -> int:
        """Prepare one batch per instance (of a lane); returns how many events were prepared or failed."""
        count = 0
        for group in in_lane(self.context.groups(workspace), lane):
            if group.name not in watermarks:
                continue
            for runtime in group.runtimes:
                if runtime.prepares:
                    count += self._one(workspace, group, runtime, watermarks[group.name][0])
        return count

    def _one(self, workspace: str, group: Group, runtime: Runtime, watermark: int) -> int:
        key = (workspace, runtime.instance.instance_id)
        if time.monotonic() < self._backoff_until.get(key, 0.0):
            return 0
        pace = self._paces.get(key)
        if pace is None or pace.rate != group.rate:
            pace = self._paces[key] = Pace(group.rate)
        limit = pace.allows(self.context.settings.fold.prepare_batch)
        if not limit:
            return 0
        claims = self.prepared.claim(workspace, runtime, after=watermark, limit=limit)
        if not claims:
            return 0
        try:
            self._prepare(workspace, runtime, claims)
        except _Failure as failure:
            self._halt(workspace, group, runtime, claims, failure)
            return 0
        except LedgerUnavailable as error:
            with suppress(LedgerUnavailable):  # in the ledger a claim expires by itself, in memory nobody else frees it
                self._free(workspace, runtime, claims, error)
            raise
        pace.took(len(claims))
        if self._backoff_until.pop(key, None) is not None:
            self.context.ledger.set_halted(workspace, group.name, None)
        return len(claims)

    def _prepare(self, workspace: str, runtime: Runtime, claims: Sequence[PrepareClaim]) -> None:
        key = (workspace, runtime.instance.instance_id)
        tools = self._tools.get(key)
        if tools is None:
            tools = self._tools[key] = InstanceTools(self.context, workspace, runtime, keep=True)
        events = [self.context.registry.event_types.decode(claim.row) for claim in claims]
        try:
            values = runtime.policy.prepare_batch(events, tools)
            packed = {e.seq: pack(v) for e, v in zip(events, values, strict=True)}
        except LedgerUnavailable:
            raise
        except Exception as error:
            if not isinstance(error, EventError):
                log.debug("prepare_batch of %s raised %r; preparing one by one", runtime.key, error)
            self._one_by_one(workspace, runtime, events, tools)
        else:
            self.prepared.save(workspace, runtime, packed)

    def _halt(
        self, workspace: str, group: Group, runtime: Runtime, claims: Sequence[PrepareClaim], failure: _Failure
    ) -> None:
        """Free the claims from the failing event on, say why the group waits, and back off."""
        event, error, context = failure.event, failure.error, self.context
        log.error("prepare_failed workspace=%s policy=%s", workspace, runtime.key, exc_info=error)
        self._free(workspace, runtime, [claim for claim in claims if claim.row.seq >= event.seq], error)
        reason = halt_reason(runtime.key, event, error, step="prepare")
        context.ledger.set_halted(workspace, group.name, reason, policy=runtime.key, position=event.seq)
        pause_s = min(60.0, 0.5 * 2 ** min(claims[0].attempts, 7))
        self._backoff_until[workspace, runtime.instance.instance_id] = time.monotonic() + pause_s
        context.registry.hook.failed(
            workspace=workspace, group=group.name, policy=runtime.key, position=event.seq, error=error
        )

    def _free(self, workspace: str, runtime: Runtime, claims: Sequence[PrepareClaim], error: Exception) -> None:
        failed = EventError(str(error), code="prepare-failed")
        for claim in claims:
            self.prepared.fail(workspace, runtime, claim.row.seq, failed, final=False)

    def _one_by_one(self, workspace: str, runtime: Runtime, events: Sequence[Event], tools: InstanceTools) -> None:
        for event in events:
            started = time.monotonic()
            try:
                packed = pack(runtime.policy.prepare_batch([event], tools)[0])
            except EventError as error:
                self.prepared.fail(workspace, runtime, event.seq, error, final=True)
                continue
            except TimeoutError as error:
                ran_s = time.monotonic() - started
                key = (workspace, runtime.instance.instance_id, event.seq)
                if ran_s >= self.context.settings.fold.prepare_timeout_s:
                    self._timeouts[key] = self._timeouts.get(key, 0) + 1
                final = self._timeouts.get(key, 0) >= _MAX_TIMEOUTS
                self.prepared.fail(
                    workspace, runtime, event.seq, EventError(str(error), code="prepare-timeout"), final=final
                )
                continue
            except LedgerUnavailable:
                raise
            except Exception as error:
                if event.seq not in self.context.ledger.skipped_seqs(workspace, runtime.instance.lineage):
                    raise _Failure(event, error) from error
                skipped = EventError(f"skipped by hand; it failed with {error!r}", code="skipped-by-hand")
                self.prepared.fail(workspace, runtime, event.seq, skipped, final=True)
                continue
            self.prepared.save(workspace, runtime, {event.seq: packed})


def prepare_inline(context: Context, workspace: str, runtime: Runtime, events: Sequence[Event]) -> list[object]:
    """Prepare at once from kept results (``verify`` and replay), as the live fold gets values: from their stored form.

    ``EventError`` s are returned in place.
    """
    tools = InstanceTools(context, workspace, runtime, keep=True)
    values: list[object] = []
    try:
        values += runtime.policy.prepare_batch(events, tools)
    except EventError:
        for event in events:
            try:
                values += runtime.policy.prepare_batch([event], tools)
            except EventError as error:
                values.append(error)
    return [v if isinstance(v, EventError) else decode_prepared(runtime, pack(v)) for v in values]
