"""Error memories equal their formulas, leave a base alone where they are told to, and learn what was served."""

from __future__ import annotations

import importlib.util
import math
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamfold.core import ConfigError, Example, RankRequest
from streamfold.core.testing import Case, Lab
from streamfold.plugins import _memory_kernels as kernels
from streamfold.plugins import builtin
from streamfold.plugins._error_memory import ErrorMemory, pairs_of
from streamfold.plugins.reloop2_lsh import Reloop2Lsh, Reloop2LshConfig
from streamfold.plugins.reloop2_topk import Reloop2Topk, Reloop2TopkConfig
from streamfold.plugins.residual_table import ResidualTable, ResidualTableConfig


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


counting_ranker, twins = load("counting_ranker"), load("memory_twins")
DAY_US = 86_400_000_000
T0 = 1_700_000_000_000_000
MADE: dict[str, Callable[..., ErrorMemory]] = {
    "table": lambda **c: ResidualTable(ResidualTableConfig(base="counting", rows=512, **c)),
    "lsh": lambda **c: Reloop2Lsh(Reloop2LshConfig(base="counting", arrays=6, bits=5, **c)),
    "topk": lambda **c: Reloop2Topk(Reloop2TopkConfig(base="counting", samples=32, k=6, **c)),
}
TOKENS = ("drama", "war", "year=1999", "comedy")


class Direct:
    """A memory with its stores alone: ``learn`` examples with what the base says of them."""

    def __init__(self, policy: ErrorMemory, bench: Any) -> None:
        self.policy = policy
        self.bench = bench(policy)

    def learn(self, example: Example, base: float) -> None:
        self.bench.fold(lambda: self.policy.remember([example], np.array([base]), self.bench.stores))

    def terms(self, example: Example, base: float) -> list[float]:
        pairs = pairs_of(example.user, [example.item], example.user_tokens, [example.item_tokens])
        found = self.policy.correct(pairs, np.array([base]), example.at_us, self.bench.stores)
        return [float(one) for one in found[0]]

    def served(self, example: Example, base: float) -> float:
        terms = np.array([self.terms(example, base)])
        weights = self.bench.stores["experts"].values[0]
        return float(self.policy.mixture.mix(weights, np.array([base]), terms)[0])


@pytest.fixture
def direct(bench: Any) -> Callable[[ErrorMemory], Direct]:
    return lambda policy: Direct(policy, bench)


def stream(n: int, *, swaps: bool = False, seed: int = 3) -> Iterator[tuple[Example, float]]:
    """Examples whose base is wrong by user and item, some late, a few told again with the opposite label."""
    rng = random.Random(seed)
    for seq in range(n):
        user, item = f"u:{rng.randrange(6)}", f"i{rng.randrange(9)}"
        at_us = T0 + seq * DAY_US // 4 - rng.choice((0, 0, 40 * DAY_US))
        tokens = tuple(rng.sample(TOKENS, rng.randrange(4)))
        base = rng.uniform(0.05, 0.95)
        likes = rng.random() < (0.8 if user < "u:3" else 0.3)
        example = Example(seq, 0, user, item, float(likes), at_us, ("age=3",) if user == "u:1" else (), tokens)
        yield example, base
        if swaps and rng.random() < 0.2:
            yield example._replace(n=1, label=1 - example.label, swaps=True), base


def hashes(example: Example) -> tuple[int, int, list[int], int]:
    pairs = pairs_of(example.user, [example.item], example.user_tokens, [example.item_tokens])
    return int(pairs.user), int(pairs.items[0]), [int(token) for token in pairs.tokens], pairs.own


def kept_away(p: float) -> float:
    return min(max(p, 1e-4), 1 - 1e-4)


@pytest.mark.parametrize("share", [0.0, 0.01])
def test_the_table_equals_its_formula_with_late_and_swapped_examples(direct: Any, share: float) -> None:
    memory = direct(MADE["table"](half_life_days=20.0, prior=1.5, share=share))
    twin = twins.Table(math.log(2) / (20 * 86_400), 1.5, 512)
    mixture = twins.Mixture(memory.policy.config.lambdas, share, True)
    for example, base in stream(120, swaps=True):
        keys, at_s = twin.keys(*hashes(example)), example.at_us / 1e6
        expected = twin.terms(keys, at_s)
        assert memory.terms(example, base) == pytest.approx(expected, rel=1e-8, abs=1e-10)
        assert memory.served(example, base) == pytest.approx(mixture.mix(base, sum(expected)), rel=1e-8)
        memory.learn(example, base)
        twin.learn(keys, at_s, example.label, kept_away(base), example.swaps)
        if not example.swaps:
            mixture.learn(base, sum(expected), example.label)


