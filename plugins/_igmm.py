r"""An incremental Gaussian mixture: says which inputs are unlike everything seen, one pass, bounded.

Each component j has a mean μ, a covariance C and a mass. An input x within reach of a component (its squared
Mahalanobis distance is at most the χ² quantile that a share ``chance`` of its own inputs exceeds) moves all of them by
their posteriors :math:`p_j = π_j N(x; μ_j, C_j) / \sum_k π_k N(x; μ_k, C_k)`, where π is the share of the mass:

.. math:: m ← m + p,\quad w = p/m,\quad e = x - μ,\quad μ ← μ + we,\quad C ← (1-w)(C + wee^\top)

With one component and p = 1 these are the exact mean and covariance of all inputs. An input out of reach of all is
novel: it begins a component, of mass 1 and with the spread of the first inputs. One that gains no mass is dropped.

Engel and Heinen 2010, Incremental learning of multivariate Gaussian mixture models
(doi:10.1007/978-3-642-16138-4_9); the update in this form and the χ² criterion are Pinto and Engel 2015, A fast
incremental Gaussian mixture model (doi:10.1371/journal.pone.0139931). Unlike there a distance allows for how little a
young component knows: it is taken with :math:`((1-s)C + sΣ_0)(1 + 1/m)`, Σ₀ the first inputs' covariance, s = d/(m + d)
and never below a floor, the posterior mean of C if Σ₀ were d inputs. C alone is next to singular before d inputs came,
and would make every other one novel; the floor does the same for inputs that repeat themselves.

Symbols: d inputs' dimension, k components; an input costs O(k d³), the state has k d² numbers.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Self

import msgspec
import numpy as np
import scipy

from streamfold.plugins._detectors import Fired
from streamfold.plugins._sums import Floats

MOST_DIM = 64
_FLOOR = 0.02
"""Least share of the first inputs' covariance in what distances are measured with."""
_FLAT = 1e-3
"""Least spread of a coordinate, as a share of the largest one's: of a constant one a change must not be infinite."""
_LEAST_SPREAD = 1e-9
_LEAST_POSTERIOR = 1e-9
"""A component that an input belongs to with less stays as it is, to the bit: nothing of it has to be written. A million
such inputs would count for a thousandth of one."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What is novel, and bounds.

    Parameters
    ----------
    chance : share of a component's own inputs that its reach leaves out.
    first : inputs that the spread is taken from; whatever they are is known.
    support : mass from which on a component stands; of a novel one that is told.
    patience : inputs after which a component without support is dropped.
    most : components; past it the one with the least mass goes.
    """

    chance: float = 0.001
    first: int = 128
    support: float = 10.0
    patience: int = 500
    most: int = 16


class Component(msgspec.Struct):
    """``mean (d,)``, ``cov (d, d)``, their mass, inputs since it began, and how far off its first one was."""

    mean: bytes
    cov: bytes
    mass: float
    age: int
    far: float
    novel: bool

    def arrays(self) -> tuple[Floats, Floats]:
        mean = np.frombuffer(self.mean)
        return mean, np.frombuffer(self.cov).reshape(len(mean), len(mean))

    def moved(self, x: Floats, posterior: float) -> Self:
        """Return it after an input that belongs to it with a probability."""
        if posterior < _LEAST_POSTERIOR:
            return msgspec.structs.replace(self, age=self.age + 1)
        mean, cov = self.arrays()
        mass = self.mass + posterior
        weight, off = posterior / mass, x - mean
        return msgspec.structs.replace(
            self,
            mean=(mean + weight * off).tobytes(),
            cov=((1 - weight) * (cov + weight * np.outer(off, off))).tobytes(),
            mass=mass,
            age=self.age + 1,
        )


