"""What deletes leave in stores' files, and that an erasure gets rid of it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from streamfold.core import Blobs, Vectors
from streamfold.core.stores import LiveBlobs, LiveVectors
from streamfold.core.stores.vectors import LayeredVectors


def files_with(folder: Path, needle: bytes) -> list[str]:
    return [file.name for file in sorted(folder.rglob("*")) if file.is_file() and needle in file.read_bytes()]


def test_a_purged_vector_is_in_no_file_of_the_next_checkpoint(tmp_path: Path) -> None:
    def make(dim: int, normalize: bool) -> LayeredVectors:
        return LayeredVectors(dim, normalize, exact_rows=64, growing_rows=32, background=False)

    store = LiveVectors(Vectors("v", dim=16), make_index=make)
    rows = np.random.default_rng(0).standard_normal((400, 16)).astype(np.float32)
    store.upsert(np.arange(400), rows)
    store.keep()
    assert isinstance(store._index, LayeredVectors)
    store._index.maintain()
    ids, kept = store._index.export()
    needle = kept[ids == 17].astype(np.float16).tobytes()
    for name in ("before", "deleted", "purged"):
        (tmp_path / name).mkdir()
    store.save(tmp_path / "before")
    assert files_with(tmp_path / "before", needle)
    store.delete([17])
    store.keep()
    store.save(tmp_path / "deleted")
    assert files_with(tmp_path / "deleted", needle), "a delete alone leaves the row in its segment"
    store.purge()
    store.save(tmp_path / "purged")
    assert files_with(tmp_path / "purged", needle) == []
    assert len(store) == 399
    store.close()


def test_a_deleted_or_replaced_blob_is_overwritten_at_once(tmp_path: Path) -> None:
    store = LiveBlobs(Blobs("b"), tmp_path)
    for key, value in (("a", b"the first secret"), ("b", b"the second secret"), ("c", b"stays as it is")):
        store.put(key, value)
    store.keep()
    store.delete("a")
    store.put("b", b"another")
    store.keep()
    size = os.fstat(store._fd).st_size
    assert b"secret" not in os.pread(store._fd, size, 0)
    assert (store.get("a"), store.get("b"), store.get("c")) == (None, b"another", b"stays as it is")
    store.close()
