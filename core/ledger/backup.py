"""A backup of a ledger: consistent, made while it is written to, verified before it is restored.

A backup is a folder with ``manifest.json`` (format, kind, timeline, migration, positions, each file's size and
BLAKE2b), ``archive`` (the files that hold what has left the log) and, for SQLite, ``ledger.db`` (the online backup
API's copy), for PostgreSQL one file per table, read in one snapshot. Such a file is a sequence of frames: four bytes of
length (big-endian), then as many of MessagePack; the first frame is the list of column names, each further one a list
of rows (lists in the columns' order; bytes as bin).

A restored ledger gets a new timeline: checkpoints made by the old one, which may be ahead of it, are refused. Groups
that had one are reset and folded afresh from the log; backend results are in the ledger, so nothing is embedded again.
Intakes go on at the offsets that the ledger says.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import msgspec

from streamfold.core.clock import SystemClock, to_rfc3339
from streamfold.core.errors import LedgerError
from streamfold.core.files import file_digest, sync
from streamfold.core.ledger._tx import Row, Tx

MANIFEST = "manifest.json"
FORMAT = 1
ROWS = 1000
"""Rows in a frame."""
Progress = Callable[[int, int], None]

NAMED = "select workspace, name from departures"
NEW_TIMELINE = "update meta set value = ? where name = 'timeline_id'"
_FREE = "update fold_groups set owner = null, lease_until_us = 0, epoch = epoch + 1"
_RESET = """update fold_groups set commit_no = commit_no + 1, checkpoint = null, checkpoint_commit = commit_no + 1,
    watermark = (select min(start_seq) from instances i
        where i.workspace = fold_groups.workspace and i.grp = fold_groups.grp),
    checkpoint_watermark = (select min(start_seq) from instances i
        where i.workspace = fold_groups.workspace and i.grp = fold_groups.grp),
    feed_bytes = 0, state_bytes = 0 where checkpoint is not null"""
_FEED = """delete from commits where exists (select 1 from fold_groups g where g.workspace = commits.workspace
    and g.grp = commits.grp and g.checkpoint is not null)"""


def begin_timeline(tx: Tx, timeline: str) -> None:
    """Make a copied ledger one of its own: new timeline, no owners, no checkpoints of the other."""
    tx.run(NEW_TIMELINE, (timeline,))
    tx.run(_FREE)
    tx.run(_FEED)
    tx.run(_RESET)
    tx.run("delete from prepared where state = 0")


def positions(tx: Tx) -> dict[str, int]:
    return {workspace: int(seq) for workspace, seq in tx.all("select workspace, seq from log_head order by workspace")}


# -- the folder -------------------------------------------------------------------------------------------------------
def start_folder(folder: Path) -> Path:
    """Return a new folder beside the target, to be filled and then named as it; the target must not be there."""
    if folder.exists():
        raise LedgerError(f"{folder} is already there: name a folder that is not")
    part = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.part")
    part.mkdir(parents=True)
    return part


def finish_folder(part: Path, folder: Path, *, kind: str, timeline: str, at: Mapping[str, int]) -> dict[str, Any]:
    """Write the manifest, make all durable, and give the folder its name."""
    from streamfold.core.ledger.migrate import newest

    files = {str(file.relative_to(part)): describe(file) for file in sorted(part.rglob("*")) if file.is_file()}
    manifest = {
        "format": FORMAT,
        "kind": kind,
        "timeline_id": timeline,
        "migration": newest(),
        "made_at": to_rfc3339(SystemClock().now_us()),
        "positions": dict(at),
        "files": files,
    }
    (part / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")
    for file in [*part.rglob("*"), part]:
        sync(file)
    os.rename(part, folder)
    sync(folder.parent)
    return manifest


def drop_folder(part: Path) -> None:
    shutil.rmtree(part, ignore_errors=True)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return a backup's manifest when every file is as it was written. Raises ``LedgerError``."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']}, not {FORMAT}")
        files = dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LedgerError(f"{folder} is no backup that can be read: {MANIFEST}: {error}") from error
    for name, expected in files.items():
        file = folder / name
        if not file.is_file() or describe(file) != expected:
            raise LedgerError(f"{folder}: {name} is missing, cut or changed; nothing was restored")
    return manifest


def describe(file: Path) -> dict[str, Any]:
    return {"size": file.stat().st_size, "blake2b": file_digest(file, size=32)}


# -- the archive ------------------------------------------------------------------------------------------------------
ARCHIVE = "archive"
"""The folder of a backup that holds the archive's files, one folder below it for each workspace."""


def copy_archive(home: Path, part: Path) -> None:
    """Copy the archive as it is; what a snapshot made after this names and lacks here is copied by ``complete``.

    Files are linked where that is possible: they are never changed, and a name that is deleted leaves the link.
    """
    for file in sorted(home.glob("*/*.parquet")) if home.is_dir() else []:
        _copy(file, part / ARCHIVE / file.parent.name / file.name)


def complete_archive(home: Path, part: Path, named: Iterable[Row], now: Iterable[Row]) -> None:
    """Have exactly the files that the copied ledger names; ``now``: what the ledger names since. (workspace, file)

    Raises ``LedgerError`` when an erasure has replaced a file between the snapshot and its copy.
    """
    wanted = _paths(named)
    for file in wanted:
        if not (part / ARCHIVE / file).exists() and (home / file).exists():
            _copy(home / file, part / ARCHIVE / file)
    lost = [file for file in wanted - _paths(now) if not (part / ARCHIVE / file).exists()]
    if lost:
        raise LedgerError(f"an erasure has replaced {lost[0]} in the archive meanwhile: make the backup again")
    for copied in list((part / ARCHIVE).glob("*/*")):
        if copied.relative_to(part / ARCHIVE) not in wanted:
            copied.unlink()


def _paths(named: Iterable[Row]) -> set[Path]:
    return {Path(quote(workspace, safe="")) / name for workspace, name in named if name}


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileNotFoundError:
        return  # it was replaced just now
    except OSError:  # another file system
        with suppress(FileNotFoundError):
            shutil.copyfile(source, target)


def restore_archive(folder: Path, root: Path, timeline: str) -> Path:
    """Give a ledger that is to be restored an archive of its own; returns where.

    These are copies: an erasure deletes files in one timeline and not in the other.
    """
    source = folder / ARCHIVE
    home = root / timeline
    if source.is_dir():
        root.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, home)
        for file in [*home.rglob("*"), home]:
            sync(file)
    return home


# -- frames -----------------------------------------------------------------------------------------------------------
def write_frame(file: IO[bytes], value: Sequence[Any]) -> None:
    data = msgspec.msgpack.encode(value)
    file.write(len(data).to_bytes(4, "big") + data)


def read_frames(file: IO[bytes]) -> Iterator[list[Any]]:
    while head := file.read(4):
        yield msgspec.msgpack.decode(file.read(int.from_bytes(head, "big")))


def table_file(folder: Path, table: str) -> Path:
    return folder / f"{table}.frames"


def write_table(folder: Path, table: str, columns: Sequence[str], batches: Iterator[Sequence[Row]]) -> Iterator[int]:
    """Write one table; yields how many rows were written so far."""
    count = 0
    with table_file(folder, table).open("wb") as file:
        write_frame(file, list(columns))
        for rows in batches:
            write_frame(file, [list(row) for row in rows])
            count += len(rows)
            yield count
