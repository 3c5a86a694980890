"""What LightRAG's model found, told of the chunks that the service made of the same documents.

A graph of LightRAG names for each entity and relation the chunks of its own that say it. Chunks are cut differently
here, so each fact goes to those of the document's chunks that lie where LightRAG's did and hold the name (of a relation
both), as a ``document.extracted`` event a chunk. From then on a fact comes and goes with its chunks, like any other.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamfold.pipelines.cli.client import Problem, segment

if TYPE_CHECKING:
    from streamfold.pipelines.cli.client import Client
    from streamfold.pipelines.cli.lightrag_store import LightRAGStore, Rows
    from streamfold.pipelines.cli.rows import Line

EXTRACTOR, SOURCE = "lightrag", "/import/lightrag"
_SEP = "<SEP>"
_WORD = re.compile(r"\w+")
_WAIT_MS = 10_000
Span = tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Fact:
    """An entity (one name) or a relation (two), as an event holds it, and LightRAG's chunks that say it."""

    names: tuple[str, ...]
    data: Mapping[str, Any]
    sources: Sequence[str]


def read_facts(graph: Path, entity_chunks: Rows, relation_chunks: Rows) -> list[Fact]:
    """Read the entities and relations of a graph; raises ``ValueError`` where it is no GraphML.

    ``entity_chunks``, ``relation_chunks``: all chunks that say it, where the graph names only the newest.
    """
    facts: list[Fact] = []
    names: dict[str, str] = {}
    data: dict[str, Any]
    for tag, values in _elements(graph):
        if tag == "node":
            name = (values.get("entity_id") or values.get("id", "")).strip()
            names[values.get("id", "")] = name
            kind = values.get("entity_type", "").strip()
            ends: tuple[str, ...] = (name,)
            data = {"name": name, "type": None if kind.lower() == "unknown" else kind}
            listed = entity_chunks.get(name, {})
        else:
            one, other = (names.get(end, end) for end in (values.get("source", ""), values.get("target", "")))
            keywords = [word.strip() for word in re.split(f",|，|{_SEP}", values.get("keywords", "")) if word.strip()]
            ends = (one, other)
            data = {"source": one, "target": other, "keywords": keywords, "weight": _weight(values.get("weight"))}
            listed = relation_chunks.get(_SEP.join(sorted(ends)), {})
        if all(ends):
            data["description"] = values.get("description", "").replace(_SEP, "\n").strip()
            given = {key: value for key, value in data.items() if value not in (None, "", [])}
            sources = [*values.get("source_id", "").split(_SEP), *(listed.get("chunk_ids") or ())]
            facts.append(Fact(names=ends, data=given, sources=list(dict.fromkeys(sources))))
    return facts


