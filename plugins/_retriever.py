"""How ``vector_index`` answers: vector search and BM25 fused, filtered, with the passages' text.

With ``cos`` a chunk's cosine to the question and ``bm25`` its BM25 score, a chunk scores ``b + d``::

    b = bm25 / max bm25,    d = max(0, (cos − m)/(max cos − m))

``m`` is the mean cosine over all chunks while they are few enough to look at each (``EXACT``); beyond, the lowest of
those fetched, which is nearer to the top and so makes ``d`` steeper. Measured beside reciprocal rank fusion, the sum
is as good and keeps magnitudes.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from streamfold.core import Chunk, Retrieval, ScoredChunk, StoredDocument, View

if TYPE_CHECKING:
    from streamfold.plugins.vector_index import Document

EXACT = 1024
"""With so many chunks or fewer, each is scored."""
OVER_FETCH = 8
SOURCES = ("vector", "bm25")

Scores = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class _Ranked:
    """Chunks, best first: keys ``(n,) int64``, scores, and for each source whether it found the chunk."""

    keys: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float64]
    by_source: list[tuple[str, npt.NDArray[np.bool_]]]


class VectorRetriever:
    """Retrieval over the view of a ``vector_index``; never writes."""

    modes: tuple[str, ...] = ("naive",)

    def __init__(self, view: View) -> None:
        self._view = view

    def retrieve(self, request: Retrieval) -> list[ScoredChunk]:
        """Return the best chunks that ``request.matches`` keeps.

        A filter is applied to what was fetched; too few are left → twice as many are fetched, until all were.
        """
        check_request(request, self.modes)
        view = self._view
        size = len(view["chunks"])
        if not size or request.top_k < 1:
            return []
        query = view.tools.encoder.encode([request.query]) if "vector" in request.sources else None
        fetch = max(EXACT, OVER_FETCH * request.top_k)
        while True:
            ranked = self._ranked(request, query, min(fetch, size), size)
            found = self._matching(ranked, request)
            if len(found) >= request.top_k or fetch >= size:
                return self._passages(found)
            fetch *= 2

    def _ranked(self, request: Retrieval, query: npt.NDArray[np.float32] | None, fetch: int, size: int) -> _Ranked:
        """Rank the fetched chunks, best first, ties by key."""
        parts: list[tuple[str, Scores]] = []
        if query is not None:
            ids, cos = self._view["vectors"].search(query, fetch)
            parts.append(("vector", spread(ids[0], cos[0], exact=fetch >= size)))
        if "bm25" in request.sources:
            ids, bm25 = self._view["text"].search(request.query, fetch)
            parts.append(("bm25", (ids, bm25 / bm25[0] if len(bm25) else bm25)))
        keys = np.unique(np.concatenate([ids for _, (ids, _) in parts]))
        score = np.zeros(len(keys))
        by_source: list[tuple[str, npt.NDArray[np.bool_]]] = []
        for name, (ids, values) in parts:
            own = np.zeros(len(keys))
            own[np.searchsorted(keys, ids)] = values
            by_source.append((name, own > 0))
            score += own
        order = np.argsort(-score, kind="stable")
        order = order[score[order] > 0]
        return _Ranked(keys[order], score[order], [(name, found[order]) for name, found in by_source])

    def _matching(self, ranked: _Ranked, request: Retrieval) -> list[tuple[int, str, float, tuple[str, ...], Document]]:
        """Return the first ``top_k`` that the filter keeps, asking it once per document."""
        found: list[tuple[int, str, float, tuple[str, ...], Document]] = []
        kept: dict[str, Document | None] = {}
        step = max(64, 2 * request.top_k)
        for start in range(0, len(ranked.keys), step):
            keys = ranked.keys[start : start + step].tolist()
            owners = self._view["chunks"].get_many(keys)
            unseen = sorted({owner for owner in owners if owner is not None and owner not in kept})
            for owner, row in zip(unseen, self._view["documents"].get_many(unseen), strict=True):
                keep = row is not None and (request.matches is None or request.matches(filterable(owner, row)))
                kept[owner] = row if keep else None
            for at, (key, owner) in enumerate(zip(keys, owners, strict=True), start):
                row = kept.get(owner)
                if row is not None:
                    sources = tuple(name for name, by in ranked.by_source if by[at])
                    found.append((key, owner, float(ranked.scores[at]), sources, row))
                    if len(found) == request.top_k:
                        return found
        return found

    def _passages(self, found: Iterable[tuple[int, str, float, tuple[str, ...], Document]]) -> list[ScoredChunk]:
        texts: dict[str, str] = {}
        passages = []
        for key, owner, score, sources, row in found:
            if owner not in texts:
                texts[owner] = self._text(owner)
            i = row.keys.index(key)
            start, end = row.starts[i], row.ends[i]
            passage = ScoredChunk(
                chunk_id=row.ids[i],
                document_id=owner,
                title=row.title,
                text=texts[owner][start:end],
                start=start,
                end=end,
                score=score,
                sources=sources,
                url=row.url,
                metadata=row.metadata,
            )
            passages.append(passage)
        return passages

    def _text(self, document_id: str) -> str:
        return (self._view["texts"].get(document_id) or b"").decode("utf-8", "surrogatepass")

    # -- documents ----------------------------------------------------------------------------------------------------
    def document(self, document_id: str) -> StoredDocument | None:
        """Return a document with its chunks; None when it is not stored."""
        row: Document | None = self._view["documents"].get(document_id)
        if row is None:
            return None
        text = self._text(document_id)
        chunks = tuple(Chunk(text=text[a:b], start=a, end=b) for a, b in zip(row.starts, row.ends, strict=True))
        return _stored(document_id, row, {"text": text}, chunks)

    def documents(self, *, after: str, limit: int) -> list[StoredDocument]:
        """Return a page in order of id, without texts and chunks. Looks at every key: O(N log limit)."""
        keys = (key for key, _ in self._view["documents"].items() if key > after)
        page = heapq.nsmallest(limit, keys)
        rows = self._view["documents"].get_many(page)
        return [_stored(key, row, {}, ()) for key, row in zip(page, rows, strict=True) if row is not None]


def spread(ids: npt.NDArray[np.int64], cos: npt.NDArray[np.float32], *, exact: bool) -> Scores:
    """Return ids and ``max(0, (cos − m)/(max − m))``; ``m``: the mean, or the lowest when not all are there.

    Rounded to four places: what comes after them is noise that depends on where a row lies.

    >>> ids, values = spread(np.array([7, 8, 9]), np.array([0.9, 0.6, 0.0], np.float32), exact=True)
    >>> values.round(2).tolist()
    [1.0, 0.25, 0.0]
    """
    there = ids >= 0
    ids, values = ids[there], cos[there].astype(np.float64)
    if not len(ids):
        return ids, values
    base = float(values.mean() if exact else values.min())
    span = float(values.max()) - base
    if span < 1e-9:  # all alike: as with a single chunk
        return ids, np.ones(len(ids))
    return ids, np.maximum(0.0, (values - base) / span).round(4)


def filterable(document_id: str, row: Document) -> dict[str, Any]:
    """Return the fields that a filter may name."""
    return {"metadata": {}, **row.fields(), "document_id": document_id}


def check_request(request: Retrieval, modes: Sequence[str]) -> None:
    """Raise ``ValueError`` for a mode or a source that is not served."""
    if request.mode not in modes:
        raise ValueError(f"mode {request.mode!r} is not served; served: {', '.join(modes)}")
    unknown = [source for source in request.sources if source not in SOURCES]
    if unknown or not request.sources:
        raise ValueError(f"sources {request.sources!r}: give one or both of {', '.join(SOURCES)}")


def _stored(document_id: str, row: Document, more: dict[str, Any], chunks: tuple[Chunk, ...]) -> StoredDocument:
    return StoredDocument(
        document_id=document_id,
        fields={**row.fields(), **more},
        content_hash=row.content_hash,
        event_id=row.event_id,
        position=row.position,
        updated_us=row.updated_us,
        chunks=chunks,
        chunk_ids=row.ids,
        text_position=row.text_position,
    )
