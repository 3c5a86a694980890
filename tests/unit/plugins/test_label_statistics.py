"""``label_statistics``: labels that come, change, go and are forgotten, classes by event, and what is refused."""

from __future__ import annotations

import itertools
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamfold.core import ClassifyRequest, ConfigError, EventError, NeedsRebuild, Target, WrongTarget
from streamfold.plugins._heads import HeadsServer, Row, SpaceState
from streamfold.plugins._labels import LabelRow
from streamfold.plugins._readouts import Head
from streamfold.plugins.label_statistics import LabelStatistics, LabelStatisticsConfig

SPAM = ["cheap pills now", "win cheap money now", "cheap loans, pills, money", "you win a prize now"]
HAM = ["the meeting is on monday", "minutes of the meeting", "notes for monday's review", "the review is done"]
READ_OUTS = ["ridge", "lda", "prototype"]


class Stream:
    """Makes events with increasing positions."""

    def __init__(self, bench: Any, make_event: Any, **config: Any) -> None:
        self.bench = bench(LabelStatistics(LabelStatisticsConfig(**config)))
        self._make, self._seq = make_event, itertools.count(1)

    def event(self, type_: str, **data: Any) -> Any:
        return self._make(next(self._seq), type_, **data)

    def label(self, label: Any, head: str = "mail", weight: float | None = None, **target: Any) -> Any:
        return self.event("label.observed", head=head, target=target, label=label, weight=weight)

    def send(self, *events: Any) -> None:
        self.bench.send(*events)

    def learn(self) -> list[Any]:
        events = [self.label("spam", text=text) for text in SPAM] + [self.label("ham", text=text) for text in HAM]
        self.send(*events)
        return events

    def ask(self, head: str = "mail", top_k: int = 5, explain: bool = False, **target: Any) -> Any:
        request = ClassifyRequest(head=head, targets=[Target(**target)], top_k=top_k, explain=explain)
        return self.bench.server.classify(request)[0]

    def best(self, **target: Any) -> str:
        return str(self.ask(**target).labels[0].label)


@pytest.fixture
def stream(bench: Any, make_event: Any) -> Any:
    return lambda **config: Stream(bench, make_event, **config)


@pytest.mark.parametrize("read_out", READ_OUTS)
@pytest.mark.parametrize("expansion", [0, 64])
def test_labels_folded_a_moment_ago_classify(stream: Any, read_out: str, expansion: int) -> None:
    mail = stream(read_out=read_out, expansion=expansion)
    mail.learn()
    found = mail.ask(text="cheap pills, win money", explain=True)
    assert found.labels[0].label == "spam"
    assert sum(one.score for one in found.labels) == pytest.approx(1, abs=1e-5)
    assert found.labels[0].score > 0.5
    assert mail.best(text="monday's meeting and review") == "ham"
    assert found.explain["nearest"] == "spam"
    assert found.explain["read_out"] == read_out
    mail.send(*[mail.label("travel", text=text) for text in ("a train to paris", "the train ticket to paris")])
    assert mail.best(text="a ticket for the train to paris") == "travel"  # a class appears by its first label


def test_a_later_label_replaces_null_retracts_and_an_empty_class_disappears(stream: Any) -> None:
    one, two = stream(), stream()
    one.send(one.label("x", text="lamp"), one.label("y", text="desk"), one.label("z", text="chair"))
    one.send(one.label("y", text="lamp"), one.label(None, text="chair"), one.label(None, text="never labelled"))
    assert {label.label for label in one.ask(text="lamp").labels} == {"y"}
    assert one.bench.server.heads() == {"mail": 2}
    for _ in range(1):
        next(two._seq)
    desk = two.label("y", text="desk")
    next(two._seq)
    lamp = two.label("y", text="lamp")
    two.send(desk, lamp)
    assert one.bench.fingerprint() == two.bench.fingerprint()


