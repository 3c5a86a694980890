"""What a ranker is compared with: five simple methods that learn the same examples, event by event.

``constant`` and ``user-only`` cannot tell items apart: their per-user AUC is one half. ``popularity`` and ``item-kNN``
order items but give no probability.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from streamfold.core import Example
from streamfold.pipelines.evaluate.metrics import Floats

_USER, _ITEM = 4.0, 6.0
"""Examples that the mean over everybody counts for beside a user's, an item's."""
_HISTORY = 50


class Baseline(Protocol):
    """A method that scores pairs, and then learns what came of them. ``predicts``: scores are probabilities."""

    name: str
    predicts: bool

    def rank(self, user: str, items: Sequence[str]) -> Floats: ...
    def learn(self, example: Example) -> None: ...


class Means:
    """Sums of labels and counts by key; a late positive takes its negative back."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, float]] = {}

    def learn(self, key: str, example: Example) -> None:
        total, count = self._sums.get(key, (0.0, 0.0))
        self._sums[key] = (total + 1.0, count) if example.swaps else (total + example.label, count + 1.0)

    def of(self, key: str, prior: float, weight: float) -> float:
        """The mean, shrunk towards ``prior`` as by ``weight`` examples of it."""
        total, count = self._sums.get(key, (0.0, 0.0))
        return (total + weight * prior) / (count + weight)


class Constant:
    """The share of positives so far, for everybody."""

    name, predicts = "constant", True

    def __init__(self) -> None:
        self._all = Means()

    def rank(self, user: str, items: Sequence[str]) -> Floats:
        return np.full(len(items), self._all.of("", 0.5, 2.0))

    def learn(self, example: Example) -> None:
        self._all.learn("", example)


class UserOnly:
    """The user's shrunk mean."""

    name, predicts = "user-only", True

    def __init__(self) -> None:
        self._all, self._users = Means(), Means()

    def rank(self, user: str, items: Sequence[str]) -> Floats:
        return np.full(len(items), self._users.of(user, self._all.of("", 0.5, 2.0), _USER))

    def learn(self, example: Example) -> None:
        self._all.learn("", example)
        self._users.learn(example.user, example)


class UserItemMean:
    """Log-odds of the user's and the item's shrunk means, added: ``z = z_u + z_i - z_all``."""

    name, predicts = "user × item mean", True

    def __init__(self) -> None:
        self._all, self._users, self._items = Means(), Means(), Means()

    def rank(self, user: str, items: Sequence[str]) -> Floats:
        prior = self._all.of("", 0.5, 2.0)
        of_user = _logit(self._users.of(user, prior, _USER)) - _logit(prior)
        logits = np.array([_logit(self._items.of(item, prior, _ITEM)) for item in items]) + of_user
        scores: Floats = 1.0 / (1.0 + np.exp(-logits))
        return scores

    def learn(self, example: Example) -> None:
        self._all.learn("", example)
        self._users.learn(example.user, example)
        self._items.learn(example.item, example)


class Popularity:
    """How many positives an item has had."""

    name, predicts = "popularity", False

    def __init__(self) -> None:
        self._likes: dict[str, int] = {}

    def rank(self, user: str, items: Sequence[str]) -> Floats:
        return np.array([self._likes.get(item, 0) for item in items], np.float64)

    def learn(self, example: Example) -> None:
        if example.label > 0:
            self._likes[example.item] = self._likes.get(example.item, 0) + 1


class ItemKnn:
    """Cosine of co-occurrence with what the user liked lately: ``Σ_j c(i, j) / √(n_i n_j)`` over the last 50 liked.

    References: Sarwar et al., Item-based collaborative filtering, 2001, doi:10.1145/371920.372071.
    """

    name, predicts = "item-kNN", False

    def __init__(self) -> None:
        self._liked: dict[str, deque[str]] = {}
        self._count: dict[str, int] = {}
        self._together: dict[str, dict[str, int]] = {}

    def rank(self, user: str, items: Sequence[str]) -> Floats:
        scores = dict.fromkeys(items, 0.0)
        for liked in self._liked.get(user, ()):
            beside, root = self._together.get(liked, {}), math.sqrt(self._count[liked])
            for item in beside if len(beside) < len(scores) else scores:
                if item in beside and item in scores:
                    scores[item] += beside[item] / root
        return np.array([scores[item] / math.sqrt(self._count.get(item, 1)) for item in items])

    def learn(self, example: Example) -> None:
        if example.label <= 0:
            return
        liked = self._liked.setdefault(example.user, deque(maxlen=_HISTORY))
        if example.item in liked:
            return
        self._count[example.item] = self._count.get(example.item, 0) + 1
        for other in liked:
            for one, two in ((example.item, other), (other, example.item)):
                beside = self._together.setdefault(one, {})
                beside[two] = beside.get(two, 0) + 1
        liked.append(example.item)


def _logit(p: float) -> float:
    return math.log(p / (1 - p))


def baselines() -> list[Baseline]:
    """New ones, which have learned nothing."""
    return [UserItemMean(), Popularity(), ItemKnn(), UserOnly(), Constant()]
