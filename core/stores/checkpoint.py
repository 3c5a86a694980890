"""Checkpoints: a group's stores as one verified folder, written aside and renamed into place.

::

    root/<name>/manifest.json            meta, and size + BLAKE2b digest of every file
    root/<name>/<store>/<files of save>

A name is never used twice, so a reader of one checkpoint never meets another's files; which one counts is the ledger's
fenced pointer, not this folder. With a URL as root (any fsspec scheme) the folder is built locally and uploaded, the
manifest last: without a manifest there is no checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from streamfold.core import crash
from streamfold.core.errors import CorruptCheckpoint, NewerCheckpoint
from streamfold.core.files import file_digest, make_folder, sync
from streamfold.core.stores.abc import Store

_MANIFEST = "manifest.json"
_FORMAT = 1
"""Raised when an older version could not read what is written; readers of both come a release before the writer."""
_LEVELS = 3
"""Folders that core makes above a checkpoint: ``checkpoints``, the workspace's, the group's."""


class CheckpointRoot:
    """Where checkpoints lie: a local folder, or any fsspec URL (``s3://…``, ``memory://…``)."""

    def __init__(self, root: Path | str) -> None:
        self.url = str(root)
        self._fs: Any = None
        self._path = Path(self.url)
        if "://" in self.url:
            import fsspec

            self._fs, path = fsspec.core.url_to_fs(self.url)
            self._remote = PurePosixPath(path)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Give a folder to fill; on a clean exit it is durable under the name, otherwise nothing is left of it."""
        if self._fs is None:
            make_folder(self._path, levels=_LEVELS)
            folder = self._path / f"{name}.tmp"
            folder.mkdir()
        else:
            folder = Path(tempfile.mkdtemp(prefix="streamfold-checkpoint-"))
        try:
            yield folder
            if self._fs is None:
                _sync_tree(folder)
                os.rename(folder, self._path / name)
                sync(self._path)
            else:
                self._upload(folder, name)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _upload(self, folder: Path, name: str) -> None:
        files = sorted(_files(folder), key=lambda path: path == _MANIFEST)
        for path in files:
            target = str(self._remote / name / path)
            self._fs.makedirs(str(PurePosixPath(target).parent), exist_ok=True)
            self._fs.put_file(str(folder / path), target)

    @contextmanager
    def reading(self, name: str) -> Iterator[Path]:
        """Give the checkpoint's folder, or a local copy of it."""
        if self._fs is None:
            yield self._path / name
            return
        with tempfile.TemporaryDirectory(prefix="streamfold-checkpoint-") as copy:
            base = str(self._remote / name)
            for found in self._fs.find(base):
                relative = PurePosixPath(found).relative_to(base)
                target = Path(copy) / relative
                target.parent.mkdir(parents=True, exist_ok=True)
                self._fs.get_file(found, str(target))
            yield Path(copy)

    def size(self, name: str) -> int:
        """Return a checkpoint's bytes; 0 where it is gone."""
        try:
            if self._fs is None:
                return sum((self._path / name / path).stat().st_size for path in _files(self._path / name))
            return int(self._fs.du(str(self._remote / name)))
        except OSError:
            return 0

    def names(self) -> list[str]:
        """Return all checkpoints, oldest first (names start with their time)."""
        if self._fs is None:
            found = [path.name for path in self._path.iterdir()] if self._path.is_dir() else []
        elif self._fs.isdir(str(self._remote)):
            found = [PurePosixPath(path).name for path in self._fs.ls(str(self._remote), detail=False)]
        else:
            found = []
        return sorted(name for name in found if not name.endswith(".tmp"))

    def leftovers(self) -> list[str]:
        """Return what writers that died left behind (local folders only)."""
        if self._fs is not None or not self._path.is_dir():
            return []
        return sorted(path.name for path in self._path.iterdir() if path.name.endswith(".tmp"))

    def drop(self, name: str) -> None:
        """Remove a checkpoint; one that is gone already is no error."""
        if self._fs is None:
            shutil.rmtree(self._path / name, ignore_errors=True)
        elif self._fs.exists(str(self._remote / name)):
            self._fs.rm(str(self._remote / name), recursive=True)


def write_checkpoint(stores: Mapping[str, Store], root: Path | str | CheckpointRoot, *, meta: Mapping[str, Any]) -> str:
    """Save every store durably and return the checkpoint's name.

    Parameters
    ----------
    stores : by name; each is saved to a folder of its own.
    meta : plain JSON for the reader: group, commit_no, watermark, timeline_id.
    """
    place = root if isinstance(root, CheckpointRoot) else CheckpointRoot(root)
    name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:12]}"
    with place.writing(name) as folder:
        for store_name, store in stores.items():
            part = folder / _folder_name(store_name)
            part.mkdir()
            store.save(part)
        crash.point("checkpoint.in")
        files = {path: {"size": size, "blake2b": digest} for path, size, digest in _digests(folder)}
        manifest = {"format": _FORMAT, "meta": dict(meta), "stores": sorted(stores), "files": files}
        (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")
    return name


def read_checkpoint(
    stores: Mapping[str, Store], root: Path | str | CheckpointRoot, name: str, *, timeline_id: str | None = None
) -> dict[str, Any]:
    """Load every store from a checkpoint and return its meta.

    All files are verified before the first store is touched.

    Raises
    ------
    CorruptCheckpoint : a file is missing, cut or changed (it is named); the checkpoint holds other stores than asked
        for; or it belongs to another timeline than ``timeline_id`` (the ledger was restored from an older backup).
    NewerCheckpoint : a newer version of streamfold has written it.
    """
    place = root if isinstance(root, CheckpointRoot) else CheckpointRoot(root)
    with place.reading(name) as folder:
        manifest = _manifest(folder, f"{place.url}/{name}")
        where = f"checkpoint {place.url}/{name}"
        meta: dict[str, Any] = manifest["meta"]
        if timeline_id is not None and meta.get("timeline_id") != timeline_id:
            raise CorruptCheckpoint(f"{where} is of timeline {meta.get('timeline_id')!r}, not {timeline_id!r}")
        if missing := sorted(set(stores) - set(manifest["stores"])):
            raise CorruptCheckpoint(f"{where} does not hold the stores {', '.join(missing)}; refold from the ledger")
        found = {path: {"size": size, "blake2b": digest} for path, size, digest in _digests(folder)}
        for path, expected in manifest["files"].items():
            if found.get(path) != expected:
                state = "missing" if path not in found else "changed or cut"
                raise CorruptCheckpoint(f"{where}: file {path} is {state}; refold from the ledger")
        for store_name, store in stores.items():
            store.load(folder / _folder_name(store_name))
    return meta


def drop_old_checkpoints(root: Path | str | CheckpointRoot, keep: int | set[str]) -> list[str]:
    """Remove all but the newest ``keep`` checkpoints (or all but those named); return the removed names.

    Unfinished ones (``.tmp``) are removed too: call it from the only writer of the root.
    """
    place = root if isinstance(root, CheckpointRoot) else CheckpointRoot(root)
    names = place.names()
    if isinstance(keep, int):
        keep = set(names[max(0, len(names) - keep) :])
    dropped = [name for name in names if name not in keep]
    for name in [*dropped, *place.leftovers()]:
        place.drop(name)
    return dropped


def _folder_name(store: str) -> str:
    """Return a file name for any store name, without meeting ``..`` or the manifest."""
    return "s-" + quote(store, safe="")


def _manifest(folder: Path, where: str) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] > _FORMAT:
            raise NewerCheckpoint(
                f"checkpoint {where} has format {manifest['format']}, this version reads up to {_FORMAT}: a newer "
                "streamfold has written it; upgrade this process"
            )
        if manifest["format"] != _FORMAT or not isinstance(manifest["meta"], dict):
            raise ValueError(f"format {manifest['format']}")
        files, stores = manifest["files"], manifest["stores"]
        if not isinstance(files, dict) or not isinstance(stores, list):
            raise ValueError("files or stores are not listed")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptCheckpoint(f"checkpoint {where}: {_MANIFEST} cannot be read: {error}") from error
    return dict(manifest)


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _digests(folder: Path) -> Iterator[tuple[str, int, str]]:
    for path in _files(folder):
        if path != _MANIFEST:
            yield path, (folder / path).stat().st_size, file_digest(folder / path)


def _sync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)
