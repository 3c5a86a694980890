"""Labels that come before their target: learned when it comes, dead letters when it does not, and nothing twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamfold.core import ClassifyRequest, Target
from streamfold.core.fold import verify
from streamfold.core.testing.world import World
from streamfold.plugins import builtin

HEADS = {"label_statistics": {}, "kalman_head": {}, "gradient_head": {"dim": 64, "max_classes": 16}}
WAIT_S = 60.0
Make = Callable[..., World]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    worlds: list[World] = []

    def made(use: str = "label_statistics", folded: Any = None, **config: Any) -> World:
        table = {"use": use, "wait_s": WAIT_S, **HEADS[use], **config}
        encoder = {"encoder": {"use": "hashing", "dim": 64}}
        folder = tmp_path / str(len(worlds))
        worlds.append(World(folder, [builtin], {"heads": table}, backends=encoder, fold=folded))
        return worlds[-1]

    yield made
    for world in worlds:
        world.close()


def label(value: Any, document: str, head: str = "h") -> tuple[str, dict[str, Any]]:
    return "label.observed", {"head": head, "target": {"document_id": document}, "label": value}


def document(name: str, text: str) -> tuple[str, dict[str, Any]]:
    return "document.upserted", {"document_id": name, "text": text}


def send(world: World, *events: tuple[str, dict[str, Any]], after_s: float = 1.0) -> None:
    """Log and fold events, recorded so long after the last ones."""
    world.clock.advance(after_s)
    world.send_many(events)
    world.fold()
    assert world.ledger.group(world.workspace, world.group("heads").name).halted is None


def told(world: World, events: Any, order: list[int]) -> None:
    """Log events in some order; their ids and times are those of their places in the list."""
    for place in order:
        world.send(*events[place], id=f"e{place}", time_us=world.clock.now_us() - 9_000_000 + place * 1_000_000)
    world.fold()


def said(world: World, name: str) -> list[tuple[str, float]]:
    request = ClassifyRequest(head="h", targets=[Target(document_id=name)])
    [found] = world.view.member("heads").server.classify(request)
    return [(one.label, one.score) for one in found.labels]


def letters(world: World) -> list[tuple[int | None, str]]:
    return [(one.position, one.code) for one in world.ledger.dead_letters(world.workspace)]


def same_when_folded_afresh(world: World) -> bool:
    return all(verdict.equal for verdict in world.verify().values())


@pytest.mark.parametrize("use", HEADS)
def test_a_label_is_learned_when_its_target_comes_as_of_when_it_was_given(make: Make, use: str) -> None:
    world, twin = make(use), make(use)
    events = [label("lamp", "d1"), label("desk", "d2"), document("d2", "a desk"), document("d1", "a lamp")]
    told(world, events, [0, 1, 2])
    assert dict(world.store("heads", "labels").items()).keys() == {"h\0document:d2"}
    world.forget_warm()  # waiting outlasts a restart
    told(world, events, [3])
    told(twin, events, [2, 1, 3, 0])  # each label after its target
    row = world.store("heads", "labels").get("h\0document:d1")
    assert (row.label, row.seq) == ("lamp", 1)
    for name in ("d1", "d2"):
        assert said(world, name) == said(twin, name)
    assert len(world.store("heads", "waiting")) == 0
    assert letters(world) == []
    assert same_when_folded_afresh(world)


def test_waiting_comes_to_the_rows_of_targets_that_came_first(make: Make) -> None:
    one, two = make(), make()
    labels = [label("lamp", "d1"), label("desk", "d1"), label("oak", "d1", head="wood")]
    send(one, *labels, document("d1", "a lamp"))
    send(two, document("d1", "a lamp"), *labels)
    for store in ("classes", "things", "phi"):
        assert one.store("heads", store).fingerprint() == two.store("heads", store).fingerprint()
    found = [{key: (row.label, row.weight) for key, row in w.store("heads", "labels").items()} for w in (one, two)]
    assert found[0] == found[1] == {"h\0document:d1": ("desk", 1.0), "wood\0document:d1": ("oak", 1.0)}


@pytest.mark.parametrize("use", HEADS)
def test_a_label_whose_target_does_not_come_is_a_dead_letter_once(make: Make, use: str) -> None:
    world = make(use)
    send(world, document("known", "a lamp"), label("lamp", "known"), label("desk", "d1"), label("desk", "d2"))
    send(world, label("late", "d3"), label("lamp", "known"), after_s=WAIT_S - 1)
    assert letters(world) == []
    world.forget_warm()
    send(world, document("d2", "a desk"), after_s=2.0)  # too late by a second: what is over is over first
    assert letters(world) == [(3, "unknown-target"), (4, "unknown-target")]
    assert {row.label for _, row in world.store("heads", "labels").items()} == {"lamp"}
    assert same_when_folded_afresh(world)
    world.forget_warm()
    send(world, label("lamp", "known"), after_s=2 * WAIT_S)
    assert letters(world) == [(3, "unknown-target"), (4, "unknown-target"), (5, "unknown-target")]
    [*_, last] = world.ledger.dead_letters(world.workspace)
    assert "'d3'" in last.detail
    assert "in 60 s" in last.detail
    assert "document.upserted, then retry" in last.detail
    assert len(world.store("heads", "waiting")) == 0
    assert same_when_folded_afresh(world)


def test_a_target_that_comes_too_late_gets_nothing_however_many_are_too_late(make: Make) -> None:
    world = make()

    def given_up() -> int:
        return len(world.ledger.dead_letters(world.workspace, limit=200))

    send(world, *[label("lamp", f"d{n}") for n in range(100)])
    send(world, document("d99", "a lamp"), after_s=WAIT_S + 1)
    assert len(world.store("heads", "labels")) == 0
    assert len(world.store("heads", "waiting")) == 0
    assert given_up() == 100
    assert same_when_folded_afresh(world)


@pytest.mark.parametrize("when", ["before the skips are read", "before the log is folded afresh"])
def test_labels_that_run_out_during_a_verification_do_not_make_it_begin_again(
    make: Make, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """What is left out is what was left out at the commit that is compared, not what is by now."""
    world = make()
    send(world, *[label("lamp", f"d{n}") for n in range(8)], document("other", "a desk"))
    left = iter(range(8))
    asked = []

    def one_runs_out() -> None:
        """A label came half a minute after another, so that it alone is over."""
        number = next(left)
        world.send_many([label("desk", f"late{number}")])
        send(world, document("other", f"a desk {number}"), after_s=WAIT_S / 2)

    one_runs_out()
    one_runs_out()
    before = len(letters(world))
    if when == "before the skips are read":
        read = world.ledger.skipped_seqs

        def skipped_seqs(*args: Any) -> set[int]:
            asked.append("skips")
            if len(asked) == 1:
                one_runs_out()
            return read(*args)

        monkeypatch.setattr(world.ledger, "skipped_seqs", skipped_seqs)
    else:
        fold = verify.refold

        def refold(*args: Any, **more: Any) -> int:
            asked.append("refold")
            one_runs_out()
            return fold(*args, **more)

        monkeypatch.setattr(verify, "refold", refold)
    [verdict] = world.verify().values()
    assert verdict.equal, verdict.differences
    assert len(letters(world)) > before, "some ran out meanwhile"
    assert asked.count("refold") <= 1


def test_what_waits_can_be_taken_back(make: Make) -> None:
    world = make()
    send(world, label("lamp", "d1"), label("oak", "d1", head="wood"), label(None, "d1"))
    send(world, document("d1", "a lamp"), label("desk", "d2"), label(None, "d2"))
    assert dict(world.store("heads", "labels").items()).keys() == {"wood\0document:d1"}
    send(world, document("d2", "a desk"), after_s=2 * WAIT_S)
    assert letters(world) == []
    assert len(world.store("heads", "waiting")) == 0
    assert same_when_folded_afresh(world)


def test_who_is_erased_takes_along_what_waits(make: Make) -> None:
    world, never = make(), make()
    send(world, label("secret", "gone"), label("lamp", "d1"))
    send(world, ("document.erased", {"document_id": "gone"}))
    world.erase()
    assert dict(world.store("heads", "waiting").items()).keys() == {"document:d1"}
    send(never, label("lamp", "d1"))
    send(world, document("gone", "a new text"), document("d1", "a lamp"))
    send(never, document("gone", "a new text"), document("d1", "a lamp"))
    assert {row.label for _, row in world.store("heads", "labels").items()} == {"lamp"}
    for store in ("classes", "things", "phi", "waiting"):
        assert world.store("heads", store).fingerprint() == never.store("heads", store).fingerprint()
    send(world, label("lamp", "d1"), after_s=2 * WAIT_S)
    assert letters(world) == []
    assert same_when_folded_afresh(world)


def test_at_a_bound_a_label_is_a_dead_letter_at_once_and_says_why(make: Make) -> None:
    world = make(max_waiting=2)
    send(world, *(label("a", f"d{n}") for n in range(3)))
    send(world, *(label("a", "d0", head=f"h{n}") for n in range(16)))
    found = [one.detail for one in world.ledger.dead_letters(world.workspace)]
    assert len(found) == 2
    assert "2 targets are waited for already (max_waiting)" in found[0]
    assert "16 labels wait for it already" in found[1]
    assert same_when_folded_afresh(world)
    still = make(wait_s=0.0)
    send(still, label("a", "d0"))
    assert letters(still) == [(1, "unknown-target")]


STEPS = st.one_of(
    st.tuples(st.just("label"), st.integers(0, 3), st.sampled_from(["a", "b", None])),
    st.tuples(st.just("document"), st.integers(0, 3), st.booleans()),
    st.tuples(st.just("time"), st.sampled_from([10.0, 40.0, 70.0]), st.none()),
    st.tuples(st.just("restart"), st.none(), st.none()),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=15)
@given(st.lists(STEPS, min_size=1, max_size=25))
def test_every_label_is_learned_taken_back_or_a_dead_letter_and_folding_afresh_agrees(make: Make, steps: Any) -> None:
    """Against a model that is a dict of lists; the world is restarted anywhere."""
    world, now, seq = make(), 0.0, 0
    known: set[int] = set()
    waits: dict[int, tuple[float, list[tuple[int, str]]]] = {}
    learned: dict[int, str] = {}
    dead: list[int] = []
    for kind, what, value in steps:
        if kind == "time":
            world.clock.advance(what)
            now += what
            continue
        if kind == "restart":
            world.forget_warm()
            continue
        seq += 1
        for over in [name for name, (since, _) in waits.items() if now - since >= WAIT_S]:
            dead += [position for position, _ in waits.pop(over)[1]]
        if kind == "document":
            text = "some text" if value else ""
            send(world, document(f"d{what}", text), after_s=0.0)
            known = known | {what} if value else known - {what}
            if value:
                for _, one in waits.pop(what, (0.0, []))[1]:
                    learned[what] = one
        else:
            send(world, label(value, f"d{what}"), after_s=0.0)
            if value is None:
                waits.pop(what, None)
                learned.pop(what, None)
            elif what in known:
                learned[what] = value
            elif len(waits.get(what, (0.0, []))[1]) < 16:
                waits.setdefault(what, (now, []))[1].append((seq, value))
            else:
                dead.append(seq)
    rows = world.store("heads", "labels").items() if seq else []
    assert {int(key[-1]): row.label for key, row in rows} == learned
    assert sorted(position or 0 for position, _ in letters(world)) == sorted(dead)
    assert same_when_folded_afresh(world)


TOGETHER = st.one_of(
    st.tuples(st.just("label"), st.integers(0, 3), st.sampled_from(["a", "b", "c", None])),
    st.tuples(st.just("text"), st.integers(0, 3), st.sampled_from(["a", "b", "c", None])),
    st.tuples(st.just("document"), st.integers(0, 3), st.sampled_from(["", "some text", "another one"])),
    st.tuples(st.just("fold"), st.none(), st.none()),
    st.tuples(st.just("class"), st.sampled_from("abc"), st.sampled_from(["upserted", "merged", "retired"])),
    st.tuples(st.just("time"), st.sampled_from([10.0, 40.0, 70.0]), st.none()),
)


def event_of(kind: str, what: Any, value: Any) -> tuple[str, dict[str, Any]]:
    if kind == "label":
        return label(value, f"d{what}")
    if kind == "document":
        return document(f"d{what}", value)
    if kind == "text":
        return "label.observed", {"head": "h", "target": {"text": f"text {what}"}, "label": value}
    others = {"a": "b", "b": "c", "c": "a"}
    more = {"upserted": {"name": f"class {what}"}, "merged": {"into": others[what]}, "retired": {}}[value]
    return f"class.{value}", {"head": "h", "class": what, **more}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=20)
@given(st.lists(TOGETHER, min_size=2, max_size=30))
def test_labels_that_are_folded_together_come_to_what_they_come_to_one_by_one(make: Make, steps: Any) -> None:
    """Also what waits, in its order, and what runs out; the fold afresh loops over the events."""
    together, alone = make(), make(folded={"batch_events": 1})
    for world in (together, alone):
        for kind, what, value in steps:
            if kind == "time":
                world.clock.advance(what)
            elif kind == "fold":
                world.fold()
            else:
                world.send(*event_of(kind, what, value))
        world.fold()
    stores = ("heads", "classes", "labels", "phi", "things", "waiting")
    for store in stores:
        assert together.store("heads", store).fingerprint() == alone.store("heads", store).fingerprint(), store
    assert list(together.store("heads", "waiting").items()) == list(alone.store("heads", "waiting").items())
    assert letters(together) == letters(alone)
    assert same_when_folded_afresh(together)


@pytest.mark.parametrize("use", HEADS)
@pytest.mark.parametrize("then", ["another text", ""])
def test_a_label_of_a_thing_that_its_batch_tells_of_is_of_what_is_told(make: Make, use: str, then: str) -> None:
    folded = [make(use, folded={"batch_events": size}) for size in (1, 100)]
    for world in folded:
        for one in (document("d", "a text"), label("a", "d"), document("e", "other")):
            world.send(*one)
        world.fold()
        world.send_many([document("d", then), label("b", "d"), label("b", "e")])
        world.fold()
        assert same_when_folded_afresh(world)
    for store in ("labels", "things", "waiting"):
        assert folded[0].store("heads", store).fingerprint() == folded[1].store("heads", store).fingerprint(), store


@pytest.mark.parametrize("folded", [{}, {"batch_events": 1}])
def test_a_class_too_many_is_a_dead_letter_whether_or_not_it_went_at_once(make: Make, folded: Any) -> None:
    world = make(max_classes=2, folded=folded)
    texts = [("a", 1), ("b", 2), ("c", 3), (None, 3)]
    world.send_many([event_of("text", what, value) for value, what in texts])
    world.fold()
    assert world.ledger.group(world.workspace, world.group("heads").name).halted is None
    assert letters(world) == [(3, "too-many-classes")]
    assert {row.label for _, row in world.store("heads", "labels").items()} == {"a", "b"}
    send(world, label("c", "d"), ("document.upserted", {"document_id": "d", "text": "a text"}))
    assert letters(world)[1:] == [(5, "too-many-classes")], "the label that waited, not what it waited for"
    assert same_when_folded_afresh(world)
