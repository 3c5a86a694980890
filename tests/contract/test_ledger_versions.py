"""The ledger's contract, third part: slots, promotions, rebuilds, retirements, skips by hand, the audit trail."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from streamfold.core.errors import Fenced, NotCaughtUp, VersionConflict
from streamfold.core.events.model import Subject
from streamfold.core.ledger.abc import AuditEntry, DeadLetter, ErasedGroup, Instance, Lease, Ledger
from streamfold.core.testing.ledger_contract import TTL_US, WORKSPACE, make_event, make_events, make_instance


def entry(action: str = "promote", at_us: int = 1) -> AuditEntry:
    return AuditEntry(actor="me", action=action, target="t", reason="why", at_us=at_us)


def member(version: int = 1, *, name: str = "memory", slot: str = "live", group: str = "") -> Instance:
    made = make_instance(name, group=group or f"{name}@{version}-c")
    return replace(made, version=version, slot=slot)  # type: ignore[arg-type]  # one of the slots


def add(ledger: Ledger, version: int = 1, *, slot: str = "live", at: int = 0) -> Lease:
    """Pin a version with a group of its own, folded up to a position; return its lease."""
    [made] = ledger.add_group(WORKSPACE, [member(version, slot=slot)])
    return fold_to(ledger, made.group, at)


def fold_to(ledger: Ledger, group: str, at: int) -> Lease:
    lease = ledger.acquire(WORKSPACE, group, "a", now_us=0, ttl_us=TTL_US)
    assert lease is not None
    return ledger.commit(WORKSPACE, lease, watermark=at, changes=b"x", now_us=0, ttl_us=TTL_US)


def slots(ledger: Ledger) -> dict[str, str]:
    return {i.group: i.slot for i in ledger.instances(WORKSPACE)}


def test_a_group_is_added_whole_and_again_as_its_next_generation(ledger: Ledger) -> None:
    before = ledger.slots_revision(WORKSPACE)
    both = [member(name="a", group="a+b-1"), member(name="b", group="a+b-1")]
    made = ledger.add_group(WORKSPACE, both, replaces="old", audit=entry("add"))
    assert [(i.name, i.group, i.generation) for i in made] == [("a", "a+b-1", 0), ("b", "a+b-1", 0)]
    assert ledger.instances(WORKSPACE) == made
    assert ledger.group(WORKSPACE, "a+b-1").replaces == "old"
    assert ledger.slots_revision(WORKSPACE) > before
    assert ledger.add_group(WORKSPACE, both, unless_exists=True) == []
    again = ledger.add_group(WORKSPACE, [replace(m, start_seq=7) for m in both])
    assert {(i.group, i.generation, i.start_seq) for i in again} == {("a+b-1.1", 1, 7)}
    assert ledger.group(WORKSPACE, "a+b-1.1").watermark == 7
    assert len({i.instance_id for i in (*made, *again)}) == 4
    assert (again[0].key, again[0].label, again[0].lineage) == ("a@1", "1-c.1", "a@1-c")


def test_a_group_planned_on_slots_that_have_changed_is_refused(ledger: Ledger) -> None:
    planned = ledger.slots_revision(WORKSPACE)
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda n: _added_at(ledger, planned, n), range(6)))
    assert sum(made) == 1
    assert len(ledger.instances(WORKSPACE)) == 1
    assert len(ledger.audits(WORKSPACE)) == 1
    ledger.add_group(WORKSPACE, [member(9)], revision=ledger.slots_revision(WORKSPACE))


def _added_at(ledger: Ledger, revision: int, version: int) -> bool:
    try:
        ledger.add_group(WORKSPACE, [member(version)], revision=revision, audit=entry("add"))
    except VersionConflict:
        return False
    return True


def test_several_who_pin_the_same_group_make_it_once(ledger: Ledger) -> None:
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda _: ledger.add_group(WORKSPACE, [member()], unless_exists=True), range(6)))
    assert sum(len(rows) for rows in made) == 1
    assert len(ledger.instances(WORKSPACE)) == 1


def test_a_promotion_swaps_the_slots_at_one_position(ledger: Ledger) -> None:
    add(ledger, 1, at=10)
    add(ledger, 2, slot="shadow", at=12)
    revision = ledger.slots_revision(WORKSPACE)
    done = ledger.promote(WORKSPACE, "memory@2-c", retire_us=99, audit=entry(at_us=5))
    assert (done.group, done.position, done.demoted) == ("memory@2-c", 10, ["memory@1-c"])
    assert slots(ledger) == {"memory@1-c": "shadow", "memory@2-c": "live"}
    old, new = ledger.group(WORKSPACE, "memory@1-c"), ledger.group(WORKSPACE, "memory@2-c")
    assert (old.retire_us, new.retire_us, new.live_from) == (99, 0, 10)
    assert ledger.slots_revision(WORKSPACE) > revision
    assert [(a.action, a.at_us) for a in ledger.audits(WORKSPACE)] == [("promote", 5)]


def test_a_version_that_lags_is_not_promoted_and_nothing_changes(ledger: Ledger) -> None:
    add(ledger, 1, at=10)
    add(ledger, 2, slot="shadow", at=9)
    before = (slots(ledger), ledger.groups(WORKSPACE))
    with pytest.raises(NotCaughtUp) as refused:
        ledger.promote(WORKSPACE, "memory@2-c", retire_us=99, audit=entry())
    assert (refused.value.watermark, refused.value.position) == (9, 10)
    with pytest.raises(NotCaughtUp):
        ledger.promote(WORKSPACE, "memory@2-c", retire_us=99, at_least=11, audit=entry())
    for group in ("memory@1-c", "nobody"):
        with pytest.raises(VersionConflict):
            ledger.promote(WORKSPACE, group, retire_us=99, audit=entry())
    assert (slots(ledger), ledger.groups(WORKSPACE)) == before
    assert ledger.audits(WORKSPACE) == []


def test_a_rollback_is_a_promotion_of_what_was_demoted(ledger: Ledger) -> None:
    add(ledger, 1, at=10)
    add(ledger, 2, slot="shadow", at=10)
    ledger.promote(WORKSPACE, "memory@2-c", retire_us=99, audit=entry())
    fold_to(ledger, "memory@2-c", 20)
    with pytest.raises(NotCaughtUp):
        ledger.promote(WORKSPACE, "memory@1-c", retire_us=99, audit=entry())
    fold_to(ledger, "memory@1-c", 21)
    assert ledger.promote(WORKSPACE, "memory@1-c", retire_us=77, audit=entry("rollback")).position == 20
    assert slots(ledger) == {"memory@1-c": "live", "memory@2-c": "shadow"}
    assert [g.retire_us for g in ledger.groups(WORKSPACE)] == [0, 77]


def erase(ledger: Ledger) -> int:
    """Log an erasure of somebody."""
    erasing = replace(
        make_event("gone"), subjects=(Subject("user", "ann"),), subject=Subject("user", "ann"), erases=True
    )
    return ledger.append(WORKSPACE, [erasing], recorded_us=1).positions[0]


def test_what_stands_still_or_may_hold_the_erased_does_not_take_over(ledger: Ledger) -> None:
    """Whoever asked just before it began has asked too early: the transaction itself looks."""
    add(ledger, 1, at=10)
    add(ledger, 2, slot="shadow", at=10)
    name = "memory@2-c"

    def refused(why: str) -> None:
        with pytest.raises(VersionConflict, match=why):
            ledger.promote(WORKSPACE, name, retire_us=99, audit=entry())
        with pytest.raises(VersionConflict, match=why):
            split(ledger, name)

    ledger.set_halted(WORKSPACE, name, "it broke")
    refused("halted")
    ledger.set_halted(WORKSPACE, name, None)
    ledger.set_paused(WORKSPACE, name, True)
    refused("paused")
    ledger.set_paused(WORKSPACE, name, False)
    position = erase(ledger)
    refused(f"erasure {position}")
    ledger.note_groups(WORKSPACE, [ErasedGroup(position, name, "rebuild", "rebuild", 1)])
    refused(f"erasure {position}")
    assert slots(ledger) == {"memory@1-c": "live", name: "shadow"}
    assert ledger.audits(WORKSPACE) == []
    ledger.note_groups(WORKSPACE, [ErasedGroup(position, name, "rebuild", "done", 1)])
    ledger.promote(WORKSPACE, name, retire_us=99, audit=entry())
    assert slots(ledger)[name] == "live"


def test_a_rebuilt_group_that_may_hold_the_erased_does_not_take_its_place(ledger: Ledger) -> None:
    add(ledger, 1, at=10)
    [made] = ledger.add_group(WORKSPACE, [member(slot="shadow")], replaces="memory@1-c")
    fold_to(ledger, made.group, 10)
    position = erase(ledger)
    with pytest.raises(VersionConflict, match=f"erasure {position}"):
        ledger.replace_group(WORKSPACE, made.group, audit=entry("replace"))
    ledger.note_groups(WORKSPACE, [ErasedGroup(position, made.group, "exact", "done", 0)])
    ledger.replace_group(WORKSPACE, made.group, audit=entry("replace"))


def test_a_promotion_planned_on_slots_that_have_changed_is_refused(ledger: Ledger) -> None:
    add(ledger, 1, at=10)
    add(ledger, 2, slot="shadow", at=10)
    planned = ledger.slots_revision(WORKSPACE)
    add(ledger, 3, slot="shadow", at=10)
    with pytest.raises(VersionConflict, match="changed meanwhile"):
        ledger.promote(WORKSPACE, "memory@2-c", retire_us=99, revision=planned, audit=entry())
    ledger.promote(WORKSPACE, "memory@2-c", retire_us=99, revision=ledger.slots_revision(WORKSPACE), audit=entry())


def test_of_two_promotions_at_once_both_leave_one_live(ledger: Ledger) -> None:
    add(ledger, 1, at=10)
    add(ledger, 2, slot="shadow", at=10)
    add(ledger, 3, slot="shadow", at=10)
    with ThreadPoolExecutor(2) as pool:
        groups = ["memory@2-c", "memory@3-c"]
        done = list(pool.map(lambda g: ledger.promote(WORKSPACE, g, retire_us=99, audit=entry()), groups))
    assert sorted(slots(ledger).values()) == ["live", "shadow", "shadow"]
    [first, second] = sorted(done, key=lambda d: d.demoted != ["memory@1-c"])
    assert second.demoted == [first.group]


def test_no_commit_slips_past_the_position_of_a_promotion(ledger: Ledger) -> None:
    """Whatever a demoted group had committed before the swap is at or below its position."""
    lease = add(ledger, 1, at=1)
    add(ledger, 2, slot="shadow", at=1_000)
    seen: list[int] = []

    def commit_on() -> None:
        at = lease
        while slots(ledger)["memory@2-c"] == "shadow":
            at = ledger.commit(WORKSPACE, at, watermark=at.watermark + 1, changes=None, now_us=0, ttl_us=TTL_US)
            if slots(ledger)["memory@2-c"] == "shadow":
                seen.append(at.watermark)  # committed, and then read as not demoted yet

    with ThreadPoolExecutor(2) as pool:
        committing = pool.submit(commit_on)
        while len(seen) < 5:
            assert not committing.done(), committing.result()
        done = ledger.promote(WORKSPACE, "memory@2-c", retire_us=99, audit=entry())
        committing.result()
    assert max(seen) <= done.position


def test_a_rebuilt_group_takes_the_slot_of_the_old_one(ledger: Ledger) -> None:
    add(ledger, 1, at=10)
    [made] = ledger.add_group(WORKSPACE, [member(slot="shadow")], replaces="memory@1-c")
    with pytest.raises(NotCaughtUp):
        ledger.replace_group(WORKSPACE, made.group, audit=entry("replace"))
    fold_to(ledger, made.group, 10)
    done = ledger.replace_group(WORKSPACE, made.group, audit=entry("replace"))
    assert (done.position, done.demoted) == (10, ["memory@1-c"])
    assert slots(ledger) == {"memory@1-c": "retired", "memory@1-c.1": "live"}
    state = ledger.group(WORKSPACE, made.group)
    assert (state.replaces, state.live_from) == (None, 10)
    with pytest.raises(VersionConflict):
        ledger.replace_group(WORKSPACE, made.group, audit=entry("replace"))


def test_the_shadows_that_are_to_take_over_by_themselves_are_those_of_all_workspaces(ledger: Ledger) -> None:
    ledger.ensure_workspace("another")
    assert ledger.taking_over() == []
    add(ledger, 1, at=10)
    for workspace, auto in ((WORKSPACE, True), (WORKSPACE, True), ("another", True), ("another", False)):
        ledger.add_group(workspace, [member(2, slot="shadow")], auto=auto)
    assert set(ledger.taking_over()) == {(WORKSPACE, "memory@2-c"), ("another", "memory@2-c")}
    for name in ("memory@2-c", "memory@2-c.1"):
        fold_to(ledger, name, 10)
        ledger.promote(WORKSPACE, name, retire_us=99, audit=entry())
    assert ledger.taking_over() == [("another", "memory@2-c")]


def test_a_rebuilt_shadow_stays_a_shadow(ledger: Ledger) -> None:
    ledger.add_group(WORKSPACE, [member(slot="shadow")], auto=True)
    [made] = ledger.add_group(WORKSPACE, [member(slot="shadow")], replaces="memory@1-c")
    ledger.replace_group(WORKSPACE, made.group, audit=entry("replace"))
    assert slots(ledger) == {"memory@1-c": "retired", "memory@1-c.1": "shadow"}
    assert ledger.group(WORKSPACE, made.group).auto


def test_a_retired_group_has_no_writer_and_no_feed(ledger: Ledger) -> None:
    lease = add(ledger, 1, at=3)
    [instance] = ledger.instances(WORKSPACE)
    ledger.append(WORKSPACE, make_events("e"), recorded_us=1)
    ledger.prepare_save(WORKSPACE, instance.instance_id, {1: b"v"})
    with pytest.raises(VersionConflict):
        ledger.retire(WORKSPACE, lease.group, audit=entry("retire"), due_us=10**15)  # it was never demoted
    ledger.retire(WORKSPACE, lease.group, audit=entry("retire"))
    assert slots(ledger) == {lease.group: "retired"}
    assert ledger.feed(WORKSPACE, {lease.group: 0}) == []
    assert ledger.prepare_load(WORKSPACE, instance.instance_id, [1]) == ({}, {})
    with pytest.raises(Fenced):
        ledger.commit(WORKSPACE, lease, watermark=4, changes=b"x", now_us=0, ttl_us=TTL_US)
    assert ledger.acquire(WORKSPACE, lease.group, "b", now_us=9 * TTL_US, ttl_us=TTL_US) is None
    with pytest.raises(VersionConflict):
        ledger.retire(WORKSPACE, lease.group, audit=entry("retire"))


def test_a_demoted_group_is_retired_only_when_it_is_due(ledger: Ledger) -> None:
    add(ledger, 1, at=1)
    add(ledger, 2, slot="shadow", at=1)
    ledger.promote(WORKSPACE, "memory@2-c", retire_us=50, audit=entry())
    with pytest.raises(VersionConflict):
        ledger.retire(WORKSPACE, "memory@1-c", audit=entry("retire"), due_us=49)
    ledger.retire(WORKSPACE, "memory@1-c", audit=entry("retire"), due_us=50)
    assert slots(ledger)["memory@1-c"] == "retired"
    with pytest.raises(VersionConflict):
        ledger.promote(WORKSPACE, "memory@1-c", retire_us=0, audit=entry("rollback"))


def test_one_event_of_a_halted_group_is_skipped_once(ledger: Ledger) -> None:
    lease = add(ledger, 1, at=4)
    letter = DeadLetter(
        stage="fold", code="skipped-by-hand", detail="d", policy="memory@1", skipped_by="memory@1-c", position=5
    )
    with pytest.raises(VersionConflict):  # not halted
        ledger.skip(WORKSPACE, lease.group, letter, audit=entry("skip"))
    ledger.set_halted(WORKSPACE, lease.group, "broken", policy="memory@1", position=5)
    with pytest.raises(VersionConflict):  # halted elsewhere
        ledger.skip(WORKSPACE, lease.group, replace(letter, position=6), audit=entry("skip"))

    def skip(_: int) -> bool:
        try:
            ledger.skip(WORKSPACE, lease.group, letter, audit=entry("skip"))
        except VersionConflict:
            return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(skip, range(4))) == 1
    assert ledger.skipped_seqs(WORKSPACE, "memory@1-c") == {5}
    assert ledger.dead_letter_count(WORKSPACE) == 1
    state = ledger.group(WORKSPACE, lease.group)
    assert (state.halted, state.halted_at, state.halted_by, state.skips) == (None, None, None, 1)
    with pytest.raises(Fenced):  # whoever tried the event meanwhile cannot commit it
        ledger.commit(WORKSPACE, lease, watermark=5, changes=b"x", now_us=0, ttl_us=TTL_US)
    assert [a.action for a in ledger.audits(WORKSPACE)] == ["skip"]


def test_a_commit_past_the_event_that_halted_a_group_ends_the_halt(ledger: Ledger) -> None:
    lease = add(ledger, 1, at=1)
    ledger.set_halted(WORKSPACE, lease.group, "broken", policy="memory@1", position=5)
    for watermark, halted in ((4, ("broken", "memory@1", 5)), (5, (None, None, None))):
        lease = ledger.commit(WORKSPACE, lease, watermark=watermark, changes=b"x", now_us=0, ttl_us=TTL_US)
        state = ledger.group(WORKSPACE, lease.group)
        assert (state.halted, state.halted_by, state.halted_at) == halted


def test_two_generations_that_skip_an_event_leave_one_dead_letter(ledger: Ledger) -> None:
    for group in ("memory@1-c", "memory@1-c.1"):
        ledger.add_group(WORKSPACE, [member(slot="shadow")])
        lease = ledger.acquire(WORKSPACE, group, "a", now_us=0, ttl_us=TTL_US)
        assert lease is not None
        letter = DeadLetter(
            stage="fold", code="bad", detail="d", policy="memory@1", skipped_by="memory@1-c", position=3
        )
        ledger.commit(WORKSPACE, lease, watermark=3, changes=None, dead=[letter], now_us=0, ttl_us=TTL_US)
    assert ledger.dead_letter_count(WORKSPACE) == 1
    assert ledger.skips_of(WORKSPACE, 3) == ["memory@1-c"]


def test_the_audit_trail_is_paged_newest_first(ledger: Ledger) -> None:
    for i in range(5):
        ledger.audit(WORKSPACE, actor="a\x00", action="act", target=f"t{i}", reason="\ud800", at_us=i)
    first = ledger.audits(WORKSPACE, limit=2)
    assert [a.target for a in first] == ["t4", "t3"]
    rest = ledger.audits(WORKSPACE, before=first[-1].audit_id)
    assert [(a.target, a.actor, a.reason) for a in rest] == [(f"t{i}", "a\ufffd", "?") for i in (2, 1, 0)]
    assert ledger.audits("other") == []


def test_the_commit_of_a_position_is_known_while_it_is_in_the_feed(ledger: Ledger) -> None:
    ledger.add_group(WORKSPACE, [member()])
    lease = ledger.acquire(WORKSPACE, "memory@1-c", "a", now_us=0, ttl_us=TTL_US)
    assert lease is not None
    for i in (1, 2, 3):
        lease = ledger.commit(WORKSPACE, lease, watermark=i * 10, changes=b"x", now_us=i, ttl_us=TTL_US)
    assert [ledger.commit_of(WORKSPACE, lease.group, at) for at in (1, 10, 11, 30, 31)] == [
        (1, 1), (1, 1), (2, 2), (3, 3), None
    ]  # fmt: skip
    ledger.set_checkpoint(WORKSPACE, lease, name="c", commit_no=2, watermark=20)
    assert [ledger.commit_of(WORKSPACE, lease.group, at) for at in (1, 20, 21)] == [None, None, (3, 3)]


def test_types_are_counted_in_a_range(ledger: Ledger) -> None:
    ledger.append(WORKSPACE, [*make_events(1, 2, 3), make_event("x", type="other.seen")], recorded_us=1)
    assert ledger.count_types(WORKSPACE, 0, 9) == {"rating.given": 3, "other.seen": 1}
    assert ledger.count_types(WORKSPACE, 1, 3) == {"rating.given": 2}
    assert ledger.count_types(WORKSPACE, 4, 4) == {}


def split(ledger: Ledger, group: str, share_ppm: int = 100_000, experiment: str = "e1") -> None:
    ledger.split(WORKSPACE, group, share_ppm=share_ppm, experiment=experiment, audit=entry("split"))


def shares(ledger: Ledger) -> dict[str, tuple[int, str]]:
    return {g.group: (g.share_ppm, g.experiment) for g in ledger.groups(WORKSPACE) if g.share_ppm or g.experiment}


def test_a_shadow_answers_a_share_until_that_is_ended(ledger: Ledger) -> None:
    add(ledger, 1, at=10)
    add(ledger, 2, slot="shadow", at=10)
    revision = ledger.slots_revision(WORKSPACE)
    split(ledger, "memory@2-c")
    assert shares(ledger) == {"memory@2-c": (100_000, "e1")}
    assert ledger.slots_revision(WORKSPACE) > revision
    assert slots(ledger) == {"memory@1-c": "live", "memory@2-c": "shadow"}
    assert ledger.splits(WORKSPACE) == {"memory@2-c"}
    split(ledger, "memory@2-c", 500_000, "e2")
    assert shares(ledger) == {"memory@2-c": (500_000, "e2")}
    split(ledger, "memory@2-c", 0, "")
    assert ledger.splits(WORKSPACE) == set()
    assert shares(ledger) == {}
    with pytest.raises(VersionConflict):
        split(ledger, "memory@2-c", 0, "")
    assert [a.action for a in ledger.audits(WORKSPACE)] == ["split"] * 3


def test_what_lags_or_is_no_shadow_or_has_no_counterpart_is_not_split(ledger: Ledger) -> None:
    add(ledger, 1, at=10)
    add(ledger, 2, slot="shadow", at=9)
    add(ledger, 3, slot="shadow", at=10)
    ledger.add_group(WORKSPACE, [member(1, name="alone", slot="shadow")])
    with pytest.raises(NotCaughtUp):
        split(ledger, "memory@2-c")
    for group in ("memory@1-c", "alone@1-c", "nobody"):
        with pytest.raises(VersionConflict):
            split(ledger, group)
    assert shares(ledger) == {}
    split(ledger, "memory@3-c")
    fold_to(ledger, "memory@2-c", 10)
    with pytest.raises(VersionConflict, match="memory@3-c"):
        split(ledger, "memory@2-c", experiment="e2")
    assert shares(ledger) == {"memory@3-c": (100_000, "e1")}


@pytest.mark.parametrize("change", ["promote it", "promote another", "retire it", "retire the live one"])
def test_a_split_ends_when_who_answers_changes(ledger: Ledger, change: str) -> None:
    add(ledger, 1, at=10)
    add(ledger, 2, slot="shadow", at=10)
    add(ledger, 3, slot="shadow", at=10)
    split(ledger, "memory@2-c")
    if change.startswith("promote"):
        group = "memory@2-c" if change == "promote it" else "memory@3-c"
        ledger.promote(WORKSPACE, group, retire_us=99, audit=entry())
    else:
        ledger.retire(WORKSPACE, "memory@2-c" if change == "retire it" else "memory@1-c", audit=entry("retire"))
    assert shares(ledger) == {}


def test_a_split_outlives_others_retirement_and_goes_to_what_replaces_it(ledger: Ledger) -> None:
    add(ledger, 1, at=10)
    add(ledger, 2, slot="shadow", at=10)
    add(ledger, 3, slot="shadow", at=10)
    split(ledger, "memory@2-c")
    ledger.retire(WORKSPACE, "memory@3-c", audit=entry("retire"))
    assert shares(ledger) == {"memory@2-c": (100_000, "e1")}
    [made] = ledger.add_group(WORKSPACE, [member(2, slot="shadow")], replaces="memory@2-c")
    fold_to(ledger, made.group, 10)
    ledger.replace_group(WORKSPACE, made.group, audit=entry("replace"))
    assert shares(ledger) == {made.group: (100_000, "e1")}
