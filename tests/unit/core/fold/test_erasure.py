"""Erasure: hidden at once, forgotten exactly or folded afresh, no byte left, and nothing comes in again."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamfold.core import Event, EventError, NeedsRebuild, Policy, Stores, Subject, Table
from streamfold.core.fold import verify_group
from streamfold.core.fold.checkpoint import checkpoint_group
from streamfold.core.fold.erasure import holds_erased
from streamfold.core.ledger.abc import ERASED
from streamfold.core.testing import World, plugin
from streamfold.plugins import builtin

BACKENDS = {"encoder": {"use": "hashing"}, "chunker": {"use": "sentences"}}
SECRET = "xyzzy-4711-subject"
STORY = "The quick brown fox of Mrs. Plugh jumps over the lazy dog near Colossal Cave, twice."


class Seen(Policy):
    """Which users touched which item; forgets exactly. Refuses item "bad"."""

    name, version, handles = "seen", 1, ("interaction.observed", "user.erased")
    stores = (Table("users", key=int, value=str), Table("count", value=int))

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        assert event.type == "interaction.observed", "an erasing event is not folded where it was forgotten"
        item, user = event.data.item_id, event.data.user_id
        stores["users"].put(event.seq, user)
        stores["count"].put(item, stores["count"].get(item, 0) + 1)
        if item == "bad":
            raise EventError(f"user '{user}' touched a bad item")

    def forget(self, subject: Subject, events: Any, stores: Stores) -> None:
        for event, _ in events:
            stores["users"].delete(event.seq)
            left = stores["count"].get(event.data.item_id) - 1
            if left:
                stores["count"].put(event.data.item_id, left)
            else:
                stores["count"].delete(event.data.item_id)


class Last(Policy):
    """The last user of each item; cannot forget."""

    name, version, handles = "last", 1, ("interaction.observed", "item.erased")
    stores = (Table("last", value=str),)

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        if event.type == "item.erased":
            stores["last"].delete(event.subject.id)
        else:
            stores["last"].put(event.data.item_id, event.data.user_id)


class Liar(Last):
    """Says that it forgot, and did not."""

    name = "liar"

    def forget(self, subject: Subject, events: Any, stores: Stores) -> None:
        stores["last"].put("touched", "somebody")


def click(item: str, user: str) -> tuple[str, dict[str, Any]]:
    return "interaction.observed", {"user_id": user, "item_id": item, "action": "click"}


def make(folder: Path, **more: Any) -> World:
    policies: dict[str, Any] = {"seen": {}, "last": {}, "trending": {}, "vector_index": {}}
    return World(folder, [builtin, plugin([Seen, Last, Liar])], policies, backends=BACKENDS, **more)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with make(tmp_path / "w") as made:
        yield made


def fill(world: World) -> None:
    for i in range(40):
        world.send(*click(f"i{i % 7}", SECRET if i % 4 == 0 else f"u{i % 3}"))
    world.send(*click("bad", SECRET))
    world.send("user.upserted", {"user_id": SECRET, "properties": {"mail": "plugh@example.org or some such place"}})
    world.send("document.upserted", {"document_id": "d1", "text": "Something else entirely."})


def report_of(world: World, position: int) -> dict[str, Any]:
    erasure = world.ledger.erasure(world.workspace, position)
    assert erasure is not None
    assert erasure.state == "complete", erasure
    found: dict[str, Any] = json.loads(erasure.report)
    return found


def bytes_left(world: World, *needles: str) -> list[str]:
    """The files below the world's folder that hold one of the needles, as they lie on the disk."""
    folder = Path(world.context.settings.data)
    return [
        f"{needle} in {file.relative_to(folder)}"
        for file in sorted(folder.rglob("*"))
        if file.is_file()
        for needle in needles
        if needle.encode() in file.read_bytes()
    ]


def is_equal(world: World) -> bool:
    return all(verdict.equal for verdict in world.verify().values())


