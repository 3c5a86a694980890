"""Event streams made from the declared event types: plausible ones, endless new ids, and odd ones at the edges.

The data are made from the type's Struct, so a plugin's own event types are covered too; what a type's ``check``
refuses is drawn again. The same seed gives the same stream. Ids of one kind come from a small pool, so that subjects
meet again; each id is long enough that its bytes can be searched for in a store.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from random import Random
from typing import Any

import msgspec.inspect as mi

from streamfold.core.clock import ManualClock
from streamfold.core.errors import InvalidEvent
from streamfold.core.events import ACTIONS, Acceptor, EventTypes

Given = tuple[str, dict[str, Any]]
"""An event before it is accepted: its type and its data, as :meth:`World.send` takes them."""

_WORDS = [
    "kettle",
    "lamp",
    "garden",
    "river",
    "paris",
    "copper",
    "violin",
    "winter",
    "engine",
    "harbour",
    "pepper",
    "marble",
    "falcon",
    "orchid",
    "saddle",
    "tunnel",
    "meadow",
    "cobalt",
    "lantern",
    "walnut",
]
_NUMBERS = (1.0, 2.5, 4.0, 0.5, 8.0, 3.0)
_EDGES = (0.0, -0.0, -1.0, 1e-308, -1e308, 1e308, 2.0**53, 0.1)
_TRIES = 200
_POOL = 6


class Maker:
    """Makes data of event types.

    Parameters
    ----------
    types : the declared types.
    random : where choices come from; hypothesis' ``randoms()`` makes them shrink.
    pool : from how many ids of each kind it draws.
    fresh : each id is new, instead of one of the pool.
    odd : texts, numbers and maps at the edges of what the types allow.
    """

    def __init__(
        self, types: EventTypes, random: Random, *, pool: int = _POOL, fresh: bool = False, odd: bool = False
    ) -> None:
        self._types = types
        self._random = random
        self._pool = pool
        self._fresh = fresh
        self._odd = odd
        self._count = 0
        self._acceptor = Acceptor(types, ManualClock())

    def data(self, type_: str) -> dict[str, Any]:
        """Make data that the type accepts; raises ``AssertionError`` when nothing that it accepts was found."""
        struct = _struct_of(self._types.get(type_).data)
        refused: InvalidEvent | None = None
        drawn, odd = self._random, self._odd
        try:
            for attempt in range(_TRIES):
                if attempt == _TRIES // 2:  # what is drawn may be the same all the time: hypothesis shrinks to that
                    self._random, self._odd = Random(attempt), False
                data: dict[str, Any] = self._struct(struct)
                try:
                    self._acceptor.accept_data(type_, data, id="probe", source="kit")
                    return data
                except InvalidEvent as error:
                    refused = error
        finally:
            self._random, self._odd = drawn, odd
        raise AssertionError(
            f"no data of {type_!r} were found in {_TRIES} tries that its check accepts ({refused}): "
            "give events of your own (events=[(type, data), …])"
        )

    def _struct(self, struct: mi.StructType) -> dict[str, Any]:
        self._count += 1
        made = {}
        for field in struct.fields:
            if field.required or self._random.random() < 0.5:
                value = self._value(field.type, field.name)
                if value is not None or field.required:
                    made[field.encode_name] = value
        return made

    def _value(self, info: mi.Type, name: str) -> Any:
        pick = self._random.choice
        match info:
            case mi.Metadata():
                return self._value(info.type, name)
            case mi.UnionType():
                kinds = [one for one in info.types if not isinstance(one, mi.NoneType)]
                return self._value(pick(kinds), name) if kinds else None
            case mi.LiteralType():
                return pick(info.values)
            case mi.EnumType():
                return pick([one.value for one in info.cls])
            case mi.BoolType():
                return pick((True, True, False))
            case mi.IntType():
                return self._whole(info)
            case mi.FloatType():
                return self._number(info)
            case mi.StrType():
                return self._text(name)
            case mi.DateTimeType():
                return f"2023-11-{pick(range(10, 28)):02d}T08:00:00Z"
            case mi.DictType():
                return self._map(info)
            case mi.ListType() | mi.CollectionType() | mi.VarTupleType() | mi.SetType() | mi.FrozenSetType():
                return [self._value(info.item_type, name) for _ in range(pick((1, 2, 3)))]
            case mi.TupleType():
                return [self._value(one, name) for one in info.item_types]
            case mi.StructType():
                return self._struct(info)
            case mi.AnyType() | mi.RawType():
                return pick(_WORDS)
        return None

    def _whole(self, info: mi.IntType) -> int:
        least = info.ge if info.ge is not None else info.gt + 1 if info.gt is not None else 0
        most = info.le if info.le is not None else info.lt - 1 if info.lt is not None else least + 100
        if self._odd:
            return self._random.choice((least, most))
        least = max(least, 0) if most >= 0 else least
        return self._random.choice(range(least, min(most, least + 9) + 1))

    def _number(self, info: mi.FloatType) -> float:
        numbers = _EDGES if self._odd else _NUMBERS
        least, most = info.ge if info.ge is not None else info.gt, info.le if info.le is not None else info.lt
        fitting = [n for n in numbers if (least is None or n >= least) and (most is None or n <= most)]
        return self._random.choice(fitting or [least if least is not None else most if most is not None else 0.0])

    def _text(self, name: str) -> str:
        if name == "action":
            return self._random.choice(ACTIONS)
        if name.endswith("_id") or name in ("into", "class_"):
            return self._id(name.removesuffix("_id").rstrip("_"))
        if name == "head":
            return self._random.choice(("topic", "spam"))
        if self._odd:
            return self._random.choice(("", " ", "\u200b", "ß\u0301 \U0001f600", "x" * 5000, "a\nb\tc", "'; drop"))
        words = 12 if name == "text" else 2
        return " ".join(self._random.choice(_WORDS) for _ in range(words))

    def _id(self, kind: str) -> str:
        if self._odd and self._random.random() < 0.4:
            return self._random.choice((" ", "a/b?c#d", "\u00e9" * 128, "y" * 256, "..", "null"))
        return id_of(kind, self._count if self._fresh else self._random.choice(range(self._pool)))

    def _map(self, info: mi.DictType) -> dict[str, Any]:
        if self._odd and self._random.random() < 0.5:
            return self._random.choice(({}, {"": self._value(info.value_type, "")}))
        keys = self._random.sample(("genre", "year", "colour", "size"), 2)
        return {key: self._value(info.value_type, "") for key in keys}


@lru_cache(maxsize=256)
def _struct_of(kind: type[Any]) -> mi.StructType:
    struct = mi.type_info(kind)
    assert isinstance(struct, mi.StructType)
    return struct


def id_of(kind: str, number: int) -> str:
    """Return the stream's id number ``number`` of a kind: ``item-3-9f2c…``."""
    return f"{kind}-{number}-{blake2b(f'{kind}/{number}'.encode(), digest_size=5).hexdigest()}"


