"""A small ranker for tests of what reads one: shrunk counts of likes per item, and of the user."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np

from streamfold.core import (
    LEARNED_FROM,
    Array,
    Event,
    Example,
    Feature,
    Policy,
    Prepared,
    Ranking,
    RankRequest,
    Stores,
    View,
    hookimpl,
)

ROWS = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class CountingConfig:
    """``learns``: False freezes it at one half."""

    learns: bool = True


class Counting(Policy):
    """Likes and examples by hashed item and user."""

    name, version, handles, reads = "counting", 1, LEARNED_FROM, ("activity",)
    Config = CountingConfig
    stores = (Array("counts", shape=(ROWS, 2), dtype="float64"),)

    def fold(self, event: Event, prepared: Prepared, stores: Stores) -> None:
        if self.config.learns:
            for example in stores.of("activity").server.examples(event, stores.now_us):
                rows = stores["counts"].touch(_rows(example.user, example.item))
                np.add.at(stores["counts"].values, rows, (example.label, 1.0))

    def serve(self, view: View) -> CountingServer:
        return CountingServer(view)


class CountingServer:
    """The mean of two shrunk shares."""

    def __init__(self, view: Any) -> None:
        self._view = view

    def rank(self, request: RankRequest) -> Ranking:
        scores = np.array([self._score(request.user, item) for item in request.item_ids], np.float64)
        features = [(Feature("counts", float(score), 0.1),) for score in scores] if request.explain else ()
        return Ranking(scores=scores, known=np.ones(len(scores), bool), features=features)

    def score(self, example: Example) -> float:
        return self._score(example.user, example.item)

    def _score(self, user: str, item: str) -> float:
        likes, counts = self._view["counts"].get(_rows(user, item)).T
        return float(((likes + 1) / (counts + 2)).mean())


def _rows(user: str, item: str) -> list[int]:
    return [crc32(f"{kind}{name}".encode()) % ROWS for kind, name in (("user", user), ("item", item))]


@hookimpl
def register_policies() -> list[type[Policy]]:
    return [Counting]