def test_an_erased_user_leaves_nothing_and_the_state_is_as_if_it_had_never_come(world: World) -> None:
    fill(world)
    world.fold()
    assert bytes_left(world, SECRET)
    position = world.send("user.erased", {"user_id": SECRET}).positions[0]
    world.erase()
    report = report_of(world, position)
    assert all(line["residue"] == 0 for line in report["stores"]), report
    assert sum(line["scanned"] for line in report["stores"]) > 0
    assert report["removed"] == {"events": 12, "results": 0, "dead_letters": 1, "archive_files": 0}
    methods = {n.group.split("@")[0]: (n.method, n.removed) for n in world.ledger.erased_groups("default", position)}
    assert methods == {"seen": ("exact", 10), "last": ("rebuild", 11), "trending": ("rebuild", 11),
                       "vector_index": ("exact", 0)}  # fmt: skip
    assert bytes_left(world, SECRET, "plugh@example") == []
    assert is_equal(world)
    left = {user for _, user in world.store("last", "last").items()}
    assert left == {"u0", "u1", "u2"}


def test_the_state_equals_a_world_that_never_saw_the_subject(tmp_path: Path, world: World) -> None:
    fill(world)
    world.fold()
    world.send("user.erased", {"user_id": SECRET})
    world.send(*click("i1", "u9"))
    world.erase()
    with make(tmp_path / "other") as other:
        rows = [r for r in world.ledger.read("default", 0, 1000).rows if r.effect != ERASED]
        for row in rows:
            event = world.registry.event_types.decode(row)
            data = json.loads(json.dumps(event.data, default=_fields))
            other.send(event.type, data, id=event.id, time_us=event.time_us)
        other.fold()
        ours, theirs = dict(world.store("seen", "count").items()), dict(other.store("seen", "count").items())
        assert ours == theirs
        assert dict(world.store("last", "last").items()) == dict(other.store("last", "last").items())
        assert dict(world.store("trending", "score_0").items()) == dict(other.store("trending", "score_0").items())


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__struct_fields__ if getattr(value, name) is not None}


def test_a_document_goes_with_texts_vectors_results_and_chunks(world: World) -> None:
    world.send("document.upserted", {"document_id": SECRET, "title": "Cave", "text": STORY})
    world.send("document.upserted", {"document_id": "d2", "text": "Quite another text about other things."})
    world.send("document.patched", {"document_id": "nobody", "title": "a letter is kept for this"})
    world.fold()
    kept = len(world.ledger.dead_letters("default"))
    position = world.send("document.erased", {"document_id": SECRET}).positions[0]
    view = world.view
    group = view.groups[world.group("vector_index").name]
    assert view.hidden(group, [Subject("document", SECRET)]), "hidden before it is folded"
    world.erase()
    report = report_of(world, position)
    assert report["removed"]["results"] >= 1
    assert report["looked_for"] == {"id": True, "texts": 1}
    assert all(line["residue"] == 0 for line in report["stores"]), report
    assert bytes_left(world, SECRET, "Plugh", "Colossal") == []
    assert is_equal(world)
    assert [key for key, _ in world.store("vector_index", "documents").items()] == ["d2"]
    assert len(world.ledger.dead_letters("default")) == kept


def test_an_erased_item_takes_the_interactions_with_it(world: World) -> None:
    fill(world)
    world.send("item.upserted", {"item_id": "i3", "title": "An item with a title of some length"})
    world.fold()
    position = world.send("item.erased", {"item_id": "i3"}).positions[0]
    world.fold()
    view = world.view
    last = view.groups[world.group("last").name]
    assert view.hidden(last, [Subject("item", "i3")]), "past the erasure, and not folded afresh yet"
    world.erase()
    assert not world.view.hidden(last, [Subject("item", "i3")])
    assert world.store("trending", "score_0").get("i3") is None
    assert world.store("seen", "count").get("i3") is None
    assert report_of(world, position)["removed"]["events"] == 7
    assert is_equal(world)


