"""Retention on both databases: what leaves, what a fold afresh gives then, what an erasure takes out of the archive."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamfold.core import Event, EventError, Policy, Stores, Table
from streamfold.core.archive.files import Reader
from streamfold.core.errors import ArchiveMissing, OutOfReach
from streamfold.core.fold import LedgerPrepared, verify_group, versions
from streamfold.core.fold.checkpoint import checkpoint_group
from streamfold.core.fold.refold import Refold
from streamfold.core.fold.retention import Keeper, Report
from streamfold.core.fold.stores import GroupStores
from streamfold.core.ledger import open_ledger, restore_ledger
from streamfold.core.ledger.abc import Ledger, LogRow
from streamfold.core.testing import World, plugin
from streamfold.plugins import builtin

POLICIES: dict[str, dict[str, Any]] = {"vector_index": {}, "clicks": {}}
BACKENDS = {"encoder": {"use": "hashing"}, "chunker": {"use": "sentences"}}
DAY = 86_400


class Clicks(Policy):
    """Counts clicks by item, and refuses one item."""

    name, version, handles = "clicks", 1, ("interaction.observed",)
    stores = (Table("counts", key=str, value=int),)

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        if event.data.item_id == "bad":
            raise EventError("a bad item")
        stores["counts"].put(event.data.item_id, stores["counts"].get(event.data.item_id, 0) + 1)


def make(ledger: Ledger, folder: Path, **retention: Any) -> World:
    settings = {"retention": {"keep_s": 3 * DAY, "compact": True, "compact_after_s": DAY, **retention}}
    plugins = [builtin, plugin([Clicks])]
    return World(folder, plugins, POLICIES, backends=BACKENDS, ledger=ledger, settings=settings)


@pytest.fixture
def world(ledger: Ledger, tmp_path: Path) -> Iterator[World]:
    with make(ledger, tmp_path / "data") as made:
        yield made


@pytest.fixture
def bare(ledger: Ledger, tmp_path: Path) -> Iterator[World]:
    """Without an archive: what leaves is gone."""
    with make(ledger, tmp_path / "data", archive=False) as made:
        yield made


def fill(world: World, days: int = 6) -> None:
    """Each day three documents, of which two are another day's too, a patch, a deletion, clicks and a bad one."""
    for day in range(days):
        for number in (day, day + 1, 100):
            text = f"On day {day} document {number} says what only it says. And it says more."
            world.send("document.upserted", {"document_id": f"doc-{number}", "text": text})
        world.send("document.patched", {"document_id": "doc-100", "title": f"Day {day}"})
        if day % 2:
            world.send("document.deleted", {"document_id": f"doc-{day - 1}"})
        for user in ("anna", "bert"):
            world.send("interaction.observed", {"user_id": user, "item_id": f"i{day % 3}", "action": "click"})
        world.send("interaction.observed", {"user_id": "anna", "item_id": "bad", "action": "click"})
        world.clock.advance(DAY)
    world.fold()


def keep(world: World) -> Report:
    report = Keeper(world.context, (world.runner,)).run("default")
    assert report is not None
    return report


def logged(world: World) -> list[LogRow]:
    return world.ledger.read("default", 0, 10_000).rows


def everything(world: World) -> list[LogRow]:
    rows, after = [], 0
    while page := world.context.history.read("default", after, 7).rows:
        rows += page
        after = page[-1].seq
    return rows


def reach(world: World, policy: str) -> tuple[str, int]:
    found = world.context.reach("default", world.group(policy))
    return found.rebuild, found.rebuildable_from


def files(world: World) -> list[Path]:
    return sorted(world.context.history.home.rglob("*")) if world.context.history.home.exists() else []


