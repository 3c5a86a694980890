"""Strangers: users and items that nobody knows, read through every server of a recommender. Nothing may grow of it.

For the benchmark ``bench_strangers.py``, and for the test that does the same with fewer of them.
"""

from __future__ import annotations

import gc
import random
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from streamfold.core import CandidateRequest, Example, RankRequest
from streamfold.core.clock import US, ManualClock
from streamfold.core.testing import World
from streamfold.plugins import _codes, builtin

RANKERS = ("count_stack", "factorization", "implicit_ftrl", "deepfm", "ensemble")
MEMORIES = ("residual_table", "reloop2_lsh", "reloop2_topk")
SOURCES = ("item_vectors", "cooccurrence", "graph_walk", "diag_linucb", "trending", "newest")
SERVERS = ("activity", *RANKERS, *MEMORIES, *SOURCES)
ITEMS = 200
START_US = 1_700_000_000 * US
Read = Callable[[int], None]


def recommender(folder: Path, policies: Mapping[str, Mapping[str, Any]] | None = None, *, actions: int = 1000) -> World:
    """Open a world of all rankers, memories and sources that has folded a small shop's log.

    All rankers are the ensemble's, and each memory stands on another one: who asks the last memory asks them all.

    Parameters
    ----------
    policies : settings that are not the defaults.
    actions : of 40 users with 200 items.
    """
    table: dict[str, dict[str, Any]] = {name: {} for name in SERVERS}
    table["ensemble"] = {"members": list(RANKERS[:-1])}
    table |= {name: {"base": base} for name, base in zip(MEMORIES, ("ensemble", *MEMORIES), strict=False)}
    for name, given in (policies or {}).items():
        table[name] |= given
    backends = {"encoder": {"use": "hashing"}}
    world = World(folder, [builtin], table, backends=backends, clock=ManualClock(START_US))
    rng = random.Random(7)
    words = ["jazz", "trumpet", "guitar", "loud", "fiddle", "quiet", "swing", "drum"]
    for n in range(ITEMS):
        told = {"item_id": f"i{n}", "title": " ".join(rng.sample(words, 3)), "categories": rng.sample(words, 2)}
        world.send("item.upserted", told)
    for _ in range(actions):
        world.clock.advance(1)
        acted = {"user_id": f"u{rng.randrange(40)}", "item_id": f"i{rng.randrange(ITEMS)}"}
        world.send("interaction.observed", acted | {"action": rng.choice(["like", "dislike", "purchase"])})
    world.fold()
    return world


def reader(name: str, server: Any) -> Read:
    """Return what asks a policy's server for stranger number ``n`` everything that a request may ask of it.

    Each stranger comes with five items of the shop and five that nobody has heard of; every fourth is scored as a fold
    would, too, and every thousandth is told why.
    """

    def read(n: int) -> None:
        user = f"u:stranger{n}"
        items = [f"i{(n + 7 * k) % ITEMS}" for k in range(5)] + [f"never{n}-{k}" for k in range(5)]
        if hasattr(server, "rank"):
            scores = server.rank(RankRequest(user=user, item_ids=items, at_us=START_US, explain=n % 1000 == 0)).scores
            assert ((scores > 0) & (scores < 1)).all()
            assert n % 4 or 0 < server.score(Example(1_000_000 + n, 0, user, items[n % 10], 1.0, START_US)) < 1
        if hasattr(server, "candidates"):
            seeds = ((items[0], 1.0), (items[5], 1.0), (items[6], -0.5))
            for given in ((), seeds):
                server.candidates(CandidateRequest(n=10, user=user, seeds=given, at_us=START_US))
        if hasattr(server, "similar"):
            assert server.similar(items[5], 10) == []
        if hasattr(server, "history"):
            assert server.history(user) == []
            assert server.users([user[2:]]) == [None]
            assert server.items(items)[5:] == [None] * 5
            assert not server.seen(user, items, ["purchase"]).any()
            assert not server.judged(user, items).any()
            assert server.listed(items, START_US).all()
            assert server.tokens(user, items)[0] == ()

    assert any(hasattr(server, one) for one in ("rank", "candidates", "history")), name
    return read


def held(view: Any) -> dict[str, Any]:
    """Return what every store of every policy holds: a digest."""
    return {
        f"{name}.{store.name}": view.member(name)[store.name].fingerprint()
        for name in SERVERS
        for store in view.member(name).runtime.policy.stores
    }


def state_bytes(view: Any) -> dict[str, int]:
    """Return the bytes of every store of every policy."""
    return {
        f"{name}.{store.name}": view.member(name)[store.name].state_bytes()
        for name in SERVERS
        for store in view.member(name).runtime.policy.stores
    }


def caches() -> dict[str, tuple[int, int | None]]:
    """Return (entries, the most there may be) of everything in streamfold that remembers what it was asked."""
    found: dict[str, tuple[int, int | None]] = {}
    for name, module in sorted(sys.modules.items()):
        if name.startswith("streamfold."):
            for attribute, one in vars(module).items():
                if hasattr(one, "cache_info") and one.__module__ == name:
                    found[f"{name}.{attribute}"] = one.cache_info().currsize, one.cache_info().maxsize
    for one in gc.get_objects():
        if issubclass(type(one), _codes._Kept):  # what some objects say of their class warns
            key = f"streamfold.plugins._codes.{type(one).__name__}({one._kind}, {getattr(one, '_most', '')})"
            found[key] = len(one), _codes._CACHED
    return found


def unbounded(before: Mapping[str, tuple[int, int | None]], after: Mapping[str, tuple[int, int | None]]) -> list[str]:
    """Name the caches that are past their bound, or have none and grew."""
    return [
        name
        for name, (entries, most) in after.items()
        if (entries > before.get(name, (0, most))[0] if most is None else entries > most)
    ]
