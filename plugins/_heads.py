"""Serves heads from their labelled rows: sums that are moved by what changed, and the read-out solved when asked for.

The head's row tells by its mark that something changed. Then the labels are gone through once (.2 µs each), rows that
went are subtracted from the sums, and rows that came are added, in one product of matrices per few thousand; so are
those whose class was merged or retired. Every view comes to the same sums, up to rounding, whenever it looks.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

from streamfold.core import ClassifyRequest, EventError, Prediction, ScoredLabel, Target, View, WrongTarget, best_slots
from streamfold.plugins._labels import ClassRow, HeadRow, LabelRow
from streamfold.plugins._readouts import Head, solve
from streamfold.plugins._sums import Floats, Sums, relu_expansion
from streamfold.plugins._targets import TEXT, thing_of, unpacked, vector_of

_HEADS = 64
"""Heads whose sums are held; the one asked for longest ago goes first."""
_AT_ONCE = 4096
_CALIBRATE = 512
"""About so many rows, chosen by a hash of their keys, calibrate a head."""
_DIGITS = 6
"""Of probabilities: in which order rows were added decides the last bits of sums."""
_EVIDENCE = 20


class Row(NamedTuple):
    """A labelled row as it was added to the sums."""

    source: LabelRow | ClassRow
    label: str
    weight: float
    phi: bytes


class Lift:
    """φ as the read-out sees it: float64, through the random layer if there is one, with a 1 for ridge's bias."""

    def __init__(self, config: Any, dim: int) -> None:
        self._bias = config.read_out == "ridge"
        self._layer = relu_expansion(dim, config.expansion, config.seed) if config.expansion else None
        self.dim = (config.expansion or dim) + self._bias

    def __call__(self, phi: Floats) -> Floats:
        if self._layer is not None:
            phi = np.maximum(phi @ self._layer[0] + self._layer[1], 0.0)
        return np.hstack([phi, np.ones((len(phi), 1))]) if self._bias else phi


class SpaceState:
    """The sums of one head and one space of vectors."""

    def __init__(self, config: Any, space: str, dim: int) -> None:
        self._config, self._space, self._dim = config, space, dim
        self.lift = Lift(config, dim)
        self.rows: dict[str, Row] = {}
        self._clear()

    def _clear(self) -> None:
        self._sums = Sums(self.lift.dim, gram=self._config.read_out != "prototype")
        self._taken = 0
        self._head: Head | None = None

    def update(self, gone: Sequence[str], come: Mapping[str, Row]) -> None:
        """Take rows out and add rows."""
        out = [self.rows.pop(key) for key in gone]
        self.rows |= come
        self._taken += len(out)
        self._head = None
        if self._taken > 1000 and self._taken > len(self.rows):  # rounding does not pile up
            self._clear()
            self._move(list(self.rows.values()), 1)
        else:
            self._move(out, -1)
            self._move(list(come.values()), 1)

    def _move(self, rows: Sequence[Row], sign: int) -> None:
        for start in range(0, len(rows), _AT_ONCE):
            part = rows[start : start + _AT_ONCE]
            change = self._sums.add if sign > 0 else self._sums.subtract
            change(*self._arrays(part))

    def _arrays(self, rows: Sequence[Row]) -> tuple[Floats, list[str], Floats]:
        phi = unpacked(b"".join(row.phi for row in rows), self._space).reshape(len(rows), self._dim)
        return self.lift(phi), [row.label for row in rows], np.array([row.weight for row in rows])

    def head(self) -> Head:
        """The solved head; solved once per change."""
        if self._head is None:
            below = (1 << 32) * _CALIBRATE >> max(9, len(self.rows).bit_length())
            chosen = [self.rows[key] for key in sorted(key for key in self.rows if crc32(key.encode()) < below)]
            rows, labels, weights = self._arrays(chosen)
            config = self._config
            self._head = solve(
                self._sums, config.read_out, gamma=config.gamma, shrinkage=config.shrinkage,
                rows=rows, labels=labels, weights=weights,
            )  # fmt: skip
        return self._head