# -- what leaves ------------------------------------------------------------------------------------------------------
def test_log_and_archive_together_are_the_log_as_it_was(world: World) -> None:
    fill(world)
    before = logged(world)
    report = keep(world)
    left = {row.seq for row in logged(world)}
    assert report.expired > 0
    assert report.compacted > 0
    assert len(left) == len(before) - report.expired - report.compacted
    assert everything(world) == before, "byte by byte, in order, each once"
    assert [row.type for row in logged(world) if row.seq <= report.expired_upto].count("interaction.observed") == 0
    for verdict in world.verify().values():
        assert verdict.equal, verdict.differences
        assert verdict.events == sum(row.type in world.group(verdict.group).handles for row in before)
    assert world.context.history.rows("default", [1, 2, 3]) == before[:3]
    assert [row.seq for row in world.context.history.find("default", "e1")] == [1]
    again = keep(world)
    assert (again.expired, again.compacted, again.files) == (0, 0, []), "nothing leaves twice"


def test_compaction_keeps_the_newest_of_each_subject_and_what_came_after_it(world: World) -> None:
    fill(world)
    decode = world.registry.event_types.decode
    cut = world.ledger.seq_before("default", world.clock.now_us() - DAY * 1_000_000)
    expired_upto = world.ledger.seq_before("default", world.clock.now_us() - 3 * DAY * 1_000_000)
    old = [decode(row) for row in logged(world) if row.type.startswith("document.") and row.seq <= cut]
    newest = {e.subject.id: e.seq for e in old if e.type in ("document.upserted", "document.deleted")}
    keep(world)
    kept = {row.seq for row in logged(world)}
    for event in old:
        stays = event.seq >= newest[event.subject.id]
        if event.type == "document.deleted" and event.seq <= expired_upto:
            stays = False
        assert (event.seq in kept) == stays, event
    assert {e.type for e in old if e.seq in kept} == {"document.upserted", "document.patched", "document.deleted"}
    upserted = {decode(row).subject.id for row in logged(world) if row.type == "document.upserted"}
    assert upserted >= {document for document, _ in world.store("vector_index", "documents").items()}


def test_without_compaction_everything_old_leaves(ledger: Ledger, tmp_path: Path) -> None:
    with make(ledger, tmp_path / "data", compact=False) as world:
        fill(world)
        before = logged(world)
        report = keep(world)
        assert report.compacted == 0
        assert [row.seq for row in logged(world)] == list(range(report.expired_upto + 1, before[-1].seq + 1))
        assert everything(world) == before
        assert all(verdict.equal for verdict in world.verify().values())


def test_a_dry_run_says_what_a_run_then_does(world: World) -> None:
    fill(world)
    before, marks = logged(world), world.ledger.groups("default")
    plan = Keeper(world.context).plan("default")
    assert logged(world) == before
    assert world.ledger.groups("default") == marks
    assert (plan.files, files(world)) == ([], [])
    report = keep(world)
    assert (plan.expired, plan.compacted, plan.expired_upto) == (report.expired, report.compacted, report.expired_upto)


def test_a_group_that_lags_holds_events_back_and_the_report_names_it(world: World) -> None:
    fill(world)
    lagging = world.group("clicks").name
    world.ledger.set_paused("default", lagging, True)
    upto = world.ledger.head("default")
    fill(world)
    keeper = Keeper(world.context, (world.runner,))
    assert keeper.run("default") is None, "it waits a while for a checkpoint of another process"
    world.clock.advance(60)
    report = keeper.run("default")
    assert report is not None
    assert [held["group"] for held in report.held_by] == [lagging]
    left = {row.seq for row in everything(world)} - {row.seq for row in logged(world)}
    assert not left or max(left) <= upto
    assert Keeper(world.context).plan("default").held_by[0]["group"] == lagging


def test_ids_past_the_window_are_forgotten(ledger: Ledger, tmp_path: Path) -> None:
    with make(ledger, tmp_path / "data", keep_s=0, compact=False, dedup_window_s=2 * DAY) as world:
        fill(world)
        said = [("interaction.observed", {"user_id": "u", "item_id": "i", "action": "click"})]
        assert keep(world).ids > 0
        assert world.send_many(said, id="e1").outcomes == ["accepted"], "that old an id is not known any more"
        assert world.send_many(said, id="e1").outcomes == ["duplicate"]


