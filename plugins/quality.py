"""Policy ``quality``: how good a ranker's scores are, measured on the stream itself, live or in a shadow.

Delayed progressive validation: what an exposure showed is scored by this group's ranker when the exposure comes by in
the log, and that score is tested against the outcome when it is there (a score made later has seen everything since).
An interaction that followed no exposure is scored before it is learned. Policies that read fold before what they read,
so the ranker is always as it was.

Kept are sums per stretch of time and slice, one row of an array each: log loss, a histogram of scores by label (AUC
from it is exact up to ties within 1/64 of probability), won pairs within exposures (per-user AUC) and NDCG@10 of
exposures in the order of this ranker's scores (in the slice ``known``, whatever was shown). And a ring of the last
scored examples, which a gate pairs with another version's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from streamfold.core import (
    LEARNED_FROM,
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
from streamfold.core.quality import BY_NEW
from streamfold.plugins._settings import at_least

SLICES = ("all", *BY_NEW)
_BINS = 64
_LEAST = 1e-6
_NEW = 5
"""A user or an item is new in its first examples."""
_MET_ROWS = 1 << 16
_US = 1_000_000
_ONE = float(1 << 53)
_COLUMNS = 7
_BUCKET, _EVENTS, _LOSS, _WON, _PAIRS, _NDCG, _LISTS, _BINS_AT = range(8)
"""Columns of ``sums``: number of the bucket plus 1, sums, then a histogram of scores of each label."""


class Pending(msgspec.Struct, frozen=True, array_like=True):
    """An exposure as this ranker scores it; labels come one by one (−1: not yet)."""

    items: tuple[str, ...]
    scores: tuple[float, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityConfig:
    """Whose scores, over which stretches of time, and how many examples are kept for gates."""

    ranker: str = "ensemble"
    bucket_s: float = 3600.0
    max_buckets: int = 1024
    max_exposures: int = 50_000
    ring: int = 1 << 15

    def __post_init__(self) -> None:
        if not 0 < self.bucket_s < math.inf:
            raise ConfigError(f"quality: bucket_s is {self.bucket_s}: give a positive number of seconds")
        at_least("quality", self, 1, "max_buckets", "max_exposures", "ring")


class Quality(Policy):
    """Scores tested against outcomes."""

    name = "quality"
    version = 1
    handles = LEARNED_FROM
    Config = QualityConfig

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        c: QualityConfig = self.config
        self.reads = ("activity", c.ranker)
        self.stores = (
            Array("sums", shape=(c.max_buckets * len(BY_NEW), _BINS_AT + 2 * _BINS), dtype="float64"),
            Table("pending", key=str, value=Pending, max_rows=c.max_exposures),
            Array("met", shape=(2 * _MET_ROWS + 1, 1), dtype="int64"),
            Array("scored", shape=(c.ring, _COLUMNS), dtype="int64"),
        )

    def fold(self, event: Event, prepared: Prepared, stores: Stores) -> None:
        """Test what has come to an end, and score what is shown."""
        ranker = stores.of(self.config.ranker).server
        for example in stores.of("activity").server.examples(event, stores.now_us):
            self._test(example, ranker, stores)
        data = event.data
        if event.type == "exposure.recorded" and data.kind in ("recommend", "rank"):
            items = tuple(dict.fromkeys(one.item_id for one in data.items if one.item_id is not None))
            user = user_key(data.user_id, data.session_id)
            if items and data.exposure_id not in stores["pending"]:
                ranking = ranker.rank(RankRequest(user=user, item_ids=items, at_us=event.at_us))
                pending = Pending(items, tuple(ranking.scores.tolist()), (-1,) * len(items))
                stores["pending"].put(data.exposure_id, pending)

    def _test(self, example: Example, ranker: Any, stores: Stores) -> None:
        pending = stores["pending"].get(example.exposure) if example.exposure else None
        if pending is not None and example.item in pending.items:
            place = pending.items.index(example.item)
            score = pending.scores[place]
            labels = (*pending.labels[:place], int(example.label > 0), *pending.labels[place + 1 :])
            if -1 in labels:
                stores["pending"].put(example.exposure, Pending(pending.items, pending.scores, labels))
            else:
                stores["pending"].delete(example.exposure)
                self._close(example, pending.scores, labels, stores)
        elif example.swaps:
            return  # its exposure is tested already, with the outcome it had then
        else:
            score = float(ranker.score(example))
        user, new, count = self._meet(example, stores)
        liked = example.label > 0
        score = min(max(score, _LEAST), 1 - _LEAST)
        row = self._row(example.at_us, BY_NEW[new], stores)
        sums = stores["sums"].values
        sums[row, _EVENTS] += 1
        sums[row, _LOSS] -= math.log(score if liked else 1 - score)
        sums[row, _BINS_AT + min(int(score * _BINS), _BINS - 1) + (0 if liked else _BINS)] += 1
        place = count % self.config.ring
        stores["scored"].touch_row(place)
        kept = (example.seq, example.n, user, example.at_us, round(score * _ONE), int(liked), new)
        stores["scored"].values[place] = kept

    def _meet(self, example: Example, stores: Stores) -> tuple[int, int, int]:
        """Count a user, an item and the example; return the user's hash (31 bits), who is new, and the number."""
        user, item = _hash(example.user), _hash("i" + example.item)
        rows, store = (user % _MET_ROWS, _MET_ROWS + item % _MET_ROWS, 2 * _MET_ROWS), stores["met"]
        before = []
        for row in rows:
            store.touch_row(row)
            before.append(int(store.values[row, 0]))
            store.values[row, 0] += 1
        of_user, of_item, count = before
        return user, int(of_user < _NEW) + 2 * int(of_item < _NEW), count

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
        row = self._row(example.at_us, "known", stores)
        stores["sums"].values[row, _WON : _LISTS + 1] += (won, above.size, ndcg, 1)

    def _row(self, at_us: int, slice_: str, stores: Stores) -> int:
        """The row of a time, about to change; the newest stretches of time take the oldest ones' places."""
        bucket = int(at_us / (self.config.bucket_s * _US)) + 1
        row: int = bucket % self.config.max_buckets * len(BY_NEW) + BY_NEW.index(slice_)
        stores["sums"].touch_row(row)
        values = stores["sums"].values
        if values[row, _BUCKET] != bucket:
            values[row] = 0
            values[row, _BUCKET] = bucket
        return row

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
        count = int(self._view["met"].values[2 * _MET_ROWS, 0])
        size = self._config.ring
        order = np.arange(max(0, count - size), count) % size
        return SumsAndRing(self._config, self._view["sums"].values.copy(), self._view["scored"].values[order])

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

    def __init__(self, config: QualityConfig, sums: npt.NDArray[np.float64], ring: npt.NDArray[np.int64]) -> None:
        self._config, self._sums, self._ring = config, sums, ring

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


def _point(at_us: int, row: npt.NDArray[np.float64]) -> QualityPoint:
    def mean(total: int, count: int) -> float:
        return float(row[total] / row[count]) if row[count] else math.nan

    positive, negative = row[_BINS_AT : _BINS_AT + _BINS], row[_BINS_AT + _BINS :]
    auc = _auc(positive, negative)
    return QualityPoint(at_us, int(row[_EVENTS]), auc, mean(_WON, _PAIRS), mean(_LOSS, _EVENTS), mean(_NDCG, _LISTS))


def _auc(positive: npt.NDArray[np.float64], negative: npt.NDArray[np.float64]) -> float:
    """AUC of two histograms, ties within a bin counted half."""
    pairs = positive.sum() * negative.sum()
    if not pairs:
        return math.nan
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum() / pairs)


@lru_cache(1 << 16)
def _hash(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=4).digest(), "big") >> 1
