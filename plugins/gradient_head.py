"""Policy ``gradient_head``: classify by a linear head that takes one gradient step per label.

Of vectors it keeps a row of weights and a few replayed rows per class, however many labels come, where
``label_statistics`` keeps each label's; of every target it keeps what it is labelled. A step learns the new label and
some replayed ones (``_replay.py``), by a loss, an optimiser and hooks (``_gradient.py``); what is served reads the
weights, or their average (``_averages.py``), corrected for classes that are new (``_alignment.py``).

Each label is a step of its own and takes its chance from a hash of its event, so the size of a transaction does not
matter and folding again gives the same bits. The price of gradients: what a label taught cannot be taken back. A later
label for the same target and ``label: null`` take the row out of the replay, and a class without labels goes, weights
and all; but what else the old label moved, later ones have to. An erasure folds afresh.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np

from streamfold.core import (
    Array,
    Batch,
    ConfigError,
    Event,
    EventError,
    NeedsRebuild,
    Policy,
    Stores,
    Subject,
    Table,
    View,
    WrongBase,
)
from streamfold.plugins import _gradient
from streamfold.plugins._averages import Averages
from streamfold.plugins._budget import MAX_BYTES, label_size
from streamfold.plugins._gradient import Anchor, Hook, Learner, Optimiser, Rows, Sgd, ShrinkPerturb, State, Upgd
from streamfold.plugins._gradient_server import GradientServer, Lift
from streamfold.plugins._labels import ClassRow, HeadRow, LabelRow
from streamfold.plugins._of_targets import THINGS_STORE
from streamfold.plugins._replay import PRIOR, ClassState, SpaceState, admitted, drawn, hashed
from streamfold.plugins._settings import one_of, within
from streamfold.plugins._targets import TEXT, unpacked
from streamfold.plugins._waiting import Observed, waiting_store
from streamfold.plugins.label_statistics import SHARED_BOUNDS, LabelStatistics

_MOST_HEADS = 10_000
_MOST_COUNTS = 4.0
"""A label of a larger weight takes a step of this one: a step that is too long jumps over the minimum."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientHeadConfig:
    """How a head learns and how it is read out, and bounds; past a bound events wait and the policy says so.

    Parameters
    ----------
    loss : ``batch`` (classes of the batch) or ``softmax`` (all classes of the head).
    optimiser : ``sgd`` or ``upgd``. rate : η. utility_decay, sigma : β and σ of ``upgd``.
    replay : rows kept per class; 0: none. replayed : rows in a step beside the new label.
    init : how a new class begins: ``mean`` (at its first label) or ``zero``.
    anchor : λ of the pull to where each class began. shrink, perturb : λ and σ after each step.
    read_out : ``linear``, or ``herding``: the nearest mean of ``exemplars`` herded rows per class.
    align : how ``linear`` is corrected for classes of the last ``new_for`` steps: ``none``, ``norm``, ``bias`` or
        ``gaussian`` or ``translation`` (which keeps the mean of each class).
    average : what is served: ``none`` (the weights), or their ``ema``, ``swa``, ``lawa`` or ``stock`` over checkpoints,
        one every ``every`` steps. decay : of ``ema``. keep : of ``lawa`` and ``stock``. blend : how much the average
        counts beside the weights.
    blend_with : the name of another ``gradient_head`` over the same base (``dim``, ``expansion`` and its ``seed``,
        ``init``): served are ``blend`` times these weights and the rest of that one's, class by class.
    expansion : units of a fixed random ReLU layer; 0: none. seed : of that layer and of all chance.
    dim : the longest vector without an expansion.
    prior_weight : how much the name of a class counts in its step.
    max_labels, max_classes : of all heads together.
    max_bytes, wait_s, max_waiting, arms : as of ``label_statistics``.
    """

    loss: Literal["batch", "softmax"] = "batch"
    optimiser: Literal["sgd", "upgd"] = "sgd"
    rate: float = 4.0
    utility_decay: float = 0.999
    sigma: float = 0.001
    replay: int = 20
    replayed: int = 20
    init: Literal["mean", "zero"] = "mean"
    anchor: float = 0.0
    shrink: float = 1.0
    perturb: float = 0.0
    read_out: Literal["linear", "herding"] = "linear"
    exemplars: int = 10
    align: Literal["none", "norm", "bias", "gaussian", "translation"] = "none"
    new_for: int = 500
    average: Literal["none", "ema", "swa", "lawa", "stock"] = "none"
    every: int = 50
    decay: float = 0.9
    keep: int = 5
    blend: float = 1.0
    blend_with: str = ""
    expansion: int = 0
    seed: int = 0
    dim: int = 384
    prior_weight: float = 1.0
    max_labels: int = 1_000_000
    max_classes: int = 1024
    max_bytes: int = MAX_BYTES
    wait_s: float = 86_400.0
    max_waiting: int = 10_000
    arms: str = ""

    def __post_init__(self) -> None:
        one_of(
            "gradient_head",
            self,
            loss=("batch", "softmax"),
            optimiser=("sgd", "upgd"),
            init=("mean", "zero"),
            read_out=("linear", "herding"),
            align=("none", "norm", "bias", "gaussian", "translation"),
            average=("none", "ema", "swa", "lawa", "stock"),
        )
        within(
            "gradient_head", self,
            rate=(1e-6, 16.0), utility_decay=(0.0, 0.999999), sigma=(0.0, 1.0), replay=(0, 1000), replayed=(0, 1000),
            anchor=(0.0, 1.0), shrink=(0.5, 1.0), perturb=(0.0, 1.0), exemplars=(1, 1000), every=(1, 2**40),
            decay=(0.0, 0.999999), keep=(1, 100), blend=(0.0, 1.0), new_for=(0, 2**40), expansion=(0, 8192),
            seed=(0, 2**63), dim=(1, 65536), prior_weight=(1e-6, 1e6), max_labels=(1, 2**40), max_classes=(1, 2**20),
            **SHARED_BOUNDS,
        )  # fmt: skip
        if self.rate * self.anchor > 1:
            raise ConfigError(
                f"gradient_head: rate × anchor is {self.rate * self.anchor:g}: above 1 the pull overshoots, "
                "and weights grow without end; lower one of them"
            )
        if self.read_out == "herding" and not self.replay:
            raise ConfigError("gradient_head: read_out is 'herding' with replay = 0: there are no rows to herd")
        if self.align == "translation" and not self.replay:
            raise ConfigError("gradient_head: align is 'translation' with replay = 0: there are no rows to translate")

        if self.blend_with and (self.average != "none" or self.read_out != "linear"):
            raise ConfigError(
                f"gradient_head: blend_with with average = {self.average!r} and read_out = {self.read_out!r}: weights "
                "are averaged with another head's, or with their own, and are read by 'linear'"
            )

    @property
    def base(self) -> dict[str, Any]:
        """What weights must share to be averaged."""
        layer = {"seed": self.seed} if self.expansion else {}
        return {"dim": self.dim, "expansion": self.expansion, "init": self.init, **layer}

    @property
    def width(self) -> int:
        """Of a row of weights, with the bias."""
        return (self.expansion or self.dim) + 1

    @property
    def averages(self) -> Averages | None:
        """The average that is kept."""
        if self.average == "none":
            return None
        return Averages(kind=self.average, every=self.every, decay=self.decay, keep=self.keep)