# -- versions ---------------------------------------------------------------------------------------------------------
def test_a_new_version_and_a_rebuild_read_the_archive(world: World) -> None:
    fill(world)
    keep(world)
    assert reach(world, "clicks") == ("exact", 0)
    counts = dict(world.store("clicks", "counts").items())
    made = versions.rebuild(world.context, "default", world.group("clicks"), actor="me", reason="test")
    world.fold()
    assert world.group("clicks").name == made.name
    assert dict(world.store("clicks", "counts").items()) == counts
    assert all(verdict.equal for verdict in world.verify().values())


def test_prepare_between_processes_finds_work_in_the_archive(world: World) -> None:
    fill(world)
    wanted = [row.seq for row in logged(world) if row.type in world.group("vector_index").handles]
    keep(world)
    [runtime] = world.group("vector_index").runtimes
    prepared, found = LedgerPrepared(world.context), []
    while claims := prepared.claim("default", runtime, after=0, limit=5):
        found += [claim.row.seq for claim in claims]
    assert found == wanted


def test_without_an_archive_a_compacted_log_is_enough_for_who_says_so(bare: World) -> None:
    fill(bare)
    full = len(logged(bare))
    report = keep(bare)
    assert len(logged(bare)) == full - report.expired - report.compacted
    assert (report.files, files(bare)) == ([], [])
    assert reach(bare, "vector_index") == ("compacted", 0)
    assert verify_group(bare.context, "default", bare.group("vector_index")).equal
    made = versions.rebuild(bare.context, "default", bare.group("vector_index"), actor="me", reason="test")
    bare.fold()
    assert bare.group("vector_index").name == made.name
    assert verify_group(bare.context, "default", bare.group("vector_index")).equal


def test_what_the_log_does_not_reach_back_to_is_refused(bare: World) -> None:
    fill(bare)
    upto = keep(bare).expired_upto
    last = max(row.seq for row in bare.context.history.rows("default", range(1, 200)))
    found, position = reach(bare, "clicks")
    assert found == "impossible"
    assert 0 < position <= upto < last
    with pytest.raises(OutOfReach, match=r"without an archive") as refused:
        versions.rebuild(bare.context, "default", bare.group("clicks"), actor="me", reason="test")
    assert refused.value.rebuildable_from == position
    with pytest.raises(OutOfReach, match=r"from now"):
        versions.plan(bare.context, "default", name="clicks2", use="clicks", values={})
    rows = versions.plan(bare.context, "default", name="clicks2", use="clicks", values={}, start="now")
    versions.add(bare.context, "default", rows, actor="me", reason="test")
    bare.fold()
    with pytest.raises(ArchiveMissing):
        verify_group(bare.context, "default", bare.group("clicks"))


def test_a_policy_declared_after_events_are_gone_begins_behind_them(ledger: Ledger, tmp_path: Path) -> None:
    with make(ledger, tmp_path / "data", archive=False) as world:
        fill(world)
        keep(world)
        gone = reach(world, "clicks")[1]

    class Later(Clicks):
        version = 2

    settings = {"retention": {"keep_s": 3 * DAY, "compact": True, "archive": False}}
    with World(
        tmp_path / "data", [builtin, plugin([Later])], POLICIES, backends=BACKENDS, ledger=ledger, settings=settings,
        owner="later",
    ) as world:  # fmt: skip
        row = next(i for i in ledger.instances("default") if i.version == 2)
        assert (row.start_seq, row.slot) == (gone, "shadow")
        assert not ledger.group("default", row.group).auto, "it would take over with less than what it replaces"


