"""Folding: order, skips, halts, retries, prepare, checkpoints, recovery."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from streamfold.core import Candidates, Event, EventError, Policy, Stores, Table, Tools, View
from streamfold.core.fold import FoldRunner
from streamfold.core.fold.checkpoint import checkpoint_group
from streamfold.core.stores import checkpoint as checkpoint_files
from streamfold.core.testing import World, plugin


class Trending(Policy):
    """The design's example, word for word in what it does."""

    name, version, handles = "trending", 1, ("interaction.observed", "item.deleted")
    stores = (Table("score", key=str, value=float, max_rows=100_000),)

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        score = stores["score"]
        if event.type == "item.deleted":
            score.delete(event.subject.id)
        else:
            old = score.get(event.data.item_id, -math.inf)
            score.put(event.data.item_id, float(np.logaddexp(old, event.at_s / 86_400)))

    def serve(self, view: View) -> Candidates:
        return Candidates(lambda request: view["score"].top(request.n))


class Counting(Policy):
    """Counts; refuses item "bad" after having written; breaks on item "broken" while ``broken`` is set."""

    name, version, handles = "counting", 1, ("interaction.observed",)
    stores = (Table("count", value=int), Table("order", key=int, value=str))
    broken: ClassVar[bool] = False

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        item = event.data.item_id
        stores["count"].put(item, stores["count"].get(item, 0) + 1)
        stores["order"].put(event.seq, item)
        if item == "bad":
            raise EventError("item 'bad' cannot be counted: name another item", code="bad-item")
        if item == "broken" and Counting.broken:
            raise RuntimeError("the policy has a bug")


class Preparing(Policy):
    """Prepares a length; refuses texts with "!" there."""

    name, version, handles = "preparing", 1, ("document.upserted",)
    stores = (Table("length", value=int),)

    def prepare(self, event: Event, tools: Tools) -> int:
        if "!" in event.data.text:
            raise EventError("no shouting", code="shouting")
        return len(event.data.text)

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        stores["length"].put(event.subject.id, prepared)


class Watching(Policy):
    """Reads ``counting`` before the event: writes the count that an item had when it came."""

    name, version, handles = "watching", 1, ("interaction.observed",)
    reads = ("counting",)
    stores = (Table("before", key=int, value=int),)

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        stores["before"].put(event.seq, stores.of("counting")["count"].get(event.data.item_id, 0))


def click(item: str, user: str = "u") -> tuple[str, dict[str, str]]:
    return "interaction.observed", {"user_id": user, "item_id": item, "action": "click"}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    Counting.broken = False
    with World(
        tmp_path / "w",
        [plugin([Trending, Counting, Preparing])],
        {"trending": {}, "counting": {}, "preparing": {}},
        fold={"max_skips": 3},
    ) as made:
        yield made


def equal(world: World) -> bool:
    return all(verdict.equal for verdict in world.verify().values())


def test_the_designs_example_policy_counts_and_serves(world: World) -> None:
    world.send_many([click("a"), click("b"), click("a")])
    world.fold()
    member = world.view.member("trending")
    assert [item for item, _ in member.server.candidates(type("R", (), {"n": 2}))] == ["a", "b"]
    world.send("item.deleted", {"item_id": "a"})
    world.fold()
    assert [item for item, _ in world.store("trending", "score").top(5)] == ["b"]
    assert equal(world)


def test_a_duplicate_changes_nothing(world: World) -> None:
    world.send(*click("a"), id="same")
    assert world.send(*click("a"), id="same").outcomes == ["duplicate"]
    world.fold()
    assert world.store("counting", "count").get("a") == 1


def test_a_skipped_event_leaves_no_trace_and_a_dead_letter(world: World) -> None:
    world.send_many([click("a"), click("bad"), click("b")])
    world.fold()
    count = world.store("counting", "count")
    assert (count.get("a"), count.get("bad"), count.get("b")) == (1, None, 1)
    [letter] = world.ledger.dead_letters(world.workspace)
    assert (letter.policy, letter.position, letter.code, letter.stage) == ("counting@1", 2, "bad-item", "fold")
    assert world.store("trending", "score").get("bad") is not None, "other instances fold it"
    assert equal(world)


def test_a_failing_policy_halts_only_its_group_and_recovers(world: World) -> None:
    Counting.broken = True
    world.send_many([click("a"), click("broken"), click("b")])
    world.fold()
    marks = {name.split("@")[0]: mark for name, (mark, _) in world.ledger.watermarks(world.workspace).items()}
    assert marks["trending"] == 3
    assert marks["counting"] == 1, "what came before the failing event is folded"
    state = world.ledger.group(world.workspace, world.group("counting").name)
    assert state.halted is not None
    assert "position 2" in state.halted
    assert "the policy has a bug" in state.halted
    view = world.view
    assert view.visible_position(["interaction.observed"]) == 3, "a halted group is left out"
    assert any("counting" in name for name in view.cut(view.live()).degraded)
    Counting.broken = False
    world.forget_warm()
    world.fold()
    assert world.store("counting", "count").get("broken") == 1
    assert world.ledger.group(world.workspace, world.group("counting").name).halted is None
    assert equal(world)


