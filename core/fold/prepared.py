"""Prepared values on their way to the fold: in memory (embedded) or in the ledger (distributed).

In one process a prepared value need not be written: if the process dies, it is prepared again from the kept backend
results. Between processes the ledger carries it until the fold's watermark has passed.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Protocol

from streamfold.core.codec import unpack
from streamfold.core.context import Context, Runtime
from streamfold.core.errors import EventError
from streamfold.core.ledger.abc import NORMAL, PrepareClaim

_PAGE, _PAGES_AHEAD = 512, 16
"""How many events that have left the log are looked at, from the watermark on, for work."""


class PreparedValues(Protocol):
    """Claims, values and failures of prepare by (workspace, instance, seq)."""

    def claim(self, workspace: str, runtime: Runtime, *, after: int, limit: int) -> list[PrepareClaim]: ...
    def save(self, workspace: str, runtime: Runtime, values: dict[int, bytes]) -> None: ...
    def fail(self, workspace: str, runtime: Runtime, seq: int, error: EventError, *, final: bool) -> None: ...
    def load(self, workspace: str, runtime: Runtime, seqs: Sequence[int]) -> dict[int, bytes | EventError]: ...
    def drop(self, workspace: str, runtime: Runtime, upto: int) -> None: ...
    def decode(self, runtime: Runtime, value: bytes) -> Any: ...


def decode_prepared(runtime: Runtime, value: bytes) -> Any:
    """Return a prepared value from its stored form."""
    kind = getattr(runtime.policy, "Prepared", Any)
    return unpack(value, kind | None) if kind is not Any else unpack(value)


class LedgerPrepared:
    """Prepared values kept in the ledger, claimed across processes."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def claim(self, workspace: str, runtime: Runtime, *, after: int, limit: int) -> list[PrepareClaim]:
        ctx, instance_id = self._context, runtime.instance.instance_id
        types = sorted(runtime.handles)
        # Short: a dead worker's claims must not hold its events up. A live one that takes longer shares the
        # work with another, which is harmless: prepare is pure and the first saved value stands.
        ttl_us = int(ctx.settings.fold.lease_s * 1e6)
        left = ctx.ledger.left_upto(workspace)
        if left > after:
            for _ in range(_PAGES_AHEAD):
                page = ctx.history.read(workspace, after, _PAGE, upto=left, types=types, may_lack="all")
                rows = [row for row in page.rows if row.effect == NORMAL]
                claims = ctx.ledger.prepare_take(
                    workspace, instance_id, rows, owner=ctx.owner, now_us=ctx.clock.now_us(), ttl_us=ttl_us, limit=limit
                )
                if claims:
                    return claims
                if len(page.rows) < _PAGE:
                    after = left
                    break
                after = page.rows[-1].seq
            else:
                return []  # far enough ahead of the fold
        return ctx.ledger.prepare_claim(
            workspace, instance_id, after=after, types=types, owner=ctx.owner, now_us=ctx.clock.now_us(),
            ttl_us=ttl_us, limit=limit,
        )  # fmt: skip

    def save(self, workspace: str, runtime: Runtime, values: dict[int, bytes]) -> None:
        self._context.ledger.prepare_save(workspace, runtime.instance.instance_id, values)

    def fail(self, workspace: str, runtime: Runtime, seq: int, error: EventError, *, final: bool) -> None:
        self._context.ledger.prepare_fail(
            workspace, runtime.instance.instance_id, seq, code=error.code, detail=str(error), final=final
        )

    def load(self, workspace: str, runtime: Runtime, seqs: Sequence[int]) -> dict[int, bytes | EventError]:
        if not seqs:
            return {}
        values, failures = self._context.ledger.prepare_load(workspace, runtime.instance.instance_id, seqs)
        found: dict[int, bytes | EventError] = dict(values)
        for seq, (code, detail) in failures.items():
            found[seq] = EventError(detail, code=code)
        return found

    def drop(self, workspace: str, runtime: Runtime, upto: int) -> None:
        self._context.ledger.prepare_drop(workspace, runtime.instance.instance_id, upto)

    def decode(self, runtime: Runtime, value: bytes) -> Any:
        return decode_prepared(runtime, value)


class MemoryPrepared:
    """Prepared values of one process; a claim is a seq handed out once until it is saved or has failed."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._values: dict[tuple[str, int], dict[int, bytes | EventError]] = {}
        self._claimed: dict[tuple[str, int], dict[int, int]] = {}
        self._scanned: dict[tuple[str, int], int] = {}

    @staticmethod
    def _key(workspace: str, runtime: Runtime) -> tuple[str, int]:
        return workspace, runtime.instance.instance_id

    def claim(self, workspace: str, runtime: Runtime, *, after: int, limit: int) -> list[PrepareClaim]:
        key = self._key(workspace, runtime)
        with self._lock:
            start = max(after, self._scanned.get(key, after))
        page = self._context.history.follow(
            workspace,
            start,
            limit,
            types=sorted(runtime.handles),
            may_lack="all",  # the fold says what it misses
        )
        claims = []
        with self._lock:
            values, claimed = self._values.setdefault(key, {}), self._claimed.setdefault(key, {})
            for row in page.rows:
                if row.effect == NORMAL and row.seq not in values and row.seq not in claimed:
                    claimed[row.seq] = 1
                    claims.append(PrepareClaim(row, 0))
            self._scanned[key] = page.rows[-1].seq if page.rows else start
        return claims

    def save(self, workspace: str, runtime: Runtime, values: dict[int, bytes]) -> None:
        key = self._key(workspace, runtime)
        with self._lock:
            self._values.setdefault(key, {}).update(values)
            for seq in values:
                self._claimed.get(key, {}).pop(seq, None)

    def fail(self, workspace: str, runtime: Runtime, seq: int, error: EventError, *, final: bool) -> None:
        key = self._key(workspace, runtime)
        with self._lock:
            self._claimed.get(key, {}).pop(seq, None)
            if final:
                self._values.setdefault(key, {})[seq] = error
            else:
                self._scanned[key] = min(self._scanned.get(key, seq - 1), seq - 1)

    def load(self, workspace: str, runtime: Runtime, seqs: Sequence[int]) -> dict[int, bytes | EventError]:
        with self._lock:
            values = self._values.get(self._key(workspace, runtime), {})
            found = {seq: values[seq] for seq in seqs if seq in values}
            missing = [seq for seq in seqs if seq not in values]
            if missing:
                key = self._key(workspace, runtime)
                claimed = self._claimed.get(key, {})
                lost = [seq for seq in missing if seq not in claimed]
                if lost and lost[0] <= self._scanned.get(key, 0):
                    self._scanned[key] = lost[0] - 1  # dropped before a rollback: prepare it again
        return found

    def drop(self, workspace: str, runtime: Runtime, upto: int) -> None:
        key = self._key(workspace, runtime)
        with self._lock:
            values = self._values.get(key, {})
            for seq in [seq for seq in values if seq <= upto]:
                del values[seq]

    def decode(self, runtime: Runtime, value: bytes) -> Any:
        return decode_prepared(runtime, value)
