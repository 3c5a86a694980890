"""Serves heads from their labelled rows: sums that are moved by what changed, and the read-out solved when asked for.

The head's row tells by its mark that something changed. Then the labels are looked through once (.1 µs each), rows
that went are subtracted from the sums and rows that came are added, in one product of matrices per few thousand; so
are those whose class was merged or retired. Every view comes to the same sums, up to rounding, whenever it looks.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol
from zlib import crc32

import msgspec
import numpy as np
import numpy.typing as npt

from streamfold.core import (
    ClassifyRequest,
    Prediction,
    ScoredLabel,
    View,
    WrongTarget,
    best_slots,
    emptied_on_erasure,
    merged_into,
)
from streamfold.plugins._labels import ClassRow, HeadRow, LabelRow
from streamfold.plugins._named_targets import Named, named_targets, names_of
from streamfold.plugins._readouts import Head, solve
from streamfold.plugins._sums import Floats, Sums, relu_expansion
from streamfold.plugins._targets import TEXT, stored, vectors_of

_HEADS = 64
"""Heads whose sums are held; the one asked for longest ago goes first."""
_WARM_S = 60.0
"""A head that was asked for within so long is solved after a change, before anybody asks again."""
_AT_ONCE = 1024
_CALIBRATE = 512
"""About so many rows, chosen by a hash of their keys, calibrate a head."""
_DIGITS = 6
"""Of probabilities: in which order rows were added decides the last bits of sums."""
_EVIDENCE = 20
_MOST_HALVED, _NOTHING = 64, -500.0
"""After so many half-lives the base moves; what is older than so many weighs next to nothing."""
_MOST_LOST = 8
"""Half-lives by which the newest row may become older: rounding is then 256 times that of what is left."""
_LEAST = 1e-12
"""A class whose labels weigh less together is forgotten."""


class Row(msgspec.Struct, frozen=True, gc=False):
    """What a label, or the prior of a class, is read as. No collection of garbage goes through them.

    ``source``: the label's row; None of a prior. ``label``: None if it is left out. ``hash``: of its key.
    """

    source: LabelRow | None
    label: str | None
    weight: float
    space: str
    phi: bytes
    hash: int
    at_us: int


class Lift:
    """φ as the read-out sees it: float64, through the random layer if there is one, with a 1 for ridge's bias."""

    def __init__(self, config: Any, dim: int) -> None:
        self._bias = config.read_out == "ridge"
        self._layer = relu_expansion(dim, config.expansion, config.seed) if config.expansion else None
        self.dim = (config.expansion or dim) + self._bias

    def __call__(self, phi: npt.NDArray[Any]) -> Floats:
        if self._layer is not None:
            phi = np.maximum(phi.astype(np.float64, copy=False) @ self._layer[0] + self._layer[1], 0.0)
        lifted = np.ones((len(phi), self.dim))
        lifted[:, : phi.shape[1]] = phi
        return lifted


class Decay:
    """Weights that halve in each half-life, by the times of the rows (forward decay, Cormode et al. 2009).

    A row counts for ``w 2^((t − b)/h)`` in the sums, whatever the time now is, so it can be taken back; the base b
    moves every 64 half-lives. Read out, the newest row weighs w: the sums are taken times :attr:`factor`. Where the
    newest rows go, what they were added to is left with rounding of their size: then the others are added afresh.
    """

    def __init__(self, half_life_us: int) -> None:
        self._half_us = half_life_us
        self._base = 0
        self._newest_us = -1
        self._heaviest_us = -1

    def moves(self, rows: Mapping[str, Row], out: Sequence[Row], come: Iterable[Row]) -> bool:
        """Note that rows went and came; whether all have to be added afresh, by other weights or without rounding."""
        if not self._half_us:
            return False
        if any(row.at_us == self._newest_us for row in out):
            self._newest_us = max((row.at_us for row in rows.values()), default=-1)
        self._newest_us = max(self._newest_us, max((row.at_us for row in come), default=-1))
        base = self._newest_us // self._half_us
        self._heaviest_us = max(self._heaviest_us, self._newest_us)
        moved = abs(base - self._base) >= _MOST_HALVED
        if moved:
            self._base = base
        afresh = moved or self._heaviest_us - self._newest_us > _MOST_LOST * self._half_us
        if afresh:
            self._heaviest_us = self._newest_us
        return afresh

    def weights(self, rows: Sequence[Row]) -> Floats:
        weights = np.array([row.weight for row in rows])
        if not self._half_us:
            return weights
        away = np.array([row.at_us - self._base * self._half_us for row in rows], np.float64) / self._half_us
        return weights * np.exp2(np.maximum(away, _NOTHING))

    @property
    def factor(self) -> float:
        if not self._half_us:
            return 1.0
        return float(2.0 ** -((self._newest_us - self._base * self._half_us) / self._half_us))


