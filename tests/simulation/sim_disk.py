"""The simulator's disk: what a power cut leaves of files that were not synced, and writes that fail half-way.

Files are real. What was synced is known by inode: a file's size and time of change at its last fsync, a folder's
entries at its last. After a power cut a file that has changed since is whole, cut or zeroed, and an entry that was not
synced is there or not, each by a draw: what a journalling file system may leave.
"""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sim_kernel import Kernel


class Disk:
    """Knows what is durable; makes the image that a power cut leaves."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._files: dict[int, tuple[int, int]] = {}
        self._folders: dict[int, dict[str, int]] = {}

    def synced(self, fd: int) -> None:
        """Remember what a descriptor's file or folder holds now."""
        stat = os.fstat(fd)
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            names = os.listdir(fd)
            self._folders[stat.st_ino] = {name: os.stat(name, dir_fd=fd).st_ino for name in names}
        else:
            self._files[stat.st_ino] = (stat.st_size, stat.st_mtime_ns)

    def adopt(self, folder: Path) -> None:
        """Take everything in a folder as durable."""
        for path in [folder, *folder.rglob("*")]:
            fd = os.open(path, os.O_RDONLY)
            try:
                self.synced(fd)
            finally:
                os.close(fd)

    def after_power_cut(self, source: Path, target: Path, rng: random.Random) -> list[str]:
        """Copy a folder as a power cut leaves it; returns what was lost."""
        lost: list[str] = []
        target.mkdir(parents=True)
        self._image(source, target, rng, lost)
        return lost

    def _image(self, source: Path, target: Path, rng: random.Random, lost: list[str]) -> None:
        durable = self._folders.get(source.stat().st_ino, {})
        for path in sorted(source.iterdir()):
            stat = path.lstat()
            if durable.get(path.name) != stat.st_ino and rng.random() < 0.5:
                lost.append(f"entry {path.name}")
            elif path.is_dir():
                (target / path.name).mkdir()
                self._image(path, target / path.name, rng, lost)
            else:
                data = path.read_bytes()
                if self._files.get(stat.st_ino) != (stat.st_size, stat.st_mtime_ns) and data:
                    data = _torn(data, rng)
                    lost.append(f"content of {path.name}")
                (target / path.name).write_bytes(data)


def _torn(data: bytes, rng: random.Random) -> bytes:
    cut = rng.randrange(len(data) + 1)
    return rng.choice([data, data[:cut], data[:cut] + bytes(len(data) - cut), b""])


class SimOs:
    """The module ``os`` where durability is made: each fsync and rename is a point of the schedule."""

    def __init__(self, kernel: Kernel, disk: Disk) -> None:
        self._kernel, self._disk = kernel, disk

    def fsync(self, fd: int) -> None:
        fault = self._kernel.point("fsync", ("kill", "power", "eio"))
        if fault is not None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._disk.synced(fd)

    def rename(self, source: Any, target: Any) -> None:
        fault = self._kernel.point("rename", ("kill", "power", "enospc"))
        if fault is not None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.rename(source, target)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


class SimShutil:
    """The module ``shutil``: a dead process removes nothing."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def rmtree(self, path: Any, ignore_errors: bool = False) -> None:
        self._kernel.point("rmtree", ("kill", "power"))
        shutil.rmtree(path, ignore_errors=ignore_errors)

    def __getattr__(self, name: str) -> Any:
        return getattr(shutil, name)


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """Let no file grow past a size: the write that would is cut there, by the kernel, and the next one fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