class Mixture(msgspec.Struct):
    """The state; ``waiting``: the first inputs, until there are enough, then ``spread (d, d)``, their covariance Σ₀."""

    waiting: list[bytes] = msgspec.field(default_factory=list)
    spread: bytes = b""
    components: list[Component] = msgspec.field(default_factory=list)

    def learn(self, x: Floats, limits: Limits) -> Fired | None:
        """Take an input ``(d,) float64``; fired: a novel component has gained support by it."""
        if self.spread:
            return self._learn(x, limits)
        self.waiting.append(x.tobytes())
        if len(self.waiting) >= limits.first:
            rows = np.stack([np.frombuffer(row) for row in self.waiting])
            self.waiting, self.spread = [], _spread(rows).tobytes()
            for row in rows:
                self._learn(row, limits)
            self.components = [msgspec.structs.replace(one, novel=False) for one in self.components]
        return None

    def distances(self, x: Floats) -> Floats:
        """Squared Mahalanobis distances of an input from the components, ``(k,)``."""
        return self._measured(x)[0]

    def _measured(self, x: Floats) -> tuple[Floats, Floats]:
        """Distances, and log densities without the constant they share."""
        prior = np.frombuffer(self.spread).reshape(len(x), len(x))
        found = []
        for one in self.components:
            mean, cov = one.arrays()
            share = max(len(x) / (one.mass + len(x)), _FLOOR)
            factor = scipy.linalg.cho_factor(((1 - share) * cov + share * prior) * (1 + 1 / one.mass), lower=True)
            squared = float((x - mean) @ scipy.linalg.cho_solve(factor, x - mean))
            found.append((squared, -squared / 2 - float(np.log(np.diag(factor[0])).sum())))
        both = np.array(found).reshape(-1, 2)
        return both[:, 0], both[:, 1]

    def _learn(self, x: Floats, limits: Limits) -> Fired | None:
        squared, density = self._measured(x)
        reach = reach_of(len(x), limits.chance)
        if not len(squared) or squared.min() > reach:
            self._begin(x, float(squared.min()) if len(squared) else 0.0, limits)
            return None
        log_share = np.log([one.mass for one in self.components]) + density
        posterior = np.exp(log_share - log_share.max())
        posterior /= posterior.sum()
        moved = [one.moved(x, float(p)) for one, p in zip(self.components, posterior, strict=True)]
        fired = [
            Fired(now.far, reach)
            for before, now in zip(self.components, moved, strict=True)
            if now.novel and before.mass < limits.support <= now.mass
        ]
        self.components = [one for one in moved if one.mass >= limits.support or one.age <= limits.patience]
        return max(fired, default=None)

    def _begin(self, x: Floats, far: float, limits: Limits) -> None:
        """Make room, and begin a component at a novel input."""
        if len(self.components) >= limits.most:
            least = min(range(len(self.components)), key=lambda i: self.components[i].mass)
            del self.components[least]
        self.components.append(Component(x.tobytes(), self.spread, 1.0, 1, far, True))


def _spread(rows: Floats) -> Floats:
    """Covariance of the first inputs ``(n, d)``, shrunk by a share d/(n + d) to its diagonal: n may be less than d."""
    n, dim = rows.shape
    off = rows - rows.mean(axis=0)
    cov: Floats = off.T @ off / n
    least = max(_LEAST_SPREAD, _FLAT * float(np.sqrt(np.diag(cov).max()))) ** 2
    own = np.diag(np.maximum(np.diag(cov), least))
    share = dim / (n + dim)
    shrunk: Floats = (1 - share) * cov + share * own
    return shrunk


@lru_cache(64)
def reach_of(dim: int, chance: float) -> float:
    """Return the squared distance that a share ``chance`` of a Gaussian's inputs exceeds: a quantile of χ²."""
    return float(scipy.special.chdtri(dim, chance))


@lru_cache(16)
def _directions(dim: int, into: int, seed: int) -> Floats:
    return np.random.default_rng(seed).standard_normal((dim, into)) / math.sqrt(into)


def projected(x: Floats, into: int, seed: int) -> Floats:
    """Project an input of more than ``into`` dimensions on random directions: distances stay about what they are.

    >>> len(projected(np.ones(100), 32, 0)), len(projected(np.ones(10), 32, 0))
    (32, 10)
    """
    if len(x) <= into:
        return x
    shorter: Floats = x @ _directions(len(x), into, seed)
    return shorter