class SpaceState:
    """The sums of one head and one space of vectors."""

    def __init__(self, config: Any, space: str, dim: int) -> None:
        self._config, self._space, self._dim = config, space, dim
        self.lift = Lift(config, dim)
        self.rows: dict[str, Row] = {}
        self._sample: dict[str, Row] = {}
        self._below = 0
        self._decay = Decay(round(config.half_life_s * 1e6))
        self._named: Named = {}
        self._clear()

    def _clear(self) -> None:
        config = self._config
        self._sums = Sums(self.lift.dim, gram=config.read_out != "prototype", squares=config.top_up)
        self._taken = 0
        self._head: Head | None = None

    def update(self, gone: Sequence[str], come: Mapping[str, Row]) -> None:
        """Take rows out and add rows."""
        out = [self.rows.pop(key) for key in gone]
        self.rows |= come
        self._choose(gone, come)
        moved = self._decay.moves(self.rows, out, come.values())
        self._taken += len(out)
        self._head = None
        if moved or (self._taken > 1000 and self._taken > len(self.rows)):  # rounding does not pile up
            self._clear()
            self._move(list(self.rows.values()), 1)
        else:
            self._move(out, -1)
            self._move(list(come.values()), 1)

    def guide(self, named: Named) -> None:
        """Take the names of classes, if they are targets."""
        if self._config.targets == "names" and named != self._named:
            self._named, self._head = named, None

    def _choose(self, gone: Sequence[str], come: Mapping[str, Row]) -> None:
        """Keep the rows whose hash is below a bound, which halves when they double: any view chooses the same."""
        below = (1 << 32) * _CALIBRATE >> max(9, len(self.rows).bit_length())
        for key in gone:
            self._sample.pop(key, None)
        if below != self._below:
            self._below, self._sample, come = below, {}, self.rows
        self._sample |= {key: row for key, row in come.items() if row.hash < below}

    def _move(self, rows: Sequence[Row], sign: int) -> None:
        for start in range(0, len(rows), _AT_ONCE):
            part = rows[start : start + _AT_ONCE]
            change = self._sums.add if sign > 0 else self._sums.subtract
            change(*self._arrays(part))

    def _arrays(self, rows: Sequence[Row]) -> tuple[Floats, list[str], Floats]:
        phi = stored(b"".join([row.phi for row in rows]), self._space).reshape(len(rows), self._dim)
        return self.lift(phi), [row.label or "" for row in rows], self._decay.weights(rows)

    def sums(self) -> Sums:
        """The sums as of the newest row, which counts for its weight."""
        return self._sums.scaled(self._decay.factor, _LEAST) if self._config.half_life_s else self._sums

    def head(self) -> Head:
        """The solved head; solved once per change."""
        if self._head is None:
            rows, labels, weights = self._arrays([self._sample[key] for key in sorted(self._sample)])
            config, sums, factor = self._config, self.sums(), self._decay.factor
            if config.half_life_s:
                weights = weights * factor
                kept = [i for i, label in enumerate(labels) if label in sums]
                rows, labels, weights = rows[kept], [labels[i] for i in kept], weights[kept]
            self._head = solve(
                sums, config.read_out, gamma=config.gamma, shrinkage=config.shrinkage,
                rows=rows, labels=labels, weights=weights, top_up=config.top_up,
                targets=named_targets(sums.names, self._named),
            )  # fmt: skip
        return self._head


class State(Protocol):
    """What a head knows from its rows in one space of vectors."""

    rows: dict[str, Any]

    @property
    def lift(self) -> Callable[[Floats], Floats]: ...
    def update(self, gone: Sequence[str], come: Mapping[str, Row]) -> None: ...
    def head(self) -> Head: ...


