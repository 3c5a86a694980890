"""Policy ``quality``: how good a ranker's scores are, measured on the stream itself, live or in a shadow.

Delayed progressive validation: what an exposure showed is scored by this group's ranker when the exposure comes by in
the log, and that score is tested against the outcome when it is there (a score made later has seen everything since).
An interaction that followed no exposure is scored before it is learned. Policies that read fold before what they read,
so the ranker is always as it was.

Kept are sums per stretch of time and slice, one row of an array each: log loss, a histogram of scores by label (AUC
from it is exact up to ties within 1/64 of probability, the calibration error up to 1/128), won pairs within exposures
(per-user AUC) and NDCG@10 of exposures in the order of this ranker's scores (in the slice ``known``, whatever was
shown). And a ring of the last scored examples, which a gate pairs with another version's.

At a sample of events everything that the user has not judged is ranked, too: where what was liked stands among it
(NDCG@10), and how much of the catalogue comes first in any such ranking (coverage). How, and how popular an item was
(slices by decile): ``_whole_catalogue.py``.

Of live A/Bs it keeps what each user was shown and liked, by arm: exposures in the user's first ``window_s``, how many
of them led to something liked in that time, and how many items were liked. What comes later does not count, so a user
whose window has closed changes no more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b
from types import MappingProxyType, ModuleType
from typing import Any, NamedTuple

import msgspec
import numpy as np

from streamfold.core import (
    LEARNED_FROM,
    Array,
    ConfigError,
    Event,
    Example,
    Policy,
    Prepared,
    RankRequest,
    Stores,
    Table,
    View,
    emptied_on_erasure,
    user_key,
)
from streamfold.core.quality import BY_NEW
from streamfold.plugins._quality_series import (
    ALL_MET,
    BINS,
    BINS_AT,
    LISTS,
    MET_ROWS,
    ONE,
    PARTS,
    US,
    WON,
    ArmUser,
    QualityServer,
)
from streamfold.plugins._settings import at_least
from streamfold.plugins._whole_catalogue import CLASSES, NOT_RANKED, draw, keep, ranked, rankings, share_of

_LEAST = 1e-6
_NEW = 5
"""A user or an item is new in its first examples."""
_COLUMNS = 7


class Pending(msgspec.Struct, frozen=True, array_like=True):
    """An exposure as this ranker scores it; labels come one by one (−1: not yet).

    ``gains``: see ``Unseen``; empty where nothing else was ranked.
    """

    items: tuple[str, ...]
    scores: tuple[float, ...]
    labels: tuple[int, ...]
    gains: tuple[float, ...] = ()


class InArms(msgspec.Struct, frozen=True, array_like=True):
    """The arms of an exposure, by the keys of its user in them, and whether it has led to something liked."""

    users: tuple[str, ...]
    hit: bool


class Heard(NamedTuple):
    """An example, when the event was that completed it, and whether an event of its own told of the item before."""

    example: Example
    at_us: int
    told: bool


class Tested(NamedTuple):
    """An example, the score from before it was learned, and its NDCG@10 among everything unseen, or −1."""

    example: Example
    score: float
    gain: float


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityConfig:
    """Whose scores, over which stretches of time, and how many examples are kept for gates.

    Parameters
    ----------
    window_s : so long a user counts in an arm of a live A/B, from the first exposure.
    max_users : users of arms that are kept.
    rank_budget : so many items are scored per example on average to rank liked items among everything unseen; 0: none.
    rank_limit : of a catalogue of more items nothing is ranked: it would hold up the fold.
    max_rankings : so many of the last rankings are kept, for coverage.
    """

    ranker: str = "ensemble"
    bucket_s: float = 3600.0
    max_buckets: int = 1024
    max_exposures: int = 50_000
    ring: int = 1 << 15
    window_s: float = 86_400.0
    max_users: int = 500_000
    rank_budget: float = 0.5
    rank_limit: int = 20_000
    max_rankings: int = 4096

    def __post_init__(self) -> None:
        for name in ("bucket_s", "window_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"quality: {name} is {getattr(self, name)}: give a positive number of seconds")
        if not 0 <= self.rank_budget < math.inf:
            raise ConfigError(f"quality: rank_budget is {self.rank_budget}: give a number of items, 0 or more")
        at_least("quality", self, 1, "max_buckets", "max_exposures", "ring", "max_users", "rank_limit", "max_rankings")


class Quality(Policy):
    """Scores tested against outcomes."""

    name = "quality"
    version = 2
    measures = True
    handles = LEARNED_FROM
    Config = QualityConfig

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        c: QualityConfig = self.config
        self.reads = ("activity", c.ranker)
        self.hears = (c.ranker,)
        self.stores = (
            Array("sums", shape=(c.max_buckets * len(PARTS), BINS_AT + 2 * BINS), dtype="float64"),
            Table("pending", key=str, value=Pending, max_rows=c.max_exposures),
            Array("met", shape=(ALL_MET + 1, 1), dtype="int64"),
            Array("scored", shape=(c.ring, _COLUMNS), dtype="int64"),
            Table("arm_users", key=str, value=ArmUser, max_rows=c.max_users),
            Table("in_arms", key=str, value=InArms, max_rows=c.max_exposures),
            Table("arms_seen", key=str, value=int, max_rows=1),
            Array("mass", shape=(1, CLASSES), dtype="int64"),
            rankings(c.max_rankings),
            Table("named", key=str, value=int, max_rows=c.rank_limit + 1),
        )

    def fold(self, event: Event, prepared: Prepared, stores: Stores) -> None:
        """Test what has come to an end, and score what is shown."""
        if _is_scored(event) and event.data.arms and event.data.user_id is not None:
            self._shown(event, stores)  # first: a click may have come before it
        ranker = stores.of(self.config.ranker).server
        heard = self._heard(event, stores)
        gains = self._liked_unseen(event, heard, stores)
        data = event.data
        if _is_scored(event):
            items = tuple(dict.fromkeys(one.item_id for one in data.items if one.item_id is not None))
            if items and data.exposure_id not in stores["pending"]:  # before the test: a click may have come before it
                early = {one.example.item for one in heard if one.example.exposure == data.exposure_id}
                stores["pending"].put(data.exposure_id, self._scored(event, items, early, stores))
        self._test(heard, lambda n: float(ranker.score(heard[n].example)), stores, gains)

    def _scored(self, event: Event, items: tuple[str, ...], early: Set[str], stores: Stores) -> Pending:
        """Score what is shown; if the event is drawn, among everything unseen."""
        user = user_key(event.data.user_id, event.data.session_id)
        request = RankRequest(user=user, item_ids=items, at_us=event.at_us)
        scores = stores.of(self.config.ranker).server.rank(request).scores
        gains: dict[str, float] = {}
        if user and self._drawn(event, len(items), stores):
            gains = self._rank_unseen(user, items, event.at_us, stores, early=early)
        return Pending(
            items, tuple(scores.tolist()), (-1,) * len(items), tuple(gains[item] for item in items) if gains else ()
        )

    # -- everything unseen --------------------------------------------------------------------------------------------
    def _drawn(self, event: Event, examples: int, stores: Stores) -> bool:
        """Whether everything unseen is ranked at an event. Items that are only gathered are not counted yet: there may
        be more later, and the answer no longer yes, never the other way round: ``named`` only grows, and the items of
        ``activity`` are those before the event. An item in both counts once; O(named), but only if drawn so far."""
        config, at = self.config, draw(event.seq)
        if at >= share_of(0, examples, config.rank_budget):
            return False  # whatever the catalogue is
        activity, named = stores.of("activity").server, stores["named"]
        least = max(activity.count(), len(named))
        if least > config.rank_limit or at >= share_of(least, examples, config.rank_budget):
            return False
        items = activity.count(item for item, _ in named.items())
        return items <= config.rank_limit and at < share_of(items, examples, config.rank_budget)

    def _to_rank(self, event: Event, heard: Sequence[Heard], stores: Stores) -> int | None:
        """Which example of an event is to be ranked: the first that is liked and was not shown by us."""
        for n, (example, *_) in enumerate(heard):
            if example.label > 0 and not example.swaps and not example.exposure:
                return n if self._drawn(event, 1, stores) else None
        return None

    def _liked_unseen(self, event: Event, heard: Sequence[Heard], stores: Stores) -> dict[int, float]:
        """Rank what is liked, before it is learned; returns the gains of examples."""
        n = self._to_rank(event, heard, stores)
        if n is None:
            return {}
        example = heard[n].example
        gains = self._rank_unseen(example.user, (example.item,), example.at_us, stores)
        return {n: gains[example.item]} if gains else {}

    def _rank_unseen(
        self, user: str, targets: Sequence[str], at_us: int, stores: Stores, *, early: Set[str] = frozenset()
    ) -> dict[str, float]:
        """Rank everything unseen; returns the gains of targets, empty where the ranker has no scores."""
        named = [item for item, _ in stores["named"].items()]
        activity, ranker = stores.of("activity").server, stores.of(self.config.ranker).server
        made = ranked(ranker, activity, user, targets, named=named, early=early, at_us=at_us, now_us=stores.now_us)
        if made is None:
            return {}
        keep(made, at_us, stores["rankings"])
        return made.gains

    def _name(self, heard: Sequence[Heard], stores: Stores) -> None:
        """Keep items that only examples tell of, as long as there are not too many to be ranked."""
        named, config = stores["named"], self.config
        for example, _, told in heard if config.rank_budget else ():
            if not told and example.item not in named and len(named) <= config.rank_limit:
                named.put(example.item, example.seq)

    # -- arms ---------------------------------------------------------------------------------------------------------
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
        closes_us: float = user.first_us + self.config.window_s * US
        return at_us < closes_us

    # -- examples -----------------------------------------------------------------------------------------------------
    def _heard(self, event: Event, stores: Stores) -> list[Heard]:
        activity = stores.of("activity").server
        examples = activity.examples(event, stores.now_us)
        return [Heard(one, event.at_us, activity.heard_of(one.item)) for one in examples]

    def gather(self, event: Event, stores: Stores) -> list[Heard] | None:
        """Gather what has come to an end; what is ranked, too, is scored by the ranker as it is at that event."""
        heard = None if _is_scored(event) else self._heard(event, stores)
        return None if heard is None or self._to_rank(event, heard, stores) is not None else heard

    def fold_gathered(self, gathered: Sequence[Sequence[Heard]], told: Mapping[str, Any], stores: Stores) -> None:
        """Test examples with the scores that the ranker gave as it learned them."""
        scores: list[float] = told[self.config.ranker].tolist()
        self._test([one for each in gathered for one in each], scores.__getitem__, stores)

    def _test(
        self,
        heard: Sequence[Heard],
        score_of: Callable[[int], float],
        stores: Stores,
        gains: Mapping[int, float] = MappingProxyType({}),
    ) -> None:
        """Test examples in order; ``score_of`` the n-th is asked where no exposure has one."""
        tested: list[Tested] = []
        for n, (example, at_us, _) in enumerate(heard):
            gain = gains.get(n, NOT_RANKED)
            if example.exposure and example.label > 0:
                self._liked(example.exposure, at_us, stores)
            pending = stores["pending"].get(example.exposure) if example.exposure else None
            if pending is not None and example.item in pending.items:
                place = pending.items.index(example.item)
                score = pending.scores[place]
                if pending.gains and example.label > 0:
                    gain = pending.gains[place]
                labels = (*pending.labels[:place], int(example.label > 0), *pending.labels[place + 1 :])
                if -1 in labels:
                    stores["pending"].put(example.exposure, msgspec.structs.replace(pending, labels=labels))
                else:
                    stores["pending"].delete(example.exposure)
                    self._count(tested, stores)
                    tested = []
                    self._close(example, pending.scores, labels, stores)
            elif example.swaps:
                continue  # its exposure is tested already, with the outcome it had then
            else:
                score = score_of(n)
            tested.append(Tested(example, min(max(score, _LEAST), 1 - _LEAST), gain))
        self._count(tested, stores)
        self._name(heard, stores)

    def _count(self, tested: Sequence[Tested], stores: Stores) -> None:
        """Count scored examples, in order, where their time and who is new put them; and keep them for gates."""
        if not tested:
            return
        met, sums, scored, mass = stores["met"], stores["sums"], stores["scored"], stores["mass"]
        size_us, config = self.config.bucket_s * US, self.config
        kept = np.array(
            [(e.seq, e.n, _hash(e.user), e.at_us, round(p * ONE), e.label > 0, 0) for e, p, _ in tested], np.int64
        )
        rows = [MET_ROWS + _hash("i" + one.example.item) % MET_ROWS for one in tested]
        rows += [_hash(one.example.user) % MET_ROWS for one in tested]
        of_both = met.touch(np.array([*rows, ALL_MET]))
        first = int(met.values[ALL_MET, 0])
        mass.touch_row(0)
        new, deciles = self._kernels.meet(met.values, of_both, _NEW, mass.values[0])
        buckets = np.array([int(one.example.at_us / size_us) + 1 for one in tested])
        starts = buckets % config.max_buckets * len(PARTS)
        of_sums = sums.touch(np.concatenate([starts + new, starts + len(BY_NEW) + deciles]))
        places = scored.touch(np.arange(first, first + len(tested)) % config.ring)
        scores, gains = np.array([(one.score, one.gain) for one in tested]).T.copy()
        self._kernels.add(sums.values, of_sums, buckets, scores, gains, new, kept, scored.values, places)

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
        bucket = int(example.at_us / (self.config.bucket_s * US)) + 1
        row = bucket % self.config.max_buckets * len(PARTS) + PARTS.index("known")
        stores["sums"].touch_row(row)
        values = stores["sums"].values
        self._kernels.start(values, row, bucket)
        values[row, WON : LISTS + 1] += (won, above.size, ndcg, 1)

    def serve(self, view: View) -> QualityServer:
        """Serve the series, and the ring for gates."""
        return QualityServer(self, view)


def _is_scored(event: Event) -> bool:
    return event.type == "exposure.recorded" and event.data.kind in ("recommend", "rank")


@emptied_on_erasure
@lru_cache(1 << 16)
def _hash(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=4).digest(), "big") >> 1
