"""Ids and tokens as hashed codes, as kernels take them, made for a whole batch of examples at once.

An id or a token is coded as the first eight bytes of BLAKE2b over its namespaced string, whatever the process and its
hash seed. A kernel takes codes, combines them where it crosses two, and takes the remainder by a store's rows: new ids
need no dictionary, and the shape of the store is the bound (Weinberger et al., Feature Hashing for Large Scale
Multitask Learning, 2009, arXiv:0902.2206). Two that meet in one row share it.

Compiled rankers learn an example in about a microsecond, and as much again was Python that turned strings into arrays
one by one. So what was met lately is kept as bytes, and a batch's codes are these bytes joined: two look-ups and a copy
for an example's ids, one for all tokens of a side.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from operator import is_
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from streamfold.core import Example, emptied_on_erasure

Codes = npt.NDArray[np.uint64]
Ends = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
K = TypeVar("K", str, tuple[str, ...])
_CODE = np.dtype("<u8")
_CACHED = 1 << 17
_RECENT = 256
"""Examples are scored and learned by several policies one after the other; so many are coded once."""
_MOST_USER_TOKENS, _MOST_ITEM_TOKENS = 8, 16
"""So many tokens of a side are learned from: crosses of the two cost their product."""


def _coded_bytes(kind: str, text: str) -> bytes:
    return blake2b(f"{kind}\x1f{text}".encode(), digest_size=8).digest()


@emptied_on_erasure
@lru_cache(_CACHED)
def code(kind: str, text: str) -> int:
    """Code a string of a namespace: ``user``, ``item``, ``user_token`` or ``item_token``.

    >>> code("user", "u:7") == code("user", "u:7"), code("user", "u:7") == code("item", "u:7")
    (True, False)
    """
    return int.from_bytes(_coded_bytes(kind, text), "little")


class _Kept(dict[K, bytes], Generic[K]):
    """Bytes of what was coded lately; a full one starts anew."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self._kind = kind
        emptied_on_erasure(self)

    def _made(self, key: K) -> bytes:
        raise NotImplementedError

    def __missing__(self, key: K) -> bytes:
        if len(self) >= _CACHED:
            self.clear()
        found = self[key] = self._made(key)
        return found


class _Ids(_Kept[str]):
    def _made(self, key: str) -> bytes:
        return _coded_bytes(self._kind, key)

    def of(self, texts: Sequence[str]) -> Codes:
        return _array(map(self.__getitem__, texts))


class _Tokens(_Kept[tuple[str, ...]]):
    def __init__(self, kind: str, most: int | None) -> None:
        super().__init__(kind)
        self._most = most

    def _made(self, key: tuple[str, ...]) -> bytes:
        return b"".join([_coded_bytes(self._kind, text) for text in key[: self._most]])

    def of(self, sets: Sequence[tuple[str, ...]]) -> tuple[Codes, Ends]:
        """The codes of some sets one after the other, and where each ends."""
        ends = np.zeros(len(sets) + 1, np.int64)
        if not any(sets):
            return np.empty(0, np.uint64), ends
        parts = list(map(self.__getitem__, sets))
        np.cumsum(np.fromiter(map(len, parts), np.int64, len(parts)) >> 3, out=ends[1:])
        return _array(parts), ends


def _array(parts: map[bytes] | list[bytes]) -> Codes:
    """Nobody writes to codes; an array that is marked so would be another type for numba to compile for."""
    return np.frombuffer(bytearray().join(parts), _CODE)


_USERS, _ITEMS = _Ids("user"), _Ids("item")
_USER_TOKENS, _ITEM_TOKENS = _Tokens("user_token", _MOST_USER_TOKENS), _Tokens("item_token", _MOST_ITEM_TOKENS)

_ALL_USER_TOKENS, _ALL_ITEM_TOKENS = _Tokens("user_token", None), _Tokens("item_token", None)


class Coded(NamedTuple):
    """Pairs of user and item as codes; tokens of pair ``j`` are ``user_tokens[user_ends[j] : user_ends[j + 1]]``."""

    users: Codes
    items: Codes
    user_tokens: Codes
    user_ends: Ends
    item_tokens: Codes
    item_ends: Ends


class Outcomes(NamedTuple):
    """Labels of examples, which of them take back their opposite, and how much they count."""

    labels: Floats
    swaps: Flags
    weights: Floats


def coded(
    users: Sequence[str],
    items: Sequence[str],
    user_tokens: Sequence[tuple[str, ...]],
    item_tokens: Sequence[tuple[str, ...]],
) -> Coded:
    """Code pairs of users and items."""
    return Coded(_USERS.of(users), _ITEMS.of(items), *_USER_TOKENS.of(user_tokens), *_ITEM_TOKENS.of(item_tokens))


def coded_request(
    user: str, items: tuple[str, ...], user_tokens: tuple[str, ...], item_tokens: list[tuple[str, ...]]
) -> Coded:
    """Code the pairs of a request: the next ranker of the group is asked for the same ones."""
    global _asked_last
    asked = user, items, user_tokens, item_tokens
    last, found = _asked_last
    if last != asked:
        n = len(items)
        found = coded([user] * n, items, [user_tokens] * n, item_tokens)
        _asked_last = asked, found
    return found


