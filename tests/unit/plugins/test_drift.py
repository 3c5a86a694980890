"""``drift`` holds what heads said against what was right; alarms are a function of the log."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from river import drift as river_drift

from streamfold.core import ConfigError, QualityReport
from streamfold.core.testing import World
from streamfold.core.watching import Watcher
from streamfold.plugins import builtin
from streamfold.plugins._detectors import Adwin, Cusum, PageHinkley
from streamfold.plugins.drift import Drift, DriftConfig


class Stream:
    """Answers and labels of them, with increasing positions."""

    def __init__(self, bench: Any, make_event: Any, **config: Any) -> None:
        self.bench = bench(Drift(DriftConfig(**config)))
        self._make, self._seq = make_event, itertools.count(1)

    def send(self, type_: str, **data: Any) -> int:
        seq = next(self._seq)
        self.bench.send(self._make(seq, type_, **data))
        return seq

    def said(self, exposure: str, *labels: str, head: str = "h", policy: str = "kalman_head") -> None:
        items = [{"label": label, "rank": 1} for label in labels] + [{"label": "other", "rank": 2}]
        policies = {policy: "1", "corrections": "1", "head_arms": "1"}
        self.send("exposure.recorded", exposure_id=exposure, kind="classify", items=items, policies=policies,
                  context={"head": head})  # fmt: skip

    def right(self, exposure: str, label: str, head: str = "h") -> int:
        return self.send("label.observed", head=head, target={"text": "t"}, label=label, exposure_id=exposure)

    @property
    def watched(self) -> dict[str, Any]:
        return dict(self.bench.view["watched"].items())


@pytest.fixture
def stream(bench: Any, make_event: Any) -> Any:
    return lambda **config: Stream(bench, make_event, **config)


def test_alarms_are_where_the_detectors_fire_on_the_errors_of_what_was_served(stream: Any) -> None:
    drift = stream(detectors=("adwin", "page_hinkley", "cusum"))
    rng = np.random.default_rng(0)
    wrong = (rng.random(900) < np.repeat([0.05, 0.6], [500, 400])).tolist()
    detectors = {"adwin": Adwin(), "page_hinkley": PageHinkley(), "cusum": Cusum()}
    expected = []
    for n, one in enumerate(wrong):
        drift.said(f"e{n}", "a")
        at = drift.right(f"e{n}", "b" if one else "a")
        for name, detector in detectors.items():
            if (fired := detector.update(float(one))) is not None:
                expected.append((name + ":h", at, *fired))
    found = drift.bench.server.alarms()
    assert [(one.detector, one.at_position, one.statistic, one.threshold) for one in found] == sorted(
        expected, key=lambda row: (row[1], row[0])
    )
    assert {one.detector for one in found} == {"adwin:h", "page_hinkley:h", "cusum:h"}
    assert {one.policy for one in found} == {"kalman_head@1"}
    assert min(one.at_position for one in found) > 1000  # the rates changed at position 1,000
    assert drift.watched == {"kalman_head@1\0h": drift.bench.stores["watched"].get("kalman_head@1\0h")}


def test_each_answer_counts_once_by_policy_and_head_and_corrections_count(stream: Any) -> None:
    drift = stream()
    drift.said("e1", "a")
    drift.right("e1", "b", head="another")  # a label of another head
    assert drift.watched == {}
    drift.right("e1", "b")
    drift.right("e1", "a")  # a second label of the same answer
    drift.said("e2", "a", policy="label_statistics")
    drift.send("feedback.given", exposure_id="e2", value=-1, head="h", target={"text": "t"}, correction="b")
    drift.said("e3", "a", "a")  # two targets: whose label it is, nobody knows
    drift.right("e3", "a")
    drift.right("never shown", "a")
    drift.send("label.observed", head="h", target={"text": "t"}, label=None, exposure_id="e2")
    assert {key: (row.adwin.width, row.adwin.total) for key, row in drift.watched.items()} == {
        "kalman_head@1\0h": (1, 1.0),
        "label_statistics@1\0h": (1, 1.0),
    }


@pytest.mark.parametrize("bad", [{"detectors": ()}, {"detectors": ("kswin",)}, {"max_alarms": 0}])
def test_wrong_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="drift"):
        DriftConfig(**bad)


def test_a_rankers_log_losses_are_watched_as_quality_notes_them(tmp_path: Path) -> None:
    """Tastes turn round at the 2,000th interaction: the alarms are where river's fire on the losses of the ring."""
    config = {"ids": 4096, "crosses": 8192}
    policies: dict[str, Any] = {
        "activity": {}, "count_stack": config, "quality": {"ranker": "count_stack"}, "drift": {"quality": "quality"},
    }  # fmt: skip
    rng = np.random.default_rng(3)
    with World(tmp_path, [builtin], policies) as world:
        given = []
        for n in range(3000):
            user, item = int(rng.integers(40)), int(rng.integers(40))
            action = "like" if (item % 2 == 0) == (n < 2000) else "dislike"
            given.append(("interaction.observed", {"user_id": f"u{user}", "item_id": f"i{item}", "action": action}))
        world.send_many(given)
        world.fold()
        [found] = [member.server.alarms() for _, member in world.view.servers(Watcher)]
        scored = next(member.server.measured().scored() for _, member in world.view.servers(QualityReport))
        assert all(verdict.equal for verdict in world.verify().values())
    losses = -np.log(np.where(scored.label > 0, scored.score, 1 - scored.score))
    expected = []
    for name, detector in (("adwin", river_drift.ADWIN()), ("page_hinkley", river_drift.PageHinkley())):
        for position, loss in zip(scored.key[:-1, 0].tolist(), losses[:-1].tolist(), strict=True):
            detector.update(loss)
            if detector.drift_detected:
                expected.append((position, f"{name}:log_loss"))
    assert [(one.at_position, one.detector) for one in found] == sorted(expected)
    assert {one.policy for one in found} == {"count_stack"}
    assert {one.detector for one in found if one.at_position > 2000} == {"adwin:log_loss", "page_hinkley:log_loss"}
