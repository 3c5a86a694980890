"""The ledger's contract, second part: instances, leases, commits, feed, prepare, results, dead letters."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from streamfold.core.errors import Fenced, LedgerError
from streamfold.core.ledger.abc import DeadLetter, Lease, Ledger
from streamfold.core.testing.ledger_contract import (
    TTL_US,
    WORKSPACE,
    make_event,
    make_events,
    make_instance,
    make_lease,
)


def commit(ledger: Ledger, lease: Lease, watermark: int, changes: bytes | None = b"x") -> Lease:
    return ledger.commit(WORKSPACE, lease, watermark=watermark, changes=changes, now_us=1, ttl_us=TTL_US)


def acquire(ledger: Ledger, owner: str, now_us: int) -> Lease | None:
    return ledger.acquire(WORKSPACE, "memory", owner, now_us=now_us, ttl_us=TTL_US)


def numbers(ledger: Ledger, cuts: dict[str, int], limit_bytes: int = 8_000_000) -> list[tuple[str, int]]:
    return [(c.group, c.commit_no) for c in ledger.feed(WORKSPACE, cuts, limit_bytes=limit_bytes)]


def test_instances_are_pinned_once_and_bring_their_group(ledger: Ledger) -> None:
    one = ledger.add_instance(WORKSPACE, make_instance("m", start_seq=5))
    assert one == replace(make_instance("m", start_seq=5), instance_id=one.instance_id)
    assert ledger.add_instance(WORKSPACE, replace(make_instance("m", start_seq=5), code_hash="new")) == one
    two = ledger.add_instance(WORKSPACE, replace(make_instance("m", start_seq=5, group="m2"), version=2, slot="shadow"))
    assert two.instance_id != one.instance_id
    assert ledger.instances(WORKSPACE) == [one, two]
    state = ledger.group(WORKSPACE, "m")
    assert (state.epoch, state.watermark, state.commit_no, state.owner, state.checkpoint) == (0, 5, 0, None, None)
    ledger.set_slot(WORKSPACE, "m2", "live")
    assert [i.slot for i in ledger.instances(WORKSPACE)] == ["live", "live"]
    ledger.set_halted(WORKSPACE, "m", "broken")
    ledger.set_paused(WORKSPACE, "m", True)
    assert [(g.halted, g.paused) for g in ledger.groups(WORKSPACE)] == [("broken", True), (None, False)]
    with pytest.raises(LedgerError, match="none"):
        ledger.group(WORKSPACE, "none")
    with pytest.raises(LedgerError, match="none"):
        ledger.set_paused(WORKSPACE, "none", True)


def test_a_lease_is_taken_kept_expired_and_released(ledger: Ledger) -> None:
    first = make_lease(ledger, owner="a")
    assert first == Lease("memory", "a", 1, 0, 0)
    assert acquire(ledger, "b", TTL_US - 1) is None
    assert acquire(ledger, "a", 5) == first
    assert ledger.renew(WORKSPACE, [first], now_us=TTL_US, ttl_us=TTL_US) == [first]
    assert acquire(ledger, "b", 2 * TTL_US - 1) is None
    second = acquire(ledger, "b", 2 * TTL_US)
    assert second is not None
    assert second.epoch == 2
    assert ledger.renew(WORKSPACE, [first, second], now_us=2 * TTL_US, ttl_us=TTL_US) == [second]
    ledger.release(WORKSPACE, first)  # a stale release frees nothing
    assert acquire(ledger, "c", 2 * TTL_US) is None
    ledger.release(WORKSPACE, second)
    third = acquire(ledger, "c", 2 * TTL_US)
    assert third is not None
    assert third.epoch == 3
    own = acquire(ledger, "c", 9 * TTL_US)
    assert own is not None
    assert own.epoch == 4, "an own lease that expired may have been another's in between"
    assert ledger.acquire(WORKSPACE, "none", "a", now_us=0, ttl_us=1) is None
    assert ledger.renew(WORKSPACE, [], now_us=0, ttl_us=1) == []


def test_one_of_many_gets_a_free_lease(ledger: Ledger) -> None:
    ledger.add_instance(WORKSPACE, make_instance())
    with ThreadPoolExecutor(8) as pool:
        leases = list(pool.map(lambda i: acquire(ledger, f"o{i}", 0), range(8)))
    assert sum(lease is not None for lease in leases) == 1


def test_a_commit_moves_watermark_and_number_and_extends_the_lease(ledger: Ledger) -> None:
    lease = make_lease(ledger)
    after = ledger.commit(
        WORKSPACE, lease, watermark=3, changes=b"abc", state_bytes=77, now_us=TTL_US - 1, ttl_us=TTL_US
    )
    assert after == replace(lease, watermark=3, commit_no=1)
    moved = commit(ledger, after, 9, None)
    assert moved == replace(after, watermark=9)
    assert ledger.watermarks(WORKSPACE) == {"memory": (9, 1)}
    (only,) = ledger.feed(WORKSPACE, {"memory": 0})
    assert (only.commit_no, only.watermark, only.changes, only.at_us) == (1, 3, b"abc", TTL_US - 1)
    state = ledger.group(WORKSPACE, "memory")
    assert (state.state_bytes, state.feed_bytes) == (0, 3)


def test_stale_commits_are_fenced_and_write_nothing(ledger: Ledger) -> None:
    lease = make_lease(ledger)
    after = commit(ledger, lease, 3)
    letter = DeadLetter(stage="fold", code="bad", detail="?", policy="memory@1", position=2)
    with pytest.raises(Fenced):
        commit(ledger, lease, 4)
    with pytest.raises(Fenced):
        commit(ledger, lease, 4, None)
    taken = acquire(ledger, "b", 9 * TTL_US)
    assert taken is not None
    with pytest.raises(Fenced):
        ledger.commit(WORKSPACE, after, watermark=4, changes=b"", dead=[letter], now_us=1, ttl_us=1)
    assert numbers(ledger, {"memory": 0}) == [("memory", 1)]
    assert ledger.dead_letter_count(WORKSPACE) == 0
    assert commit(ledger, taken, 4).commit_no == 2


def test_of_two_commits_from_one_position_one_wins(ledger: Ledger) -> None:
    lease = make_lease(ledger)

    def attempt(i: int) -> bool:
        try:
            commit(ledger, lease, 5, bytes([i]))
        except Fenced:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(attempt, range(6))) == 1
    assert numbers(ledger, {"memory": 0}) == [("memory", 1)]


def test_the_feed_of_several_groups_is_bounded_in_bytes(ledger: Ledger) -> None:
    a, b = make_lease(ledger, "a"), make_lease(ledger, "b")
    for i in range(1, 4):
        a = commit(ledger, a, i, b"x" * 100)
        b = commit(ledger, b, i, b"y" * 100)
    everything = [("a", 1), ("a", 2), ("a", 3), ("b", 1), ("b", 2), ("b", 3)]
    assert numbers(ledger, {"a": 0, "b": 0}) == everything
    assert numbers(ledger, {"b": 2}) == [("b", 3)]
    assert numbers(ledger, {"a": 3, "b": 3}) == []
    assert numbers(ledger, {"a": 0, "b": 0}, 1) == [("a", 1)]
    assert numbers(ledger, {"a": 0, "b": 0}, 350) == everything[:4]
    assert numbers(ledger, {"unknown": 0}) == []
    assert numbers(ledger, {}) == []


def test_a_checkpoint_drops_the_feed_that_it_covers(ledger: Ledger) -> None:
    lease = make_lease(ledger)
    for i in range(1, 4):
        lease = commit(ledger, lease, i * 10, b"1234")
    ledger.set_checkpoint(WORKSPACE, lease, name="memory/2", commit_no=2, watermark=20)
    assert numbers(ledger, {"memory": 0}) == [("memory", 3)]
    state = ledger.group(WORKSPACE, "memory")
    assert (state.checkpoint, state.checkpoint_commit, state.checkpoint_watermark) == ("memory/2", 2, 20)
    assert state.feed_bytes == 4
    with pytest.raises(Fenced):
        ledger.set_checkpoint(WORKSPACE, lease, name="memory/1", commit_no=1, watermark=10)
    assert acquire(ledger, "b", 9 * TTL_US) is not None
    with pytest.raises(Fenced):
        ledger.set_checkpoint(WORKSPACE, lease, name="memory/3", commit_no=3, watermark=30)
    assert ledger.group(WORKSPACE, "memory").checkpoint == "memory/2"


def test_a_reset_group_starts_afresh_and_fences_its_writer(ledger: Ledger) -> None:
    lease = commit(ledger, make_lease(ledger), 8)
    ledger.set_checkpoint(WORKSPACE, lease, name="memory/1", commit_no=1, watermark=8)
    lease = commit(ledger, lease, 9)
    ledger.reset_group(WORKSPACE, "memory", watermark=0)
    with pytest.raises(Fenced):
        commit(ledger, lease, 10)
    state = ledger.group(WORKSPACE, "memory")
    assert (state.watermark, state.checkpoint, state.checkpoint_commit, state.feed_bytes) == (0, None, 3, 0)
    assert numbers(ledger, {"memory": 0}) == []
    fresh = acquire(ledger, "b", 0)
    assert fresh is not None
    assert commit(ledger, fresh, 1).commit_no == 4  # 3 is left out: a view at 2 meets the gap and loads afresh
    assert numbers(ledger, {"memory": 3}) == [("memory", 4)]
    with pytest.raises(LedgerError):
        ledger.reset_group(WORKSPACE, "none", watermark=0)


def claim(ledger: Ledger, *, owner: str = "a", now_us: int = 0, limit: int = 10, after: int = 0) -> list[int]:
    claims = ledger.prepare_claim(
        WORKSPACE, 1, after=after, types=["rating.given"], owner=owner, now_us=now_us, ttl_us=TTL_US, limit=limit
    )
    return [claim.row.seq for claim in claims]


def test_prepare_is_claimed_once_until_it_expires_is_saved_or_fails(ledger: Ledger) -> None:
    batch = [*make_events("a", "b", "c"), make_event("d", type="other.seen"), make_event("e")]
    ledger.append(WORKSPACE, batch, recorded_us=1)
    assert claim(ledger, limit=2) == [1, 2]
    assert claim(ledger, owner="b") == [3, 5]
    assert claim(ledger) == []
    assert claim(ledger, now_us=TTL_US, limit=1) == [1]
    ledger.prepare_save(WORKSPACE, 1, {1: b"one", 3: b"three"})
    ledger.prepare_save(WORKSPACE, 1, {1: b"late"})
    ledger.prepare_fail(WORKSPACE, 1, 2, code="bad", detail="first", final=False)
    (again,) = ledger.prepare_claim(
        WORKSPACE, 1, after=1, types=["rating.given"], owner="a", now_us=1, ttl_us=TTL_US, limit=9
    )
    assert (again.row.seq, again.attempts) == (2, 1)
    ledger.prepare_fail(WORKSPACE, 1, 2, code="bad", detail="last", final=True)
    ledger.prepare_save(WORKSPACE, 1, {2: b"late"})
    assert claim(ledger, now_us=9 * TTL_US) == [5]
    assert ledger.prepare_load(WORKSPACE, 1, [1, 2, 3, 5]) == ({1: b"one", 3: b"three"}, {2: ("bad", "last")})
    assert ledger.prepare_load(WORKSPACE, 1, []) == ({}, {})
    ledger.prepare_drop(WORKSPACE, 1, 2)
    assert ledger.prepare_load(WORKSPACE, 1, [1, 2, 3]) == ({3: b"three"}, {})
    assert claim(ledger, after=5) == []


def test_concurrent_claimers_share_the_work_without_overlap(ledger: Ledger) -> None:
    ledger.append(WORKSPACE, make_events(*range(40)), recorded_us=1)
    with ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(lambda i: claim(ledger, owner=f"o{i}", limit=5), range(8)))
    assert sorted(seq for part in claimed for seq in part) == list(range(1, 41))


def test_the_first_result_of_a_backend_wins(ledger: Ledger) -> None:
    one, two = bytes(16), b"\x01" * 16
    ledger.results_put(WORKSPACE, "encoder", {one: b"first"})
    ledger.results_put(WORKSPACE, "encoder", {two: b"other", one: b"second"})
    assert ledger.results_get(WORKSPACE, "encoder", [one, two, b"\x02" * 16]) == {one: b"first", two: b"other"}
    assert ledger.results_get(WORKSPACE, "chunker", [one]) == {}
    assert ledger.results_get(WORKSPACE, "encoder", []) == {}


def test_dead_letters_are_paged_filtered_and_dropped(ledger: Ledger) -> None:
    decode = DeadLetter(
        stage="decode",
        code="malformed",
        detail="not \x00 JSON \ud800",
        source="kafka",
        offset="t/0/7",
        headers={"h": "v\u00e9"},
        payload=b"\x00\xff",
        at_us=4,
    )
    ledger.append(WORKSPACE, [], recorded_us=4, dead=[decode, replace(decode, code="too-large")])
    skip = DeadLetter(stage="fold", code="bad", detail="d", policy="memory@1", position=2, event_id="a")
    ledger.commit(WORKSPACE, make_lease(ledger), watermark=2, changes=None, dead=[skip], now_us=1, ttl_us=TTL_US)
    first, second, third = ledger.dead_letters(WORKSPACE)
    ids = [letter.dead_letter_id for letter in (first, second, third)]
    assert ids == sorted(set(ids))
    assert replace(first, dead_letter_id=0, detail="") == replace(decode, detail="")
    assert ledger.dead_letters(WORKSPACE, after=ids[0], limit=1) == [second]
    assert ledger.dead_letters(WORKSPACE, policy="memory@1") == [third]
    assert ledger.dead_letters(WORKSPACE, stage="decode", code="too-large") == [second]
    assert ledger.dead_letter(WORKSPACE, ids[2]) == third
    assert ledger.dead_letter_count(WORKSPACE) == 3
    assert ledger.drop_dead_letter(WORKSPACE, ids[2])
    assert not ledger.drop_dead_letter(WORKSPACE, ids[2])
    assert ledger.dead_letter(WORKSPACE, ids[2]) is None
    ledger.append(WORKSPACE, [], recorded_us=4, dead=[decode])
    assert ledger.dead_letters(WORKSPACE)[-1].dead_letter_id > ids[2], "an id is never given again"


def test_skips_outlive_their_dead_letters(ledger: Ledger) -> None:
    lease = make_lease(ledger)
    for watermark, policy in ((3, "memory@1"), (5, "memory@2")):
        skip = DeadLetter(stage="fold", code="bad", detail="d", policy=policy, position=3)
        lease = ledger.commit(WORKSPACE, lease, watermark=watermark, changes=b"", dead=[skip], now_us=1, ttl_us=TTL_US)
    for letter in ledger.dead_letters(WORKSPACE):
        ledger.drop_dead_letter(WORKSPACE, letter.dead_letter_id)
    assert ledger.skips_of(WORKSPACE, 3) == ["memory@1", "memory@2"]
    assert ledger.skips_of(WORKSPACE, 4) == []
    assert ledger.skipped_seqs(WORKSPACE, "memory@2") == {3}
    assert ledger.group(WORKSPACE, "memory").skips == 2


def test_an_audit_entry_is_kept(ledger: Ledger) -> None:
    ledger.audit(WORKSPACE, actor="me", action="erase", target="user/1", reason="asked", at_us=1)
    ledger.audit(WORKSPACE, actor="me", action="erase", target="user/2", reason="asked", at_us=2)
