"""Policy ``quality``: how good a ranker's scores are, measured on the stream itself, live or in a shadow.

Delayed progressive validation: what an exposure showed is scored by this group's ranker when the exposure comes by in
the log, and that score is tested against the outcome when it is there (a score made later has seen everything since).
An interaction that followed no exposure is scored before it is learned. Policies that read fold before what they read,
so the ranker is always as it was.

Kept are sums per stretch of time and slice: log loss, a histogram of scores by label (AUC from it is exact up to ties
within 1/64 of probability), won pairs within exposures (per-user AUC) and NDCG@10 of exposures in the order of this
ranker's scores. And a ring of the last scored examples, which a gate pairs with another version's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
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

SLICES = ("all", "new_user", "new_item", "new_both", "known")
_BINS = 64
_LEAST = 1e-6
_NEW = 5
"""A user or an item is new in its first examples."""
_MET_ROWS = 1 << 16
_US = 1_000_000
_COLUMNS = 7


class Bucket(msgspec.Struct, frozen=True, array_like=True):
    """Sums over a stretch of time."""

    events: int = 0
    loss: float = 0.0
    positive: tuple[int, ...] = (0,) * _BINS
    negative: tuple[int, ...] = (0,) * _BINS
    won: float = 0.0
    pairs: int = 0
    ndcg: float = 0.0
    lists: int = 0


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
    max_buckets: int = 20_000
    max_exposures: int = 50_000
    ring: int = 1 << 15

    def __post_init__(self) -> None:
        if not 0 < self.bucket_s < math.inf:
            raise ConfigError(f"quality: bucket_s is {self.bucket_s}: give a positive number of seconds")
        for name in ("max_buckets", "max_exposures", "ring"):
            if getattr(self, name) < 1:
                raise ConfigError(f"quality: {name} is {getattr(self, name)}: it must be at least 1")


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
            Table("bucket", key=str, value=Bucket, max_rows=c.max_buckets),
            Table("pending", key=str, value=Pending, max_rows=c.max_exposures),
            Array("met", shape=(2 * _MET_ROWS, 1), dtype="int32"),
            Array("scored", shape=(c.ring, _COLUMNS), dtype="int64"),
            Array("end", shape=(1, 1), dtype="int64"),
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
        user, new = self._meet(example, stores)
        score = min(max(score, _LEAST), 1 - _LEAST)
        loss = -math.log(score if example.label > 0 else 1 - score)
        place = min(int(score * _BINS), _BINS - 1)
        for name in _slices(new):
            self._add(example.at_us, name, stores, events=1, loss=loss, bin_=(place, example.label > 0))
        end = stores["end"]
        count = int(end.values[0, 0])
        row = (example.seq, example.n, user, example.at_us, round(score * (1 << 53)), int(example.label > 0), new)
        stores["scored"].put([count % self.config.ring], [row])
        end.put([0], [[count + 1]])

    def _meet(self, example: Example, stores: Stores) -> tuple[int, int]:
        """Count a user and an item; return the user's hash (31 bits) and who is new."""
        user, item = _hash(example.user), _hash("i" + example.item)
        met = stores["met"]
        rows = np.array([user % _MET_ROWS, _MET_ROWS + item % _MET_ROWS])
        before = met.get(rows)[:, 0]
        met.put(rows, np.minimum(before + 1, _NEW)[:, None])
        return user, int(before[0] < _NEW) + 2 * int(before[1] < _NEW)

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
        self._add(example.at_us, "all", stores, won=won, pairs=above.size, ndcg=ndcg, lists=1)

    def _add(
        self,
        at_us: int,
        name: str,
        stores: Stores,
        *,
        events: int = 0,
        loss: float = 0.0,
        bin_: tuple[int, bool] | None = None,
        won: float = 0.0,
        pairs: int = 0,
        ndcg: float = 0.0,
        lists: int = 0,
    ) -> None:
        key = f"{name} {int(at_us / (self.config.bucket_s * _US))}"
        old = stores["bucket"].get(key) or Bucket()
        positive, negative = old.positive, old.negative
        if bin_ is not None:
            place, liked = bin_
            counts = positive if liked else negative
            counts = (*counts[:place], counts[place] + 1, *counts[place + 1 :])
            positive, negative = (counts, negative) if liked else (positive, counts)
        bucket = Bucket(
            old.events + events, old.loss + loss, positive, negative, old.won + won, old.pairs + pairs,
            old.ndcg + ndcg, old.lists + lists,
        )  # fmt: skip
        stores["bucket"].put(key, bucket)

    def serve(self, view: View) -> QualityServer:
        """Serve the series, and the ring for gates."""
        return QualityServer(self, view)


class QualityServer:
    """Answers from the sums; a ``QualityReport``."""

    slices = SLICES

    def __init__(self, policy: Quality, view: View) -> None:
        self._config: QualityConfig = policy.config
        self._view = view

    def series(self, *, from_us: int, to_us: int, slice_: str) -> list[QualityPoint]:
        size_us = self._config.bucket_s * _US
        rows = []
        for key, bucket in self._view["bucket"].items():
            name, _, number = key.partition(" ")
            at_us = int(int(number) * size_us)
            if name == slice_ and from_us <= at_us + size_us and at_us < to_us:
                rows.append((at_us, bucket))
        return [_point(at_us, bucket) for at_us, bucket in sorted(rows, key=lambda row: row[0])]

    def scored(self) -> Scored:
        count = int(self._view["end"].values[0, 0])
        size = self._config.ring
        order = np.arange(max(0, count - size), count) % size
        rows = self._view["scored"].values[order]
        return Scored(
            key=rows[:, :2], user=rows[:, 2], at_us=rows[:, 3], score=rows[:, 4] / float(1 << 53),
            label=rows[:, 5].astype(np.float64), slices=rows[:, 6],
        )  # fmt: skip


def _slices(new: int) -> tuple[str, ...]:
    return ("all", ("known", "new_user", "new_item", "new_both")[new])


def _point(at_us: int, bucket: Bucket) -> QualityPoint:
    nan = math.nan
    return QualityPoint(
        at_us,
        bucket.events,
        _auc(np.array(bucket.positive, float), np.array(bucket.negative, float)),
        bucket.won / bucket.pairs if bucket.pairs else nan,
        bucket.loss / bucket.events if bucket.events else nan,
        bucket.ndcg / bucket.lists if bucket.lists else nan,
    )


def _auc(positive: npt.NDArray[np.float64], negative: npt.NDArray[np.float64]) -> float:
    """AUC of two histograms, ties within a bin counted half."""
    pairs = positive.sum() * negative.sum()
    if not pairs:
        return math.nan
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum() / pairs)


def _hash(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=4).digest(), "big") >> 1
