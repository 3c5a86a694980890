"""The state of a Kalman head in one space of vectors: labels in the order of their times, and the filters over them.

What a label does depends on those before it, so a label that comes late, changes or goes is not taken back: the filters
go back to a copy of an earlier state, or to the beginning, and learn again what follows. The beginning is the oldest
label whose weight is not yet below a millionth under the largest γ, so this has a bound.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from streamfold.plugins._heads import Row
from streamfold.plugins._kalman import Codes, Filters
from streamfold.plugins._readouts import Head, fit_sharpness
from streamfold.plugins._sums import Floats
from streamfold.plugins._targets import TEXT, unpacked

_BLOCK = 128
_COPY_EVERY = 256
"""Labels between copies of the filters; two are held, so what came this much too late costs little."""
_LEAST = 1e-6
"""Probabilities are rounded to so much."""
_CALIBRATE = 512
"""So many of the newest labels, as they were predicted before they came, calibrate the head."""

Place = tuple[int, int, str]
"""Where a label stands in the order: its time, the position of its event, its key."""


class Told(NamedTuple):
    """A label as it was predicted before it came."""

    scores: Floats
    code: int
    weight: float
    distance: float


class Copy(NamedTuple):
    """A state of the filters: after ``count`` labels, the last of which stands at ``last``."""

    last: Place
    filters: Filters
    told: tuple[Told, ...]


class Lift:
    """φ as the filters see it: components with a mean square of 1 if it is a unit vector, and a 1 for the bias."""

    def __init__(self, space: str, dim: int) -> None:
        self._scale = math.sqrt(dim) if space == TEXT else 1.0
        self.dim = dim + 1

    def __call__(self, phi: Floats) -> Floats:
        return np.hstack([phi * self._scale, np.ones((len(phi), 1))])


class Posterior:
    """Scores by the weights' mean, distances by their uncertainty ``√(φᵀAφ)``."""

    def __init__(self, weights: Floats, cov: Floats) -> None:
        self._weights, self._cov = weights, cov

    def of(self, phi: Floats) -> Floats:
        scores: Floats = phi @ self._weights
        return scores

    def distances(self, phi: Floats) -> tuple[Floats, Codes]:
        """How uncertain the scores are, and the likeliest class."""
        variances = np.einsum("nd,nd->n", phi @ self._cov, phi)
        return np.sqrt(np.maximum(variances, 0.0)), self.of(phi).argmax(axis=1)


class FilteredState:
    """What a head knows from labels in one space."""

    def __init__(self, config: Any, space: str, dim: int) -> None:
        self._config, self._space, self._dim = config, space, dim
        self.lift = Lift(space, dim)
        self.rows: dict[str, Row] = {}
        self._order: list[Place] = []
        self._horizon = math.ceil(math.log(_LEAST) / math.log(max(config.gammas)))
        self._copies: list[Copy] = []
        self._begin(0)

    def _begin(self, start: int) -> None:
        config = self._config
        self._filters = Filters(
            self.lift.dim, gammas=config.gammas, weight_variance=config.weight_variance, noise=config.noise
        )
        self._told: deque[Told] = deque(maxlen=_CALIBRATE)
        self._copies = []
        self._learned = start
        self._since_copy = 0

    def update(self, gone: Sequence[str], come: Mapping[str, Row]) -> None:
        """Take rows out and add rows; what they mean is learned when the head is asked for."""
        places = [_place(key, self.rows.pop(key)) for key in gone]
        for place in places:
            del self._order[bisect_left(self._order, place)]
        self.rows.update(come)
        new = [_place(key, row) for key, row in come.items()]
        if len(new) > _BLOCK:
            self._order = sorted([*self._order, *new])
        else:
            for place in new:
                insort(self._order, place)
        self._go_back(min([*places, *new], default=None))

    def _go_back(self, first: Place | None) -> None:
        """Forget what was learned from the first changed label on."""
        if first is None or bisect_left(self._order, first) >= self._learned:
            return
        while self._copies and self._copies[-1].last >= first:
            self._copies.pop()
        if self._copies:
            last, filters, told = self._copies[-1]
            self._filters, self._told = filters.copy(), deque(told, maxlen=_CALIBRATE)
            self._learned, self._since_copy = bisect_left(self._order, last) + 1, 0
        else:
            self._begin(self._start)

    @property
    def _start(self) -> int:
        """Where filtering begins, so that those that calibrate are predicted from all labels that matter to them."""
        return max(0, len(self._order) - self._horizon - _CALIBRATE)

    def _learn(self) -> None:
        """Learn the labels that were not yet."""
        if not self._learned:
            self._begin(self._start)
        while self._learned < len(self._order):
            part = self._order[self._learned : self._learned + min(_BLOCK, _COPY_EVERY - self._since_copy)]
            rows = [self.rows[key] for _, _, key in part]
            phi = unpacked(b"".join(row.phi for row in rows), self._space).reshape(len(rows), self._dim)
            labels = [row.label or "" for row in rows]
            weights = np.array([row.weight for row in rows])
            known = len(self._filters.names)
            ahead = self._filters.learn(self.lift(phi), labels, weights)
            places = {label: code for code, label in enumerate(self._filters.names)}
            for i, label in enumerate(labels):
                if places[label] < known:
                    self._told.append(
                        Told(ahead.means[i], places[label], weights[i], math.sqrt(float(ahead.variances[i])))
                    )
                known = max(known, places[label] + 1)
            self._learned += len(part)
            self._since_copy += len(part)
            if self._since_copy == _COPY_EVERY:
                self._copies = [*self._copies[-1:], Copy(part[-1], self._filters.copy(), tuple(self._told))]
                self._since_copy = 0

    def head(self) -> Head:
        """What is known now."""
        self._learn()
        n = self._weights()
        codes = {label: code for code, label in enumerate(self._filters.names)}
        names = sorted(n)
        columns = [codes[name] for name in names]
        posterior = Posterior(self._filters.mean[:, columns], self._filters.cov)
        told = [one for one in self._told if self._filters.names[one.code] in n]
        sharpness = 1.0
        if told and len(names) > 1:
            scores = np.zeros((len(told), len(codes)))
            for row, one in zip(scores, told, strict=True):
                row[: len(one.scores)] = one.scores
            place = {code: i for i, code in enumerate(columns)}
            sharpness = fit_sharpness(
                scores[:, columns], np.array([place[one.code] for one in told]), np.array([one.weight for one in told])
            )
        return Head(
            names=names, n=np.array([n[name] for name in names]), scores=posterior, means=posterior,
            usual=np.sort([one.distance for one in told]), sharpness=sharpness,
            notes={"gamma": self._filters.gamma},
        )  # fmt: skip

    def _weights(self) -> dict[str, float]:
        """Classes with labels within the horizon, and what these weigh together."""
        found: dict[str, float] = {}
        gamma, weight = self._filters.gamma, 1.0
        for _, _, key in self._order[: -self._horizon - 1 : -1]:
            row = self.rows[key]
            found[row.label or ""] = found.get(row.label or "", 0.0) + weight * row.weight
            weight *= gamma
        return found


def _place(key: str, row: Row) -> Place:
    return row.at_us, row.source.seq if row.source is not None else 0, key
