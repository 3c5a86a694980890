"""What is said of a schedule that fails: seed, the decisions that are needed, the trace; and the command for more."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sim_kernel import Decision, shrink, told
from sim_world import World, simulate

from streamfold.core.ledger import open_ledger

Run = Callable[[Sequence[Decision]], tuple[World, BaseException | None]]


def report(world: World, error: BaseException, run: Run, *, budget_s: float = 60.0) -> str:
    """Shrink a failing schedule and tell it."""
    seed, taken = world.schedule.seed, world.schedule.taken
    kept = shrink(taken, lambda only: _same(error, run(only)[1]), budget_s=budget_s)
    last, again = run(kept)
    lines = [
        f"seed {seed} fails: {error}",
        f"shrunk from {len(taken)} decisions to {len(kept)}:",
        *(f"  - {decision}" for decision in kept),
        "trace (virtual seconds, thread, what):",
        *last.kernel.trace[-200:],
        told(again if again is not None else error),
        f"Once it is repaired, add the line `{seed}  # what it was` to tests/simulation/seeds.txt.",
    ]
    return "\n".join(lines)


def _same(one: BaseException, other: BaseException | None) -> bool:
    """Errors of one kind: their type and how their messages begin."""
    return other is not None and type(other) is type(one) and str(other)[:20] == str(one)[:20]


def main() -> int:
    parser = argparse.ArgumentParser(description="Simulate schedules; stop at the first that fails.")
    parser.add_argument("--seeds", default="0:1000", help="FIRST:LAST")
    options = parser.parse_args()
    first, _, last = options.seeds.partition(":")
    template = Path(tempfile.mkdtemp()) / "ledger.db"
    open_ledger(f"sqlite:///{template}").close()
    started, points = time.monotonic(), 0
    for seed in range(int(first), int(last or first) + (not last)):
        world, error = simulate(seed, template)
        points += world.kernel.steps
        if error is not None:
            print(report(world, error, lambda only, seed=seed: simulate(seed, template, only=only)))  # type: ignore[misc]  # bound now
            return 1
        done = seed + 1 - int(first)
        if done % 100 == 0 or seed + 1 == int(last or 0):
            print(f"{done} schedules, {points} points, {time.monotonic() - started:.0f} s", flush=True)
    print("none fails")
    return 0


if __name__ == "__main__":
    sys.exit(main())