def test_numbers_are_labels_and_features_are_vectors_in_order_of_their_names(stream: Any) -> None:
    wines = stream(read_out="lda")
    rng = random.Random(0)
    for _ in range(30):
        for label, centre in ((3, 0.0), (4.5, 5.0)):
            acid, sugar = centre + rng.random(), centre - rng.random()
            wines.send(wines.label(label, head="wine", features={"sugar": sugar, "acid": acid, "ph": None}))
    assert wines.ask(head="wine", features={"acid": 5.2, "sugar": 4.5}).labels[0].label == "4.5"
    known = wines.ask(head="wine", features={"acid": 0.5, "sugar": -0.5})
    assert known.labels[0].label == "3"
    far = wines.ask(head="wine", features={"acid": 900.0, "sugar": 1.0})
    assert far.unknown > 0.95 > known.unknown


def test_things_are_classified_by_their_text_and_a_label_keeps_the_vector_it_was_given_for(stream: Any) -> None:
    mail = stream()
    mail.send(
        mail.event("document.upserted", document_id="d1", title="Offer", text=SPAM[0]),
        mail.event("item.upserted", item_id="i1", title=HAM[0]),
        mail.event("user.upserted", user_id="u1", properties={"sends": "cheap pills"}),
    )
    mail.send(mail.label("spam", document_id="d1"), mail.label("ham", item_id="i1"))
    assert mail.best(user_id="u1") == "spam"
    assert mail.best(document_id="d1") == "spam"
    mail.send(mail.event("document.upserted", document_id="d1", text=HAM[0]))
    assert mail.best(document_id="d1") == "ham"  # what it says now; the label was for what it said
    mail.send(mail.event("document.deleted", document_id="d1"))
    with pytest.raises(WrongTarget, match="document d1"):
        mail.ask(document_id="d1")


HOUR_US = 3_600_000_000


@pytest.mark.parametrize("read_out", READ_OUTS)
def test_with_a_half_life_what_was_true_lately_counts_in_any_order_of_arrival(stream: Any, read_out: str) -> None:
    """A class that changes places: the decayed head follows, and a label that is taken back leaves nothing."""
    rng = random.Random(0)
    rows = [(hour, label, where) for hour in range(40) for label in "ab" for where in [5.0 if label == "a" else -5.0]]
    drawn = [
        (hour, label, {"x": (where if hour < 25 else -where) + rng.gauss(0, 1), "y": rng.gauss(0, 1)})
        for hour, label, where in rows
    ]
    still, one, two = stream(read_out=read_out), *(stream(read_out=read_out, half_life_s=2 * 3600.0) for _ in range(2))

    def sent(to: Any, order: list[Any]) -> None:
        for hour, label, features in order:
            data = {"head": "mail", "target": {"features": features}, "label": label}
            to.send(to._make(next(to._seq), "label.observed", 1_700_000_000_000_000 + hour * HOUR_US, **data))

    for to in (still, one):
        sent(to, drawn)
    sent(two, random.Random(1).sample(drawn, len(drawn)))
    sent(two, [(400, "c", {"x": 1.0, "y": 1.0})])  # 180 half-lives later: what came before weighs nothing
    assert [label.label for label in two.ask(features={"x": 5.0, "y": 0.1}).labels] == ["c"]
    two.send(two.label(None, features={"x": 1.0, "y": 1.0}))
    assert still.best(features={"x": 5.0, "y": 0.1}) == "a"  # 25 hours against 15
    for x in (5.0, -5.0, 0.3):
        mine, other = one.ask(features={"x": x, "y": 0.1}), two.ask(features={"x": x, "y": 0.1})
        assert mine.labels[0].label == ("b" if x > 0 else "a")
        assert [label.score for label in mine.labels] == pytest.approx(
            [label.score for label in other.labels], abs=1e-5
        )


def test_a_named_class_has_a_prior_before_its_first_label(stream: Any) -> None:
    mail = stream()
    mail.send(
        mail.event("class.upserted", head="mail", **{"class": "a"}, name="trains and tickets"),
        mail.event("class.upserted", head="mail", **{"class": "b"}, name="invoices and payments"),
        mail.event("class.upserted", head="mail", **{"class": "c"}),
    )
    found = mail.ask(text="a ticket for the train")
    assert (found.labels[0].label, found.labels[0].name) == ("a", "trains and tickets")
    assert {one.label for one in found.labels} == {"a", "b"}  # c has no evidence
    assert mail.bench.server.heads() == {"mail": 2}
    mail.send(*[mail.label("b", text=f"a ticket for the train {n}") for n in range(6)])
    assert mail.best(text="a ticket for the train") == "b"  # κ = 1 label is soon outweighed
    mail.send(mail.event("class.upserted", head="mail", **{"class": "a"}, name="cats and dogs"))  # renamed
    assert {one.label: one.name for one in mail.ask(text="train").labels}["a"] == "cats and dogs"
    assert mail.best(text="dogs and cats") == "a"


