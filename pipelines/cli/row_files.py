"""Rows to files, one at a time: JSON lines, or Parquet (extra ``archive``)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamfold.pipelines.cli.state import USAGE, CliError

_ROWS = 1000
"""Of a Parquet file's row group."""
NUMBERS = {"start": "int64", "end": "int64", "score": "float64", "weight": "float64"}
LISTS = frozenset(("chunk_ids", "keywords"))


class RowFile:
    """JSON lines, a row a line."""

    suffix = ".jsonl"

    def __init__(self, path: Path, columns: tuple[str, ...]) -> None:
        self._columns = columns
        self._file = path.open("w", encoding="utf-8", newline="\n")

    def __enter__(self) -> RowFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, row: Mapping[str, Any]) -> None:
        """Write those of a row's columns that are there."""
        kept = {name: row[name] for name in self._columns if name in row}
        self._file.write(json.dumps(kept, ensure_ascii=False) + "\n")

    def close(self) -> None:
        self._file.close()


class ParquetFile(RowFile):
    """Parquet: texts, numbers, lists of texts; a map is a text of JSON."""

    suffix = ".parquet"

    def __init__(self, path: Path, columns: tuple[str, ...]) -> None:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            hint = "pip install 'streamfold[archive]'"
            raise CliError(f"Parquet needs the extra archive: {hint} ({error})", USAGE) from error
        self._columns = columns
        self._table = pa.Table
        self._schema = pa.schema(
            (name, pa.list_(pa.string()) if name in LISTS else pa.type_for_alias(NUMBERS.get(name, "string")))
            for name in columns
        )
        self._writer = pq.ParquetWriter(path, self._schema)
        self._rows: list[dict[str, Any]] = []

    def write(self, row: Mapping[str, Any]) -> None:
        """Keep a row until there are enough for a group."""
        self._rows.append({name: _flat(row.get(name)) for name in self._columns})
        if len(self._rows) == _ROWS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        self._writer.write_table(self._table.from_pylist(self._rows, schema=self._schema))
        self._rows = []


def _flat(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value
