"""The rows in which heads are remembered, and how labels are named. No collection of garbage goes through them."""

from __future__ import annotations

import msgspec

from streamfold.core import EventError, class_name

_MOST_BYTES = 256
_MASK = (1 << 64) - 1


class LabelRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A label: its class, its weight, the event that gave it, the space of its φ (see ``_targets.py``), its time.

    ``size``: the bytes that it takes (``_budget.py``).
    """

    label: str
    weight: float
    seq: int
    space: str
    at_us: int
    size: int = 0


class ClassRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A class of a head; ``seq``: the event that declared it, 0 when only labels name it."""

    labels: int = 0
    seq: int = 0
    name: str | None = None
    into: str | None = None
    retired: bool = False
    prior: bytes = b""
    at_us: int = 0


class HeadRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A head: how many labels and declared classes it has, a hash over which these are, whatever their order, and
    its bytes (``_budget.py``)."""

    rows: int = 0
    mark: int = 0
    bytes: int = 0


def mixed(seq: int) -> int:
    """Spread a position over 63 bits (splitmix64), so that the exclusive or of several tells which they are."""
    x = (seq + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ x >> 30) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ x >> 27) * 0x94D049BB133111EB) & _MASK
    return (x ^ x >> 31) >> 1


def label_name(label: str | float) -> str:
    """Name a label's class. Raises ``EventError``."""
    label = class_name(label)
    if (
        not label
        or "\0" in label
        or (4 * len(label) > _MOST_BYTES and len(label.encode("utf-8", "surrogatepass")) > _MOST_BYTES)
    ):
        raise EventError(f"label is {label[:40]!r}: 1 to {_MOST_BYTES} bytes without NUL", code="wrong-label")
    return label
