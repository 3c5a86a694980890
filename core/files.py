"""Files that must be whole and on the disk: their digests, and fsync. Checkpoints, snapshots and backups share this."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def file_digest(path: Path, *, size: int = 16) -> str:
    """BLAKE2b of a file's content in hexadecimal, ``size`` bytes of it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=size)).hexdigest()


def sync(path: Path) -> None:
    """Have a file's content, or a folder's entries, written to the disk before going on."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def make_folder(path: Path) -> None:
    """Make a folder and the missing ones above it, so that a power cut later leaves all of them."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync(path.parent)
