"""Policy ``corrections``: the right label of a target, pinned by who was shown a wrong one, whatever the heads say.

``feedback.given`` with ``head``, ``target`` and ``correction`` pins it; the next answer obeys. So does an answer for a
target nearer than ``radius`` (as a share of the pinned vector's length), and no other: a codebook over the vectors φ
(GRACE: Hartvigsen et al. 2022, arXiv:2211.11031). Where two pins of different labels lie near each other each reaches
half the way to the other, as GRACE splits them. What differs from GRACE: a pin of the same label nearby does not widen
the first one's reach, it has its own, so nothing farther than the radius from a pinned target is ever touched; and
reaches are read off the pins that are there, not off the order in which they came, so taking one away leaves nothing.

A ``correction`` of ``null`` takes the pin of a target away. Heads learn nothing from pins, and pins outlast the
promotion of a head: they are facts, not weights. To teach the heads, send ``label.observed`` too.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, ClassVar

import msgspec
import numpy as np

from streamfold.core import (
    Batch,
    ClassifyRequest,
    Event,
    NeedsRebuild,
    Prediction,
    ScoredLabel,
    Stores,
    Subject,
    Table,
    View,
    emptied_on_erasure,
)
from streamfold.plugins._labels import HeadRow, label_name, mixed
from streamfold.plugins._of_targets import THINGS, THINGS_STORE, OfTargets, key_of
from streamfold.plugins._settings import within
from streamfold.plugins._sums import Floats
from streamfold.plugins._targets import KINDS, TEXT, thing_of, unpacked, vectors_of

_MOST_HEADS = 10_000
_HEADS = 64
_DIGITS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class CorrectionsConfig:
    """How far a correction reaches, and bounds; past a bound events wait and the policy says so.

    Parameters
    ----------
    radius : ε, as a share of the length of the pinned vector; 0: the very same vector alone.
    max_pins : of all heads together.
    """

    radius: float = 0.25
    max_pins: int = 10_000

    def __post_init__(self) -> None:
        within("corrections", self, radius=(0, 2), max_pins=(1, 1_000_000))


class Pin(msgspec.Struct, frozen=True, array_like=True):
    """A pinned label, the event that pinned it, and the space and vector of its target then."""

    label: str
    seq: int
    space: str
    phi: bytes


class Corrections(OfTargets):
    """Pins by head and target."""

    name = "corrections"
    version = 1
    handles: ClassVar[tuple[str, ...]] = ("feedback.given", *THINGS)
    Config: ClassVar[type] = CorrectionsConfig

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.stores = (
            Table("heads", key=str, value=HeadRow, max_rows=_MOST_HEADS, on_full="refuse"),
            Table("pins", key=str, value=Pin, max_rows=self.config.max_pins, on_full="refuse"),
            THINGS_STORE,
        )

    def text_in(self, event: Event) -> str:
        """Return what a correction's target says."""
        target = event.data.target if event.type == "feedback.given" else None
        return (target.text or "") if target is not None else ""

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        """Pin, or take a pin away."""
        if event.type != "feedback.given":
            self.fold_thing(event, prepared, stores)
            return
        data = event.data
        if data.target is None:
            return
        thing = thing_of(data.target)
        if data.correction is None and thing is not None:
            self._replace(data.head, thing, None, stores)
            return
        label = None if data.correction is None else label_name(data.correction)
        space, phi = self._phi(data.target, prepared, stores)
        key = thing or f"{space}:{blake2b(phi, digest_size=16).hexdigest()}"
        self._replace(data.head, key, None if label is None else Pin(label, event.seq, space, phi), stores)

    def _replace(self, head: str, target: str, new: Pin | None, stores: Stores) -> None:
        key = f"{head}\0{target}"
        old: Pin | None = stores["pins"].get(key)
        if new is not None:
            stores["pins"].put(key, new)
        elif old is not None:
            stores["pins"].delete(key)
        was: HeadRow = stores["heads"].get(head) or HeadRow()
        marks = [mixed(pin.seq) for pin in (old, new) if pin is not None]
        row = HeadRow(was.rows + (new is not None) - (old is not None), was.mark)
        for mark in marks:
            row = msgspec.structs.replace(row, mark=row.mark ^ mark)
        if row.rows:
            stores["heads"].put(head, row)
        else:
            stores["heads"].delete(head)

    def forget(self, subject: Subject, events: Batch, stores: Stores) -> None:
        """Take the pins of a thing away, exactly; what somebody pinned may have replaced another's: folded afresh."""
        pinned = [event for event, _ in events if event.type == "feedback.given" and event.data.target is not None]
        if any(thing_of(event.data.target) != key_of(subject) for event in pinned):
            raise NeedsRebuild(f"{subject.kind} {subject.id!r} corrected others' labels: they are folded afresh")
        for head in sorted({event.data.head for event in pinned}):
            self._replace(head, key_of(subject), None, stores)
        if subject.kind in KINDS:
            stores["things"].delete(key_of(subject))

    def serve(self, view: View) -> CorrectionsServer:
        """Correct from the view."""
        return CorrectionsServer(self.config, view)


