"""Files of other recommenders, read as events: Gorse's users, items and feedback; Metarank's events.

JSON lines, a JSON array, or for Gorse CSV, each also as ``.gz``. A row that cannot become an event is a problem of its
line; the others go on. Ids are made of the content, so that an import that was cut off is simply run again.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import msgspec

from streamfold.pipelines.cli.rows import Line
from streamfold.pipelines.cli.state import USAGE, CliError
from streamfold.pipelines.peers import gorse, metarank
from streamfold.pipelines.peers.rows import Made

_JSON, _CSV = (".jsonl", ".ndjson", ".json"), (".csv", ".tsv")
_BROKEN = (OSError, EOFError, zlib.error, csv.Error)
_REFUSED = (ValueError, RecursionError)
"""What makes a row bad, not the run; of msgspec too."""
Maker = Callable[[Any], Made]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerFile:
    """A file of rows of one kind. ``columns``: a CSV file's, where its first row names none."""

    path: Path
    row: type[Any]
    maker: Maker
    source: str
    columns: tuple[str, ...] = ()


def gorse_files(source: Path, known: frozenset[str]) -> list[PeerFile]:
    """Find the users, items and feedback in a folder, or tell by its name what one file holds."""
    kinds: dict[str, tuple[type[Any], Maker, tuple[str, ...]]] = {
        "user": (gorse.User, gorse.user_event, ("UserId", "Labels", "Comment")),
        "item": (
            gorse.Item,
            gorse.item_event,
            ("ItemId", "IsHidden", "Categories", "Timestamp", "Labels", "Comment"),
        ),
        "feedback": (
            gorse.Feedback,
            lambda row: gorse.feedback_event(row, known),
            ("FeedbackType", "UserId", "ItemId", "Timestamp"),
        ),
    }
    found = []
    files = _files(source, (*_JSON, *_CSV))
    for kind, (row, maker, columns) in kinds.items():  # what feedback names is there first
        own = [file for file in files if file.name.lower().startswith(kind)]
        found += [PeerFile(path=one, row=row, maker=maker, source=gorse.SOURCE, columns=columns) for one in own]
    if not found:
        raise CliError(
            f"{source}: no users, items or feedback here: name the files users.jsonl, items.csv, feedback.jsonl.gz or "
            "alike (Gorse gives them at /api/bulk/users, …; its binary dump is not read)", USAGE,
        )  # fmt: skip
    return found


def metarank_files(source: Path, known: frozenset[str]) -> list[PeerFile]:
    """Find the files of events in a folder, in order of their names; or take the one file."""
    files = _files(source, _JSON)
    if not files:
        raise CliError(f"{source}: no file of events here: {', '.join(_JSON)}, each also as .gz", USAGE)

    def maker(row: metarank.Event) -> Made:
        return metarank.made(row, known)

    return [PeerFile(path=one, row=metarank.Event, maker=maker, source=metarank.SOURCE) for one in files]


def _files(source: Path, suffixes: Sequence[str]) -> list[Path]:
    if not source.exists():
        raise CliError(f"{source}: no such file or folder", USAGE)
    files = sorted(source.iterdir()) if source.is_dir() else [source]
    return [file for file in files if file.is_file() and _suffix(file) in suffixes]


def _suffix(file: Path) -> str:
    return Path(file.name.lower().removesuffix(".gz")).suffix


# -- rows to events ----------------------------------------------------------------------------------------------------
def read_files(files: Sequence[PeerFile]) -> Iterator[Line]:
    """Read files one after the other; ``bytes_read`` counts through all of them."""
    before = 0
    for file in files:
        with file.path.open("rb") as raw:
            number = 0
            try:
                for number, row in _rows(file, raw):
                    yield _line(file, number, row, before + raw.tell())
            except _BROKEN as error:
                problem = f"the file cannot be read on: {error}"
                yield Line(number=number + 1, problem=problem, name=f"{file.path.name}:{number + 1}")
        before += file.path.stat().st_size