def test_the_sketch_equals_its_formula_with_swapped_examples(direct: Any) -> None:
    memory = direct(MADE["lsh"](prior=3.0))
    twin, mixture = twins.Sketch(3.0), twins.Mixture(memory.policy.config.lambdas, 0.0, False)
    for example, base in stream(120, swaps=True):
        user, item, tokens, _ = hashes(example)
        rows = twins.sketch_rows(user, item, tokens, 6, 5)
        expected = twin.terms(rows)
        assert memory.terms(example, base) == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert memory.served(example, base) == pytest.approx(mixture.mix(base, sum(expected)), rel=1e-9)
        memory.learn(example, base)
        twin.learn(rows, example.label, kept_away(base), example.swaps)
        if not example.swaps:
            mixture.learn(base, sum(expected), example.label)


@pytest.mark.parametrize("gamma", [0.0, 0.4, 1.0])
def test_nearest_samples_equal_the_formula_past_the_ring_s_end(direct: Any, gamma: float) -> None:
    memory = direct(MADE["topk"](gamma=gamma, sigma=0.5, keep=0.5))
    twin = twins.Samples(32, 6, 0.1, gamma)
    for example, base in stream(150):
        user, item, tokens, _ = hashes(example)
        expected = twin.correction(user, item, tokens, base)
        assert memory.terms(example, base) == pytest.approx([expected], rel=1e-9, abs=1e-12)
        memory.learn(example, base)
        large = abs(example.label - kept_away(base)) > 0.5
        if large or kernels.share_of(example.seq, example.n) < 0.5:
            weight = 1.0 if large else 2.0
            sample = {"user": user, "item": item, "tokens": tokens, "label": example.label, "said": kept_away(base)}
            twin.keep(**sample, weight=weight)
    assert memory.bench.stores["written"].values[0, 0] > 64, "the ring was written more than once around"


@pytest.mark.parametrize("k", [1, 2, 7, 30, 200])
def test_neighbours_lie_in_the_order_of_a_heap_that_swaps(k: int) -> None:
    """Sums over them have been folded in that order: another one would differ in the last bits."""
    rng = random.Random(k)
    for levels in (2, 5, 1000):
        similarities = np.array([rng.randrange(levels) / levels for _ in range(150)])
        scores, ages = np.zeros(k), np.zeros(k, np.int64)
        kept = kernels._nearest(similarities, scores, ages)
        found = list(zip(scores[:kept].tolist(), ages[:kept].tolist(), strict=True))
        assert found == twins.heap_of(similarities.tolist(), k)


@pytest.mark.parametrize("gamma", [0.0, 0.4])
def test_candidates_asked_about_together_are_what_each_is_alone(direct: Any, gamma: float) -> None:
    memory = direct(MADE["topk"](gamma=gamma))
    for example, base in stream(60):
        memory.learn(example, base)
    items = [f"i{n}" for n in range(60)]  # nine of them in samples, and the others share few sets of tokens
    tokens = [TOKENS[: n % 5] for n in range(60)]
    base = np.linspace(0.1, 0.9, 60)
    together = memory.policy._neighbours(pairs_of("u:1", items, ("age=3",), tokens), base, memory.bench.stores)
    for n in range(60):
        one = pairs_of("u:1", items[n : n + 1], ("age=3",), tokens[n : n + 1])
        alone = memory.policy._neighbours(one, base[n : n + 1], memory.bench.stores)
        for many, single in zip(together, alone, strict=True):
            assert many[n].tobytes() == single[0].tobytes()


@pytest.mark.parametrize("name", ["table", "lsh"])
def test_examples_learned_one_by_one_leave_what_they_leave_together(direct: Any, name: str) -> None:
    """To the bit: an example alone has a kernel of its own."""
    alone, together = direct(MADE[name]()), direct(MADE[name]())
    given = list(stream(80, swaps=True))
    examples = [one._replace(served=0.3 if n % 3 else None) for n, (one, _) in enumerate(given)]
    bases = np.array([base for _, base in given])
    scores = [alone.policy.remember([one], bases[n : n + 1], alone.bench.stores)[0] for n, one in enumerate(examples)]
    many = together.policy.remember(examples, bases, together.bench.stores)
    assert many.tolist() == scores
    assert alone.bench.fingerprint() == together.bench.fingerprint()


