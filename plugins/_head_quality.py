"""How good heads were that are functions of their labelled rows: each of the last labels, by those before it.

The rows themselves tell: a state is built of all rows but the last ones, and these are scored and then learned, block
by block, in order of the log (test-then-train; Gama et al., On evaluating stream learning algorithms, 2013,
doi:10.1007/s10994-012-5320-9). A block holds as many labels as are known before it, 64 at most, so all but the very
first label are scored; the name of a class counts from where the class was declared last. So nothing is written while
labels are folded, a shadow is measured as live is, and what was erased, replaced or retracted counts no more. It is
worked out when somebody asks, and kept until a label comes.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

from streamfold.core import QualityPoint, Scored, View
from streamfold.core.quality import calibration_error
from streamfold.plugins._heads import ClassesOf, HeadsServer, HeadState, MakeState, Row, SpaceState, guide
from streamfold.plugins._labels import HeadRow
from streamfold.plugins._named_targets import names_of
from streamfold.plugins._sums import Floats
from streamfold.plugins._targets import TEXT, unpacked

_LAST = 2048
"""So many labels of a head and space are scored."""
_BLOCK = 64
_HEADS = 64
_STRETCH_US = 3_600_000_000
_LEAST = 1e-4
_BINS = 64


class Tested(NamedTuple):
    """A label and what was expected of it: the probability of the right class, and whether that was the likeliest."""

    seq: int
    at_us: int
    target: int
    """A hash: it stands for the user."""
    head: str
    label: str
    chance: float
    right: bool
    sure: float
    """The probability of the likeliest class."""


class MeasuredLabels(ABC):
    """``Measured``, from what was expected of labels."""

    @abstractmethod
    def tested(self, head: str | None) -> Iterable[Tested]:
        """What was expected, of one head or of all."""

    def series(self, *, from_us: int, to_us: int, slice_: str, stretch_us: int = 0) -> list[QualityPoint]:
        """By hour of the labels' times, or longer stretches."""
        size_us = max(stretch_us, _STRETCH_US)
        by_stretch: dict[int, list[Tested]] = {}
        first_us, end_us = from_us // _STRETCH_US * _STRETCH_US, -(-to_us // _STRETCH_US) * _STRETCH_US
        best: dict[tuple[str, str], float] = {}
        earlier: dict[int, list[Tested]] = {}
        for one in self.tested(None if slice_ == "all" else slice_):
            if first_us <= one.at_us < end_us:
                by_stretch.setdefault(one.at_us // size_us, []).append(one)
            elif one.at_us < first_us:
                earlier.setdefault(one.at_us // size_us, []).append(one)
        for number, rows in sorted(earlier.items()):  # what was best before counts for forgetting
            _point(number * size_us, rows, best)
        return [_point(number * size_us, rows, best) for number, rows in sorted(by_stretch.items())]

    def scored(self) -> Scored:
        """The last labels of every head; slices are the classes."""
        rows = sorted(self.tested(None))
        names = sorted({f"{one.head}: {one.label}" for one in rows})
        place = {name: number for number, name in enumerate(names)}
        return Scored(
            key=np.array([(one.seq, 0) for one in rows], np.int64).reshape(-1, 2),
            user=np.array([one.target for one in rows], np.int64),
            at_us=np.array([one.at_us for one in rows], np.int64),
            score=np.array([one.chance for one in rows], np.float64),
            label=np.ones(len(rows)),
            slices=np.array([place[f"{one.head}: {one.label}"] for one in rows], np.int64),
            right=np.array([one.right for one in rows], bool),
            names=tuple(names),
        )


@dataclass(slots=True)
class Rows:
    """The rows of one head, by space, as they stood; ``tested``: what came of them, once it was worked out.

    ``state`` follows the head.
    ``declared``: by a prior's key, the event that declared its class last.
    """

    mark: HeadRow
    state: HeadState
    spaces: Mapping[str, Sequence[tuple[str, Row]]]
    declared: Mapping[str, int]
    tested: list[Tested] | None = None


class Learned(NamedTuple):
    """A row that counts from an event on: a label's, or that of a class's name."""

    seq: int
    key: str
    row: Row


class Gathered:
    """A ``State`` that knows its rows, and nothing of them."""

    def __init__(self, config: Any, space: str, dim: int) -> None:
        del config, space, dim
        self.rows: dict[str, Row] = {}

    @property
    def lift(self) -> Any:
        raise NotImplementedError

    def update(self, gone: Sequence[str], come: Mapping[str, Row]) -> None:
        """Take rows out and add rows."""
        for key in gone:
            del self.rows[key]
        self.rows.update(come)

    def head(self) -> Any:
        raise NotImplementedError


class RowsServer(HeadsServer):
    """A ``Classifier`` that is a ``QualityReport`` too."""

    def __init__(self, config: Any, view: View, make: MakeState = SpaceState) -> None:
        super().__init__(config, view, make)
        self._measured: dict[str, Rows] = {}
        self._measuring = threading.Lock()
        self._forgotten = 0

    def forget(self) -> None:
        """Keep no rows of measurements either, not those that are taken just now."""
        super().forget()
        self._forgotten += 1
        self._measured = {}

    @property
    def slices(self) -> tuple[str, ...]:
        """All, and each head."""
        return ("all", *sorted(name for name, _ in self._view["heads"].items()))

    def measured(self) -> RowsMeasured:
        """Take the rows of every head that changed, of the heads with most labels; no sums are made."""
        found = {}
        most: list[tuple[str, HeadRow]] = sorted(self._view["heads"].items(), key=lambda one: (-one[1].rows, one[0]))
        with self._measuring:
            forgotten = self._forgotten
            before, self._measured = self._measured, {}  # what fails is begun anew
            for name, mark in most[:_HEADS]:
                held = before.get(name)
                if held is None or held.mark != mark:
                    state = HeadState(self._config, name, Gathered) if held is None else held.state
                    state.follow(self._view, mark)
                    spaces = {space: list(one.rows.items()) for space, one in state.spaces.items()}
                    declared = {
                        f"{name}\0\0{label}": row.seq for label, row in ClassesOf(self._view["classes"], name).items()
                    }
                    held = Rows(mark, state, spaces, declared)
                found[name] = held
            self._measured = found
            if forgotten != self._forgotten:
                self._measured = {}
        return RowsMeasured(self._config, self._make, found)


class RowsMeasured(MeasuredLabels):
    """Rows of heads, each scored by those before it."""

    def __init__(self, config: Any, make: MakeState, heads: Mapping[str, Rows]) -> None:
        self._config, self._make, self._heads = config, make, heads

    def tested(self, head: str | None) -> Iterable[Tested]:
        """What was expected, of one head or of all."""
        for name, held in self._heads.items():
            if head in (None, name):
                if held.tested is None:
                    priors = [
                        Learned(held.declared[key], key, row)
                        for key, row in held.spaces.get(TEXT, ())
                        if row.source is None
                    ]
                    held.tested = [
                        one for space, rows in held.spaces.items() for one in self._test(name, space, rows, priors)
                    ]
                yield from held.tested

    def _test(self, head: str, space: str, rows: Sequence[tuple[str, Row]], priors: Sequence[Learned]) -> list[Tested]:
        """Score the last rows, each block by all before it. O(rows + blocks × solve)."""
        last = sorted(
            (Learned(row.source.seq, key, row) for key, row in rows if row.source is not None and row.weight)
        )[-_LAST:]
        if not last:
            return []
        kept = {one.key for one in last}
        size = len(rows[0][1].phi) // (4 if space == TEXT else 8)
        state = self._make(self._config, space, size)
        if before := {key: row for key, row in rows if key not in kept and row.source is not None}:
            state.update((), before)
        found: list[Tested] = []
        start = since = 0
        while start < len(last):
            block = last[start : start + min(_BLOCK, max(1, len(before) + start))]
            now = block[0].seq
            if space == TEXT and (come := {one.key: one.row for one in priors if since <= one.seq < now}):
                state.update((), come)
            guide([state], names_of((one.row.label, one.row.phi) for one in priors if one.seq < now))
            if state.rows:
                solved = state.head()
                phi = unpacked(b"".join(one.row.phi for one in block), space).reshape(len(block), size)
                found += _expected(head, block, solved.names, solved.probabilities(state.lift(phi)))
            state.update((), {one.key: one.row for one in block})
            start, since = start + len(block), now
        return found


def _expected(head: str, block: Sequence[Learned], names: Sequence[str], chances: Floats) -> Iterable[Tested]:
    """Hold what was expected against the labels; a class that was not there yet had no chance."""
    place = {name: number for number, name in enumerate(names)}
    likeliest, sure = chances.argmax(axis=1).tolist(), chances.max(axis=1).tolist()
    for number, (seq, key, row) in enumerate(block):
        assert row.label is not None
        code = place.get(row.label)
        chance = float(chances[number, code]) if code is not None else 0.0
        target = crc32(key.partition("\0")[2].encode("utf-8", "surrogatepass"))
        right = likeliest[number] == code
        yield Tested(seq, row.at_us, target, head, row.label, chance, right, sure[number])


def _point(at_us: int, rows: Sequence[Tested], best: dict[tuple[str, str], float]) -> QualityPoint:
    """One stretch of time; ``best``: of each class, the accuracy that was best so far."""
    of_class: dict[tuple[str, str], list[bool]] = {}
    for one in rows:
        of_class.setdefault((one.head, one.label), []).append(one.right)
    accuracies = {name: sum(right) / len(right) for name, right in of_class.items()}
    lost = [max(0.0, best[name] - accuracy) for name, accuracy in accuracies.items() if name in best]
    for name, accuracy in accuracies.items():
        best[name] = max(accuracy, best.get(name, 0.0))
    return QualityPoint(
        at_us,
        len(rows),
        math.nan,
        math.nan,
        -sum(math.log(max(one.chance, _LEAST)) for one in rows) / len(rows),
        math.nan,
        accuracy=sum(one.right for one in rows) / len(rows),
        min_accuracy=min(accuracies.values()),
        forgetting=sum(lost) / len(lost) if lost else math.nan,
        calibration_error=calibration_error(*_histograms(rows)),
    )


def _histograms(rows: Sequence[Tested]) -> list[Floats]:
    """How sure the head was where it was right, and where it was wrong."""
    bins = np.minimum([one.sure * _BINS for one in rows], _BINS - 1).astype(np.int64)
    right = np.array([one.right for one in rows], bool)
    return [np.bincount(bins[which], minlength=_BINS).astype(np.float64) for which in (right, ~right)]
