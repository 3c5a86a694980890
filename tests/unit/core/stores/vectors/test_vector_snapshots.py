"""Snapshots of the layered index: equal after restore, shared, linked, and never silently wrong."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vector_harness import (
    LAYERED,
    Array,
    Oracle,
    assert_answer,
    assert_equal_to,
    assert_holds,
    files_of,
    random_rows,
)

from streamfold.core.errors import CorruptCheckpoint, StoreError
from streamfold.core.stores.vectors import LayeredVectors

DIM = 12
DAMAGED = (CorruptCheckpoint, StoreError)


@pytest.fixture(params=LAYERED)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def fill(index: Any, oracle: Oracle, start: int, end: int, *, seed: int = 1) -> None:
    rng = np.random.default_rng(seed)
    for at in range(start, end, 40):
        ids = np.arange(at, min(end, at + 40))
        rows = random_rows(rng, len(ids), DIM)
        index.upsert(ids, rows)
        oracle.upsert(ids, rows)
        index.maintain()


def layered(new: Callable[..., Any], kind: str, rows: int = 700, **changes: Any) -> tuple[Any, Oracle]:
    """Rows in segments, dead rows in segments, rows and dead rows in the growing buffer."""
    index, oracle = new(kind, **changes), Oracle(DIM)
    fill(index, oracle, 0, rows)
    for key in (3, 50, rows - 1):
        index.delete([key])
        oracle.delete([key])
    fill(index, oracle, rows, rows + 5, seed=2)
    index.delete([rows + 2])
    oracle.delete([rows + 2])
    return index, oracle


@pytest.mark.parametrize("rows", [0, 1, 10, 64, 65, 700])
def test_a_restored_index_is_the_same_and_goes_on(
    new: Callable[..., Any], kind: str, rows: int, tmp_path: Path
) -> None:
    index, oracle = new(kind), Oracle(DIM)
    if rows > 10:
        index, oracle = layered(new, kind, rows)
    elif rows:
        fill(index, oracle, 0, rows)
    index.snapshot(tmp_path / "a")
    copy = new(kind, seed=7)
    copy.upsert([5000], np.ones((1, DIM)))
    copy.restore(tmp_path / "a")
    for one, other in zip(index.export(), copy.export(), strict=True):
        np.testing.assert_array_equal(one, other)
    queries = random_rows(np.random.default_rng(2), 5, DIM)
    np.testing.assert_allclose(copy.search(queries, 10)[1], index.search(queries, 10)[1], atol=1e-6)
    assert copy.stats().rows == index.stats().rows
    rng = np.random.default_rng(4)
    for target in (copy, index):
        continued = oracle.copy()
        fill(target, continued, 600, 900, seed=3)
        target.delete(np.arange(0, 900, 5))
        continued.delete(range(0, 900, 5))
        target.maintain(everything=True)
        assert_equal_to(target, continued, kind, rng)
        target.retrain()
        assert_equal_to(target, continued, kind, rng)
    for one, other in zip(index.export(), copy.export(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_snapshot_does_not_change_with_the_index(new: Callable[..., Any], kind: str, tmp_path: Path) -> None:
    """Segments are shared with the snapshot's files: what is deleted and merged later must not reach them."""
    index, oracle = layered(new, kind)
    index.snapshot(tmp_path / "a")
    index.restore(tmp_path / "a")  # now it lives on the files
    files = {path: path.read_bytes() for path in files_of(tmp_path / "a")}
    index.delete(np.arange(0, 700, 2))
    later = Oracle(DIM)
    fill(index, later, 0, 300, seed=9)
    index.maintain(everything=True)
    index.retrain()
    index.snapshot(tmp_path / "b")
    assert {path: path.read_bytes() for path in files_of(tmp_path / "a")} == files
    copy = new(kind)
    copy.restore(tmp_path / "a")
    assert_equal_to(copy, oracle, kind, np.random.default_rng(1))


