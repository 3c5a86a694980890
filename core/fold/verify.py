"""Fold afresh and compare: the log, folded from the start, must give the live stores (invariant I2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from streamfold.core.codec import pack, unpack
from streamfold.core.context import Context, Group
from streamfold.core.errors import CorruptCheckpoint, EventError
from streamfold.core.fold.prepare import prepare_inline
from streamfold.core.fold.stores import GroupStores, fold_stores, recover
from streamfold.core.ledger.abc import NORMAL


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What ``verify`` found: per store whether both are equal; ``equal`` when all are."""

    group: str
    watermark: int
    events: int
    equal: bool
    differences: list[str] = field(default_factory=list)
    stores: dict[str, dict[str, Any]] = field(default_factory=dict)


def verify_group(
    context: Context, workspace: str, group: Group, progress: Callable[[int, int], None] = lambda done, total: None
) -> Verdict:
    """Recover the live stores, fold the log afresh to the same watermark, compare. O(log); nothing is written."""
    live, watermark = _recovered(context, workspace, group)
    fresh = GroupStores(context, group, side="view")
    try:
        events = refold(context, workspace, group, fresh, upto=watermark, progress=progress)
        differences, stores = [], {}
        for key, store in live.stores.items():
            one, other = store.fingerprint(), fresh.stores[key].fingerprint()
            stores[key] = one
            if one != other:
                differences.append(f"{key}: live {one} differs from replay {other}")
        return Verdict(
            group=group.name,
            watermark=watermark,
            events=events,
            equal=not differences,
            differences=differences,
            stores=stores,
        )
    finally:
        live.close()
        fresh.close()


def _recovered(context: Context, workspace: str, group: Group) -> tuple[GroupStores, int]:
    """The live stores and their watermark; read again when a newer checkpoint replaces the one being read."""
    for attempt in range(5):
        before = context.ledger.group(workspace, group.name).checkpoint
        live = GroupStores(context, group, side="view")
        try:
            return live, recover(context, workspace, group, live)[1]
        except CorruptCheckpoint:
            live.close()
            if attempt == 4 or context.ledger.group(workspace, group.name).checkpoint == before:
                raise
        except BaseException:
            live.close()
            raise
    raise AssertionError("unreachable")


def refold(
    context: Context,
    workspace: str,
    group: Group,
    stores: GroupStores,
    *,
    upto: int,
    after: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:
    """Fold the log from the group's start (or ``after``) up to a position into fresh stores, honouring recorded skips
    and retries."""
    folds = fold_stores(group, stores)
    skipped = {r.key: context.ledger.skipped_seqs(workspace, r.instance.lineage) for r in group.runtimes}
    after, count = group.start_seq if after is None else after, 0
    limit = 2048
    while True:
        page = context.ledger.read(workspace, after, limit, upto=upto, types=sorted(group.handles))
        rows = [r for r in page.rows if r.effect == NORMAL]
        events = [context.registry.event_types.decode(r) for r in rows]
        prepared: dict[str, dict[int, Any]] = {}
        for runtime in group.runtimes:
            if runtime.prepares:
                mine = [e for e in events if e.type in runtime.handles and e.seq not in skipped[runtime.key]]
                kind = getattr(runtime.policy, "Prepared", None)
                values = prepare_inline(context, workspace, runtime, mine)
                prepared[runtime.key] = {
                    e.seq: v if isinstance(v, EventError) or kind is None else unpack(pack(v), kind | None)
                    for e, v in zip(mine, values, strict=True)
                }
        for event in events:
            only = set(context.ledger.skips_of(workspace, event.retry_of)) if event.retry_of is not None else None
            for runtime in group.runtimes:
                key = runtime.key
                if event.type not in runtime.handles or (only is not None and runtime.instance.lineage not in only):
                    continue
                view = folds[key]
                view.seq, view.now_us = event.seq, event.recorded_us
                live = tuple(stores.by_runtime[key].values())
                for store in live:
                    store.begin()
                if event.seq in skipped[key]:
                    runtime.policy.skipped(event, view)
                else:
                    runtime.policy.fold(event, prepared.get(key, {}).get(event.seq), view)
                for store in live:
                    store.keep()
            count += 1
        stores.drain()
        progress(page.rows[-1].seq if page.rows else upto, upto)
        if len(page.rows) < limit:
            return count
        after = page.rows[-1].seq
