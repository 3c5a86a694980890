"""One file of the archive: a Parquet table of events, a row each, in the order of their positions.

Columns: ``seq``, ``recorded_us``, ``type``, ``effect``, ``retry_of``, ``subject_kind``, ``subject_id`` as in the log;
``source``, ``id``, ``time_us``, ``sequence``, ``traceparent`` and ``data`` (JSON) as in the event. ``body`` is the
log's own form of an event, kept only where the other columns do not give it back byte by byte.

A file gets its name when it is whole and on the disk, and is never changed: another takes its place.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from streamfold.core.errors import ConfigError
from streamfold.core.events.model import Envelope, Subject
from streamfold.core.files import sync
from streamfold.core.ledger.abc import NORMAL, LogRow

_GROUP_ROWS, _GROUP_BYTES = 4096, 8 << 20
"""Rows of a row group, which is read at once."""
PART = ".part"
_decode = msgspec.msgpack.Decoder(Envelope).decode
_encode = msgspec.msgpack.Encoder().encode


def require() -> None:
    """Raise ``ConfigError`` when the archive cannot be written here."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "[retention] archive = true needs pyarrow: pip install 'streamfold[archive]', or set archive = false and "
            "what leaves the log is gone"
        ) from error


@lru_cache(maxsize=1)
def _schema() -> Any:
    import pyarrow as pa

    whole, text = pa.int64(), pa.string()
    word = pa.dictionary(pa.int32(), text)
    columns = {
        "seq": whole, "recorded_us": whole, "type": word, "effect": pa.int8(), "retry_of": whole, "subject_kind": word,
        "subject_id": text, "source": word, "id": text, "time_us": whole, "sequence": whole, "traceparent": text,
        "data": pa.binary(), "body": pa.binary(),
    }  # fmt: skip
    return pa.schema(list(columns.items()))


# -- writing ----------------------------------------------------------------------------------------------------------
class Writer:
    """Writes one file; ``close`` gives it its name. Whatever ends it before leaves a file ending in ``.part``."""

    def __init__(self, path: Path) -> None:
        import pyarrow.parquet as pq

        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._part = path.with_name(path.name + PART)
        self._writer = pq.ParquetWriter(self._part, _schema(), compression="zstd")
        self._rows: list[LogRow] = []
        self._bytes = 0
        self.events = 0
        self.size = 0
        self.first = self.last = 0
        self.types: dict[str, tuple[int, int]] = {}
        """Of what is folded: how many, and the last position."""

    def add(self, row: LogRow) -> None:
        """Add the next event."""
        self._rows.append(row)
        self._bytes += len(row.body)
        self.size += len(row.body)
        self.events += 1
        self.first = self.first or row.seq
        self.last = row.seq
        if row.effect == NORMAL:
            self.types[row.type] = (self.types.get(row.type, (0, 0))[0] + 1, row.seq)
        if len(self._rows) >= _GROUP_ROWS or self._bytes >= _GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            self._writer.write_table(pa.Table.from_pylist([_columns(row) for row in self._rows], schema=_schema()))
        self._rows, self._bytes = [], 0

    def close(self) -> None:
        """Finish the file, have it on the disk, and give it its name."""
        self._flush()
        self._writer.close()
        sync(self._part)
        os.rename(self._part, self.path)
        sync(self.path.parent)

    def drop(self) -> None:
        """Give it up."""
        self._writer.close()
        self._part.unlink(missing_ok=True)


def _columns(row: LogRow) -> dict[str, Any]:
    values = {name: getattr(row, name) for name in ("seq", "recorded_us", "type", "effect", "retry_of")}
    try:
        envelope = _decode(row.body)
    except msgspec.DecodeError:
        return values | {"subject_kind": "", "subject_id": "", "body": row.body}  # an erased event has none
    values |= {name: getattr(envelope, name) for name in _ENVELOPE}
    same = row.type == envelope.type and _encode(envelope) == row.body
    return values | {"body": None if same else row.body}


_ENVELOPE = ("subject_kind", "subject_id", "source", "id", "time_us", "sequence", "traceparent", "data")


# -- reading ----------------------------------------------------------------------------------------------------------
class Reader:
    """Reads one file. Raises ``OSError`` (also when it is not there) and pyarrow's own errors."""

    def __init__(self, path: Path) -> None:
        require()
        import pyarrow.parquet as pq

        self.path = path
        self._file = pq.ParquetFile(path, memory_map=False)
        metadata = self._file.metadata
        self._ranges: list[tuple[int, int]] = []
        for number in range(metadata.num_row_groups):
            statistics = metadata.row_group(number).column(0).statistics
            self._ranges.append((statistics.min, statistics.max))

    def groups(self, after: int, upto: int) -> list[int]:
        """Return the numbers of the row groups with positions in a range."""
        return [n for n, (first, last) in enumerate(self._ranges) if last > after and first <= upto]

    def rows(self, number: int) -> list[LogRow]:
        """Return all rows of a row group."""
        return _rows(self._file.read_row_group(number, use_threads=False))

    def seqs(self) -> list[int]:
        """Return all positions."""
        found: list[int] = self._file.read(["seq"], use_threads=False).column(0).to_pylist()
        return found

    def matching(self, subjects: Sequence[Subject], patterns: Sequence[bytes]) -> Iterator[LogRow]:
        """Yield rows whose main subject is one of these, or whose content may contain one of the patterns."""
        import pyarrow.compute as pc

        for number in range(len(self._ranges)):
            table = self._file.read_row_group(number, use_threads=False)
            masks = [pc.is_valid(table["body"])]
            for subject in subjects:
                kind, id_ = pc.equal(table["subject_kind"], subject.kind), pc.equal(table["subject_id"], subject.id)
                masks.append(pc.and_(kind, id_))
            masks += [pc.match_substring(table["data"], pattern) for pattern in patterns]
            yield from _rows(table.filter(_any(masks)))


def _any(masks: Sequence[Any]) -> Any:
    import pyarrow.compute as pc

    found = pc.fill_null(masks[0], False)
    for mask in masks[1:]:
        found = pc.or_(found, pc.fill_null(mask, False))
    return found


def _rows(table: Any) -> list[LogRow]:
    columns = {name: table.column(name).to_pylist() for name in table.column_names}
    rows = []
    for i, seq in enumerate(columns["seq"]):
        body, type_ = columns["body"][i], columns["type"][i]
        if body is None:
            values = {name: columns[name][i] for name in _ENVELOPE}
            body = _encode(Envelope(type=type_, **values))
        rows.append(LogRow(seq, columns["recorded_us"][i], type_, body, columns["effect"][i], columns["retry_of"][i]))
    return rows


def rewrite(source: Reader, target: Path, without: Collection[int]) -> Writer | None:
    """Write a file without some events; None when none would be left."""
    writer = Writer(target)
    try:
        for number in source.groups(0, 2**63 - 1):
            for row in source.rows(number):
                if row.seq not in without:
                    writer.add(row)
        if not writer.events:
            writer.drop()
            return None
        writer.close()
    except BaseException:
        writer.drop()
        raise
    return writer
