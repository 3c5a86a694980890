"""Policy ``quality``: how good a ranker's scores are, measured on the stream itself, live or in a shadow.

Delayed progressive validation: what an exposure showed is scored by this group's ranker when the exposure comes by in
the log, and that score is tested against the outcome when it is there (a score made later has seen everything since).
An interaction that followed no exposure is scored before it is learned. Policies that read fold before what they read,
so the ranker is always as it was.

Kept are sums per stretch of time and slice, one row of an array each: log loss, a histogram of scores by label (AUC
from it is exact up to ties within 1/64 of probability, the calibration error up to 1/128), won pairs within exposures
(per-user AUC) and NDCG@10 of exposures in the order of this ranker's scores (in the slice ``known``, whatever was
shown). And a ring of the last scored examples, which a gate pairs with another version's.

Of live A/Bs it keeps what each user was shown and liked, by arm: exposures in the user's first ``window_s``, how many
of them led to something liked in that time, and how many items were liked. What comes later does not count, so a user
whose window has closed changes no more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b
from types import ModuleType
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from streamfold.core import (
    LEARNED_FROM,
    ArmName,
    ArmOutcome,
    Array,
    ConfigError,
    Event,
    Example,
    Policy,
    Prepared,
    QualityPoint,
    RankRequest,
    Scored,
    Stores,
    Table,
    View,
    user_key,
)
from streamfold.core.quality import BY_NEW, calibration_error
from streamfold.plugins._settings import at_least

SLICES = ("all", *BY_NEW)
_BINS = 64
_LEAST = 1e-6
_NEW = 5
"""A user or an item is new in its first examples."""
_MET_ROWS = 1 << 16
_ALL_MET = 2 * _MET_ROWS
_US = 1_000_000
_ONE = float(1 << 53)
_COLUMNS = 7
_BUCKET, _EVENTS, _LOSS, _WON, _PAIRS, _NDCG, _LISTS, _BINS_AT = range(8)
"""Columns of ``sums``: number of the bucket plus 1, sums, then a histogram of scores of each label. The newest
stretches of time take the oldest ones' places."""


class Pending(msgspec.Struct, frozen=True, array_like=True):
    """An exposure as this ranker scores it; labels come one by one (−1: not yet)."""

    items: tuple[str, ...]
    scores: tuple[float, ...]
    labels: tuple[int, ...]


class ArmUser(msgspec.Struct, frozen=True, array_like=True):
    """What a user of an arm was shown and liked. ``hits``: exposures that led to something liked."""

    experiment: str
    arm: ArmName
    share: float
    first_us: int
    exposures: int
    hits: int
    liked: int


class InArms(msgspec.Struct, frozen=True, array_like=True):
    """The arms of an exposure, by the keys of its user in them, and whether it has led to something liked."""

    users: tuple[str, ...]
    hit: bool