def test_a_file_that_is_gone_is_named_and_halts_who_needs_it(world: World) -> None:
    fill(world)
    keep(world)
    expired = next(d for d in world.ledger.departures("default") if d.reason == "expired")
    path = world.context.history.path("default", expired)
    path.rename(path.with_suffix(".away"))
    assert reach(world, "clicks")[0] == "impossible"
    assert reach(world, "vector_index")[0] in ("impossible", "exact")
    assert world.context.history.missing("default") == [expired.name]
    with pytest.raises(OutOfReach, match=expired.name):
        versions.rebuild(world.context, "default", world.group("clicks"), actor="me", reason="test")
    group = world.group("clicks").name
    world.ledger.reset_group("default", group, watermark=0)
    world.forget_warm()
    world.fold()
    assert expired.name in (world.ledger.group("default", group).halted or "")
    path.with_suffix(".away").rename(path)
    world.forget_warm()
    world.fold()
    assert world.ledger.group("default", group).halted is None
    assert verify_group(world.context, "default", world.group("clicks")).equal


def test_a_file_that_was_changed_is_not_folded(world: World) -> None:
    fill(world)
    keep(world)
    expired = next(d for d in world.ledger.departures("default") if d.reason == "expired")
    path = world.context.history.path("default", expired)
    data = path.read_bytes()
    path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    with pytest.raises(ArchiveMissing, match="was changed"):
        verify_group(world.context, "default", world.group("clicks"))


def test_a_corrupt_checkpoint_halts_where_the_log_does_not_reach_back(bare: World) -> None:
    fill(bare)
    keep(bare)
    group = bare.group("clicks").name
    root = Path(bare.context.settings.checkpoint_root) / "default" / group
    for file in root.rglob("*.msgpack"):
        file.write_bytes(b"broken")
    bare.forget_warm()
    bare.fold()
    state = bare.ledger.group("default", group)
    assert "does not reach back" in (state.halted or "")
    assert state.watermark > 0, "it was not reset"


# -- erasures ---------------------------------------------------------------------------------------------------------
def test_an_erasure_reaches_the_archive(world: World) -> None:
    fill(world)
    keep(world)
    before = everything(world)
    assert any(b"anna" in file.read_bytes() for file in files(world) if file.is_file())
    position = world.send("user.erased", {"user_id": "anna"}).positions[0]
    document = world.send("document.erased", {"document_id": "doc-1"}).positions[0]
    world.erase()
    for at, subject in ((position, b"anna"), (document, b"doc-1")):
        erasure = world.ledger.erasure("default", at)
        assert erasure is not None
        report = json.loads(erasure.report)
        assert erasure.state == "complete", report
        assert report["removed"]["archive_files"] > 0
        assert {line["store"]: line["residue"] for line in report["stores"]}["archive"] == 0
        assert not [row for row in everything(world) if row.effect == 0 and b'"' + subject + b'"' in row.body]
        for reader in [Reader(file) for file in files(world) if file.is_file()]:
            rows = [row for number in reader.groups(0, 10**9) for row in reader.rows(number)]
            assert not [row for row in rows if b'"' + subject + b'"' in row.body]
    assert len(files(world)) == 1 + len(world.ledger.departures("default")), "what was replaced is deleted"
    kept = {row.seq for row in before if b'"anna"' not in row.body and b'"doc-1"' not in row.body}
    assert kept <= {row.seq for row in everything(world)}
    assert dict(world.store("clicks", "counts").items()) == {"i0": 2, "i1": 2, "i2": 2}
    for verdict in world.verify().values():
        assert verdict.equal, verdict.differences
    said = [("interaction.observed", {"user_id": "anna", "item_id": "i0", "action": "click"})]
    assert world.send_many(said, id="e5").outcomes == ["erased"]


def test_an_erased_event_whose_id_was_forgotten_stays_out(ledger: Ledger, tmp_path: Path) -> None:
    with make(ledger, tmp_path / "data", dedup_window_s=DAY) as world:
        said = [("interaction.observed", {"user_id": "anna", "item_id": "i0", "action": "click"})]
        world.send_many(said, id="once")
        fill(world)
        keep(world)
        world.send("user.erased", {"user_id": "anna"})
        world.erase()
        assert world.send_many(said, id="once").outcomes == ["erased"]


