"""Live A/B: which version answers a user, and what users of each arm did.

A split gives a share p of the users to a candidate. Who they are is decided by a hash of the user, salted with the
experiment: the same user gets the same arm in every process and after every restart, and who is in one experiment's arm
says nothing about another's. A user counts once, with the share of the exposures in a fixed window from the first one
that led to something liked; users come in the order in which their windows close. Each arm's mean gets a confidence
sequence (see ``gate.py``) at half of alpha, and so has the difference bounds that hold at all times at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal

from streamfold.core.gate import confidence_sequence
from streamfold.core.quality import ArmOutcome

MILLION = 1_000_000


def in_share(experiment: str, share_ppm: int, user: str) -> bool:
    """Tell whether a user is among the ``share_ppm`` millionths that an experiment's candidate answers.

    >>> sum(in_share("e1", 100_000, f"u{n}") for n in range(10_000))
    1018
    """
    digest = blake2b(user.encode(), key=experiment.encode()[:64], digest_size=8).digest()
    return int.from_bytes(digest, "big") * MILLION >> 64 < share_ppm


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmReport:
    """One arm of an experiment: numbers of users (those counted: with a closed window), of exposures, of liked items;
    the mean share of a user's exposures that led to something liked, and its bounds."""

    users: int
    counted: int
    exposures: int
    liked: int
    rate: float | None
    lower: float | None
    upper: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """Both arms, and the candidate's rate less the live one's."""

    experiment: str
    share: float
    first_us: int
    live: ArmReport
    candidate: ArmReport
    difference: float | None
    lower: float | None
    upper: float | None
    verdict: Literal["better", "worse", "undecided"]


def experiments(outcomes: Sequence[ArmOutcome], *, alpha: float = 0.05, min_users: int = 100) -> list[Experiment]:
    """Compare the arms of each experiment, the newest first; fewer than ``min_users`` in an arm decide nothing."""
    by_name: dict[str, dict[str, ArmOutcome]] = {}
    for one in outcomes:
        by_name.setdefault(one.experiment, {})[one.arm] = one
    found = [_compared(name, arms, alpha, min_users) for name, arms in by_name.items()]
    return sorted(found, key=lambda one: (-one.first_us, one.experiment))


def _compared(name: str, arms: dict[str, ArmOutcome], alpha: float, min_users: int) -> Experiment:
    live, candidate = (_report(arms.get(arm), alpha / 2) for arm in ("live", "candidate"))
    difference = lower = upper = None
    if live.rate is not None and candidate.rate is not None:
        assert None not in (live.lower, live.upper, candidate.lower, candidate.upper)
        difference = candidate.rate - live.rate
        lower, upper = candidate.lower - live.upper, candidate.upper - live.lower  # type: ignore[operator]  # no None
    verdict: Literal["better", "worse", "undecided"] = "undecided"
    if lower is not None and upper is not None and min(live.counted, candidate.counted) >= min_users:
        verdict = "better" if lower > 0 else "worse" if upper < 0 else "undecided"
    return Experiment(
        experiment=name, share=next(iter(arms.values())).share, first_us=min(one.first_us for one in arms.values()),
        live=live, candidate=candidate, difference=difference, lower=lower, upper=upper, verdict=verdict,
    )  # fmt: skip


def _report(one: ArmOutcome | None, alpha: float) -> ArmReport:
    if one is None:
        return ArmReport(users=0, counted=0, exposures=0, liked=0, rate=None, lower=None, upper=None)
    said: dict[str, Any] = {"rate": None, "lower": None, "upper": None}
    if len(one.values):
        lower, upper = confidence_sequence(2 * one.values - 1, alpha=alpha)  # it bounds means of values in −1…1
        ends = {"lower": float(max(0.0, lower[-1] / 2 + 0.5)), "upper": float(min(1.0, upper[-1] / 2 + 0.5))}
        said = {"rate": float(one.values.mean())} | ends
    return ArmReport(users=one.users, counted=len(one.values), exposures=one.exposures, liked=one.liked, **said)
