"""Run the costly, pure step: claim events without a result, prepare them in batches, keep what came out.

Work is found by query, messages are only hints. Waiting never skips: only ``EventError``, or an attempt that itself ran
past the time limit three times, makes the fold skip an event.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from streamfold.core.codec import pack
from streamfold.core.context import Context, Group, Runtime
from streamfold.core.errors import EventError
from streamfold.core.events.model import Event
from streamfold.core.fold.prepared import PreparedValues
from streamfold.core.fold.tools import InstanceTools
from streamfold.core.ledger.abc import PrepareClaim

log = logging.getLogger("streamfold.prepare")
_MAX_TIMEOUTS = 3


class Preparer:
    """Prepares for all groups of a workspace; several run side by side (threads or processes)."""

    def __init__(self, context: Context, prepared: PreparedValues) -> None:
        self.context = context
        self.prepared = prepared
        self._tools: dict[tuple[str, int], InstanceTools] = {}
        self._backoff_until: dict[tuple[str, int], float] = {}
        self._timeouts: dict[tuple[str, int, int], int] = {}

    def run(self, workspace: str, watermarks: dict[str, tuple[int, int]]) -> int:
        """Prepare one batch per instance; returns how many events were prepared or failed."""
        count = 0
        for group in self.context.groups(workspace):
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
        limit = self.context.settings.fold.prepare_batch
        claims = self.prepared.claim(workspace, runtime, after=watermark, limit=limit)
        if not claims:
            return 0
        try:
            self._prepare(workspace, runtime, claims)
        except Exception as error:
            reason = f"prepare of {runtime.key} failed at positions {claims[0].row.seq}–{claims[-1].row.seq}: {error!r}"
            log.exception("prepare_failed workspace=%s policy=%s", workspace, runtime.key)
            for claim in claims:
                self.prepared.fail(
                    workspace, runtime, claim.row.seq, EventError(str(error), code="prepare-failed"), final=False
                )
            self.context.ledger.set_halted(workspace, group.name, reason)
            self._backoff_until[key] = time.monotonic() + min(60.0, 0.5 * 2 ** min(claims[0].attempts, 7))
            self.context.registry.hook.failed(
                workspace=workspace, group=group.name, policy=runtime.key, position=claims[0].row.seq, error=error
            )
            return 0
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
            self.prepared.save(workspace, runtime, {e.seq: pack(v) for e, v in zip(events, values, strict=True)})
        except EventError:
            self._one_by_one(workspace, runtime, events, tools)

    def _one_by_one(self, workspace: str, runtime: Runtime, events: Sequence[Event], tools: InstanceTools) -> None:
        for event in events:
            started = time.monotonic()
            try:
                value = runtime.policy.prepare_batch([event], tools)[0]
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
            self.prepared.save(workspace, runtime, {event.seq: pack(value)})


def prepare_inline(context: Context, workspace: str, runtime: Runtime, events: Sequence[Event]) -> list[object]:
    """Prepare at once from kept results (``verify`` and replay); ``EventError`` s are returned in place."""
    tools = InstanceTools(context, workspace, runtime, keep=True)
    try:
        return list(runtime.policy.prepare_batch(events, tools))
    except EventError:
        values: list[object] = []
        for event in events:
            try:
                values.append(runtime.policy.prepare_batch([event], tools)[0])
            except EventError as error:
                values.append(error)
        return values