def test_more_skips_in_a_row_than_allowed_halt_the_group(world: World) -> None:
    world.send_many([click("bad")] * 5)
    world.fold()
    world.runner._folds[(world.workspace, world.group("counting").name)]._backoff_until = 0.0
    world.fold()
    assert world.ledger.group(world.workspace, world.group("counting").name).halted is not None


def test_an_event_refused_by_prepare_is_skipped_with_its_stage(world: World) -> None:
    world.send_many(
        [("document.upserted", {"document_id": str(i), "text": t}) for i, t in enumerate(["one", "two!", "three"])]
    )
    world.fold()
    length = world.store("preparing", "length")
    assert (length.get("0"), length.get("1"), length.get("2")) == (3, None, 5)
    [letter] = world.ledger.dead_letters(world.workspace)
    assert (letter.stage, letter.code) == ("prepare", "shouting")
    assert equal(world)


def test_warm_stores_recovered_from_the_feed_equal_the_old_ones(world: World) -> None:
    for round_ in range(5):
        world.send_many([click(f"i{(round_ * 7 + k) % 5}") for k in range(9)])
        world.fold()
        world.forget_warm()
    assert equal(world)
    assert sum(value for _, value in world.store("counting", "count").items()) == 45


def test_a_checkpoint_compacts_the_feed_and_recovery_starts_from_it(world: World) -> None:
    world.send_many([click("a"), click("b")])
    world.fold()
    group = world.group("counting")
    lease = world.runner._folds[(world.workspace, group.name)].lease
    assert lease is not None
    assert checkpoint_group(world.context, world.workspace, group, lease) > 0
    assert world.ledger.feed(world.workspace, {group.name: 0}) == []
    world.send(*click("a"))
    world.forget_warm()
    world.fold()
    assert world.store("counting", "count").get("a") == 2
    assert equal(world)


def test_a_corrupt_checkpoint_is_noticed_and_the_group_folded_afresh(world: World) -> None:
    world.send_many([click("a"), click("b")])
    world.fold()
    group = world.group("counting")
    lease = world.runner._folds[(world.workspace, group.name)].lease
    assert lease is not None
    checkpoint_group(world.context, world.workspace, group, lease)
    name = world.ledger.group(world.workspace, group.name).checkpoint
    assert name is not None
    root = Path(world.context.settings.checkpoint_root) / world.workspace / group.name / name
    files = [f for f in root.rglob("*") if f.is_file() and f.name != "manifest.json"]
    victim = max(files, key=lambda f: f.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:-1] + b"\xff")
    world.forget_warm()
    world.send(*click("c"))
    world.fold()
    assert dict(world.store("counting", "count").items()) == {"a": 1, "b": 1, "c": 1}
    assert equal(world)


def test_a_retry_is_folded_only_by_the_instances_that_skipped_the_original(world: World) -> None:
    world.send(*click("bad"))
    world.fold()
    row = world.ledger.rows(world.workspace, [1])[0]
    event = world.registry.event_types.decode(row)
    data = {"user_id": "u", "item_id": "good", "action": "click"}
    again = world.acceptor.accept_data(event.type, data, id="r", source="t")
    retry = dataclasses.replace(again, retry_of=1)
    world.ledger.append(world.workspace, [retry], recorded_us=world.clock.now_us())
    world.fold()
    assert world.store("counting", "count").get("good") == 1
    assert world.store("trending", "score").get("good") is None, "trending had folded the original"
    assert equal(world)


def test_a_reader_sees_what_it_reads_as_it_was_before_the_event(tmp_path: Path) -> None:
    Counting.broken = False
    with World(tmp_path / "r", [plugin([Counting, Watching])], {"counting": {}, "watching": {}}) as world:
        world.send_many([click("a"), click("a"), click("b"), click("a")])
        world.fold()
        before = world.store("watching", "before")
        assert [before.get(seq) for seq in (1, 2, 3, 4)] == [0, 1, 0, 2]
        assert equal(world), "the fresh fold reads as the live one did"


def test_a_superseded_event_is_logged_but_not_folded(world: World) -> None:
    for number, text in ((2, "newer"), (1, "old")):
        world.send("document.upserted", {"document_id": "d", "text": text}, sequence=number)
    world.fold()
    assert world.store("preparing", "length").get("d") == len("newer")
    assert equal(world)


def test_a_deletion_hides_at_once_however_far_the_fold_lags(world: World) -> None:
    from streamfold.core import Subject

    world.send(*click("a"))
    world.fold()
    view = world.view
    world.send("item.deleted", {"item_id": "a"})
    view.follow()
    [trending] = [g for g in view.live() if "trending" in g.members]
    assert view.hidden(trending, [Subject("item", "a")])
    assert not view.hidden(trending, [Subject("item", "b")])
    world.fold()
    view = world.view
    [trending] = [g for g in view.live() if "trending" in g.members]
    assert not view.hidden(trending, [Subject("item", "a")]), "folded: nothing is left to hide"


