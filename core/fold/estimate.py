"""What a backfill will cost, before it is begun: counted where the log is short, sampled where it is long."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from streamfold.core.context import Context, Group
from streamfold.core.fold.refold import refold
from streamfold.core.fold.stores import GroupStores
from streamfold.core.ledger.abc import Instance

_COUNTED = 20_000
"""Up to so many positions are counted; beyond, windows spread evenly over the log stand for all of it."""
_WINDOWS = 20
_SAMPLE_EVENTS = 100
_SAMPLE_SPAN = 5_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Events to fold, seconds until caught up (``None``: not known), bytes of state, and what they rest on."""

    events: int
    positions: int
    seconds: float | None
    events_per_s: float | None
    state_bytes: int | None
    sampled_events: int
    note: str = ""


def estimate(context: Context, workspace: str, rows: Sequence[Instance]) -> Estimate:
    """Fold a hundred of the newest events into stores of no consequence, and scale up.

    The backend results of the sample are kept, as the backfill will need them; nothing else is written. State is an
    upper bound: it takes every event to add as much as those of the sample did.
    """
    group = context.make_group(rows)
    head, start = context.ledger.head(workspace), group.start_seq
    events = _count(context, workspace, group, start, head) + context.history.count(workspace, group.handles, start)
    seconds_each, bytes_each, sampled, note = _sample(context, workspace, group, head)
    rate = rows[0].rate
    speeds = [speed for speed in (1 / seconds_each if seconds_each else None, rate or None) if speed]
    speed = min(speeds, default=None)
    return Estimate(
        events=events,
        positions=head - start,
        seconds=0.0 if not events else round(events / speed, 3) if speed else None,
        events_per_s=None if speed is None else round(speed, 1),
        state_bytes=None if bytes_each is None else round(bytes_each * events),
        sampled_events=sampled,
        note=note,
    )


def _count(context: Context, workspace: str, group: Group, start: int, head: int) -> int:
    span = head - start
    if span <= _COUNTED:
        windows = [(start, head)]
    else:
        width, step = _COUNTED // _WINDOWS, span // _WINDOWS
        windows = [(start + i * step, start + i * step + width) for i in range(_WINDOWS)]
    counted = sum(upto - after for after, upto in windows)
    found = 0
    for after, upto in windows:
        types = context.ledger.count_types(workspace, after, upto)
        found += sum(count for type_, count in types.items() if type_ in group.handles)
    return round(found * span / counted) if counted else 0


def _sample(context: Context, workspace: str, group: Group, head: int) -> tuple[float | None, float | None, int, str]:
    """Seconds and bytes per event, of how many events, and why they are not known if so."""
    after = max(group.start_seq, head - _SAMPLE_SPAN)
    rows = context.ledger.read(workspace, after, _SAMPLE_EVENTS, types=sorted(group.handles)).rows
    if not rows:
        return None, None, 0, "no recent event that it handles: speed and size are not known"
    stores = GroupStores(context, group, side="view")
    try:
        started = time.perf_counter()
        count = refold(context, workspace, group, stores, after=after, upto=rows[-1].seq)
        took_s = time.perf_counter() - started
        return took_s / count, stores.state_bytes() / count, count, ""
    except Exception as error:  # a policy on trial may raise anything; the backfill will halt and say where
        return None, None, 0, f"the sample could not be folded: {error!r}"[:500]
    finally:
        stores.close()
