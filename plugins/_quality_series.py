"""What ``quality`` has measured, read from its sums, its ring and its last rankings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from streamfold.core import ArmName, ArmOutcome, QualityPoint, Scored, View
from streamfold.core.quality import BY_NEW, Ranked, calibration_error
from streamfold.plugins import _arms
from streamfold.plugins._whole_catalogue import DECILES, covered, share_of, shown_at_last, times
from streamfold.plugins._whole_catalogue import kept as last_rankings

if TYPE_CHECKING:
    from streamfold.plugins.quality import Quality, QualityConfig

US = 1_000_000
SLICES = ("all", *BY_NEW, *DECILES)
PARTS = (*BY_NEW, *DECILES)
"""Rows of a stretch of time; an example is in one of the first, and in one of the others."""
BINS = 64
MET_ROWS = 1 << 16
ALL_MET = 2 * MET_ROWS
"""The last row of what was met: all."""
ONE = float(1 << 53)
BUCKET, EVENTS, LOSS, WON, PAIRS, NDCG, LISTS, GAIN, RANKED, BINS_AT = range(10)
"""Columns of ``sums``: number of the bucket plus 1, sums, then a histogram of scores of each label. The newest
stretches of time take the oldest ones' places."""


class ArmUser(msgspec.Struct, frozen=True, array_like=True):
    """What a user of an arm was shown and liked. ``hits``: exposures that led to something liked."""

    experiment: str
    arm: ArmName
    share: float
    first_us: int
    exposures: int
    hits: int
    liked: int


class QualityServer:
    """Answers from the sums; a ``QualityReport``, a ``ScoredReport`` and a ``LossReport``."""

    slices = SLICES

    def __init__(self, policy: Quality, view: View) -> None:
        self._config: QualityConfig = policy.config
        self._view = view

    def measured(self) -> SumsAndRing:
        config, view = self._config, self._view
        return SumsAndRing(
            Kept(
                config.bucket_s * US, config.window_s * US, view["sums"].values.copy(), self._ring(),
                last_rankings(view["rankings"].values), list(view["arm_users"].items()),
                view["arms_seen"].get("us") or 0, self._why(),
            )
        )  # fmt: skip

    def scored(self) -> Scored:
        return _scored(self._ring())

    def _ring(self) -> npt.NDArray[np.int64]:
        """Copy what the ring holds, in order of the log."""
        rows: npt.NDArray[np.int64] = self._view["scored"].values
        count = int(self._view["met"].values[ALL_MET, 0])
        if count <= len(rows):
            return rows[:count].copy()
        return np.concatenate([rows[count % len(rows) :], rows[: count % len(rows)]])

    def _why(self) -> str:
        """Why nothing is ranked among all items, or nothing yet."""
        config = self._config
        items = self._view.of("activity").server.count(item for item, _ in self._view["named"].items())
        if not config.rank_budget:
            return "rank_budget is 0"
        if items > config.rank_limit:
            return f"the catalogue has {items:,} items or more, and rank_limit is {config.rank_limit:,}"
        if self._view["rankings"].values[-1, 0]:
            return ""
        one_in = 1 / share_of(items, 1, config.rank_budget)
        return f"none yet: one example in about {max(one_in, 1):,.0f} is drawn (rank_budget)"

    @property
    def ranker(self) -> str:
        return self._config.ranker

    def losses(self, after: int) -> tuple[int, list[tuple[int, float]]]:
        count = int(self._view["met"].values[ALL_MET, 0])
        if count <= after:
            return count, []
        places = np.arange(max(after, count - self._config.ring), count) % self._config.ring
        rows = self._view["scored"].values[places]
        right = np.where(rows[:, 5] > 0, rows[:, 4] / ONE, 1 - rows[:, 4] / ONE)
        return count, list(zip(rows[:, 0].tolist(), (-np.log(right)).tolist(), strict=True))


class Kept(NamedTuple):
    """Copies of what is kept. ``why``: why nothing is ranked, or nothing yet."""

    bucket_us: float
    window_us: float
    sums: npt.NDArray[np.float64]
    ring: npt.NDArray[np.int64]
    rankings: npt.NDArray[np.int64]
    users: Sequence[tuple[str, ArmUser]]
    upto_us: int
    why: str


