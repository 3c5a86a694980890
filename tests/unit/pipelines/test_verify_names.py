"""What a verification found names no subject once one was erased."""

import dataclasses
from pathlib import Path

from streamfold.core.ledger import open_ledger
from streamfold.core.testing.ledger_contract import WORKSPACE, make_event
from streamfold.pipelines.serve.jobs import Jobs
from streamfold.pipelines.serve.versions import unname


def test_keys_of_a_verification_are_dropped_once_a_subject_is_erased(tmp_path: Path) -> None:
    ledger, jobs = open_ledger(f"sqlite:///{tmp_path}/ledger.db"), Jobs()
    ledger.ensure_workspace(WORKSPACE)
    delta = {"max_abs": 0.5, "column": "labels.weight", "key": "user:U", "examples": ["labels/user:U"]}
    found = {"equal": False, "deltas": {"a@1": delta}}
    job, other = (jobs.done(kind, WORKSPACE, found) for kind in ("verify", "promote"))
    unname(ledger, job)
    assert job.result == found
    ledger.append(WORKSPACE, [dataclasses.replace(make_event("e1", subject="U"), erases=True)], recorded_us=1)
    unname(ledger, job)
    unname(ledger, other)
    assert job.result == {"equal": False, "deltas": {"a@1": delta | {"key": None, "examples": []}}}
    assert other.result == found
    jobs.close()
    ledger.close()
