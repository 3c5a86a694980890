"""The ledger's contract: the reports of erasures that are over take how near each group is to the log folded afresh."""

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor

from streamfold.core.ledger.abc import ErasedGroup, Ledger
from streamfold.core.testing.ledger_contract import WORKSPACE, make_event


def test_deltas_go_into_the_reports_of_erasures_that_are_over_and_that_the_group_has_passed(ledger: Ledger) -> None:
    erasing = [dataclasses.replace(make_event(f"e{n}", subject=f"u{n}"), erases=True) for n in range(4)]
    ledger.append(WORKSPACE, erasing, recorded_us=1)
    groups = {1: "m", 2: "m", 3: "other", 4: "m"}
    ledger.note_groups(WORKSPACE, [ErasedGroup(n, group, "exact", "done", 1) for n, group in groups.items()])
    for position in (1, 3, 4):
        ledger.empty_erasure(WORKSPACE, position, json.dumps({"stores": []}), freed=0)
        ledger.end_erasure(WORKSPACE, position, "complete", 5)
    ledger.note_deltas(WORKSPACE, "m", 3, {"a@1": '{"max_abs": 0.5}', "b@1": '{"max_abs": 0.0}'}, over_by_us=5)
    ledger.note_deltas(WORKSPACE, "other", 3, {"c@1": '{"max_abs": 1.0}'}, over_by_us=6)
    ledger.note_deltas(WORKSPACE, "m", 3, {"a@1": '{"max_abs": 0.25}'}, over_by_us=5)
    ledger.note_deltas(WORKSPACE, "m", 9, {"a@1": '{"max_abs": 9.0}'}, over_by_us=4)  # over later than that
    found = [ledger.erasure(WORKSPACE, position) for position in (1, 2, 3, 4)]
    reports = [None if one is None else json.loads(one.report or "{}") for one in found]
    assert reports == [
        {"stores": [], "deltas": {"m": {"a@1": {"max_abs": 0.25}}}},
        {},  # not over
        {"stores": [], "deltas": {"other": {"c@1": {"max_abs": 1.0}}}},
        {"stores": []},  # the comparison did not reach it
    ]


def test_deltas_of_groups_that_are_noted_at_once_are_all_kept(ledger: Ledger) -> None:
    ledger.append(WORKSPACE, [dataclasses.replace(make_event("e1", subject="u1"), erases=True)], recorded_us=1)
    groups = [f"g{n:02}" for n in range(40)]
    ledger.note_groups(WORKSPACE, [ErasedGroup(1, group, "exact", "done", 1) for group in groups])
    ledger.end_erasure(WORKSPACE, 1, "complete", 5)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda g: ledger.note_deltas(WORKSPACE, g, 1, {"a@1": "{}"}, over_by_us=5), groups))
    found = ledger.erasure(WORKSPACE, 1)
    assert found is not None
    assert sorted(json.loads(found.report)["deltas"]) == groups


def test_it_is_known_whether_anything_was_erased_since(ledger: Ledger) -> None:
    assert not ledger.erased_since(WORKSPACE, 0)
    ledger.append(WORKSPACE, [dataclasses.replace(make_event("e1", subject="u1"), erases=True)], recorded_us=1)
    assert ledger.erased_since(WORKSPACE, 9), "under way"
    ledger.end_erasure(WORKSPACE, 1, "complete", 5)
    assert ledger.erased_since(WORKSPACE, 5)
    assert not ledger.erased_since(WORKSPACE, 6)


def test_erasures_that_ended_are_counted(ledger: Ledger) -> None:
    assert ledger.erasures_ended() == 0
    erasing = [dataclasses.replace(make_event(f"e{n}", subject=f"u{n}"), erases=True) for n in range(2)]
    ledger.append(WORKSPACE, erasing, recorded_us=1)
    assert ledger.erasures_ended() == 0, "under way"
    for position in (1, 2):
        ledger.end_erasure(WORKSPACE, position, "complete", 5)
        assert ledger.erasures_ended() == position
