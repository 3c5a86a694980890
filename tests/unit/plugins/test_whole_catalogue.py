"""``quality`` ranks liked items among everything unseen, at a sample of events, and slices by popularity so far."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamfold.core import QualityPoint, RankRequest
from streamfold.core.errors import ConfigError
from streamfold.core.quality import Ranked, coverage, first_of, ndcg_of_one
from streamfold.core.testing import World
from streamfold.plugins import _kernels_quality, builtin
from streamfold.plugins._whole_catalogue import CLASSES, DECILES, draw, share_of
from streamfold.plugins.quality import QualityConfig

EVER = {"from_us": 0, "to_us": 2**62}
ALWAYS = 1e9
Given = tuple[str, dict[str, Any]]


def policies(**quality: Any) -> dict[str, dict[str, Any]]:
    return {
        "activity": {"window_s": 20.0, "late_s": 60.0},
        "count_stack": {"ids": 256, "crosses": 256},
        "quality": {"ranker": "count_stack", "ring": 4096, "rank_budget": ALWAYS, **quality},
    }


def ranking(world: World, slice_: str = "all", name: str = "quality") -> Ranked:
    found: Ranked = world.view.member(name).server.measured().ranked(**EVER, slice_=slice_)
    return found


def series(world: World, slice_: str = "all") -> list[QualityPoint]:
    found: list[QualityPoint] = world.view.member("quality").server.measured().series(**EVER, slice_=slice_)
    return found


def shop(n: int, seed: int) -> Iterator[Given]:
    """Items of which events of their own tell, and some that only interactions name; shown, liked, judged, deleted."""
    rng = random.Random(seed)
    for k in range(20):
        yield "item.upserted", {"item_id": f"i{k}", "categories": [rng.choice("abc")], "available": k != 7}
    shown: list[tuple[str, str, list[str]]] = []
    for k in range(n):
        user, item, draw = f"u{rng.randrange(10)}", f"i{rng.randrange(24)}", rng.random()
        if draw < 0.25:
            shown.append((f"x{k}", user, rng.sample([f"i{m}" for m in range(24)], 4)))
            rows = [{"item_id": one, "rank": at, "score": 0.5} for at, one in enumerate(shown[-1][2], 1)]
            yield "exposure.recorded", {"exposure_id": f"x{k}", "kind": "recommend", "user_id": user, "items": rows}
        elif draw < 0.5 and shown:
            exposure, user, listed = rng.choice(shown[-3:])
            data = {"user_id": user, "item_id": rng.choice(listed), "action": rng.choice(["click", "skip"])}
            yield "interaction.observed", data | {"exposure_id": exposure}
        elif draw < 0.53:
            yield "item.deleted", {"item_id": item}
        else:
            action = rng.choice(["like", "dislike", "view"])
            yield "interaction.observed", {"user_id": user, "item_id": item, "action": action}


class ByHand:
    """The same measures, kept with the state from before each event in a plain loop over everything that there is."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.gains: list[float] = []
        self.first: set[str] = set()
        self.lists = self.last = 0
        self.exists: set[str] = set()
        self.hidden: set[str] = set()
        self.judged: set[tuple[str, str]] = set()
        self.shown: dict[str, dict[str, float | None]] = {}

    def rank(self, user: str, targets: Sequence[str]) -> dict[str, float | None]:
        may = self.exists - self.hidden
        fits = [one for one in targets if (user, one) not in self.judged]
        items = sorted(one for one in may if (user, one) not in self.judged)
        items += sorted({*fits} - {*items})
        ranker = self.world.view.member("count_stack").server
        found = ranker.rank(RankRequest(user=f"u:{user}", item_ids=items)).scores
        self.first.update(items[j] for j in first_of(found))
        self.lists, self.last = self.lists + 1, len(may)
        at = {one: j for j, one in enumerate(items)}
        return {
            one: ndcg_of_one(float(found[at[one]]), np.delete(found, at[one])) if one in fits else None
            for one in targets
        }

    def take(self, type_: str, data: dict[str, Any]) -> None:
        if type_ == "item.upserted":
            self.exists.add(data["item_id"])
            self.hidden |= set() if data["available"] else {data["item_id"]}
        elif type_ == "item.deleted":
            self.exists.discard(data["item_id"])
            self.hidden.add(data["item_id"])
        elif type_ == "exposure.recorded":
            listed = [one["item_id"] for one in data["items"]]
            self.shown[data["exposure_id"]] = self.rank(data["user_id"], listed)
            self.exists.update(one for one in listed if one not in self.hidden)
        else:
            self.act(data["user_id"], data["item_id"], data["action"], data.get("exposure_id"))

    def act(self, user: str, item: str, action: str, exposure: str | None) -> None:
        if exposure is None and action == "like":
            [gain] = self.rank(user, [item]).values()
            self.gains += [] if gain is None else [gain]
        if action != "view":
            self.judged.add((user, item))
            if item not in self.hidden:
                self.exists.add(item)