def _line(file: PeerFile, number: int, row: bytes | Mapping[str, Any] | ValueError, bytes_read: int) -> Line:
    name = f"{file.path.name}:{number}"
    try:
        if isinstance(row, ValueError):
            raise row
        if isinstance(row, bytes):
            read = msgspec.json.decode(row, type=file.row)
        else:
            read = msgspec.convert(row, file.row)
        made = file.maker(read)
        event: dict[str, Any] = {"specversion": "1.0", "id": made.content_id, "source": file.source, "type": made.type}
        event |= {"time": made.time} if made.time is not None else {}
        return Line(
            number=number, event=msgspec.json.encode(event | {"data": made.data}), bytes_read=bytes_read, name=name
        )
    except _REFUSED as error:
        problem = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:300]
        return Line(number=number, problem=problem, bytes_read=bytes_read, name=name)


def _rows(file: PeerFile, raw: IO[bytes]) -> Iterator[tuple[int, bytes | Mapping[str, Any] | ValueError]]:
    stream: Any = gzip.GzipFile(fileobj=raw) if file.path.name.lower().endswith(".gz") else raw
    if _suffix(file.path) in _CSV:
        yield from _csv(file, stream)
        return
    for number, line in enumerate(stream, 1):
        text = line.strip().removeprefix(b"\xef\xbb\xbf")
        if number == 1 and text.startswith(b"["):
            yield from _array(text + stream.read())
            return
        if text:
            yield number, text


def _array(text: bytes) -> Iterator[tuple[int, bytes | ValueError]]:
    try:
        rows = msgspec.json.decode(text, type=list[msgspec.Raw])
    except ValueError as error:
        yield 1, ValueError(f"not a JSON array: {error}")
        return
    for number, row in enumerate(rows, 1):
        yield number, bytes(row)


# -- CSV ---------------------------------------------------------------------------------------------------------------
def _csv(file: PeerFile, stream: IO[bytes]) -> Iterator[tuple[int, Mapping[str, Any] | ValueError]]:
    text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
    delimiter = "\t" if _suffix(file.path) == ".tsv" else ","
    reader = csv.reader(iter(text.readline, ""), delimiter=delimiter)
    names: Sequence[str] | None = None
    for cells in reader:
        if not any(cells):
            continue
        if names is None:
            names = _header(file, cells)
            if names is not None:
                continue
            names = file.columns
        if len(cells) > len(names):
            yield reader.line_num, ValueError(f"{len(cells)} columns, not {len(names)}: {', '.join(names)}")
            continue
        try:
            told = dict(zip(names, cells, strict=False))
            yield reader.line_num, {name: _cell(name, cell) for name, cell in told.items() if name and cell != ""}
        except ValueError as error:
            yield reader.line_num, error
    text.detach()


def _header(file: PeerFile, cells: Sequence[str]) -> list[str] | None:
    """Return a header's columns under Gorse's names (empty: not one of its), or None if it is a row."""
    fields = {_plain(name): name for name in file.row.__struct_fields__} | {"description": "Comment"}
    names = [fields.get(_plain(cell), "") for cell in cells]
    return names if file.columns[0] in names else None


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", "").replace(" ", "")


def _cell(name: str, text: str) -> Any:
    """Read a cell: lists are JSON or joined by ``|``, as Gorse's older exports have them."""
    text.encode()  # a broken byte is one bad row
    if name == "IsHidden":
        if text.lower() not in ("true", "false", "1", "0"):
            raise ValueError(f"IsHidden is {text[:40]!r}: give true or false")
        return text.lower() in ("true", "1")
    if name == "Value":
        return float(text)
    if name not in ("Categories", "Labels"):
        return text
    if text.lstrip().startswith(("[", "{")):
        return json.loads(text)
    return None if text == "null" else text.split("|")
