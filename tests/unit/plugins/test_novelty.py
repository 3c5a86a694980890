"""``novelty`` passes the inputs of each head through a mixture; alarms are a function of the log."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from streamfold.core import ConfigError
from streamfold.plugins._igmm import Limits, Mixture, projected
from streamfold.plugins._mixture_store import read_mixture, write_mixture
from streamfold.plugins.novelty import Novelty, NoveltyConfig


def inputs(n: int, dim: int, new: int) -> Any:
    """Gaussian inputs; from ``new`` on a third of them are elsewhere."""
    rng = np.random.default_rng(5)
    rows = rng.normal(size=(n, dim))
    rows[new:][rng.random(n - new) < 0.3] += 9.0
    return rows


def features(row: Any) -> dict[str, float]:
    return {f"f{i:03}": float(value) for i, value in enumerate(row)}


@pytest.mark.parametrize("dim", [6, 80])
def test_alarms_are_where_the_mixture_of_a_heads_inputs_fires(bench: Any, make_event: Any, dim: int) -> None:
    novelty = bench(Novelty(NoveltyConfig(about="kalman_head", dim=16)))
    expected, mixture = [], Mixture()
    for n, row in enumerate(inputs(500, dim, 300)):
        target = {"features": features(row)}
        novelty.send(make_event(2 * n + 1, "label.observed", head="h", target=target, label="a"))
        novelty.send(make_event(2 * n + 2, "label.observed", head="other", target={"features": {"x": 1.0}}, label="a"))
        if (fired := mixture.learn(projected(row, 16, 0), Limits())) is not None:
            expected.append((2 * n + 1, *fired))
    found = novelty.server.alarms()
    assert [(one.at_position, one.statistic, one.threshold) for one in found] == expected
    assert [(one.policy, one.detector) for one in found] == [("kalman_head", "igmm:h")]
    assert found[0].at_position > 600


def test_texts_and_things_count_by_their_vectors_and_retractions_do_not(bench: Any, make_event: Any) -> None:
    novelty = bench(Novelty(NoveltyConfig(first=2)))
    item = {"item_id": "i1", "title": "a red lamp"}
    events = [
        make_event(1, "item.upserted", **item),
        make_event(2, "label.observed", head="h", target={"item_id": "i1"}, label="a"),
        make_event(3, "label.observed", head="h", target={"text": "a red lamp"}, label="a"),
        make_event(4, "label.observed", head="h", target={"text": "a blue lamp"}, label=None),
    ]
    novelty.send(*events)
    assert [key for key, _ in novelty.view["mixtures"].items()] == ["h\0text"]
    mixture = read_mixture("h\0text", novelty.view)
    assert not mixture.waiting
    assert sum(one.mass for one in mixture.components) == pytest.approx(2.0)
    assert mixture.distances(mixture.components[0].arrays()[0])[0] == 0
    before = novelty.fingerprint()
    novelty.send(make_event(5, "label.observed", head="h", target={"item_id": "i2"}, label="a"))  # it waits in heads
    assert novelty.fingerprint() == before


def test_a_mixture_in_parts_is_the_mixture_to_the_bit(bench: Any, make_event: Any) -> None:
    """Also while components begin, stand, and are dropped."""
    limits = {"first": 20, "support": 5, "patience": 15, "max_components": 4}
    novelty = bench(Novelty(NoveltyConfig(dim=6, **limits)))
    mixture, counts = Mixture(), []
    rng = np.random.default_rng(2)
    for n in range(200):
        row = rng.normal(size=6) + (0 if n < 40 or n % 3 else 20.0 * (n // 40))
        novelty.send(make_event(n + 1, "label.observed", head="h", target={"features": features(row)}, label="a"))
        mixture.learn(row, Limits(first=20, support=5.0, patience=15, most=4))
        [(key, _)] = novelty.stores["mixtures"].items()
        for side in (novelty.stores, novelty.view):
            assert read_mixture(key, side) == mixture
        counts.append(len(mixture.components))
    assert {one < other for one, other in itertools.pairwise(counts)} == {False, True}
    assert any(one > other for one, other in itertools.pairwise(counts))
    assert len(novelty.stores["parts"]) == 1 + 2 * counts[-1]


def test_an_input_writes_the_components_that_it_moves(bench: Any, make_event: Any) -> None:
    novelty = bench(Novelty(NoveltyConfig(dim=32, chance=1e-9)))
    rng = np.random.default_rng(4)
    centres = 100 * np.eye(32)[:8]
    written = []
    for n in range(600):
        row = rng.normal(size=32) + centres[n % 8 if n >= 128 else 0]
        novelty.send(make_event(n + 1, "label.observed", head="h", target={"features": features(row)}, label="a"))
        written.append(sum(len(data) for data in novelty.changes[-1].values()))
    [(key, stored)] = novelty.view["mixtures"].items()
    assert len(stored.components) == 8
    one = 32 * 32 * 8
    assert max(written[:127]) < one  # the first inputs are a row each
    assert max(written[-8:]) < 2 * one < sum(len(part) for _, part in novelty.view["parts"].items())
    assert len(read_mixture(key, novelty.view).components) == 8


def test_past_the_bound_the_mixture_written_longest_ago_goes_with_its_parts(bench: Any) -> None:
    novelty = bench(Novelty(NoveltyConfig(dim=4, first=2, max_heads=2)))

    def write(key: str, inputs: int) -> None:
        mixture = read_mixture(key, novelty.stores)
        for n in range(inputs):
            mixture.learn(np.arange(4.0) + n, Limits(first=2))
        write_mixture(key, mixture, novelty.stores, most=2)

    for key, inputs in (("a", 1), ("b", 3), ("a", 1), ("c", 3), ("a", 3), ("d", 1)):
        novelty.fold(lambda key=key, inputs=inputs: write(key, inputs))
    novelty.commit()
    kept = {key for key, _ in novelty.view["mixtures"].items()}
    assert kept == {"a", "d"}
    assert {name.partition("\0")[0] for name, _ in novelty.view["parts"].items()} == kept


@pytest.mark.parametrize("bad", [{"dim": 65}, {"chance": 0.9}, {"first": 1}, {"support": 1}, {"max_components": 0}])
def test_wrong_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="novelty"):
        NoveltyConfig(**bad)