def test_unchanged_segments_are_hard_links_in_the_next_snapshot(
    new: Callable[..., Any], kind: str, tmp_path: Path
) -> None:
    index, oracle = layered(new, kind)
    index.snapshot(tmp_path / "a")
    index.snapshot(tmp_path / "b")
    shared = inodes(tmp_path / "a") & inodes(tmp_path / "b")
    assert shared, [path.name for path in files_of(tmp_path / "b")]
    sizes = {path.stat().st_ino: path.stat().st_size for path in files_of(tmp_path / "a")}
    assert sum(sizes[inode] for inode in shared) > sum(sizes.values()) / 2  # the rows, not only small files
    # Also from what was restored, and with the first folder gone.
    copy = new(kind)
    copy.restore(tmp_path / "b")
    copy.snapshot(tmp_path / "c")
    assert inodes(tmp_path / "c") & shared
    shutil.rmtree(tmp_path / "a")
    shutil.rmtree(tmp_path / "b")
    for writer, name in ((index, "d"), (copy, "e")):
        writer.snapshot(tmp_path / name)
        again = new(kind)
        again.restore(tmp_path / name)
        assert_equal_to(again, oracle, kind, np.random.default_rng(1))


def inodes(folder: Path) -> set[int]:
    return {path.stat().st_ino for path in files_of(folder)}


def test_what_was_restored_from_a_folder_that_is_deleted_still_answers(
    new: Callable[..., Any], kind: str, tmp_path: Path
) -> None:
    index, oracle = layered(new, kind)
    index.snapshot(tmp_path / "a")
    copy = new(kind)
    copy.restore(tmp_path / "a")
    shutil.rmtree(tmp_path / "a")
    rng = np.random.default_rng(5)
    assert_equal_to(copy, oracle, kind, rng)
    fill(copy, oracle, 650, 1000, seed=6)
    copy.maintain(everything=True)
    assert_equal_to(copy, oracle, kind, rng)


@pytest.mark.parametrize("kind", ["ivf-fp16", "ivf-sq8"])
def test_lists_are_mapped_not_read(new: Callable[..., Any], kind: str, tmp_path: Path) -> None:
    index, _ = layered(new, kind)
    index.snapshot(tmp_path / "mapped")
    copy = new(kind)
    copy.restore(tmp_path / "mapped")
    copy.search(np.ones((1, DIM)), 3)
    assert str(tmp_path / "mapped") in Path("/proc/self/maps").read_text()


def test_two_processes_share_a_snapshot(new: Callable[..., Any], kind: str, tmp_path: Path) -> None:
    """Each goes on from it on its own: what one deletes and writes is not seen by the other, nor by the files."""
    index, oracle = layered(new, kind)
    index.snapshot(tmp_path / "a")
    files = {path: path.read_bytes() for path in files_of(tmp_path / "a")}
    code = (
        "import sys, numpy as np\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from vector_harness import make, random_rows\n"
        f"index = make({kind!r}, {DIM})\n"
        f"index.restore(__import__('pathlib').Path({str(tmp_path / 'a')!r}))\n"
        "print(index.export()[0].tolist(), flush=True)\n"
        f"index.delete(np.arange(0, 700, 3)); index.upsert([0], np.ones((1, {DIM}))); index.maintain(everything=True)\n"
        "print(len(index), flush=True)\n"
        "sys.stdin.read()\n"  # holds the snapshot open until the other is done
    )
    others = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    try:
        mine = new(kind)
        mine.restore(tmp_path / "a")
        lines = []
        for other in others:
            assert other.stdout is not None
            lines.append((other.stdout.readline().strip(), other.stdout.readline().strip()))
        assert_equal_to(mine, oracle, kind, np.random.default_rng(1))
        left = len([key for key in oracle.held if key >= 700 or key % 3]) + 1
        assert lines == [(str(sorted(oracle.held)), str(left))] * 2
    finally:
        for other in others:
            other.communicate("", timeout=300)
    assert [other.returncode for other in others] == [0, 0]
    assert {path: path.read_bytes() for path in files_of(tmp_path / "a")} == files