def test_a_share_of_small_errors_is_kept_that_positions_alone_choose() -> None:
    chosen = [kernels.share_of(seq, n) < 0.25 for seq in range(4000) for n in range(2)]
    assert 0.23 < sum(chosen) / len(chosen) < 0.27
    assert chosen == [kernels.share_of(seq, n) < 0.25 for seq in range(4000) for n in range(2)]


@pytest.mark.parametrize("name", MADE)
def test_lambda_zero_alone_is_the_base_to_the_bit(direct: Any, name: str) -> None:
    memory = direct(MADE[name](lambdas=(0.0,)))
    for example, base in stream(60):
        assert memory.served(example, base) == base
        memory.learn(example, base)
    assert any(memory.terms(example, base) != [0.0] * len(memory.policy.terms) for example, base in stream(60))
    assert memory.served(example, 1e-7) == 1e-7, "not even clamped"


@pytest.mark.parametrize("name", MADE)
def test_a_base_that_is_wrong_about_a_user_is_corrected(direct: Any, name: str) -> None:
    memory = direct(MADE[name]())
    for seq in range(200):
        likes = seq % 2 == 0
        memory.learn(Example(seq, 0, f"u:{likes}", f"i{seq % 7}", float(likes), T0 + seq), 0.5)
    for user, side in (("u:True", 1), ("u:False", -1)):
        shown = memory.served(Example(999, 0, user, "i3", 0.0, T0), 0.5)
        assert side * (shown - 0.5) > 0.1


@pytest.mark.parametrize("name", ["table", "lsh"])
def test_a_late_positive_leaves_what_one_on_time_does(direct: Any, name: str) -> None:
    on_time, late = direct(MADE[name]()), direct(MADE[name]())
    example = Example(1, 0, "u:1", "i1", 1.0, T0, (), ("drama", "war"), served=0.3)
    on_time.learn(example, 0.4)
    late.learn(example._replace(label=0.0), 0.4)
    late.learn(example._replace(seq=2, swaps=True), 0.45)
    for store in ("residuals", "buckets"):
        if store in on_time.bench.stores:
            np.testing.assert_allclose(
                late.bench.stores[store].values, on_time.bench.stores[store].values, rtol=1e-12, atol=1e-15
            )


def test_a_late_positive_turns_over_the_sample_that_was_kept(direct: Any) -> None:
    memory = direct(MADE["topk"]())
    example = Example(1, 0, "u:1", "i1", 0.0, T0, served=0.9)
    memory.learn(example, 0.9)
    memory.learn(example._replace(seq=2, label=1.0, swaps=True), 0.9)
    assert memory.bench.stores["numbers"].values[:2, 0].tolist() == [1.0, 0.0]
    assert memory.bench.stores["written"].values[0, 0] == 1


@pytest.mark.parametrize("name", MADE)
def test_the_served_score_is_stored_without_the_memory_s_own_correction(direct: Any, name: str) -> None:
    """Served by this very stack a moment ago, an example leaves what it would have left without an exposure."""
    plain, shown = direct(MADE[name]()), direct(MADE[name]())
    for example, base in stream(80):
        served = shown.served(example, base)
        plain.learn(example, base)
        shown.learn(example._replace(served=served), base)
    for store in ("residuals", "buckets", "numbers"):
        if store in plain.bench.stores:
            np.testing.assert_allclose(
                shown.bench.stores[store].values, plain.bench.stores[store].values, rtol=1e-5, atol=1e-6
            )


@pytest.mark.parametrize("served", [math.nan, 17.0, -0.1])
def test_a_served_score_that_is_no_probability_is_not_stored(direct: Any, served: float) -> None:
    one, two = direct(MADE["table"]()), direct(MADE["table"]())
    example = Example(1, 0, "u:1", "i1", 1.0, T0)
    one.learn(example, 0.4)
    two.learn(example._replace(served=served), 0.4)
    assert one.bench.fingerprint() == two.bench.fingerprint()