def test_liked_items_are_ranked_among_all_that_could_be_shown_and_was_not_judged(tmp_path: Path) -> None:
    """Interactions that followed no exposure, each scored with the state from before it."""
    with World(tmp_path, [builtin], policies()) as world:
        expected = ByHand(world)
        for type_, data in shop(150, 1):
            if type_ == "exposure.recorded" or "exposure_id" in data:
                continue
            expected.take(type_, data)
            world.clock.advance(1.0)
            world.send(type_, data)
            world.fold()
        found = ranking(world)
        assert (found.positives, found.lists) == (len(expected.gains), expected.lists)
        assert 20 < found.positives < found.lists  # some had been judged before, and nobody counts those
        assert found.ndcg_at_10 == pytest.approx(np.mean(expected.gains))
        assert (found.items, found.why) == (expected.last, "")
        assert found.coverage == coverage(len(expected.first), expected.last)
        points = series(world)
        assert sum(one.ranked for one in points) == found.positives
        assert sum(one.lists for one in points) == found.lists
        by_decile = [ranking(world, one) for one in DECILES]
        assert sum(one.positives for one in by_decile) == found.positives
        assert sum(one.ndcg_at_10 * one.positives for one in by_decile if one.positives) == pytest.approx(
            sum(expected.gains)
        )
        assert all(np.isnan(one.coverage) for one in by_decile)  # a ranking is of all items


def test_a_total_is_of_the_times_that_were_asked_for(tmp_path: Path) -> None:
    with World(tmp_path, [builtin], policies(bucket_s=20.0)) as world:
        for type_, data in shop(150, 1):
            world.clock.advance(1.0)
            world.send(type_, data)
        world.fold()
        measured, middle_us = world.view.member("quality").server.measured(), series(world)[3].at_us
        asked = {"from_us": middle_us, "to_us": 2**62, "slice_": "all"}
        [total], points, whole = measured.series(**asked, stretch_us=2**62), measured.series(**asked), ranking(world)
        part = measured.ranked(**asked)
        assert (total.lists, total.coverage) == (part.lists, part.coverage)
        assert 0 < part.lists < whole.lists
        assert total.events == sum(one.events for one in points)


def test_what_is_shown_is_ranked_when_it_is_shown_and_counts_when_it_is_liked(tmp_path: Path) -> None:
    with World(tmp_path, [builtin], policies()) as world:
        for k in range(12):
            world.send("item.upserted", {"item_id": f"i{k}"})
        for k in range(30):
            like = {"user_id": f"v{k}", "item_id": f"i{k % 3}", "action": "like" if k % 3 else "dislike"}
            world.send("interaction.observed", like)
        world.send("interaction.observed", {"user_id": "ann", "item_id": "i5", "action": "like"})
        world.fold()
        before, hand = ranking(world), ByHand(world)
        hand.exists, hand.judged = {f"i{k}" for k in range(12)}, {("ann", "i5")}
        gains = hand.rank("ann", ["i1", "i4", "i5"])
        rows = [{"item_id": one, "rank": at, "score": 0.5} for at, one in enumerate(gains, 1)]
        shown = {"exposure_id": "x", "kind": "recommend", "user_id": "ann", "items": rows}
        world.send("exposure.recorded", shown)
        for k in range(20):  # what is learned meanwhile changes nothing
            world.send("interaction.observed", {"user_id": f"w{k}", "item_id": "i4", "action": "dislike"})
        world.fold()
        after = ranking(world)
        assert (after.positives, after.lists) == (before.positives, before.lists + 1)
        for item in ("i1", "i4", "i5"):
            click = {"user_id": "ann", "item_id": item, "action": "click", "exposure_id": "x"}
            world.send("interaction.observed", click)
        world.fold()
        found = ranking(world)
        assert found.positives == before.positives + 2  # i5 had been judged
        assert gains["i5"] is None
        assert found.ndcg_at_10 * found.positives == pytest.approx(
            before.ndcg_at_10 * before.positives + gains["i1"] + gains["i4"]  # type: ignore[operator]  # not None
        )