class Heard(NamedTuple):
    """An example, and when the event was that completed it."""

    example: Example
    at_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityConfig:
    """Whose scores, over which stretches of time, and how many examples are kept for gates.

    Parameters
    ----------
    window_s : so long a user counts in an arm of a live A/B, from the first exposure.
    max_users : users of arms that are kept.
    """

    ranker: str = "ensemble"
    bucket_s: float = 3600.0
    max_buckets: int = 1024
    max_exposures: int = 50_000
    ring: int = 1 << 15
    window_s: float = 86_400.0
    max_users: int = 500_000

    def __post_init__(self) -> None:
        for name in ("bucket_s", "window_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"quality: {name} is {getattr(self, name)}: give a positive number of seconds")
        at_least("quality", self, 1, "max_buckets", "max_exposures", "ring", "max_users")


class Quality(Policy):
    """Scores tested against outcomes."""

    name = "quality"
    version = 1
    measures = True
    handles = LEARNED_FROM
    Config = QualityConfig

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        c: QualityConfig = self.config
        self.reads = ("activity", c.ranker)
        self.hears = (c.ranker,)
        self.stores = (
            Array("sums", shape=(c.max_buckets * len(BY_NEW), _BINS_AT + 2 * _BINS), dtype="float64"),
            Table("pending", key=str, value=Pending, max_rows=c.max_exposures),
            Array("met", shape=(_ALL_MET + 1, 1), dtype="int64"),
            Array("scored", shape=(c.ring, _COLUMNS), dtype="int64"),
            Table("arm_users", key=str, value=ArmUser, max_rows=c.max_users),
            Table("in_arms", key=str, value=InArms, max_rows=c.max_exposures),
            Table("arms_seen", key=str, value=int, max_rows=1),
        )

    def fold(self, event: Event, prepared: Prepared, stores: Stores) -> None:
        """Test what has come to an end, and score what is shown."""
        if _is_scored(event) and event.data.arms and event.data.user_id is not None:
            self._shown(event, stores)  # first: a click may have come before it
        ranker = stores.of(self.config.ranker).server
        heard = self._heard(event, stores)
        self._test(heard, lambda n: float(ranker.score(heard[n].example)), stores)
        data = event.data
        if _is_scored(event):
            items = tuple(dict.fromkeys(one.item_id for one in data.items if one.item_id is not None))
            user = user_key(data.user_id, data.session_id)
            if items and data.exposure_id not in stores["pending"]:
                ranking = ranker.rank(RankRequest(user=user, item_ids=items, at_us=event.at_us))
                pending = Pending(items, tuple(ranking.scores.tolist()), (-1,) * len(items))
                stores["pending"].put(data.exposure_id, pending)

    def _shown(self, event: Event, stores: Stores) -> None:
        """Count an exposure in its arms."""
        data, users = event.data, []
        if data.exposure_id in stores["in_arms"]:
            return
        for one in data.arms:
            key = f"{one.experiment}\x1f{one.arm}\x1f{_hash('u:' + data.user_id)}"
            old = stores["arm_users"].get(key) or ArmUser(one.experiment, one.arm, one.share, event.at_us, 0, 0, 0)
            if self._open(old, event.at_us):
                stores["arm_users"].put(key, msgspec.structs.replace(old, exposures=old.exposures + 1))
                users.append(key)
        stores["in_arms"].put(data.exposure_id, InArms(tuple(users), False))
        stores["arms_seen"].put("us", max(event.at_us, stores["arms_seen"].get("us") or 0))

    def _liked(self, exposure_id: str, at_us: int, stores: Stores) -> None:
        """Count something liked in the arms of its exposure."""
        found = stores["in_arms"].get(exposure_id)
        for key in () if found is None else found.users:
            old = stores["arm_users"].get(key)
            if old is not None and self._open(old, at_us):
                new = msgspec.structs.replace(old, hits=old.hits + (not found.hit), liked=old.liked + 1)
                stores["arm_users"].put(key, new)
        if found is not None and not found.hit:
            stores["in_arms"].put(exposure_id, InArms(found.users, True))

    def _open(self, user: ArmUser, at_us: int) -> bool:
        closes_us: float = user.first_us + self.config.window_s * _US
        return at_us < closes_us

    def _heard(self, event: Event, stores: Stores) -> list[Heard]:
        examples = stores.of("activity").server.examples(event, stores.now_us)
        return [Heard(one, event.at_us) for one in examples]

    def gather(self, event: Event, stores: Stores) -> list[Heard] | None:
        """Gather what has come to an end; what is shown is scored by the ranker as it is at that event."""
        return None if _is_scored(event) else self._heard(event, stores)

    def fold_gathered(self, gathered: Sequence[Sequence[Heard]], told: Mapping[str, Any], stores: Stores) -> None:
        """Test examples with the scores that the ranker gave as it learned them."""
        scores: list[float] = told[self.config.ranker].tolist()
        self._test([one for each in gathered for one in each], scores.__getitem__, stores)

    def _test(self, heard: Sequence[Heard], score_of: Callable[[int], float], stores: Stores) -> None:
        """Test examples in order; ``score_of`` the n-th is asked where no exposure has one."""
        tested: list[tuple[Example, float]] = []
        for n, (example, at_us) in enumerate(heard):
            if example.exposure and example.label > 0:
                self._liked(example.exposure, at_us, stores)
            pending = stores["pending"].get(example.exposure) if example.exposure else None
            if pending is not None and example.item in pending.items:
                place = pending.items.index(example.item)
                score = pending.scores[place]
                labels = (*pending.labels[:place], int(example.label > 0), *pending.labels[place + 1 :])
                if -1 in labels:
                    stores["pending"].put(example.exposure, Pending(pending.items, pending.scores, labels))
                else:
                    stores["pending"].delete(example.exposure)
                    self._count(tested, stores)
                    tested = []
                    self._close(example, pending.scores, labels, stores)
            elif example.swaps:
                continue  # its exposure is tested already, with the outcome it had then
            else:
                score = score_of(n)
            tested.append((example, min(max(score, _LEAST), 1 - _LEAST)))
        self._count(tested, stores)

    def _count(self, tested: Sequence[tuple[Example, float]], stores: Stores) -> None:
        """Count scored examples, in order, where their time and who is new put them; and keep them for gates."""
        if not tested:
            return
        met, sums, scored = stores["met"], stores["sums"], stores["scored"]
        size_us, config = self.config.bucket_s * _US, self.config
        kept = np.array(
            [(e.seq, e.n, _hash(e.user), e.at_us, round(p * _ONE), e.label > 0, 0) for e, p in tested], np.int64
        )
        rows = [_MET_ROWS + _hash("i" + e.item) % _MET_ROWS for e, _ in tested]
        rows += [_hash(e.user) % _MET_ROWS for e, _ in tested]
        of_both = met.touch(np.array([*rows, _ALL_MET]))
        first = int(met.values[_ALL_MET, 0])
        new = self._kernels.meet(met.values, of_both, _NEW)
        buckets = np.array([int(e.at_us / size_us) + 1 for e, _ in tested])
        of_sums = sums.touch(buckets % config.max_buckets * len(BY_NEW) + new)
        places = scored.touch(np.arange(first, first + len(tested)) % config.ring)
        scores = np.array([p for _, p in tested])
        self._kernels.add(sums.values, of_sums, buckets, scores, new, kept, scored.values, places)

    @cached_property
    def _kernels(self) -> ModuleType:
        from streamfold.plugins import _kernels_quality

        return _kernels_quality

    def _close(self, example: Example, scores: Sequence[float], labels: Sequence[int], stores: Stores) -> None:
        """All outcomes of an exposure are known: pairs that are in order, and NDCG@10."""
        score, liked = np.array(scores), np.array(labels) > 0
        if liked.all() or not liked.any():
            return
        above = score[liked][:, None] - score[~liked][None, :]
        won = float((above > 0).sum() + 0.5 * (above == 0).sum())
        order = np.argsort(-score, kind="stable")[:10]
        gain = 1 / np.log2(np.arange(2, 12))
        best = gain[: int(liked.sum())].sum()
        ndcg = float((gain[: len(order)] * liked[order]).sum() / best)
        bucket = int(example.at_us / (self.config.bucket_s * _US)) + 1
        row = bucket % self.config.max_buckets * len(BY_NEW) + BY_NEW.index("known")
        stores["sums"].touch_row(row)
        values = stores["sums"].values
        self._kernels.start(values, row, bucket)
        values[row, _WON : _LISTS + 1] += (won, above.size, ndcg, 1)

    def serve(self, view: View) -> QualityServer:
        """Serve the series, and the ring for gates."""
        return QualityServer(self, view)


class QualityServer:
    """Answers from the sums; a ``QualityReport`` and a ``LossReport``."""

    slices = SLICES

    def __init__(self, policy: Quality, view: View) -> None:
        self._config: QualityConfig = policy.config
        self._view = view

    def measured(self) -> SumsAndRing:
        count = int(self._view["met"].values[_ALL_MET, 0])
        size = self._config.ring
        order = np.arange(max(0, count - size), count) % size
        users = list(self._view["arm_users"].items())
        upto_us = self._view["arms_seen"].get("us") or 0
        return SumsAndRing(
            self._config, self._view["sums"].values.copy(), self._view["scored"].values[order], users, upto_us
        )

    @property
    def ranker(self) -> str:
        return self._config.ranker

    def losses(self, after: int) -> tuple[int, list[tuple[int, float]]]:
        count = int(self._view["met"].values[2 * _MET_ROWS, 0])
        if count <= after:
            return count, []
        places = np.arange(max(after, count - self._config.ring), count) % self._config.ring
        rows = self._view["scored"].values[places]
        right = np.where(rows[:, 5] > 0, rows[:, 4] / _ONE, 1 - rows[:, 4] / _ONE)
        return count, list(zip(rows[:, 0].tolist(), (-np.log(right)).tolist(), strict=True))


class SumsAndRing:
    """What was ``Measured``."""

    def __init__(
        self,
        config: QualityConfig,
        sums: npt.NDArray[np.float64],
        ring: npt.NDArray[np.int64],
        users: Sequence[tuple[str, ArmUser]],
        upto_us: int,
    ) -> None:
        self._config, self._sums, self._ring, self._users, self._upto_us = config, sums, ring, users, upto_us

    def series(self, *, from_us: int, to_us: int, slice_: str) -> list[QualityPoint]:
        """Sums of stretches of time."""
        size_us = self._config.bucket_s * _US
        slices = BY_NEW if slice_ == "all" else (slice_,)
        rows = np.concatenate([self._sums[BY_NEW.index(one) :: len(BY_NEW)] for one in slices])
        rows = rows[rows[:, _BUCKET] > 0]
        at_us = (rows[:, _BUCKET] - 1) * size_us
        rows = rows[(at_us + size_us >= from_us) & (at_us < to_us)]
        buckets, place = np.unique(rows[:, _BUCKET], return_inverse=True)
        sums = np.zeros((len(buckets), rows.shape[1]))
        np.add.at(sums, place, rows)
        return [_point(int((bucket - 1) * size_us), one) for bucket, one in zip(buckets, sums, strict=True)]

    def scored(self) -> Scored:
        """The examples of the ring."""
        rows = self._ring
        return Scored(
            key=rows[:, :2], user=rows[:, 2], at_us=rows[:, 3], score=rows[:, 4] / _ONE,
            label=rows[:, 5].astype(np.float64), slices=rows[:, 6],
        )  # fmt: skip

    def arms(self) -> list[ArmOutcome]:
        """What users of each arm of live A/Bs did, users in the order in which their windows closed. O(users)."""
        upto_us = self._upto_us - self._config.window_s * _US
        by_arm: dict[tuple[str, ArmName], list[tuple[int, str, ArmUser]]] = {}
        for key, user in self._users:
            by_arm.setdefault((user.experiment, user.arm), []).append((user.first_us, key, user))
        return [_outcome([user for *_, user in sorted(by_arm[arm])], upto_us) for arm in sorted(by_arm)]


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


def _point(at_us: int, row: npt.NDArray[np.float64]) -> QualityPoint:
    def mean(total: int, count: int) -> float:
        return float(row[total] / row[count]) if row[count] else math.nan

    positive, negative = row[_BINS_AT : _BINS_AT + _BINS], row[_BINS_AT + _BINS :]
    auc = _auc(positive, negative)
    return QualityPoint(
        at_us, int(row[_EVENTS]), auc, mean(_WON, _PAIRS), mean(_LOSS, _EVENTS), mean(_NDCG, _LISTS),
        calibration_error=calibration_error(positive, negative),
    )  # fmt: skip


def _auc(positive: npt.NDArray[np.float64], negative: npt.NDArray[np.float64]) -> float:
    """AUC of two histograms, ties within a bin counted half."""
    pairs = positive.sum() * negative.sum()
    if not pairs:
        return math.nan
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum() / pairs)


def _is_scored(event: Event) -> bool:
    return event.type == "exposure.recorded" and event.data.kind in ("recommend", "rank")


@lru_cache(1 << 16)
def _hash(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=4).digest(), "big") >> 1
