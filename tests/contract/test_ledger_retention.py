"""Departures, the archive's lease and old ids: what a ledger promises about what leaves its log."""

from __future__ import annotations

import pytest

from streamfold.core.errors import Fenced
from streamfold.core.ledger.abc import SUPERSEDED, Departure, Ledger, Reason
from streamfold.core.testing.ledger_contract import TTL_US, WORKSPACE, make_event, make_events, make_lease


def departure(first: int, last: int, *, name: str = "f.parquet", reason: Reason = "expired") -> Departure:
    return Departure(
        name=name, reason=reason, first=first, last=last, events=last - first + 1, types={"rating.given": (1, last)}
    )


def take(ledger: Ledger, owner: str = "a", now_us: int = 0) -> int:
    epoch = ledger.archive_lease(WORKSPACE, owner, now_us=now_us, ttl_us=TTL_US)
    assert epoch is not None
    return epoch


def leave(ledger: Ledger, epoch: int, one: Departure, *, seqs: tuple[int, ...] = ()) -> bool:
    seen = ledger.erasures_seen(WORKSPACE)
    assert seen is not None
    return ledger.depart(WORKSPACE, epoch, one, erasures=seen, seqs=seqs, now_us=0, ttl_us=TTL_US)


def seqs_of(ledger: Ledger) -> list[int]:
    return [row.seq for row in ledger.read(WORKSPACE, 0, 1000).rows]


def folded(ledger: Ledger, watermark: int) -> None:
    """A group that has folded up to a position without a change, so that it needs no checkpoint."""
    lease = make_lease(ledger)
    ledger.commit(WORKSPACE, lease, watermark=watermark, changes=None, now_us=0, ttl_us=TTL_US)


def test_a_departure_is_recorded_before_its_rows_are_deleted_in_batches(ledger: Ledger) -> None:
    ledger.append(WORKSPACE, make_events(*range(6)), recorded_us=1)
    folded(ledger, 6)
    size = ledger.log_bytes(WORKSPACE)
    epoch = take(ledger)
    assert leave(ledger, epoch, departure(1, 4))
    assert seqs_of(ledger) == [1, 2, 3, 4, 5, 6]
    assert ledger.read(WORKSPACE, 0, 10).left_upto == ledger.left_upto(WORKSPACE) == 4
    [found] = ledger.departures(WORKSPACE)
    assert (found.first, found.last, found.cleared, found.types) == (1, 4, False, {"rating.given": (1, 4)})
    ledger.clear(WORKSPACE, epoch, found.number, [1, 2], last=False, now_us=0, ttl_us=TTL_US)
    assert (seqs_of(ledger), ledger.departures(WORKSPACE)[0].cleared) == ([3, 4, 5, 6], False)
    ledger.clear(WORKSPACE, epoch, found.number, [2, 3, 4], last=True, now_us=0, ttl_us=TTL_US)
    assert (seqs_of(ledger), ledger.departures(WORKSPACE)[0].cleared) == ([5, 6], True)
    assert ledger.log_bytes(WORKSPACE) == size * 2 // 6
    assert ledger.append(WORKSPACE, make_events(1, 7), recorded_us=2).outcomes == ["duplicate", "accepted"]


def test_nothing_leaves_that_a_group_has_not_folded(ledger: Ledger) -> None:
    ledger.append(WORKSPACE, make_events(*range(6)), recorded_us=1)
    folded(ledger, 3)
    epoch = take(ledger)
    assert not leave(ledger, epoch, departure(1, 4))
    assert (ledger.departures(WORKSPACE), ledger.left_upto(WORKSPACE)) == ([], 0)
    assert leave(ledger, epoch, departure(1, 3))


