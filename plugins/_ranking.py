"""What online rankers share: ids and tokens as hashed codes, and a policy that learns labelled examples.

An id or a token is coded as the first eight bytes of BLAKE2b over its namespaced string, whatever the process and its
hash seed. A kernel takes codes, combines them where it crosses two, and takes the remainder by a store's rows: new ids
need no dictionary, and the shape of the store is the bound (Weinberger et al., Feature Hashing for Large Scale
Multitask Learning, 2009, arXiv:0902.2206). Two that meet in one row share it.

A ranker's ``learn`` takes any number of examples and does exactly what the loop over them does: the loop is a compiled
kernel. The scores that it returns are those from before each example.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from hashlib import blake2b
from importlib import import_module
from operator import is_
from types import ModuleType
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from streamfold.core import (
    LEARNED_FROM,
    Event,
    Example,
    Feature,
    Policy,
    Prepared,
    Ranking,
    RankRequest,
    Stores,
    View,
)

Codes = npt.NDArray[np.uint64]
Ends = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
KEEP = 8.0
"""A row that was met n times may make way when n / 8 times its table's rows were learned since."""
_CACHED = 1 << 17
_RECENT = 256
"""Examples are scored and learned by several policies one after the other; so many are coded once."""
_MOST_USER_TOKENS, _MOST_ITEM_TOKENS = 8, 16
"""So many tokens of a side are learned from: crosses of the two cost their product."""


@lru_cache(_CACHED)
def code(kind: str, text: str) -> int:
    """Code a string of a namespace: ``user``, ``item``, ``user_token`` or ``item_token``.

    >>> code("user", "u:7") == code("user", "u:7"), code("user", "u:7") == code("item", "u:7")
    (True, False)
    """
    return int.from_bytes(blake2b(f"{kind}\x1f{text}".encode(), digest_size=8).digest(), "little")


@lru_cache(_CACHED)
def _codes(kind: str, texts: tuple[str, ...], most: int) -> Codes:
    """Code some strings. Nobody writes to what is kept; marked so it would be another type for numba to compile for."""
    return np.array([code(kind, text) for text in texts[:most]], np.uint64)


@lru_cache(_CACHED)
def _side_of_one(kind: str, tokens: tuple[str, ...], most: int) -> tuple[Codes, Ends]:
    codes = _codes(kind, tokens, most)
    return codes, np.array([0, len(codes)])


class Coded(NamedTuple):
    """Pairs of user and item as codes; tokens of pair ``j`` are ``user_tokens[user_ends[j] : user_ends[j + 1]]``."""

    users: Codes
    items: Codes
    user_tokens: Codes
    user_ends: Ends
    item_tokens: Codes
    item_ends: Ends


def _joined(kind: str, most: int, sets: Sequence[tuple[str, ...]]) -> tuple[Codes, Ends]:
    if len(sets) == 1:
        return _side_of_one(kind, sets[0], most)
    parts = [_codes(kind, tokens, most) for tokens in sets]
    ends = np.zeros(len(parts) + 1, np.int64)
    np.cumsum([len(part) for part in parts], out=ends[1:])
    return np.concatenate(parts) if parts else np.empty(0, np.uint64), ends


def coded(
    users: Sequence[str],
    items: Sequence[str],
    user_tokens: Sequence[tuple[str, ...]],
    item_tokens: Sequence[tuple[str, ...]],
) -> Coded:
    """Code pairs of users and items."""
    return Coded(
        np.array([code("user", user) for user in users], np.uint64),
        np.array([code("item", item) for item in items], np.uint64),
        *_joined("user_token", _MOST_USER_TOKENS, user_tokens),
        *_joined("item_token", _MOST_ITEM_TOKENS, item_tokens),
    )


def coded_request(
    user: str, items: tuple[str, ...], user_tokens: tuple[str, ...], item_tokens: list[tuple[str, ...]]
) -> Coded:
    """Code the pairs of a request: the next ranker of the group is asked for the same ones."""
    global _requested_last
    asked = user, items, user_tokens, item_tokens
    last, found = _requested_last
    if last != asked:
        n = len(items)
        found = coded([user] * n, items, [user_tokens] * n, item_tokens)
        _requested_last = asked, found
    return found


def coded_examples(examples: Sequence[Example]) -> Coded:
    """Code the pairs of examples."""
    global _coded_last
    if len(examples) == 1:
        return _coded_one(examples[0])
    last, found = _coded_last
    if len(last) == len(examples) and all(map(is_, last, examples)):
        return found
    found = coded(
        [one.user for one in examples],
        [one.item for one in examples],
        [one.user_tokens for one in examples],
        [one.item_tokens for one in examples],
    )
    _coded_last = tuple(examples), found
    return found


_Asked = tuple[str, tuple[str, ...], tuple[str, ...], list[tuple[str, ...]]]
_requested_last: tuple[_Asked, Coded] = ("", (), (), []), coded((), (), (), ())
_coded_last: tuple[tuple[Example, ...], Coded] = (), coded((), (), (), ())
"""The last examples that were coded together: the next ranker of the group learns the same ones."""


@lru_cache(_RECENT)
def _coded_one(example: Example) -> Coded:
    return Coded(
        _codes("user", (example.user,), 1),
        _codes("item", (example.item,), 1),
        *_side_of_one("user_token", example.user_tokens, _MOST_USER_TOKENS),
        *_side_of_one("item_token", example.item_tokens, _MOST_ITEM_TOKENS),
    )


