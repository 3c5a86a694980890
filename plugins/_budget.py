"""What a head weighs in bytes, so that it can be held to a budget: counted as labels come and go, in the head's row.

Counted is what rows hold (names as UTF-8, 8 bytes a number, vectors as they are packed), and of a ``gradient_head``
what a class sets aside: its rows of weights, and room for the rows that it replays. Indexes and what a language puts
around values are not. The count depends on what is there alone, not on how it came to be there, so whoever folds the
log afresh counts the same, and a head without rows weighs nothing.
"""

from __future__ import annotations

from typing import Any

from streamfold.core import EventError
from streamfold.plugins._labels import ClassRow, HeadRow

_NUMBER = 8
MAX_BYTES = 1 << 31
"""The default: what a million labelled texts take, with room to spare."""


def text_size(*texts: str | None) -> int:
    """Bytes of names."""
    return sum([_bytes(text) for text in texts if text])


def _bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def label_size(key: str, label: str, space: str, phi: int) -> int:
    """Bytes of a label's row, and of the vector of ``phi`` bytes that is kept of it under the same key; 0: none is.

    >>> label_size("mail\\0text:1", "spam", "text", 256)
    318
    """
    size = _bytes(key)
    return size + _bytes(label) + _bytes(space) + 4 * _NUMBER + (size + phi if phi else 0)


def class_size(key: str, row: ClassRow | None) -> int:
    """Bytes of a class's row; None: there is none."""
    return 0 if row is None else text_size(key, row.name, row.into) + len(row.prior) + 3 * _NUMBER


def afford(head: str, grown: int, max_bytes: int, stores: Any) -> None:
    """Check that a head may grow by so many bytes. Raises ``EventError``."""
    row: HeadRow | None = stores["heads"].get(head)
    held = row.bytes if row is not None else 0
    if grown > 0 and held + grown > max_bytes:
        raise EventError(
            f"head {head[:64]!r} holds {held:,} bytes and would take {grown:,} more: its budget is {max_bytes:,} "
            "(max_bytes); retract labels, or add a version with a larger budget, then retry this event",
            code="byte-budget",
            is_limit=True,
        )


def admit(what: str, held: int, more: int, most: int, advice: str) -> None:
    """Check that all heads together may have so many more of something. Raises ``EventError``."""
    if more > 0 and held + more > most:
        raise EventError(
            f"all heads together hold {held:,} {what}, and there is room for {most:,}: {advice}, then retry this event",
            code=f"too-many-{what}",
            is_limit=True,
        )