def test_a_group_needs_the_log_up_to_its_checkpoint_unless_nothing_changed_since(ledger: Ledger) -> None:
    ledger.append(WORKSPACE, make_events(*range(9)), recorded_us=1)
    lease = make_lease(ledger)
    lease = ledger.commit(WORKSPACE, lease, watermark=4, changes=b"c", now_us=0, ttl_us=TTL_US)
    assert [(f.position, f.watermark) for f in ledger.floors(WORKSPACE)] == [(0, 4)]
    ledger.set_checkpoint(WORKSPACE, lease, name="k", commit_no=1, watermark=4)
    lease = ledger.commit(WORKSPACE, lease, watermark=7, changes=None, now_us=0, ttl_us=TTL_US)
    assert [(f.position, f.watermark) for f in ledger.floors(WORKSPACE)] == [(7, 7)]
    ledger.commit(WORKSPACE, lease, watermark=9, changes=b"d", now_us=0, ttl_us=TTL_US)
    assert [(f.position, f.watermark) for f in ledger.floors(WORKSPACE)] == [(4, 9)]
    ledger.set_slot(WORKSPACE, "memory", "retired")
    assert ledger.floors(WORKSPACE) == []


def test_a_group_that_is_set_back_keeps_what_has_not_left(ledger: Ledger) -> None:
    ledger.append(WORKSPACE, make_events(*range(6)), recorded_us=1)
    folded(ledger, 6)
    epoch = take(ledger)
    assert leave(ledger, epoch, departure(1, 2))
    ledger.reset_group(WORKSPACE, "memory", watermark=0)
    assert not leave(ledger, epoch, departure(3, 4))


def test_whoever_takes_the_archive_over_fences_the_one_before(ledger: Ledger) -> None:
    ledger.append(WORKSPACE, make_events(*range(4)), recorded_us=1)
    folded(ledger, 4)
    first = take(ledger)
    assert ledger.archive_lease(WORKSPACE, "b", now_us=0, ttl_us=TTL_US) is None
    second = take(ledger, "b", now_us=TTL_US + 1)
    assert second > first
    with pytest.raises(Fenced):
        leave(ledger, first, departure(1, 2))
    with pytest.raises(Fenced):
        ledger.archive_renew(WORKSPACE, first, now_us=0, ttl_us=1)
    ledger.archive_release(WORKSPACE, first)  # of no effect
    assert leave(ledger, second, departure(1, 2))
    [found] = ledger.departures(WORKSPACE)
    with pytest.raises(Fenced):
        ledger.clear(WORKSPACE, first, found.number, [1], last=False, now_us=0, ttl_us=1)
    assert seqs_of(ledger) == [1, 2, 3, 4]
    ledger.archive_release(WORKSPACE, second)
    assert take(ledger, "c", now_us=TTL_US + 1) == second + 1


def test_what_leaves_for_good_is_one_line_for_each_reason(ledger: Ledger) -> None:
    ledger.append(WORKSPACE, make_events(*range(8)), recorded_us=1)
    folded(ledger, 8)
    epoch = take(ledger)
    assert leave(ledger, epoch, departure(1, 2, name=""), seqs=(1, 2))
    assert leave(ledger, epoch, departure(4, 5, name=""), seqs=(4, 5))
    assert leave(ledger, epoch, departure(3, 3, name="", reason="compacted"), seqs=(3,))
    assert seqs_of(ledger) == [6, 7, 8]
    found = [(d.reason, d.first, d.last, d.events, d.types, d.cleared) for d in ledger.departures(WORKSPACE)]
    assert found == [
        ("expired", 1, 5, 4, {"rating.given": (2, 5)}, True),
        ("compacted", 3, 3, 1, {"rating.given": (1, 3)}, True),
    ]


def test_ids_are_forgotten_past_the_window_but_those_of_erased_events_stay(ledger: Ledger) -> None:
    ledger.append(WORKSPACE, make_events("old", "gone", "older"), recorded_us=100)
    ledger.append(WORKSPACE, make_events("new"), recorded_us=200)
    erase_digest(ledger, "gone")
    assert ledger.old_dedup(WORKSPACE, 200) == 2
    after, forgotten = b"", 0
    while True:
        after, count = ledger.prune_dedup(WORKSPACE, 200, after, 2)
        forgotten += count
        if not after:
            break
    assert (forgotten, ledger.old_dedup(WORKSPACE, 200)) == (2, 0)
    again = ledger.append(WORKSPACE, make_events("old", "gone", "new", "older"), recorded_us=300)
    assert again.outcomes == ["accepted", "erased", "duplicate", "accepted"]


