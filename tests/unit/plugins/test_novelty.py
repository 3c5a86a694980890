"""``novelty`` passes the inputs of each head through a mixture; alarms are a function of the log."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from streamfold.core import ConfigError
from streamfold.plugins._igmm import Limits, Mixture, projected
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
    [(key, mixture)] = novelty.view["mixtures"].items()
    assert key == "h\0text"
    assert not mixture.waiting
    assert sum(one.mass for one in mixture.components) == pytest.approx(2.0)
    assert mixture.distances(mixture.components[0].arrays()[0])[0] == 0
    before = novelty.fingerprint()
    novelty.send(make_event(5, "label.observed", head="h", target={"item_id": "i2"}, label="a"))  # it waits in heads
    assert novelty.fingerprint() == before


@pytest.mark.parametrize("bad", [{"dim": 65}, {"chance": 0.9}, {"first": 1}, {"support": 1}, {"max_components": 0}])
def test_wrong_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="novelty"):
        NoveltyConfig(**bad)