_Asked = tuple[str, tuple[str, ...], tuple[str, ...], list[tuple[str, ...]]]
_asked_last: tuple[_Asked, Coded] = ("", (), (), []), coded((), (), (), ())


def coded_examples(examples: Sequence[Example]) -> Coded:
    """Code the pairs of examples."""
    return taken(examples)[0]


def outcomes(examples: Sequence[Example]) -> Outcomes:
    """Return what came of examples."""
    return taken(examples)[1]


def coded_whole(examples: Sequence[Example]) -> Coded:
    """As :func:`coded_examples`, with every token there is."""
    pairs = coded_examples(examples)
    of_users, of_items = [one.user_tokens for one in examples], [one.item_tokens for one in examples]
    if max(map(len, of_users), default=0) > _MOST_USER_TOKENS:
        codes, ends = _ALL_USER_TOKENS.of(of_users)
        pairs = pairs._replace(user_tokens=codes, user_ends=ends)
    if max(map(len, of_items), default=0) > _MOST_ITEM_TOKENS:
        codes, ends = _ALL_ITEM_TOKENS.of(of_items)
        pairs = pairs._replace(item_tokens=codes, item_ends=ends)
    return pairs


def coded_of_user(
    user: str, items: Sequence[str], user_tokens: tuple[str, ...], item_tokens: Sequence[tuple[str, ...]]
) -> tuple[np.uint64, Codes, Codes, Ends, int]:
    """Code pairs of one user, with every token there is: a pair's are its item's, then the user's.

    Returns the user, items, tokens of pairs one after the other, where each pair's end, and how many are the user's.
    """
    own = _ALL_USER_TOKENS[user_tokens] if user_tokens else b""
    parts = [_ALL_ITEM_TOKENS[one] + own for one in item_tokens]
    ends = np.zeros(len(parts) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, parts), np.int64, len(parts)) >> 3, out=ends[1:])
    return _USERS.of((user,))[0], _ITEMS.of(items), _array(parts), ends, len(own) >> 3


def coded_pair(example: Example) -> tuple[Codes, Codes, Codes, int]:
    """Code one example's pair as :func:`coded_of_user` does: user ``(1,)``, item ``(1,)``, tokens, the user's among
    them. What an example alone is made of is kept as arrays."""
    of_user, of_item = example.user_tokens, example.item_tokens
    tokens = _tokens_alone("item_token", of_item, max(_MOST_ITEM_TOKENS, len(of_item)))[0]
    if of_user:
        own = _tokens_alone("user_token", of_user, max(_MOST_USER_TOKENS, len(of_user)))[0]
        tokens = np.concatenate((tokens, own))
    return _id_alone("user", example.user), _id_alone("item", example.item), tokens, len(of_user)


def taken(examples: Sequence[Example]) -> tuple[Coded, Outcomes]:
    """Take examples apart: :func:`coded_examples` and :func:`outcomes`."""
    global _last
    if len(examples) == 1:
        return _taken_alone(examples[0])
    last, found = _last
    if len(last) == len(examples) and all(map(is_, last, examples)):
        return found
    found = _taken_all(examples)
    _last = tuple(examples), found
    return found


def _taken_all(examples: Sequence[Example]) -> tuple[Coded, Outcomes]:
    pairs = coded(
        [one.user for one in examples],
        [one.item for one in examples],
        [one.user_tokens for one in examples],
        [one.item_tokens for one in examples],
    )
    said = (
        np.array([one.label for one in examples], float),
        np.array([one.swaps for one in examples], bool),
        np.array([one.weight for one in examples], float),
    )
    return pairs, Outcomes(*said)


_last: tuple[tuple[Example, ...], tuple[Coded, Outcomes]] = (), _taken_all(())
"""The last examples that were taken apart together: the next ranker of the group learns the same ones."""


@emptied_on_erasure
def _forget_last() -> None:
    global _asked_last, _last
    _asked_last, _last = (("", (), (), []), coded((), (), (), ())), ((), _taken_all(()))


# An example alone is what a group that folds event by event codes each time: what it is made of is kept as arrays.
@emptied_on_erasure
@lru_cache(_CACHED)
def _id_alone(kind: str, text: str) -> Codes:
    return np.array([code(kind, text)], np.uint64)


@emptied_on_erasure
@lru_cache(_CACHED)
def _tokens_alone(kind: str, tokens: tuple[str, ...], most: int) -> tuple[Codes, Ends]:
    codes = np.array([code(kind, token) for token in tokens[:most]], np.uint64)
    return codes, np.array([0, len(codes)])


@lru_cache
def _outcome_alone(label: float, swaps: bool, weight: float) -> Outcomes:
    return Outcomes(np.array([label]), np.array([swaps]), np.array([weight]))


@emptied_on_erasure
@lru_cache(_RECENT)
def _taken_alone(example: Example) -> tuple[Coded, Outcomes]:
    pairs = Coded(
        _id_alone("user", example.user),
        _id_alone("item", example.item),
        *_tokens_alone("user_token", example.user_tokens, _MOST_USER_TOKENS),
        *_tokens_alone("item_token", example.item_tokens, _MOST_ITEM_TOKENS),
    )
    return pairs, _outcome_alone(example.label, example.swaps, example.weight)
