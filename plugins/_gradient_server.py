"""Serves gradient heads: the weights as they stand in the view, corrected, calibrated by rows that were held out.

A head is read when it is asked for after a change: its classes' weights, and the replayed rows as vectors. The rows
tell the temperature, the correction of new classes, and how far from its class a row usually lies.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import scipy

from streamfold.core import View, WrongTarget, merged_into
from streamfold.plugins import _alignment, _gradient
from streamfold.plugins._heads import HeadsServer
from streamfold.plugins._labels import HeadRow
from streamfold.plugins._readouts import Codes, Head, Means, fit_sharpness
from streamfold.plugins._replay import ClassState, SpaceState, held_out
from streamfold.plugins._sums import Floats, relu_expansion
from streamfold.plugins._targets import TEXT, unpacked

_SPACES = 64
"""Heads that are held as read; the one asked for longest ago goes first."""
_FEW = 10
"""With fewer rows held out all rows calibrate."""
Flags = npt.NDArray[np.bool_]


@lru_cache(maxsize=16)
def _layer(dim: int, size: int, seed: int) -> tuple[Floats, Floats]:
    return relu_expansion(dim, size, seed)


class Lift:
    """φ as the head sees it: through the random layer if there is one, with a 1 for the bias, of length 1.

    Units of the layer are taken less their mean: they are all positive, and a direction that all rows share slows every
    step down.
    """

    def __init__(self, config: Any) -> None:
        self._config = config

    def __call__(self, phi: Floats) -> Floats:
        """Return ``(n, width) float64``."""
        c = self._config
        if c.expansion:
            weights, bias = _layer(phi.shape[1], c.expansion, c.seed)
            phi = np.maximum(_gradient.product(phi, weights) + bias, 0.0)
            phi -= phi.mean(axis=1, keepdims=True)
        rows = np.zeros((len(phi), c.width))
        rows[:, 0] = 1.0
        rows[:, 1 : 1 + phi.shape[1]] = phi
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows


class Linear:
    """``x Wᵀ``, new classes scaled and shifted; the chances of classes that are read as one are added up."""

    def __init__(self, weights: Floats, groups: Codes, new: Flags, bias: tuple[float, float]) -> None:
        self._weights, self._groups, self._new, self._bias = weights, groups, new, bias

    def of(self, phi: Floats) -> Floats:
        raw = phi.astype(np.float64) @ self._weights.T.astype(np.float64)
        raw = np.where(self._new, self._bias[0] * raw + self._bias[1], raw)
        found: Floats = np.stack(
            [scipy.special.logsumexp(raw[:, self._groups == group], axis=1) for group in range(self._groups.max() + 1)],
            axis=1,
        )
        return found


class Unmeasured(Head):
    """A head of which no rows are kept: what it is not sure of it calls unknown."""

    def unknown(self, phi: Floats) -> tuple[Floats, Floats, Codes]:
        chances = self.probabilities(phi)
        return 1 - chances.max(axis=1), np.zeros(len(phi)), chances.argmax(axis=1)


class Replayed(NamedTuple):
    """Rows ``x (n, width)`` of classes ``codes``; ``held_out``: those that are not replayed."""

    x: Floats
    codes: Codes
    held_out: Flags


class GradientServer(HeadsServer):
    """A ``Classifier`` over the view."""

    def __init__(self, config: Any, view: View) -> None:
        super().__init__(config, view)
        self._lift = Lift(config)
        self._read: OrderedDict[tuple[str, str], tuple[Any, Head, dict[str, str]]] = OrderedDict()

    def forget(self) -> None:
        """Heads are read anew."""
        super().forget()
        with self._lock:
            self._read.clear()

    def weights(self, prefix: str, states: Mapping[str, ClassState], steps: int) -> Floats:
        """Rows of classes' weights, as they are served after so many steps."""
        own = self._own_weights([one.slot for one in states.values()], steps)
        if not self._config.blend_with or not len(own):
            return own
        other = self._view.of(self._config.blend_with)
        told = {label: other["states"].get(f"{prefix}\0{label}") for label in states}
        known = {label: state for label, state in told.items() if state is not None}
        if known:  # a class that the other does not know is served as it is here
            shared = [place for place, label in enumerate(states) if label in known]
            theirs = other.server.weights(prefix, known, other["spaces"].get(prefix).steps)
            own[shared] = self._config.blend * own[shared] + (1 - self._config.blend) * theirs
        return own

    def _own_weights(self, slots: list[int], steps: int) -> Floats:
        if (averages := self._config.averages) is not None:
            averaged: Floats = averages.read(slots, steps, self._config.blend, self._view)
            return averaged
        found: Floats = self._view["weights"].get(slots).astype(np.float64)
        return found

    def _solved(self, name: str, space: str, index: int) -> tuple[Any, Head, Mapping[str, str]]:
        row: HeadRow | None = self._view["heads"].get(name)
        if row is None:
            with self._lock:
                self._read.pop((name, space), None)
            raise WrongTarget(index, f"head {name[:64]!r} has no labels")
        # a label that came and was retracted leaves the head's row as it was, and another number of steps
        now = (row, self._view["spaces"].get(f"{name}\0{space}"), self._other(name, space))
        with self._hold(name).lock:
            held = self._read.get((name, space))
            if held is None or held[0] != now:
                with self._lock:
                    self._read.pop((name, space), None)
                found = self._head(name, space)
                if found is None:
                    what = "texts" if space == TEXT else f"{space.rsplit(' ', 1)[0]} of these names"
                    raise WrongTarget(index, f"head {name[:64]!r} has no labels of {what}")
                held = (now, *found)
            with self._lock:
                self._read[name, space] = held
                self._read.move_to_end((name, space))
                if len(self._read) > _SPACES:
                    self._read.popitem(last=False)
        return self._lift, held[1], held[2]

    def _other(self, name: str, space: str) -> Any:
        """Up to where the head is whose weights are mixed in."""
        if not self._config.blend_with:
            return None
        other = self._view.of(self._config.blend_with)
        return other["heads"].get(name), other["spaces"].get(f"{name}\0{space}")

    def _head(self, name: str, space: str) -> tuple[Head, dict[str, str]] | None:
        prefix, start = f"{name}\0{space}", len(name) + 1
        known = {key[start:]: row for key, row in self._view["classes"].items() if key.startswith(f"{name}\0")}
        states = {
            key[len(prefix) + 1 :]: one for key, one in self._view["states"].items() if key.startswith(f"{prefix}\0")
        }
        read_as = {label: merged_into(label, known) for label in sorted(states)}
        states = {label: states[label] for label, target in read_as.items() if target is not None}
        if not states:
            return None
        space_state: SpaceState = self._view["spaces"].get(prefix)
        steps = space_state.steps
        new = np.array([steps - one.birth <= self._config.new_for for one in states.values()])
        names = sorted({str(read_as[label]) for label in states})
        groups = np.array([names.index(str(read_as[label])) for label in states])
        n = np.bincount(groups, [float(one.rows + one.prior) for one in states.values()]).astype(np.float64)
        rows = self._rows(states, space)
        scores = self._scores(
            self.weights(prefix, states, steps), groups, new, rows, [one.slot for one in states.values()]
        )
        shown = {label: row.name for label, row in known.items() if row.name}
        return _calibrated(names, n, scores, groups, rows), shown

    def _rows(self, states: Mapping[str, ClassState], space: str) -> Replayed:
        """The replayed rows of classes, lifted."""
        kept = [(i, hash, key) for i, one in enumerate(states.values()) for hash, key in one.replay]
        if not kept:
            return Replayed(np.zeros((0, self._config.width)), np.zeros(0, np.int64), np.zeros(0, bool))
        phis = self._view["phi"].get_many([key for _, _, key in kept])
        x = self._lift(unpacked(b"".join(phis), space).reshape(len(kept), -1))
        return Replayed(x, np.array([i for i, _, _ in kept]), np.array([held_out(hash) for _, hash, _ in kept]))

    def _scores(self, weights: Floats, groups: Codes, new: Flags, rows: Replayed, slots: list[int]) -> Linear:
        """Correct the weights for new classes."""
        c, bias = self._config, (1.0, 0.0)
        if c.read_out == "herding":
            means = _alignment.herded_means(rows.x, rows.codes, len(weights), c.exemplars)
            return Linear(means, groups, np.zeros_like(new), bias)
        if c.align == "norm":
            weights = _alignment.align_norms(weights, new)
        elif c.align == "gaussian":
            weights = _alignment.align_gaussian(weights, rows.x, rows.codes, c.seed)
        elif c.align == "translation":
            totals = self._view["totals"].get(slots)
            means = totals[:, :-1] / np.maximum(totals[:, -1:], 1e-12)
            weights = _alignment.align_translated(weights, rows.x, rows.codes, new, means)
        elif c.align == "bias":
            x, codes = _calibrating(rows)
            bias = _alignment.fit_bias(x @ weights.T, codes, new)
        return Linear(weights, groups, new, bias)


