"""Files to events: JSON lines, a JSON array or CSV, as CloudEvents or as rows that are mapped to them.

Without an id of its own a row gets a hash of its content and line number: sending a file twice gives duplicates.
"""

from __future__ import annotations

import csv
import json
import sys
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, TextIO

from streamfold.pipelines.cli.state import USAGE, CliError

_CSV = frozenset((".csv", ".tsv"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the input: the event as JSON, or why it is none. ``bytes_read``: how far the file was read.

    ``name``: of the file, where each is one event.
    """

    number: int
    event: bytes = b""
    problem: str = ""
    bytes_read: int = 0
    name: str = ""


MakeEvent = Callable[[Mapping[str, Any], int], Mapping[str, Any]]


def read_lines(path: str, *, type_: str, mapping: Path | None, source: str) -> Iterator[Line]:
    """Read events from a file or ``-``; a line that cannot become one is returned as a problem, not raised."""
    table = {} if mapping is None else _load_mapping(mapping)
    columns, separator = _layout(table)
    make = _maker(path, type_, table if mapping is not None else None, source)
    with _opened(path) as file:
        rows = _split(file, columns, separator) if columns else _rows(file, path, with_map=mapping is not None)
        for number, row, problem in rows:
            bytes_read = file.buffer.tell() if path != "-" else 0
            if not problem:
                try:
                    event = make(row, number)
                    yield Line(number=number, event=_encode(event), bytes_read=bytes_read)
                    continue
                except _refusals() as error:
                    problem = str(error)
            yield Line(number=number, problem=problem, bytes_read=bytes_read)


@contextmanager
def _opened(path: str) -> Iterator[TextIO]:
    if path == "-":
        yield sys.stdin
        return
    try:
        # "surrogateescape": one broken byte is one bad line, found when it is encoded, not the end of the file
        with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            yield file
    except OSError as error:
        raise CliError(f"{path}: {error.strerror or error}", USAGE) from error


def _rows(file: TextIO, path: str, *, with_map: bool) -> Iterator[tuple[int, dict[str, Any], str]]:
    suffix = Path(path).suffix.lower()
    if suffix in _CSV:
        if not with_map:
            raise CliError("a CSV file needs --map FILE: which column is what (see `streamfold send --help`)", USAGE)
        for row in (reader := csv.DictReader(_read_line_by_line(file), delimiter="\t" if suffix == ".tsv" else ",")):
            odd = None in row or None in row.values()
            yield reader.line_num, row, "the number of columns differs from the header's" if odd else ""
    elif suffix == ".json":
        yield from _array(file, path)
    else:
        for number, text in enumerate(_read_line_by_line(file), 1):
            if text.strip():
                yield number, *_object(text)


def _read_line_by_line(file: TextIO) -> Iterator[str]:
    """``tell`` of the bytes below is only refused on the text layer; still, read by ``readline`` for prompt pipes."""
    return iter(file.readline, "")


def _object(text: str) -> tuple[dict[str, Any], str]:
    try:
        row = json.loads(text)
    except ValueError as error:
        return {}, f"not JSON: {error}"
    return (row, "") if isinstance(row, dict) else ({}, "not a JSON object")


def _array(file: TextIO, path: str) -> Iterator[tuple[int, dict[str, Any], str]]:
    try:
        rows = json.load(file)
    except ValueError as error:
        raise CliError(f"{path}: not JSON ({error}); one object a line goes into a .jsonl file", USAGE) from error
    for number, row in enumerate(rows if isinstance(rows, list) else [rows], 1):
        yield (number, row, "") if isinstance(row, dict) else (number, {}, "not a JSON object")


def _layout(table: dict[str, Any]) -> tuple[list[str], str]:
    """Take from a mapping how a file without a header is laid out: ``columns``, and the ``separator`` between them."""
    columns, separator = table.pop("columns", []), table.pop("separator", ",")
    if not isinstance(columns, list) or not all(isinstance(one, str) and one for one in columns):
        raise CliError("--map: 'columns' must be a list of names", USAGE)
    if not isinstance(separator, str) or not separator:
        raise CliError("--map: 'separator' must be a text", USAGE)
    if separator != "," and not columns:
        raise CliError("--map: 'separator' needs 'columns': the names of the columns, in order", USAGE)
    return columns, separator


def _split(file: TextIO, columns: list[str], separator: str) -> Iterator[tuple[int, dict[str, Any], str]]:
    """Rows of a file without a header; a separator of one character may be quoted, as in CSV."""
    lines = _read_line_by_line(file)
    if len(separator) == 1:
        reader = csv.reader(lines, delimiter=separator)
        rows = ((reader.line_num, row) for row in reader)
    else:
        rows = ((number, line.rstrip("\r\n").split(separator)) for number, line in enumerate(lines, 1))
    for number, row in rows:
        if row and row != [""]:
            odd = len(row) != len(columns)
            problem = f"{len(row)} columns instead of the mapping's {len(columns)}" if odd else ""
            yield number, dict(zip(columns, row, strict=False)), problem


def _maker(path: str, type_: str, mapping: dict[str, Any] | None, source: str) -> MakeEvent:
    source = source or f"/send/{'stdin' if path == '-' else Path(path).name}"
    if mapping is not None:
        return _mapped(mapping, type_, source)

    def make(row: Mapping[str, Any], number: int) -> Mapping[str, Any]:
        if "specversion" in row:
            return row
        if not type_:
            raise ValueError("no CloudEvent ('specversion' is missing): name the rows' event type with --type")
        content = json.dumps([type_, number, row], sort_keys=True).encode()
        return {
            "specversion": "1.0",
            "id": blake2b(content, digest_size=16).hexdigest(),
            "source": source,
            "type": type_,
            "data": row,
        }

    return make


def _load_mapping(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise CliError(f"--map {path}: {error.strerror or error}", USAGE) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CliError(f"--map {path}: not valid TOML: {error}", USAGE) from error


def _mapped(table: dict[str, Any], type_: str, source: str) -> MakeEvent:
    from streamfold.core.errors import ConfigError
    from streamfold.core.events import EventMapping, map_row

    try:
        mapping = EventMapping.parse({"source": source, **table, **({"type": type_} if type_ else {})})
    except ConfigError as error:
        raise CliError(f"--map: {error}", USAGE) from error

    def make(row: Mapping[str, Any], number: int) -> Mapping[str, Any]:
        event = map_row(row, mapping, line=number)
        made = {"specversion": "1.0", "id": event.id, "source": event.source, "type": event.type}
        when = {"time": event.time.isoformat()} if event.time else {}
        return {**made, **when, "data": json.loads(bytes(event.data))}

    return make


def _encode(event: Mapping[str, Any]) -> bytes:
    return json.dumps(event, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def _refusals() -> tuple[type[Exception], ...]:
    """What makes a line bad, not the run; core's error only where core was loaded (by a mapping)."""
    errors = sys.modules.get("streamfold.core.errors")
    return (ValueError, errors.InvalidEvent) if errors else (ValueError,)
