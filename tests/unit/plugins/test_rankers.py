"""Rankers learn per example, exactly; each kernel equals a readable twin; what is new gets sensible scores."""

from __future__ import annotations

import math
import random
import runpy
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamfold.core import ConfigError, Example, Policy, RankRequest
from streamfold.core.stores import open_store
from streamfold.core.testing.folded import Folded
from streamfold.plugins import builtin
from streamfold.plugins._codes import coded_examples
from streamfold.plugins.count_stack import CountStack, CountStackConfig
from streamfold.plugins.deepfm import Deepfm, DeepfmConfig
from streamfold.plugins.ensemble import Ensemble, EnsembleConfig
from streamfold.plugins.factorization import Factorization, FactorizationConfig
from streamfold.plugins.implicit_ftrl import ImplicitFtrl, ImplicitFtrlConfig

BESIDE = runpy.run_path(str(Path(__file__).with_name("ranker_twins.py")))
TorchDeepfm, start = BESIDE["TorchDeepfm"], BESIDE["start"]
ROOMY: dict[str, Callable[[], Any]] = {
    "count_stack": lambda: CountStack(CountStackConfig(ids=4096, crosses=1 << 14)),
    "factorization": lambda: Factorization(FactorizationConfig(rows=4096)),
    "deepfm": lambda: Deepfm(DeepfmConfig(rows=4096)),
    "implicit_ftrl": lambda: ImplicitFtrl(ImplicitFtrlConfig(rows=1 << 14)),
}
FULL: dict[str, Callable[[], Any]] = {
    "count_stack": lambda: CountStack(CountStackConfig(ids=64, crosses=128)),
    "factorization": lambda: Factorization(FactorizationConfig(rows=64)),
    "deepfm": lambda: Deepfm(DeepfmConfig(rows=64)),
    "implicit_ftrl": lambda: ImplicitFtrl(ImplicitFtrlConfig(rows=128)),
}
IN_FLOAT32 = ("factorization", "deepfm")
"""Rankers whose vectors have so few digits."""
Open = Callable[[Policy], dict[str, Any]]


@pytest.fixture
def open_stores(tmp_path: Path) -> Iterator[Open]:
    opened: list[Any] = []

    def stores(policy: Policy) -> dict[str, Any]:
        made = {one.name: open_store(one, folder=tmp_path, side="both") for one in policy.stores}
        opened.extend(made.values())
        return made

    yield stores
    for store in opened:
        store.close()


def examples(n: int, seed: int = 1, *, swaps: bool = True) -> list[Example]:
    """Users like genres; some have traits; a few examples swap an earlier one."""
    rng = random.Random(seed)
    genres = ["action", "drama", "noir", "war"]
    of_item = {i: tuple(sorted(rng.sample(genres, rng.randrange(0, 4)))) for i in range(30)}
    of_user = {u: tuple(sorted(rng.sample(["old", "north"], rng.randrange(0, 3)))) for u in range(20)}
    made: list[Example] = []
    negative: list[Example] = []
    for seq in range(n):
        if swaps and negative and rng.random() < 0.1:
            late = negative.pop(rng.randrange(len(negative)))
            made.append(late._replace(seq=seq, label=1.0, swaps=True))
            continue
        u, i = rng.randrange(20), rng.randrange(30)
        likes = 0.3 + 0.4 * (genres[u % 4] in of_item[i])
        made.append(Example(seq, 0, f"u:{u}", f"i{i}", float(rng.random() < likes), seq, of_user[u], of_item[i]))
        negative += made[-1:] if not made[-1].label else []
    return made


def contents(stores: dict[str, Any]) -> dict[str, Any]:
    return {name: store.fingerprint() for name, store in stores.items()}


@pytest.mark.parametrize("size", [7, 1000])
@pytest.mark.parametrize("tables", [ROOMY, FULL], ids=["roomy", "full"])
@pytest.mark.parametrize("name", ROOMY)
def test_a_batch_equals_the_loop_bit_for_bit(
    name: str, tables: dict[str, Callable[[], Any]], size: int, open_stores: Open
) -> None:
    rows = examples(400)
    one, many = tables[name](), tables[name]()
    alone, together = open_stores(one), open_stores(many)
    scores = [float(one.learn([row], alone)[0]) for row in rows]
    batches = [many.learn(rows[n : n + size], together) for n in range(0, len(rows), size)]
    assert np.concatenate(batches).tolist() == scores
    assert contents(alone) == contents(together)