def _calibrating(rows: Replayed) -> tuple[Floats, Codes]:
    chosen = rows.held_out if rows.held_out.sum() >= _FEW else np.ones(len(rows.x), bool)
    return rows.x[chosen], rows.codes[chosen]


def _calibrated(names: list[str], n: Floats, scores: Linear, groups: Codes, rows: Replayed) -> Head:
    """Fit the temperature, and tell how far rows lie from their classes."""
    if not len(rows.x):
        blank = Means(np.ones(1), np.zeros((1, 1)))
        return Unmeasured(names=names, n=n, scores=scores, means=blank, usual=np.zeros(0), sharpness=1.0)
    x, codes = _calibrating(rows)
    sharpness = 1.0
    if len(names) > 1:
        sharpness = fit_sharpness(scores.of(x), groups[codes], np.ones(len(x)))
    codes = groups[rows.codes]
    held = np.bincount(codes, minlength=len(names)).astype(float)
    centres = np.repeat(rows.x.mean(axis=0)[None], len(names), axis=0)  # of classes whose rows are all gone
    for group in np.unique(codes):
        centres[group] = rows.x[codes == group].mean(axis=0)
    means = Means(np.maximum(held, 1.0), centres)
    several = held[codes] > 1  # the only row of a class cannot be left out
    _, distances = means.left_out(rows.x[several], codes[several], np.ones(int(several.sum())))
    return Head(names=names, n=n, scores=scores, means=means, usual=np.sort(distances), sharpness=sharpness)
