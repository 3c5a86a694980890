"""Policy ``label_statistics``: classify by sums over labelled vectors, exact under every change of the labels.

A label is a row: its class, its weight, its vector φ, under its head and its target. So a later label of the same
target replaces the earlier, ``label: null`` takes it away, and to forget somebody is to delete rows: the stores are to
the bit as if the labels had never come. What the heads know is a function of the rows: the sums of ``_sums.py``, which
the serving side keeps and moves by the rows that changed, and the read-out of ``_readouts.py`` that the settings name
(``ridge``, ``lda`` or ``prototype``), over φ or a fixed random ReLU layer of it.

The sums are not stored: a Gram matrix of d = 384 has 1.2 MB, which every commit that holds a label would write; the
row has 1.6 kB, and has to be kept anyway to be taken back. A label costs the same however many there are.

With ``half_life_s`` labels count for less the older they are beside the head's newest one (the forgetting ridge of
Lite-RVFL, Hu et al. 2025, arXiv:2506.08063): by event time, so that order of arrival does not matter and a label taken
back leaves nothing.

A label of a document, item or user that is not there yet waits for it (``_waiting.py``), ``wait_s`` at most.

A class is there while it has labels. ``class.upserted`` with a name gives it a prior: as much as ``prior_weight``
labels of the name's embedding. ``class.merged`` reads one class's labels as another's, ``class.retired`` leaves them
out; ``class.upserted`` takes both back. None of them rewrites labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import msgspec

from streamfold.core import (
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
)
from streamfold.plugins._arms_of_heads import check_arms, reads_of, weight_of
from streamfold.plugins._budget import MAX_BYTES, admit, afford, class_size, label_size
from streamfold.plugins._head_quality import RowsServer
from streamfold.plugins._heads import HeadsServer
from streamfold.plugins._labels import ClassRow, HeadRow, LabelRow, label_name, mixed
from streamfold.plugins._of_targets import THINGS, THINGS_STORE, OfTargets, key_of
from streamfold.plugins._settings import one_of, within
from streamfold.plugins._targets import KINDS, TEXT, packed, thing_of
from streamfold.plugins._waiting import Observed, arrived, give_up, wait, waiting_store, withdraw

_MOST_WEIGHT = 1e6
_MOST_HEADS = 10_000
SHARED_BOUNDS: dict[str, tuple[float, float]] = {
    "wait_s": (0.0, 1e9), "max_waiting": (1, 2**40), "max_bytes": (1, 2**50),
}  # fmt: skip
"""Of settings that all heads over these rows have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelStatisticsConfig:
    """How heads are read out, and bounds; past a bound events wait and the policy says so.

    Parameters
    ----------
    read_out : ``ridge``, ``lda`` or ``prototype``.
    gamma : ridge's γ. shrinkage : of the LDA's covariance.
    expansion : units of a fixed random ReLU layer over φ; 0: none. seed : of that layer.
    top_up : whether classes with few labels weigh as much as the one with most: on a copy of the sums, when they are
        read out; not for ``prototype``, which weighs classes evenly.
    targets : of ridge: ``one_hot``, or ``names``: classes of similar names get similar targets.
    prior_weight : κ, how many labels the name of a class counts for.
    half_life_s : in which a label's weight halves, by the times of the labels; 0: never.
    max_labels, max_classes : of all heads together.
    max_bytes : of each head, as ``_budget.py`` counts; what would exceed it is a dead letter (``byte-budget``).
    wait_s : how long a label waits for a target of which nothing is known yet; 0: it does not. max_waiting : targets
        that are waited for.
    arms : the name of a ``head_arms`` policy in the settings, by which labels are weighed in a live A/B; empty: they
        count in full.
    """

    read_out: Literal["ridge", "lda", "prototype"] = "ridge"
    gamma: float = 1.0
    shrinkage: float = 0.1
    expansion: int = 0
    seed: int = 0
    top_up: bool = False
    targets: Literal["one_hot", "names"] = "one_hot"
    prior_weight: float = 1.0
    half_life_s: float = 0.0
    max_labels: int = 1_000_000
    max_classes: int = 10_000
    max_bytes: int = MAX_BYTES
    wait_s: float = 86_400.0
    max_waiting: int = 10_000
    arms: str = ""

    def __post_init__(self) -> None:
        one_of("label_statistics", self, read_out=("ridge", "lda", "prototype"), targets=("one_hot", "names"))
        within(
            "label_statistics", self,
            gamma=(1e-9, 1e12), shrinkage=(1e-6, 1.0), expansion=(0, 8192), seed=(0, 2**63),
            prior_weight=(1e-6, _MOST_WEIGHT), half_life_s=(0.0, 1e12), max_labels=(1, 2**40), max_classes=(1, 2**40),
            **SHARED_BOUNDS,
        )  # fmt: skip
        if self.top_up and self.read_out == "prototype":
            raise ConfigError("label_statistics: top_up with read_out = 'prototype': class means have no weights")
        if self.targets == "names" and self.read_out != "ridge":
            raise ConfigError(
                f"label_statistics: targets = 'names' with read_out = {self.read_out!r}: ridge has targets"
            )


