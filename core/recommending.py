"""The contract of policies that recommend: who knows the items, who proposes some, who scores them.

``POST /v1/recommend`` asks the :class:`Catalogue` about the user, every ``CandidateSource`` for items, and one
:class:`Ranker` for their scores. A policy that corrects another's scores (an error memory, an ensemble) reads it and
is a ``Ranker`` itself: the one that no other policy of its group reads answers.

While folding, a ranker learns from the :class:`Example` s that the catalogue's policy makes of an event: what was
shown and what came of it, joined (delayed feedback), or an interaction that followed no exposure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from streamfold.core.events.model import Event

LEARNED_FROM = ("exposure.recorded", "feedback.given", "interaction.observed")
"""Event types that examples come of; a ranker handles them all, or it misses some."""
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


class Example(NamedTuple):
    """One labelled pair of user and item, as rankers learn it.

    ``seq`` and ``n`` name it: the event that completed it, and which of that event's examples it is. ``served``: the
    score it was shown with (``None``: nothing of ours showed it), ``propensity``: with what probability. ``swaps``:
    the same pair was learned with the opposite label before, at the same ``at_us`` (a late positive): take that back.
    ``exposure``: the exposure's id; empty where nothing of ours showed it. ``weight``: how much it counts, from 0 to 1:
    less than 1 where a live A/B runs, and the other arm may well have been the one to show it.
    """

    seq: int
    n: int
    user: str
    item: str
    label: float
    at_us: int
    user_tokens: tuple[str, ...] = ()
    item_tokens: tuple[str, ...] = ()
    served: float | None = None
    propensity: float | None = None
    swaps: bool = False
    exposure: str = ""
    weight: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredItem:
    """An item as its own events left it. ``tokens``: its categories and properties as features, sorted."""

    item_id: str
    fields: Mapping[str, Any]
    tokens: tuple[str, ...]
    available: bool
    expires_us: int | None
    published_us: int | None
    event_id: str
    position: int
    updated_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredUser:
    """A user as its own events left it."""

    user_id: str
    fields: Mapping[str, Any]
    event_id: str
    position: int
    updated_us: int


class Acted(NamedTuple):
    """What a user did with an item. ``label``: 1 liked, 0 disliked, ``None`` neither."""

    item_id: str
    action: str
    at_us: int
    label: float | None


@runtime_checkable
class Catalogue(Protocol):
    """Knows the items, the users, and what users did lately."""

    def items(self, item_ids: Sequence[str]) -> list[StoredItem | None]: ...
    def item(self, item_id: str) -> StoredItem | None:
        """One item with its text."""
        ...

    def listed(self, item_ids: Sequence[str], at_us: int) -> Flags:
        """Which items may be shown at a time: none that was deleted, is unavailable or has expired; ``(n,) bool``.

        An item that only interactions name may be.
        """
        ...

    def item_page(self, *, after: str, limit: int) -> list[StoredItem]:
        """A page in order of id."""
        ...

    def users(self, user_ids: Sequence[str]) -> list[StoredUser | None]: ...
    def user_page(self, *, after: str, limit: int) -> list[StoredUser]: ...
    def history(self, user: str, most: int | None = None) -> list[Acted]:
        """What a user (see :func:`user_key`) did, newest first, as far as it is kept; ``most``: no more than these."""
        ...

    def seen(self, user: str, item_ids: Sequence[str], actions: Sequence[str]) -> Flags:
        """Which of the items the user did one of these with, as far as it is kept; ``(n,) bool``."""
        ...

    def tokens(self, user: str, item_ids: Sequence[str]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Features of the user and of each item."""
        ...

    def examples(self, event: Event, now_us: int) -> Sequence[Example]:
        """What is learned from an event, from the stores as they were before it; ``now_us``: the fold's clock."""
        ...


def user_key(user_id: str | None, session_id: str | None) -> str:
    """Name a user in rankers' statistics; a session stands for a user who is not known. Empty: nobody.

    >>> user_key("7", None), user_key(None, "7"), user_key(None, None)
    ('u:7', 's:7', '')
    """
    return f"u:{user_id}" if user_id is not None else f"s:{session_id}" if session_id is not None else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRequest:
    """Score items for a user. ``user``: see :func:`user_key`; ``at_us``: the time of the request."""

    user: str
    item_ids: Sequence[str]
    at_us: int = 0
    context: Mapping[str, Any] = field(default_factory=dict)
    explain: bool = False


class Feature(NamedTuple):
    """What spoke for or against an item; ``contribution`` in log-odds."""

    name: str
    value: float
    contribution: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranking:
    """Scores of items, in the order in which they were asked for.

    Parameters
    ----------
    scores : ``(n,) float64``, the probability that the user likes the item.
    known : ``(n,) bool``: whether anything of the item was learned.
    base : ``(n,) float64``, the score before correction; ``None``: there is no correction.
    features : for each item what made its score, largest first; empty unless ``explain`` was asked for.
    """

    scores: Floats
    known: Flags
    base: Floats | None = None
    features: Sequence[Sequence[Feature]] = ()


@runtime_checkable
class Ranker(Protocol):
    """Scores items for a user; a pure read, in one batch."""

    def rank(self, request: RankRequest) -> Ranking: ...
    def score(self, example: Example) -> float:
        """Score what an example shows, before it is learned (for policies that read this one while folding)."""
        ...


@runtime_checkable
class SimilarItems(Protocol):
    """Lists items like one item, best first, with scores."""

    def similar(self, item_id: str, n: int) -> list[tuple[str, float]]: ...