def test_a_click_logged_before_its_exposure_counts_as_one_after_it(tmp_path: Path) -> None:
    def told(name: str, *, early: bool, cut: int) -> tuple[list[QualityPoint], Ranked, int]:
        rows = [{"item_id": f"i{k}", "rank": k + 1, "score": 0.5} for k in range(4)]
        shown = "exposure.recorded", {"exposure_id": "x", "kind": "recommend", "user_id": "ann", "items": rows}
        click = {"user_id": "ann", "item_id": "i1", "action": "click", "exposure_id": "x"}
        clicked: Given = "interaction.observed", click
        with World(tmp_path / name, [builtin], policies()) as world:
            events: list[Given] = [("item.upserted", {"item_id": f"i{k}"}) for k in range(12)]
            for k in range(30):
                like = {"user_id": f"v{k}", "item_id": f"i{k % 3}", "action": "like" if k % 3 else "dislike"}
                events.append(("interaction.observed", like))
            events += [clicked, shown] if early else [shown, clicked]
            for n, one in enumerate(events, 1):
                world.send(*one)
                if n % cut == 0:
                    world.fold()
            world.fold()
            world.clock.advance(30)
            world.send("interaction.observed", {"user_id": "bob", "item_id": "i9", "action": "dislike"})
            world.fold()  # what was passed over completes the exposure
            assert all(verdict.equal for verdict in world.verify().values())
            return series(world), ranking(world), len(world.store("quality", "pending"))

    points, whole, pending = told("early", early=True, cut=1)
    after = told("late", early=False, cut=1)
    assert pending == 0
    assert all(sum(getattr(one, name) >= 0 for one in points) == 1 for name in ("user_auc", "ndcg_at_10"))
    assert whole.positives == 20 + 1
    assert repr((points, whole, pending)) == repr(after)
    assert repr(told("at-once", early=True, cut=100)) == repr((points, whole, pending))


def test_an_item_that_was_named_before_its_own_event_counts_once(tmp_path: Path) -> None:
    found = []
    for cut in (1, 200):
        with World(tmp_path / f"{cut}", [builtin], policies(rank_limit=50)) as world:
            events: list[Given] = []
            for k in range(40):
                events.append(("interaction.observed", {"user_id": "u", "item_id": f"i{k}", "action": "like"}))
            events += [("item.upserted", {"item_id": f"i{k}"}) for k in range(40)]
            for k in range(10):
                events.append(("interaction.observed", {"user_id": "v", "item_id": f"i{k}", "action": "like"}))
            for n, one in enumerate(events, 1):
                world.send(*one)
                if n % cut == 0:
                    world.fold()
            world.fold()
            found.append(ranking(world))
            assert (found[-1].positives, found[-1].lists, found[-1].items, found[-1].why) == (50, 50, 40, "")
            assert all(verdict.equal for verdict in world.verify().values())
    assert repr(found[0]) == repr(found[1])


def test_what_is_ranked_changes_nothing_else_that_is_measured(tmp_path: Path) -> None:
    """So gates judge as they would without it."""
    found = {}
    for budget in (0.0, ALWAYS):
        with World(tmp_path / f"{budget}", [builtin], policies(rank_budget=budget)) as world:
            for one in shop(300, 2):
                world.clock.advance(1.0)
                world.send(*one)
            world.fold()
            points = [one._replace(catalogue_ndcg_at_10=0.0, ranked=0, coverage=0.0, lists=0) for one in series(world)]
            stores = {
                f"{policy}.{store}": world.store(policy, store).fingerprint()
                for policy, store in (("quality", "scored"), ("quality", "met"), ("count_stack", "ids"))
            }
            pending = [(key, one.scores, one.labels) for key, one in world.store("quality", "pending").items()]
            found[budget] = repr(points), stores, pending
            assert (ranking(world).lists > 50) == bool(budget)
    assert found[0.0] == found[ALWAYS]


def test_every_built_in_ranker_is_ranked_alike_and_a_fold_afresh_gives_the_same(tmp_path: Path) -> None:
    rankers: dict[str, dict[str, Any]] = {
        "count_stack": {"ids": 256, "crosses": 256}, "factorization": {"rows": 256}, "deepfm": {"rows": 256},
        "implicit_ftrl": {"rows": 256}, "ensemble": {}, "residual_table": {"rows": 256}, "reloop2_lsh": {"bits": 6},
        "reloop2_topk": {"samples": 64},
    }  # fmt: skip
    measured = {f"q_{one}": {"use": "quality", "ranker": one, "ring": 64, "rank_budget": 30.0} for one in rankers}
    table = {"activity": {"window_s": 20.0}, **rankers, **measured}
    with World(tmp_path, [builtin], table, backends={"encoder": {"use": "hashing"}}) as world:
        for one in shop(200, 3):
            world.clock.advance(1.0)
            world.send(*one)
        world.fold()
        assert world.ledger.dead_letters(world.workspace) == []
        found = [ranking(world, name=name) for name in measured]
        assert len({(one.positives, one.lists, one.items) for one in found}) == 1  # the same events are drawn
        assert found[0].positives > 10
        assert len({one.ndcg_at_10 for one in found}) > 4
        for verdict in world.verify().values():
            assert verdict.equal, verdict.differences


