"""A policy that looks on while heads learn: it sees each label's target as the head it reads will, just before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from streamfold.core import Event, EventError, Policy, Target, Tools
from streamfold.plugins._embedding import embedded_texts
from streamfold.plugins._sums import Floats
from streamfold.plugins._targets import TEXT, thing_of, unpacked, vector_of


class OfLabels(Policy):
    """Handles labels, and embeds texts as heads do; the rows are kept by their content."""

    handles: ClassVar[tuple[str, ...]] = ("label.observed",)
    backends: ClassVar[tuple[str, ...]] = ("encoder",)

    def prepare_batch(self, events: Sequence[Event], tools: Tools) -> list[Any]:
        """Embed all texts of a batch in one call."""
        texts = [(e.data.target.text or "") if e.data.label is not None else "" for e in events]
        return embedded_texts(texts, tools)


def vector_before(target: Target, prepared: Any, head: Any) -> tuple[str, Floats] | None:
    """Return a target's space and vector; None if the head refuses it. ``head``: the server that is read."""
    if target.features is not None:
        try:
            return vector_of(target.features)
        except EventError:
            return None
    if (thing := thing_of(target)) is not None:
        stored = head.thing(thing)
        return None if stored is None else (TEXT, unpacked(stored, TEXT))
    return None if prepared is None else (TEXT, np.asarray(prepared, np.float64))
