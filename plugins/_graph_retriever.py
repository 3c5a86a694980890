"""How ``graph_index`` answers: LightRAG's modes, the recipe of linked passages, PageRank, and the graph itself.

===========  =========================================================================================================
``naive``    vectors and BM25 (:mod:`_retriever`)
``local``    entities near the question, their relations, the passages that name them
``global``   relations near the question, their ends, the passages that support them
``hybrid``   both in turn
``mix``      the entities and relations of ``hybrid``, the passages of :mod:`_hops`; the default
``ppr``      passages by personalised PageRank from the question's entities and best passages (HippoRAG 2)
===========  =========================================================================================================
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from streamfold.core import (
    Merge,
    Neighbourhood,
    Retrieval,
    RetrievedContext,
    ScoredChunk,
    ScoredEntity,
    ScoredRelation,
    View,
)
from streamfold.plugins._candidates import merge_candidates
from streamfold.plugins._facts import Fact, Facts, in_turn
from streamfold.plugins._graph_listing import entities, labels, names, pairs, relations
from streamfold.plugins._hops import Hops
from streamfold.plugins._identity import entity_key
from streamfold.plugins._passages import Passages, Places
from streamfold.plugins._retriever import VectorRetriever, check_request

ENTITY_TOKENS, RELATION_TOKENS, TOTAL_TOKENS = 6_000, 8_000, 30_000
"""LightRAG's budgets; a smaller total shrinks the others in proportion."""
CHARACTERS_PER_TOKEN = 4
_ALWAYS = 8
_PASSAGE_WEIGHT = 0.05
"""HippoRAG 2: what passages weigh among the seeds, beside entities."""
T = TypeVar("T")


