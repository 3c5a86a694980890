"""What online rankers share: a policy that learns labelled examples, and one whose loop over them is compiled.

A ranker's ``learn`` takes any number of examples and does exactly what the loop over them does: the loop is a compiled
kernel over hashed codes (``_codes.py``). The scores that it returns are those from before each example.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from importlib import import_module
from types import ModuleType
from typing import Any, ClassVar, NamedTuple

import numpy as np

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
from streamfold.plugins._codes import Coded, Flags, Floats, Outcomes, coded, coded_examples, coded_request, taken

KEEP = 8.0
"""A row that was met n times may make way when n / 8 times its table's rows were learned since."""


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

    def learn(self, examples: Sequence[Example], stores: Any) -> Floats:
        return self.learn_coded(*taken(examples), stores)

    @abstractmethod
    def learn_coded(self, pairs: Coded, said: Outcomes, stores: Any) -> Floats:
        """Learn what examples were taken apart into."""

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
