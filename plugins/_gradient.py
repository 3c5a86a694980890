"""One step of a gradient head: a loss over the classes of a batch, an optimiser, and what follows the update.

A head is linear: ``logits = x Wᵀ`` with float32 rows W, one per class, over unit vectors ``x = (φ, 1)/‖(φ, 1)‖``. To
scale x changes no decision and bounds the gradient, whatever features come. The loss of a batch is
``Σ_i a_i CE(logits_i, y_i)``; **which classes take part** in it is the loss's variant:

================ =====================================================================================================
``batch``        those of the batch (the new label and the replayed rows), so that a class that is not met is not
                 pushed down: the energy-based training of Li et al. 2020, arXiv:2011.12216. A step costs the same
                 however many classes there are.
``softmax``      all of the head.
================ =====================================================================================================

Optimisers return the new rows from rows and gradient; hooks change rows after the update. Everything runs in one thread
on the CPU, from numbers that the event alone decides, so folding again gives the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from streamfold.core import ConfigError
from streamfold.plugins._sums import Floats

Rows = npt.NDArray[np.float32]
"""``(classes, width)``."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows ``x (n, width)``, their classes as indices of ``W``'s rows, and how much each counts."""

    x: Rows
    codes: npt.NDArray[np.int64]
    weights: Rows


@dataclass(slots=True)
class State:
    """What a step changes: rows of the weights, beside them the optimiser's and the anchor's, if there are any."""

    weights: Rows
    utility: Rows | None = None
    anchor: Rows | None = None
    noise: Rows | None = None
    """Standard normal numbers of the event, for what perturbs."""


def torch() -> Any:
    """Import torch; raises ``ConfigError`` that says how to install it."""
    try:
        import torch
    except ImportError as error:
        raise ConfigError("gradient_head: torch is not installed: pip install 'streamfold[heads]'") from error
    return torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Let this thread's torch compute alone: how a sum is split decides its last bits."""
    t = torch()
    before = t.get_num_threads()
    if before == 1:
        yield
        return
    t.set_num_threads(1)
    try:
        yield
    finally:
        t.set_num_threads(before)


def product(a: Floats, b: Floats) -> Floats:
    """Multiply two matrices in one thread; numpy's threads are the process's and cannot be set here."""
    t = torch()
    with one_thread():
        found: Floats = (t.from_numpy(a) @ t.from_numpy(b)).numpy()
    return found


def gradient(weights: Rows, batch: Batch) -> Rows:
    """Differentiate the batch's loss by the weights; of no weight is a batch of one class."""
    t = torch()
    with one_thread():
        w = t.from_numpy(weights.copy()).requires_grad_()
        logits = t.from_numpy(batch.x) @ w.T
        losses = t.nn.functional.cross_entropy(logits, t.from_numpy(batch.codes), reduction="none")
        (found,) = t.autograd.grad((t.from_numpy(batch.weights) * losses).sum(), w)
        result: Rows = found.numpy()
    return result


class Optimiser(Protocol):
    def step(self, state: State, gradient: Rows) -> None:
        """Change ``state.weights`` in place, and what the optimiser remembers."""


@dataclass(frozen=True, slots=True)
class Sgd:
    """``W ← W − η g``."""

    rate: float

    def step(self, state: State, gradient: Rows) -> None:
        state.weights -= np.float32(self.rate) * gradient


@dataclass(frozen=True, slots=True)
class Upgd:
    """Utility-based perturbed gradient descent (Elsayed and Mahmood 2024, arXiv:2404.00781).

    A weight's utility ``U ← β U + (1 − β)(−g ⊙ W)`` is what the loss would lose without it, to first order. Useful
    weights move less, useless ones also by noise: ``W ← W − η (g + σ ξ)(1 − sigmoid(U / max|U|))``. The published gate
    divides by max U: where all utilities are negative that turns the order around, so here it is max |U|.
    """

    rate: float
    decay: float
    sigma: float

    def step(self, state: State, gradient: Rows) -> None:
        assert state.utility is not None
        assert state.noise is not None
        beta = np.float32(self.decay)
        state.utility *= beta
        state.utility -= (1 - beta) * gradient * state.weights
        moved = gradient + np.float32(self.sigma) * state.noise
        state.weights -= np.float32(self.rate) * moved * (1 - gate(state.utility))


def gate(utility: Rows) -> Rows:
    """How much a weight is protected, in .27….73: increasing in its utility, also where all are negative."""
    largest = np.abs(utility).max(initial=0.0)
    scaled = utility / largest if largest > 0 else np.zeros_like(utility)
    found: Rows = (1 / (1 + np.exp(-scaled))).astype(np.float32)
    return found


class Hook(Protocol):
    def after(self, state: State) -> None:
        """Change ``state.weights`` in place after the update."""


@dataclass(frozen=True, slots=True)
class Anchor:
    """Pull towards where each class began: ``W ← W − η λ (W − W₀)`` (L2 init, Kumar et al. 2023, arXiv:2308.11958)."""

    rate: float
    strength: float

    def after(self, state: State) -> None:
        assert state.anchor is not None
        state.weights -= np.float32(self.rate * self.strength) * (state.weights - state.anchor)


@dataclass(frozen=True, slots=True)
class ShrinkPerturb:
    """``W ← λ W + σ ξ`` (Ash and Adams 2019, arXiv:1910.08475), a little after each update."""

    shrink: float
    perturb: float

    def after(self, state: State) -> None:
        state.weights *= np.float32(self.shrink)
        if self.perturb:
            assert state.noise is not None
            state.weights += np.float32(self.perturb) * state.noise


@dataclass(frozen=True, slots=True)
class Learner:
    """Loss, optimiser and hooks put together."""

    optimiser: Optimiser
    hooks: tuple[Hook, ...] = field(default=())

    def step(self, state: State, batch: Batch) -> None:
        """Learn a batch, changing the state in place."""
        self.optimiser.step(state, gradient(state.weights, batch))
        for hook in self.hooks:
            hook.after(state)


def first_row(x: Rows, others: Rows, norm: float) -> Rows:
    """Where a new class begins: at its first label, seen from the mean of other rows, as long as other classes' rows.

    A row of zeros makes the first steps pull at all other classes at once, which is the stability gap (De Lange et al.
    2022, arXiv:2205.13452); class-mean initialisation narrows it (Harun and Kanan 2023, arXiv:2306.01904). Without
    others: zeros.
    """
    if not len(others):
        return np.zeros_like(x)
    away = x - others.mean(axis=0)
    length = float(np.linalg.norm(away))
    found: Rows = away * np.float32(norm / length) if length > 1e-6 else np.zeros_like(x)
    return found