def stream(
    types: EventTypes,
    handles: Sequence[str],
    n: int,
    *,
    seed: int = 0,
    random: Random | None = None,
    pool: int = _POOL,
    fresh: bool = False,
    odd: bool = False,
) -> list[Given]:
    """Make ``n`` events of the types ``handles``; deletions and patches are rarer than what they concern.

    Parameters
    ----------
    pool : from how many ids of each kind they draw.
    fresh : endless new ids instead of the pool; no deletions.
    odd : values at the edges.
    """
    maker = Maker(types, random or Random(seed), pool=pool, fresh=fresh, odd=odd)
    return [(type_, maker.data(type_)) for type_ in _kinds(types, handles, n, random or Random(seed + 1), fresh)]


def _kinds(types: EventTypes, handles: Sequence[str], n: int, random: Random, fresh: bool) -> Iterator[str]:
    declared = [types.get(name) for name in sorted(handles)]
    rare = {one.name for one in declared if one.deletes or one.erases or one.name.endswith((".patched", ".retired"))}
    usual = [one.name for one in declared if one.name not in rare]
    weighted = usual if fresh and usual else [*usual * 4, *sorted(rare)]
    if not fresh:
        yield from usual[:n]  # each at least once, where there is room
        n -= min(n, len(usual))
    for _ in range(n):
        yield random.choice(weighted)
