"""Schedules of the real folds, leases, feed, views and intake, with every kind of fault; and mistakes it must find.

``make simulate ARGS="--seeds 1000:5000"`` runs more; seeds that failed once are in ``seeds.txt`` and run for good.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sim_kernel import Decision, shrink
from sim_mutants import MUTANTS, Mutant
from sim_report import report
from sim_world import simulate, simulated_modules

from streamfold.core.ledger import open_ledger
from streamfold.core.ledger.abc import Ledger

HERE = Path(__file__).parent
SCHEDULES = int(os.environ.get("STREAMFOLD_SIMULATIONS", "96"))
ON_POSTGRESQL = max(1, SCHEDULES // 16)
PART = 20
"""Schedules in one test."""
MOST_TRIES = 600


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated ledger to copy."""
    path = tmp_path_factory.mktemp("template") / "ledger.db"
    open_ledger(f"sqlite:///{path}").close()
    return path


def check(seed: int, template: Path, ledger: Ledger | None = None) -> None:
    world, error = simulate(seed, template, ledger=ledger)
    if error is not None:
        pytest.fail(
            report(world, error, lambda only: simulate(seed, template, only=only, ledger=ledger)), pytrace=False
        )


def regressions() -> list[int]:
    lines = (HERE / "seeds.txt").read_text().splitlines()
    return [int(line.split()[0]) for line in lines if line.strip() and not line.startswith("#")]


@pytest.mark.parametrize("seed", regressions())
def test_a_seed_that_failed_once(seed: int, template: Path) -> None:
    check(seed, template)


@pytest.mark.parametrize("first", range(0, SCHEDULES, PART))
def test_schedules(first: int, template: Path) -> None:
    for seed in range(first, min(first + PART, SCHEDULES)):
        check(seed, template)


def test_schedules_on_postgresql(template: Path, postgres_database: str) -> None:
    ledger = open_ledger(postgres_database)
    try:
        for seed in range(10_000, 10_000 + ON_POSTGRESQL):
            check(seed, template, ledger)
    finally:
        ledger.close()


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.mistake.replace(" ", "-") for mutant in MUTANTS])
def test_a_mistake_is_found(mutant: Mutant, template: Path) -> None:
    with mutant.made():
        found = (
            seed for seed in range(mutant.seed, mutant.seed + MOST_TRIES) if simulate(seed, template)[1] is not None
        )
        seed = next(found, None)
    assert seed is not None, f"{MOST_TRIES} schedules do not notice: {mutant.mistake}"
    assert simulate(seed, template)[1] is None, "the schedule fails without the mistake"


def test_a_failing_schedule_is_shrunk_to_what_makes_it_fail(template: Path) -> None:
    """The report says the seed, the few decisions that are needed and the trace; the shrunk schedule fails as well."""
    [mutant] = [m for m in MUTANTS if m.mistake.startswith("append acknowledged")]
    with mutant.made():
        seed, world, error = next(
            (seed, world, error)
            for seed in range(mutant.seed, mutant.seed + MOST_TRIES)
            for world, error in [simulate(seed, template)]
            if error is not None
        )
        text = report(world, error, lambda only: simulate(seed, template, only=only))
        shrunk = [
            Decision.parse(word) for line in text.splitlines() if line.startswith("  - ") for word in line.split()[1:]
        ]
        assert f"seed {seed}" in text
        assert 1 <= len(shrunk) <= len(world.schedule.taken)
        assert {decision.kind for decision in shrunk} >= {"power"}, text
        assert simulate(seed, template, only=shrunk)[1] is not None
    assert simulate(seed, template, only=shrunk)[1] is None


def test_shrinking_leaves_only_what_is_needed() -> None:
    decisions = [Decision("t", number, "switch" if number % 3 else "kill", number) for number in range(60)]

    def fails(kept: object) -> bool:
        return {9, 40} <= {decision.arg for decision in kept}  # type: ignore[attr-defined]  # a list of decisions

    assert [decision.arg for decision in shrink(decisions, fails)] == [9, 40]


TRACE = """
import hashlib, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from sim_world import simulate
for seed in (0, 6):
    world, error = simulate(seed, Path(sys.argv[2]))
    assert error is None, error
    print(world.kernel.steps, len(world.schedule.taken), [line for line in world.kernel.trace if " lost " not in line])
"""


def test_the_same_seed_gives_the_same_run_in_any_process(template: Path) -> None:
    """Whatever the process's hash seed: no order of a set may decide what happens."""
    runs = [
        subprocess.run(
            [sys.executable, "-c", TRACE, str(HERE), str(template)],
            env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True, timeout=1200,
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert runs[0] == runs[1]


def test_everything_that_waits_or_reads_the_time_is_simulated() -> None:
    names = {module.__name__ for module in simulated_modules()}
    assert names >= {
        "streamfold.core.context", "streamfold.core.fold.group", "streamfold.core.fold.prepare",
        "streamfold.core.fold.prepared", "streamfold.core.fold.runner", "streamfold.core.stores.checkpoint",
        "streamfold.core.views.lock", "streamfold.core.views.opened", "streamfold.core.views.view",
        "streamfold.pipelines.ingest.loop", "streamfold.pipelines.quota", "streamfold.pipelines.worker",
    }  # fmt: skip
