"""Small rankers for the tests of `evaluate`, as a plugin would offer them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from streamfold.core import LEARNED_FROM, Event, Example, Policy, Ranking, RankRequest, Stores, Table, View, hookimpl


class Taste(Policy):
    """The shrunk mean of what ``key`` says of a pair; 1/2 at first."""

    version, handles, reads = 1, LEARNED_FROM, ("activity",)
    stores = (Table("sums", key=str, value=tuple[float, float], max_rows=100_000),)

    @staticmethod
    def key(user: str, item: str) -> str:
        raise NotImplementedError

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        for example in stores.of("activity").server.examples(event, stores.now_us):
            key = self.key(example.user, example.item)
            liked, count = stores["sums"].get(key, (0.0, 0.0))
            change = (1.0, 0.0) if example.swaps else (example.label, 1.0)
            stores["sums"].put(key, (liked + change[0], count + change[1]))

    def serve(self, view: View) -> Tasting:
        return Tasting(view, self.key)


class Tasting:
    def __init__(self, view: View, key: Callable[[str, str], str]) -> None:
        self._view, self._key = view, key

    def rank(self, request: RankRequest) -> Ranking:
        found = [self._view["sums"].get(self._key(request.user, item), (0.0, 0.0)) for item in request.item_ids]
        scores = np.array([(liked + 1) / (count + 2) for liked, count in found])
        return Ranking(scores=scores, known=np.array([count > 0 for _, count in found]))

    def score(self, example: Example) -> float:
        return float(self.rank(RankRequest(user=example.user, item_ids=(example.item,))).scores[0])


class ItemTaste(Taste):
    """What everybody thinks of the item."""

    name = "item_taste"

    @staticmethod
    def key(user: str, item: str) -> str:
        return item


class UserTaste(Taste):
    """What the user thinks of everything."""

    name = "user_taste"

    @staticmethod
    def key(user: str, item: str) -> str:
        return user


class PairTaste(Taste):
    """What the user thought of this very item: nothing, before it was tested."""

    name = "pair_taste"

    @staticmethod
    def key(user: str, item: str) -> str:
        return f"{user} {item}"


class Broken(ItemTaste):
    """Fails at one item."""

    name = "broken_taste"

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        if event.type == "interaction.observed" and event.data.item_id == "stone":
            raise ValueError("cannot chew")
        super().fold(event, prepared, stores)


class Lost(ItemTaste):
    """Knows no number for one item."""

    name = "lost_taste"

    def serve(self, view: View) -> Tasting:
        return LostTasting(view, self.key)


class LostTasting(Tasting):
    def rank(self, request: RankRequest) -> Ranking:
        found = super().rank(request)
        found.scores[[item == "stone" for item in request.item_ids]] = np.nan
        return found


@hookimpl
def register_policies() -> list[type[Policy]]:
    return [ItemTaste, UserTaste, PairTaste, Broken, Lost]