@pytest.mark.parametrize("name", ROOMY)
def test_an_example_moves_the_score_as_far_as_it_counts(name: str, open_stores: Open) -> None:
    rows, said = examples(120), []
    liked = Example(1000, 0, "u:1", "i3", 1.0, 1000, ("old",), ("noir",))
    for weight in (0.0, 0.25, 0.5, 1.0):
        policy = ROOMY[name]()
        stores = open_stores(policy)
        policy.learn(rows, stores)
        before = float(policy.predict(coded_examples([liked]), stores).scores[0])
        policy.learn([liked._replace(weight=weight)], stores)
        said.append(float(policy.predict(coded_examples([liked]), stores).scores[0]))
        assert weight or said == [before]
    assert said == sorted(set(said))


@pytest.mark.parametrize("name", ROOMY)
def test_a_batch_of_examples_that_count_in_part_equals_the_loop(name: str, open_stores: Open) -> None:
    rows = [row._replace(weight=(seq % 5) / 4) for seq, row in enumerate(examples(200))]
    one, many = ROOMY[name](), ROOMY[name]()
    alone, together = open_stores(one), open_stores(many)
    for row in rows:
        one.learn([row], alone)
    many.learn(rows, together)
    assert contents(alone) == contents(together)


@pytest.mark.parametrize("tables", [ROOMY, FULL], ids=["roomy", "full"])
@pytest.mark.parametrize("name", ROOMY)
def test_what_is_written_was_touched_first(name: str, tables: dict[str, Callable[[], Any]], open_stores: Open) -> None:
    policy = tables[name]()
    stores, view = open_stores(policy), open_stores(policy)
    rows = examples(400)
    policy.learn(rows[:150], stores)
    before = contents(stores)
    policy.learn(rows[150:], stores)
    for store in stores.values():
        store.undo()
    assert contents(stores) == before
    for n in range(0, 400, 40):
        policy.learn(rows[n : n + 40], stores)
        for name_, store in stores.items():
            changes = store.drain()
            if changes is not None:
                view[name_].apply(changes)
    assert contents(view) == contents(stores)


@pytest.mark.parametrize("name", ROOMY)
def test_the_score_before_learning_is_the_one_that_predict_gives(name: str, open_stores: Open) -> None:
    policy = ROOMY[name]()
    stores = open_stores(policy)
    for row in examples(200):
        predicted = float(policy.predict(coded_examples([row]), stores).scores[0])
        assert float(policy.learn([row], stores)[0]) == predicted


@pytest.mark.parametrize("name", ROOMY)
def test_the_kernel_equals_a_readable_twin(name: str, open_stores: Open) -> None:
    policy, twin = ROOMY[name](), TWINS[name]()
    rows = examples(600)
    scores = policy.learn(rows, open_stores(policy))
    expected = []
    for row in rows:
        expected.append(twin.score(row))
        twin.learn(row)
    assert scores == pytest.approx(expected, abs=1e-5 if name in IN_FLOAT32 else 1e-9)


def sigmoid(z: float) -> float:
    return 1.0 / (1.0 + math.exp(-z))


def logit(p: float) -> float:
    return math.log(p / (1.0 - p))


def stage(n: float) -> int:
    return 0 if n < 1 else 1 if n < 4 else 2 if n < 16 else 3