class HeadState:
    """One head, in all spaces that its labels are of, as of a mark."""

    def __init__(self, config: Any, name: str) -> None:
        self._config, self._prefix = config, f"{name}\0"
        self._seen = HeadRow()
        self.spaces: dict[str, SpaceState] = {}
        self.names: dict[str, str] = {}

    def follow(self, view: View, row: HeadRow) -> None:
        """Bring the sums up to the view. O(labels of all heads) look-ups, arithmetic for what changed."""
        if row == self._seen:
            return
        classes = {
            key[len(self._prefix) :]: found for key, found in view["classes"].items() if key.startswith(self._prefix)
        }
        self.names = {label: found.name for label, found in classes.items() if found.name}
        read_as = {label: _read_as(label, classes) for label in classes}
        come: dict[str, dict[str, Row]] = {}
        kept: dict[str, set[str]] = {space: set() for space in self.spaces}
        for key, source, label, weight, space in chain(self._labels(view), self._priors(classes)):
            target = read_as.get(label, label)
            if target is None or not weight:
                continue
            held = self.spaces[space].rows.get(key) if space in self.spaces else None
            if held is not None and held.source is source and held.label == target:
                kept[space].add(key)
                continue
            phi = source.prior if isinstance(source, ClassRow) else view["phi"].get(key)
            come.setdefault(space, {})[key] = Row(source, target, weight, phi)
        self._update(kept, come)
        self._seen = row

    def _update(self, kept: Mapping[str, set[str]], come: Mapping[str, dict[str, Row]]) -> None:
        for space in sorted({*kept, *come}):
            rows = come.get(space, {})
            if space not in self.spaces:
                size = len(next(iter(rows.values())).phi) // (4 if space == TEXT else 8)
                self.spaces[space] = SpaceState(self._config, space, size)
            state = self.spaces[space]
            stays = kept.get(space, set())
            gone = [key for key in state.rows if key not in stays] if len(stays) < len(state.rows) else []
            if gone or rows:
                state.update(gone, rows)
            if not state.rows:
                del self.spaces[space]

    def _labels(self, view: View) -> Iterator[tuple[str, Any, str, float, str]]:
        for key, row in view["labels"].items():
            if key.startswith(self._prefix):
                yield key, row, row.label, row.weight, row.space

    def _priors(self, classes: Mapping[str, ClassRow]) -> Iterator[tuple[str, Any, str, float, str]]:
        for label, row in classes.items():
            if row.prior:
                yield f"{self._prefix}\0{label}", row, label, self._config.prior_weight, TEXT


def _read_as(label: str, classes: Mapping[str, ClassRow]) -> str | None:
    """Follow merges; None: retired. In a circle of merges everything is what was merged last."""
    path = [label]
    while (row := classes.get(path[-1])) is not None and row.into is not None:
        if row.into in path:
            circle = path[path.index(row.into) :]
            return max(circle, key=lambda one: classes[one].seq)
        path.append(row.into)
    return None if row is not None and row.retired else path[-1]


