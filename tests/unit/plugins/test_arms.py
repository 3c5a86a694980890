"""What is learned in a live A/B counts for an arm as far as that arm shows such things itself (arXiv 2310.17496)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest

from streamfold.core import Example
from streamfold.core.stores import open_store
from streamfold.plugins._codes import coded_examples
from streamfold.plugins.activity import Activity, ActivityConfig
from streamfold.plugins.count_stack import CountStack, CountStackConfig

T0 = 1_700_000_000_000_000
S = 1_000_000
CONFIG = ActivityConfig(window_s=60.0, late_s=600.0)
ARM = {"experiment": "e1", "share": 0.3, "candidate": "new", "live": ["old"]}


class Fold:
    """``activity`` folded as a member of a stack."""

    def __init__(self, bench: Any, make_event: Any, stack: str) -> None:
        self.bench, self._make, self._seq = bench(Activity(CONFIG)), make_event, 0
        self.bench.stores.stack = stack

    def __call__(self, type_: str, at_s: float, **data: Any) -> list[Example]:
        self._seq += 1
        event = self._make(self._seq, type_, T0 + int(at_s * S), **data)
        self.bench.stores.now_us = event.recorded_us
        examples = list(self.bench.policy.joined(event, self.bench.stores, event.recorded_us).examples)
        self.bench.send(event)
        return examples

    def show(self, at_s: float, exposure: str, *items: str, arm: str | None, user: str = "u", **more: Any) -> None:
        rows = [{"item_id": one, "rank": n, "score": 0.5} for n, one in enumerate(items, 1)]
        arms = None if arm is None else [{**ARM, "arm": arm, **more}]
        self("exposure.recorded", at_s, exposure_id=exposure, kind="recommend", items=rows, user_id=user, arms=arms)

    def click(self, at_s: float, exposure: str, item: str, user: str = "u") -> list[Example]:
        return self("interaction.observed", at_s, user_id=user, item_id=item, action="click", exposure_id=exposure)


Make = Callable[[str], Fold]


@pytest.fixture
def fold(bench: Any, make_event: Any) -> Make:
    return lambda stack: Fold(bench, make_event, stack)


def test_what_both_show_weighs_the_share_and_what_one_shows_is_learned_by_that_one(fold: Make) -> None:
    folds = {stack: fold(stack) for stack in ("new", "old", "another")}
    for n in range(200):
        candidate = n % 10 < 3
        for one in folds.values():
            items = ("both", "mine" if candidate else "theirs")
            one.show(n, f"x{n}", *items, arm="candidate" if candidate else "live", user=f"u{n}")
    weights: dict[str, dict[str, float]] = {}
    for stack, one in folds.items():
        one.show(200, "last", "both", "mine", "theirs", "never", arm="live", user="z")
        told = [
            example for item in ("both", "mine", "theirs", "never") for example in one.click(201, "last", item, "z")
        ]
        weights[stack] = {example.item: example.weight for example in told}
    new, old = weights["new"], weights["old"]
    assert weights["another"] == dict.fromkeys(("both", "mine", "theirs", "never"), 1.0)
    for item, weight in new.items():
        assert old[item] == pytest.approx(1 - weight)
    assert new["never"] == pytest.approx(0.3)  # nothing is known of it but the share
    assert new["both"] == pytest.approx(0.3, abs=0.1)
    assert new["mine"] > 0.85
    assert new["theirs"] < 0.1


def test_what_a_user_is_told_by_counts_with_the_item(fold: Make) -> None:
    one = fold("new")
    for n in range(300):
        candidate, trait = n % 2 == 0, ("north", "south")[n % 4 // 2]
        one("user.upserted", n, user_id=f"u{n}", properties={"where": trait})
        # the candidate shows a to the north and b to the south, the other one the reverse
        item = "a" if candidate == (trait == "north") else "b"
        one.show(n, f"x{n}", item, arm="candidate" if candidate else "live", user=f"u{n}", share=0.5)
    for trait, more in (("north", "a"), ("south", "b")):
        one("user.upserted", 300, user_id=trait, properties={"where": trait})
        one.show(300, f"last-{trait}", "a", "b", arm="live", user=trait, share=0.5)
        weights = {item: one.click(301, f"last-{trait}", item, trait)[-1].weight for item in ("a", "b")}
        assert weights.pop(more) > 0.7
        assert max(weights.values()) < 0.3


def test_a_weight_stays_with_the_exposure_whatever_comes_of_it_and_when(fold: Make) -> None:
    one = fold("new")
    one.show(0, "x", "a", "b", "c", arm="candidate")
    liked = one.click(1, "x", "a")
    passed = one("interaction.observed", 61, user_id="v", item_id="z", action="view")
    late = one.click(62, "x", "b")
    one("interaction.observed", 63, user_id="w", item_id="q", action="click", exposure_id="y")  # before its exposure
    assert [(e.item, e.label, e.swaps, e.weight) for e in (*liked, *passed, *late)] == [
        ("a", 1.0, False, pytest.approx(0.3)),
        ("b", 0.0, False, pytest.approx(0.3)),
        ("c", 0.0, False, pytest.approx(0.3)),
        ("b", 1.0, True, pytest.approx(0.3)),
    ]
    organic = one("interaction.observed", 64, user_id="u", item_id="q", action="click")
    assert [e.weight for e in organic] == [1.0]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_shares_that_another_ranker_sends_need_not_make_sense(fold: Make, share: float) -> None:
    one = fold("new")
    one.show(0, "x", "a", arm="candidate", share=share)
    assert one.click(1, "x", "a")[0].weight == pytest.approx(share, abs=1e-5)


@pytest.mark.parametrize("arm", [None, {"weighted": False}, {"live": ["new"]}], ids=["none", "unweighted", "itself"])
def test_without_an_experiment_or_weighting_all_count_in_full(fold: Make, arm: dict[str, Any] | None) -> None:
    one, plain = fold("new"), fold("")
    for n in range(20):
        one.show(n, f"x{n}", "a", "b", arm=None if arm is None else "candidate", **(arm or {}))
        plain.show(n, f"x{n}", "a", "b", arm=None)
        assert one.click(n, f"x{n}", "a") == plain.click(n, f"x{n}", "a")
    assert one.bench.fingerprint() == plain.bench.fingerprint()


def test_an_arm_that_shares_data_learns_as_if_it_had_its_own(fold: Make, tmp_path: Any) -> None:
    """The candidate shows each user what fits; the other one anything: what they find out of the same items differs.

    Asked of users of whom nothing is known, an item's score is how it does where it is shown. Each arm's weighted
    estimates are near those of a ranker that saw that arm's exposures alone; unweighted ones mix both arms.
    """
    rng = np.random.default_rng(11)
    stacks = {
        "new": fold("new"),
        "old": fold("old"),
        "shared": fold("another"),
        "candidate": fold("a"),
        "live": fold("b"),
    }
    learned = {name: Item(tmp_path / name) for name in stacks}
    items = [f"i{n}" for n in range(20)]
    for name in stacks:
        for n, item in enumerate(items):
            stacks[name]("item.upserted", 0, item_id=item, properties={"kind": n % 2})
    for n in range(1500):
        segment, user = int(rng.integers(2)), f"u{n}"
        arm = "candidate" if rng.random() < 0.3 else "live"
        fits = rng.random() < (0.95 if arm == "candidate" else 0.5)
        item = items[2 * int(rng.integers(10)) + (segment if fits else 1 - segment)]
        likes = bool(rng.random() < (0.8 if fits else 0.2))
        for name in ("new", "old", "shared", arm):
            one = stacks[name]
            found = one("user.upserted", n, user_id=user, properties={"segment": segment})
            one.show(n, f"x{n}", item, arm=arm, user=user)
            found = (
                one.click(n, f"x{n}", item, user)
                if likes
                else one("feedback.given", n, exposure_id=f"x{n}", item_id=item, value=-1.0, user_id=user)
            )
            learned[name].learn(found)
    said = {name: one.scores(items) for name, one in learned.items()}

    def off(name: str, alone: str) -> float:
        return float(np.abs(said[name] - said[alone]).mean())

    for weighted, alone in (("new", "candidate"), ("old", "live")):
        assert off(weighted, alone) < off("shared", alone) / 2, (weighted, off(weighted, alone), off("shared", alone))
    apart = {name: float(said[name].mean()) for name in said}
    truth = apart["candidate"] - apart["live"]
    assert truth > 0.15  # how much better the candidate is where each is alone
    assert apart["new"] - apart["old"] == pytest.approx(truth, rel=0.4)
    for one in learned.values():
        one.close()


class Item:
    """A ranker that learns what it is told of items, not of whom they are shown to."""

    def __init__(self, folder: Any) -> None:
        self._policy = CountStack(CountStackConfig(ids=4096, crosses=4096))
        folder.mkdir()
        self._stores = {one.name: open_store(one, folder=folder, side="both") for one in self._policy.stores}

    def learn(self, examples: Iterable[Example]) -> None:
        for one in examples:
            self._policy.learn([one._replace(user_tokens=(), item_tokens=())], self._stores)

    def scores(self, items: Iterable[str]) -> Any:
        asked = [Example(10**9, n, "u:nobody", item, 0.0, 0) for n, item in enumerate(items)]
        return self._policy.predict(coded_examples(asked), self._stores).scores

    def close(self) -> None:
        for store in self._stores.values():
            store.close()