MakeState = Callable[[Any, str, int], State]
"""Make a state from the configuration, the space and its dimension."""


class HeadState:
    """One head, in all spaces that its labels are of, as of a mark."""

    def __init__(self, config: Any, name: str, make: MakeState) -> None:
        self._config, self._prefix, self._make = config, f"{name}\0", make
        self._seen = HeadRow()
        self._known: dict[str, Row] = {}
        self._read_as: dict[str, str | None] = {}
        self.spaces: dict[str, State] = {}
        self.names: dict[str, str] = {}

    @property
    def row(self) -> HeadRow:
        """Up to where it has followed."""
        return self._seen

    def follow(self, view: View, row: HeadRow) -> None:
        """Bring the sums up to the view. A look at each label of all heads, arithmetic for what changed."""
        if row == self._seen:
            return
        start = len(self._prefix)
        classes = {key[start:]: found for key, found in view["classes"].items() if key.startswith(self._prefix)}
        self.names = {label: found.name for label, found in classes.items() if found.name}
        read_as = {label: merged_into(label, classes) for label in classes}
        changed = self._changed(view, read_as)
        changed |= self._priors(classes, read_as)
        declared = sum(found.seq > 0 for found in classes.values())
        priors = {f"{self._prefix}\0{label}" for label, found in classes.items() if found.prior}
        stay = row.rows - declared + len(priors)
        gone: list[str] = []
        if len(self._known) + sum(key not in self._known for key in changed) > stay:
            labels = view["labels"]
            gone = [key for key in self._known if key not in labels and key not in priors]
        self._apply(gone, changed)
        self._seen, self._read_as = row, read_as
        guide(self.spaces.values(), names_of((read_as[label], found.prior) for label, found in classes.items()))

    def _changed(self, view: View, read_as: Mapping[str, str | None]) -> dict[str, Row]:
        """Labels that are new, that were replaced, or whose class is read as another."""
        known, prefix = self._known, self._prefix
        moved = {label for label in {*read_as, *self._read_as} if read_as.get(label, label) != self._was(label)}
        found: dict[str, LabelRow] = {}
        labels: Iterable[tuple[str, LabelRow]] = view["labels"].items()
        for key, source in labels:
            held = known.get(key)
            if held is None:
                if key.startswith(prefix):
                    found[key] = source
            elif held.source is not source or (moved and source.label in moved):
                found[key] = source
        phis = view["phi"].get_many(list(found))
        return {
            key: Row(
                one, read_as.get(one.label, one.label) if one.weight else None, one.weight, one.space, phi, _hash(key),
                one.at_us,
            )
            for (key, one), phi in zip(found.items(), phis, strict=True)
        }  # fmt: skip

    def _was(self, label: str) -> str | None:
        return self._read_as.get(label, label)

    def _priors(self, classes: Mapping[str, ClassRow], read_as: Mapping[str, str | None]) -> dict[str, Row]:
        """Priors that are new or changed."""
        found = {}
        for label, one in classes.items():
            key = f"{self._prefix}\0{label}"
            held = self._known.get(key)
            if one.prior and (held is None or held.phi != one.prior or held.label != read_as[label]):
                found[key] = Row(
                    None, read_as[label], self._config.prior_weight, TEXT, one.prior, _hash(key), one.at_us
                )
        return found

    def _apply(self, gone: Sequence[str], changed: Mapping[str, Row]) -> None:
        out: dict[str, list[str]] = {}
        come: dict[str, dict[str, Row]] = {}
        for key in (*gone, *changed):
            held = self._known.pop(key, None)
            if held is not None and held.label is not None:
                out.setdefault(held.space, []).append(key)
        for key, row in changed.items():
            self._known[key] = row
            if row.label is not None:
                come.setdefault(row.space, {})[key] = row
        for space in sorted({*out, *come}):
            rows = come.get(space, {})
            if space not in self.spaces:
                size = len(next(iter(rows.values())).phi) // (4 if space == TEXT else 8)
                self.spaces[space] = self._make(self._config, space, size)
            self.spaces[space].update(out.get(space, ()), rows)
            if not self.spaces[space].rows:
                del self.spaces[space]


def guide(states: Iterable[State], named: Named) -> None:
    """Tell states what classes are called; those over filters have no targets."""
    for state in states:
        if isinstance(state, SpaceState):
            state.guide(named)


