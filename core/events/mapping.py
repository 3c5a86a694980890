"""Rows and plain JSON to events, by a mapping from settings: for ``streamfold send --map`` and the decoder ``json``.

A mapping is a table::

    type = "interaction.observed"
    source = "/shop/export"
    id = "{order}-{sku}"                          # optional: else a hash of the row and its line number
    time = { column = "ts", format = "s" }        # s, ms, us or rfc3339
    [data]
    user_id = "customer"                          # a column, or a dotted path in JSON
    value = { column = "stars", type = "float" }  # str, int, float, bool, list (with sep); add = 5 shifts a number
    action = { value = "rating" }                 # a constant
    "context.shop" = { value = "north" }          # a dot nests
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import blake2b
from typing import Any

import msgspec

from streamfold.core.errors import ConfigError, InvalidEvent, nearest
from streamfold.core.events.accept import CloudEvent
from streamfold.core.events.fields import from_us
from streamfold.core.events.problems import DECODING_ERRORS

_UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1}
_FORMATS = (*_UNITS, "rfc3339")
_TYPES = ("str", "int", "float", "bool", "list")
_TRUE, _FALSE = frozenset(("true", "1", "yes", "t", "y")), frozenset(("false", "0", "no", "f", "n"))
_SLOT = re.compile(r"\{([^{}]+)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldMapping:
    """Where one data field comes from: a ``column`` (converted to ``type`` if given) or a constant ``value``.

    ``add`` shifts a number: a scale from -5 to 5 becomes one from 0 to 10.
    """

    column: str | None = None
    type: str | None = None
    sep: str = "|"
    add: int | float = 0
    value: Any = None

    @classmethod
    def parse(cls, name: str, setting: object) -> FieldMapping:
        if isinstance(setting, str):
            return cls(column=setting)
        table = _table(f"data.{name}", setting, ("column", "type", "sep", "add", "value"))
        if ("column" in table) == ("value" in table):
            raise ConfigError(f"mapping: data.{name} needs either column or value")
        if table.get("type", "str") not in _TYPES:
            raise ConfigError(f"mapping: data.{name}.type '{table['type']}'{nearest(str(table['type']), _TYPES)}")
        if not table.get("sep", "|"):
            raise ConfigError(f"mapping: data.{name}.sep is empty")
        if "add" in table and not _can_add(table["add"], table.get("type")):
            raise ConfigError(f'mapping: data.{name}.add needs type = "float" and a number, or "int" and an integer')
        return cls(**table)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventMapping:
    """How rows become events of one type; made from settings by :meth:`parse`."""

    type: str
    data: Mapping[str, FieldMapping]
    source: str = "map"
    id: str | None = None
    time_column: str | None = None
    time_format: str = "rfc3339"

    @classmethod
    def parse(cls, settings: Mapping[str, Any]) -> EventMapping:
        """Read a mapping; raises ``ConfigError`` naming an unknown or missing key."""
        table = _table("", settings, ("type", "id", "source", "time", "data"))
        for key in ("type", "data"):
            if key not in table:
                raise ConfigError(f"mapping: '{key}' is missing")
        for key in ("type", "id", "source"):
            if key in table and not isinstance(table[key], str):
                raise ConfigError(f"mapping: '{key}' must be a string")
        data = _table("data", table["data"], None)
        time = table.get("time", {})
        time = {"column": time} if isinstance(time, str) else _table("time", time, ("column", "format"))
        if time.get("format", "rfc3339") not in _FORMATS:
            raise ConfigError(f"mapping: time.format '{time['format']}'{nearest(str(time['format']), _FORMATS)}")
        return cls(
            type=table["type"],
            data={name: FieldMapping.parse(name, setting) for name, setting in data.items()},
            source=table.get("source", "map"),
            id=table.get("id"),
            time_column=time.get("column"),
            time_format=time.get("format", "rfc3339"),
        )


def _can_add(add: object, type_: object) -> bool:
    if isinstance(add, bool) or not isinstance(add, int | float) or not math.isfinite(add):
        return False
    return type_ == "float" or (type_ == "int" and isinstance(add, int))


def _table(where: str, value: object, keys: tuple[str, ...] | None) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"mapping: '{where}' must be a table")
    for key in value:
        if not isinstance(key, str) or (keys is not None and key not in keys):
            prefix = f"{where}." if where else ""
            raise ConfigError(f"mapping: unknown key '{prefix}{key}'{nearest(str(key), keys or ())}")
    return dict(value)


def map_row(row: Mapping[str, Any], mapping: EventMapping, *, line: int | None = None) -> CloudEvent:
    """Make the event of one row; raises ``InvalidEvent``.

    Empty strings and nulls are absent fields. Without an ``id`` template the id is a hash of type, row and ``line``,
    so that sending a file twice gives duplicates while equal rows of one file stay distinct events.
    """
    try:
        data = msgspec.json.encode(_data(row, mapping))
        event_id = _expand(mapping.id, row) if mapping.id else _content_id(row, mapping.type, line)
        time = _time(row, mapping)
    except DECODING_ERRORS as error:
        raise InvalidEvent("invalid-value", f"the row cannot be mapped: {error}") from error
    return CloudEvent(
        specversion="1.0", id=event_id, source=mapping.source, type=mapping.type, time=time, data=msgspec.Raw(data)
    )


def _data(row: Mapping[str, Any], mapping: EventMapping) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for name, field in mapping.data.items():
        value = field.value
        if field.column is not None:
            found = _lookup(row, field.column)
            if found is None or found == "":
                continue
            value = found if field.type is None else _convert(found, field, f"/data/{name.replace('.', '/')}")
        *above, last = name.split(".")
        here = data
        for part in above:
            below = here.setdefault(part, {})
            if not isinstance(below, dict):
                raise InvalidEvent("invalid-value", f"'{name}' nests in a field that is no table", f"/data/{part}")
            here = below
        here[last] = value
    return data


def _lookup(row: Mapping[str, Any], path: str) -> Any:
    """Return a column, or what a dotted path leads to; ``None`` when there is nothing."""
    if path in row:
        return row[path]
    here: Any = row
    for part in path.split("."):
        if not isinstance(here, Mapping) or part not in here:
            return None
        here = here[part]
    return here


def _convert(value: Any, field: FieldMapping, pointer: str) -> Any:
    try:
        if field.type == "str":
            return _text(value)
        if field.type == "list":
            parts = value if isinstance(value, list) else str(value).split(field.sep)
            return [text for part in parts if (text := _text(part).strip())]
        if field.type == "bool":
            word = str(value).strip().lower()
            if word not in _TRUE | _FALSE:
                raise ValueError(f"'{word[:40]}' is not a truth value")
            return word in _TRUE
        return int(value) + field.add if field.type == "int" else _finite(_finite(value) + field.add)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidEvent("invalid-value", f"{pointer}: column '{field.column}': {error}", pointer) from error


def _text(value: Any) -> str:
    if isinstance(value, dict | list):
        raise ValueError("a table or list is no text")
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("a number must be finite")
    return number


def _expand(template: str, row: Mapping[str, Any]) -> str:
    def fill(match: re.Match[str]) -> str:
        value = _lookup(row, match[1])
        if value is None or value == "":
            raise InvalidEvent("invalid-event", f"the id needs column '{match[1]}', which is absent or empty", "/id")
        return _text(value)

    return _SLOT.sub(fill, template)


def _content_id(row: Mapping[str, Any], type_: str, line: int | None) -> str:
    return blake2b(msgspec.json.encode([type_, line, row], order="deterministic"), digest_size=16).hexdigest()


def _time(row: Mapping[str, Any], mapping: EventMapping) -> datetime | None:
    if mapping.time_column is None:
        return None
    value = _lookup(row, mapping.time_column)
    if value is None or value == "":
        return None
    try:
        if mapping.time_format == "rfc3339":
            return msgspec.convert(value, datetime)
        unit = _UNITS[mapping.time_format]
        try:
            return from_us(int(value) * unit if not isinstance(value, float) else round(_finite(value) * unit))
        except ValueError:
            return from_us(round(_finite(value) * unit))
    except DECODING_ERRORS as error:
        detail = f"time: column '{mapping.time_column}' is not {mapping.time_format}: {error}"
        raise InvalidEvent("invalid-event", detail, "/time") from error
