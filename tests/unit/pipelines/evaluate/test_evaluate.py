"""The evaluation as a whole: what is scored with which state, against loops made by hand."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from streamfold.core import Example
from streamfold.core.errors import ConfigError
from streamfold.core.quality import ndcg_of_one
from streamfold.core.settings import Settings
from streamfold.pipelines.evaluate import NothingToTest, Options, Source, evaluate
from streamfold.pipelines.evaluate.baselines import ItemKnn, Popularity, UserItemMean
from streamfold.pipelines.evaluate.examples import Slices, TestSet, collect, slices
from streamfold.pipelines.evaluate.run import plan
from streamfold.pipelines.evaluate.stack import PolicyFailed, Stack

Given = tuple[str, int, dict[str, Any]]
MakeSource = Callable[[Iterable[Given]], Source]
DAY = 86_400
QUICK = Options(policies=("item_taste",), draws=0, sample=0)


def methods(body: dict[str, Any]) -> dict[str, Any]:
    return {one["name"]: one for one in body["methods"]}


def test_each_example_is_scored_before_it_is_learned(
    settings: Settings, source: MakeSource, rated: list[Given]
) -> None:
    body = evaluate(settings, source(rated), QUICK)
    liked, count = Counter[str](), Counter[str]()
    labels, scores = [], []
    for n, (_, _, data) in enumerate(rated):
        item, label = data["item_id"], float(data["value"] >= 4)
        if n >= 100:
            labels.append(label)
            scores.append((liked[item] + 1) / (count[item] + 2))
        liked[item] += int(label)
        count[item] += 1
    found = methods(body)["item_taste"]
    assert (body["events"], body["tested"], found["events"]) == (1000, 900, 900)
    assert found["auc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-6)
    assert found["logloss"] == pytest.approx(log_loss(labels, scores), abs=1e-6)
    assert [slot["events"] for slot in found["over_time"]] == [90] * 10
    assert found["over_time"][3]["auc"] == pytest.approx(roc_auc_score(labels[270:360], scores[270:360]), abs=1e-6)


def test_sessions_are_scored_with_the_state_before_they_began(
    settings: Settings, source: MakeSource, rated: list[Given]
) -> None:
    body = evaluate(settings, source(rated), dataclasses.replace(QUICK, warm_up=0.0))
    sessions: dict[str, list[int]] = {}
    last: dict[str, int] = {}
    groups: list[list[int]] = []
    for n, (_, at_s, data) in enumerate(rated):
        user = data["user_id"]
        if user not in sessions or at_s - last[user] > DAY:
            sessions[user] = []
            groups.append(sessions[user])
        sessions[user].append(n)
        last[user] = at_s
    total = weight = 0.0
    for members in groups:
        before = [data for _, _, data in rated[: members[0]]]
        liked = Counter(data["item_id"] for data in before if data["value"] >= 4)
        count = Counter(data["item_id"] for data in before)
        labels = [rated[n][2]["value"] >= 4 for n in members]
        scores = [(liked[i] + 1) / (count[i] + 2) for i in (rated[n][2]["item_id"] for n in members)]
        if 0 < sum(labels) < len(labels):
            total += len(labels) * roc_auc_score(labels, scores)
            weight += len(labels)
    assert 50 < len(groups) < 1000
    assert methods(body)["item_taste"]["user_auc"] == pytest.approx(total / weight, abs=1e-6)
    assert body["compared"]["events"] == weight


def test_who_cannot_tell_items_apart_scores_exactly_one_half_per_user(
    settings: Settings, source: MakeSource, rated: list[Given]
) -> None:
    found = methods(evaluate(settings, source(rated), dataclasses.replace(QUICK, policies=("user_taste",))))
    assert found["user_taste"]["user_auc"] == found["user-only"]["user_auc"] == found["constant"]["user_auc"] == 0.5
    assert found["user_taste"]["auc"] > 0.6
    assert found["user × item mean"]["user_auc"] > 0.6


def test_a_label_is_not_known_before_it_is_tested(settings: Settings, source: MakeSource) -> None:
    rng = np.random.default_rng(1)
    liked = rng.random(400) < 0.5
    given = [acted(n * 60, f"u{n % 7}", f"i{n}", "like" if one else "skip") for n, one in enumerate(liked)]
    found = methods(evaluate(settings, source(given), dataclasses.replace(QUICK, policies=("pair_taste",))))
    assert found["pair_taste"]["auc"] == 0.5  # it remembers pairs, and each comes once


def test_a_policy_scores_the_same_whoever_is_beside_it(
    settings: Settings, source: MakeSource, rated: list[Given]
) -> None:
    options = dataclasses.replace(QUICK, policies=("item_taste",), sample=40, baselines=False)
    alone = evaluate(settings, source(rated), options)
    beside = evaluate(settings, source(rated), dataclasses.replace(options, policies=("user_taste", "item_taste")))
    assert methods(beside)["item_taste"] == methods(alone)["item_taste"]
    again = evaluate(settings, source(rated), options)
    assert again == alone


def test_ndcg_is_measured_among_all_items_the_user_has_not_met(
    settings: Settings, source: MakeSource, rated: list[Given]
) -> None:
    catalogue = [("item.upserted", 0, {"item_id": f"j{n}"}) for n in range(25)]
    gone = [("item.upserted", 1, {"item_id": "gone"}), ("item.deleted", 2, {"item_id": "gone"})]
    hidden = [("item.upserted", 3, {"item_id": "hidden", "available": False})]
    body = evaluate(
        settings, source([*catalogue, *gone, *hidden, *rated]), dataclasses.replace(QUICK, sample=10**6, warm_up=0.5)
    )
    liked, count = Counter[str](), Counter[str]()
    items, met = {f"j{n}" for n in range(25)}, defaultdict[str, set[str]](set)
    found, listed = [], 0
    for n, (_, _, data) in enumerate(rated):
        user, item, label = data["user_id"], data["item_id"], data["value"] >= 4
        if n >= 500 and label and item not in met[user]:
            others = [(liked[i] + 1) / (count[i] + 2) for i in (items - met[user]) - {item}]
            found.append(ndcg_of_one((liked[item] + 1) / (count[item] + 2), np.array(others)))
            listed += 1
        liked[item] += int(label)
        count[item] += 1
        items.add(item)
        met[user].add(item)
    assert body["sample"] == listed > 20
    assert body["items"] == len(items) == 85
    assert methods(body)["item_taste"]["ndcg_at_10"] == pytest.approx(np.mean(found), abs=1e-6)
    assert 0 < methods(body)["item_taste"]["coverage"] <= 1


def test_a_sample_is_drawn_by_the_seed(settings: Settings, source: MakeSource, rated: list[Given]) -> None:
    one, same, other = (
        evaluate(settings, source(rated), dataclasses.replace(QUICK, sample=30, seed=seed)) for seed in (1, 1, 2)
    )
    assert one == same
    assert one["sample"] == other["sample"] == 30
    assert methods(one)["item_taste"]["ndcg_at_10"] != methods(other)["item_taste"]["ndcg_at_10"]


# -- exposures --------------------------------------------------------------------------------------------------------
def shown(at_s: int, exposure: str, user: str | None, items: list[str], **more: Any) -> Given:
    listed = [
        {"rank": rank, "item_id": item, "score": more.get("score", 0.5), "propensity": more.get("propensity")}
        for rank, item in enumerate(items, 1)
    ]
    who = {} if user is None else {"user_id": user}
    return "exposure.recorded", at_s, {"exposure_id": exposure, "kind": "recommend", "items": listed, **who}


def acted(at_s: int, user: str, item: str, action: str = "click", **more: Any) -> Given:
    return "interaction.observed", at_s, {"user_id": user, "item_id": item, "action": action, **more}


def collected(settings: Settings, source: Source) -> TestSet:
    with Stack(settings, ["activity"]) as stack:
        return collect(stack, "activity", source.events(stack.registry.event_types, stack.handles))


def test_what_was_shown_is_tested_with_its_score_from_when_it_was_shown(settings: Settings, source: MakeSource) -> None:
    given = [
        shown(100, "x1", "ada", ["a", "b"]),
        acted(200, "bob", "b"),
        acted(210, "cyd", "b"),
        acted(300, "ada", "b"),
        acted(4000, "bob", "a", "dislike"),  # the window of x1 is over: a was passed over
    ]
    options = dataclasses.replace(QUICK, warm_up=0.0, policies=("item_taste",))
    found = collected(settings, source(given))
    assert [(e.user, e.item, label) for e, label in zip(found.examples, found.labels, strict=True)] == [
        ("u:bob", "b", 1.0), ("u:cyd", "b", 1.0), ("u:ada", "b", 1.0), ("u:ada", "a", 0.0), ("u:bob", "a", 0.0),
    ]  # fmt: skip
    body = evaluate(settings, source(given), options)
    # b had been liked twice when ada liked it; at the exposure nobody knew it, so both score one half
    assert methods(body)["item_taste"]["user_auc"] == 0.5
    assert body["exposures"] == 1
    expected = [1 / 2, 2 / 3, 1 / 2, 1 / 2, 1 / 2]
    assert methods(body)["item_taste"]["logloss"] == pytest.approx(log_loss([1, 1, 1, 0, 0], expected), abs=1e-6)
    assert methods(body)["served"]["events"] == 2
    assert methods(body)["served"]["logloss"] == pytest.approx(np.log(2), abs=1e-6)


def test_a_late_positive_replaces_the_negative_that_stood_for_it(settings: Settings, source: MakeSource) -> None:
    given = [
        shown(0, "x1", "ada", ["a", "b"]),
        acted(2000, "bob", "c"),  # closes the window
        acted(2100, "ada", "a"),
    ]
    found = collected(settings, source(given))
    assert [(e.item, label) for e, label in zip(found.examples, found.labels, strict=True)] == [
        ("a", 1.0), ("b", 0.0), ("c", 1.0),
    ]  # fmt: skip
    assert [e.swaps for e in found.learned] == [False, False, False, True]
    assert found.group.tolist() == [0, 0, 1]


def test_sessions_end_after_a_day_without_anything(settings: Settings, source: MakeSource) -> None:
    given = [
        acted(0, "ada", "a"), acted(10, "bob", "a"), acted(DAY, "ada", "b"), acted(2 * DAY + 1, "ada", "c"),
        acted(2 * DAY + 2, "ada", "d", "view"), acted(2 * DAY + 3, "ada", "e"),
    ]  # fmt: skip
    assert collected(settings, source(given)).group.tolist() == [0, 1, 0, 2, 2]


# -- off-policy -------------------------------------------------------------------------------------------------------
def logged(n: int, *, propensity: float | None) -> Iterable[Given]:
    """One item of four shown at random; a is liked by 3 in 4, the others by 1 in 4."""
    rng = np.random.default_rng(4)
    yield from (("item.upserted", 0, {"item_id": item}) for item in "abcd")
    for k in range(n):
        item = "abcd"[rng.integers(4)]
        yield shown(10 + 60 * k, f"x{k}", f"u{k}", [item], propensity=propensity)
        if rng.random() < (0.75 if item == "a" else 0.25):
            yield acted(20 + 60 * k, f"u{k}", item, exposure_id=f"x{k}")
    yield acted(10 + 60 * n + 3600, "end", "a", "view")


def test_what_a_policy_would_earn_is_estimated_from_logged_propensities(settings: Settings, source: MakeSource) -> None:
    rows = evaluate(settings, source(logged(1500, propensity=0.25)), dataclasses.replace(QUICK, warm_up=0.2))[
        "off_policy"
    ]
    assert [row["policy"] for row in rows] == ["as logged", "item_taste"]
    assert rows[0]["samples"] == 1200
    assert rows[0]["ips"]["value"] == rows[0]["snips"]["value"]
    assert 0.33 < rows[0]["ips"]["value"] < 0.42
    for name in ("ips", "snips", "dr"):
        assert rows[1][name]["low"] <= 0.75 <= rows[1][name]["high"]
        assert rows[1][name]["low"] > 0.5
    assert rows[1]["largest_weight"] == 4.0


def test_without_support_or_propensities_nothing_is_estimated(settings: Settings, source: MakeSource) -> None:
    options = dataclasses.replace(QUICK, warm_up=0.2)
    assert evaluate(settings, source(logged(300, propensity=None)), options)["off_policy"] == []
    few = evaluate(settings, source(logged(200, propensity=0.25)), options)["off_policy"]
    assert "effective samples" in few[1]["refused"]
    sure = evaluate(settings, source(logged(600, propensity=1.0)), options)["off_policy"]
    assert "no support" in sure[1]["refused"]


# -- slices, plans ----------------------------------------------------------------------------------------------------
def test_slices_count_what_was_there_before() -> None:
    pairs = ["ax", "ay", "bx", "ax", "cz", "cx"]
    about = slices([Example(n, 0, user, item, 1.0, n) for n, (user, item) in enumerate(pairs)])
    assert about.user_before.tolist() == [0, 1, 0, 2, 0, 1]
    assert about.item_before.tolist() == [0, 0, 1, 2, 0, 3]
    assert about.met_before.tolist() == [False, False, False, True, False, False]


def test_deciles_of_items_have_equal_mass_rarest_first() -> None:
    rng = np.random.default_rng(0)
    items = np.minimum((rng.pareto(0.8, 5000) * 3).astype(int), 400)
    about = slices([Example(n, 0, "u", str(item), 1.0, n) for n, item in enumerate(items)])
    counts = np.bincount(items)
    for d in range(9):
        mine, more = items[about.decile == d], items[about.decile == d + 1]
        if len(mine) and len(more):
            assert counts[mine].max() <= counts[more].min()
    assert np.bincount(about.decile, minlength=10)[:5].tolist() == pytest.approx([500] * 5, rel=0.2)


def test_only_what_a_measure_needs_is_scored(settings: Settings, source: MakeSource) -> None:
    given = [acted(0, "ada", "a"), acted(1, "ada", "b"), acted(2, "bob", "a"), acted(3, "bob", "b", "skip")]
    test = collected(settings, source(given))
    about: Slices = slices(test.examples)
    made = plan(test, about, np.ones(4, bool), sample=0, seed=0)
    assert list(made.members) == [1]  # ada liked both: nothing to compare
    assert sorted(i for step in made.steps.values() for i in step.alone) == [0, 1, 2, 3]


# -- baselines --------------------------------------------------------------------------------------------------------
def learned(baseline: Any, told: Iterable[tuple[str, str, float]]) -> Any:
    for n, (user, item, label) in enumerate(told):
        baseline.learn(Example(n, 0, user, item, label, n))
    return baseline


def test_baselines_are_what_they_say() -> None:
    told = [("u", "a", 1.0), ("u", "b", 1.0), ("v", "a", 1.0), ("v", "b", 1.0), ("v", "c", 1.0), ("w", "c", 0.0)]
    assert learned(Popularity(), told).rank("x", "abcd").tolist() == [2, 2, 1, 0]
    knn = learned(ItemKnn(), [*told, ("x", "a", 1.0)])
    assert knn.rank("x", ["b", "c", "d"]) == pytest.approx([2 / np.sqrt(3 * 2), 1 / np.sqrt(3), 0.0])
    assert knn.rank("nobody", ["a", "b"]).tolist() == [0.0, 0.0]
    means = learned(UserItemMean(), told)
    prior = 6 / 8  # five of six, and one of two before
    odds = lambda p: np.log(p / (1 - p))  # noqa: E731  # shorter than a function
    z = odds((0 + 4 * prior) / 5) + odds((1 + 6 * prior) / 8) - odds(prior)
    assert means.rank("w", ["c"])[0] == pytest.approx(1 / (1 + np.exp(-z)))


def test_a_late_positive_takes_the_negative_back_in_baselines() -> None:
    late, plain = learned(UserItemMean(), [("u", "a", 0.0)]), learned(UserItemMean(), [("u", "a", 1.0)])
    late.learn(Example(9, 0, "u", "a", 1.0, 0, swaps=True))
    assert late.rank("u", ["a", "b"]).tolist() == plain.rank("u", ["a", "b"]).tolist()


# -- what is refused --------------------------------------------------------------------------------------------------
def test_what_cannot_be_evaluated_is_said(settings: Settings, source: MakeSource, rated: list[Given]) -> None:
    with pytest.raises(ConfigError, match="did you mean 'item_taste'"):
        evaluate(settings, source(rated), dataclasses.replace(QUICK, policies=("item_tast",)))
    with pytest.raises(ConfigError, match="'trending' ranks no items"):
        evaluate(settings, source(rated), dataclasses.replace(QUICK, policies=("trending",)))
    views = [acted(n, "ada", f"i{n}", "view") for n in range(5)]
    with pytest.raises(NothingToTest, match=r"5 interaction.observed.*\[policies.activity\]"):
        evaluate(settings, source(views), QUICK)
    with pytest.raises(NothingToTest, match="past the warm-up"):
        evaluate(settings, source(rated), dataclasses.replace(QUICK, first=10**6))


def test_a_policy_that_fails_is_named_with_the_event(settings: Settings, source: MakeSource) -> None:
    given = [acted(n, "ada", item) for n, item in enumerate(["a", "stone", "b"])]
    with pytest.raises(PolicyFailed, match=r"'broken_taste' failed at event 'e1' .*ValueError: cannot chew"):
        evaluate(settings, source(given), dataclasses.replace(QUICK, policies=("broken_taste",)))


def test_a_score_that_is_no_number_is_refused(settings: Settings, source: MakeSource) -> None:
    given = [acted(n, "ada", item) for n, item in enumerate(["a", "stone", "b"])]
    with pytest.raises(PolicyFailed, match=r"'lost_taste' scored 'stone' for 'u:ada' with nan"):
        evaluate(settings, source(given), dataclasses.replace(QUICK, policies=("lost_taste",), warm_up=0.0))


def test_two_policies_with_other_labels_are_not_compared(
    settings: Settings, tastes: ModuleType, source: MakeSource, rated: list[Given]
) -> None:
    strict = settings.model_copy(
        update={"policies": {"activity": {}, "strict": {"use": "activity", "like_from": 5}, "item_taste": {}}}
    )
    with pytest.raises(ConfigError, match="different examples"):
        evaluate(strict, source(rated), dataclasses.replace(QUICK, policies=("item_taste", "strict")))
    harder = settings.model_copy(update={"policies": {"activity": {"like_from": 6}, "item_taste": {}}})
    assert evaluate(harder, source(rated), QUICK)["positives"] == 0.0