def test_a_renamed_class_has_another_prior_and_is_shown_by_its_new_name(stream: Any) -> None:
    mail, fresh = stream(), stream()
    for one in (mail, fresh):
        one.send(one.label("a", text="the meeting is on monday"), one.label("b", text="a ticket for the train"))
    mail.send(mail.event("class.upserted", head="mail", **{"class": "a"}, name="pills and money"))
    next(fresh._seq)
    assert mail.best(text="cheap pills, money") == "a"
    first = mail.bench.view["classes"].get("mail\0a")
    for one in (mail, fresh):
        one.send(one.event("class.upserted", head="mail", **{"class": "a"}, name="minutes and reviews"))
    row = mail.bench.view["classes"].get("mail\0a")
    assert row.prior != first.prior
    assert row.labels == first.labels == 1
    found = mail.ask(text="minutes, reviews")
    assert (found.labels[0].label, found.labels[0].name) == ("a", "minutes and reviews")
    assert mail.bench.fingerprint() == fresh.bench.fingerprint()  # nothing is left of the first name
    assert mail.ask(text="cheap pills, money") == fresh.ask(text="cheap pills, money")


COLOURS, SHAPES = ("red", "blue", "green", "yellow"), ("square", "circle", "star")


def shapes(stream: Any, few: int, named: bool, **config: Any) -> tuple[Any, list[tuple[str, dict[str, float]]]]:
    """A head of things with a colour and a shape; of three of the twelve classes there are few labels."""
    rng = np.random.default_rng(0)
    colours, forms = rng.normal(size=(4, 12)), rng.normal(size=(3, 12))
    head = stream(**config)
    if named:
        for i, colour in enumerate(COLOURS):
            for j, shape in enumerate(SHAPES):
                head.send(head.event("class.upserted", head="mail", **{"class": f"{i}{j}"}, name=f"{colour} {shape}"))
    asked = []
    for i in range(4):
        for j in range(3):
            rows = colours[i] + forms[j] + 0.5 * rng.normal(size=(60, 12))
            told = [{f"x{k}": float(v) for k, v in enumerate(row)} for row in rows]
            rare = i == j
            head.send(*[head.label(f"{i}{j}", features=one) for one in told[: few if rare else 40]])
            asked += [(f"{i}{j}", one) for one in told[40:] if rare]
    return head, asked


def test_a_named_class_with_few_labels_is_found_by_what_others_of_similar_names_are(stream: Any) -> None:
    """Language-guided targets, arXiv:2403.16124: of a blue circle much is known from blue squares and red circles."""
    right = {}
    for targets in ("one_hot", "names"):
        head, asked = shapes(stream, 2, True, targets=targets)
        right[targets] = np.mean([head.best(features=features) == label for label, features in asked])
    assert right["one_hot"] < 0.2
    assert right["names"] > 0.8


def test_targets_of_names_are_one_hot_where_there_are_none_and_follow_a_renaming(stream: Any) -> None:
    plain, guided = (shapes(stream, 5, False, targets=targets) for targets in ("one_hot", "names"))
    for _, features in plain[1][:10]:
        assert plain[0].ask(features=features) == guided[0].ask(features=features)
        tested = [list(each[0].bench.server.measured().tested(None)) for each in (plain, guided)]
    assert tested[0] == tested[1]
    other, _ = shapes(stream, 2, True)
    head, asked = shapes(stream, 2, True, targets="names")
    tested = [list(each.bench.server.measured().tested(None)) for each in (other, head)]
    assert tested[0] != tested[1]  # a head is measured as it answers
    before = head.ask(features=asked[0][1])
    head.send(head.event("class.upserted", head="mail", **{"class": "00"}, name="something else altogether"))
    after = head.ask(features=asked[0][1])
    assert before.labels[0].label == "00"
    assert after.labels[0].label != "00"


