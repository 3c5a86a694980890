"""Policy ``head_quality``: how good a head's answers are that learns step by step, live or in a shadow.

A ``gradient_head``, or a ``head_ensemble``, cannot take labels back to say what it would have answered before them; so
each label is asked for just before it is learned, and kept in a ring is what was expected of it (test-then-train). A
label whose class the head has not met had no chance. Heads that are functions of their rows (``label_statistics``,
``kalman_head``) measure themselves and need none of this.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
import numpy.typing as npt

from streamfold.core import Array, Batch, ConfigError, Event, NeedsRebuild, Policy, Stores, Subject, Table, View
from streamfold.plugins._head_quality import MeasuredLabels, Tested
from streamfold.plugins._labels import label_name
from streamfold.plugins._of_labels import OfLabels, vector_before
from streamfold.plugins._of_targets import key_of
from streamfold.plugins._settings import within
from streamfold.plugins.gradient_head import GradientHead
from streamfold.plugins.head_ensemble import HeadEnsemble

_MOST_CLASSES = 10_000
_COLUMNS = 7
_DIGITS = 6
_ONE = 10**_DIGITS


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadQualityConfig:
    """Whose answers.

    Parameters
    ----------
    head : the name of a ``gradient_head`` or a ``head_ensemble`` in the settings.
    ring : labels that are kept.
    share : of the labels that are asked for, drawn by a hash of their target: a head of 100 classes takes milliseconds.
    """

    head: str = "gradient_head"
    ring: int = 4096
    share: float = 1.0

    def __post_init__(self) -> None:
        within("head_quality", self, ring=(1, 1 << 24), share=(1e-6, 1.0))


class HeadQuality(OfLabels):
    """What was expected of labels."""

    name = "head_quality"
    version = 2
    measures = True
    Config = HeadQualityConfig

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self.reads = (self.config.head,)
        self.stores = (
            Array("tested", shape=(self.config.ring, _COLUMNS), dtype="int64"),
            Table("count", key=str, value=int, max_rows=1),
            Table("classes", key=int, value=str, max_rows=_MOST_CLASSES),
        )

    def check_reads(self, read: Mapping[str, Policy]) -> None:
        """The head's stores alone decide what it answers."""
        for name, head in read.items():
            if not isinstance(head, GradientHead | HeadEnsemble):
                raise ConfigError(
                    f"head_quality: its head {name!r} is a {head.name}: a gradient_head or a head_ensemble is measured "
                    "so; label_statistics and kalman_head measure themselves"
                )

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        """Ask the head, and keep what it expected."""
        data = event.data
        target = crc32(key_of(event.subject).encode("utf-8", "surrogatepass"))
        if data.label is None or data.weight == 0 or target >= self.config.share * (1 << 32):
            return
        server = stores.of(self.config.head).server
        found = vector_before(data.target, prepared, server)
        if found is None or (said := server.chances(data.head, found[0], found[1][None])) is None:
            return
        names, chances = said[0], said[1][0].round(_DIGITS)
        label = server.read_as(data.head, label_name(data.label))
        if label is None:
            return
        chance = float(chances[names.index(label)]) if label in names else 0.0
        right = label in names and names[int(chances.argmax())] == label
        named = f"{data.head}\0{label}"
        class_ = crc32(named.encode("utf-8", "surrogatepass"))
        if stores["classes"].get(class_) is None:
            stores["classes"].put(class_, named)
        count = stores["count"].get("count") or 0
        sure = round(float(chances.max()) * _ONE)
        row = (event.seq, event.at_us, target, class_, round(chance * _ONE), int(right), sure)
        stores["tested"].put([count % self.config.ring], np.array([row], np.int64))
        stores["count"].put("count", count + 1)

    def forget(self, subject: Subject, events: Batch, stores: Stores) -> None:
        """What a label taught is in what was expected of those after it."""
        raise NeedsRebuild(f"heads were measured by labels of {subject.kind} {subject.id!r}: it is done afresh")

    def serve(self, view: View) -> HeadQualityServer:
        """Tell the measurements."""
        return HeadQualityServer(view)


class HeadQualityServer:
    """A ``QualityReport``."""

    def __init__(self, view: View) -> None:
        self._view = view

    @property
    def slices(self) -> tuple[str, ...]:
        """All, and each head."""
        return ("all", *sorted({named.partition("\0")[0] for _, named in self._view["classes"].items()}))

    def measured(self) -> RingMeasured:
        """Take the ring."""
        count, values = self._view["count"].get("count") or 0, self._view["tested"].values
        order = np.arange(max(0, count - len(values)), count) % len(values)
        return RingMeasured(values[order], dict(self._view["classes"].items()))


class RingMeasured(MeasuredLabels):
    """Labels of a ring."""

    def __init__(self, rows: npt.NDArray[np.int64], classes: dict[int, str]) -> None:
        self._rows, self._classes = rows, classes

    def tested(self, head: str | None) -> Iterable[Tested]:
        """What was expected, of one head or of all."""
        for seq, at_us, target, class_, chance, right, sure in self._rows.tolist():
            named, _, label = self._classes.get(class_, "?\0?").partition("\0")
            if head in (None, named):
                yield Tested(seq, at_us, target, named, label, chance / _ONE, bool(right), sure / _ONE)