def test_nothing_leaves_while_an_erasure_is_under_way(world: World) -> None:
    fill(world)
    world.send("user.erased", {"user_id": "anna"})
    assert Keeper(world.context, (world.runner,)).run("default") is None
    assert Keeper(world.context).plan("default").waits_for
    world.erase()
    assert keep(world).expired > 0


def test_an_erasure_that_comes_while_a_file_is_written_takes_the_file_back(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(world)
    real = world.ledger.depart

    def late(*args: Any, **kwargs: Any) -> bool:
        monkeypatch.undo()
        world.send("user.erased", {"user_id": "anna"})
        return real(*args, **kwargs)

    monkeypatch.setattr(world.ledger, "depart", late)
    assert Keeper(world.context, (world.runner,)).run("default") is None
    assert world.ledger.departures("default") == []
    assert [file for file in files(world) if file.is_file()] == []
    world.erase()
    assert keep(world).expired > 0
    assert not [row for row in everything(world) if b'"anna"' in row.body]


def test_without_an_archive_an_erasure_folds_what_is_left_where_it_cannot_know_more(bare: World) -> None:
    fill(bare)
    keep(bare)
    bare.send("user.erased", {"user_id": "anna"})
    bare.erase()
    counts: dict[str, int] = {}
    rows = [row for row in logged(bare) if row.type == "interaction.observed" and row.effect == 0]
    for event in map(bare.registry.event_types.decode, rows):
        if event.data.item_id == "bad":
            continue
        assert event.data.user_id == "bert"
        counts[event.data.item_id] = counts.get(event.data.item_id, 0) + 1
    assert dict(bare.store("clicks", "counts").items()) == counts


# -- backups ----------------------------------------------------------------------------------------------------------
def test_a_restored_ledger_has_the_archive_of_its_backup(world: World, tmp_path: Path, url: str) -> None:
    if url.startswith("postgresql"):
        target = None  # tests/integration restores PostgreSQL into another database
    else:
        target = f"sqlite:///{tmp_path}/restored/ledger.db"
    fill(world)
    keep(world)
    before = everything(world)
    manifest = world.ledger.backup(tmp_path / "backup", archive=world.context.history.home)
    assert [name for name in manifest["files"] if name.startswith("archive/")]
    world.send("user.erased", {"user_id": "anna"})
    world.erase()
    if target is None:
        return
    done = restore_ledger(tmp_path / "backup", target, archive_root=tmp_path / "data" / "archive")
    restored = open_ledger(target)
    try:
        with make(restored, tmp_path / "data") as other:
            assert restored.timeline_id == done["timeline_id"]
            assert everything(other) == before, "also what an erasure has taken out of the other timeline's files"
            other.fold()
            assert all(verdict.equal for verdict in other.verify().values())
            assert dict(other.store("clicks", "counts").items()) == {"i0": 4, "i1": 4, "i2": 4}
    finally:
        restored.close()


def test_a_fold_afresh_may_be_partial_only_when_asked(bare: World) -> None:
    fill(bare)
    keep(bare)
    group = bare.group("clicks")
    for partial in (False, True):
        stores = GroupStores(bare.context, group, side="both")
        try:
            fold = Refold(bare.context, "default", group, stores, partial=partial)
            if partial:
                assert fold.run(bare.ledger.head("default")) < 18
            else:
                with pytest.raises(ArchiveMissing):
                    fold.run(bare.ledger.head("default"))
        finally:
            stores.close()


def test_a_checkpoint_is_written_where_one_is_needed_to_let_go(world: World) -> None:
    fill(world)
    assert all(floor.position == 0 for floor in world.ledger.floors("default"))
    keep(world)
    assert all(floor.position == floor.watermark for floor in world.ledger.floors("default"))
    world.forget_warm()
    world.fold()
    lease = world.runner._folds["default", world.group("clicks").name].lease
    assert lease is not None
    assert checkpoint_group(world.context, "default", world.group("clicks"), lease) == 0