@pytest.mark.parametrize("background", [False, True], ids=["called", "background"])
def test_a_snapshot_taken_while_rows_are_written_is_one_moment(
    new: Callable[..., Any], kind: str, tmp_path: Path, background: bool
) -> None:
    """A sliding window is written one row at a time: every snapshot holds a whole window, nothing else."""
    width, dim = 150, 4
    index = new(kind, dim, background=background)
    stop, failed = threading.Event(), []

    def write() -> None:
        try:
            key = 0
            while not stop.is_set():
                index.upsert([key], vector_of(np.array([key])))
                if key >= width:
                    index.delete([key - width])
                if not background:
                    index.maintain()
                key += 1
        except BaseException as error:
            failed.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(12):
            index.snapshot(tmp_path / str(number))
            copy = new(kind, dim)
            copy.restore(tmp_path / str(number))
            ids, rows = copy.export()
            assert len(ids) <= width + 1
            if len(ids):
                np.testing.assert_array_equal(ids, np.arange(ids[0], ids[-1] + 1))
                assert ids[0] == 0 or len(ids) >= width
                np.testing.assert_allclose(rows, vector_of(ids), atol=0.01)
    finally:
        stop.set()
        writer.join()
    assert not failed


def test_a_restore_amid_merges_leaves_nothing_of_what_was_merged(
    new: Callable[..., Any], kind: str, tmp_path: Path
) -> None:
    source, oracle = layered(new, kind, 300)
    source.snapshot(tmp_path / "a")
    index = new(kind, background=True)
    rng = np.random.default_rng(2)
    for _ in range(10):
        index.upsert(np.arange(1000, 1600), random_rows(rng, 600, DIM))  # their merges are under way
        index.restore(tmp_path / "a")
        assert_holds(index, oracle, kind)
        index.wait()
        assert_equal_to(index, oracle, kind, rng)


def vector_of(ids: Array) -> Array:
    angles = ids[:, None] * np.array([[0.1, 0.37]])
    rows = np.concatenate([np.cos(angles), np.sin(angles)], axis=1) / np.sqrt(2)
    return rows.astype(np.float32)


