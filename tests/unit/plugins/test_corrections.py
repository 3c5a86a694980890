"""``corrections``: pins are obeyed, reach no farther than the radius, split where they disagree, and leave no trace."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamfold.core import ClassifyRequest, ConfigError, EventError, NeedsRebuild, StoreFull, Target
from streamfold.plugins.corrections import Corrections, CorrectionsConfig


class Stream:
    """Makes events with increasing positions."""

    def __init__(self, bench: Any, make_event: Any, **config: Any) -> None:
        self.bench = bench(Corrections(CorrectionsConfig(**config)))
        self._make, self._seq = make_event, itertools.count(1)

    def event(self, type_: str, **data: Any) -> Any:
        return self._make(next(self._seq), type_, **data)

    def pin(self, label: str | None, head: str = "h", user: str | None = None, **target: Any) -> Any:
        data = {"exposure_id": "e", "value": -1.0, "correction": label, "user_id": user, "head": head}
        return self.event("feedback.given", **data, target=target)

    def send(self, *events: Any) -> None:
        self.bench.send(*events)

    def ask(self, *targets: dict[str, Any], head: str = "h", explain: bool = False) -> Any:
        request = ClassifyRequest(head=head, targets=[Target(**one) for one in targets], explain=explain)
        return self.bench.server.corrections(request)

    def said(self, head: str = "h", **target: Any) -> str | None:
        found = self.ask(target, head=head)
        return found[0].labels[0].label if found else None


@pytest.fixture
def stream(bench: Any, make_event: Any) -> Any:
    return lambda **config: Stream(bench, make_event, **config)


def point(x: float, y: float) -> dict[str, Any]:
    return {"features": {"x": x, "y": y}}


def test_a_pin_is_obeyed_within_its_radius_and_nowhere_else(stream: Any) -> None:
    pins = stream(radius=0.2)
    assert pins.said(**point(10, 0)) is None
    pins.send(pins.pin("a", **point(10, 0)))
    assert pins.said(**point(10, 0)) == "a"
    assert pins.said(**point(10, 1.99)) == "a"
    assert pins.said(**point(10, 2.01)) is None
    assert pins.said(head="other", **point(10, 0)) is None
    assert pins.said(text="hello") is None
    [found] = pins.ask(point(0, 10), point(10, 1), {"features": {"z": 1.0}}, explain=True).items()
    assert found[0] == 1
    assert found[1].labels[0].score == 1.0
    assert found[1].explain == {"pinned_at": 1, "distance": 1.0, "radius": 2.0}


def test_a_later_pin_replaces_null_takes_it_away_and_nothing_is_left(stream: Any) -> None:
    pins = stream()
    fresh = pins.bench.fingerprint()
    pins.send(pins.pin("a", text="the new lens"), pins.pin("a", **point(1, 1)))
    assert pins.said(text="the new lens") == "a"
    pins.send(pins.pin("b", text="the new lens"))
    assert pins.said(text="the new lens") == "b"
    pins.send(pins.pin(None, text="the new lens"), pins.pin(None, text="never pinned"), pins.pin(None, **point(1, 1)))
    assert pins.said(text="the new lens") is None
    assert pins.bench.fingerprint() == fresh
    pins.send(pins.event("feedback.given", exposure_id="e", value=0.5, correction="it is in chapter 4"))
    assert pins.bench.fingerprint() == fresh  # a correction of an answer in words is no label


def test_things_are_pinned_by_what_they_said_and_the_same_words_by_whose_they_are(stream: Any) -> None:
    pins = stream()
    words = "minutes of the meeting on monday"
    pins.send(*[pins.event("document.upserted", document_id=f"d{n}", text=words) for n in range(3)])
    pins.send(pins.pin("a", document_id="d0"), pins.pin("b", document_id="d1"))
    assert [pins.said(document_id=f"d{n}") for n in range(3)] == ["a", "b", "b"]  # of two alike the newer
    pins.send(pins.event("document.upserted", document_id="d0", text="a train to paris"))
    assert pins.said(document_id="d0") is None
    pins.send(pins.event("document.deleted", document_id="d1"))
    assert pins.said(document_id="d1") is None
    assert pins.said(document_id="nobody") is None


POINTS = st.tuples(st.floats(1, 9), st.floats(1, 9))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(
    st.lists(st.tuples(POINTS, st.sampled_from("abc")), min_size=1, max_size=12, unique_by=lambda row: row[0]),
    st.lists(POINTS, min_size=1, max_size=12),
    st.randoms(use_true_random=False),
)
def test_every_pin_is_obeyed_nothing_farther_is_touched_and_order_does_not_matter(
    stream: Any, pinned: list[Any], others: list[Any], random: Any
) -> None:
    """The edits succeed, locality is exact, and a pin taken away might never have been: whatever the pins."""
    one, two = stream(radius=0.3), stream(radius=0.3)
    one.send(*[one.pin(label, **point(*where)) for where, label in pinned])
    gone = (99.0, 99.0)
    shuffled = random.sample(pinned, len(pinned))
    two.send(two.pin("c", **point(*gone)), two.pin("b", **point(*pinned[0][0])))
    two.send(*[two.pin(label, **point(*where)) for where, label in shuffled], two.pin(None, **point(*gone)))
    for where, label in pinned:
        assert one.said(**point(*where)) == label
    near = [(x + random.uniform(-0.5, 0.5), y + random.uniform(-0.5, 0.5)) for (x, y), _ in pinned]
    for where in [*others, *near]:
        said = one.said(**point(*where))
        assert said == two.said(**point(*where))
        away = sorted((np.hypot(where[0] - x, where[1] - y), 0.3 * np.hypot(x, y), label) for (x, y), label in pinned)
        if all(distance > radius * (1 + 1e-9) for distance, radius, _ in away):
            assert said is None
        elif said is not None:
            assert said in {label for distance, radius, label in away if distance <= radius * (1 + 1e-9)}


def test_pins_that_disagree_each_reach_half_the_way(stream: Any) -> None:
    pins = stream(radius=0.5)
    pins.send(pins.pin("a", **point(10, 0)), pins.pin("b", **point(10, 2)), pins.pin("a", **point(10, 1.2)))
    assert [pins.said(**point(10, y)) for y in (0.0, 0.9, 1.3, 1.7, 2.0, 2.3)] == ["a", "a", "a", "b", "b", "b"]
    assert pins.said(**point(10, 2.5)) is None  # the way to the nearest of another label is .8, its half .4
    assert pins.said(**point(10, -0.9)) == "a"
    pins.send(pins.pin(None, **point(10, 2)))
    assert pins.said(**point(10, 2.5)) == "a"  # who disagreed is gone


def test_whose_target_is_erased_is_gone_to_the_bit_and_who_corrected_others_is_folded_afresh(stream: Any) -> None:
    one, two = stream(), stream()
    events = []
    for n in range(6):
        events += [one.event("user.upserted", user_id=f"u{n}", properties={"about": f"violins {n}"})]
        events += [one.pin("music", user_id=f"u{n}"), one.pin("art", head="g", user_id=f"u{n}")]
    mine = [event for event in events if "u3" in str(event.data)]
    one.send(*events)
    two.send(*[event for event in events if event not in mine])
    one.bench.forget("user", "u3", *mine)
    assert one.bench.fingerprint() == two.bench.fingerprint()
    with pytest.raises(NeedsRebuild, match="u9"):
        one.bench.forget("user", "u9", one.pin("music", user="u9", text="x"))


@pytest.mark.parametrize(
    ("label", "target", "code"),
    [
        ("a", {"document_id": "nobody"}, "unknown-target"),
        ("a", {"text": ""}, "empty-text"),
        ("", {"text": "t"}, "wrong-label"),
        ("a", {"features": {"x": 0.0}}, "zero-vector"),
    ],
)
def test_what_cannot_be_pinned_is_refused(stream: Any, label: str, target: dict[str, Any], code: str) -> None:
    pins = stream()
    with pytest.raises(EventError) as refused:
        pins.send(pins.pin(label, **target))
    assert refused.value.code == code


def test_a_full_codebook_refuses_loudly_and_a_change_of_a_pin_goes_on(stream: Any) -> None:
    pins = stream(max_pins=2)
    pins.send(pins.pin("a", **point(1, 0)), pins.pin("b", **point(0, 1)))
    with pytest.raises(StoreFull, match="'pins' is full"):
        pins.send(pins.pin("c", **point(1, 1)))
    pins.send(pins.pin("c", **point(1, 0)))
    assert pins.said(**point(1, 0)) == "c"


@pytest.mark.parametrize("bad", [{"radius": -0.1}, {"radius": 3.0}, {"max_pins": 0}])
def test_wrong_settings_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="corrections"):
        CorrectionsConfig(**bad)
