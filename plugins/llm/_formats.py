"""Reading what a model says of a passage: LightRAG's tuple and JSON formats, mended where models get them wrong.

Tuple format, a record a line, fields apart by ``<|#|>``::

    entity<|#|>NAME<|#|>TYPE<|#|>DESCRIPTION
    relation<|#|>SOURCE<|#|>TARGET<|#|>KEYWORD,KEYWORD<|#|>DESCRIPTION
    <|COMPLETE|>

JSON format: ``{"entities": [{name, type, description}], "relationships": [{source, target, keywords, description}]}``,
and, which is ours, ``valid_from`` and ``valid_to`` of a relationship.

Whatever a model writes, what comes out is within the bounds below and can be logged as an event.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from streamfold.core import ExtractedEntity, ExtractedRelation, Extraction

SEPARATOR, COMPLETE = "<|#|>", "<|COMPLETE|>"
MAX_ENTITIES, MAX_RELATIONS = 100, 100
MAX_NAME, MAX_NAME_BYTES, MAX_DESCRIPTION, MAX_KEYWORDS = 256, 512, 2_000, 8
_LOOKS_LIKE_A_SEPARATOR = re.compile(r"<\s*\|?\s*#\s*\|?\s*>|<\|\|#\|?\|?>|\|#\|>?|<\|#")
_COMPLETE = re.compile(r"<\|?\s*COMPLETE\s*\|?>", re.IGNORECASE)
_FENCE = re.compile(r"```[a-z]*\n?|```", re.IGNORECASE)
_QUOTES = "\"'`“”‘’«»「」『』*"
_THINKING = re.compile(r"<think>.*?</think>", re.DOTALL)
_RESERVED = frozenset(("__proto__", "constructor", "prototype"))
_FIELDS = {"entity": 4, "relation": 5}


class Unreadable(Exception):
    """Nothing of an answer has the format that was asked for."""


def read_answer(text: str, format: str, *, cut: bool) -> Extraction:
    """Read an answer; ``cut``: it ended too early, so its last record may be half a one. Raises ``Unreadable``."""
    text = _THINKING.sub("", text)
    read = _read_json if format == "json" else _read_tuples
    entities, relations = read(text, cut)
    return _within_bounds(entities, relations)


def merged(first: Extraction, more: Extraction) -> Extraction:
    """Put two answers about one passage together; of what both name, the longer description stays (gleaning)."""
    return _within_bounds(
        sorted([*first.entities, *more.entities], key=lambda one: -len(one.description or "")),
        sorted([*first.relations, *more.relations], key=lambda one: -len(one.description or "")),
    )


# -- tuples -----------------------------------------------------------------------------------------------------------
def _read_tuples(text: str, cut: bool) -> tuple[list[ExtractedEntity], list[ExtractedRelation]]:
    entities: list[ExtractedEntity] = []
    relations: list[ExtractedRelation] = []
    complete = _COMPLETE.search(text)
    body = text[: complete.start()] if complete else text
    lines = [line for line in _FENCE.sub("", body).splitlines() if line.strip()]
    if cut and not complete and lines:
        lines.pop()
    understood = False
    for line in lines:
        for fields in _records(line):
            if "relation" in fields[0]:
                understood = True
                relations += _relation(*fields[1:5])
            else:
                understood = True
                entities += _entity(*fields[1:4])
    if not understood and not complete:
        raise Unreadable("no line has the fields of an entity or a relation")
    return entities, relations


def _records(line: str) -> Iterator[list[str]]:
    """Cut a line into the fields of its records; mends separators, and records that share a line."""
    line = _LOOKS_LIKE_A_SEPARATOR.sub("\x00", line.strip().strip("()"))
    line = re.sub(r"\x00+", "\x00", line)
    parts = [part.strip() for part in line.split("\x00")]
    at = 0
    while at < len(parts):
        kind = parts[at].lower().lstrip("-•*0123456789. ('\"").rstrip("'\") ")
        kind = "relation" if kind.startswith("relation") else "entity" if kind.startswith("entity") else ""
        count = _FIELDS.get(kind, 0)
        if not count:
            at += 1
            continue
        fields = parts[at : at + count]
        if len(fields) == count:
            yield [kind, *fields[1:]]
        at += count


# -- JSON -------------------------------------------------------------------------------------------------------------
def _read_json(text: str, cut: bool) -> tuple[list[ExtractedEntity], list[ExtractedRelation]]:
    start = text.find("{")
    if start < 0:
        raise Unreadable("the answer holds no JSON object")
    try:
        value, _ = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        value = {name: list(_whole_objects(text, name)) for name in ("entities", "relationships", "relations")}
        if not any(value.values()):
            raise Unreadable("the answer is not valid JSON") from None
    if not isinstance(value, dict) or not any(name in value for name in ("entities", "relationships", "relations")):
        raise Unreadable("the answer's object has neither entities nor relationships")
    entities: list[ExtractedEntity] = []
    relations: list[ExtractedRelation] = []
    for one in _dicts(value.get("entities")):
        entities += _entity(one.get("name", one.get("entity_name")), one.get("type"), one.get("description"))
    for one in _dicts(value.get("relationships") or value.get("relations")):
        keywords = one.get("keywords")
        relations += _relation(
            one.get("source"), one.get("target"), keywords, one.get("description"), one.get("valid_from"),
            one.get("valid_to"),
        )  # fmt: skip
    return entities, relations


def _whole_objects(text: str, name: str) -> Iterator[Any]:
    """Yield the complete objects of an array in JSON that breaks off."""
    found = re.search(rf'"{name}"\s*:\s*\[', text)
    at = found.end() if found else len(text)
    decoder = json.JSONDecoder()
    while at < len(text):
        at += len(text[at:]) - len(text[at:].lstrip(" \t\r\n,"))
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            return
        yield value


def _dicts(value: Any) -> Iterable[Mapping[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


# -- what is kept -----------------------------------------------------------------------------------------------------
def _entity(name: Any, kind: Any, description: Any) -> list[ExtractedEntity]:
    """Return the entity, or nothing where it lacks what it needs."""
    shown, told, type_ = _name(name), _text(description), _name(kind).replace(" ", "")
    if not shown or not told or type_.lower() in _RESERVED or shown.lower() in _RESERVED:
        return []
    return [ExtractedEntity(name=shown, type=type_ or None, description=told)]


def _relation(
    source: Any, target: Any, keywords: Any, description: Any, valid_from: Any = None, valid_to: Any = None
) -> list[ExtractedRelation]:
    one, other, told = _name(source), _name(target), _text(description)
    listed = keywords if isinstance(keywords, list) else re.split(r"[,，、;]", _text(keywords))
    words = list(dict.fromkeys(word for word in (_name(k).lower() for k in listed) if word))
    if not one or not other or one.lower() == other.lower() or not (told or words):
        return []
    start, end = _time(valid_from), _time(valid_to)
    return [
        ExtractedRelation(
            source=one,
            target=other,
            keywords=words[:MAX_KEYWORDS],
            description=told or None,
            valid_from=start,
            valid_to=end if end is None or start is None or end > start else None,
        )
    ]


def _name(value: Any) -> str:
    """Return a name in one line, without quotes around it, in normal width; empty where it is too long."""
    if not isinstance(value, str):
        return ""
    name = _text(unicodedata.normalize("NFKC", value)).strip(_QUOTES + " ").strip()
    return name if len(name) <= MAX_NAME and len(name.encode()) <= MAX_NAME_BYTES else ""


def _text(value: Any) -> str:
    """Return a text in one line without what an event may not hold."""
    if not isinstance(value, str):
        return ""
    clean = value.replace("\0", "").encode("utf-8", "ignore").decode()
    return " ".join(clean.split())[:MAX_DESCRIPTION]


def _time(value: Any) -> datetime | None:
    """Read a date or a time; a year or a month alone is its beginning."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        return None
    text = value.strip()
    text = text + "-01-01" if re.fullmatch(r"\d{4}", text) else text
    text = text + "-01" if re.fullmatch(r"\d{4}-\d{2}", text) else text
    try:
        found = datetime.fromisoformat(text)
        found = found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return found if 1970 <= found.year <= 9998 else None


def _within_bounds(entities: Iterable[ExtractedEntity], relations: Iterable[ExtractedRelation]) -> Extraction:
    """Keep the first of each name and each pair, as many as there is room for."""
    by_name: dict[str, ExtractedEntity] = {}
    for entity in entities:
        by_name.setdefault(entity.name.lower(), entity)
    by_ends: dict[tuple[str, str, tuple[str, ...]], ExtractedRelation] = {}
    for relation in relations:
        key = (relation.source.lower(), relation.target.lower(), tuple(relation.keywords or ()))
        by_ends.setdefault(key, relation)
    return Extraction(entities=list(by_name.values())[:MAX_ENTITIES], relations=list(by_ends.values())[:MAX_RELATIONS])
