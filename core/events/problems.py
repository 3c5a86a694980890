"""Translate what msgspec and Python raise on bad input into ``InvalidEvent`` with a code and a JSON pointer.

Off the hot path: it runs only for rejected input, so it may walk types and messages.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec
from msgspec import inspect

from streamfold.core.errors import InvalidEvent, nearest

DECODING_ERRORS = (msgspec.MsgspecError, ValueError, TypeError, RecursionError, OverflowError)
"""All that decoding hostile bytes can raise: ``UnicodeDecodeError`` is a ``ValueError``, depth a ``RecursionError``."""

_PATH = re.compile(r" - at `(?P<path>[^`]*)`$")
_UNKNOWN = re.compile(r"unknown field `(?P<name>.*?)`", re.DOTALL)
_ENUM = re.compile(r"^Invalid enum value '(?P<value>.*)'$", re.DOTALL)
_MISSING = re.compile(r"missing required field `(?P<name>[^`]*)`")


def problem(error: Exception, kind: type[msgspec.Struct], root: str = "") -> InvalidEvent:
    """Return the ``InvalidEvent`` for an ``error`` raised while decoding a ``kind`` at pointer ``root``."""
    if isinstance(error, RecursionError):
        return InvalidEvent("malformed", "the JSON is nested too deeply", root)
    if not isinstance(error, msgspec.ValidationError):
        return InvalidEvent("malformed", f"not valid JSON: {_printable(str(error))}", root)
    message = str(error)
    match = _PATH.search(message)
    steps = _steps(match["path"]) if match else []
    text = message[: match.start()] if match else message
    pointer = root + "".join(f"/{step}" for step in steps if step != "*")
    if unknown := _UNKNOWN.search(text):
        name = unknown["name"]
        hint = nearest(name[:64], _field_names(kind, steps))
        detail = f"unknown field '{_printable(name)}' in {pointer or 'the event'}{hint}"
        return InvalidEvent("unknown-field", detail, f"{pointer}/{_escape(name)}")
    if missing := _MISSING.search(text):
        where = f" in {pointer}" if pointer else ""
        return InvalidEvent(
            "invalid-event", f"missing field '{missing['name']}'{where}", f"{pointer}/{missing['name']}"
        )
    if enum := _ENUM.search(text):
        valid = [
            str(value) for part in _at(kind, steps) if isinstance(part, inspect.LiteralType) for value in part.values
        ]
        text = f"'{enum['value'][:64]}' is none of the values{nearest(enum['value'][:64], valid)}"
    detail = f"{pointer or 'the event'}: {_printable(text)}"
    return InvalidEvent("invalid-value" if root else "invalid-event", detail, pointer)


def _printable(text: str) -> str:
    return text[:300].encode("utf-8", "replace").decode().replace("\0", "\\0")


def _escape(name: str) -> str:
    return _printable(name).replace("~", "~0").replace("/", "~1")


def _steps(path: str) -> list[str]:
    """Split msgspec's ``$.items[...].rank``; an index or key that it does not tell becomes ``*``."""
    return [step[1:] if step[0] == "." else "*" for step in re.findall(r"\.[^.\[]+|\[[^\]]*\]", path)]


def _field_names(kind: type[msgspec.Struct], steps: list[str]) -> list[str]:
    """Return the names that are valid in the struct that ``steps`` lead to."""
    structs = (part for part in _at(kind, steps) if isinstance(part, inspect.StructType))
    return [field.encode_name for struct in structs for field in struct.fields]


def _at(kind: type[msgspec.Struct], steps: list[str]) -> list[inspect.Type]:
    """Return the types that may be where ``steps`` lead."""
    here: list[inspect.Type] = [inspect.type_info(kind)]
    for step in steps:
        below: list[inspect.Type] = []
        for node in here:
            for part in _parts(node):
                if isinstance(part, inspect.StructType):
                    below += [field.type for field in part.fields if field.encode_name == step]
                elif isinstance(part, inspect.ListType):
                    below.append(part.item_type)
        here = below
    return [part for node in here for part in _parts(node)]


def _parts(node: inspect.Type) -> Iterator[inspect.Type]:
    if isinstance(node, inspect.Metadata):
        yield from _parts(node.type)
    elif isinstance(node, inspect.UnionType):
        for option in node.types:
            yield from _parts(option)
    else:
        yield node