@lru_cache
def _outcome(label: float, swaps: bool, weight: float) -> tuple[Floats, Flags, Floats]:
    return np.array([label]), np.array([swaps]), np.array([weight])


def outcomes(examples: Sequence[Example]) -> tuple[Floats, Flags, Floats]:
    """Labels of examples, which of them take back their opposite, and how much they count."""
    if len(examples) == 1:
        return _outcome(examples[0].label, examples[0].swaps, examples[0].weight)
    return (
        np.array([one.label for one in examples]),
        np.array([one.swaps for one in examples], bool),
        np.array([one.weight for one in examples]),
    )


class Predicted(NamedTuple):
    """What a model says of pairs: scores, whether the item is known, and the parts of the score's log-odds.

    ``values`` and ``parts`` are ``(n, features)``: what a feature is, and what it adds.
    """

    scores: Floats
    known: Flags
    values: Floats
    parts: Floats


class Learner(Policy):
    """Learns each labelled example once, in order."""

    handles: ClassVar[tuple[str, ...]] = LEARNED_FROM
    reads: tuple[str, ...] = ("activity",)

    @abstractmethod
    def learn(self, examples: Sequence[Example], stores: Any) -> Floats:
        """Learn examples in order; returns their scores, each from before it was learned."""

    def fold(self, event: Event, prepared: Prepared, stores: Stores) -> None:
        """Learn the examples of one event."""
        examples = stores.of("activity").server.examples(event, stores.now_us)
        if examples:
            self.learn(examples, stores)

    def gather(self, event: Event, stores: Stores) -> Sequence[Example] | None:
        """Gather an event's example. Where it has several, who reads this ranker has them all scored before the event,
        while ``learn`` scores each after those before it: such an event is folded by itself."""
        found: Sequence[Example] = stores.of("activity").server.examples(event, stores.now_us)
        return found if len(found) < 2 else None

    def fold_gathered(self, gathered: Sequence[Sequence[Example]], told: Mapping[str, Any], stores: Stores) -> Floats:
        """Learn the examples of many events; returns their scores, which those who hear this ranker take."""
        examples = [one for each in gathered for one in each]
        return self.learn(examples, stores) if examples else np.empty(0)


class OnlineRanker(Learner):
    """A ranker that scores pairs of codes from its own stores, in kernels."""

    kernels: str
    """The module of its kernels; numba is imported when the first is called, no sooner."""
    features: tuple[str, ...]
    """Names of what a score is made of."""

    @cached_property
    def _kernels(self) -> ModuleType:
        return import_module(self.kernels)

    def values(self, stores: Any) -> Sequence[Any]:
        """Return what kernels read: the values of all stores, in their order."""
        return [stores[one.name].values for one in self.stores]

    def predict(self, pairs: Coded, stores: Any) -> Predicted:
        """Score pairs; a pure read."""
        scores, known, *said = self._kernels.predict(pairs, *self.values(stores))
        return Predicted(scores, known, said[0], said[-1])  # of most, what a feature is is what it adds

    def scores(self, pairs: Coded, stores: Any) -> Floats:
        """As :meth:`predict`, the scores alone: a fold asks for one at a time, where each array that is made counts."""
        scores: Floats = self._kernels.score(pairs, *self.values(stores))
        return scores

    def serve(self, view: View) -> OnlineServer:
        """Score items for a user; kernels are compiled here, not at the first request."""
        pairs = coded((), (), (), ())
        self.predict(pairs, view)
        self.scores(pairs, view)
        return OnlineServer(self, view)


class OnlineServer:
    """Scores from the view, or on the fold's side from the stores as they are before an event."""

    def __init__(self, policy: OnlineRanker, view: View) -> None:
        self._policy = policy
        self._view = view
        self._scored: tuple[int, dict[int, float]] = (-1, {})

    def rank(self, request: RankRequest) -> Ranking:
        """Score items for a user, in one batch."""
        n = len(request.item_ids)
        if not n:
            return Ranking(scores=np.empty(0), known=np.empty(0, bool))
        of_user, of_items = self._view.of("activity").server.tokens(request.user, request.item_ids)
        pairs = coded_request(request.user, tuple(request.item_ids), of_user, of_items)
        found = self._policy.predict(pairs, self._view)
        said = explained(self._policy.features, found) if request.explain else ()
        return Ranking(scores=found.scores, known=found.known, features=said)

    def score(self, example: Example) -> float:
        """Score an example's pair. Asked again about the same event, the answer is the first one."""
        if self._scored[0] != example.seq:
            self._scored = example.seq, {}
        scored = self._scored[1]
        if example.n not in scored:
            scored[example.n] = float(self._policy.scores(coded_examples([example]), self._view)[0])
        return scored[example.n]


def explained(names: Iterable[str], found: Predicted) -> list[tuple[Feature, ...]]:
    """List for each pair what made its score; features that add nothing are left out."""
    names = tuple(names)
    return [
        by_size(Feature(name, value, part) for name, value, part in zip(names, values, parts, strict=True) if part)
        for values, parts in zip(found.values.tolist(), found.parts.tolist(), strict=True)
    ]


def by_size(features: Iterable[Feature]) -> tuple[Feature, ...]:
    """Order features by how much they say, largest first."""
    return tuple(sorted(features, key=lambda one: (-abs(one.contribution), one.name)))
