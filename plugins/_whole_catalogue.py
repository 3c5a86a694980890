"""What ``quality`` knows of the whole catalogue: a sample of rankings of all unseen items, and how popular items are.

A measure of the first places taken among a few sampled *items* does not order rankers as the measure over all items
does (Krichene and Rendle, On sampled metrics for item recommendation, 2020, doi:10.1145/3394486.3403226). So *events*
are sampled, and at one that is drawn everything that could be shown to its user is scored by the ranker as it is then.
An event of m examples is drawn with probability ``budget · m / (items + 100)`` by a hash of its position: what an
example costs on average does not grow with the catalogue, a replay draws the same events, and so does another version
(the two can be compared where both have the same ``rank_budget`` and ``rank_limit``). What is drawn is no secret of
the state, so that nobody has to fold event by event for it.

An *exposure* is ranked when it comes by, with the places of all its items, as nobody knows yet which of them will be
liked; a liked item that nothing of ours showed is ranked before it is learned. Left out is what the user has judged
(an action that says liked or not, as far as ``activity`` keeps it); ``streamfold evaluate`` also leaves out what was
shown and passed over, and otherwise measures the same. What was clicked before its exposure was logged is not left out
there, as if the click had come after it (also if the user had judged the item long before: nothing kept tells).

Popularity is the number of an item's examples so far. Items fall into ten parts of equally many examples, rarest first
(as in ``streamfold evaluate``, there by what they will have in the end): the examples of items met k times are counted
in classes of k, four an octave, and where an item stands among them is told by the classes below its own; within a
class a hash decides, as equal items have to be split somehow. So no event has to sort the items. Who is met for the
first time is in the first part.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from streamfold.core import Array, Ranker, RankRequest
from streamfold.core.quality import TOP, coverage, first_of, ndcg_of_one

DECILES = tuple(f"item_decile_{n}" for n in range(1, 11))
"""Slices of examples by how popular their item was before, rarest first."""
CLASSES = 128
NOT_RANKED = -1.0
_ALONE = 100
"""An event that is drawn is folded by itself, which costs about as much as scoring so many items."""
_AT_ONCE = 1000
"""Items are scored in calls of so many, so that other threads get their turn."""
_AT, _ITEMS, _FIRST = range(3)
_MASK = (1 << 64) - 1


class Unseen(NamedTuple):
    """Where items stand among all that a user has not judged. ``gains``: their NDCG@10 if they are liked, or −1."""

    gains: dict[str, float]
    first: list[str]
    items: int


def draw(seq: int) -> float:
    """Draw a number from 0 to 1 for the event at a position (splitmix64, doi:10.1145/2660193.2660195).

    >>> sum(draw(seq) < .1 for seq in range(10_000))
    1005
    """
    x = (seq + 1) * 0x9E3779B97F4A7C15 & _MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _MASK
    return (x ^ x >> 31) / (1 << 64)


def share_of(items: int, examples: int, budget: float) -> float:
    """Probability that an event of so many examples is drawn."""
    return budget * examples / (items + _ALONE)


def ranked(
    ranker: Ranker,
    catalogue: Any,
    user: str,
    targets: Sequence[str],
    *,
    named: Iterable[str],
    early: Set[str] = frozenset(),
    at_us: int,
    now_us: int,
) -> Unseen | None:
    """Rank everything unseen for a user. O(items log items).

    Parameters
    ----------
    catalogue : the server of ``activity``.
    targets : items whose places are told; −1 of those that the user has judged.
    named : items that no event of their own told of.
    early : targets whose feedback was there before they were shown: they count as not judged.
    now_us : what could be shown at that time.

    Returns
    -------
    None where the ranker has no finite scores.
    """
    judged = catalogue.judged(user, targets)
    fitting = [item for item, known in zip(targets, judged, strict=True) if not known or item in early]
    unseen, listed = catalogue.unjudged(user, named, now_us)
    items = [*unseen, *sorted({*fitting}.difference(unseen))]
    parts = [items[start : start + _AT_ONCE] for start in range(0, len(items), _AT_ONCE)]
    scores = [ranker.rank(RankRequest(user=user, item_ids=part, at_us=at_us)).scores for part in parts]
    found = np.concatenate([np.empty(0), *scores])
    if not np.isfinite(found).all():
        return None
    gains = dict.fromkeys(targets, NOT_RANKED)
    if fitting:
        place = {item: j for j, item in enumerate(items)}
        for item in fitting:
            j = place[item]
            gains[item] = ndcg_of_one(float(found[j]), np.delete(found, j))
    return Unseen(gains, [items[j] for j in first_of(found)], listed)


# -- the last rankings ------------------------------------------------------------------------------------------------
def rankings(most: int) -> Array:
    """Declare the last rankings: time, items that could be shown, hashes of the first ten; in the last row how many."""
    return Array("rankings", shape=(most + 1, _FIRST + TOP), dtype="int64")


def keep(made: Unseen, at_us: int, store: Any) -> None:
    """Keep what came first in a ranking, in the place of the oldest one."""
    most = len(store) - 1
    count = int(store.values[most, 0])
    hashes = [_hash(item) for item in made.first]
    store.put([count % most], [[at_us, made.items, *hashes, *[0] * (TOP - len(hashes))]])
    store.put([most], [[count + 1] + [0] * (_FIRST + TOP - 1)])


def kept(values: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Copy the rankings that are kept, in order of the log."""
    most = len(values) - 1
    count = int(values[most, 0])
    return values[np.arange(max(0, count - most), count) % most]


def times(rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """When rankings were made."""
    return rows[:, _AT]


def shown_at_last(rows: npt.NDArray[np.int64]) -> int:
    """How many items could be shown at the last of some rankings."""
    return int(rows[-1, _ITEMS]) if len(rows) else 0


def covered(rows: npt.NDArray[np.int64]) -> float:
    """Share of the items that could be shown at the last of some rankings that are in the first ten of any."""
    first = np.unique(rows[:, _FIRST:])
    return coverage(int(np.count_nonzero(first)), shown_at_last(rows)) if len(rows) else float("nan")


def _hash(item: str) -> int:
    """63 bits, never 0."""
    return int.from_bytes(blake2b(item.encode(), digest_size=8).digest(), "big") >> 1 or 1