def test_topped_up_a_head_answers_otherwise_and_keeps_the_same(stream: Any) -> None:
    """AEF-OCL, arXiv:2405.17779: where classes are balanced even the answer is the same."""
    plain, topped = stream(), stream(top_up=True)
    for one in (plain, topped):
        one.learn()
    for text in (*SPAM, "the review of monday's pills"):
        assert plain.ask(text=text) == topped.ask(text=text)
    for one in (plain, topped):
        one.send(*[one.label("ham", text=f"{HAM[n % 4]} {n}") for n in range(60)])
    assert plain.bench.fingerprint() == topped.bench.fingerprint()
    first, second = (one.ask(text="a cheap review", explain=True) for one in (plain, topped))
    assert second.explain["weights"] == {"spam": 4.0, "ham": 64.0}
    chance = [next(label.score for label in one.labels if label.label == "spam") for one in (first, second)]
    assert chance[1] > chance[0]


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 40), st.sampled_from([3.0, 40.0, 300.0]))
def test_decayed_labels_that_are_taken_out_leave_what_a_fresh_fold_has(seed: int, taken: int, halved: float) -> None:
    """Within 1e-10 of the largest entry, also where the newest go and what remains is many half-lives older."""
    rng = np.random.default_rng(seed)
    config = LabelStatisticsConfig(half_life_s=3600.0, top_up=True)  # for which squares are kept too
    rows = {}
    for n in range(60):
        at_us = int(rng.uniform(0, halved) * HOUR_US)
        phi = rng.normal(size=8).tobytes()
        rows[f"k{n}"] = Row(LabelRow("a", 1.0, n, "8", at_us), f"c{n % 3}", rng.uniform(0.5, 2), "8", phi, n, at_us)
    by_time = sorted(rows, key=lambda key: -rows[key].at_us)
    gone = by_time[:taken] if seed % 2 else list(rng.permutation(by_time)[:taken])
    every, fresh = (SpaceState(config, "8", 8) for _ in range(2))
    every.update((), rows)
    for start in range(0, taken, 7):
        every.update(gone[start : start + 7], {})
    fresh.update((), {key: row for key, row in rows.items() if key not in gone})
    one, other = (each.sums() for each in (every, fresh))
    assert one.names == other.names
    parts = [(*each.per_class(), each.gram) for each in (one, other)]
    largest = max(float(np.abs(part).max()) for part in parts[1])
    for mine, theirs in zip(*parts, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-10 * largest)


def test_classes_are_merged_retired_and_brought_back_without_touching_labels(stream: Any) -> None:
    mail = stream()
    mail.learn()
    mail.send(mail.label("junk", text="free pills, free money"))
    labels = mail.bench.view["labels"].fingerprint()
    mail.send(mail.event("class.merged", head="mail", **{"class": "junk"}, into="spam"))
    assert {one.label for one in mail.ask(text="free pills").labels} == {"spam", "ham"}
    mail.send(mail.event("class.retired", head="mail", **{"class": "spam"}))
    assert {one.label for one in mail.ask(text="free pills").labels} == {"ham"}
    mail.send(mail.event("class.upserted", head="mail", **{"class": "spam"}))
    mail.send(mail.event("class.upserted", head="mail", **{"class": "junk"}))
    assert {one.label for one in mail.ask(text="free pills").labels} == {"spam", "ham", "junk"}
    assert mail.bench.view["labels"].fingerprint() == labels
    for one, other in (("junk", "spam"), ("spam", "junk")):  # a circle is read as what was merged last
        mail.send(mail.event("class.merged", head="mail", **{"class": one}, into=other))
    assert {one.label for one in mail.ask(text="free pills").labels} == {"spam", "ham"}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=15)
@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["a", "b", "c", None])), min_size=1, max_size=40))
def test_asking_in_between_changes_nothing(stream: Any, rows: list[tuple[int, str | None]]) -> None:
    """What a head answers is a function of its labels, whenever it was asked before."""
    asked, once = stream(read_out="lda"), stream(read_out="lda")
    for number, label in rows:
        for one in (asked, once):
            one.send(one.label(label, features={"x": 1.0 + number, "y": float(number * number % 7)}))
        if asked.bench.server.heads():
            asked.ask(features={"x": 3.0, "y": 3.0})
    if once.bench.server.heads():
        one, other = (each.ask(features={"x": 3.0, "y": 3.0}, explain=True) for each in (asked, once))
        assert [label.label for label in one.labels] == [label.label for label in other.labels]
        assert [label.score for label in one.labels] == pytest.approx([o.score for o in other.labels], abs=1e-5)
        assert one.unknown == pytest.approx(other.unknown)