class Codebook:
    """The pins of one head in one space."""

    def __init__(self, pins: Sequence[tuple[str, Pin]], space: str, radius: float) -> None:
        self._keys = [key for key, _ in pins]
        self._pins = [pin for _, pin in pins]
        self._labels = np.array([pin.label for pin in self._pins], object)
        self._phi = np.stack([unpacked(pin.phi, space) for pin in self._pins])
        self._squares = np.einsum("nd,nd->n", self._phi, self._phi)
        self._reach = radius * np.sqrt(self._squares)

    def find(self, phi: Floats, key: str | None) -> tuple[Pin, float, float] | None:
        """Return the pin that a vector is within reach of, its distance and the reach; None: there is none.

        The nearest one; of equally near ones that of the target ``key``, else the newest. O(pins).
        """
        about = self._squares - 2 * (self._phi @ phi) + phi @ phi
        slack = 1e-9 * (self._squares + phi @ phi)  # of the difference of squares; what is left is measured exactly
        near = np.flatnonzero(about <= self._reach**2 + slack)
        if not len(near):
            return None
        distances = np.sqrt(np.square(self._phi[near] - phi).sum(axis=1))
        distance, _, _, i = min(
            (float(d), self._keys[i] != key, -self._pins[i].seq, int(i)) for d, i in zip(distances, near, strict=True)
        )
        reach = self._reach_of(i)
        return (self._pins[i], distance, reach) if distance <= reach else None

    def _reach_of(self, i: int) -> float:
        """The radius, or half the way to the nearest pin of another label."""
        others = self._phi[self._labels != self._labels[i]]
        if not len(others):
            return float(self._reach[i])
        away = np.sqrt(np.square(others - self._phi[i]).sum(axis=1).min())
        return float(min(self._reach[i], away / 2))


class CorrectionsServer:
    """A ``Corrector`` over the view."""

    def __init__(self, config: Any, view: View) -> None:
        self._config, self._view = config, view
        self._lock = threading.Lock()
        self._books: OrderedDict[str, tuple[HeadRow, dict[str, Codebook]]] = OrderedDict()
        emptied_on_erasure(self.forget)

    def forget(self) -> None:
        """Something was erased: books are read anew."""
        with self._lock:
            self._books.clear()

    def corrections(self, request: ClassifyRequest) -> dict[int, Prediction]:
        """Which targets have a pinned label, by their place in the request."""
        books = self._of(request.head)
        asked = [i for i, target in enumerate(request.targets) if self._may_be(target, books)]
        found = {}
        vectors = vectors_of(self._view, [request.targets[i] for i in asked])
        for i, (space, phi) in zip(asked, vectors, strict=True):
            hit = books[space].find(phi, thing_of(request.targets[i])) if space in books else None
            if hit is not None:
                pin, distance, reach = hit
                explain = {
                    "pinned_at": pin.seq,
                    "distance": round(distance, _DIGITS),
                    "radius": round(reach, _DIGITS),
                }
                found[i] = Prediction(
                    labels=[ScoredLabel(pin.label, 1.0)], unknown=0.0, explain=explain if request.explain else None
                )
        return found

    def _may_be(self, target: Any, books: dict[str, Codebook]) -> bool:
        """Whether a target is of a space with pins; what is not known here was not pinned."""
        if target.features is not None:
            return bool(books.keys() - {TEXT})
        if TEXT not in books:
            return False
        thing = thing_of(target)
        return bool(target.text) if thing is None else self._view["things"].get(thing) is not None

    def _of(self, head: str) -> dict[str, Codebook]:
        """The head's codebooks by space; made anew when its pins have changed."""
        row: HeadRow | None = self._view["heads"].get(head)
        with self._lock:
            held = self._books.pop(head, None)
            if row is None:
                return {}
            if held is None or held[0] != row:
                held = row, self._made(f"{head}\0")
            self._books[head] = held
            if len(self._books) > _HEADS:
                self._books.popitem(last=False)
            return held[1]

    def _made(self, prefix: str) -> dict[str, Codebook]:
        by_space: dict[str, list[tuple[str, Pin]]] = {}
        for key, pin in self._view["pins"].items():
            if key.startswith(prefix):
                by_space.setdefault(pin.space, []).append((key[len(prefix) :], pin))
        return {space: Codebook(pins, space, self._config.radius) for space, pins in by_space.items()}
