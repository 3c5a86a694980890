"""Policy ``graph_index``: LightRAG's index without its costs: names, relations and links beside vectors and BM25.

Everything of :mod:`vector_index`, and for each chunk the names in it and which of them are related. Four stores more:

- ``graph``: edges from a chunk (its int key) to the entities ``e:…`` that it names, the relations ``r:…`` that it
  supports and its document ``d:…``; from a document to the aliases ``a:…`` that it goes by and the entity of its title.
  From a chunk also to the entities ``t:…`` and facts ``s:…`` that an extractor told of it (:mod:`_told`).
  An edge belongs to its source, so an update or a deletion is a set difference, and what nothing supports vanishes.
- ``extracts``: what was found in each chunk: names as written, relations with the sentence that they come from, and
  what an extractor told of it (``document.extracted``), which is served by the same code and goes with its chunk.
- ``names``: which names were merged, and new names (:mod:`_identity`).
- ``words``: how often each word is written in lower case and with a capital: what is a name, what a typing error.

Nothing derived is stored twice: an entity's description, its weight and the links between documents are looked up from
their sources at query time, so they cannot be stale. No entity is embedded: what LightRAG reads off entity vectors is
read off the chunks that name them (see ``docs/explanation/graph.md``).

Cost of an event: its own chunks, whatever else is stored.

Reference: Guo et al., LightRAG, arXiv:2410.05779.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np

from streamfold.core import (
    Batch,
    ConfigError,
    Declaration,
    Event,
    Graph,
    NeedsRebuild,
    Passage,
    Stores,
    Subject,
    Table,
    Tools,
    View,
)
from streamfold.plugins._extract import Extract, case_counts, extract, relation_node
from streamfold.plugins._graph_retriever import GraphRetriever
from streamfold.plugins._identity import FAINT, HANDLED, Name, fold_names
from streamfold.plugins._names import aliases, name_spans, short_name, words
from streamfold.plugins._passages import to_us
from streamfold.plugins._told import told_edges, with_told
from streamfold.plugins.vector_index import Document, PreparedDocument, VectorIndex, chunk_hash

_LEAD = 2_000
"""Characters of a text without a title in which its first name is looked for."""
_pack = msgspec.msgpack.Encoder().encode


class PreparedGraph(PreparedDocument, array_like=True):
    """The chunks of one document and what was found in each."""

    extracts: list[Extract]


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphConfig:
    """Settings of ``graph_index``.

    Parameters
    ----------
    hop_weight : what a link from a good passage adds, against the passage's own score.
    merges : what is done about names that may be one entity: nothing (``off``), the graph shows them (``suggest``), or
        those with a score of ``merge_from`` are merged too (``auto``), by events that can be taken back.
    merge_from : 1 is the same normal form, .9 an acronym, .8 first and last name, below what company and spelling say.
    single_valued : keywords of relations that a subject has one of at a time, as an extractor writes them: a later one
        with another object ends the earlier one.
    """

    hop_weight: float = 1.3
    merges: Literal["off", "suggest", "auto"] = "suggest"
    merge_from: float = 0.9
    single_valued: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.hop_weight <= 10:
            raise ConfigError(f"hop_weight is {self.hop_weight}: it must be in 0…10")
        if self.merges not in ("off", "suggest", "auto"):
            raise ConfigError(f"merges is {self.merges!r}: it must be off, suggest or auto")
        if not 0 < self.merge_from <= 1:
            raise ConfigError(f"merge_from is {self.merge_from}: it must be above 0 and at most 1")
        if any(not one or one != one.lower() for one in self.single_valued):
            raise ConfigError(f"single_valued is {list(self.single_valued)}: write keywords in lower case")


class GraphIndex(VectorIndex):
    """Chunks, vectors, BM25 postings and a graph of names, kept equal to the last event of each document."""

    name = "graph_index"
    version = 1
    handles: ClassVar[tuple[str, ...]] = (*VectorIndex.handles, *HANDLED, "document.extracted")
    may_use = ("extractor",)
    newest_suffices = False  # what an extractor told of a chunk that an update left as it was is logged once
    Config = GraphConfig
    stores: tuple[Declaration, ...] = (
        *VectorIndex.stores,
        Graph("graph"),
        Table("extracts", key=int, value=bytes, max_rows=2_000_000, on_full="refuse", fold_reads=False),
        Table("names", key=str, value=Name, on_full="refuse"),
        Table("words", key=str, value=tuple[int, int], max_rows=4_000_000),
    )
    Prepared: type[PreparedDocument] = PreparedGraph

    def prepare_batch(self, events: Sequence[Event], tools: Tools) -> list[PreparedDocument | None]:
        """Chunk and embed, and find the names of each chunk."""
        found: list[PreparedDocument | None] = []
        for event, one in zip(events, super().prepare_batch(events, tools), strict=True):
            if one is not None:
                text = event.data.text
                extracts = [extract(text[a:b]) for a, b in zip(one.starts, one.ends, strict=True)]
                one = PreparedGraph(one.starts, one.ends, one.hashes, one.vectors, extracts)
            elif event.type == "document.extracted" and _may_take(event.data.extractor, tools.extractor_id):
                one = PreparedGraph([], [], [], np.zeros((0, 0), np.float32), [])
            found.append(one)
        return found

    def passages(self, event: Event, tools: Tools) -> Sequence[Passage]:
        """Ask about each chunk of a document, once."""
        if event.type != "document.upserted":
            return []
        title = event.data.title
        texts = dict.fromkeys(chunk.text for chunk in tools.chunker.split(event.data.text))
        return [Passage(chunk_hash=chunk_hash(title, text), title=title, text=text) for text in texts]

    def fold(self, event: Event, prepared: PreparedDocument | None, stores: Stores) -> None:
        """Bring the stores to what the event says."""
        if event.type in HANDLED:
            fold_names(event, stores)
        elif event.type == "document.extracted":
            if prepared is not None:
                self._extracted(event.data, stores)
        else:
            super().fold(event, prepared, stores)

    def forget(self, subject: Subject, events: Batch, stores: Stores) -> None:
        """Remove a document, exactly; what an entity was merged with is folded afresh without those events."""
        if subject.kind == "entity":
            raise NeedsRebuild(f"{subject.id!r}: merges build on each other, so they are folded afresh without it")
        super().forget(subject, events, stores)

    def _extracted(self, data: Any, stores: Stores) -> None:
        """Store what was told of a chunk beside its names, while its document still has this text."""
        row: Document | None = stores["documents"].get(data.document_id)
        if row is None or row.text_position != data.input_position:
            return
        first = f"{data.document_id}#{data.chunk_hash}"
        there = [i for i, id_ in enumerate(row.ids) if id_ == first or id_.startswith(first + ".")]
        if not there:
            return
        text = (stores["texts"].get(data.document_id) or b"").decode("utf-8", "surrogatepass")
        since_us = row.at_us if row.valid_from is None else to_us(row.valid_from)
        start, end = row.starts[there[0]], row.ends[there[0]]
        one = with_told(text[start:end], data.entities, data.relations, since_us)
        edges = {**edges_of(one), **told_edges(one, self.config.single_valued), "d:" + data.document_id: 1.0}
        for i in there:
            stores["graph"].put(row.keys[i], list(edges), list(edges.values()))
            stores["extracts"].put(row.keys[i], _pack(one))

    def _add_chunks(
        self, data: Any, prepared: PreparedDocument, keys: Sequence[int], fresh: Sequence[int], stores: Stores
    ) -> None:
        super()._add_chunks(data, prepared, keys, fresh, stores)
        assert isinstance(prepared, PreparedGraph)
        for i in fresh:
            one = prepared.extracts[i]
            edges = edges_of(one)
            edges["d:" + data.document_id] = 1.0
            stores["graph"].put(keys[i], list(edges), list(edges.values()))
            if one.names:
                stores["extracts"].put(keys[i], _pack(one))
        self._count((data.text[prepared.starts[i] : prepared.ends[i]] for i in fresh), +1, stores)

    def _drop_chunks(self, document_id: str, old: Document, gone: Sequence[int], stores: Stores) -> None:
        super()._drop_chunks(document_id, old, gone, stores)
        for key in gone:
            stores["graph"].delete(key)
            stores["extracts"].delete(key)
        text = (stores["texts"].get(document_id) or b"").decode("utf-8", "surrogatepass")
        there = set(gone)
        spans = [(a, b) for key, a, b in zip(old.keys, old.starts, old.ends, strict=True) if key in there]
        self._count((text[a:b] for a, b in spans), -1, stores)

    def _count(self, texts: Iterable[str], sign: int, stores: Stores) -> None:
        table = stores["words"]
        for word, (lower, upper) in case_counts(texts).items():
            before = table.get(word, (0, 0))
            after = (max(0, before[0] + sign * lower), max(0, before[1] + sign * upper))
            if after == (0, 0):
                table.delete(word)
            else:
                table.put(word, after)

    def _called(self, text: str) -> str | None:
        return lead_name(text)

    def _named(self, document_id: str, title: str | None, called: str | None, stores: Stores) -> None:
        names = document_names(title, called)
        stores["graph"].put("d:" + document_id, list(names), list(names.values()))

    def _remove(self, document_id: str, stores: Stores) -> None:
        super()._remove(document_id, stores)
        stores["graph"].delete("d:" + document_id)

    def serve(self, view: View) -> GraphRetriever:
        """Serve retrieval in all modes, the documents, and the graph."""
        config = self.config
        return GraphRetriever(
            view,
            hop_weight=config.hop_weight,
            suggest_merges=config.merges != "off",
            merge_from=config.merge_from if config.merges == "auto" else None,
            single_valued=frozenset(config.single_valued),
        )


def _may_take(extractor: str, own: str | None) -> bool:
    """Whether to fold an extraction: of our own extractors only of this instance's, of anybody else always."""
    return extractor == own or not extractor.startswith("streamfold/")