def test_whoever_is_forgotten_might_never_have_come_to_the_bit(stream: Any) -> None:
    one, two = stream(), stream()
    events = []
    for n in range(20):
        events += [one.event("document.upserted", document_id=f"d{n}", text=(SPAM + HAM)[n % 8])]
        events += [one.label("spam" if n % 8 < 4 else "ham", document_id=f"d{n}", weight=1 + n / 7)]
    one.send(*events)
    two.send(*[event for event in events if event.subject.id != "d3"])
    one.ask(document_id="d1")
    one.bench.forget("document", "d3", *[event for event in events if event.subject.id == "d3"])
    assert one.bench.fingerprint() == two.bench.fingerprint()
    assert one.ask(document_id="d1") == two.ask(document_id="d1")
    for n in range(20):
        one.bench.forget("document", f"d{n}", *[event for event in events if event.subject.id == f"d{n}"])
    fresh = stream()
    assert one.bench.fingerprint() == fresh.bench.fingerprint()
    assert one.bench.server.heads() == {}
    label = one.event("label.observed", head="mail", target={"text": "x"}, label="a", exposure_id="e1")
    with pytest.raises(NeedsRebuild):
        one.bench.forget("exposure", "e1", label)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ({"target": {"document_id": "nobody"}, "label": "a"}, "unknown-target"),
        ({"target": {"features": {"x": 0.0}}, "label": "a"}, "zero-vector"),
        ({"target": {"features": {"x": "red"}}, "label": "a"}, "wrong-features"),
        ({"target": {"features": {"x": 1e300}}, "label": "a"}, "wrong-features"),
        ({"target": {"text": ""}, "label": "a"}, "empty-text"),
        ({"target": {"text": "t"}, "label": ""}, "wrong-label"),
        ({"target": {"text": "t"}, "label": "x" * 300}, "wrong-label"),
        ({"target": {"text": "t"}, "label": "a", "weight": 1e9}, "wrong-weight"),
    ],
)
def test_a_label_that_cannot_be_used_is_refused_and_nothing_is_folded(
    stream: Any, data: dict[str, Any], code: str
) -> None:
    mail = stream(wait_s=0.0)
    with pytest.raises(EventError) as refused:
        mail.send(mail.event("label.observed", head="mail", **data))
    assert refused.value.code == code
    mail.bench.commit()
    assert mail.bench.fingerprint() == stream().bench.fingerprint()


@pytest.mark.parametrize(("bound", "says"), [({"max_labels": 2}, "labels"), ({"max_classes": 2}, "classes")])
def test_at_a_bound_labels_are_refused_loudly_and_nothing_is_dropped(
    stream: Any, bound: dict[str, Any], says: str
) -> None:
    mail = stream(**bound)
    mail.send(mail.label("a", text="one"), mail.label("b", text="two"))
    held = mail.bench.fingerprint()
    with pytest.raises(EventError, match=f"hold 2 {says}, and there is room for 2: .*raise max_{says}") as refused:
        mail.send(mail.label("c", text="three"))
    assert refused.value.code == f"too-many-{says}"
    if says == "classes":
        with pytest.raises(EventError, match="raise max_classes"):
            mail.send(mail.event("class.upserted", head="mail", **{"class": "c"}))
        with pytest.raises(EventError, match="raise max_classes"):
            mail.send(mail.label("a", head="another", text="one"))
    mail.bench.commit()
    assert mail.bench.fingerprint() == held
    mail.send(mail.label("c", text="one"))  # what takes no further room goes on: "a" has no labels any more


def test_features_of_other_names_are_never_mixed_and_a_target_of_them_is_refused(stream: Any) -> None:
    mail = stream()
    mail.send(mail.label("a", features={"x": 1.0, "y": 2.0}), mail.label("b", features={"x": 2.0, "y": 1.0}))
    with pytest.raises(WrongTarget, match=r"1 features of these names; it has: 2 of 2 features"):
        mail.ask(features={"x": 1.0})
    with pytest.raises(WrongTarget, match="no labels of texts"):
        mail.ask(text="hello")
    with pytest.raises(WrongTarget, match="features are numbers"):
        mail.ask(features={"x": "red"})
    mail.send(mail.label("c", features={"x": 1.0, "z": 1.0}))
    assert {one.label for one in mail.ask(features={"x": 1.0, "y": 2.0}).labels} == {"a", "b"}


