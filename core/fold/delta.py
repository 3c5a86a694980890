"""How far apart two copies of a policy's stores are: the largest difference between their numbers, and where it is.

Numbers of one *column* are compared with one another: an array, the vectors of a store, a field of a table's rows, the
weights of a graph. A difference is relative to the largest entry of its column, which is stricter than to that of the
whole state: a time in microseconds makes no weight's difference small. What is no number (text, packed bytes) is equal
or not, and is counted.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from streamfold.core.stores.abc import Store

_EXAMPLES = 5
Entries = tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """The difference of two states.

    Parameters
    ----------
    max_abs : largest difference between two numbers; 0.0 when both are equal bit for bit.
    relative : the same, to the largest entry of the column; of all columns the largest.
    column, key : where ``max_abs`` is; None when it is 0.
    only_live, only_afresh : rows that one side alone has. examples : a few of their keys.
    unequal : values that are no numbers, and differ.
    """

    max_abs: float = 0.0
    relative: float = 0.0
    column: str | None = None
    key: str | None = None
    only_live: int = 0
    only_afresh: int = 0
    unequal: int = 0
    examples: tuple[str, ...] = ()


@dataclass(slots=True)
class _Column:
    """Of one column: the largest entry, the largest difference and its key."""

    largest: float = 0.0
    difference: float = 0.0
    key: Any = None


@dataclass(slots=True)
class _Measure:
    """What was found so far."""

    columns: dict[tuple[str, Entries], _Column] = field(default_factory=dict)
    alone: dict[str, list[str]] = field(default_factory=lambda: {"live": [], "afresh": []})
    unequal: int = 0

    def compare(self, column: str, key: Any, one: Any, other: Any, entries: Entries = ()) -> None:
        """Compare two values of whatever shape; ``entries``: keys of dicts, not told, as they may name somebody."""
        if _is_number(one) and _is_number(other):
            self._number((column, entries), key, one, other)
        elif isinstance(one, np.ndarray) and isinstance(other, np.ndarray) and _alike(one, other):
            self.arrays(column, key, one, other, entries)
        elif (names := _fields(one)) and type(one) is type(other):
            for name in names:
                self.compare(f"{column}.{name}", key, getattr(one, name), getattr(other, name), entries)
        elif isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
            for name, value in one.items():
                self.compare(f"{column}[]", key, value, other[name], (*entries, name))
        elif isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
            for place, (value, wanted) in enumerate(zip(one, other, strict=True)):
                self.compare(f"{column}[{place if isinstance(one, tuple) else ''}]", key, value, wanted, entries)
        else:  # arrays of two shapes cannot be held against each other
            self.unequal += isinstance(one, np.ndarray) or isinstance(other, np.ndarray) or bool(one != other)

    def _number(self, column: tuple[str, Entries], key: Any, one: float, other: float) -> None:
        if not (math.isfinite(one) and math.isfinite(other)):
            self.unequal += not (one == other or (one != one and other != other))
            return
        found = self.columns.setdefault(column, _Column())
        found.largest = max(found.largest, abs(one), abs(other))
        if (difference := float(abs(one - other))) > found.difference:
            found.difference, found.key = difference, key

    def arrays(self, column: str, key: Any, one: Any, other: Any, entries: Entries = ()) -> None:
        """Compare arrays of one shape ``(rows, …)``; the key of a row is its number where ``key`` is None."""
        if not one.size:
            return
        if one.dtype.kind not in "fiu":
            self.unequal += int((one != other).sum())
            return
        if one.dtype.kind == "f":
            finite = np.isfinite(one) & np.isfinite(other)
            self.unequal += int((~finite & ~((one == other) | (np.isnan(one) & np.isnan(other)))).sum())
            one, other = np.where(finite, one, 0.0).astype(np.float64), np.where(finite, other, 0.0).astype(np.float64)
            away = np.abs(one - other)
        else:  # whole numbers of 64 bits differ by less than a float can tell
            away = np.maximum(one, other).astype(np.uint64) - np.minimum(one, other).astype(np.uint64)
        found = self.columns.setdefault((column, entries), _Column())
        found.largest = max(found.largest, *(abs(float(edge)) for a in (one, other) for edge in (a.min(), a.max())))
        at = np.unravel_index(int(away.argmax()), away.shape)
        if (difference := float(away[at])) > found.difference:
            found.difference, found.key = difference, int(at[0]) if key is None and at else key

    def rows(self, store: str, live: Mapping[Any, Any], afresh: Mapping[Any, Any]) -> None:
        """Compare rows by key; those of one side alone are counted."""
        for side, mine, others in (("live", live, afresh), ("afresh", afresh, live)):
            self.alone[side] += [f"{store}/{key}" for key in mine if key not in others]
        for key, value in live.items():
            if key in afresh:
                self.compare(store, key, value, afresh[key])

    def delta(self) -> Delta:
        farthest = max(self.columns.items(), key=lambda one: one[1].difference, default=(("", ()), _Column()))
        (name, _), column = farthest
        live, afresh = self.alone["live"], self.alone["afresh"]
        return Delta(
            max_abs=column.difference,
            relative=max((c.difference / c.largest for c in self.columns.values() if c.largest), default=0.0),
            column=name if column.difference else None,
            key=str(column.key) if column.difference else None,
            only_live=len(live),
            only_afresh=len(afresh),
            unequal=self.unequal,
            examples=tuple(_readable([*live[:_EXAMPLES], *afresh[:_EXAMPLES]])),
        )


def measured(live: Mapping[str, Store], afresh: Mapping[str, Store]) -> Delta:
    """Measure how far a policy's live stores are from those folded afresh; only stores that differ are looked at."""
    measure = _Measure()
    for name, store in live.items():
        other = afresh[name]
        if store.fingerprint() == other.fingerprint():
            continue
        one, two = store.contents(), other.contents()
        if isinstance(one, Mapping) and isinstance(two, Mapping):
            measure.rows(name, one, two)
        else:
            measure.arrays(name, None, one, two)
    return measure.delta()


def _alike(one: Any, other: Any) -> bool:
    return bool(one.shape == other.shape and one.dtype == other.dtype)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _fields(value: Any) -> Sequence[str]:
    if isinstance(value, msgspec.Struct):
        return value.__struct_fields__
    if dataclasses.is_dataclass(value):
        return [one.name for one in dataclasses.fields(value)]
    return ()


def _readable(keys: Sequence[str]) -> Iterator[str]:
    return (key.replace("\0", "␀")[:200] for key in keys)
