"""The ledger's contract: the reports of erasures that are over take how near each group is to the log folded afresh."""

import dataclasses
import json

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