def _elements(graph: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the nodes and edges of a GraphML file with their attributes, without holding it."""
    from xml.etree.ElementTree import ParseError, iterparse

    names: dict[str | None, str] = {}
    try:
        for _, element in iterparse(graph):
            tag = element.tag.rpartition("}")[2]
            if tag == "key":
                names[element.get("id")] = element.get("attr.name", "")
            elif tag in ("node", "edge"):
                yield tag, {names.get(one.get("key"), ""): one.text or "" for one in element} | element.attrib
                element.clear()
    except (ParseError, OSError) as error:
        raise ValueError(str(error)) from error


def _weight(text: str | None) -> float | None:
    try:
        weight = float(text or "")
    except ValueError:
        return None
    return weight if math.isfinite(weight) else None


# -- to chunks ---------------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class Telling:
    """The facts of a store on their way to a service that has its documents, and what became of them."""

    store: LightRAGStore
    client: Client
    chunks: int = 0
    elsewhere: int = 0
    """Documents that are not stored, or not with this text."""
    _told: set[Fact] = field(default_factory=set)

    def lines(self, position: int) -> Iterator[Line]:
        """Make an event of each chunk that something is known of; the documents are visible at ``position``."""
        from streamfold.pipelines.cli.imports import as_line

        number = 0
        for count, (document_id, facts) in enumerate(self.store.facts_by_document().items(), 1):
            document = self._document(document_id, position)
            if document is None or document.get("text") != self.store.text(document_id):
                self.elsewhere += 1
                continue
            for chunk_hash, found in self._placed(document, facts).items():
                number += 1
                data = {
                    "document_id": document_id,
                    "input_position": document.get("text_position", document["position"]),
                    "chunk_hash": chunk_hash,
                    "extractor": EXTRACTOR,
                    "entities": [fact.data for fact in found if len(fact.names) == 1],
                    "relations": [fact.data for fact in found if len(fact.names) == 2],
                }
                # A time at which the document was there: what is erased with it is refused with it, however late.
                time, name = document["updated_at"], f"{document_id}#{chunk_hash}"
                yield as_line("document.extracted", data, SOURCE, time, number=number, name=name, bytes_read=count)
        self.chunks = number

    def said(self) -> str:
        """Say how much was told of how many chunks, and what was left out."""
        told = f"{counted(self._told)} were told of {self.chunks} chunks"
        if left := [fact for fact in self.store.facts if fact not in self._told]:
            told += f"; left out: {counted(left)}, which no chunk was found for"
        if self.elsewhere:
            told += f"; {self.elsewhere} documents are not stored here with this text"
        return told

    def _document(self, document_id: str, position: int) -> Mapping[str, Any] | None:
        path = f"/v1/documents/{segment(document_id)}"
        try:
            found: Mapping[str, Any] = self.client.get_patiently(path, min_position=position, wait_ms=_WAIT_MS)
        except Problem as problem:
            if problem.status != 404:
                raise
            return None
        return found

    def _placed(self, document: Mapping[str, Any], facts: Mapping[Fact, Sequence[str]]) -> dict[str, list[Fact]]:
        """Return what is known of each chunk, by its hash; chunks with the same content are one."""
        chunks = [Chunk.of(document["document_id"], one) for one in document["chunks"]]
        text = document["text"]
        spans = {
            source: _span(text, str(self.store.chunks[source].get("content") or ""))
            for source in dict.fromkeys(chain.from_iterable(facts.values()))
        }
        entities = {fact.names[0]: fact for fact in facts if len(fact.names) == 1}
        found: defaultdict[str, dict[Fact, None]] = defaultdict(dict)
        for fact, sources in facts.items():
            for chunk in chunks_saying(fact.names, chunks, [spans[source] for source in sources]):
                # A relation brings its ends along: they need not stand in its chunk.
                ends = (entities[name] for name in fact.names if name in entities)
                found[chunk.hash].update(dict.fromkeys((fact, *ends)))
        self._told.update(*found.values())
        return {hash_: sorted(some, key=lambda fact: fact.names) for hash_, some in found.items()}


@dataclass(frozen=True, slots=True)
class Chunk:
    """A chunk of the service: where it lies in its document, and its words between spaces."""

    hash: str
    start: int
    end: int
    words: str

    @classmethod
    def of(cls, document_id: str, shown: Mapping[str, Any]) -> Chunk:
        """Read a chunk as ``GET /v1/documents/{id}`` shows it."""
        hash_ = shown["chunk_id"].removeprefix(f"{document_id}#").partition(".")[0]
        return cls(hash_, shown["start"], shown["end"], f" {_words(shown['text'])} ")


def chunks_saying(names: Sequence[str], chunks: Sequence[Chunk], spans: Sequence[Span | None]) -> list[Chunk]:
    """Return the chunks that say a fact: those with its names, else the first with one, else the one that shares most.

    ``chunks`` are in order of the text. Only those that share text with LightRAG's (``spans``) are looked at, unless
    one of these is not found in the text.
    """
    known = [span for span in spans if span is not None]
    near = chunks if len(known) < len(spans) else _lying_in(known, chunks)
    wanted = [_standing(name) for name in names]
    if both := [chunk for chunk in near if all(name in chunk.words for name in wanted)]:
        return both
    if one := next((chunk for chunk in near if any(name in chunk.words for name in wanted)), None):
        return [one]
    most = max(near, key=lambda chunk: _shared(chunk, known), default=None)
    return [most] if most is not None and _shared(most, known) else []


def _lying_in(spans: Sequence[Span], chunks: Sequence[Chunk]) -> list[Chunk]:
    found: set[int] = set()
    for start, end in spans:
        first = bisect_right(chunks, start, key=attrgetter("end"))
        found.update(range(first, bisect_left(chunks, end, key=attrgetter("start"))))
    return [chunks[i] for i in sorted(found)]


def _shared(chunk: Chunk, spans: Sequence[Span]) -> int:
    """Return how many characters of some spans lie in a chunk."""
    return sum(max(0, min(chunk.end, end) - max(chunk.start, start)) for start, end in spans)


def _standing(name: str) -> str:
    """Return how a name stands among words: whole, but in a script without case, which knows no spaces either."""
    cut = _words(name)
    return cut if not cut.isascii() and cut == cut.upper() else f" {cut} "


def _span(text: str, part: str) -> Span | None:
    """Return where a chunk of LightRAG's lies; its ends may be broken characters (it cuts between tokens)."""
    part = part.strip().strip("\ufffd")
    start = text.find(part) if part else -1
    return None if start < 0 else (start, start + len(part))


def _words(text: str) -> str:
    return " ".join(_WORD.findall(text.casefold()))


def counted(facts: Collection[Fact]) -> str:
    """Say how many facts of which kind there are."""
    entities = sum(len(fact.names) == 1 for fact in facts)
    return f"{entities} entities and {len(facts) - entities} relations"