def test_why_nothing_is_ranked_is_said(tmp_path: Path) -> None:
    def told(name: str, **quality: Any) -> tuple[int, str, int]:
        with World(tmp_path / name, [builtin], policies(**quality)) as world:
            for k in range(40):
                world.send("interaction.observed", {"user_id": "u", "item_id": f"i{k}", "action": "like"})
                world.fold()
            return ranking(world).lists, ranking(world).why, len(world.store("quality", "named"))

    assert told("off", rank_budget=0.0) == (0, "rank_budget is 0", 0)
    lists, why, named = told("limit", rank_limit=12)
    assert lists == 13, "as long as there were no more"
    assert (why, named) == ("the catalogue has 13 items or more, and rank_limit is 12", 13)
    assert told("rare", rank_budget=1e-9)[:2] == (
        0,
        "none yet: one example in about 140,000,000,000 is drawn (rank_budget)",
    )
    with pytest.raises(ConfigError, match="rank_budget is -1"):
        QualityConfig(rank_budget=-1)


def test_only_the_last_rankings_are_kept(tmp_path: Path) -> None:
    with World(tmp_path, [builtin], policies(max_rankings=3)) as world:
        for k in range(30):
            world.send("interaction.observed", {"user_id": f"u{k}", "item_id": f"i{k}", "action": "like"})
            world.fold()
        found = ranking(world)
        assert (found.positives, found.lists) == (30, 3)
        assert found.coverage < 30 / 29  # ten items or a few more came first in the last three


def test_the_cost_of_an_example_does_not_grow_with_the_catalogue() -> None:
    for items in (10, 1000, 20_000):
        share = share_of(items, 1, 50.0)
        assert share * items < 50
        assert np.mean([draw(seq) < share for seq in range(200_000)]) == pytest.approx(min(share, 1), rel=0.15)


def meet(items: Sequence[int], mass: Any) -> list[int]:
    """The deciles of examples, by the kernel, one after the other."""
    met, found = np.zeros((2 * 65536 + 1, 1), np.int64), []
    for item in items:
        rows = np.array([65536 + item, 0, 2 * 65536])
        found.append(int(_kernels_quality.meet(met, rows, 5, mass)[1][0]))
    return found


def test_deciles_have_equal_mass_of_what_came_before_rarest_first() -> None:
    rng = np.random.default_rng(4)
    names = rng.permutation(65536)[:2000]
    items = [int(names[int(2000 * rng.random() ** 3)]) for _ in range(30_000)]
    mass = np.zeros(CLASSES, np.int64)
    deciles = meet(items, mass)
    assert mass.sum() == len(items)
    counts, before = Counter[int](), []
    for item in items:
        before.append(counts[item])
        counts[item] += 1
    assert {decile for decile, count in zip(deciles, before, strict=True) if count == 0} == {0}
    late = np.array(deciles[15_000:])
    shares = np.bincount(late, minlength=10) / len(late)
    assert shares.sum() == 1
    assert (shares > 0.06).all(), shares
    assert (shares < 0.14)[1:].all(), shares
    assert shares[0] < 0.2  # items met for the first time are here, too
    means = [np.mean(np.array(before[15_000:])[late == d]) for d in range(10)]
    assert means == sorted(means)


def test_deciles_are_those_of_a_sort_of_all_items() -> None:
    """Against the definition: where an item's examples lie when all items are sorted by how often they were met."""
    rng = np.random.default_rng(5)
    items = [int(300 * rng.random() ** 2) * 200 for _ in range(6000)]
    deciles = meet(items, np.zeros(CLASSES, np.int64))
    counts, off = Counter[int](), []
    for n, (item, found) in enumerate(zip(items, deciles, strict=True)):
        if n > 3000 and n % 10 == 0:
            ahead = sum(one for key, one in counts.items() if (one, key) < (counts[item], item))
            off.append(abs(min(int(10 * (ahead + counts[item] / 2) / n), 9) - found))
        counts[item] += 1
    assert max(off) <= 1
    assert np.mean(off) < 0.25
