"""Bytes by key in one append-only scratch file, indexed in memory.

The file is nobody's truth: a process rebuilds it from checkpoint + feed. So it is never synced, and it has no name
(unlinked once open): a killed process leaves nothing behind.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from streamfold.core.codec import pack, unpack
from streamfold.core.errors import StoreError
from streamfold.core.stores._staged import Staged
from streamfold.core.stores.declare import Blobs

_PIECE = 1 << 20
_MIN_DEAD = 1 << 20


class LiveBlobs(Staged[str, bytes]):
    """The live store of :class:`Blobs`. Reads inside an event see the state before the event.

    The index takes some 200 bytes a blob. When more than half of the file is dead, the live blobs are copied to a new
    one (amortised O(1) a byte written).

    Parameters
    ----------
    folder : where the scratch file lies; made if missing.
    hold : False on the fold's side of ``fold_reads=False``: only keys and undrained changes are kept, and no file.
    """

    def __init__(self, declaration: Blobs, folder: Path, *, hold: bool = True) -> None:
        self._folder = folder
        self._fd = -1
        self._file_lock = threading.Lock()
        super().__init__(
            declaration.name, bound=declaration.max_bytes, on_full=declaration.on_full, hold=hold, by_bytes=True
        )

    def _reset(self) -> None:
        super()._reset()
        self._index: dict[str, tuple[int, int, bytes]] = {}  # key -> offset, length, digest
        self._end = 0
        self._close_file()

    # -- writes -------------------------------------------------------------------------------------------------------
    def put(self, key: str, value: bytes) -> None:
        """Insert or replace; visible after ``keep``. Raises ``StoreError`` (type) or ``StoreFull``."""
        if type(key) is not str:
            raise StoreError(f"store {self.name!r}: key {key!r} is {type(key).__name__}, not str")
        if not isinstance(value, (bytes, bytearray, memoryview)):
            raise StoreError(f"store {self.name!r}: value of {key!r} is {type(value).__name__}, not bytes")
        self._stage_put(key, bytes(value))

    def delete(self, key: str) -> None:
        """Delete; an unknown key is no error."""
        self._stage_delete(key)

    # -- reads --------------------------------------------------------------------------------------------------------
    def get(self, key: str) -> bytes | None:
        self._readable()
        with self._file_lock:
            place = self._index.get(key)
            return None if place is None else self._read(place[0], place[1])

    def __contains__(self, key: str) -> bool:
        self._readable()
        return key in self._index

    def keys(self) -> Iterator[str]:
        self._readable()
        return iter(list(self._index))

    def _read(self, offset: int, length: int) -> bytes:
        data = os.pread(self._fd, length, offset)
        while len(data) < length:  # a single read is capped at 2 GiB
            more = os.pread(self._fd, length - len(data), offset + len(data))
            if not more:
                raise StoreError(f"store {self.name!r}: its scratch file in {self._folder} was cut short")
            data += more
        return data

    def contents(self) -> dict[str, bytes]:
        """Digests by key."""
        self._readable()
        return {key: digest for key, (_, _, digest) in self._index.items()}

    # -- for Staged ---------------------------------------------------------------------------------------------------
    def _size(self, value: bytes) -> int:
        return len(value)

    def _write(self, puts: dict[str, bytes], deletes: list[str]) -> None:
        with self._file_lock:
            for key in (*deletes, *puts):
                if (old := self._index.pop(key, None)) is not None:
                    os.pwrite(self._fd, bytes(old[1]), old[0])  # what is deleted does not wait for a compaction
            if puts:
                self._open_file()
                _write_all(self._fd, b"".join(puts.values()))
            for key, value in puts.items():
                self._index[key] = (self._end, len(value), hashlib.blake2b(value, digest_size=8).digest())
                self._end += len(value)
            if self._end > _MIN_DEAD and self._end > 2 * self._bytes:
                self._compact()

    def _compact(self) -> None:
        fd = self._scratch()
        index, end = {}, 0
        for key, (offset, length, digest) in self._index.items():
            _write_all(fd, self._read(offset, length))
            index[key] = (end, length, digest)
            end += length
        os.close(self._fd)
        self._fd, self._index, self._end = fd, index, end

    def _scratch(self) -> int:
        self._folder.mkdir(parents=True, exist_ok=True)
        fd, path = tempfile.mkstemp(prefix=f"{self.name}-", suffix=".blobs", dir=self._folder)
        os.unlink(path)
        return fd

    def _open_file(self) -> None:
        if self._fd < 0:
            self._fd = self._scratch()

    def _close_file(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _save(self, folder: Path) -> None:
        with self._file_lock, (folder / "blobs.bin").open("wb") as file:
            index = []
            for key, (offset, length, digest) in self._index.items():
                index.append((key, length, digest))
                for start in range(0, length, _PIECE):
                    file.write(self._read(offset + start, min(_PIECE, length - start)))
        (folder / "blobs.msgpack").write_bytes(pack(index))

    def _load(self, folder: Path) -> None:
        if not self._hold:
            return
        rows = unpack((folder / "blobs.msgpack").read_bytes(), list[tuple[str, int, bytes]])
        with self._file_lock, (folder / "blobs.bin").open("rb") as file:
            self._open_file()
            while piece := file.read(_PIECE):
                _write_all(self._fd, piece)
            for key, length, digest in rows:
                self._index[key] = (self._end, length, digest)
                self._end += length

    def _fingerprint(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for key in sorted(self._index):
            digest.update(pack((key, self._index[key][1:])))
        return digest.hexdigest()


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
