"""Live A/B: which version answers a user, and what users of each arm did.

A split gives a share p of the users to a candidate. Who they are is decided by a hash of the user, salted with the
experiment: the same user is in the same arm in every process and after every restart, and who is in one experiment's
arm says nothing about another's. A process that ran before an experiment began answers by it from when its candidate is
there as far as what was live was when it learned of it, and until then all users from what is live, in no arm. A user
counts once, with the share of the exposures in a fixed window from the first one that led to something liked; users
come in the order in which their windows close. Each arm's mean gets a confidence sequence (see ``gate.py``) at half of
alpha, and so has the difference bounds that hold at all times at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

from streamfold.core.gate import confidence_sequence
from streamfold.core.quality import ArmOutcome, Floats

MILLION = 1_000_000


def in_share(experiment: str, share_ppm: int, user: str) -> bool:
    """Tell whether a user is among the ``share_ppm`` millionths that an experiment's candidate answers.

    >>> sum(in_share("e1", 100_000, f"u{n}") for n in range(10_000))
    1018
    """
    digest = blake2b(user.encode(), key=experiment.encode()[:64], digest_size=8).digest()
    return int.from_bytes(digest, "big") * MILLION >> 64 < share_ppm


@dataclass(frozen=True, slots=True, kw_only=True)
class Mean:
    """A mean over users, or a difference of two, and its bounds."""

    mean: float
    lower: float
    upper: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ArmReport:
    """One arm of an experiment: numbers of users (those counted: with a closed window), of exposures, of liked items;
    the mean share of a user's exposures that led to something liked, and its bounds.

    Of heads: exposures are answers, ``labelled`` those of which the right label came, ``liked`` those of them that were
    right; the rate is the mean over users of the share that was, ``logloss`` that of what was served, in nats.
    """

    users: int
    counted: int
    exposures: int
    liked: int
    rate: float | None
    lower: float | None
    upper: float | None
    labelled: int | None = None
    logloss: Mean | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """Both arms, and the candidate's rate less the live one's. ``measure``: what the rate is of, ``liked`` of what was
    recommended or ``right`` of what heads answered; of these ``logloss`` is the candidate's less the live one's."""

    experiment: str
    measure: Literal["liked", "right"]
    share: float
    first_us: int
    live: ArmReport
    candidate: ArmReport
    difference: float | None
    lower: float | None
    upper: float | None
    verdict: Literal["better", "worse", "undecided"]
    logloss: Mean | None = None


def experiments(outcomes: Sequence[ArmOutcome], *, alpha: float = 0.05, min_users: int = 100) -> list[Experiment]:
    """Compare the arms of each experiment, the newest first; fewer than ``min_users`` in an arm decide nothing."""
    by_name: dict[tuple[str, bool], dict[str, ArmOutcome]] = {}
    for one in outcomes:
        by_name.setdefault((one.experiment, one.labelled is not None), {})[one.arm] = one
    found = [_compared(name, arms, alpha, min_users) for (name, _), arms in by_name.items()]
    return sorted(found, key=lambda one: (-one.first_us, one.experiment, one.measure))


def _compared(name: str, arms: dict[str, ArmOutcome], alpha: float, min_users: int) -> Experiment:
    live, candidate = (_report(arms.get(arm), alpha / 2) for arm in ("live", "candidate"))
    rate = _difference(_rate(candidate), _rate(live))
    verdict: Literal["better", "worse", "undecided"] = "undecided"
    if rate is not None and min(live.counted, candidate.counted) >= min_users:
        verdict = "better" if rate.lower > 0 else "worse" if rate.upper < 0 else "undecided"
    one = next(iter(arms.values()))
    return Experiment(
        experiment=name, measure="liked" if one.labelled is None else "right", share=one.share,
        first_us=min(one.first_us for one in arms.values()), live=live, candidate=candidate,
        difference=None if rate is None else rate.mean, lower=None if rate is None else rate.lower,
        upper=None if rate is None else rate.upper, verdict=verdict,
        logloss=_difference(candidate.logloss, live.logloss),
    )  # fmt: skip


def _difference(one: Mean | None, other: Mean | None) -> Mean | None:
    """The bounds of both hold at once at the sum of their levels."""
    if one is None or other is None:
        return None
    return Mean(mean=one.mean - other.mean, lower=one.lower - other.upper, upper=one.upper - other.lower)


def _rate(one: ArmReport) -> Mean | None:
    if one.rate is None or one.lower is None or one.upper is None:
        return None
    return Mean(mean=one.rate, lower=one.lower, upper=one.upper)


def _report(one: ArmOutcome | None, alpha: float) -> ArmReport:
    if one is None:
        return ArmReport(users=0, counted=0, exposures=0, liked=0, rate=None, lower=None, upper=None)
    rate, loss = _mean(one.values, alpha), None if one.losses is None else _mean(one.losses, alpha, one.most_loss)
    return ArmReport(
        users=one.users, counted=len(one.values), exposures=one.exposures, liked=one.liked, labelled=one.labelled,
        rate=None if rate is None else rate.mean, lower=None if rate is None else rate.lower,
        upper=None if rate is None else rate.upper, logloss=loss,
    )  # fmt: skip


def _mean(values: Floats, alpha: float, most: float = 1.0) -> Mean | None:
    """Bound the mean of shares of ``most``."""
    if not len(values):
        return None
    lower, upper = confidence_sequence(2 * values - 1, alpha=alpha)  # it bounds means of values in −1…1
    ends = max(0.0, float(lower[-1]) / 2 + 0.5), min(1.0, float(upper[-1]) / 2 + 0.5)
    return Mean(mean=most * float(values.mean()), lower=most * ends[0], upper=most * ends[1])
