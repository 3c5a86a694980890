"""The recommender stack folds many events in one call, and comes to what it comes to event by event."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamfold.core.fold import order
from streamfold.core.testing import World
from streamfold.plugins import builtin

STACK: dict[str, dict[str, Any]] = {
    "activity": {"window_s": 20.0, "late_s": 60.0, "history": 6},
    "cooccurrence": {"max_items": 16, "partners": 4},
    "count_stack": {"ids": 64, "crosses": 128},
    "factorization": {"rows": 64, "factors": 4},
    "ensemble": {},
    "quality": {"bucket_s": 30.0, "max_buckets": 3, "ring": 32, "rank_budget": 20.0, "max_rankings": 8},
}
CORRECTED: dict[str, dict[str, Any]] = {
    **{name: given for name, given in STACK.items() if name != "factorization"},
    "ensemble": {"members": ["count_stack"]},
    "residual_table": {"rows": 64},
    "reloop2_lsh": {"base": "residual_table", "arrays": 6, "bits": 3},
    "reloop2_topk": {"base": "reloop2_lsh", "samples": 8, "k": 3},
    "quality": STACK["quality"] | {"ranker": "reloop2_topk"},
}
"""Each error memory on top of another: what one returned is what the next one hears."""
Given = tuple[str, dict[str, Any]]


def events(n: int, seed: int) -> Iterator[Given]:
    """A shop with more items than there are rows: shown, liked, told of in time, late and early; some deleted."""
    rng = random.Random(seed)
    items, shown = [f"i{k}" for k in range(24)], list[tuple[str, str, list[str]]]()
    for k in range(n):
        user, item, draw = f"u{rng.randrange(8)}", rng.choice(items), rng.random()
        acted = {"user_id": user, "item_id": item, "action": rng.choice(["click", "purchase", "dislike", "view"])}
        if draw < 0.1:
            genres = rng.sample(["action", "drama", "noir", "war"], rng.randrange(4))
            yield "item.upserted", {"item_id": item, "title": item, "categories": genres}
        elif draw < 0.13:
            yield "item.deleted", {"item_id": item}
        elif draw < 0.2:
            listed = rng.sample(items, 3)
            shown.append((f"x{k}", user, listed))
            rows = [{"item_id": one, "rank": at, "score": 0.5} for at, one in enumerate(listed, 1)]
            yield "exposure.recorded", {"exposure_id": f"x{k}", "kind": "recommend", "user_id": user, "items": rows}
        elif draw < 0.4 and shown:
            exposure, user, listed = rng.choice(shown)
            yield (
                "interaction.observed",
                acted | {"user_id": user, "item_id": rng.choice(listed), "exposure_id": exposure},
            )
        elif draw < 0.43:
            yield "interaction.observed", acted | {"exposure_id": f"x{k + 3}"}
        else:
            yield "interaction.observed", acted


def folded(folder: Path, stack: dict[str, dict[str, Any]], batch: int, seed: int) -> tuple[dict[str, Any], World]:
    world = World(folder, [builtin], stack, fold={"batch_events": batch, "max_skips": 1000})
    for one in events(400, seed):
        world.clock.advance(1.0)
        world.send(*one)
    world.fold()
    group = world.group("activity")
    members = {r.instance.name: world.view.member(r.instance.name) for r in group.runtimes}
    return {
        f"{name}.{one.name}": member[one.name].fingerprint()
        for name, member in members.items()
        for one in member.runtime.policy.stores
    }, world


@pytest.mark.parametrize(("stack", "seed"), [(STACK, 1), (STACK, 2), (CORRECTED, 1)], ids=["1", "2", "corrected"])
def test_batches_of_any_size_come_to_what_the_loop_comes_to(
    stack: dict[str, dict[str, Any]], seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(order, "gathering", lambda group: [])
        expected, loop = folded(tmp_path / "loop", stack, 64, seed)
    assert len(order.gathering(loop.group("activity"))) == len(stack) - 1
    assert len(list(loop.view.member("cooccurrence")["row"].items())) == 16  # items had to make way
    assert loop.store("quality", "rankings").values[-1, 0] > 8  # everything unseen was ranked, more than is kept
    loop.close()
    for batch in (1, 7, 400):
        found, world = folded(tmp_path / f"{batch}", stack, batch, seed)
        assert found == expected, batch
        if batch == 400:
            assert all(verdict.equal for verdict in world.verify().values())
        world.close()


@pytest.mark.parametrize("stack", [STACK, CORRECTED], ids=["plain", "corrected"])
def test_a_stack_without_an_erased_user_is_what_the_loop_comes_to(
    stack: dict[str, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after: list[dict[str, Any]] = []
    runs: list[int] = []
    fold_gathered = order.FoldOrder._fold_gathered

    def counted(self: order.FoldOrder, *arguments: Any) -> None:
        runs.append(len(self._gathering[0][2]))
        fold_gathered(self, *arguments)

    monkeypatch.setattr(order.FoldOrder, "_fold_gathered", counted)
    for gathers in (True, False):
        with monkeypatch.context() as patch:
            if not gathers:
                patch.setattr(order, "gathering", lambda group: [])
            _, world = folded(tmp_path / f"{gathers}", stack, 64, 3)
            runs.clear()
            world.send("user.erased", {"user_id": "u3"})
            world.erase()
            assert bool(runs) == gathers
            assert not gathers or sum(runs) > 100, "only what is folded afresh are so many events"
            members = {r.instance.name: world.view.member(r.instance.name) for r in world.group("activity").runtimes}
            after.append(
                {
                    f"{name}.{one.name}": member[one.name].fingerprint()
                    for name, member in members.items()
                    for one in member.runtime.policy.stores
                }
            )
            assert all(verdict.equal for verdict in world.verify().values())
            world.close()
    assert after[0] == after[1]
