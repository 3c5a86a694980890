"""A whole recommender: live equals replay, whatever the transactions and crashes; reading writes nothing."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pytest

from streamfold.core.clock import US, ManualClock
from streamfold.core.testing import World
from streamfold.plugins import _codes, builtin

POLICIES: dict[str, dict[str, Any]] = {
    "activity": {"window_s": 60.0, "late_s": 600.0, "history": 5},
    "cooccurrence": {"max_items": 64},
    "diag_linucb": {"clusters": 8, "width": 16},
    "count_stack": {"ids": 256, "crosses": 256},
    "factorization": {"rows": 256},
    "deepfm": {"rows": 256},
    "implicit_ftrl": {"rows": 256},
    "ensemble": {"members": ["count_stack", "factorization", "deepfm", "implicit_ftrl"]},
    "residual_table": {"rows": 256},
    "quality": {"ranker": "residual_table", "ring": 64, "rank_budget": 60.0, "max_rankings": 8},
}
HASHING = {"encoder": {"use": "hashing"}}
BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
STRANGERS = 1000
ASKED = ("activity", "reloop2_topk", "item_vectors", "cooccurrence", "graph_walk", "diag_linucb", "trending", "newest")
"""The memory on top asks the other memories, the ensemble and all rankers."""
Step = tuple[int, str, dict[str, Any]]


def stream(seed: int, n: int) -> list[Step]:
    """Seconds to wait, then an event: items with texts, exposures, feedback on time, too early, late, and organic."""
    rng = random.Random(seed)
    words = ["jazz", "trumpet", "guitar", "loud", "fiddle", "quiet", "swing", "drum"]
    made: list[Step] = [
        (
            1,
            "item.upserted",
            {"item_id": f"i{k}", "title": " ".join(rng.sample(words, 3)), "categories": [words[k % 3]]},
        )
        for k in range(12)
    ]
    shown: list[tuple[str, str, list[str]]] = []
    for k in range(n):
        user, item, wait = f"u{rng.randrange(6)}", f"i{rng.randrange(14)}", rng.choice([0, 1, 5, 40, 100])
        what = rng.random()
        if what < 0.4:
            items = rng.sample([f"i{m}" for m in range(14)], 3)
            shown.append((f"x{k}", user, items))
            listed = [{"item_id": one, "rank": r, "score": rng.random()} for r, one in enumerate(items, 1)]
            data = {"exposure_id": f"x{k}", "kind": "rank", "user_id": user, "items": listed}
            made.append((wait, "exposure.recorded", data))
        elif what < 0.75 and shown:  # one of the last: in time, late or past everything; or one that is to come
            exposure, user, items = rng.choice(shown[-4:])
            exposure = f"x{k + 1}" if rng.random() < 0.1 else exposure
            data = {"user_id": user, "item_id": rng.choice(items), "action": rng.choice(["click", "skip", "view"])}
            made.append((wait, "interaction.observed", data | {"exposure_id": exposure}))
        elif what < 0.95:
            action = rng.choice(["like", "dislike"])
            made.append((wait, "interaction.observed", {"user_id": user, "item_id": item, "action": action}))
        else:
            made.append((wait, "item.deleted", {"item_id": item}))
    return made


def opened(folder: Path) -> World:
    return World(folder, [builtin], POLICIES, backends=HASHING, clock=ManualClock(1_700_000_000 * US))


def told(world: World, steps: list[Step], rng: random.Random, most: int) -> World:
    """Log a stream; fold ``most`` events at a time at the most, crashing now and then."""
    left = 0
    for wait, type_, data in steps:
        world.clock.advance(wait)
        world.send(type_, data)
        left -= 1
        if left < 0:
            world.fold()
            left = rng.randrange(most)
            if rng.random() < 0.1:
                world.forget_warm()
    world.fold()
    return world


def contents(world: World) -> dict[str, Any]:
    view = world.view
    return {
        f"{name}/{store.name}": view.member(name)[store.name].fingerprint()
        for name in POLICIES
        for store in view.member(name).runtime.policy.stores
    }


def events_of(world: World, slice_: str) -> int:
    measured = world.view.member("quality").server.measured()
    return sum(point.events for point in measured.series(from_us=0, to_us=2**62, slice_=slice_))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_live_equals_replay_however_it_was_cut(seed: int, tmp_path: Path) -> None:
    steps = stream(seed, 240)
    rng = random.Random(seed)
    with opened(tmp_path / "one") as one, opened(tmp_path / "many") as many:
        told(one, steps, rng, most=1)
        told(many, steps, rng, most=60)
        assert many.ledger.dead_letters(many.workspace) == []
        found = contents(one)
        assert found == contents(many)
        for world in (one, many):
            for verdict in world.verify().values():
                assert verdict.equal, verdict.differences
        points = one.view.member("quality").server.measured().series(from_us=0, to_us=2**62, slice_="all")
        assert sum(point.events for point in points) > 150
        assert any(point.user_auc >= 0 for point in points), "some exposure had what was liked and what was not"
        assert sum(point.ranked for point in points) > 2, "liked items were ranked among everything unseen"
        deciles = one.view.member("quality").server.slices[-10:]
        assert sum(events_of(one, slice_) for slice_ in deciles) == sum(point.events for point in points)


def test_reading_for_endless_strangers_grows_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every server of a recommender; ``bench_strangers.py`` does it for a million."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import strangers

    monkeypatch.setattr(_codes, "_CACHED", 1000)
    for kept in (_codes._USERS, _codes._ITEMS, _codes._ALL_USER_TOKENS, _codes._ALL_ITEM_TOKENS):
        kept.clear()
    small = {name: given for name, given in POLICIES.items() if name in strangers.SERVERS and name != "ensemble"}
    with strangers.recommender(tmp_path, small, actions=100) as world:
        view = world.view
        reads = [strangers.reader(name, view.member(name).server) for name in ASKED]
        before, size, caches = strangers.held(view), strangers.state_bytes(view), strangers.caches()
        for n in range(STRANGERS):
            for read in reads:
                read(n)
        assert strangers.held(view) == before
        assert strangers.state_bytes(view) == size
        after = strangers.caches()
        assert strangers.unbounded(caches, after) == []
        assert any(name.endswith("_Ids(item, )") and entries for name, (entries, _) in after.items())
    sys.modules.pop("strangers")