class CountTwin:
    """``count_stack`` with dicts."""

    def __init__(self) -> None:
        self.counts: dict[Any, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self.w = [0.0] * 23
        self.w[1] = self.w[2] = 1.0
        self.w[5] = self.w[7] = 0.5
        self.squares = [0.0] * 23

    def odds(self, key: Any, a: float, q: float) -> float:
        s, n = self.counts[key]
        return logit((s + a * q) / (n + a)) - logit(q)

    def shrunk(self, key: Any, a: float, q: float) -> float:
        s, n = self.counts[key]
        return (s + a * q) / (n + a)

    def describe(self, e: Example) -> tuple[float, list[float]]:
        q, u, i = self.shrunk("all", 2.0, 0.5), ("u", e.user), ("i", e.item)
        ts, gs = e.user_tokens, e.item_tokens
        n, m = max(1, len(gs)), max(1, len(ts))
        qu, qi = self.shrunk(u, 4.0, q), self.shrunk(i, 6.0, q)
        nu, ni = self.counts[u][1], self.counts[i][1]
        xu, xi = self.odds(u, 4.0, q), self.odds(i, 6.0, q)
        genres = sum(self.odds(("g", g), 20.0, q) for g in gs) / n
        often_u, often_i = math.log(1 + nu) / 4, math.log(1 + ni) / 4
        new_u, new_i = float(nu == 0), float(ni == 0)
        return logit(q), [
            1.0, xu, xi, self.odds(("window", *u), 2.0, q), self.odds(("window", *i), 3.0, q),
            sum(self.odds((u, g), 3.0, qu) for g in gs) / n,
            genres,
            sum(self.odds((i, t), 6.0, qi) for t in ts) / m,
            sum(self.odds((g, t), 10.0, q) for g in gs for t in ts) / (n * m),
            xu * nu / (nu + 10), xi * ni / (ni + 10), xu * xi,
            often_u, often_i, new_u, new_i, new_u * new_i, xu * often_i, xi * often_u, genres * new_i,
            self.odds((u, stage(ni)), 4.0, qu),
            self.odds((i, stage(nu)), 6.0, qi),
            sum(self.odds((("g", g), stage(nu)), 10.0, q) for g in gs) / n,
        ]  # fmt: skip

    def score(self, e: Example) -> float:
        z, x = self.describe(e)
        return sigmoid(z + sum(a * b for a, b in zip(self.w, x, strict=True)))

    def learn(self, e: Example) -> None:
        d, x = self.score(e) - e.label, self.describe(e)[1]
        likes, more = e.label, 1.0
        if e.swaps:
            d, likes, more = 1.0 - 2.0 * e.label, 2.0 * e.label - 1.0, 0.0
        for k, value in enumerate(x):
            self.squares[k] += (d * value) ** 2
            self.w[k] -= 0.06 * d * value / math.sqrt(1.0 + self.squares[k])
        u, i, genres = ("u", e.user), ("i", e.item), [("g", g) for g in e.item_tokens]
        of_user, of_item = stage(self.counts[u][1]), stage(self.counts[i][1])
        for key in ((u, of_item), (i, of_user), *((g, of_user) for g in genres)):
            row = self.counts[key]
            row[1] += more
            row[0] = min(row[1], max(0.0, row[0] + likes))
        crosses = [(g, t) for g in e.item_tokens for t in e.user_tokens]
        for key in (
            *("all", u, i), *genres, *((u, g) for g in e.item_tokens), *((i, t) for t in e.user_tokens), *crosses
        ):  # fmt: skip
            self.counts[key][0] += likes
            self.counts[key][1] += more
        for key, keeps in ((("window", *u), 0.9), (("window", *i), 0.95)):
            row = self.counts[key]
            if e.swaps:
                row[0] = min(row[1], max(0.0, row[0] + likes))
            else:
                row[0], row[1] = row[0] * keeps + e.label, row[1] * keeps + 1


class FactorTwin:
    """``factorization`` with dicts and vectors."""

    def __init__(self) -> None:
        self.b, self.n = 0.0, defaultdict(int)  # type: ignore[var-annotated]
        self.bias: dict[Any, float] = defaultdict(float)
        self.vectors: dict[Any, Any] = {}

    def sides(self, e: Example) -> list[list[tuple[str, str]]]:
        return [
            [("user", e.user), *(("user_token", t) for t in e.user_tokens)],
            [("item", e.item), *(("item_token", g) for g in e.item_tokens)],
        ]

    def vector(self, keys: list[tuple[str, str]]) -> Any:
        found = [self.vectors.get(key, np.zeros(16)) for key in keys]
        return found[0] + 0.5 * sum(found[1:], np.zeros(16)) / max(1, len(keys) - 1)

    def score(self, e: Example) -> float:
        users, items = self.sides(e)
        biases = sum(self.bias[side[0]] + 0.3 * sum(self.bias[key] for key in side[1:]) for side in (users, items))
        return sigmoid(self.b + biases + float(self.vector(users) @ self.vector(items)))

    def learn(self, e: Example) -> None:
        d = 1.0 - 2.0 * e.label if e.swaps else self.score(e) - e.label
        self.b -= 0.002 * d
        users, items = self.sides(e)
        of_user, of_item = self.vector(users), self.vector(items)
        for role, side, other in ((1, users, of_item), (2, items, of_user)):
            for place, key in enumerate(side):
                if not self.n[key]:
                    self.vectors[key] = 0.1 * start(key, {0: role}.get(place, role + 2), 16)
                self.n[key] += 1
                rate = 0.01 if place else max(0.03, 0.6 / math.sqrt(self.n[key] + 3))
                self.bias[key] -= rate * (d * (0.3 if place else 1.0) + 0.01 * self.bias[key])
                share = 0.5 / (len(side) - 1) if place else 1.0
                self.vectors[key] = self.vectors[key] - 0.06 * (d * share * other + 0.02 * self.vectors[key])


class FtrlTwin:
    """``implicit_ftrl`` with a dict."""

    def __init__(self) -> None:
        self.all = [0.0, 0.0]
        self.rows: dict[Any, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def keys(self, e: Example) -> list[Any]:
        u, i, ts, gs = ("u", e.user), ("i", e.item), e.user_tokens, e.item_tokens
        return [
            *(u, i), *(("g", g) for g in gs), *(("t", t) for t in ts), *((u, g) for g in gs), *((i, t) for t in ts),
            *((g, t) for g in gs for t in ts),
        ]  # fmt: skip

    def weight(self, key: Any) -> float:
        z, n = self.rows[key]
        return -z / ((1.0 + math.sqrt(n)) / 0.5 + 1.0)

    def score(self, e: Example) -> float:
        return sigmoid(logit((self.all[0] + 1) / (self.all[1] + 2)) + sum(self.weight(key) for key in self.keys(e)))

    def learn(self, e: Example) -> None:
        d, likes, more = self.score(e) - e.label, e.label, 1.0
        if e.swaps:
            d, likes, more = 1.0 - 2.0 * e.label, 2.0 * e.label - 1.0, 0.0
        self.all = [self.all[0] + likes, self.all[1] + more]
        for key in self.keys(e):
            row, w = self.rows[key], self.weight(key)
            row[0] += d - (math.sqrt(row[1] + d * d) - math.sqrt(row[1])) / 0.5 * w
            row[1] += d * d


TWINS: dict[str, Callable[[], Any]] = {
    "count_stack": CountTwin,
    "factorization": FactorTwin,
    "deepfm": TorchDeepfm,
    "implicit_ftrl": FtrlTwin,
}


def texts_of(items: list[str]) -> dict[str, Any]:
    """What the texts of two items in three say."""
    rng = np.random.default_rng(2)
    told = rng.normal(size=(len(items), 64)).astype(np.float32) / 8
    return {item: row for item, row in zip(items, told, strict=True) if rng.random() < 0.67}


@pytest.mark.parametrize("told", [{}, texts_of([f"i{n}" for n in range(30)])], ids=["no texts", "texts"])
def test_deepfm_ends_at_the_parameters_that_torch_ends_at(told: dict[str, Any], open_stores: Open) -> None:
    policy, twin = ROOMY["deepfm"](), TorchDeepfm(told)
    stores, rows = open_stores(policy), examples(300)
    for item, text in told.items():
        policy._place(item, text.tobytes(), stores)
    scores = policy.learn(rows, stores)
    expected = []
    for row in rows:
        expected.append(twin.score(row))
        twin.learn(row)
    assert scores == pytest.approx(expected, abs=1e-5)
    for store, (values, squares) in (("layers", twin.layers()), ("content", twin.contents())):
        assert stores[store].values[:, 0] == pytest.approx(values, rel=1e-5, abs=1e-5)
        assert stores[store].values[:, 1] == pytest.approx(squares, rel=1e-5, abs=1e-5)
    moved = [np.count_nonzero(twin.layers()[1]), np.count_nonzero(twin.contents()[1])]
    assert moved[0] > twin.layers()[1].size / 2, "slopes went through both layers"
    assert moved[1] == (twin.contents()[1].size if told else 0), "and to the content where there is any"
    facts, factors = stores["facts"].values, stores["factors"].values
    met = np.flatnonzero(facts[:, 2])
    tags = facts[met, 0].astype(np.int64).tolist()
    assert sorted(tags) == sorted(twin.rows)
    for row, tag in zip(met, tags, strict=True):
        weight, vector, of_weight, of_vector = twin.row(tag)
        assert facts[row, 3:] == pytest.approx([weight, of_weight], abs=1e-5)
        assert factors[row] == pytest.approx(np.stack([vector, of_vector]), abs=1e-5)


def test_a_late_positive_leaves_the_counts_of_an_on_time_one(open_stores: Open) -> None:
    rows = examples(100, swaps=False)
    late = [row._replace(label=0.0) for row in rows[:20]]
    swapped = [row._replace(label=1.0, swaps=True, seq=row.seq + 1000) for row in rows[:20]]
    on_time = [row._replace(label=1.0) for row in rows[:20]]
    policy = ROOMY["count_stack"]()
    one, two = open_stores(policy), open_stores(policy)
    policy.learn([*late, *rows[20:], *swapped], one)
    policy.learn([*on_time, *rows[20:]], two)
    for store, columns in (("ids", [0, 2, 3]), ("crosses", [0, 2, 3])):
        assert one[store].values[:, columns].tolist() == two[store].values[:, columns].tolist()
    assert one["head"].values[2, :2].tolist() == two["head"].values[2, :2].tolist()


@pytest.mark.parametrize("name", ROOMY)
def test_swaps_of_what_was_never_learned_do_no_harm(name: str, open_stores: Open) -> None:
    policy = FULL[name]()
    stores = open_stores(policy)
    rows = [row._replace(swaps=row.seq % 3 == 0) for row in examples(600, swaps=False)]
    assert np.all(np.isfinite(policy.learn(rows, stores)))
    scores = policy.predict(coded_examples(rows), stores).scores
    assert np.all((scores > 0) & (scores < 1))


@pytest.mark.parametrize("name", FULL)
def test_endless_ids_leave_room_for_those_met_often(name: str, open_stores: Open) -> None:
    policy = FULL[name]()
    stores = open_stores(policy)
    size = sum(store.state_bytes() for store in stores.values())
    met = Example(0, 0, "u:often", "liked", 1.0, 0)
    for n in range(2000):
        policy.learn(
            [Example(n, 0, f"u:{n}", f"i{n}", 0.0, 0), met]
            if n % 10 == 0
            else [met._replace(user=f"u:x{n}", item=f"y{n}", label=0.0)],
            stores,
        )
    often = policy.predict(coded_examples([met]), stores)
    never = policy.predict(coded_examples([met._replace(user="u:never", item="never")]), stores)
    assert often.known[0]
    assert not never.known[0]
    assert often.scores[0] > 0.8 > 0.3 > never.scores[0]
    assert sum(store.state_bytes() for store in stores.values()) == size


# -- in a group with `activity` ---------------------------------------------------------------------------------------
def folded(kind: type[Policy], make: Callable[[], Any]) -> Folded:
    policies = {
        "activity": {},
        "count_stack": {"ids": 4096, "crosses": 1 << 14},
        "factorization": {"rows": 4096},
    }
    policies.pop(kind.name, None)
    if kind is not Ensemble:
        policies = {"activity": {}}
    return Folded(make, plugins=(builtin,), policies=policies)


def acted(user: str, item: str, action: str) -> tuple[str, dict[str, Any]]:
    return "interaction.observed", {"user_id": user, "item_id": item, "action": action}


def stream() -> list[tuple[str, dict[str, Any]]]:
    """Items of two genres; half of the users like one, half the other, but most like drama."""
    rng = random.Random(3)
    given: list[tuple[str, dict[str, Any]]] = [
        ("item.upserted", {"item_id": f"{genre}{i}", "categories": [genre]})
        for genre in ("drama", "war")
        for i in range(15)
    ]
    for n in range(400):
        user, genre = n % 12, rng.choice(["drama", "war"])
        likes = genre == ("war" if user < 4 else "drama")
        given.append(acted(f"{user}", f"{genre}{rng.randrange(14)}", "like" if likes else "dislike"))
    return given


GROUPS: list[tuple[type[Policy], Callable[[], Any]]] = [
    (CountStack, ROOMY["count_stack"]),
    (Factorization, ROOMY["factorization"]),
    (Deepfm, ROOMY["deepfm"]),
    (ImplicitFtrl, ROOMY["implicit_ftrl"]),
    (Ensemble, lambda: Ensemble()),
    (Ensemble, lambda: Ensemble(EnsembleConfig(mix="bayes"))),
]
IDS = ["count_stack", "factorization", "deepfm", "implicit_ftrl", "ensemble", "ensemble-bayes"]


@pytest.mark.parametrize(("kind", "make"), GROUPS, ids=IDS)
def test_in_its_group_a_ranker_ranks_what_it_scores_and_says_why(kind: type[Policy], make: Callable[[], Any]) -> None:
    group = folded(kind, make)
    try:
        group.send(stream())
        server = group.server
        items = [f"{genre}{i}" for genre in ("drama", "war") for i in range(15)] + ["nobody knows it"]
        ranking = server.rank(RankRequest(user="u:1", item_ids=items, explain=True))
        for j, item in enumerate(items):
            tokens = (item.rstrip("0123456789"),) if j < 30 else ()
            example = Example(10_000 + j, 0, "u:1", item, 0.0, 0, (), tokens)
            alone = server.rank(RankRequest(user="u:1", item_ids=[item])).scores
            assert server.score(example) == ranking.scores[j] == alone[0]
            told = sum(one.contribution for one in ranking.features[j])
            assert sigmoid(told) == pytest.approx(ranking.scores[j], abs=1e-9)
            sizes = [abs(one.contribution) for one in ranking.features[j]]
            assert sizes == sorted(sizes, reverse=True)
        assert ranking.known.tolist() == [*[True] * 14, False, *[True] * 14, False, False]
        assert np.all((ranking.scores > 0) & (ranking.scores < 1))
        # who likes war is told more of it than who does not; a newcomer is told what others like
        other = server.rank(RankRequest(user="u:9", item_ids=items)).scores
        assert np.all(ranking.scores[15:30] > other[15:30])
        assert (
            ranking.scores[15:30].mean() - ranking.scores[:15].mean() > other[15:30].mean() - other[:15].mean() + 0.02
        )
        newcomer = server.rank(RankRequest(user="u:new", item_ids=items)).scores
        assert newcomer[:14].mean() > newcomer[15:29].mean()
        assert newcomer[14] > newcomer[29], "of two new items the one of the genre that most like"
        assert len(server.rank(RankRequest(user="u:1", item_ids=[])).scores) == 0
    finally:
        group.close()


JAZZ, METAL = "blue note saxophone trumpet swing quartet", "distorted guitar scream double bass drum riff"


def records() -> list[tuple[str, dict[str, Any]]]:
    """Records of two kinds, told by their titles alone, and what six listeners said of the first: half like jazz."""
    rng = random.Random(5)
    kinds = {f"{name}{n}": words.split() for name, words in (("jazz", JAZZ), ("metal", METAL)) for n in range(12)}
    titles = {item: " ".join(rng.sample(words, 4)) for item, words in kinds.items()}
    given = [("item.upserted", {"item_id": item, "title": title}) for item, title in titles.items()]
    for n in range(480):
        user, item = n % 6, f"{rng.choice(['jazz', 'metal'])}{rng.randrange(11)}"
        given.append(acted(f"{user}", item, "like" if item.startswith("jazz") == (user < 3) else "dislike"))
    return given


def listening(**config: Any) -> Folded:
    def make() -> Deepfm:
        return Deepfm(DeepfmConfig(rows=4096, **config))

    return Folded(make, plugins=(builtin,), backends={"encoder": {"use": "hashing"}})


def test_deepfm_scores_a_new_item_by_what_its_text_says() -> None:
    group, without = listening(), listening(content=0)
    try:
        for one in (group, without):
            one.send(records())
        asked = ["jazz11", "metal11"]  # nobody has met them
        for user, liked in (("u:0", 0), ("u:4", 1)):
            scores = group.server.rank(RankRequest(user=user, item_ids=asked)).scores
            assert scores[liked] > scores[1 - liked] + 0.2
            blind = without.server.rank(RankRequest(user=user, item_ids=asked)).scores
            assert blind[0] == blind[1], "without their texts they cannot be told apart"
        [features] = group.server.rank(RankRequest(user="u:0", item_ids=["jazz11"], explain=True)).features
        assert {"content", "pairs"} <= {one.name for one in features}
        assert group.world.verify()[group.world.group("deepfm").name].equal
        # an item's text is that of now
        before = group.server.rank(RankRequest(user="u:0", item_ids=asked)).scores
        group.send([("item.upserted", {"item_id": "metal11", "title": JAZZ}), ("item.deleted", {"item_id": "jazz11"})])
        after = group.server.rank(RankRequest(user="u:0", item_ids=[*asked, "never there"])).scores
        assert after[1] > before[1] + 0.2
        assert after[0] == after[2]
    finally:
        group.close()
        without.close()


def test_of_items_without_texts_deepfm_learns_what_it_would_without_contents() -> None:
    with_, without = listening(), listening(content=0)
    try:
        for one in (with_, without):
            one.send([given for given in records() if given[0] != "item.upserted"])
        asked = [f"{kind}{n}" for kind in ("jazz", "metal") for n in range(12)]
        found = [one.server.rank(RankRequest(user="u:1", item_ids=asked)).scores.tolist() for one in (with_, without)]
        assert found[0] == found[1]
    finally:
        with_.close()
        without.close()


class Says:
    """A ranker whose scores are known."""

    def __init__(self, scores: list[float]) -> None:
        self.scores = scores

    def score(self, example: Example) -> float:
        return self.scores[example.seq]


class Reads(dict[str, Any]):
    """Stores, and members with their scores."""

    def __init__(self, stores: dict[str, Any], members: dict[str, list[float]]) -> None:
        super().__init__(stores)
        self.members = members

    def of(self, name: str) -> Any:
        class Member:
            server = Says(self.members[name])

        return Member


@pytest.mark.parametrize("share", [0.0, 0.01])
@pytest.mark.parametrize("seed", range(5))
def test_the_mixture_loses_no_more_than_it_promises(share: float, seed: int, open_stores: Open) -> None:
    rng = np.random.default_rng(seed)
    n, labels = 400, rng.integers(0, 2, 400).astype(float)
    # an adversary: each member is right for a while, sure of itself, and wrong when it has won trust
    members = {
        "a": np.where(np.arange(n) // 100 % 2 == 0, 0.9 * labels + 0.05, 0.95 - 0.9 * labels),
        "b": np.where(np.arange(n) // 100 % 2 == 1, 0.9 * labels + 0.05, 0.95 - 0.9 * labels),
        "c": rng.uniform(0.01, 0.99, n),
    }
    policy = Ensemble(EnsembleConfig(members=tuple(members), mix="bayes", share=share))
    stores = Reads(open_stores(policy), {name: scores.tolist() for name, scores in members.items()})
    rows = [Example(j, 0, "u:1", "i", labels[j], 0) for j in range(n)]
    scores = policy.learn(rows, stores)

    def loss(p: Any) -> float:
        return float(-np.log(np.where(labels > 0, p, 1 - p)).sum())

    best = min(loss(p) for p in members.values())
    assert loss(scores) <= best + math.log(3) + n * -math.log(1 - share) + 1e-6
    if share:  # and with a share it follows the change of the best
        assert loss(scores) < best


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (CountStackConfig, {"ids": 0}), (CountStackConfig, {"rate": math.nan}), (FactorizationConfig, {"factors": 0}),
        (FactorizationConfig, {"spread": -1.0}), (DeepfmConfig, {"hidden": 0}), (DeepfmConfig, {"pull": math.inf}),
        (DeepfmConfig, {"content": -1}),
        (ImplicitFtrlConfig, {"alpha": 0.0}),
        (ImplicitFtrlConfig, {"rows": 1}),
        (EnsembleConfig, {"members": ()}), (EnsembleConfig, {"members": ("a", "a")}), (EnsembleConfig, {"share": 1.0}),
        (EnsembleConfig, {"mix": "vote"}),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(kind: Any, bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        kind(**bad)


def test_who_declares_no_ranker_or_head_pays_for_no_compiler_and_no_linear_algebra() -> None:
    """``import scipy`` costs little; its parts are imported when the first of their functions is used."""
    heavy = "{'numba', 'scipy.linalg', 'scipy.sparse', 'scipy.special'}"
    told = (
        "import sys; from streamfold.plugins import builtin; builtin.register_policies(); "
        f"print({heavy} & sys.modules.keys())"
    )
    assert subprocess.run([sys.executable, "-c", told], capture_output=True, text=True).stdout.strip() == "set()"
