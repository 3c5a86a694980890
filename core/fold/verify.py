"""Fold afresh and compare: the log, folded from the start, must give the live stores (invariant I2).

What was skipped may have been folded first (a label that waited, then ran out): the fold afresh leaves out what the
live stores had left out *as of the commit they are read at*, however much is skipped while it runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from streamfold.core.context import Context, Group
from streamfold.core.errors import CorruptCheckpoint
from streamfold.core.fold.delta import Delta, measured
from streamfold.core.fold.refold import refold
from streamfold.core.fold.stores import GroupStores, follow, recover
from streamfold.core.ledger.abc import GroupState

Skipped = Mapping[str, Collection[int]]
"""Positions that each member skipped, by its key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What ``verify`` found: per store whether both are equal; ``equal`` when all are.

    ``deltas``: by ``name@version``, how far a policy's live state is from that folded afresh.
    """

    group: str
    watermark: int
    events: int
    equal: bool
    differences: list[str] = field(default_factory=list)
    stores: dict[str, dict[str, Any]] = field(default_factory=dict)
    deltas: dict[str, Delta] = field(default_factory=dict)


def verify_group(
    context: Context, workspace: str, group: Group, progress: Callable[[int, int], None] = lambda done, total: None
) -> Verdict:
    """Recover the live stores, fold the log afresh to the same watermark, compare. O(log); nothing is written."""
    live, watermark, skipped = _recovered(context, workspace, group)
    fresh = GroupStores(context, group, side="both")
    try:
        events = refold(context, workspace, group, fresh, upto=watermark, skipped=skipped, progress=progress)
        differences, stores = [], {}
        for key, store in live.stores.items():
            one, other = store.fingerprint(), fresh.stores[key].fingerprint()
            stores[key] = one
            if one != other:
                differences.append(f"{key}: live {one} differs from replay {other}")
        deltas = {r.key: measured(live.by_runtime[r.key], fresh.by_runtime[r.key]) for r in group.runtimes}
        return Verdict(
            group=group.name,
            watermark=watermark,
            events=events,
            equal=not differences,
            differences=differences,
            stores=stores,
            deltas=deltas,
        )
    finally:
        live.close()
        fresh.close()


def _recovered(context: Context, workspace: str, group: Group) -> tuple[GroupStores, int, Skipped]:
    """The live stores, their watermark and what was skipped by then; read again when a newer checkpoint replaces the
    one being read."""
    for attempt in range(5):
        before = context.ledger.group(workspace, group.name).checkpoint
        live = GroupStores(context, group, side="view")
        try:
            return live, *_at_one_commit(context, workspace, group, live)
        except CorruptCheckpoint:
            live.close()
            if attempt == 4 or context.ledger.group(workspace, group.name).checkpoint == before:
                raise
        except BaseException:
            live.close()
            raise
    raise AssertionError("unreachable")


def _at_one_commit(context: Context, workspace: str, group: Group, live: GroupStores) -> tuple[int, Skipped]:
    """Fill the stores, then follow the feed until nothing was committed while the skips were read.

    A past event is refused in a commit, so the skips are those of the commit that the stores stand at.
    """
    ledger = context.ledger
    commit_no, watermark = recover(context, workspace, group, live)
    while True:
        skipped = {r.key: ledger.skipped_seqs(workspace, r.instance.lineage) for r in group.runtimes}
        state: GroupState = ledger.group(workspace, group.name)
        if state.commit_no == commit_no:
            return watermark, skipped
        commit_no, watermark = follow(context, workspace, group, live, commit_no, watermark)
        if commit_no < state.commit_no:
            raise CorruptCheckpoint(f"group {group.name}: a newer checkpoint took the place of commit {commit_no}")


def note_deltas(context: Context, workspace: str, verdict: Verdict, *, began_us: int) -> None:
    """Write how far each policy is from the log folded afresh into the reports of the erasures that were over when the
    verification began: of later ones the fold may have met the subject.

    Without the key at which it is farthest: that may name somebody who is erased later.
    """
    at = {"position": verdict.watermark, "at_us": context.clock.now_us()}
    shown = {name: json.dumps(_without_keys(delta) | at) for name, delta in verdict.deltas.items()}
    context.ledger.note_deltas(workspace, verdict.group, verdict.watermark, shown, over_by_us=began_us)


def _without_keys(delta: Delta) -> dict[str, Any]:
    return {name: value for name, value in asdict(delta).items() if name not in ("key", "examples")}