def test_a_paused_group_stands_still_until_it_is_resumed(world: World) -> None:
    world.send(*click("a"))
    world.fold()
    name = world.group("counting").name
    world.ledger.set_paused(world.workspace, name, True)
    world.send(*click("a"))
    world.fold()
    assert world.store("counting", "count").get("a") == 1
    world.ledger.set_paused(world.workspace, name, False)
    world.fold()
    assert world.store("counting", "count").get("a") == 2
    assert equal(world)


def test_a_changed_policy_replaces_its_old_instance_once_it_has_caught_up(tmp_path: Path) -> None:
    with World(tmp_path / "c", [plugin([Trending])], {"trending": {}}) as world:
        world.send_many([click("a"), click("b")])
        world.fold()

    class Newer(Trending):
        version = 2

    with World(tmp_path / "c", [plugin([Newer])], {"trending": {}}) as world:
        assert [i.slot for i in world.ledger.instances(world.workspace)] == ["live", "shadow"]
        view = world.view
        assert len(world.store("trending", "score")) == 2, "the old state serves until then"
        assert [d.partition(":")[0] for d in view.cut(view.live()).degraded] == ["missing"]
        assert view.visible_position(None) == view.head, "nobody waits for what cannot be folded"
        world.fold()
        assert world.view.cut(world.view.live()).degraded == []
        assert [i.slot for i in world.ledger.instances(world.workspace)] == ["shadow", "live"]
        assert len(world.store("trending", "score")) == 2


def test_a_version_that_todays_code_cannot_read_is_not_served_and_not_touched(tmp_path: Path) -> None:
    with World(tmp_path / "c", [plugin([Trending])], {"trending": {}}) as world:
        world.send_many([click("a"), click("b")])
        world.fold()

    class Other(Trending):
        version = 2
        stores = (Table("other", key=int, value=str),)

        def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
            stores["other"].put(event.seq, event.type)

        def serve(self, view: View) -> None:
            return None

    with World(tmp_path / "c", [plugin([Other])], {"trending": {}}) as world:
        before = world.ledger.groups(world.workspace)
        assert world.view.live() == []
        assert world.ledger.groups(world.workspace) == before
        world.fold()
        assert len(world.store("trending", "other")) == 2


def test_a_checkpoint_of_a_newer_version_is_left_to_it_and_never_folded_afresh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a rolling upgrade the older process gives the lease back, so that the newer one goes on from that state."""
    with World(tmp_path, [plugin([Counting])], {"counting": {}}) as world:
        world.send("interaction.observed", {"user_id": "u", "item_id": "a", "action": "click"})
        world.fold()
        group = world.group("counting")
        fold = world.runner._folds[world.workspace, group.name]
        assert fold.lease is not None
        monkeypatch.setattr(checkpoint_files, "_FORMAT", 2)
        assert checkpoint_group(world.context, world.workspace, group, fold.lease)
        world.forget_warm()
        world.send("interaction.observed", {"user_id": "u", "item_id": "a", "action": "click"})
        monkeypatch.setattr(checkpoint_files, "_FORMAT", 1)
        before = world.ledger.group(world.workspace, group.name)
        for _ in range(3):
            world.runner.run(world.workspace)
        after = world.ledger.group(world.workspace, group.name)
        assert (after.watermark, after.commit_no, after.checkpoint) == (1, 1, before.checkpoint)
        assert after.owner is None
        newer = FoldRunner(world.context, world.prepared)
        monkeypatch.setattr(checkpoint_files, "_FORMAT", 2)
        newer.run(world.workspace)
        assert world.ledger.watermarks(world.workspace)[group.name] == (2, 2)
        newer.stop()


def test_after_a_restart_the_next_checkpoint_is_due_when_the_feed_is_as_long_as_the_last_one(tmp_path: Path) -> None:
    def checkpoints(world: World) -> list[str]:
        for thread in world.runner._checkpointers:
            thread.join()
        group = world.context.groups(world.workspace)[0].name
        return checkpoint_files.CheckpointRoot(f"{world.context.settings.checkpoint_root}/default/{group}").names()

    def clicks(world: World, count: int, source: str) -> None:
        data = ({"user_id": "u", "item_id": f"item {n}", "action": "click"} for n in range(count))
        world.send_many([("interaction.observed", one) for one in data], source=source)
        world.fold()

    with World(tmp_path, [plugin([Trending])], {"trending": {}}, fold={"checkpoint_min_bytes": 1}) as world:
        clicks(world, 200, "/first")
        before = checkpoints(world)
        assert len(before) == 1
    with World(tmp_path, [plugin([Trending])], {"trending": {}}, fold={"checkpoint_min_bytes": 1}) as world:
        clicks(world, 1, "/second")
        assert checkpoints(world) == before, "a row more is no reason to write all again"
        clicks(world, 1000, "/third")
        assert checkpoints(world) != before
