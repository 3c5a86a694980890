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


def make_folder(path: Path, *, levels: int) -> None:
    """Make a folder and the missing ones above it; a power cut after this leaves them and the last ``levels``.

    Also those that were there: whoever made them may have died before their entries were on the disk.
    """
    folders = (path, *path.parents)
    missing = sum(not folder.is_dir() for folder in folders)
    path.mkdir(parents=True, exist_ok=True)
    for folder in folders[: max(levels, missing)]:
        sync(folder.parent)
