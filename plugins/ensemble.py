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

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from streamfold.core import Array, ConfigError, Example, Feature, Ranking, RankRequest, View
from streamfold.plugins._ranking import Floats, Learner, at_least, by_size, logit, sigmoid

_LEAST = 1e-6


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
        # what has moved since the start: b and w_m, or 0 and ln (π_m M)
        self.stores = (Array("moved", shape=(1, 1 + len(members)), dtype="float64"),)

    def learn(self, examples: Sequence[Example], stores: Any) -> Floats:
        """Learn from members' scores of examples, which are those from before the event."""
        members = [stores.of(name).server for name in self.config.members]
        moved = stores["moved"]
        moved.touch([0])
        row = moved.values[0]
        scores = np.empty(len(examples))
        learn = self._learn_stack if self.config.mix == "stack" else self._learn_bayes
        for j, example in enumerate(examples):
            told = np.array([member.score(example) for member in members])
            scores[j] = float(self.mixed(told[:, None], row)[0])
            learn(row, told, scores[j], example)
        return scores

    def _learn_stack(self, row: Floats, told: Floats, score: float, example: Example) -> None:
        slope = 1.0 - 2.0 * example.label if example.swaps else score - example.label
        row[0] -= self.config.rate * slope
        row[1:] -= self.config.rate * slope * logit(told)

    def _learn_bayes(self, row: Floats, told: Floats, score: float, example: Example) -> None:
        right = np.clip(told if example.label else 1.0 - told, _LEAST, 1.0 - _LEAST)
        after = self._shares(row) * right
        share, m = self.config.share, len(told)
        row[1:] = np.log((1.0 - share) * (after / after.sum()) * m + share)

    def _shares(self, row: Floats) -> Floats:
        found: Floats = np.exp(row[1:]) / len(self.config.members)
        return found

    def weights(self, row: Floats) -> Floats:
        """How much each member counts."""
        return self._shares(row) if self.config.mix == "bayes" else row[1:] + 1.0 / len(self.config.members)

    def mixed(self, told: Floats, row: Floats) -> Floats:
        """Mix members' scores ``(members, n)``."""
        if self.config.mix == "bayes":
            mixture = np.zeros(told.shape[1])
            for weight, scores in zip(self.weights(row), told, strict=True):
                mixture += weight * scores
            return mixture
        z = np.full(told.shape[1], row[0])
        for weight, scores in zip(self.weights(row), told, strict=True):
            z += weight * logit(scores)
        return sigmoid(z)

    def serve(self, view: View) -> EnsembleServer:
        """Score by the members' scores."""
        return EnsembleServer(self, view)


class EnsembleServer:
    """Scores mixed from the members of the same view."""

    def __init__(self, policy: Ensemble, view: View) -> None:
        self._policy = policy
        self._view = view

    def rank(self, request: RankRequest) -> Ranking:
        """Score items for a user, in one batch per member."""
        names = self._policy.config.members
        told = [self._view.of(name).server.rank(request) for name in names]
        row = self._view["moved"].values[0]
        scores = self._policy.mixed(np.stack([one.scores for one in told]), row)
        known = np.logical_or.reduce([one.known for one in told])
        return Ranking(scores=scores, known=known, features=self._explained(told, scores) if request.explain else ())

    def _explained(self, told: Sequence[Ranking], scores: Floats) -> list[tuple[Feature, ...]]:
        """What members say, by weight; what is left over is the mixing's own."""
        weights = self._policy.weights(self._view["moved"].values[0]).tolist()
        rows = []
        for j, z in enumerate(logit(scores).tolist()):
            found: list[Feature] = []
            for name, weight, one in zip(self._policy.config.members, weights, told, strict=True):
                features = one.features[j] if one.features else (Feature("score", float(one.scores[j]), _odds(one, j)),)
                found += [Feature(f"{name}: {f.name}", f.value, weight * f.contribution) for f in features]
            rest = z - sum(one.contribution for one in found)
            rows.append(by_size([*found, Feature("mixing", 1.0, rest)]))
        return rows

    def score(self, example: Example) -> float:
        """Score an example's pair before it is learned (members remember what they said)."""
        names = self._policy.config.members
        told = np.array([[self._view.of(name).server.score(example)] for name in names])
        return float(self._policy.mixed(told, self._view["moved"].values[0])[0])


def _odds(ranking: Ranking, j: int) -> float:
    p = min(1.0 - _LEAST, max(_LEAST, float(ranking.scores[j])))
    return math.log(p / (1.0 - p))
