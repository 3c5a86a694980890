"""Policy ``ensemble``: mixes the scores of other rankers, and learns per example how much each counts.

Two ways, both over members that score an example before anyone has learned it:

``stack``: the score is the logistic function of ``b + Σ_m w_m logit(p_m)``, where p_m are the members' scores, weights
start at one over the number of members and b at 0. After each example they take a step on its log loss, with
``d = score − label``: ``w_m ← w_m − η d logit(p_m)``, ``b ← b − η d``. Members' strengths add up, and a member that is
too sure of itself is toned down.

``bayes``: the score is ``Σ_m π_m p_m``; after each example ``π_m ← (1 − α) π_m l_m / Σ π l + α / M``, where l_m is the
probability that the member gave to the label (fixed share: Herbster and Warmuth, Machine Learning 32, 1998,
doi:10.1023/A:1007424614876). With α = 0 its log loss over any stream is at most that of the best member plus ln M;
with α > 0 plus T ln 1/(1 − α) after T examples, and it follows a change of the best.

Measured on MovieTweetings with the default members, ``stack`` is the better one by .0008 of log loss. A late positive
takes back the negative's step of ``stack`` to first order; ``bayes`` learns it as one more example.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from types import ModuleType
from typing import Any, Literal

import numpy as np

from streamfold.core import Array, ConfigError, Example, Feature, Ranking, RankRequest, View
from streamfold.plugins._codes import Floats, outcomes
from streamfold.plugins._ranking import Learner, by_size
from streamfold.plugins._settings import at_least


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleConfig:
    """Who is mixed, and how.

    Parameters
    ----------
    members : names of rankers in the settings.
    mix : ``stack`` or ``bayes``.
    rate : η of ``stack``.
    share : α of ``bayes``.
    """

    members: tuple[str, ...] = ("count_stack", "factorization")
    mix: Literal["stack", "bayes"] = "stack"
    rate: float = 0.001
    share: float = 0.001

    def __post_init__(self) -> None:
        if not self.members or len(set(self.members)) < len(self.members):
            raise ConfigError(f"ensemble: members is {self.members}: name one or more rankers, each once")
        if self.mix not in ("stack", "bayes"):
            raise ConfigError(f"ensemble: mix is {self.mix!r}: choose stack or bayes")
        at_least("ensemble", self, 0.0, "rate", "share")
        if self.share >= 1.0:
            raise ConfigError(f"ensemble: share is {self.share}: it must be below 1")


class Ensemble(Learner):
    """Weights of members."""

    name = "ensemble"
    version = 1
    Config = EnsembleConfig

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        members: tuple[str, ...] = self.config.members
        self.reads = ("activity", *members)
        self.hears = members
        self.stores = (Array("moved", shape=(1, 1 + len(members)), dtype="float64"),)

    @cached_property
    def _kernels(self) -> ModuleType:
        return import_module("streamfold.plugins._kernels_mix")

    def learn(self, examples: Sequence[Example], stores: Any) -> Floats:
        """Learn from members' scores of examples, which are those from before the event."""
        members = [stores.of(name).server for name in self.config.members]
        return self._learn(
            np.array([[member.score(example) for member in members] for example in examples]), examples, stores
        )

    def fold_gathered(self, gathered: Sequence[Sequence[Example]], told: Mapping[str, Any], stores: Any) -> Floats:
        """Learn from the scores that members gave as they learned the same examples."""
        examples = [one for each in gathered for one in each]
        return self._learn(np.array([told[name] for name in self.config.members]).T.copy(), examples, stores)

    def _learn(self, told: Floats, examples: Sequence[Example], stores: Any) -> Floats:
        moved, c = stores["moved"], self.config
        if examples:
            moved.touch_row(0)
        scores: Floats = self._kernels.learn(
            told, *outcomes(examples), moved.values[0], c.mix == "bayes", c.rate, c.share
        )
        return scores

    def mixed(self, told: Floats, stores: Any) -> Floats:
        """Mix members' scores ``(n, members)``."""
        scores: Floats = self._kernels.mix(told, stores["moved"].values[0], self.config.mix == "bayes")
        return scores

    def weights(self, stores: Any) -> list[float]:
        """How much each member counts."""
        found: list[float] = self._kernels.weights(stores["moved"].values[0], self.config.mix == "bayes").tolist()
        return found

    def log_odds(self, score: float) -> float:
        """Log-odds as they are mixed."""
        return float(self._kernels.log_odds(score))

    def serve(self, view: View) -> EnsembleServer:
        """Score by the members' scores."""
        self.mixed(np.empty((0, len(self.config.members))), view)
        return EnsembleServer(self, view)


class EnsembleServer:
    """Scores mixed from the members of the same view."""

    def __init__(self, policy: Ensemble, view: View) -> None:
        self._policy = policy
        self._view = view

    def rank(self, request: RankRequest) -> Ranking:
        """Score items for a user, in one batch per member."""
        told = [self._view.of(name).server.rank(request) for name in self._policy.config.members]
        scores = self._policy.mixed(np.stack([one.scores for one in told], axis=1), self._view)
        known = np.logical_or.reduce([one.known for one in told])
        return Ranking(scores=scores, known=known, features=self._explained(told, scores) if request.explain else ())

    def _explained(self, told: Sequence[Ranking], scores: Floats) -> list[tuple[Feature, ...]]:
        """What members say, by weight; what is left over is the mixing's own."""
        odds, weights = self._policy.log_odds, self._policy.weights(self._view)
        rows = []
        for j, score in enumerate(scores.tolist()):
            found: list[Feature] = []
            for name, weight, one in zip(self._policy.config.members, weights, told, strict=True):
                said = float(one.scores[j])
                features = one.features[j] if one.features else (Feature("score", said, odds(said)),)
                found += [Feature(f"{name}: {f.name}", f.value, weight * f.contribution) for f in features]
            rest = odds(score) - sum(one.contribution for one in found)
            rows.append(by_size([*found, Feature("mixing", 1.0, rest)]))
        return rows

    def score(self, example: Example) -> float:
        """Score an example's pair before it is learned (members remember what they said)."""
        told = [self._view.of(name).server.score(example) for name in self._policy.config.members]
        return float(self._policy.mixed(np.array([told]), self._view)[0])
