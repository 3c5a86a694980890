"""Back up, go on, restore: both databases; the restored ledger is one of its own and folds to the same state."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamfold.core.errors import CorruptCheckpoint, LedgerError
from streamfold.core.fold.checkpoint import checkpoint_group
from streamfold.core.fold.stores import checkpoint_root
from streamfold.core.ledger import open_ledger, restore_ledger
from streamfold.core.ledger.abc import DeadLetter, IntakeMove, Ledger
from streamfold.core.stores.checkpoint import read_checkpoint
from streamfold.core.testing import World
from streamfold.plugins import builtin

BACKENDS = {"encoder": {"use": "hashing"}, "chunker": {"use": "sentences"}}
POLICIES: dict[str, Any] = {"trending": {}, "vector_index": {}}


class Place:
    """Databases of one kind: where the ledger is, and an empty one to restore into."""

    def __init__(self, folder: Path, urls: list[str]) -> None:
        self.folder = folder
        self.urls = urls

    def world(self, number: int, ledger: Ledger) -> World:
        return World(self.folder / f"w{number}", [builtin], POLICIES, backends=BACKENDS, ledger=ledger)


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "sqlite":
        yield Place(tmp_path, [f"sqlite:///{tmp_path}/{name}/ledger.db" for name in ("one", "two")])
        return
    import sqlalchemy

    first = str(request.getfixturevalue("postgres_database"))
    second = sqlalchemy.make_url(first).set(database="restored_" + str(sqlalchemy.make_url(first).database))
    admin = sqlalchemy.create_engine(first, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.pool.NullPool)
    with admin.connect() as connection:
        connection.execute(sqlalchemy.text(f'create database "{second.database}"'))
    yield Place(tmp_path, [first, second.render_as_string(hide_password=False)])
    with admin.connect() as connection:
        connection.execute(sqlalchemy.text(f'drop database "{second.database}" with (force)'))
    admin.dispose()


def fill(world: World, start: int, count: int) -> None:
    for i in range(start, start + count):
        world.send("interaction.observed", {"user_id": "u", "item_id": f"i{i % 5}", "action": "click"}, id=f"c{i}")
        if i % 4 == 0:
            text = f"Text number {i} is about number {i * i}, and about nothing else at all."
            world.send("document.upserted", {"document_id": f"d{i % 8}", "text": text}, id=f"t{i}")
    world.fold()


def bodies(ledger: Ledger) -> list[tuple[int, int, bytes]]:
    return [(row.seq, row.effect, row.body) for row in ledger.read("default", 0, 10_000).rows]


def test_a_restored_ledger_is_as_it_was_then_and_folds_to_the_same_state(place: Place) -> None:
    ledger = open_ledger(place.urls[0])
    world = place.world(1, ledger)
    fill(world, 0, 40)
    letter = DeadLetter(stage="decode", code="malformed", detail="x", payload=b"\x00\xff", headers={"a": "b"})
    move = IntakeMove(intake="kafka:c:t:0", expect=None, next=17, topic="t")
    ledger.append("default", [], recorded_us=1, moves=[move], dead=[letter])
    group = world.group("trending")
    lease = world.runner._folds[("default", group.name)].lease
    assert lease is not None
    checkpoint_group(world.context, "default", group, lease)
    then, scores = bodies(ledger), dict(world.store("trending", "score_0").items())
    steps: list[tuple[int, int]] = []
    manifest = ledger.backup(place.folder / "backup", lambda done, total: steps.append((done, total)))
    assert manifest["positions"] == {"default": len(then)}
    assert steps
    fill(world, 40, 20)
    old_timeline = ledger.timeline_id
    world.close()
    ledger.close()

    restored = restore_ledger(place.folder / "backup", place.urls[1])
    ledger = open_ledger(place.urls[1])
    assert ledger.timeline_id == restored["timeline_id"] != old_timeline
    assert bodies(ledger) == then
    [intake] = ledger.intakes("default")
    assert (intake.intake, intake.next_offset) == ("kafka:c:t:0", 17)
    [kept] = ledger.dead_letters("default")
    assert (kept.payload, kept.headers) == (b"\x00\xff", {"a": "b"})
    with place.world(1, ledger) as world:  # the same folder: its checkpoints are of the other timeline
        world.fold()
        assert dict(world.store("trending", "score_0").items()) == scores
        assert all(verdict.equal for verdict in world.verify().values())
        fill(world, 30, 40)  # ten that it has, ten that came after the backup, twenty that nobody had
        assert ledger.head("default") == 70 + 70 // 4 + 1
        assert all(verdict.equal for verdict in world.verify().values())
        view = world.view.groups[group.name]
        root = checkpoint_root(world.context, "default", group.name)
        [name] = [path.name for path in Path(root).iterdir()]
        with pytest.raises(CorruptCheckpoint, match="timeline"):
            read_checkpoint(view.stores.stores, root, name, timeline_id=ledger.timeline_id)
    ledger.close()


def test_a_backup_that_was_changed_or_is_of_another_kind_is_refused(place: Place) -> None:
    ledger = open_ledger(place.urls[0])
    ledger.ensure_workspace("default")
    folder = place.folder / "backup"
    ledger.backup(folder)
    with pytest.raises(LedgerError, match="already there"):
        ledger.backup(folder)
    ledger.close()
    with pytest.raises(LedgerError, match=r"ledger|already there"):
        restore_ledger(folder, place.urls[0])
    other = "postgresql+psycopg://nowhere/x" if place.urls[0].startswith("sqlite") else "sqlite:///nowhere.db"
    with pytest.raises(LedgerError, match="backup of"):
        restore_ledger(folder, other)
    victim = max((file for file in folder.iterdir() if file.name != "manifest.json"), key=lambda f: f.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:-1])
    with pytest.raises(LedgerError, match="missing, cut or changed"):
        restore_ledger(folder, place.urls[1])
    (folder / "manifest.json").write_text(json.dumps({"format": 2}))
    with pytest.raises(LedgerError, match="no backup"):
        restore_ledger(folder, place.urls[1])
    with pytest.raises(LedgerError, match="no backup"):
        restore_ledger(place.folder / "nothing", place.urls[1])
