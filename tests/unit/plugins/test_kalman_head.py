"""``kalman_head``: as ``label_statistics`` it answers from its rows alone, however these came about; and it forgets."""

from __future__ import annotations

import itertools
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamfold.core import ClassifyRequest, ConfigError, NeedsRebuild, Target
from streamfold.plugins.kalman_head import KalmanHead, KalmanHeadConfig

SPAM = ["cheap pills now", "win cheap money now", "cheap loans, pills, money", "you win a prize now"]
HAM = ["the meeting is on monday", "minutes of the meeting", "notes for monday's review", "the review is done"]
START_US = 1_700_000_000_000_000


class Stream:
    """Makes events with increasing positions."""

    def __init__(self, bench: Any, make_event: Any, **config: Any) -> None:
        self.bench = bench(KalmanHead(KalmanHeadConfig(**config)))
        self._make, self._seq = make_event, itertools.count(1)

    def event(self, type_: str, at_us: int | None = None, **data: Any) -> Any:
        return self._make(next(self._seq), type_, at_us, **data)

    def label(self, label: Any, at_us: int | None = None, **target: Any) -> Any:
        return self.event("label.observed", at_us, head="h", target=target, label=label)

    def send(self, *events: Any) -> None:
        self.bench.send(*events)

    def ask(self, **target: Any) -> Any:
        request = ClassifyRequest(head="h", targets=[Target(**target)], explain=True)
        return self.bench.server.classify(request)[0]

    def best(self, **target: Any) -> str:
        return str(self.ask(**target).labels[0].label)


@pytest.fixture
def stream(bench: Any, make_event: Any) -> Any:
    return lambda **config: Stream(bench, make_event, **config)


def same(one: Any, other: Any) -> None:
    assert [label.label for label in one.labels] == [label.label for label in other.labels]
    assert [label.score for label in one.labels] == pytest.approx([label.score for label in other.labels], abs=2e-6)
    assert one.unknown == pytest.approx(other.unknown, abs=2e-6)
    assert one.explain["gamma"] == pytest.approx(other.explain["gamma"], abs=2e-6)


def test_labels_folded_a_moment_ago_classify_texts_and_features(stream: Any) -> None:
    mail = stream()
    pairs = zip(SPAM, HAM, strict=True)
    mail.send(
        *[mail.label(name, text=text) for pair in pairs for name, text in zip(("spam", "ham"), pair, strict=True)]
    )
    found = mail.ask(text="cheap pills, win money")
    assert found.labels[0].label == "spam"
    assert sum(one.score for one in found.labels) == pytest.approx(1, abs=1e-5)
    assert found.explain["read_out"] == "kalman"
    assert 0.997 <= found.explain["gamma"] <= 0.9997
    assert mail.best(text="monday's meeting and review") == "ham"
    mail.send(*[mail.label("travel", text=text) for text in ("a train to paris", "the train ticket to paris")])
    assert mail.best(text="a ticket for the train to paris") == "travel"
    wines = stream()
    rng = random.Random(0)
    for _ in range(40):
        for label, centre in ((3, -1.0), (4.5, 1.0)):
            wines.send(wines.label(label, features={"x": centre + rng.gauss(0, 0.3), "y": rng.gauss(0, 0.3)}))
    assert wines.best(features={"x": 1.1, "y": 0.1}) == "4.5"
    assert wines.ask(features={"x": 1.0, "y": 40.0}).unknown > 0.95 > wines.ask(features={"x": 1.0, "y": 0.0}).unknown