def test_redelivery_and_old_events_of_the_erased_have_no_effect_and_new_ones_do(world: World) -> None:
    before = world.clock.now_us()
    world.send(*click("i1", SECRET), id="first")
    world.fold()
    world.clock.advance(60)
    assert world.send(*click("i1", SECRET), id="pending", time_us=before).outcomes == ["accepted"]
    position = world.send("user.erased", {"user_id": SECRET}, id="er").positions[0]
    late = world.send(*click("i1", SECRET), id="late", time_us=before)
    assert (late.outcomes, late.positions) == (["erased"], [position])
    world.erase()
    assert world.send(*click("i1", SECRET), id="first").outcomes == ["erased"]
    assert world.send(*click("i2", SECRET), id="first").outcomes == ["erased"], "whatever its content"
    assert world.send("user.erased", {"user_id": SECRET}, id="er").outcomes == ["erased"]
    assert world.send(*click("i1", SECRET), id="old", time_us=before).outcomes == ["erased"]
    assert world.send(*click("i1", "u1"), id="other", time_us=before).outcomes == ["accepted"]
    world.clock.advance(60)
    assert world.send(*click("i1", SECRET), id="back").outcomes == ["accepted"]
    world.fold()
    assert world.store("seen", "count").get("i1") == 2
    assert is_equal(world)


def test_within_one_batch_an_erasure_counts_for_what_follows_it(world: World) -> None:
    done = world.send_many([click("i1", SECRET), ("user.erased", {"user_id": SECRET}), click("i2", SECRET)])
    assert done.outcomes == ["accepted", "accepted", "erased"]
    world.erase()
    assert len(world.store("seen", "count")) == 0


def test_a_subject_that_came_back_before_the_erasing_was_done_stays(world: World) -> None:
    fill(world)
    world.fold()
    world.clock.advance(60)
    position = world.send("user.erased", {"user_id": SECRET}).positions[0]
    world.clock.advance(60)
    world.send(*click("i1", SECRET))
    world.erase()
    assert report_of(world, position)["looked_for"]["id"] is False, "its id proves nothing now"
    assert SECRET in {user for _, user in world.store("seen", "users").items()}
    assert world.store("last", "last").get("i1") == SECRET
    assert is_equal(world)


def test_several_erasures_share_one_rebuild(world: World) -> None:
    fill(world)
    world.fold()
    positions = [world.send("user.erased", {"user_id": user}).positions[0] for user in ("u0", "u1", SECRET)]
    world.erase()
    assert all(report_of(world, position) for position in positions)
    assert {user for _, user in world.store("last", "last").items()} == {"u2"}
    assert is_equal(world)


def test_old_checkpoints_and_the_feed_before_go(world: World) -> None:
    fill(world)
    world.fold()
    for group in world.context.groups("default"):
        lease = world.runner._folds[("default", group.name)].lease
        assert lease is not None
        checkpoint_group(world.context, "default", group, lease)
    assert any("checkpoints" in name for name in bytes_left(world, SECRET))
    world.send("user.erased", {"user_id": SECRET})
    world.erase()
    assert bytes_left(world, SECRET) == []
    world.forget_warm()
    world.send(*click("i1", "u1"))
    world.fold()
    assert is_equal(world)


def test_a_policy_that_only_says_that_it_forgot_is_found_out_and_folded_afresh(tmp_path: Path) -> None:
    with World(tmp_path / "l", [plugin([Liar])], {"liar": {}}) as world:
        world.send_many([click("i1", "u1"), click("i2", SECRET)])
        world.fold()
        position = world.send("user.erased", {"user_id": SECRET}).positions[0]
        world.erase()
        [note] = world.ledger.erased_groups("default", position)
        assert (note.method, note.state) == ("rebuild", "done")
        assert dict(world.store("liar", "last").items()) == {"i1": "u1"}
        assert bytes_left(world, SECRET) == []
        assert is_equal(world)