class HeadsServer:
    """A ``Classifier`` over the view."""

    def __init__(self, config: Any, view: View) -> None:
        self._config, self._view = config, view
        self._lock = threading.Lock()
        self._states: OrderedDict[str, HeadState] = OrderedDict()

    def heads(self) -> dict[str, int]:
        """Every head with how many labels and priors it has."""
        found = {head: 0 for head, _ in self._view["heads"].items()}
        declared = dict.fromkeys(found, 0)
        for key, row in self._view["classes"].items():
            head = key.partition("\0")[0]
            declared[head] += bool(row.seq)
            found[head] += bool(row.prior)
        return {head: found[head] + row.rows - declared[head] for head, row in self._view["heads"].items()}

    def classify(self, request: ClassifyRequest) -> list[Prediction]:
        """Classify targets of any mixture of spaces."""
        vectors = self._vectors(request)
        by_space: dict[str, list[int]] = {}
        for index, (space, _) in enumerate(vectors):
            by_space.setdefault(space, []).append(index)
        found: dict[int, Prediction] = {}
        for space, indices in by_space.items():
            lift, head, names = self._solved(request.head, space, indices[0])
            phi = lift(np.stack([vectors[i][1] for i in indices]))
            for index, one in zip(indices, self._predicted(head, names, phi, request), strict=True):
                found[index] = one
        return [found[index] for index in range(len(vectors))]

    def _solved(self, name: str, space: str, index: int) -> tuple[Lift, Head, Mapping[str, str]]:
        row = self._view["heads"].get(name)
        with self._lock:
            if row is None:
                self._states.pop(name, None)
                raise WrongTarget(index, f"head {name[:64]!r} has no labels")
            state = self._states.pop(name, None) or HeadState(self._config, name)
            self._states[name] = state
            if len(self._states) > _HEADS:
                self._states.popitem(last=False)
            state.follow(self._view, row)
            if space not in state.spaces:
                known = ", ".join(f"{len(s.rows)} of {_told(which)}" for which, s in sorted(state.spaces.items()))
                raise WrongTarget(
                    index,
                    f"head {name[:64]!r} has no labels of {_told(space)} of these names, so it cannot tell; its labels: "
                    f"{known or 'none'}"
                    if space != TEXT
                    else f"head {name[:64]!r} has no labels of texts; its labels: {known or 'none'}",
                )
            return state.spaces[space].lift, state.spaces[space].head(), state.names

    def _vectors(self, request: ClassifyRequest) -> list[tuple[str, Floats]]:
        texts = [one.text for one in request.targets if one.text]
        rows = dict(zip(texts, self._view.tools.encoder.encode(texts), strict=True)) if texts else {}
        return [self._vector(index, one, rows) for index, one in enumerate(request.targets)]

    def _vector(self, index: int, target: Target, rows: Mapping[str, Any]) -> tuple[str, Floats]:
        if target.features is not None:
            try:
                return vector_of(target.features)
            except EventError as error:
                raise WrongTarget(index, str(error)) from error
        if (thing := thing_of(target)) is not None:
            stored = self._view["things"].get(thing)
            if stored is None:
                raise WrongTarget(index, f"nothing is known of {thing.replace(':', ' ', 1)[:80]!r}, or it has no text")
            return TEXT, unpacked(stored, TEXT)
        if not target.text:
            raise WrongTarget(index, "the text is empty")
        return TEXT, np.asarray(rows[target.text], np.float64)

    def _predicted(
        self, head: Head, names: Mapping[str, str], phi: Floats, request: ClassifyRequest
    ) -> Iterator[Prediction]:
        chances = head.probabilities(phi).round(_DIGITS)
        unknown, distances, nearest = head.unknown(phi)
        for i, row in enumerate(chances):
            slots = best_slots(row, request.top_k)
            best = sorted(slots.tolist(), key=lambda slot: (-row[slot], head.names[slot]))[: request.top_k]
            labels = [ScoredLabel(head.names[s], float(row[s]), names.get(head.names[s])) for s in best]
            explain = None
            if request.explain:
                explain = {
                    "read_out": self._config.read_out,
                    "nearest": head.names[nearest[i]],
                    "distance": round(float(distances[i]), _DIGITS),
                    "usual_distance": round(float(np.median(head.usual)), _DIGITS) if len(head.usual) else None,
                    "temperature": round(1 / head.sharpness, _DIGITS),
                    "weights": {head.names[s]: round(float(head.n[s]), _DIGITS) for s in best[:_EVIDENCE]},
                }
            yield Prediction(labels=labels, unknown=round(float(unknown[i]), _DIGITS), explain=explain)


def _told(space: str) -> str:
    return "texts" if space == TEXT else space.rsplit(" ", 1)[0]