# -- damage -----------------------------------------------------------------------------------------------------------
def test_every_cut_flipped_or_missing_file_is_named_and_the_index_stays(
    new: Callable[..., Any], kind: str, tmp_path: Path
) -> None:
    index, oracle = layered(new, kind)
    index.snapshot(tmp_path / "a")
    held = Oracle(DIM)
    target = new(kind)
    fill(target, held, 2000, 2200, seed=8)
    rng = random.Random(3)
    files = files_of(tmp_path / "a")
    assert len(files) >= 3
    for path in files:
        whole = path.read_bytes()
        places = {0, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(8))}
        damages: dict[str, bytes | None] = {f"flip at {at}": flipped(whole, at, rng.randrange(8)) for at in places}
        damages |= {"missing": None, "empty": b"", "half": whole[: len(whole) // 2], "cut": whole[:-1]}
        damages |= {"longer": whole + b"\0"}
        for name, damaged in damages.items():
            path.unlink(missing_ok=True)
            if damaged is not None:
                path.write_bytes(damaged)
            with pytest.raises(DAMAGED) as refused:
                target.restore(tmp_path / "a")
            assert path.name in str(refused.value), (path.name, name, str(refused.value))
        path.write_bytes(whole)
        assert_holds(target, held, kind)
    assert_equal_to(target, held, kind, np.random.default_rng(1))
    target.restore(tmp_path / "a")
    assert_equal_to(target, oracle, kind, np.random.default_rng(1))


def flipped(data: bytes, at: int, bit: int) -> bytes:
    changed = bytearray(data)
    changed[at] ^= 1 << bit
    return bytes(changed)


def test_cut_and_missing_files_are_found_without_verifying(new: Callable[..., Any], kind: str, tmp_path: Path) -> None:
    """``verify=False`` trusts bytes that someone else has checked, not lengths."""
    index, _ = layered(new, kind)
    index.snapshot(tmp_path / "a")
    target, held = new(kind), Oracle(DIM)
    fill(target, held, 0, 100, seed=8)
    for path in files_of(tmp_path / "a"):
        whole = path.read_bytes()
        for damaged in (None, whole[: len(whole) // 2], b""):
            path.unlink(missing_ok=True)
            if damaged is not None:
                path.write_bytes(damaged)
            with pytest.raises(DAMAGED, match=path.name):
                target.restore(tmp_path / "a", verify=False)
        path.write_bytes(whole)
    assert_holds(target, held, kind)
    target.restore(tmp_path / "a", verify=False)
    for one, other in zip(target.export(), index.export(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_folder_without_a_snapshot_is_refused(new: Callable[..., Any], kind: str, tmp_path: Path) -> None:
    index, oracle = layered(new, kind)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_bytes(b"x")
    for name in ("empty", "nowhere", "file"):
        with pytest.raises(DAMAGED, match=name):
            index.restore(tmp_path / name)
    assert_holds(index, oracle, kind)


def test_another_dimension_or_normalisation_is_refused(new: Callable[..., Any], kind: str, tmp_path: Path) -> None:
    index, _ = layered(new, kind)
    index.snapshot(tmp_path / "a")
    for other in (new(kind, DIM + 1), new(kind, normalize=False)):
        with pytest.raises(StoreError, match=r"dim|normalize"):
            other.restore(tmp_path / "a")
        assert len(other) == 0


@pytest.mark.parametrize("other", LAYERED)
def test_another_kind_is_converted_or_refused_but_never_mistaken(
    new: Callable[..., Any], kind: str, other: str, tmp_path: Path
) -> None:
    """Settings may change between two starts of a service."""
    index, oracle = layered(new, kind)
    index.snapshot(tmp_path / "a")
    target = new(other)
    refused = ""
    try:
        target.restore(tmp_path / "a")
    except StoreError as error:
        refused = str(error)
    if refused:
        assert kind != other
        assert "kind" in refused
        assert len(target) == 0
        return
    coarse = "ivf-sq8" if "ivf-sq8" in (kind, other) else other
    stored = assert_holds(target, oracle, coarse)
    queries = random_rows(np.random.default_rng(1), 5, DIM)
    assert assert_answer(target, stored, queries, 10, exact="hnsw" not in (kind, other)) >= 0.9


@pytest.mark.parametrize("changes", [{"exact_rows": 10_000}, {"growing_rows": 200}, {"segment_rows": 100}], ids=repr)
def test_other_sizes_restore_the_same_content(
    new: Callable[..., Any], kind: str, changes: dict[str, int], tmp_path: Path
) -> None:
    for index_changes, target_changes in ((changes, {}), ({}, changes)):
        index, oracle = layered(new, kind, **index_changes)
        folder = tmp_path / f"from-{len(index_changes)}"
        index.snapshot(folder)
        target = new(kind, **target_changes)
        target.restore(folder)
        assert_equal_to(target, oracle, kind, np.random.default_rng(1))
        fill(target, oracle, 300, 1000, seed=4)
        target.maintain(everything=True)
        assert_equal_to(target, oracle, kind, np.random.default_rng(1))


def test_a_failed_snapshot_is_none_and_the_next_one_is_whole(
    new: Callable[..., Any], kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest comes last: a writer that dies or has no room leaves no folder that restores."""
    import os

    index, oracle = layered(new, kind)
    real, left = os.replace, [True]

    def replace(source: Any, target: Any, **more: Any) -> None:
        if left.pop() if left else False:
            raise OSError(28, "No space left on device")
        real(source, target, **more)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(os, "rename", replace)
    with pytest.raises(OSError, match="No space"):
        index.snapshot(tmp_path / "a")
    monkeypatch.undo()
    with pytest.raises(DAMAGED):
        new(kind).restore(tmp_path / "a")
    assert_equal_to(index, oracle, kind, np.random.default_rng(1))
    index.snapshot(tmp_path / "b")
    copy = new(kind)
    copy.restore(tmp_path / "b")
    assert_equal_to(copy, oracle, kind, np.random.default_rng(1))


def test_the_manifest_is_readable(new: Callable[..., Any], tmp_path: Path) -> None:
    index, _ = layered(new, "ivf-fp16")
    index.snapshot(tmp_path / "a")
    manifests = [path for path in files_of(tmp_path / "a") if path.suffix == ".json"]
    assert len(manifests) == 1
    assert isinstance(json.loads(manifests[0].read_text()), dict)
    assert isinstance(index, LayeredVectors)
