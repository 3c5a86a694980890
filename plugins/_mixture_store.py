"""Keeps mixtures (``_igmm.py``) in parts, so that an input writes what it changed and not the whole of its mixture.

A mixture of 16 components in 32 dimensions has 140 kB, and an input mostly moves one or two components, of 8 kB each:
of the others their numbers alone change. These are a row; mean and covariance of each component, the spread, and each
of the first inputs are rows of their own, written where their bits differ. Which they are the mixture's row tells.
"""

from __future__ import annotations

from typing import Any

import msgspec

from streamfold.core import Stores, Table
from streamfold.plugins._igmm import Component, Mixture


class Numbers(msgspec.Struct, frozen=True, array_like=True):
    """Of a component: its mass, inputs since it began, how far off its first one was, whether it is novel."""

    mass: float
    age: int
    far: float
    novel: bool


class Stored(msgspec.Struct, frozen=True, array_like=True):
    """A mixture without its matrices. ``waiting``: how many of the first inputs are there; ``has_spread``: enough."""

    waiting: int
    has_spread: bool
    components: tuple[Numbers, ...]


def mixture_stores(max_mixtures: int, first: int, max_components: int) -> tuple[Table, Table]:
    """Declare where mixtures are kept; past the bound the one written longest ago goes, with its parts."""
    parts = max_mixtures * (1 + max(first, 2 * max_components))
    return (
        Table("mixtures", key=str, value=Stored, max_rows=max_mixtures),
        Table("parts", key=str, value=bytes, max_rows=parts, on_full="refuse"),
    )


def read_mixture(key: str, stores: Any) -> Mixture:
    """Read a mixture; an empty one where there is none."""
    row: Stored | None = stores["mixtures"].get(key)
    if row is None:
        return Mixture()
    parts: list[bytes] = stores["parts"].get_many(_names(key, row))
    waiting, rest = parts[: row.waiting], parts[row.waiting :]
    spread, shapes = (rest[0], rest[1:]) if row.has_spread else (b"", rest)
    components = [
        Component(mean, cov, one.mass, one.age, one.far, one.novel)
        for one, mean, cov in zip(row.components, shapes[::2], shapes[1::2], strict=True)
    ]
    return Mixture(waiting=waiting, spread=spread, components=components)


def write_mixture(key: str, mixture: Mixture, stores: Stores, *, most: int) -> None:
    """Write what of a mixture has changed; ``most``: mixtures that are kept."""
    mixtures, parts = stores["mixtures"], stores["parts"]
    old: Stored | None = mixtures.get(key)
    if old is None and len(mixtures) >= most:
        oldest, row = mixtures.first()
        mixtures.delete(oldest)
        for name in _names(oldest, row):
            parts.delete(name)
    new = Stored(
        len(mixture.waiting),
        bool(mixture.spread),
        tuple(Numbers(one.mass, one.age, one.far, one.novel) for one in mixture.components),
    )
    values = [*mixture.waiting, *([mixture.spread] if mixture.spread else [])]
    values += [value for one in mixture.components for value in (one.mean, one.cov)]
    names = _names(key, new)
    for name, value in zip(names, values, strict=True):
        if parts.get(name) != value:
            parts.put(name, value)
    for name in () if old is None else sorted(set(_names(key, old)) - set(names)):
        parts.delete(name)
    mixtures.put(key, new)


def _names(key: str, row: Stored) -> list[str]:
    """The parts of a mixture, in the order in which they are read and written."""
    found = [f"{key}\0w{n}" for n in range(row.waiting)]
    found += [f"{key}\0s"] if row.has_spread else []
    return found + [f"{key}\0{part}{n}" for n in range(len(row.components)) for part in ("m", "c")]