def test_a_head_that_is_asked_for_answers_as_it_was_until_its_change_is_worked_out(stream: Any) -> None:
    mail = stream()
    mail.learn()
    server = mail.bench.server
    assert server.unsettled() is False  # nobody has asked yet: the first question solves
    assert mail.best(text="a ticket for the train to paris") != "travel"
    mail.send(*[mail.label("travel", text=text) for text in ("a train to paris", "the train ticket to paris")])
    mail.send(mail.label("travel", head="other", text="a train to rome"))
    assert server.unsettled() is True
    assert {one.label for one in mail.ask(text="a train to paris").labels} == {"spam", "ham"}
    assert [one.label for one in mail.ask(head="other", text="a train").labels] == ["travel"]  # never asked for before
    with pytest.raises(WrongTarget, match="no labels of 1 features"):
        mail.ask(features={"x": 1.0})
    work = server.look()
    work()
    assert server.unsettled() is False
    assert mail.best(text="a ticket for the train to paris") == "travel"
    mail.send(*[mail.label(None, text=text) for text in (*SPAM, *HAM, "a train to paris", "the train ticket to paris")])
    server.unsettled()
    with pytest.raises(WrongTarget, match="has no labels"):
        mail.ask(text="a train to paris")


def test_what_fails_off_the_requests_path_is_done_anew_in_a_request(stream: Any, monkeypatch: Any) -> None:
    mail = stream()
    mail.learn()
    mail.ask(text="pills")
    mail.send(mail.label("travel", text="a train to paris"))
    assert mail.bench.server.unsettled() is True
    with monkeypatch.context() as broken:
        broken.setattr("streamfold.plugins._heads.solve", None)
        with pytest.raises(TypeError):
            mail.bench.server.look()()
    assert mail.best(text="a train to paris") == "travel"


class Meeting(SpaceState):
    """Is solved when another head is being solved too."""

    both = threading.Barrier(2)

    def head(self) -> Head:
        self.both.wait(60)  # it breaks, and both fail, if one waits for the other
        return super().head()


def test_heads_are_solved_side_by_side(stream: Any) -> None:
    mail = stream()
    heads = ("mail", "post")
    for head in heads:
        mail.send(*[mail.label(label, head=head, text=label) for label in ("spam", "ham")])
    server = HeadsServer(mail.bench.policy.config, mail.bench.view, Meeting)

    def best(head: str) -> str:
        found = server.classify(ClassifyRequest(head=head, targets=[Target(text="spam")], top_k=1))
        return found[0].labels[0].label

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(best, heads)) == ["spam", "spam"]


def test_one_head_is_solved_once_for_all_who_ask_and_anew_where_that_failed(stream: Any) -> None:
    mail = stream()
    mail.learn()
    solved, asking = [], threading.Barrier(4)

    class Failing(SpaceState):
        def update(self, gone: Any, come: Any) -> None:
            super().update(gone, come)
            solved.append(len(come))
            if len(solved) == 1:
                raise MemoryError("half done")

    server = HeadsServer(mail.bench.policy.config, mail.bench.view, Failing)

    def ask(_: int) -> str | None:
        asking.wait(60)
        try:
            return server.classify(ClassifyRequest(head="mail", targets=[Target(text=SPAM[0])]))[0].labels[0].label
        except MemoryError:
            return None

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(ask, range(4)))
    assert sorted(found, key=str) == [None, "spam", "spam", "spam"]
    assert solved == [len(SPAM + HAM)] * 2


@pytest.mark.parametrize(
    "bad",
    [
        {"read_out": "svm"},
        {"gamma": 0.0},
        {"shrinkage": 2.0},
        {"max_labels": 0},
        {"targets": "words"},
        {"targets": "names", "read_out": "lda"},
        {"top_up": True, "read_out": "prototype"},
    ],
)
def test_wrong_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="label_statistics"):
        LabelStatisticsConfig(**bad)
