"""Blobs: staging, compaction, copies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from streamfold.core.errors import StoreError, StoreFull
from streamfold.core.stores import Blobs, LiveBlobs


def test_blob_is_visible_after_keep_and_gone_after_undo(tmp_path: Path) -> None:
    store = LiveBlobs(Blobs("b"), tmp_path / "made")
    store.put("a", b"one")
    assert store.get("a") is None
    store.keep()
    store.begin()
    store.put("a", b"two")
    store.delete("a")
    store.put("c", b"")
    store.undo()
    assert store.get("a") == b"one"
    assert "c" not in store
    store.close()


def test_scratch_file_stays_within_twice_the_content_and_has_no_name(tmp_path: Path) -> None:
    store = LiveBlobs(Blobs("b"), tmp_path)
    for i in range(100):
        store.put(f"k{i % 5}", bytes([i]) * 100_000)
        store.keep()
    assert os.fstat(store._fd).st_size <= 1_100_000
    assert [store.get(f"k{i}") for i in range(5)] == [bytes([95 + i]) * 100_000 for i in range(5)]
    assert list(tmp_path.iterdir()) == []
    store.close()


def test_saved_blobs_do_not_change_with_the_store(tmp_path: Path) -> None:
    store, copy = LiveBlobs(Blobs("b"), tmp_path), LiveBlobs(Blobs("b"), tmp_path)
    store.put("a", b"x" * 3_000_000)
    store.put("b", b"y")
    store.keep()
    (tmp_path / "saved").mkdir()
    store.save(tmp_path / "saved")
    saved = store.fingerprint()
    store.put("b", b"z")
    store.keep()
    copy.load(tmp_path / "saved")
    assert copy.fingerprint() == saved != store.fingerprint()
    assert copy.get("b") == b"y"
    store.close()
    copy.close()


def test_wrong_types_and_too_many_bytes_are_refused(tmp_path: Path) -> None:
    store = LiveBlobs(Blobs("b", max_bytes=4), tmp_path)
    with pytest.raises(StoreError, match="not bytes"):
        store.put("a", "text")  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="not str"):
        store.put(1, b"")  # type: ignore[arg-type]
    store.put("a", b"1234")
    with pytest.raises(StoreFull, match="4 bytes"):
        store.put("b", b"1")
    store.put("a", b"1")
    store.put("b", b"1")
    store.keep()
    assert len(store) == 2
    store.close()
