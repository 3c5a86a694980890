"""Checkpoints: verified, atomic, never half."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from streamfold.core import stores
from streamfold.core.errors import CorruptCheckpoint, StoreError
from streamfold.core.stores import (
    Blobs,
    CheckpointRoot,
    Declaration,
    Table,
    Text,
    Vectors,
    drop_old_checkpoints,
    open_store,
    read_checkpoint,
    write_checkpoint,
)

DECLARED: tuple[Declaration, ...] = (Table("t/../x"), Vectors("v"), Text("x"), Blobs("b"))
META = {"group": "g", "commit_no": 3, "watermark": 17, "timeline_id": "t1"}


def opened(folder: Path) -> Mapping[str, Any]:
    return {declared.name: open_store(declared, folder=folder, side="view") for declared in DECLARED}


def filled(folder: Path) -> Mapping[str, Any]:
    group = opened(folder)
    group["t/../x"].put("a", 1.0)
    group["v"].upsert([1], [[1.0, 2.0]])
    group["x"].put([1], [{"title": "Radium"}])
    group["b"].put("a", b"bytes")
    return group


def fingerprints(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: store.fingerprint() for name, store in group.items()}


@pytest.mark.parametrize("remote", [False, True], ids=["folder", "fsspec"])
def test_checkpoint_gives_equal_stores_and_its_meta(tmp_path: Path, remote: bool) -> None:
    root = f"memory://{tmp_path.name}/checkpoints" if remote else tmp_path / "root"
    group, copy = filled(tmp_path), opened(tmp_path)
    name = write_checkpoint(group, root, meta=META)
    assert read_checkpoint(copy, root, name, timeline_id="t1") == META
    assert fingerprints(copy) == fingerprints(group)
    assert CheckpointRoot(root).names() == [name]
    later = write_checkpoint(group, root, meta=META)
    assert drop_old_checkpoints(root, 1) == [name]
    assert CheckpointRoot(root).names() == [later]
    for store in (*group.values(), *copy.values()):
        store.close()


def test_every_changed_cut_or_missing_file_is_named(tmp_path: Path) -> None:
    group = filled(tmp_path)
    name = write_checkpoint(group, tmp_path / "root", meta=META)
    files = [path for path in (tmp_path / "root" / name).rglob("*") if path.is_file()]
    assert len(files) > 8
    copy = opened(tmp_path)
    untouched = fingerprints(copy)
    for path in files:
        whole = path.read_bytes()
        for damaged in (whole[:-1], bytes([whole[0] ^ 1]) + whole[1:], None):
            path.unlink()
            if damaged is not None:
                path.write_bytes(damaged)
            with pytest.raises(CorruptCheckpoint, match=path.name):
                read_checkpoint(copy, tmp_path / "root", name)
        path.write_bytes(whole)
    assert fingerprints(copy) == untouched
    read_checkpoint(copy, tmp_path / "root", name)
    for store in (*group.values(), *copy.values()):
        store.close()


def test_another_timeline_or_another_store_is_refused(tmp_path: Path) -> None:
    table = open_store(Table("t"), folder=tmp_path, side="view")
    name = write_checkpoint({"t": table}, tmp_path, meta=META)
    with pytest.raises(CorruptCheckpoint, match="timeline"):
        read_checkpoint({"t": table}, tmp_path, name, timeline_id="t2")
    with pytest.raises(CorruptCheckpoint, match="does not hold the stores u"):
        read_checkpoint({"u": table}, tmp_path, name)


def test_failed_save_leaves_nothing(tmp_path: Path) -> None:
    table = open_store(Table("t", value=str, fold_reads=False), folder=tmp_path, side="fold")
    with pytest.raises(StoreError, match="view"):
        write_checkpoint({"t": table}, tmp_path / "root", meta=META)
    assert list((tmp_path / "root").iterdir()) == []


def test_killed_writer_leaves_no_checkpoint_and_its_rest_is_cleared(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; import sys\n"
        "from streamfold.core.stores import *\n"
        "root = Path(sys.argv[1])\n"
        "write_checkpoint({'t': open_store(Table('t'), folder=root, side='view')}, root, meta={})\n"
    )
    environment = {**os.environ, "STREAMFOLD_CRASH": "checkpoint.in"}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, check=False)
    assert done.returncode == -signal.SIGKILL
    assert CheckpointRoot(tmp_path).names() == []
    assert len(CheckpointRoot(tmp_path).leftovers()) == 1
    assert drop_old_checkpoints(tmp_path, 2) == []
    assert list(tmp_path.iterdir()) == []


def test_exported_names_are_sorted() -> None:
    assert stores.__all__ == sorted(stores.__all__)


@pytest.mark.parametrize("made_before", [False, True])
def test_each_folder_on_the_way_to_a_checkpoint_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_before: bool
) -> None:
    """Found by the simulator: a power cut took new folders away, and with them the first checkpoint."""
    synced: dict[int, set[str]] = {}
    fsync = os.fsync

    def recording(fd: int) -> None:
        fsync(fd)
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            synced[os.fstat(fd).st_ino] = set(os.listdir(fd))

    monkeypatch.setattr(os, "fsync", recording)
    root = tmp_path / "checkpoints" / "workspace" / "group"
    if made_before:  # by a process that died before it synced them
        root.mkdir(parents=True)
    name = write_checkpoint(filled(tmp_path), root, meta=META)
    for entry in (root / name, root, root.parent, root.parent.parent):
        assert entry.name in synced[entry.parent.stat().st_ino], f"{entry} may be lost"