def test_a_named_class_counts_before_its_first_label_merges_and_retires(stream: Any) -> None:
    mail = stream()
    classes = (("a", "trains and tickets"), ("b", "invoices and payments"))
    mail.send(*[mail.event("class.upserted", head="h", **{"class": one}, name=name) for one, name in classes])
    found = mail.ask(text="a ticket for the train")
    assert (found.labels[0].label, found.labels[0].name) == ("a", "trains and tickets")
    mail.send(*[mail.label("c", text=f"a ticket for the train {n}") for n in range(9)])
    assert mail.best(text="a ticket for the train") == "c"
    mail.send(mail.event("class.merged", head="h", **{"class": "c"}, into="b"))
    assert mail.best(text="a ticket for the train") == "b"
    mail.send(mail.event("class.retired", head="h", **{"class": "b"}))
    assert [one.label for one in mail.ask(text="a ticket for the train").labels] == ["a"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=12)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.sampled_from(["a", "b", "c", None]), st.integers(0, 90)), min_size=4),
    st.integers(0, 700),
)
def test_asking_in_between_changes_nothing_however_late_labels_come_or_go(
    stream: Any, rows: list[tuple[int, str | None, int]], many: int
) -> None:
    """Copies of earlier states are gone back to; who asks once filters all labels in the order of their times."""
    asked, once = stream(), stream()
    rng = random.Random(many)
    first = [(1000 + n, rng.choice("ab"), n) for n in range(many)]
    for one in (asked, once):
        one.send(*[one.label(label, START_US + at, features=features(n)) for n, label, at in first])
    for step, (number, label, late) in enumerate(rows):
        for one in (asked, once):
            one.send(one.label(label, START_US + many + step - late * 7, features=features(number)))
        if asked.bench.server.heads():
            asked.ask(features=features(3))
    if once.bench.server.heads():
        same(asked.ask(features=features(3)), once.ask(features=features(3)))


def features(number: int) -> dict[str, float]:
    return {"x": 0.5 + number % 11 / 5, "y": number * number % 7 / 3 - 1}


def test_whoever_is_forgotten_might_never_have_come(stream: Any) -> None:
    one, two = stream(), stream()
    events = []
    for n in range(30):
        events += [one.event("document.upserted", document_id=f"d{n}", text=(SPAM + HAM)[n % 8])]
        events += [one.label("spam" if n % 8 < 4 else "ham", document_id=f"d{n}")]
    mine = [event for event in events if event.subject.id == "d3"]
    one.send(*events)
    two.send(*[event for event in events if event not in mine])
    one.ask(document_id="d1")
    one.bench.forget("document", "d3", *mine)
    assert one.bench.fingerprint() == two.bench.fingerprint()
    same(one.ask(document_id="d1"), two.ask(document_id="d1"))
    by_exposure = one.event("label.observed", head="h", target={"text": "x"}, label="a", exposure_id="e1")
    with pytest.raises(NeedsRebuild):
        one.bench.forget("exposure", "e1", by_exposure)


def test_what_is_older_than_the_horizon_is_neither_filtered_nor_a_class(stream: Any) -> None:
    """With γ = .9 a label weighs less than a millionth after 132 others; a view that starts then agrees with one that
    was there all the time."""
    there, anew = stream(gammas=(0.9,)), stream(gammas=(0.9,))
    for n in range(1000):
        label = "old" if n < 800 else "ab"[n % 2]
        for one in (there, anew):
            one.send(one.label(label, features={"x": (1.0 if label == "a" else -1.0) + n / 1e4, "y": n / 500}))
        if n % 40 == 0:
            there.ask(features={"x": 1.0, "y": 1.0})
    same(there.ask(features={"x": 1.0, "y": 1.0}), anew.ask(features={"x": 1.0, "y": 1.0}))
    assert {one.label for one in anew.ask(features={"x": 1.0, "y": 1.0}).labels} == {"a", "b"}


@pytest.mark.parametrize(
    "bad", [{"gammas": ()}, {"gammas": (1.0,)}, {"gammas": (0.9, 0.9)}, {"noise": 0.0}, {"max_labels": 0}]
)
def test_wrong_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="kalman_head"):
        KalmanHeadConfig(**bad)


def test_a_label_that_weighs_next_to_nothing_says_next_to_nothing(stream: Any) -> None:
    mail = stream()
    faint = mail.event("label.observed", head="h", target={"text": SPAM[1]}, label="ham", weight=1e-310)
    mail.send(mail.label("spam", text=SPAM[0]), mail.label("ham", text=HAM[0]), faint)
    found = mail.ask(text=SPAM[0])
    assert found.labels[0].label == "spam"
    assert sum(one.score for one in found.labels) == pytest.approx(1, abs=1e-5)
