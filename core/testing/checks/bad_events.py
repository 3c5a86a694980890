"""What the types allow and no author thought of: only ``EventError`` may come out of it."""

from __future__ import annotations

from streamfold.core.testing.lab import Lab, folding


def check_bad_events(lab: Lab) -> None:
    """Events at the edges (huge and negative numbers, odd texts, patches of the unknown) fold or raise EventError."""
    odd = [event for seed in range(4) for event in lab.given(60, seed=seed, odd=True)]
    bench = lab.bench()
    for _ in folding(lab.logged([*odd, *lab.given(), *odd]), bench):
        pass
