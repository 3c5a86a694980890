"""What a backfill will cost, before it is begun: counted where the log is short, sampled where it is long."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from streamfold.core.context import Context, Group, backend_identities
from streamfold.core.fold.extract import passage_hash
from streamfold.core.fold.refold import refold
from streamfold.core.fold.stores import GroupStores
from streamfold.core.fold.tools import InstanceTools, backend_name
from streamfold.core.ledger.abc import NORMAL, Instance

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
    llm_calls: int = 0
    """Of the extractor, about documents that it was not asked about before."""
    llm_tokens_in: int = 0
    llm_tokens_out: int = 0
    llm_usd: float = 0.0


def estimate(context: Context, workspace: str, rows: Sequence[Instance]) -> Estimate:
    """Fold a hundred of the newest events into stores of no consequence, and scale up.

    The backend results of the sample are kept, as the backfill will need them; nothing else is written. State is an
    upper bound: it takes every event to add as much as those of the sample's second half did. What the first half
    brings about (arrays of a fixed size) is there once.
    """
    group = context.make_group(rows)
    head, start = context.ledger.head(workspace), group.start_seq
    events = _count(context, workspace, group, start, head) + context.history.count(workspace, group.handles, start)
    seconds_each, size, sampled, note = _sample(context, workspace, group, head)
    rate = rows[0].rate
    speeds = [speed for speed in (1 / seconds_each if seconds_each else None, rate or None) if speed]
    speed = min(speeds, default=None)
    return Estimate(
        events=events,
        positions=head - start,
        seconds=0.0 if not events else round(events / speed, 3) if speed else None,
        events_per_s=None if speed is None else round(speed, 1),
        state_bytes=None if size is None else round(size.bytes + size.each * max(0, events - sampled)),
        sampled_events=sampled,
        note=note,
        **_asking(context, workspace, group, head),
    )


def seconds_per_event(context: Context, workspace: str, group: Group) -> float | None:
    """Time the fold of a hundred of the newest events, twice: the first time warms up. ``None``: there are none."""
    head = context.ledger.head(workspace)
    return min((s for s, *_ in (_sample(context, workspace, group, head) for _ in range(2)) if s), default=None)


def _asking(context: Context, workspace: str, group: Group, head: int) -> dict[str, Any]:
    """What the extractor will be asked: counted on documents spread over the log, and scaled up."""
    sums, count = [0, 0, 0], 0
    runtime = next((r for r in group.runtimes if "extractor" in backend_identities(r.instance)), None)
    if runtime is None:
        return {}
    identity = backend_identities(runtime.instance)["extractor"]
    extractor = context.registry.make_backend("extractor", identity)
    total = context.ledger.count_types(workspace, group.start_seq, head).get("document.upserted", 0)
    if not extractor.asks or not total:
        return {}
    tools = InstanceTools(context, workspace, runtime, keep=False)
    step = max(1, (head - group.start_seq) // _WINDOWS)
    for after in range(group.start_seq, head, step):
        rows = context.ledger.read(workspace, after, 5, upto=min(head, after + step), types=("document.upserted",)).rows
        for event in map(context.registry.event_types.decode, rows):
            count += 1
            passages = {passage_hash(one): one for one in runtime.policy.passages(event, tools)}
            kept = context.ledger.results_get(workspace, backend_name("extractor", identity), list(passages))
            for hash_, passage in passages.items():
                if hash_ not in kept:
                    calls, usage = extractor.estimate(passage)
                    sums = [a + b for a, b in zip(sums, (calls, usage.tokens_in, usage.tokens_out), strict=True)]
    calls, tokens_in, tokens_out = (round(n * total / count) if count else 0 for n in sums)
    price = extractor.budget
    cost = tokens_in * price.usd_per_million_in + tokens_out * price.usd_per_million_out
    return {
        "llm_calls": calls, "llm_tokens_in": tokens_in, "llm_tokens_out": tokens_out, "llm_usd": round(cost / 1e6, 4),
    }  # fmt: skip


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


class _Size(NamedTuple):
    """Bytes after the sample, and how many more each event adds."""

    bytes: int
    each: float


def _sample(context: Context, workspace: str, group: Group, head: int) -> tuple[float | None, _Size | None, int, str]:
    """Seconds per event and the size of the state, of how many events, and why they are not known if so."""
    after = max(group.start_seq, head - _SAMPLE_SPAN)
    read = context.ledger.read(workspace, after, _SAMPLE_EVENTS, types=sorted(group.handles)).rows
    rows = [row for row in read if row.effect == NORMAL]  # what was erased or superseded is not folded
    if not rows:
        return None, None, 0, "no recent event that it handles: speed and size are not known"
    stores = GroupStores(context, group, side="both")
    try:
        middle = rows[len(rows) // 2 - 1].seq if len(rows) > 1 else after
        started = time.perf_counter()
        first = refold(context, workspace, group, stores, after=after, upto=middle) if middle > after else 0
        half_s, half_bytes = time.perf_counter() - started, stores.state_bytes()
        started = time.perf_counter()
        rest = refold(context, workspace, group, stores, after=middle, upto=rows[-1].seq)
        count, took_s, size = first + rest, half_s + time.perf_counter() - started, stores.state_bytes()
        return took_s / count, _Size(size, max(0, size - half_bytes) / max(1, rest)), count, ""
    except Exception as error:  # a policy on trial may raise anything; the backfill will halt and say where
        return None, None, 0, f"the sample could not be folded: {error!r}"[:500]
    finally:
        stores.close()
