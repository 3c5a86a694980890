"""Fold afresh and compare: the log, folded from the start, must give the live stores (invariant I2)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from streamfold.core.context import Context, Group
from streamfold.core.errors import CorruptCheckpoint
from streamfold.core.fold.refold import refold
from streamfold.core.fold.stores import GroupStores, recover


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
    while True:
        before = _skipped(context, workspace, group)
        found = _compared(context, workspace, group, progress)
        if found.equal or before == _skipped(context, workspace, group):
            return found  # otherwise an event before the watermark may have been refused past it, meanwhile


def _skipped(context: Context, workspace: str, group: Group) -> list[set[int]]:
    return [context.ledger.skipped_seqs(workspace, runtime.instance.lineage) for runtime in group.runtimes]


def _compared(context: Context, workspace: str, group: Group, progress: Callable[[int, int], None]) -> Verdict:
    live, watermark = _recovered(context, workspace, group)
    fresh = GroupStores(context, group, side="both")
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
