r"""What the error memories share: a fast memory that corrects a slower ranker's scores by the errors it made.

ReLoop2 (KDD 2023, arXiv 2306.08808): a base model gives ŷ_b; a memory that each labelled event refreshes estimates its
error at once; served is their sum with a weight λ, here a mixture over λ (``_lambda_mixture.py``). A memory reads its
base, so both are in one group and promoted together: it never corrects another model than the one that it has watched.

What is stored of an example is the score that was served, never one recomputed later. The served score had the
memory's own correction in it, though; stored as it is it would make the memory believe that the base is already right,
and correct half (measured: AUC .777 instead of .783). So the correction that the memory makes now is taken off:
:math:`\hat y_b = σ(\mathrm{logit}\,s - (\mathrm{logit}\,p - \mathrm{logit}\,b))` with the served score s, and the
memory's and base's scores p and b before the example is learned. What followed no exposure is stored with b.

Keys are made of the codes of ids and tokens (see ``_codes.py``), never of a layer that is itself trained: what they
are is fixed with the policy's version.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from streamfold.core import (
    ConfigError,
    Declaration,
    Event,
    EventError,
    Example,
    Feature,
    Prepared,
    Ranking,
    RankRequest,
    Stores,
    View,
)
from streamfold.plugins._codes import Codes, Flags, Floats, coded_of_user, coded_pair, outcomes
from streamfold.plugins._lambda_mixture import LambdaMixture, log_odds
from streamfold.plugins._ranking import Learner


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryConfig:
    """What every error memory is told.

    Parameters
    ----------
    base : the ranker that is corrected.
    enabled : False: the base's scores pass through, and nothing is learned.
    lambdas : experts for λ between 0 and 1; 0 must be among them. ``[0]`` alone gives the base's scores.
    share : fixed share α of the mixture; 0: a plain Bayes mixture, with the tightest guarantee.
    """

    base: str = "ensemble"
    enabled: bool = True
    lambdas: tuple[float, ...] = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
    share: float = 0.0

    def __post_init__(self) -> None:
        if 0.0 not in self.lambdas or not all(0 <= one <= 1 for one in self.lambdas):
            raise ConfigError(f"error memory: lambdas is {self.lambdas}: give numbers from 0 to 1, 0 among them")
        if len(set(self.lambdas)) < len(self.lambdas):
            raise ConfigError(f"error memory: lambdas is {self.lambdas}: each may come once")
        if not 0 <= self.share < 1:
            raise ConfigError(f"error memory: share is {self.share}: it must be 0 or more and less than 1")
        if not self.base or self.base == "activity":
            raise ConfigError(f"error memory: base is {self.base!r}: name the ranker that is to be corrected")


def positive(config: MemoryConfig, *names: str, whole: bool = False) -> None:
    """Refuse numbers that are not positive and finite (``whole``: not at least 1)."""
    for name in names:
        value = getattr(config, name)
        if not (value >= 1 if whole else 0 < value < math.inf):
            raise ConfigError(f"error memory: {name} is {value}: it must be {'at least 1' if whole else 'positive'}")


class Pairs(NamedTuple):
    """Pairs of one user as kernels take them: codes; the last ``own`` tokens of each pair are the user's."""

    user: np.uint64
    items: Codes
    tokens: Codes
    ends: npt.NDArray[np.int64]
    own: int


def pairs_of(
    user: str, items: Sequence[str], user_tokens: tuple[str, ...], item_tokens: Sequence[tuple[str, ...]]
) -> Pairs:
    """Code pairs of one user with items."""
    return Pairs(*coded_of_user(user, items, user_tokens, item_tokens))


def pair_of(example: Example) -> Pairs:
    """Code an example's pair."""
    user, items, tokens, own = coded_pair(example)
    return Pairs(user[0], items, tokens, np.array([0, len(tokens)]), own)


class Shown(NamedTuple):
    """What kernels learn of examples: when, what came of them, what the base says and what was served (or nan)."""

    at_s: Floats
    labels: Floats
    swaps: Flags
    counts: Floats
    base: Floats
    served: Floats


def shown(examples: Sequence[Example], base: Floats) -> Shown:
    """Take apart what came of examples."""
    served = [math.nan if one.served is None else one.served for one in examples]
    return Shown(np.array([one.at_us for one in examples]) / 1e6, *outcomes(examples), base, np.array(served))


def shown_alone(example: Example) -> tuple[float, float, bool, float, float]:
    """As :func:`shown`, of one example and without the base: making five arrays takes longer than learning it."""
    served = math.nan if example.served is None else example.served
    return example.at_us / 1e6, float(example.label), example.swaps, float(example.weight), float(served)


