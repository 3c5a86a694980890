r"""How much of a correction to believe: λ learned online, by a mixture that is never much worse than no correction.

Expert :math:`\lambda \in \Lambda` (0 always among them) says what the base says, corrected by λ times the memory's
correction, clamped to [1e-4, 1 − 1e-4]. Served is the mixture in probability space

.. math:: p_t = \sum_\lambda w_{\lambda,t}\, p_{\lambda,t}, \qquad
          w_{\lambda,t+1} \propto w_{\lambda,t}\, p_{\lambda,t}^{y_t} (1 - p_{\lambda,t})^{1 - y_t}

from uniform weights. Whatever the stream, adversarial ones too, its cumulative log loss is at most every expert's plus
:math:`\ln N` nats for N experts (the weights' normaliser is the mixture's own likelihood). With a fixed share α
(Herbster and Warmuth 1998, doi:10.1023/A:1007424614876) each step moves α of the weight back to uniform, which follows
a best λ that changes, and adds at most :math:`T \ln 1/(1 - α)`.

Without experts beside λ = 0 the mixture is the base, to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from types import ModuleType

import numpy as np
import numpy.typing as npt

from streamfold.core import Array

Floats = npt.NDArray[np.float64]


class LambdaMixture:
    """Experts λ of one memory; their log-weights are row 0 of an ``Array``.

    Parameters
    ----------
    lambdas : the experts.
    share : α, the fixed share; 0: a plain Bayes mixture.
    logit : whether the correction is added to log-odds, or to the probability.
    """

    def __init__(self, lambdas: Sequence[float], *, share: float, logit: bool) -> None:
        self.lambdas = np.array(lambdas, np.float64)
        self.share = share
        self._logit = logit
        self.store = Array("experts", shape=(1, len(lambdas)), dtype="float64")

    def mix(self, log_weights: Floats, base: Floats, terms: Floats) -> Floats:
        """Probabilities ``(n,)`` from the base's ``(n,)`` and the correction's terms ``(n, terms)``, which add up."""
        mixed: Floats = kernels().mixed(log_weights, self.lambdas, base, terms, self._logit)
        return mixed

    def learn(self, log_weights: Floats, base: float, terms: Floats, label: float, weight: float = 1.0) -> None:
        """Reward in place the experts that said what came true; ``terms``: those of one pair."""
        kernels().rewarded(log_weights, self.lambdas, base, terms, self._logit, label, weight, self.share)

    def mean(self, log_weights: Floats) -> float:
        """The mean λ that is believed in now."""
        weights = np.exp(log_weights - log_weights.max())
        return float(weights @ self.lambdas / weights.sum())


def log_odds(probability: float) -> float:
    """Log-odds of a probability, clamped away from certainty.

    >>> round(log_odds(0.5), 3), round(log_odds(1.0), 1)
    (0.0, 20.7)
    """
    kept = min(max(probability, 1e-9), 1 - 1e-9)
    return math.log(kept / (1 - kept))


@cache
def kernels() -> ModuleType:
    """The compiled loops; numba is imported when the first of them runs."""
    from streamfold.plugins import _memory_kernels

    return _memory_kernels
