"""All passages that one question meets, as columns: scores by source, and their rows, each looked up once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from streamfold.core import STOP_WORDS, Retrieval, ScoredChunk, TermScores, View, best_slots
from streamfold.plugins._extract import Extract
from streamfold.plugins._identity import Identities
from streamfold.plugins._question import Question, read_question
from streamfold.plugins._retriever import EXACT, filterable, spread

if TYPE_CHECKING:
    from streamfold.plugins.vector_index import Document

Slots = npt.NDArray[np.intp]
Values = npt.NDArray[np.float32]
_FILTERED = 8 * EXACT
"""Passages that the vectors give where a filter will take most of them away."""
_NEAREST = 24
_unpack = msgspec.msgpack.Decoder(Extract).decode


class Places:
    """Where passages lay when they were last looked for, by their numbers in the graph.

    Each place is checked at each use, so whatever is written meanwhile, a place is right or looked for anew: a hub's
    10,000 passages are found by a few passes over arrays. 4 bytes a node.
    """

    def __init__(self) -> None:
        self._slots = np.full(1024, -1, np.int32)

    def find(self, numbers: npt.NDArray[np.int32], ids: npt.NDArray[np.int64], text: TermScores) -> Slots:
        """Return the columns of passages; -1 for unknown ones."""
        slots = self._slots
        most = int(numbers.max(initial=0))
        if most >= len(slots):
            more = np.full(2 * most, -1, np.int32)
            more[: len(slots)] = slots
            slots = self._slots = more
        found = slots[numbers].astype(np.intp)
        wrong = np.flatnonzero(~text.holds(found, ids))
        if len(wrong):
            found[wrong] = text.slots(ids[wrong].tolist())
            slots[numbers[wrong]] = found[wrong]
        return found


@dataclass(slots=True)
class Passages:
    """What one question meets.

    Attributes
    ----------
    text_scores : what each term of the question gives each passage (BM25).
    ids : ``(passages,) int64``: chunk keys.
    bm25, dense : ``(passages,) float32`` in 0…1: see :mod:`_retriever`.
    titled : ``(passages,) float32``: weight of the passage's title where the question names it; set by ``Hops``.
    """

    view: View
    request: Retrieval
    question: Question
    text_scores: TermScores
    places: Places
    ids: npt.NDArray[np.int64]
    bm25: Values
    dense: Values
    titled: Values
    _stores: Mapping[str, Any]
    who: Identities
    """Which names are one."""
    _z: Values | None = None
    _nearest: list[int] = field(default_factory=list)
    _names: dict[str, bool] = field(default_factory=dict)
    _holders: dict[str, Slots] = field(default_factory=dict)
    _owners: dict[int, str | None] = field(default_factory=dict)
    _rows: dict[str, Document | None] = field(default_factory=dict)
    _chunks: dict[str, list[int]] = field(default_factory=dict)
    _texts: dict[str, str] = field(default_factory=dict)
    _cuts: dict[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, view: View, request: Retrieval, places: Places | None = None) -> Passages:
        """Ask the text index and the vectors."""
        question = read_question(request.query, view)
        found = view["text"].term_scores(question.terms)
        ids = found.ids()
        bm25 = found.scores.sum(axis=0) if "bm25" in request.sources else np.zeros(len(ids), np.float32)
        if len(ids) and (top := bm25.max()) > 0:
            bm25 /= top
        dense = np.zeros(len(ids), np.float32)
        size = len(view["chunks"])
        if "vector" in request.sources and size:
            query = view.tools.encoder.encode([question.text])
            filtered = request.matches is not None or request.as_of_us is not None
            fetch = min(size, _FILTERED if filtered else EXACT)
            keys, values = spread(*(part[0] for part in view["vectors"].search(query, fetch)), exact=fetch >= size)
            dense[found.slots(keys.tolist())] = values
        titled = np.zeros(len(ids), np.float32)
        stores = {name: view[name] for name in ("graph", "names", "words", "chunks", "documents", "texts", "extracts")}
        who = Identities(stores["names"], stores["graph"])
        return cls(view, request, question, found, places or Places(), ids, bm25, dense, titled, stores, who)

    @property
    def by_term(self) -> Values:
        """``(terms, passages) float32``."""
        return self.text_scores.scores

    def slots_of(self, keys: Sequence[int]) -> Slots:
        """The columns of chunks; -1 for unknown ones."""
        return self.text_scores.slots(keys)

    @property
    def count(self) -> int:
        """How many passages there are (columns may be dead)."""
        return len(self._stores["chunks"])

    @property
    def z(self) -> Values:
        """How well each passage fits by itself."""
        if self._z is None:
            self._z = (self.bm25 + self.dense) * np.float32(0.5) + self.titled
        return self._z

    def add_title(self, slots: Slots, weight: float) -> None:
        """Passages whose title the question names."""
        np.maximum.at(self.titled, slots, np.float32(weight))
        self._z, self._nearest = None, []

    @property
    def graph(self) -> Any:
        """The graph store."""
        return self._stores["graph"]

    def holders(self, key: str) -> Slots:
        """The passages that name an entity, by any of its names; no order."""
        found = self._holders.get(key)
        return self.holders_many((key,))[0] if found is None else found

    def holders_many(self, keys: Sequence[str]) -> list[Slots]:
        """The same for several entities: one look at the graph for all that were not asked for before."""
        new = [key for key in keys if key not in self._holders]
        if new:
            names = [self.who.one(key) for key in new]
            ids, numbers, counts = self.graph.source_ids_many(["e:" + name for some in names for name in some])
            slots = self.places.find(numbers, ids, self.text_scores)
            ends = np.cumsum(counts).tolist()
            start = at = 0
            for key, some in zip(new, names, strict=True):
                at += len(some)
                found = slots[start : ends[at - 1]]
                start = ends[at - 1]
                found = found[found >= 0]
                self._holders[key] = found if len(some) == 1 else np.unique(found)
        return [self._holders[key] for key in keys]

    def sources(self, kind: str, key: str) -> int:
        """How many sources the nodes of an entity's names have: ``e:`` mentions, ``a:`` documents called so."""
        return self.sources_many(kind, (key,))[0]

    def sources_many(self, kind: str, keys: Sequence[str]) -> list[int]:
        """The same for several entities."""
        degrees = self.graph.in_degrees
        if self.who.apart:
            found: list[int] = degrees([kind + key for key in keys])
            return found
        return [sum(degrees([kind + name for name in self.who.one(key)])) for key in keys]

    def is_name(self, key: str) -> bool:
        """Whether a key is a name: of several words, a word with a capital at least as often as without, or told."""
        found = self._names.get(key)
        if found is None:
            lower, upper = (0, 1) if " " in key else self._stores["words"].get(key, (0, 0))
            written = " " in key or (len(key) >= 3 and key not in STOP_WORDS and upper >= lower)
            found = self._names[key] = written or "t:" + key in self.graph
        return found

    # -- rows, each looked up once for a question ---------------------------------------------------------------------
    def owner(self, slot: int) -> str | None:
        """The document of a passage, if it may be used."""
        if slot not in self._owners:
            name = self._stores["chunks"].get(int(self.ids[slot]))
            self._owners[slot] = name if name is not None and self.document(name) is not None else None
        return self._owners[slot]

    def document(self, document_id: str) -> Document | None:
        if document_id not in self._rows:
            row = self._stores["documents"].get(document_id)
            self._rows[document_id] = row if row is not None and self._may_be_used(document_id, row) else None
        return self._rows[document_id]

    def _may_be_used(self, document_id: str, row: Document) -> bool:
        at = self.request.as_of_us
        if at is not None and not _valid(row, at):
            return False
        return self.request.matches is None or self.request.matches(filterable(document_id, row))

    def chunks_of(self, document_id: str) -> list[int]:
        """The passages of a document that may be used, in order of the text."""
        if document_id not in self._chunks:
            row = self.document(document_id)
            found = () if row is None else map(self.text_scores.slot, row.keys)
            self._chunks[document_id] = [slot for slot in found if slot >= 0]
        return self._chunks[document_id]

    def text(self, slot: int) -> str:
        text = self._cuts.get(slot)
        if text is None:
            owner = self.owner(slot)
            row = None if owner is None else self.document(owner)
            if owner is None or row is None:
                return ""
            if owner not in self._texts:
                self._texts[owner] = (self._stores["texts"].get(owner) or b"").decode("utf-8", "surrogatepass")
            i = row.keys.index(int(self.ids[slot]))
            text = self._cuts[slot] = self._texts[owner][row.starts[i] : row.ends[i]]
        return text

    def nearest(self, count: int) -> list[int]:
        """The passages that fit best by themselves; looked for once for all who ask for ``_NEAREST`` or fewer."""
        if len(self._nearest) < count:
            self._nearest = self.best(self.z, max(count, _NEAREST))
        return self._nearest[:count]

    def best(self, scores: Values, count: int) -> list[int]:
        """The passages with the highest scores > 0 that may be used, ties by id."""
        found: list[int] = []
        reach = max(1, min(len(scores), 4 * count + 32))
        while True:
            part = best_slots(scores, reach)
            part = part[scores[part] > 0]
            order = part[np.lexsort((self.ids[part], -scores[part].round(6)))]
            found = []
            for slot in order.tolist():
                if self.owner(slot) is not None:
                    found.append(slot)
                    if len(found) == count:
                        return found
            if reach >= len(scores) or len(part) < reach:
                return found
            reach = min(len(scores), 8 * reach)

    def extract(self, slot: int) -> Extract | None:
        raw = self._stores["extracts"].get(int(self.ids[slot]))
        return None if raw is None else _unpack(raw)

    def shown(
        self, slot: int, score: float, *, more: Sequence[str] = (), path: Sequence[Mapping[str, str]] = ()
    ) -> ScoredChunk:
        """A passage as it is served."""
        owner = self.owner(slot)
        row = None if owner is None else self.document(owner)
        assert owner is not None
        assert row is not None
        i = row.keys.index(int(self.ids[slot]))
        found = [name for name, values in (("vector", self.dense), ("bm25", self.bm25)) if values[slot] > 0]
        return ScoredChunk(
            chunk_id=row.ids[i],
            document_id=owner,
            title=row.title,
            text=self.text(slot),
            start=row.starts[i],
            end=row.ends[i],
            score=score,
            sources=(*found, *more),
            path=tuple(path),
            url=row.url,
            metadata=row.metadata,
        )


def _valid(row: Document, at_us: int) -> bool:
    """Whether what a document says held at a time: from ``valid_from``, else its event's time, to ``valid_to``."""
    start = row.at_us if row.valid_from is None else to_us(row.valid_from)
    return start <= at_us and (row.valid_to is None or at_us < to_us(row.valid_to))


def to_us(time: datetime) -> int:
    return round(time.timestamp() * 1_000_000)
