"""Heads that are functions of their rows are measured by them: every label by those before it, and by no others."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from streamfold.core import ClassifyRequest, ConfigError, QualityReport, Target
from streamfold.core.gate import GateLimits, judge
from streamfold.core.testing.folded import Folded
from streamfold.core.testing.lab import Case
from streamfold.plugins import _head_quality, builtin
from streamfold.plugins.head_quality import HeadQuality, HeadQualityConfig
from streamfold.plugins.kalman_head import KalmanHead, KalmanHeadConfig
from streamfold.plugins.label_statistics import LabelStatistics, LabelStatisticsConfig

HEADS = [
    LabelStatistics(LabelStatisticsConfig()),
    LabelStatistics(LabelStatisticsConfig(read_out="lda")),
    KalmanHead(KalmanHeadConfig()),
]
HOUR_US = 3_600_000_000


@pytest.fixture
def labels(make_event: Any) -> list[Any]:
    """Points of three classes; the third appears late."""
    rng, seq = np.random.default_rng(3), itertools.count(1)
    found = []
    for i in range(60):
        code = int(rng.integers(3 if i > 40 else 2))
        x, y = (rng.normal(size=2) + 2.0 * np.array([(0, 0), (1, 0), (0, 1)][code])).tolist()
        label = "abc"[code]
        found.append(
            make_event(
                next(seq), "label.observed", head="h", target={"features": {"x": x, "y": y, "one": 1.0}}, label=label
            )
        )
    return found


@pytest.mark.parametrize("policy", HEADS, ids=["ridge", "lda", "kalman"])
def test_each_label_is_scored_by_those_before_it(
    bench: Any, labels: list[Any], policy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_head_quality, "_LAST", 20)
    monkeypatch.setattr(_head_quality, "_BLOCK", 1)
    whole = bench(policy)
    whole.send(*labels)
    assert isinstance(whole.server, QualityReport)
    scored = whole.server.measured().scored()
    tested = list(whole.server.measured().tested("h"))
    assert scored.key[:, 0].tolist() == [event.seq for event in labels[-20:]]
    one_by_one = bench(type(policy)(policy.config))
    one_by_one.send(*labels[:-20])
    for row, event in enumerate(labels[-20:]):
        asked = ClassifyRequest(head="h", targets=[Target(features=event.data.target.features)])
        found = one_by_one.server.classify(asked)[0].labels
        chance = {one.label: one.score for one in found}.get(event.data.label, 0.0)
        assert scored.score[row] == pytest.approx(chance, abs=2e-6)
        assert scored.right[row] == (found[0].label == event.data.label)
        assert tested[row].sure == pytest.approx(found[0].score, abs=2e-6)
        one_by_one.send(event)
    assert {scored.names[place] for place in scored.slices} <= {"h: a", "h: b", "h: c"}


def test_what_was_retracted_or_replaced_is_not_measured(
    bench: Any, make_event: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_head_quality, "_BLOCK", 1)
    mail = bench(LabelStatistics())
    texts = [f"text number {n}" for n in range(12)]

    def label(seq: int, text: str, given: str | None) -> Any:
        return make_event(seq, "label.observed", head="h", target={"text": text}, label=given)

    mail.send(*[label(n + 1, text, "ab"[n % 2]) for n, text in enumerate(texts)])
    assert mail.server.measured().scored().key[:, 0].tolist() == [*range(2, 13)]  # the first: by nothing
    mail.send(label(20, texts[3], None), label(21, texts[4], "b"))
    followed = mail.server.measured().scored()
    assert followed.key[:, 0].tolist() == [2, 3, *range(6, 13), 21]
    mail.server._measured.clear()
    afresh = mail.server.measured().scored()
    assert (afresh.key == followed.key).all()
    assert afresh.score == pytest.approx(followed.score, abs=1e-9)


def test_the_series_tells_accuracy_the_worst_class_and_what_was_forgotten() -> None:
    best: dict[tuple[str, str], float] = {}
    tested = lambda label, right: _head_quality.Tested(1, 0, 0, "h", label, 0.5, right, 0.6)  # noqa: E731
    first = _head_quality._point(0, [tested("a", True), tested("a", True), tested("b", False)], best)
    assert first.accuracy == pytest.approx(2 / 3)
    assert first.min_accuracy == 0.0
    assert math.isnan(first.forgetting)
    assert first.logloss == pytest.approx(math.log(2))
    assert first.calibration_error == pytest.approx(2 / 3 - 38.5 / 64)  # .6 lies in the 39th of 64 bins
    second = _head_quality._point(HOUR_US, [tested("a", True), tested("a", False), tested("b", True)], best)
    assert second.forgetting == pytest.approx((0.5 + 0.0) / 2)
    assert math.isnan(second.auc)


def test_stretches_of_any_length_hold_what_was_asked_for_and_no_more() -> None:
    hour_us = 3_600_000_000
    rows = [
        _head_quality.Tested(n, n * hour_us // 2, n, "h", "a", 0.75, n % 4 > 0, 0.75) for n in range(12)
    ]  # two an hour

    class Measured(_head_quality.MeasuredLabels):
        def tested(self, head: str | None) -> list[_head_quality.Tested]:
            return rows

    def events(from_us: int, to_us: int, stretch_us: int) -> list[int]:
        asked = {"from_us": from_us, "to_us": to_us, "slice_": "h"}
        return [point.events for point in Measured().series(**asked, stretch_us=stretch_us)]

    for from_us, to_us, hours in ((0, 2**62, 6), (3 * hour_us, 2**62, 3), (3 * hour_us + 9, 5 * hour_us, 2)):
        assert events(from_us, to_us, 0) == [2] * hours
        assert sum(events(from_us, to_us, 4 * hour_us)) == 2 * hours
        assert events(from_us, to_us, 2**62) == [2 * hours]
    assert events(7 * hour_us, 2**62, 2**62) == []
    [part] = Measured().series(from_us=hour_us, to_us=2 * hour_us, slice_="h", stretch_us=0)
    assert part.forgetting == 0.0, "held against the hour before, though that was not asked for"


def test_a_gate_judges_heads_by_the_same_labels(bench: Any, make_event: Any) -> None:
    rng = np.random.default_rng(5)
    events = []
    for n in range(600):
        code = int(rng.integers(2))
        features = {f"f{i}": float(v) for i, v in enumerate(rng.normal(size=4) + 2.5 * code)}
        events.append(
            make_event(n + 1, "label.observed", head="h", target={"features": features}, label="ab"[code],
                       at_us=n * HOUR_US)
        )  # fmt: skip
    good, bad = (bench(LabelStatistics(LabelStatisticsConfig(gamma=gamma))) for gamma in (1.0, 1e9))
    for one in (good, bad):
        one.send(*events)
    limits = GateLimits(window_s=3600.0)
    mine, theirs = (one.server.measured().scored() for one in (good, bad))
    assert len(mine.key) == 600 - 1
    assert {rule.rule: rule.passed for rule in judge(mine, theirs, limits)}["not_worse"]
    refused = {rule.rule: rule for rule in judge(theirs, mine, limits)}
    assert not refused["not_worse"].passed
    assert refused["worst_slice"].detail.startswith("h: ")


MEMBERS = {
    "quick": {"use": "gradient_head", "rate": 4.0, "dim": 64, "max_classes": 64},
    "still": {"use": "gradient_head", "rate": 1e-6, "replay": 0, "dim": 64, "max_classes": 64},
    "both": {"use": "head_ensemble", "members": ("quick", "still")},
}


@pytest.mark.parametrize("head", ["quick", "both"])
def test_a_head_that_learns_step_by_step_is_asked_just_before(head: str) -> None:
    """What was kept is what classify answered before each label was sent."""

    def measuring() -> HeadQuality:
        return HeadQuality(HeadQualityConfig(head=head, ring=30))

    measuring.__name__ = "head_quality"
    quick = {"encoder": {"use": "hashing", "dim": 64}}
    policies = MEMBERS if head == "both" else {"quick": MEMBERS["quick"]}
    folded = Folded(Case(make=measuring, plugins=(builtin,), backends=quick, policies=policies, events=()))
    rng = np.random.default_rng(1)
    try:
        expected = []
        for n in range(40):
            features = {"x": float(rng.normal() + 3 * (n % 2)), "y": 1.0}
            if n > 9:
                asked = ClassifyRequest(head="h", targets=[Target(features=features)])
                found = folded.world.view.member(head).server.classify(asked)[0].labels
                chances = {one.label: one.score for one in found}
                expected.append((chances["ab"[n % 2]], found[0].label == "ab"[n % 2], found[0].score))
            folded.send([("label.observed", {"head": "h", "target": {"features": features}, "label": "ab"[n % 2]})])
        scored = folded.server.measured().scored()
        assert scored.score == pytest.approx([chance for chance, _, _ in expected], abs=2e-6)
        assert scored.right is not None
        assert scored.right.tolist() == [right for _, right, _ in expected]
        told = [one.sure for one in folded.server.measured().tested("h")]
        assert told == pytest.approx([sure for _, _, sure in expected], abs=2e-6)
        [point] = folded.server.measured().series(from_us=0, to_us=2**62, slice_="h")
        assert point.events == 30
        assert point.accuracy > 0.8
        assert point.calibration_error < 0.2
        assert folded.server.slices == ("all", "h")
    finally:
        folded.close()


def test_labels_of_merged_classes_are_expected_as_what_they_are_read_as() -> None:
    def measuring() -> HeadQuality:
        return HeadQuality(HeadQualityConfig(head="quick"))

    measuring.__name__ = "head_quality"
    quick = {"encoder": {"use": "hashing", "dim": 64}}
    folded = Folded(
        Case(make=measuring, plugins=(builtin,), backends=quick, policies={"quick": MEMBERS["quick"]}, events=())
    )
    try:
        points = [("label.observed", {"head": "h", "target": {"features": {"x": 4.0 * (n % 3), "y": 1.0 + n / 50}},
                   "label": "abc"[n % 3]}) for n in range(30)]  # fmt: skip
        folded.send(points)
        folded.send(
            [("class.merged", {"head": "h", "class": "b", "into": "c"}), ("class.retired", {"head": "h", "class": "a"})]
        )
        before = len(folded.server.measured().scored().key)
        folded.send([(kind, data | {"target": {"features": {"x": 4.0 * (n % 3), "y": 3.0 + n / 50}}})
                     for n, (kind, data) in enumerate(points)])  # fmt: skip
        tested = list(folded.server.measured().tested("h"))[before:]
        assert [one.label for one in tested] == ["c"] * 20
        assert all(one.right and one.chance > 0.9 for one in tested)
    finally:
        folded.close()


def test_a_head_that_measures_itself_is_refused() -> None:
    with pytest.raises(ConfigError, match="measure themselves"):
        HeadQuality().check_reads({"label_statistics": LabelStatistics()})


@pytest.mark.parametrize(
    "policy",
    [
        LabelStatistics(LabelStatisticsConfig(prior_weight=5.0)),
        LabelStatistics(LabelStatisticsConfig(targets="names", prior_weight=5.0)),
        KalmanHead(KalmanHeadConfig(prior_weight=5.0)),
    ],
    ids=["ridge", "names", "kalman"],
)
def test_the_name_of_a_class_counts_from_where_it_was_declared(
    bench: Any, make_event: Any, policy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Labels before it were expected by what was known then, not by a name that came later."""
    monkeypatch.setattr(_head_quality, "_BLOCK", 1)
    says = {"a": "a red lamp", "b": "an oak desk", "c": "a green chair"}
    events = []
    for n in range(1, 25):
        if n in (7, 13):
            data = {"head": "h", "class": "ac"[n > 7], "name": ("something red", "a green thing to sit on")[n > 7]}
            events.append(make_event(n, "class.upserted", **data))
            continue
        given = "ab"[n % 2] if n < 13 else "abc"[n % 3]
        events.append(make_event(n, "label.observed", head="h", target={"text": f"{says[given]} {n}"}, label=given))
    whole, one_by_one = bench(policy), bench(type(policy)(policy.config))
    whole.send(*events)
    expected = {}
    for event in events:
        if event.type == "label.observed" and event.seq > 1:
            asked = ClassifyRequest(head="h", targets=[Target(text=event.data.target.text)])
            found = one_by_one.server.classify(asked)[0].labels
            expected[event.seq] = {one.label: one.score for one in found}.get(event.data.label, 0.0)
        one_by_one.send(event)
    scored = whole.server.measured().scored()
    assert dict(zip(scored.key[:, 0].tolist(), scored.score.tolist(), strict=True)) == pytest.approx(expected, abs=5e-6)


def test_all_labels_but_the_first_are_scored_in_blocks_that_grow(bench: Any, labels: list[Any]) -> None:
    """A head with few labels is measured too; a block is no larger than what is known before it."""
    one = bench(LabelStatistics())
    one.send(*labels)
    scored = one.server.measured().scored()
    assert scored.key[:, 0].tolist() == list(range(2, 61))
    first, second = (event.data.label for event in labels[:2])
    assert scored.score[0] == (first == second), "expected by one label alone"