@pytest.fixture
def lab() -> Iterator[Callable[..., Lab]]:
    opened: list[Lab] = []

    def make(name: str, **config: Any) -> Lab:
        opened.append(Lab(Case(make=lambda: MADE[name](**config), plugins=(builtin, counting_ranker))))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def folded(lab: Lab) -> Any:
    """A bench over likes by two users of six items, and its server."""
    given: list[Any] = [
        ("item.upserted", {"item_id": f"i{n}", "categories": ["drama"] if n % 2 else ["war"]}) for n in range(6)
    ]
    for n in range(60):
        action = "like" if (n + n // 6) % 3 else "dislike"
        data = {"user_id": str(n % 2), "item_id": f"i{n % 6}", "action": action}
        given.append(("interaction.observed", data))
    return lab.bench(side="both").run(lab.logged(given))


@pytest.mark.parametrize("name", MADE)
def test_rank_and_score_are_one_number_and_the_base_is_told(lab: Any, name: str) -> None:
    bench = folded(lab(name))
    server, base = bench.server(), bench._reads[bench.runtime.key]["counting"].server
    items = [f"i{n}" for n in range(6)]
    ranking = server.rank(RankRequest(user="u:1", item_ids=items, at_us=T0))
    tokens = bench._reads[bench.runtime.key]["activity"].server.tokens("u:1", items)[1]
    for n, item in enumerate(items):
        example = Example(1000 + n, 0, "u:1", item, 1.0, T0, (), tokens[n])
        assert server.score(example) == ranking.scores[n]
        assert base.score(example) == ranking.base[n]
    assert (ranking.scores != ranking.base).all()
    assert ranking.known.all()
    alone = server.rank(RankRequest(user="u:1", item_ids=items[3:4], at_us=T0))
    assert alone.scores[0] == ranking.scores[3]


@pytest.mark.parametrize("name", MADE)
def test_explain_adds_up_to_the_correction_and_names_neighbours(lab: Any, name: str) -> None:
    bench = folded(lab(name))
    ranking = bench.server().rank(RankRequest(user="u:0", item_ids=["i1", "i2"], at_us=T0, explain=True))
    for j, features in enumerate(ranking.features):
        mine = {one.name: one for one in features if one.name.startswith(bench.policy.name)}
        shift = twins.logit(ranking.scores[j]) - twins.logit(ranking.base[j])
        if name == "topk":
            assert any(".neighbour.i" in one for one in mine)
        else:
            assert sum(one.contribution for one in mine.values()) == pytest.approx(shift)
        assert 0 <= mine[f"{bench.policy.name}.lambda"].value <= 1
        assert "counts" in {one.name for one in features}
        sizes = [abs(one.contribution) for one in features]
        assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("name", MADE)
def test_switched_off_the_base_passes_through_and_nothing_is_learned(lab: Any, name: str) -> None:
    bench = folded(lab(name, enabled=False))
    server, base = bench.server(), bench._reads[bench.runtime.key]["counting"].server
    request = RankRequest(user="u:1", item_ids=["i1", "i5"], at_us=T0, explain=True)
    mine, theirs = server.rank(request), base.rank(request)
    assert mine.scores.tolist() == theirs.scores.tolist()
    assert (mine.base, mine.features) == (None, theirs.features)
    example = Example(1, 0, "u:1", "i1", 1.0, T0)
    assert server.score(example) == base.score(example)
    empty = lab(name, enabled=False).bench().contents()
    assert bench.contents() == empty


def test_a_base_without_a_probability_is_said_and_its_event_skipped(lab: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(counting_ranker.CountingServer, "score", lambda self, example: math.nan)
    one = lab("table")
    bench = one.bench()
    [event] = one.logged([("interaction.observed", {"user_id": "1", "item_id": "i", "action": "like"})])
    assert "no probability" in str(bench.fold(event))


def test_numba_is_not_imported_for_those_who_declare_no_memory() -> None:
    script = (
        "import sys; from streamfold.plugins import builtin as b; b.register_policies(); print('numba' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (ResidualTableConfig, {"lambdas": (0.5, 1.0)}),
        (ResidualTableConfig, {"lambdas": (0.0, 1.5)}),
        (ResidualTableConfig, {"lambdas": (0.0, 0.0)}),
        (ResidualTableConfig, {"share": 1.0}),
        (ResidualTableConfig, {"base": "activity"}),
        (ResidualTableConfig, {"prior": 0.0}),
        (ResidualTableConfig, {"half_life_days": math.inf}),
        (ResidualTableConfig, {"rows": 0}),
        (Reloop2LshConfig, {"arrays": 4}),
        (Reloop2LshConfig, {"bits": 21}),
        (Reloop2TopkConfig, {"gamma": 1.1}),
        (Reloop2TopkConfig, {"keep": math.nan}),
        (Reloop2TopkConfig, {"k": 0}),
    ],
)
def test_bad_settings_are_named(kind: Any, bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        kind(**bad)