def _hash(key: str) -> int:
    return crc32(key.encode("utf-8", "surrogatepass"))


class ClassesOf(Mapping[str, ClassRow]):
    """The classes of one head, looked up where they are stored. ``get`` alone is cheap."""

    def __init__(self, classes: Any, head: str) -> None:
        self._classes, self._prefix = classes, f"{head}\0"

    def __getitem__(self, label: str) -> ClassRow:
        found: ClassRow | None = self._classes.get(self._prefix + label)
        if found is None:
            raise KeyError(label)
        return found

    def __iter__(self) -> Iterator[str]:
        start = len(self._prefix)
        return (key[start:] for key, _ in self._classes.items() if key.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Ready(NamedTuple):
    """A solved head as of a row of ``heads``, which nothing changes any more; ``spaces``: those that were asked for."""

    row: HeadRow
    spaces: Mapping[str, tuple[Callable[[Floats], Floats], Head]]
    names: Mapping[str, str]


class Held:
    """A head's sums, and the lock of whoever moves or solves them: who asks for another head does not wait for it."""

    def __init__(self, state: HeadState) -> None:
        self.state = state
        self.lock = threading.Lock()


class HeadsServer:
    """A ``Classifier`` over the view; ``make``: what is known of a head in a space.

    A head that was asked for lately is solved anew after a change by whoever drives the view (``core/views/settle.py``)
    and answers meanwhile as it was; any other is solved when it is asked for.
    """

    def __init__(self, config: Any, view: View, make: MakeState = SpaceState) -> None:
        self._config, self._view, self._make = config, view, make
        self._lock = threading.Lock()
        """Held to find or to let go of a head, never while one is solved."""
        self._held: OrderedDict[str, Held] = OrderedDict()
        self._ready: dict[str, Ready] = {}
        self._asked: dict[str, float] = {}
        self._counted: tuple[dict[str, HeadRow], dict[str, int]] = ({}, {})
        self._is_driven = False
        emptied_on_erasure(self.forget)

    def forget(self) -> None:
        """Something was erased: let go of heads that nobody drives after the view, to be read anew when asked for."""
        since = time.monotonic() - _WARM_S
        for name in list(self._held):
            if name not in self._ready or not self._is_driven or self._asked.get(name, 0.0) < since:
                self._let_go(name)

    # -- off the requests' path ---------------------------------------------------------------------------------------
    def unsettled(self) -> bool:
        """Whether a head that was asked for lately has changed; others are let go of, to be solved when asked for."""
        self._is_driven = True
        rows, since = self._view["heads"], time.monotonic() - _WARM_S
        changed = [name for name, ready in list(self._ready.items()) if rows.get(name) != ready.row]
        for name in changed:
            if self._asked.get(name, 0.0) < since:
                self._ready.pop(name, None)
        return any(name in self._ready for name in changed)

    def look(self) -> Callable[[], None]:
        """Bring the sums of heads that are asked for up to the view; return the solving of them."""
        changed: list[tuple[str, Held]] = []
        for name, ready in list(self._ready.items()):
            row: HeadRow | None = self._view["heads"].get(name)
            held = self._held.get(name)
            if row is None or held is None:
                self._let_go(name)
            elif row != ready.row:
                with held.lock, self._or_forget(name):
                    if self._holds(name, held):
                        held.state.follow(self._view, row)
                changed.append((name, held))
        return lambda: self._solve(changed)

    def _solve(self, changed: Sequence[tuple[str, Held]]) -> None:
        for name, held in changed:
            with held.lock, self._or_forget(name):
                ready = self._ready.get(name)
                if ready is not None and self._holds(name, held):
                    self._tell(name, held, _solved(held.state, ready.spaces))

    def _tell(self, name: str, held: Held, ready: Ready) -> None:
        """Answer by a solved head from now on, unless it was let go of meanwhile."""
        with self._lock:
            if self._holds(name, held):
                self._ready[name] = ready

    def _holds(self, name: str, held: Held) -> bool:
        """Whether this is still what is held of the head: what failed was let go of half done."""
        return self._held.get(name) is held

    @contextmanager
    def _or_forget(self, name: str) -> Iterator[None]:
        """What fails here is begun anew in a request: nobody is answered from what is half done."""
        try:
            yield
        except WrongTarget:
            raise
        except BaseException:
            self._let_go(name)
            raise

    def heads(self) -> dict[str, int]:
        """Every head with how many labels and priors it has."""
        rows = dict(self._view["heads"].items())
        before, counts = self._counted
        if rows != before:
            counts = {head: row.rows for head, row in rows.items()}
            for key, row in self._view["classes"].items():
                if row.seq:
                    counts[key.partition("\0")[0]] += bool(row.prior) - 1
            self._counted = rows, counts
        return counts

    def read_as(self, head: str, label: str) -> str | None:
        """The class that a label counts for, after merges; None: it was retired."""
        return merged_into(label, ClassesOf(self._view["classes"], head))

    def thing(self, name: str) -> bytes | None:
        """The vector of a document, item or user, named as ``kind:id``."""
        found: bytes | None = self._view["things"].get(name)
        return found

    def chances(self, name: str, space: str, phi: Floats) -> tuple[list[str], Floats, Floats] | None:
        """Classes, their probabilities ``(n, classes)`` and ``unknown (n,)``; None: nothing like it is labelled."""
        try:
            lift, head, _ = self._solved(name, space, 0)
        except WrongTarget:
            return None
        rows = lift(phi)
        return head.names, head.probabilities(rows), head.unknown(rows)[0]

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

    def _solved(self, name: str, space: str, index: int) -> tuple[Callable[[Floats], Floats], Head, Mapping[str, str]]:
        row = self._view["heads"].get(name)
        ready = self._ready.get(name)
        self._asked[name] = time.monotonic()
        if row is None or ready is None or space not in ready.spaces or not (self._is_driven or ready.row == row):
            ready = self._made(name, space, index)
        return *ready.spaces[space], ready.names

    def _made(self, name: str, space: str, index: int) -> Ready:
        """Solve a head in the request: nobody has asked for it lately, or not for this space."""
        row: HeadRow | None = self._view["heads"].get(name)
        if row is None:
            self._let_go(name)
            raise WrongTarget(index, f"head {name[:64]!r} has no labels")
        while True:
            held = self._hold(name)
            with held.lock, self._or_forget(name):
                if self._holds(name, held):
                    return self._ready_for(name, held, row, space, index)

    def _ready_for(self, name: str, held: Held, row: HeadRow, space: str, index: int) -> Ready:
        """Bring a head up to the view and solve it; its lock is held."""
        state, before = held.state, self._ready.get(name)
        state.follow(self._view, row)
        ready = _solved(state, {space, *(before.spaces if before is not None else ())})
        self._tell(name, held, ready)
        if space not in ready.spaces:
            known = ", ".join(f"{len(s.rows)} of {_told(which)}" for which, s in sorted(state.spaces.items()))
            what = _told(space) + ("" if space == TEXT else " of these names")
            raise WrongTarget(index, f"head {name[:64]!r} has no labels of {what}; it has: {known or 'none'}")
        return ready

    def _hold(self, name: str) -> Held:
        """Find or make what is held of a head, as the one that was asked for last."""
        with self._lock:
            held = self._held.pop(name, None) or Held(HeadState(self._config, name, self._make))
            self._held[name] = held
            oldest = next(iter(self._held)) if len(self._held) > _HEADS else None
        if oldest is not None:
            self._let_go(oldest)
        return held

    def _let_go(self, name: str) -> None:
        with self._lock:
            self._held.pop(name, None)
            self._ready.pop(name, None)
            self._asked.pop(name, None)

    def _vectors(self, request: ClassifyRequest) -> list[tuple[str, Floats]]:
        return vectors_of(self._view, request.targets)

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
                    **{name: round(value, _DIGITS) for name, value in head.notes.items()},
                    "weights": {head.names[s]: round(float(head.n[s]), _DIGITS) for s in best[:_EVIDENCE]},
                }
            yield Prediction(labels=labels, unknown=round(float(unknown[i]), _DIGITS), explain=explain)


def _solved(state: HeadState, spaces: Iterable[str]) -> Ready:
    there = sorted(set(spaces) & state.spaces.keys())
    return Ready(state.row, {one: (state.spaces[one].lift, state.spaces[one].head()) for one in there}, state.names)


def _told(space: str) -> str:
    return "texts" if space == TEXT else space.rsplit(" ", 1)[0]
