"""Which labelled rows a gradient head replays: per class those of the m smallest keyed hashes of event ids.

Experience replay (Chaudhry et al. 2019, arXiv:1902.10486) with a store that is a function of the *set* of labels, not
of their order: a hash is as good as a random number, and the m smallest of a class are the same whoever came first.
So two stores merge into that of the whole, each class has equally many rows, and a row can be deleted by its label.
What a deletion leaves free is filled by later labels; an erasure folds the log afresh, which fills it at once.

A fifth of the rows, again by hash, is never replayed: such rows calibrate the head and correct its bias.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from hashlib import blake2b

import msgspec
import numpy as np

Kept = tuple[tuple[int, str], ...]
"""Hash and key of a class's rows, in order."""
PRIOR = 0
"""The hash of a class's name as a row: below all others, so that it stays."""
_HELD_OUT = 5


class ClassState(msgspec.Struct, frozen=True, array_like=True):
    """A class of one head and space.

    ``slot``: its row of the weights; ``place``: its number among the head's; ``rows``: its labels; ``birth``: the
    head's step at which it appeared; ``prior``: whether its name is a row; ``size``: the bytes set aside for it.
    """

    slot: int
    place: int
    birth: int
    rows: int = 0
    prior: bool = False
    replay: Kept = ()
    size: int = 0


class SpaceState(msgspec.Struct, frozen=True, array_like=True):
    """A head in one space of vectors: how many classes it has, and how many steps were taken."""

    classes: int = 0
    steps: int = 0


def hashed(seed: int, source: str, id: str) -> int:
    """Hash an event's name under a key to 63 bits, never 0.

    >>> hashed(0, "/desk", "l-1") == hashed(0, "/desk", "l-1") != hashed(1, "/desk", "l-1")
    True
    """
    data = f"{source}\0{id}".encode("utf-8", "surrogatepass")
    digest = blake2b(data, digest_size=8, key=seed.to_bytes(8, "little")).digest()
    return (int.from_bytes(digest, "little") >> 1) or 1


def admitted(kept: Kept, one: tuple[int, str], most: int) -> tuple[Kept, tuple[int, str] | None]:
    """Add a row to a class's; return them and the row that is not among them (any more).

    >>> admitted(((3, "c"), (8, "h")), (5, "e"), 2)
    (((3, 'c'), (5, 'e')), (8, 'h'))
    """
    rows = list(kept)
    insort(rows, one)
    out = rows.pop() if len(rows) > most else None
    return tuple(rows), out


def held_out(hash: int) -> bool:
    """Whether a row calibrates instead of being replayed."""
    return hash % _HELD_OUT == 1


def drawn(states: Sequence[ClassState], rng: np.random.Generator) -> list[tuple[int, str]]:
    """Draw one row of each state given (a state may be given often): index of the state, and the row's key."""
    found = []
    shares = rng.random(len(states))
    for i, state in enumerate(states):
        keys = [key for hash, key in state.replay if not held_out(hash)]
        if keys:
            found.append((i, keys[int(shares[i] * len(keys))]))
    return found