class SumsAndRing:
    """What was ``Measured``."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept

    def series(self, *, from_us: int, to_us: int, slice_: str, stretch_us: int = 0) -> list[QualityPoint]:
        """Sums of stretches of time."""
        kept = self._kept
        rows = self._rows(from_us, to_us, slice_)
        size_us = max(stretch_us, kept.bucket_us)
        stretches, place = np.unique((rows[:, BUCKET] - 1) * kept.bucket_us // size_us, return_inverse=True)
        sums = np.zeros((len(stretches), rows.shape[1]))
        np.add.at(sums, place, rows)
        lists = self._lists(from_us, to_us) if slice_ == "all" else kept.rankings[:0]
        of_lists = times(lists) // kept.bucket_us * kept.bucket_us // size_us
        return [
            _point(int(stretch * size_us), one, lists[of_lists == stretch])
            for stretch, one in zip(stretches, sums, strict=True)
        ]

    def _rows(self, from_us: int, to_us: int, slice_: str) -> npt.NDArray[np.float64]:
        """Rows of a slice whose stretch of time is not outside of the times."""
        parts, sums, size_us = BY_NEW if slice_ == "all" else (slice_,), self._kept.sums, self._kept.bucket_us
        rows = np.concatenate([sums[PARTS.index(one) :: len(PARTS)] for one in parts])
        rows = rows[rows[:, BUCKET] > 0]
        at_us = (rows[:, BUCKET] - 1) * size_us
        return rows[(at_us + size_us >= from_us) & (at_us < to_us)]

    def _lists(self, from_us: int, to_us: int) -> npt.NDArray[np.int64]:
        """Rankings whose stretch of time is not outside of the times."""
        rankings, size_us = self._kept.rankings, self._kept.bucket_us
        at_us = times(rankings) // size_us * size_us
        return rankings[(at_us + size_us >= from_us) & (at_us < to_us)]

    def ranked(self, *, from_us: int, to_us: int, slice_: str) -> Ranked:
        """Where liked items stood among everything unseen; rankings are of no slice."""
        kept = self._kept
        gain, positives = self._rows(from_us, to_us, slice_)[:, [GAIN, RANKED]].sum(axis=0).tolist()
        lists = self._lists(from_us, to_us)
        return Ranked(
            positives=int(positives), ndcg_at_10=gain / positives if positives else math.nan, lists=len(lists),
            items=shown_at_last(lists), coverage=covered(lists) if slice_ == "all" else math.nan,
            why=kept.why,
        )  # fmt: skip

    def scored(self) -> Scored:
        """The examples of the ring."""
        return _scored(self._kept.ring)

    def arms(self) -> list[ArmOutcome]:
        """What users of each arm of live A/Bs did, users in the order in which their windows closed. O(users)."""
        upto_us = self._kept.upto_us - self._kept.window_us
        return [_outcome(users, upto_us) for users in _arms.by_arm(self._kept.users)]


def _scored(rows: npt.NDArray[np.int64]) -> Scored:
    return Scored(
        key=rows[:, :2], user=rows[:, 2], at_us=rows[:, 3], score=rows[:, 4] / ONE,
        label=rows[:, 5].astype(np.float64), slices=rows[:, 6],
    )  # fmt: skip


def _outcome(users: Sequence[ArmUser], upto_us: float) -> ArmOutcome:
    first = users[0]
    return ArmOutcome(
        experiment=first.experiment,
        arm=first.arm,
        share=first.share,
        first_us=first.first_us,
        users=len(users),
        exposures=sum(one.exposures for one in users),
        liked=sum(one.liked for one in users),
        values=np.array([one.hits / one.exposures for one in users if one.first_us <= upto_us]),
    )


def _point(at_us: int, row: npt.NDArray[np.float64], rankings: npt.NDArray[np.int64]) -> QualityPoint:
    def mean(total: int, count: int) -> float:
        return float(row[total] / row[count]) if row[count] else math.nan

    positive, negative = row[BINS_AT : BINS_AT + BINS], row[BINS_AT + BINS :]
    auc = _auc(positive, negative)
    return QualityPoint(
        at_us, int(row[EVENTS]), auc, mean(WON, PAIRS), mean(LOSS, EVENTS), mean(NDCG, LISTS),
        calibration_error=calibration_error(positive, negative), catalogue_ndcg_at_10=mean(GAIN, RANKED),
        ranked=int(row[RANKED]), coverage=covered(rankings), lists=len(rankings),
    )  # fmt: skip


def _auc(positive: npt.NDArray[np.float64], negative: npt.NDArray[np.float64]) -> float:
    """AUC of two histograms, ties within a bin counted half."""
    pairs = positive.sum() * negative.sum()
    if not pairs:
        return math.nan
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum() / pairs)