class OneByOne(Exception):
    """A batch may come to something else than its events by themselves: core folds these."""


class LabelStatistics(OfTargets):
    """Labelled rows, from which heads are read out."""

    name = "label_statistics"
    version = 1
    measures = True
    handles: ClassVar[tuple[str, ...]] = (
        "label.observed",
        *("class.upserted", "class.merged", "class.retired"),
        *THINGS,
    )
    Config: ClassVar[type] = LabelStatisticsConfig

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        labels, classes = self.config.max_labels, self.config.max_classes
        self.reads = reads_of(self.config)
        self._wait_us = round(self.config.wait_s * 1e6)
        self.stores = (
            Table("heads", key=str, value=HeadRow, max_rows=_MOST_HEADS, on_full="refuse"),
            Table("classes", key=str, value=ClassRow, max_rows=classes, on_full="refuse"),
            Table("labels", key=str, value=LabelRow, max_rows=labels, on_full="refuse"),
            Table("phi", key=str, value=bytes, max_rows=labels, on_full="refuse", fold_reads=False),
            THINGS_STORE,
            waiting_store(self.config.max_waiting),
        )

    def check_reads(self, read: Mapping[str, Policy]) -> None:
        """Weights of labels come from a ``head_arms``."""
        check_arms(self.name, self.config, read)

    def text_in(self, event: Event) -> str:
        """Return what a label's target or a class's name says."""
        if event.type == "label.observed":
            return (event.data.target.text or "") if event.data.label is not None else ""
        return (event.data.name or "") if event.type == "class.upserted" else ""

    # -- fold ---------------------------------------------------------------------------------------------------------
    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        """Bring the rows to what the event says."""
        give_up(stores, self._wait_us)
        if event.type == "label.observed":
            self._label(event, prepared, stores)
        elif event.type.startswith("class."):
            self._class(event, prepared, stores)
        else:
            self.fold_thing(event, prepared, stores)
            if prepared is not None:
                self._arrived(key_of(event.subject), packed(prepared), stores)

    def fold_batch(self, batch: Batch, stores: Stores) -> None:
        """Fold a batch in one step of the stores; one by one where labels wait, whose order is that of such steps, or
        where one is of a thing that the batch tells of: what it says is read once the step is over."""
        waiting = stores["waiting"]
        told: set[str] = set()
        for event, prepared in batch:
            if len(waiting):
                raise OneByOne
            if event.type == "label.observed":
                if told and thing_of(event.data.target) in told:
                    raise OneByOne
            elif not event.type.startswith("class."):
                told.add(key_of(event.subject))
            self.fold(event, prepared, stores)
        if len(waiting):
            raise OneByOne

    def _label(self, event: Event, prepared: Any, stores: Stores) -> None:
        data, target = event.data, key_of(event.subject)
        if data.label is None:
            withdraw(target, data.head, stores)
            self._take(data.head, target, None, "", b"", stores)
            return
        weight = 1.0 if data.weight is None else data.weight
        if weight > _MOST_WEIGHT:
            raise EventError(f"weight is {weight:g}: at most {_MOST_WEIGHT:g}", code="wrong-weight")
        weight *= weight_of(data, self.config, stores)
        name = label_name(data.label)
        new = Observed(data.head, name, weight, event.seq, event.at_us, event.source, event.id)
        if (thing := self.unseen(data.target, stores)) is not None:
            wait(thing, new, stores, most=self.config.max_waiting if self.config.wait_s else 0)
        else:
            self._take(data.head, target, new, *self._phi(data.target, prepared, stores), stores)

    def _arrived(self, target: str, phi: bytes, stores: Stores) -> None:
        """Learn the labels that waited for a target, as of the time when they were given."""
        for label in arrived(target, stores):
            try:
                self._take(label.head, target, label, TEXT, phi, stores)
            except EventError as error:  # it is the label that cannot be used, not what its target says
                stores.refuse(label.refused(error))

    def _take(self, head: str, target: str, new: Observed | None, space: str, phi: bytes, stores: Stores) -> None:
        """Replace what a target is labelled. Raises ``EventError`` before anything is changed."""
        key, row = f"{head}\0{target}", None
        if new is not None:
            size = self._label_size(key, new.label, space, phi)
            row = LabelRow(new.label, new.weight, new.seq, space, new.at_us, size)
        self._replace(head, key, row, phi, stores)

    def _label_size(self, key: str, label: str, space: str, phi: bytes) -> int:
        """Bytes that a label takes as it is kept here."""
        return label_size(key, label, space, len(phi))

    def _replace(self, head: str, key: str, new: LabelRow | None, phi: bytes, stores: Stores) -> None:
        labels = stores["labels"]
        old: LabelRow | None = labels.get(key)
        self._admit(head, old, new, stores)
        grown = self._growth(head, old, new, len(phi), stores)
        afford(head, grown, self.config.max_bytes, stores)
        mark = 0
        if old is not None:
            mark ^= mixed(old.seq)
            if new is None or new.label != old.label:
                self._count(head, old.label, -1, stores)
        if new is not None:
            mark ^= mixed(new.seq)
            if old is None or new.label != old.label:
                self._count(head, new.label, 1, stores)
            labels.put(key, new)
        elif old is not None:
            labels.delete(key)
        self._keep(key, phi if new is not None else None, stores)
        self._mark(head, (new is not None) - (old is not None), mark, grown, stores)

    def _admit(self, head: str, old: LabelRow | None, new: LabelRow | None, stores: Stores) -> None:
        """Check the bounds in rows before anything is changed. Raises ``EventError``."""
        if new is None:
            return
        self._admit_head(head, stores)
        admit("labels", len(stores["labels"]), old is None, self.config.max_labels, "retract some, or raise max_labels")
        row: ClassRow | None = stores["classes"].get(f"{head}\0{old.label}") if old is not None else None
        ends = row is not None and row.labels == 1 and not row.seq
        begins = f"{head}\0{new.label}" not in stores["classes"]
        self._admit_classes("classes", begins - ends, stores)

    def _admit_head(self, head: str, stores: Stores) -> None:
        admit("heads", len(stores["heads"]), head not in stores["heads"], _MOST_HEADS, "retract all labels of one")

    def _admit_classes(self, table: str, more: int, stores: Stores) -> None:
        advice = "retract the labels of one that no class.upserted declared, or raise max_classes"
        admit("classes", len(stores[table]), more, self.config.max_classes, advice)

    def _growth(self, head: str, old: LabelRow | None, new: LabelRow | None, phi: int, stores: Stores) -> int:
        """Bytes by which a head grows when a label with a vector of ``phi`` bytes takes the place of another."""
        grown = (new.size if new is not None else 0) - (old.size if old is not None else 0)
        if old is not None and new is not None and old.label == new.label:
            return grown
        if old is not None:
            key = f"{head}\0{old.label}"
            row: ClassRow = stores["classes"].get(key)
            if row.labels == 1 and not row.seq:
                grown -= class_size(key, row)
        if new is not None and stores["classes"].get(key := f"{head}\0{new.label}") is None:
            grown += class_size(key, ClassRow())
        return grown

    def _keep(self, key: str, phi: bytes | None, stores: Stores) -> None:
        """Keep a label's vector; None: let go of it."""
        if phi is not None:
            stores["phi"].put(key, phi)
        else:
            stores["phi"].delete(key)

    def _count(self, head: str, label: str, change: int, stores: Stores) -> None:
        """One label of a class more or less; a class with neither labels nor a declaration goes."""
        key = f"{head}\0{label}"
        row: ClassRow = stores["classes"].get(key) or ClassRow()
        row = msgspec.structs.replace(row, labels=row.labels + change)
        if row.labels or row.seq:
            stores["classes"].put(key, row)
        else:
            stores["classes"].delete(key)

    def _mark(self, head: str, change: int, mark: int, grown: int, stores: Stores) -> None:
        """Note in the head's row that something of it changed: by what is there now, not by what happened."""
        old: HeadRow = stores["heads"].get(head) or HeadRow()
        new = HeadRow(old.rows + change, old.mark ^ mark, old.bytes + grown)
        if new.rows:
            stores["heads"].put(head, new)
        else:
            stores["heads"].delete(head)

    def _class(self, event: Event, prepared: Any, stores: Stores) -> None:
        """Declare a class: named, merged or retired."""
        data = event.data
        key = f"{data.head}\0{data.class_}"
        found: ClassRow | None = stores["classes"].get(key)
        old = found or ClassRow()
        self._admit_head(data.head, stores)
        self._admit_classes("classes", found is None, stores)
        new = ClassRow(labels=old.labels, seq=event.seq, name=old.name, prior=old.prior, at_us=old.at_us)
        if event.type == "class.upserted":
            prior = packed(prepared) if prepared is not None else b""
            new = ClassRow(labels=old.labels, seq=event.seq, name=data.name, prior=prior, at_us=event.at_us)
        elif event.type == "class.merged":
            new = msgspec.structs.replace(new, into=data.into)
        else:
            new = msgspec.structs.replace(new, retired=True)
        grown = class_size(key, new) - class_size(key, found) + self._prior_growth(key, old.prior, new.prior, stores)
        afford(data.head, grown, self.config.max_bytes, stores)
        stores["classes"].put(key, new)
        mark = mixed(event.seq) ^ (mixed(old.seq) if old.seq else 0)
        self._mark(data.head, 0 if old.seq else 1, mark, grown, stores)

    def _prior_growth(self, key: str, old: bytes, new: bytes, stores: Stores) -> int:
        """Bytes by which a head grows beside the class's row when a class's name is another."""
        return 0

    def forget(self, subject: Subject, events: Batch, stores: Stores) -> None:
        """Delete the rows of a target, exactly; classes and exposures are no targets."""
        labelled = [event for event, _ in events if event.type == "label.observed"]
        if any(event.subject != subject for event in labelled) or subject.kind == "class":
            raise NeedsRebuild(f"labels of others rest on {subject.kind} {subject.id!r}: they are folded afresh")
        for head in sorted({event.data.head for event in labelled}):
            self._replace(head, f"{head}\0{key_of(subject)}", None, b"", stores)
        if subject.kind in KINDS:
            stores["things"].delete(key_of(subject))
            stores["waiting"].delete(key_of(subject))

    def serve(self, view: View) -> HeadsServer:
        """Classify from the view."""
        return RowsServer(self.config, view)