class GraphRetriever(VectorRetriever):
    """Retrieval over the view of a ``graph_index``; never writes."""

    modes: tuple[str, ...] = ("mix", "naive", "local", "global", "hybrid", "ppr")

    def __init__(
        self,
        view: View,
        *,
        hop_weight: float = 1.3,
        suggest_merges: bool = True,
        merge_from: float | None = None,
        single_valued: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(view)
        self._hop_weight = hop_weight
        self._suggest_merges = suggest_merges
        self._merge_from = merge_from
        self._single_valued = single_valued
        self._places = Places()

    def retrieve(self, request: Retrieval) -> list[ScoredChunk]:
        """Return the best passages in the request's mode."""
        return list(self.context(request).chunks)

    def context(self, request: Retrieval) -> RetrievedContext:
        """Return passages, entities and relations, as far as the request includes them, within its budget."""
        check_request(request, self.modes)
        if request.mode == "naive" and request.as_of_us is None:
            return RetrievedContext(chunks=super().retrieve(request) if "chunks" in request.include else ())
        if request.top_k < 1 or not len(self._view["chunks"]):
            return RetrievedContext()
        on = Passages.of(self._view, request, self._places)
        if request.mode == "naive":
            return RetrievedContext(chunks=Hops(on, 0.0).chunks())
        hops = Hops(on, self._hop_weight)
        chunks: list[ScoredChunk] = []
        if "chunks" in request.include and request.mode == "mix":
            chunks = hops.chunks()
        else:
            hops.match_titles()
        facts = Facts(on, self._single_valued)
        entities, relations = self._facts(request, facts)
        if "chunks" in request.include and request.mode == "ppr":
            chunks = self._ppr(on, facts)
        elif "chunks" in request.include and request.mode != "mix":
            best = facts.passages(entities, relations)[: request.top_k]
            chunks = [on.shown(slot, score, more=("graph",)) for slot, score in best]
        return _within(request, facts, entities, relations, chunks)

    def _facts(self, request: Retrieval, facts: Facts) -> tuple[list[tuple[str, float]], list[Fact]]:
        count = request.top_k
        low, high = request.keywords.low if request.keywords else (), request.keywords.high if request.keywords else ()
        if request.mode == "local":
            return self._about(low, request, facts).local(count)
        if request.mode == "global":
            return self._about(high, request, facts).relations(count)
        if request.mode in ("mix", "ppr") and not {"entities", "relations"}.intersection(request.include):
            return [], []
        near, around = self._about(low, request, facts).local(count)
        ends, related = self._about(high, request, facts).relations(count)
        by_ends = {fact.ends: fact for fact in [*related, *around]}
        both = in_turn(((fact.ends, fact.score) for fact in around), ((fact.ends, fact.score) for fact in related))
        return in_turn(near, ends)[:count], [by_ends[key] for key, _ in both][:count]

    def _about(self, keywords: Sequence[str], request: Retrieval, facts: Facts) -> Facts:
        """Look for keywords in the place of the question, where there are any (LightRAG: names, or themes)."""
        if not keywords:
            return facts
        on = Passages.of(self._view, dataclasses.replace(request, query=", ".join(keywords)), self._places)
        Hops(on, self._hop_weight).match_titles()
        return Facts(on, self._single_valued)

    def _ppr(self, on: Passages, facts: Facts) -> list[ScoredChunk]:
        """Rank passages by PageRank from the question's entities and its best passages."""
        z = on.z
        top = float(z.max(initial=0.0))
        if top <= 0:
            return []
        seeds: dict[int | str, float] = {
            "e:" + name: score for key, score in facts.local(5)[0] for name in on.who.members(key)
        }
        for slot in on.best(z, 64):
            seeds[int(on.ids[slot])] = _PASSAGE_WEIGHT * float(z[slot]) / top
        rank = self._view["graph"].personalized_pagerank(seeds)
        keys = [node for node in rank if isinstance(node, int)]
        slots = on.slots_of(keys).tolist()
        scored = sorted(
            ((rank[key], slot) for key, slot in zip(keys, slots, strict=True) if slot >= 0),
            key=lambda one: (-round(one[0], 9), int(on.ids[one[1]])),
        )
        found: list[ScoredChunk] = []
        for score, slot in scored:
            if on.owner(slot) is not None:
                found.append(on.shown(slot, score, more=("graph",)))
                if len(found) == on.request.top_k:
                    break
        return found

    # -- the graph ----------------------------------------------------------------------------------------------------
    def graph(
        self, entity_id: str, *, depth: int, limit: int, matches: Callable[[Mapping[str, Any]], bool] | None = None
    ) -> Neighbourhood | None:
        """Return what lies around an entity, in rings; None where no document names it."""
        view = self._view
        facts = Facts(Passages.of(view, Retrieval(query="", sources=("bm25",), matches=matches)), self._single_valued)
        entity_id = facts.on.who.canonical(entity_key(entity_id))
        if not facts.is_named(entity_id):
            return None
        reached: dict[str, None] = {entity_id: None}
        found: dict[tuple[str, str], Fact] = {}
        ring, truncated = [entity_id], False
        for _ in range(depth):
            beyond: list[str] = []
            for key in ring:
                for fact in facts.around(key):
                    other = fact.ends[0] if fact.ends[1] == key else fact.ends[1]
                    if other not in reached:
                        if len(reached) >= limit:
                            truncated = True
                            continue
                        reached[other] = None
                        beyond.append(other)
                    found.setdefault(fact.ends, fact)
            ring = beyond
        entities = [facts.entity(key, float(len(facts.on.holders(key)))) for key in reached]
        relations = [facts.relation(fact) for fact in found.values()]
        same = merge_candidates(facts, entity_id) if self._suggest_merges else []
        return Neighbourhood(entities=entities, relations=relations, truncated=truncated, merge_candidates=same)

    @property
    def merges_by_itself(self) -> bool:
        """Whether candidates with a high score are merged."""
        return self._merge_from is not None

    def merges(self, document_id: str) -> list[Merge]:
        """Return which names in a document are surely one with others: the rarer goes into the commoner.

        A name is looked at while it is in 8 passages or fewer, and then when it is in 16, 32, 64 …: a mention costs the
        less the more there are.
        """
        facts = Facts(Passages.of(self._view, Retrieval(query="", sources=("bm25",)), self._places))
        on = facts.on
        named = (on.graph.targets(int(on.ids[slot]))[0] for slot in on.chunks_of(document_id))
        keys = [end[2:] for ends in named for end in ends if isinstance(end, str) and end.startswith("e:")]
        keys = list(dict.fromkeys(on.who.canonical_many(keys)))
        found: list[Merge] = []
        for key, mentions in zip(keys, on.sources_many("e:", keys), strict=True):
            if (mentions <= _ALWAYS or mentions & (mentions - 1) == 0) and on.is_name(key):
                for one in merge_candidates(facts, key):
                    if self._merge_from is not None and one.score >= self._merge_from:
                        names = [key, one.entity_id]
                        many = on.sources_many("e:", names)
                        name, into = sorted(names, key=lambda k: (many[names.index(k)], -len(k), k))
                        found.append(Merge(name, into, one.reason))
        return found

    def names(self) -> list[tuple[str, int]]:
        """Return every name and in how many chunks it stands."""
        return names(self._view)

    def entities(
        self, entity_ids: Sequence[str], *, matches: Callable[[Mapping[str, Any]], bool] | None = None
    ) -> list[ScoredEntity]:
        """Describe entities."""
        return entities(self._view, entity_ids, matches)

    def labels(
        self, entity_ids: Sequence[str], *, matches: Callable[[Mapping[str, Any]], bool] | None = None
    ) -> list[str]:
        """Return the names as they are written."""
        return labels(self._view, entity_ids, matches)

    def pairs(self) -> list[tuple[str, str]]:
        """Return which entities are related."""
        return pairs(self._view)

    def relations(
        self, pairs: Sequence[tuple[str, str]], *, matches: Callable[[Mapping[str, Any]], bool] | None = None
    ) -> list[ScoredRelation]:
        """Describe relations."""
        return relations(self._view, pairs, matches)


def _within(
    request: Retrieval,
    facts: Facts,
    entities: Sequence[tuple[str, float]],
    relations: Sequence[Fact],
    chunks: Sequence[ScoredChunk],
) -> RetrievedContext:
    """Describe what is wanted, until its share of the budget is used up."""
    total = request.budget_tokens or TOTAL_TOKENS
    scale = CHARACTERS_PER_TOKEN * total / TOTAL_TOKENS
    described = (entity for one in entities if (entity := facts.entity(*one)).chunk_ids)
    shown = _fitting(described, _size, scale * ENTITY_TOKENS, "entities", request)
    told = _fitting((facts.relation(one) for one in relations), _size, scale * RELATION_TOKENS, "relations", request)
    left = CHARACTERS_PER_TOKEN * total - sum(map(_size, shown)) - sum(map(_size, told))
    kept = _fitting(iter(chunks), lambda chunk: len(chunk.text), left, "chunks", request)
    return RetrievedContext(chunks=kept, entities=shown, relations=told)


def _fitting(found: Iterable[T], size: Callable[[T], int], budget: float, kind: str, request: Retrieval) -> list[T]:
    """Take from the front what fits a budget of characters."""
    kept: list[T] = []
    for one in found if kind in request.include else ():
        budget -= size(one)
        if budget < 0:
            break
        kept.append(one)
    return kept


def _size(one: ScoredEntity | ScoredRelation) -> int:
    names = one.name if isinstance(one, ScoredEntity) else one.source + one.target
    return len(names) + len(one.description)