def test_a_group_that_has_not_forgotten_holds_the_erasure_up_and_must_not_be_promoted(world: World) -> None:
    fill(world)
    world.fold()
    name = world.group("last").name
    world.ledger.set_paused("default", name, True)
    position = world.send("user.erased", {"user_id": SECRET}).positions[0]
    with pytest.raises(AssertionError, match="did not complete"):
        world.erase()
    erasure = world.ledger.erasure("default", position)
    assert erasure is not None
    assert erasure.state == "hidden"
    assert holds_erased(world.ledger, "default", name)
    assert not holds_erased(world.ledger, "default", world.group("seen").name)
    world.ledger.set_paused("default", name, False)
    world.erase()
    assert not holds_erased(world.ledger, "default", name)
    assert bytes_left(world, SECRET) == []


def test_a_retired_groups_state_goes_too(tmp_path: Path) -> None:
    class Newer(Last):
        version = 2

    with World(tmp_path / "c", [plugin([Last])], {"last": {}}) as world:
        world.send_many([click("i1", SECRET), click("i2", "u")])
        world.fold()
        old = world.group("last").name
    with World(tmp_path / "c", [plugin([Newer])], {"last": {}}) as world:
        world.fold()
        assert old not in {g.name for g in world.context.groups("default", fresh=True)}
        assert world.send("user.erased", {"user_id": SECRET}, id="erase").outcomes == ["accepted"]
        world.erase()
        assert bytes_left(world, SECRET) == []
        assert dict(world.store("last", "last").items()) == {"i2": "u"}


def test_a_shadow_that_folds_the_log_while_an_erasure_is_pending_forgets_too(tmp_path: Path) -> None:
    class Newer(Seen):
        version = 2

    with World(tmp_path / "c", [plugin([Seen])], {"seen": {}}) as world:
        world.send_many([click("i1", SECRET), click("i2", "u")])
        world.fold()
        world.send("user.erased", {"user_id": SECRET})
        world.fold()
    with World(tmp_path / "c", [plugin([Newer])], {"seen": {}}) as world:
        world.erase()
        assert dict(world.store("seen", "count").items()) == {"i2": 1}
        assert bytes_left(world, SECRET) == []
        for group in world.context.groups("default", fresh=True):
            assert verify_group(world.context, "default", group).equal


def test_an_append_without_erasures_asks_nothing_more(world: World) -> None:
    """The hot path: no erased subject is looked up for events that happened after the last erasure."""
    asked: list[str] = []
    tx = world.ledger._writer._tx  # type: ignore[attr-defined]  # the statements of the one writing connection
    tx.raw.set_trace_callback(asked.append)
    world.send(*click("i1", "u1"))
    world.send("user.erased", {"user_id": "u1"})
    world.clock.advance(1)
    asked.clear()
    world.send(*click("i1", "u2"))
    tx.raw.set_trace_callback(None)
    assert asked
    assert not [sql for sql in asked if "erased_subjects" in sql]


def test_needs_rebuild_is_what_a_policy_without_forget_says() -> None:
    with pytest.raises(NeedsRebuild):
        Last().forget(Subject("user", "u"), [], None)  # type: ignore[arg-type]  # no store is touched


def test_the_database_is_sound_after_all_this(world: World) -> None:
    fill(world)
    world.fold()
    world.send("user.erased", {"user_id": SECRET})
    world.erase()
    with sqlite3.connect(Path(world.context.settings.data) / "ledger.db") as connection:
        assert connection.execute("pragma integrity_check").fetchone() == ("ok",)
    connection.close()


def test_an_event_of_two_erased_subjects_is_forgotten_once(world: World) -> None:
    world.send_many([click("i1", "u1"), click("i2", "u1"), click("i1", "u2"), click("i3", "u3")])
    world.fold()
    world.send("user.erased", {"user_id": "u1"})
    world.send("item.erased", {"item_id": "i1"})
    world.erase()
    assert dict(world.store("seen", "count").items()) == {"i3": 1}
    assert dict(world.store("last", "last").items()) == {"i3": "u3"}
    assert is_equal(world)