def _totals(config: GradientHeadConfig) -> bool:
    """Whether the sum of each class's rows is kept, with their weight behind it: for its mean."""
    return config.align == "translation"


class GradientHead(LabelStatistics):
    """Weights that learn label by label."""

    name = "gradient_head"
    version = 1
    measures = False
    """Its labels are not kept as rows that could be left out: ``head_quality`` measures it."""
    Config: ClassVar[type] = GradientHeadConfig

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        c: GradientHeadConfig = self.config
        shape = (c.max_classes, c.width)
        self._averages = c.averages
        self.averages_with = (c.blend_with,) if c.blend_with else ()
        self.reads = (*self.reads, *self.averages_with)
        self.stores = (
            Table("heads", key=str, value=HeadRow, max_rows=_MOST_HEADS, on_full="refuse"),
            Table("classes", key=str, value=ClassRow, max_rows=c.max_classes, on_full="refuse"),
            Table("labels", key=str, value=LabelRow, max_rows=c.max_labels, on_full="refuse"),
            Table("spaces", key=str, value=SpaceState, max_rows=c.max_classes, on_full="refuse"),
            Table("states", key=str, value=ClassState, max_rows=c.max_classes, on_full="refuse"),
            Table("places", key=str, value=str, max_rows=c.max_classes, on_full="refuse"),
            Table("free", key=int, value=int, max_rows=c.max_classes, on_full="refuse"),
            Table("phi", key=str, value=bytes, max_rows=c.max_classes * (c.replay + 1), on_full="refuse"),
            THINGS_STORE,
            waiting_store(c.max_waiting),
            Array("weights", shape=shape),
            *((Array("utility", shape=shape),) if c.optimiser == "upgd" else ()),
            *((Array("anchors", shape=shape),) if c.anchor else ()),
            *((Array("totals", shape=(c.max_classes, c.width + 1), dtype="float64"),) if _totals(c) else ()),
            *(self._averages.stores(*shape) if self._averages else ()),
        )

    def check_reads(self, read: Mapping[str, Policy]) -> None:
        """Weights are averaged with those of a gradient head of the same base."""
        super().check_reads(read)
        for name, other in ((name, read[name]) for name in self.averages_with if name in read):
            if not isinstance(other, GradientHead) or other.config.blend_with:
                what = "blended itself" if isinstance(other, GradientHead) else f"a {other.name}"
                raise ConfigError(
                    f"gradient_head: blend_with names {name!r}, which is {what}: name a gradient_head that is not"
                )
            mine, theirs = self.config.base, other.config.base
            keys = sorted(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key))
            if keys:
                told = ", ".join(f"{key} {theirs.get(key)} beside {mine.get(key)}" for key in keys)
                raise WrongBase(f"gradient_head: blend_with names {name!r}, which is of another base: {told}")

    @cached_property
    def _learner(self) -> Learner:
        c: GradientHeadConfig = self.config
        optimiser: Optimiser = Upgd(c.rate, c.utility_decay, c.sigma) if c.optimiser == "upgd" else Sgd(c.rate)
        hooks: list[Hook] = []
        if c.anchor:
            hooks.append(Anchor(c.rate, c.anchor))
        if c.shrink < 1 or c.perturb:
            hooks.append(ShrinkPerturb(c.shrink, c.perturb))
        return Learner(optimiser, tuple(hooks))

    # -- fold ---------------------------------------------------------------------------------------------------------
    def _take(self, head: str, target: str, new: Observed | None, space: str, phi: bytes, stores: Stores) -> None:
        key = f"{head}\0{target}"
        old: LabelRow | None = stores["labels"].get(key)
        if new is not None:
            self._check(space, phi)
        super()._take(head, target, new, space, phi, stores)
        if old is not None and old.weight:
            self._release(head, old.space, old.label, key, stores, labelled=True)
        if new is not None and new.weight:
            chance = hashed(self.config.seed, new.source, new.event_id)
            self._learn(head, space, new.label, key, phi, new.weight, chance, stores)

    def _check(self, space: str, phi: bytes) -> None:
        size = len(phi) // (4 if space == TEXT else 8)
        if not self.config.expansion and size > self.config.dim:
            raise EventError(
                f"the vector has {size} values: the head takes {self.config.dim} (its setting 'dim')",
                code="wrong-dimension",
            )

    def _keep(self, key: str, phi: bytes | None, stores: Stores) -> None:
        """Vectors are kept of replayed rows alone."""

    def _label_size(self, key: str, label: str, space: str, phi: bytes) -> int:
        return label_size(key, label, space, 0)

    def _growth(self, head: str, old: LabelRow | None, new: LabelRow | None, phi: int, stores: Stores) -> int:
        """With what classes that come set aside, and what those that go give back."""
        grown = super()._growth(head, old, new, phi, stores)
        ended = ""
        if old is not None and old.weight:
            key = f"{head}\0{old.space}\0{old.label}"
            state: ClassState = stores["states"].get(key)
            if state.rows == 1 and not state.prior:
                ended = key
                grown -= state.size
        if new is not None and new.weight:
            key = f"{head}\0{new.space}\0{new.label}"
            if key == ended or stores["states"].get(key) is None:
                grown += self._set_aside(phi)
        return grown

    def _admit(self, head: str, old: LabelRow | None, new: LabelRow | None, stores: Stores) -> None:
        """And that a class of one space has a row of weights."""
        super()._admit(head, old, new, stores)
        if new is None or not new.weight or stores["states"].get(f"{head}\0{new.space}\0{new.label}") is not None:
            return
        state: ClassState | None = None
        if old is not None and old.weight:
            state = stores["states"].get(f"{head}\0{old.space}\0{old.label}")
        ends = state is not None and state.rows == 1 and not state.prior
        self._admit_classes("states", 1 - ends, stores)

    def _prior_growth(self, key: str, old: bytes, new: bytes, stores: Stores) -> int:
        if old == new:
            return 0
        head, _, label = key.partition("\0")
        state: ClassState | None = stores["states"].get(f"{head}\0{TEXT}\0{label}")
        ends = state is not None and bool(old) and not state.rows
        begins = bool(new) and (state is None or ends)
        return begins * self._set_aside(len(new)) - (state.size if state is not None and ends else 0)

    def _set_aside(self, phi: int) -> int:
        """Bytes of a class: a row of each array, and vectors of ``phi`` bytes to replay, with that of its name."""
        rows = [declared for declared in self.stores if isinstance(declared, Array)]
        arrays = sum(np.dtype(one.dtype).itemsize * math.prod(one.shape[1:]) for one in rows)
        size: int = arrays + (self.config.replay + 1) * phi
        return size

    def _class(self, event: Event, prepared: Any, stores: Stores) -> None:
        head, label = event.data.head, event.data.class_
        if prepared is not None:
            self._check(TEXT, np.asarray(prepared).tobytes())
        old: ClassRow | None = stores["classes"].get(f"{head}\0{label}")
        if prepared is not None:
            begins = f"{head}\0{TEXT}\0{label}" not in stores["states"]
            self._admit_classes("states", begins, stores)
        super()._class(event, prepared, stores)
        new: ClassRow = stores["classes"].get(f"{head}\0{label}")
        before = old.prior if old is not None else b""
        if new.prior == before:
            return
        key = f"{head}\0\0{label}"
        if before:
            self._release(head, TEXT, label, key, stores, labelled=False)
        if new.prior:
            weight, chance = self.config.prior_weight, hashed(self.config.seed, event.source, event.id)
            self._learn(head, TEXT, label, key, new.prior, weight, chance, stores, prior=True)

    def _learn(
        self, head: str, space: str, label: str, key: str, phi: bytes, weight: float, chance: int, stores: Stores,
        *, prior: bool = False,
    ) -> None:  # fmt: skip
        """Take a step by a label, then let its row into the replay."""
        prefix = f"{head}\0{space}"
        rng = np.random.default_rng(chance)
        was: SpaceState = stores["spaces"].get(prefix) or SpaceState()
        replayed = self._draw(prefix, was, rng, stores)
        x = self._lifted(space, [phi, *(stores["phi"].get(key) for _, key in replayed)])
        state: ClassState | None = stores["states"].get(f"{prefix}\0{label}")
        if state is None:
            size = self._set_aside(len(phi))
            state = self._begin(prefix, label, was, size, x, [one.slot for one, _ in replayed], stores)
            was = msgspec.structs.replace(was, classes=was.classes + 1)
        stores["spaces"].put(prefix, msgspec.structs.replace(was, steps=was.steps + 1))
        slots = [state.slot, *(one.slot for one, _ in replayed)]
        self._step(prefix, was, x, slots, min(weight, _MOST_COUNTS), rng, stores)
        if _totals(self.config):
            total = stores["totals"].get([state.slot])
            stores["totals"].put([state.slot], total + min(weight, _MOST_COUNTS) * np.append(x[0], 1.0))
        kept, out = admitted(state.replay, (PRIOR if prior else chance, key), self.config.replay + state.prior + prior)
        if out is None or out[1] != key:
            stores["phi"].put(key, phi)
        if out is not None and out[1] != key:
            stores["phi"].delete(out[1])
        rows = state.rows + (not prior)
        state = msgspec.structs.replace(state, rows=rows, prior=state.prior or prior, replay=kept)
        stores["states"].put(f"{prefix}\0{label}", state)

    def _draw(
        self, prefix: str, was: SpaceState, rng: np.random.Generator, stores: Stores
    ) -> list[tuple[ClassState, str]]:
        """Draw rows to replay, each of a class drawn evenly."""
        if not was.classes or not self.config.replay or not self.config.replayed:
            return []
        places = rng.integers(0, was.classes, self.config.replayed).tolist()
        labels = stores["places"].get_many([f"{prefix}\0{place}" for place in places])
        states = stores["states"].get_many([f"{prefix}\0{label}" for label in labels])
        return [(states[i], key) for i, key in drawn(states, rng)]

    def _lifted(self, space: str, phis: Sequence[bytes]) -> Rows:
        phi = unpacked(b"".join(phis), space).reshape(len(phis), -1)
        return Lift(self.config)(phi).astype(np.float32)

    def _begin(
        self, prefix: str, label: str, was: SpaceState, size: int, x: Rows, others: Sequence[int], stores: Stores
    ) -> ClassState:
        """Give a class a row of weights."""
        free = len(stores["free"])
        slot = stores["free"].get(free - 1) if free else len(stores["states"])
        if free:
            stores["free"].delete(free - 1)
        state = ClassState(slot=slot, place=was.classes, birth=was.steps, size=size)
        stores["states"].put(f"{prefix}\0{label}", state)
        stores["places"].put(f"{prefix}\0{state.place}", label)
        row = np.zeros(self.config.width, np.float32)
        if self.config.init == "mean" and others:
            norm = float(np.linalg.norm(stores["weights"].get(sorted(set(others))), axis=1).mean())
            row = _gradient.first_row(x[0], x[1:], norm)
        for name in ("weights", "anchors", "utility"):
            if any(declared.name == name for declared in self.stores):
                stores[name].put([slot], np.zeros_like(row) if name == "utility" else row)
        if self._averages:
            self._averages.begin(slot, was.steps, stores)
        return state

    def _step(
        self, prefix: str, was: SpaceState, x: Rows, slots: Sequence[int], weight: float, rng: np.random.Generator,
        stores: Stores,
    ) -> None:  # fmt: skip
        """One update: the new row counts for ``weight``, the replayed ones for 1 together."""
        taking = {*slots}
        if self.config.loss == "softmax":
            labels = stores["places"].get_many([f"{prefix}\0{place}" for place in range(was.classes)])
            taking |= {one.slot for one in stores["states"].get_many([f"{prefix}\0{label}" for label in labels])}
        rows = np.array(sorted(taking), np.int64)
        weights = np.full(len(x), 1.0 / max(len(x) - 1, 1), np.float32)
        weights[0] = weight
        batch = _gradient.Batch(x, np.searchsorted(rows, slots), weights)
        c: GradientHeadConfig = self.config
        state = State(stores["weights"].get(rows))
        if c.optimiser == "upgd":
            state.utility = stores["utility"].get(rows)
        if c.anchor:
            state.anchor = stores["anchors"].get(rows)
        if c.optimiser == "upgd" or c.perturb:
            state.noise = rng.standard_normal(state.weights.shape, np.float32)
        self._learner.step(state, batch)
        if self._averages:
            self._averages.follow(rows, was.steps, stores)
        stores["weights"].put(rows, state.weights)
        if state.utility is not None:
            stores["utility"].put(rows, state.utility)

    def _release(self, head: str, space: str, label: str, key: str, stores: Stores, *, labelled: bool) -> None:
        """Take a label's, or a name's, row out of the replay; a class without evidence goes."""
        prefix = f"{head}\0{space}"
        state: ClassState = stores["states"].get(f"{prefix}\0{label}")
        kept = tuple(one for one in state.replay if one[1] != key)
        if len(kept) < len(state.replay):
            stores["phi"].delete(key)
        state = msgspec.structs.replace(state, rows=state.rows - labelled, prior=state.prior and labelled, replay=kept)
        if state.rows or state.prior:
            stores["states"].put(f"{prefix}\0{label}", state)
        else:
            self._end(prefix, label, state, stores)

    def _end(self, prefix: str, label: str, state: ClassState, stores: Stores) -> None:
        """Take a class's row of weights; the head's last class takes its place."""
        for name in ("weights", "anchors", "utility", "totals"):
            if any(declared.name == name for declared in self.stores):
                values = stores[name].values
                stores[name].put([state.slot], np.zeros((1, values.shape[1]), values.dtype))
        if self._averages:
            self._averages.begin(state.slot, 0, stores)
        stores["states"].delete(f"{prefix}\0{label}")
        stores["free"].put(len(stores["free"]), state.slot)
        space: SpaceState = stores["spaces"].get(prefix)
        last = space.classes - 1
        moved = stores["places"].get(f"{prefix}\0{last}")
        if moved != label:
            stores["places"].put(f"{prefix}\0{state.place}", moved)
            other: ClassState = stores["states"].get(f"{prefix}\0{moved}")
            stores["states"].put(f"{prefix}\0{moved}", msgspec.structs.replace(other, place=state.place))
        stores["places"].delete(f"{prefix}\0{last}")
        if last:
            stores["spaces"].put(prefix, msgspec.structs.replace(space, classes=last))
        else:
            stores["spaces"].delete(prefix)

    # -- forget, serve ------------------------------------------------------------------------------------------------
    def forget(self, subject: Subject, events: Batch, stores: Stores) -> None:
        """Forget exactly what was never labelled; what a label taught cannot be taken out of weights."""
        if any(event.type == "label.observed" or event.type.startswith("class.") for event, _ in events):
            raise NeedsRebuild(
                f"weights were moved by labels of {subject.kind} {subject.id!r}: they are learned afresh"
            )
        super().forget(subject, events, stores)

    def serve(self, view: View) -> GradientServer:
        """Classify from the view."""
        return GradientServer(self.config, view)