class ErrorMemory(Learner):
    """A policy that remembers where its base was wrong, and serves the base's scores corrected."""

    logit: ClassVar[bool]
    """Whether corrections are of log-odds; else of probabilities."""
    terms: ClassVar[tuple[str, ...]]
    """Names of what a correction is the sum of."""

    def __init__(self, config: Any, *declared: Declaration) -> None:
        super().__init__(config)
        self.reads = ("activity", self.config.base)
        self.hears = (self.config.base,)
        self.mixture = LambdaMixture(self.config.lambdas, share=self.config.share, logit=self.logit)
        self.stores = (self.mixture.store, *declared)

    @abstractmethod
    def correct(self, pairs: Pairs, base: Floats, at_us: int, stores: Any) -> Floats:
        """The correction of each pair as terms that add up, ``(n, terms)``; a pure read."""

    @abstractmethod
    def remember(self, examples: Sequence[Example], base: Floats, stores: Any) -> Floats:
        """Learn examples in order: first λ, then the memory; ``base``: what the base says of each.

        A swap corrects what is stored, and is no new test of λ. Returns the corrected scores from before each.
        """

    def explain(self, pairs: Pairs, base: Floats, at_us: int, stores: Any) -> list[list[tuple[str, float, float]]]:
        """For each pair what its correction is made of: (name, value, share of the correction)."""
        rows = []
        for terms in self.correct(pairs, base, at_us, stores).tolist():
            total = sum(terms) or 1.0
            rows.append([(f"{self.name}.{name}", t, t / total) for name, t in zip(self.terms, terms, strict=True)])
        return rows

    def fold(self, event: Event, prepared: Prepared, stores: Stores) -> None:
        """Learn the examples of one event, if it is on."""
        if self.config.enabled:
            super().fold(event, prepared, stores)

    def learn(self, examples: Sequence[Example], stores: Any) -> Floats:
        """Store what came of each example, and what the base had said."""
        base = stores.of(self.config.base).server
        return self._learn(examples, np.array([float(base.score(one)) for one in examples]), stores)

    def fold_gathered(self, gathered: Sequence[Sequence[Example]], told: Mapping[str, Any], stores: Any) -> Floats:
        """Learn from the scores that the base gave as it learned the same examples."""
        return self._learn([one for each in gathered for one in each], told[self.config.base], stores)

    def _learn(self, examples: Sequence[Example], base: Floats, stores: Any) -> Floats:
        if not self.config.enabled or not examples:
            return base
        if not (0 <= base[0] <= 1 if len(base) == 1 else np.all((base >= 0) & (base <= 1))):
            n = int(np.argmin((base >= 0) & (base <= 1)))
            raise EventError(f"{self.config.base} scores {examples[n].item!r} with {base[n]}, which is no probability")
        return self.remember(examples, base, stores)

    def serve(self, view: View) -> MemoryServer:
        """Serve the base's scores, corrected."""
        return MemoryServer(self, view)


class MemoryServer:
    """A ``Ranker`` over another one."""

    def __init__(self, policy: ErrorMemory, view: Any) -> None:
        self._policy = policy
        self._view = view
        self._scored: tuple[int, int, float] = (-1, -1, 0.0)

    @property
    def _base(self) -> Any:
        return self._view.of(self._policy.config.base).server

    def rank(self, request: RankRequest) -> Ranking:
        """Score items by the base, then correct."""
        found: Ranking = self._base.rank(request)
        policy = self._policy
        if not policy.config.enabled or not len(request.item_ids):
            return found
        of_user, of_items = self._view.of("activity").server.tokens(request.user, request.item_ids)
        pairs = pairs_of(request.user, request.item_ids, of_user, of_items)
        terms = policy.correct(pairs, found.scores, request.at_us, self._view)
        scores = policy.mixture.mix(self._view["experts"].values[0], found.scores, terms)
        features = self._explained(found, scores, pairs, request.at_us) if request.explain else ()
        return Ranking(scores=scores, known=found.known, base=found.scores, features=features)

    def _explained(self, found: Ranking, scores: Floats, pairs: Pairs, at_us: int) -> list[tuple[Feature, ...]]:
        """The base's features and the correction's; contributions of the latter add up to the whole correction."""
        policy = self._policy
        believed = Feature(f"{policy.name}.lambda", policy.mixture.mean(self._view["experts"].values[0]), 0.0)
        made = policy.explain(pairs, found.scores, at_us, self._view)
        rows = []
        for j, parts in enumerate(made):
            shift = log_odds(float(scores[j])) - log_odds(float(found.scores[j]))
            mine = [Feature(name, value, shift * share) for name, value, share in parts if value]
            row = [*(found.features[j] if found.features else ()), *mine, believed]
            rows.append(tuple(sorted(row, key=lambda one: (-abs(one.contribution), one.name))))
        return rows

    def score(self, example: Example) -> float:
        """Score an example as :meth:`rank` would; asked again for the same one, the answer is the first."""
        base = float(self._base.score(example))
        if not self._policy.config.enabled:
            return base
        if self._scored[:2] != (example.seq, example.n):
            scores = np.array([base])
            terms = self._policy.correct(pair_of(example), scores, example.at_us, self._view)
            mixed = self._policy.mixture.mix(self._view["experts"].values[0], scores, terms)
            self._scored = example.seq, example.n, float(mixed[0])
        return self._scored[2]