def edges_of(one: Extract) -> dict[str, float]:
    """Return a chunk's edges to entities and relations, with how often each name stands there."""
    keys = one.keys()
    edges = {"e:" + key: float(count) for key, count in zip(keys, one.counts, strict=True)}
    for a, b, _, _ in one.relations:
        edges[relation_node(keys[a], keys[b])] = 1.0
    return edges


def document_names(title: str | None, called: str | None) -> dict[str, float]:
    """Return a document's edges: the aliases of its title, or of what it is called instead, and that entity.

    ``b:`` nodes are the first two words of longer aliases, by which a text is looked through faster.
    """
    names = aliases(title or called or "")
    if not title and called and (short := short_name(" ".join(words(called).keys))):
        names.setdefault(short, 0.8)
    edges = {"a:" + key: weight for key, weight in names.items()}
    edges.update({"e:" + key: 1.0 for key, weight in names.items() if weight == 1.0})
    edges.update({"b:" + " ".join(key.split(" ", 2)[:2]): FAINT for key in names if " " in key})
    return edges


def lead_name(text: str) -> str | None:
    """Return the first name in a text, its article included: it stands for a title where there is none."""
    cut = words(text[:_LEAD])
    lead = next(iter(name_spans(cut)), None)
    if lead is None:
        return None
    article = lead.start == 1 and cut.keys[0] in ("the", "a", "an")
    return f"{cut.shown[0]} {lead.shown}" if article else lead.shown