def erase_digest(ledger: Ledger, id_: str) -> None:
    ledger._write(  # type: ignore[attr-defined]  # an erasure's last step, without the others
        lambda tx: tx.run("update dedup set digest = ? where dedup = ?", (b"", make_event(id_).dedup))
    )


def test_the_newest_event_before_a_time_is_found_among_holes(ledger: Ledger) -> None:
    for time in (10, 20, 30, 40, 50):
        ledger.append(WORKSPACE, make_events(f"{time}-a", f"{time}-b"), recorded_us=time)
    assert [ledger.seq_before(WORKSPACE, t) for t in (5, 10, 11, 30, 31, 99)] == [0, 0, 2, 4, 6, 10]
    folded(ledger, 10)
    epoch = take(ledger)
    assert leave(ledger, epoch, departure(1, 5, name=""), seqs=(1, 2, 3, 4, 5))
    assert [ledger.seq_before(WORKSPACE, t) for t in (30, 31, 41, 99)] == [0, 6, 8, 10]


def test_keys_are_rows_without_their_content(ledger: Ledger) -> None:
    ledger.append(WORKSPACE, [make_event("a", subject="u1", sequence=2)], recorded_us=7)
    ledger.append(WORKSPACE, [make_event("b", subject="u1", sequence=1)], recorded_us=8)
    keys = ledger.keys(WORKSPACE, 0, 9, 10)
    assert [(k.seq, k.recorded_us, k.subject.id, k.effect == SUPERSEDED) for k in keys] == [
        (1, 7, "u1", False),
        (2, 8, "u1", True),
    ]
    assert [k.seq for k in ledger.keys(WORKSPACE, 1, 9, 10)] == [2]


def test_retention_is_due_when_asked_for_or_when_its_time_has_come(ledger: Ledger) -> None:
    assert ledger.retention_due(100, 50) == [WORKSPACE]
    epoch = take(ledger)
    ledger.end_retention(WORKSPACE, epoch, at_us=100, compacted_upto=3, report="{}")
    assert ledger.retention_due(120, 50) == []
    assert ledger.retention_due(150, 50) == [WORKSPACE]
    assert ledger.ask_retention(WORKSPACE, actor="me", at_us=90) == 101, "after the last run, whatever the clocks say"
    assert ledger.ask_retention(WORKSPACE, actor="me", at_us=120) == 120
    assert ledger.retention_due(120, 50) == [WORKSPACE]
    state = ledger.retention(WORKSPACE)
    assert (state.asked_us, state.ran_us, state.compacted_upto, state.report) == (120, 100, 3, "{}")
    assert [entry.action for entry in ledger.audits(WORKSPACE)] == ["retention"] * 2
    with pytest.raises(Fenced):
        ledger.end_retention(WORKSPACE, epoch - 1, at_us=1, compacted_upto=0, report="")


def test_events_that_left_can_be_claimed_for_prepare(ledger: Ledger) -> None:
    ledger.append(WORKSPACE, make_events(*range(4)), recorded_us=1)
    rows = ledger.read(WORKSPACE, 0, 10).rows

    def claim(owner: str, now_us: int, limit: int = 2) -> list[int]:
        claims = ledger.prepare_take(WORKSPACE, 1, rows, owner=owner, now_us=now_us, ttl_us=100, limit=limit)
        return [one.row.seq for one in claims]

    assert claim("a", 0) == [1, 2]
    assert claim("b", 50) == [3, 4]
    ledger.prepare_save(WORKSPACE, 1, {1: b"v"})
    assert claim("c", 100) == [2]
    assert claim("c", 100) == []
