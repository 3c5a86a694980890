"""The contract of who measures how good scores were: of a ranker, or of a head, on the stream itself.

Delayed progressive validation: what was scored before its outcome was learned is held against the outcome. Live and
shadow are measured alike, so that a gate can pair them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
ArmName = Literal["live", "candidate"]
"""The two arms of a live A/B."""
BY_NEW = ("known", "new_user", "new_item", "new_both")
"""Slices of rankers' examples; their numbers are bits: 1 a new user, 2 a new item."""


TOP = 10
"""So many places of a ranking of the whole catalogue count."""
_PARTS, _IN_PART = 20, 50
"""A calibration error is over at most so many parts of the scores, of at least so many examples."""


class QualityPoint(NamedTuple):
    """How good scores were in a stretch of time; ``nan`` where nothing can be said.

    ``auc`` to ``ndcg_at_10`` are of rankers, what follows is of heads. ``min_accuracy``: of the class that fared worst
    (De Lange et al., Continual evaluation for lifelong learning, 2023, arXiv:2205.13452). ``forgetting``: how far the
    classes' accuracies are below the best that they had in an earlier stretch, on average (Chaudhry et al., Riemannian
    walk for incremental learning, 2018, arXiv:1801.10112). ``calibration_error``, of both: the mean distance between
    the probability of what was expected and how often it came true.

    Of rankers, over the whole catalogue, on a sample of events (see ``Ranked``): ``ranked`` liked items stand at
    ``catalogue_ndcg_at_10`` among all that the user had not met, and ``coverage`` is that of ``lists`` rankings.
    """

    at_us: int
    events: int
    auc: float
    user_auc: float
    logloss: float
    ndcg_at_10: float
    accuracy: float = math.nan
    min_accuracy: float = math.nan
    forgetting: float = math.nan
    calibration_error: float = math.nan
    catalogue_ndcg_at_10: float = math.nan
    ranked: int = 0
    coverage: float = math.nan
    lists: int = 0


class Ranked(NamedTuple):
    """Where liked items stood among all that their users had not met, and how much of the catalogue came first.

    Parameters
    ----------
    positives : liked items that were ranked. ndcg_at_10 : their mean :func:`ndcg_of_one`.
    lists : rankings of the whole catalogue. items : that could be shown, at the last of them.
    coverage : share of the items that were in the first ten of any; ``nan`` where it was not asked for.
    why : why there is nothing; empty where there is something.
    """

    positives: int
    ndcg_at_10: float
    lists: int
    items: int
    coverage: float
    why: str = ""


@runtime_checkable
class RankedReport(Protocol):
    """``Measured`` that also rank liked items among the whole catalogue."""

    def ranked(self, *, from_us: int, to_us: int, slice_: str) -> Ranked:
        """All stretches of time together."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """What was scored before its outcome was learned, one row per example, in order of the log.

    Parameters
    ----------
    key : ``(n, 2)``: the example's ``(seq, n)``. user : a hash of the user, or of what stands for one.
    at_us : of the example.
    score : the probability that the label is 1; of a head: that of the right class, with ``label`` 1.
    right : whether what was expected came true; None: where ``score ≥ 0.5`` and ``label > 0`` agree.
    slices : places in ``names``.
    """

    key: npt.NDArray[np.int64]
    user: npt.NDArray[np.int64]
    at_us: npt.NDArray[np.int64]
    score: Floats
    label: Floats
    slices: npt.NDArray[np.int64]
    right: Flags | None = None
    names: tuple[str, ...] = BY_NEW


class Measured(Protocol):
    """Measurements as they stood; reading them needs no view."""

    def series(self, *, from_us: int, to_us: int, slice_: str, stretch_us: int = 0) -> list[QualityPoint]:
        """How good scores were, by stretches of time of ``stretch_us``; 0, or less than what is kept apart: of that."""
        ...

    def scored(self) -> Scored:
        """The last examples with the scores that they had before they were learned."""
        ...


@runtime_checkable
class QualityReport(Protocol):
    """A server that measures scores by the outcomes that came since."""

    @property
    def slices(self) -> tuple[str, ...]:
        """Of the series; the first is all."""
        ...

    def measured(self) -> Measured:
        """Take from the view what is needed: quick, as the view stands still meanwhile."""
        ...


@runtime_checkable
class ScoredReport(Protocol):
    """A ``QualityReport`` that gives what a gate pairs without the rest of its measurements.

    For those whose ``measured`` takes much else; of others a gate asks that.
    """

    def scored(self) -> Scored:
        """What ``measured().scored()`` says, taken from the view: quick, as the view stands still meanwhile."""
        ...


def ndcg_of_one(target: float, others: Floats, k: int = TOP) -> float:
    """NDCG@k of a list that holds one relevant item: ``1 / log2(1 + place)``, 0 past ``k``.

    Of items that tie with it any order is as likely, so the mean over its possible places is taken.

    >>> round(ndcg_of_one(.5, np.array([.9, .1])), 4)
    0.6309
    """
    above = int(np.count_nonzero(others > target))
    ties = int(np.count_nonzero(others == target))
    places = np.arange(above + 1, min(above + ties + 1, k) + 1)
    return float((1.0 / np.log2(1.0 + places)).sum() / (ties + 1))


def first_of(scores: Floats, k: int = TOP) -> list[int]:
    """Places of the k best, best first; of equal ones the first."""
    order: list[int] = np.argsort(-scores, kind="stable")[:k].tolist()
    return order


def coverage(listed: int, items: int) -> float:
    """Share of a catalogue's items that were among the first of any ranking.

    >>> coverage(3, 12), coverage(3, 2)
    (0.25, 1.0)
    """
    return listed / max(items, listed, 1)


def calibration_error(positive: Floats, negative: Floats) -> float:
    """Mean distance of prediction and share of positives over parts of about equally many examples.

    ``positive``, ``negative``: how many scores of each label are in each of equally wide bins of 0…1.

    Neighbouring bins are one part until it holds enough: of few examples a share is mostly chance. A bin's predictions
    count as its middle.
    """
    counts = positive + negative
    total = counts.sum()
    if not total:
        return math.nan
    enough = max(total / _PARTS, _IN_PART)
    part, held = np.zeros(len(counts), np.int64), 0.0
    for i in range(1, len(counts)):
        held += counts[i - 1]
        part[i] = part[i - 1] + (held >= enough and counts[i:].sum() >= enough)
        held *= part[i] == part[i - 1]
    predicted = np.bincount(part, weights=counts * (np.arange(len(counts)) + 0.5) / len(counts))
    return float(np.abs(predicted - np.bincount(part, weights=positive)).sum() / total)


class ArmOutcome(NamedTuple):
    """What users of an arm did, or got from heads.

    ``values``: of users whose window has closed, in that order; ``users``: of all. Of rankers ``liked`` is the number
    of liked items, and a value the share of a user's exposures that led to one. Of heads it is the number of answers
    that were right, of those ``labelled``; a value is the share of a user's, and ``losses`` are the same users' mean
    log losses, as shares of the most that an answer is charged, ``most_loss`` nats.
    """

    experiment: str
    arm: ArmName
    share: float
    first_us: int
    users: int
    exposures: int
    liked: int
    values: Floats
    labelled: int | None = None
    losses: Floats | None = None
    most_loss: float = 1.0


@runtime_checkable
class ArmsReport(Protocol):
    """``Measured``, or a server, that tells what live A/Bs led to."""

    def arms(self) -> list[ArmOutcome]:
        """What users of each arm did."""
        ...
