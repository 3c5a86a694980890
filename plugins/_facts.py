"""Entities and relations for a question, as LightRAG's ``local`` and ``global`` find them, read off passages.

LightRAG embeds every entity and relation and searches those vectors. Here an entity is as near to a question as the
passages that name it: with *z* how well a passage fits (:mod:`_hops`) and *n* the passages that name *e* of *N*::

    local:  s(e) = [e is named in the question] + ½ max_{p names e} z(p)/max z · (1 − ln n/ln N)
    global: s(r) = max_{p supports r} z(p)/max z · (1 + c),   c = share of the question's terms in the sentence

over the best passages. From the entities of ``local`` one hop leads to their relations, from the relations of
``global`` to their ends; passages follow, by what they name. ``hybrid`` takes from both in turn. Descriptions are the
sentences of the best passages, as they stand now.

Reference: Guo et al., LightRAG, arXiv:2410.05779.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, product, zip_longest
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from streamfold.core import STOP_WORDS, ScoredEntity, ScoredRelation, best_slots, stem, tokens
from streamfold.plugins._extract import Extract, Told, relation_node
from streamfold.plugins._names import MAX_WORDS
from streamfold.plugins._passages import Passages, Slots, Values, to_us
from streamfold.plugins._told import TOLERANCE, fact_node, weight

_LOOKED_AT = 24
"""Passages whose names and relations are read."""
_OF_AN_ENTITY = 8
"""Passages of an entity that are read for its relations and description."""
_READ = 4
"""Of those, that are read for the entity's relations in an answer."""
_AROUND = 64
"""Passages of an entity that are read when the graph is looked at."""
_POOL = 512
"""The best passages, in which popular entities are looked for first: most often enough of these name them …"""
_ENOUGH = 24
"""… which are those of whom by their share so many would be among them."""
_CONTRADICTIONS = 64
"""Later facts that are read to find the one that ends another."""
_LEAST = 1e-6
"""What fits less is as good as what does not fit at all."""
_DESCRIPTION = 600
"""Characters of a description, in whole sentences where they fit."""
T = TypeVar("T")


@dataclass(slots=True)
class Fact:
    """A relation found in passages; ``said``: (passage, start, end) of the sentence that fits best.

    ``told``: what an extractor told of it, in the place of a sentence.
    """

    ends: tuple[str, str]
    score: float
    slots: list[int]
    said: tuple[int, int, int]
    told: Told | None = None


@dataclass(slots=True)
class _Pool:
    """The passages that fit best, in order, and what they name: ``(slots,)``, ``(edges,)`` places and node numbers."""

    slots: Slots
    places: Slots
    ends: npt.NDArray[np.int32]

    @classmethod
    def of(cls, on: Passages, first: Callable[[Slots, int], Slots]) -> _Pool:
        there = best_slots(on.z, min(len(on.z), _POOL))
        slots = first(there[on.z[there] >= _LEAST], _POOL)
        ends, counts = on.graph.target_numbers(on.ids[slots].tolist())
        return cls(slots, np.repeat(np.arange(len(slots)), counts), ends)

    def naming(self, numbers: Sequence[int]) -> Slots:
        """Return those that name one of some nodes, in order."""
        found: Slots = self.slots[np.unique(self.places[np.isin(self.ends, numbers)])]
        return found


@dataclass(slots=True)
class Facts:
    """What the passages of one question say of whom."""

    on: Passages
    single_valued: frozenset[str] = frozenset()
    _entities: dict[int, list[str]] = field(default_factory=dict)
    _read: dict[int, Extract | None] = field(default_factory=dict)
    _ordered: dict[str, Slots] = field(default_factory=dict)
    _worst: Values | None = None
    """How badly each passage fits, rounded as ties are."""
    _pool: _Pool | None = None

    # -- local --------------------------------------------------------------------------------------------------------
    def local(self, count: int) -> tuple[list[tuple[str, float]], list[Fact]]:
        """Return the entities nearest to the question, and their relations."""
        on = self.on
        z = on.z
        named = self.named()
        scores = dict.fromkeys(named, 1.0)
        top = float(z.max(initial=0.0))
        first: dict[str, int] = {}  # by name: the passage that fits best
        for slot in self.on.nearest(_LOOKED_AT):
            for key in self._keys(slot):
                first.setdefault(key, slot)
        names, log_count = list(filter(on.is_name, first)), math.log(max(3, on.count))
        for key, mentions in zip(names, on.sources_many("e:", names), strict=True):
            rarity = 1 - math.log(max(1, mentions)) / log_count
            part = 0.5 * float(z[first[key]]) / top * rarity
            if part > 0:
                scores[key] = part + (key in named)
        entities = _ranked(scores)[:count]
        keys = [key for key, _ in entities]
        counts = on.sources_many("e:", keys)
        on.holders_many([key for key, many in zip(keys, counts, strict=True) if not self._is_popular(many)])
        facts: dict[tuple[str, str], Fact] = {}
        for key, score in entities:
            for slot in self._passages_of(key, _READ):
                self._collect(slot, lambda _: score, facts, only=key)  # noqa: B023  # called at once
        return entities, _best_facts(facts)[: 2 * count]

    def around(self, key: str) -> list[Fact]:
        """Return the relations of an entity, those in most passages first."""
        facts: dict[tuple[str, str], Fact] = {}
        for slot in self._passages_of(key, _AROUND):
            self._collect(slot, lambda _: 1.0, facts, only=key)
        for fact in facts.values():
            fact.score = float(self._support(*fact.ends))
        return _best_facts(facts)

    def names_around(self, key: str) -> list[str]:
        """Return the entities in the passages that name one, itself included."""
        slots = self._passages_of(key, _AROUND)
        return [name for slot in slots for name in dict.fromkeys(self._keys(slot)) if self.on.is_name(name)]

    def between(self, ends: tuple[str, str]) -> Fact | None:
        """Return the relation of two entities with all passages that support it; None where there are none."""
        on = self.on
        ids = {id_ for node in self._relation_nodes(*ends) for id_ in on.graph.source_ids(node).tolist()}
        facts: dict[tuple[str, str], Fact] = {}
        for slot in on.slots_of(sorted(ids)).tolist():
            if on.owner(slot) is not None:
                self._collect(slot, lambda _: 1.0, facts, only=ends[0])
        return facts.get((min(ends), max(ends)))

    def is_named(self, key: str) -> bool:
        """Whether a document that may be used names an entity."""
        return bool(self._passages_of(key, 1))

    def named(self) -> list[str]:
        """Return the entities that the question names, the longest at each place, whatever their case."""
        graph = self.on.graph
        keys, capital = self.on.question.words.keys, self.on.question.words.capital
        careless = not any(capital[1:])
        found: dict[str, None] = {}
        i = 0
        while i < len(keys):
            for end in range(min(len(keys), i + MAX_WORDS), i, -1):
                key = " ".join(keys[i:end])
                written = end > i + 1 or ((capital[i] or careless) and keys[i] not in STOP_WORDS)
                known = "e:" + key in graph or "m:" + key in graph
                if written and known and self.on.is_name(key):
                    found[self.on.who.canonical(key)] = None
                    i = end
                    break
            else:
                i += 1
        return list(found)

    # -- global -------------------------------------------------------------------------------------------------------
    def relations(self, count: int) -> tuple[list[tuple[str, float]], list[Fact]]:
        """Return the relations nearest to the question, and their ends."""
        z = self.on.z
        top = float(z.max(initial=0.0))
        facts: dict[tuple[str, str], Fact] = {}
        asked = set(self.on.question.terms)
        for slot in self.on.nearest(_LOOKED_AT):
            fit = float(z[slot]) / top
            self._collect(slot, lambda said: fit * (1 + len(asked & said) / max(1, len(asked))), facts)  # noqa: B023
        best = _best_facts(facts)[:count]
        ends: dict[str, float] = {}
        for fact in best:
            for key in fact.ends:
                ends[key] = max(ends.get(key, 0.0), fact.score)
        return _ranked(ends)[:count], best

    def _collect(
        self, slot: int, score: Callable[[set[str]], float], facts: dict[tuple[str, str], Fact], only: str | None = None
    ) -> None:
        """Add a passage's relations (those of one entity); ``score`` gets the terms of the sentence."""
        found = self._extract(slot)
        if found is None:
            return
        keys = self._keys(slot)
        text = "" if only else self.on.text(slot)
        scores: dict[int, float] = {}
        for a, b, start, end in found.relations:
            one, other = keys[a], keys[b]
            if one == other or (only is not None and one != only and other != only):
                continue
            if start not in scores:
                scores[start] = score(set() if only else set(map(stem, tokens(text[start:end]))))
            ends = (one, other) if one < other else (other, one)
            fact = facts.get(ends)
            if fact is None:
                facts[ends] = Fact(ends, scores[start], [slot], (slot, start, end))
                continue
            if slot not in fact.slots:
                fact.slots.append(slot)
            if scores[start] > fact.score:
                fact.score, fact.said, fact.told = scores[start], (slot, start, end), None
        for told in found.told:
            one, other = keys[told.source], keys[told.target]
            if one != other and (only is None or only in (one, other)):
                self._collect_told(slot, keys, told, score, facts, of_one=only is not None)

    def _collect_told(
        self,
        slot: int,
        keys: Sequence[str],
        told: Told,
        score: Callable[[set[str]], float],
        facts: dict[tuple[str, str], Fact],
        *,
        of_one: bool,
    ) -> None:
        """Add what an extractor told, if it held at the time that is asked about."""
        at_us = self.on.request.as_of_us
        if at_us is not None and not (told.from_us <= at_us < (self._ends_us(slot, told) or at_us + 1)):
            return
        said = f"{told.description} {' '.join(told.keywords)}"
        value = score(set() if of_one else set(map(stem, tokens(said))))
        one, other = keys[told.source], keys[told.target]
        ends = (min(one, other), max(one, other))
        fact = facts.setdefault(ends, Fact(ends, value, [], (slot, 0, 0), told))
        if slot not in fact.slots:
            fact.slots.append(slot)
        before = (fact.score, fact.told is not None, fact.told.from_us if fact.told else 0)
        if (value, True, told.from_us) > before:  # of equal ones the newest
            fact.score, fact.said, fact.told = value, (slot, 0, 0), told

    def _ends_us(self, slot: int, told: Told) -> int | None:
        """When a relation ceased to hold: as it says, or when a later fact contradicted it."""
        subject, value = self._keys(slot)[told.source], self._keys(slot)[told.target]
        ends = [] if told.to_us is None else [told.to_us]
        for keyword in self.single_valued.intersection(told.keywords):
            for other in self._saying_later(subject, keyword, told.from_us):
                found, keys = self._extract(other), self._keys(other)
                starts = [
                    one.from_us
                    for one in (found.told if found else ())
                    if keyword in one.keywords and keys[one.source] == subject and keys[one.target] != value
                ]
                if starts := [at_us for at_us in starts if at_us > told.from_us]:
                    ends.append(min(starts))
                    break
        return min(ends, default=None)

    def _saying_later(self, subject: str, keyword: str, from_us: int) -> list[int]:
        """The passages that say of a subject what it has one of, not before a time, earliest first."""
        on = self.on
        found: list[tuple[float, int]] = []
        for name in on.who.members(subject):
            sources, weights = on.graph.sources(fact_node(name, keyword))
            later = np.flatnonzero(weights >= np.float32(weight(from_us)) * TOLERANCE)
            slots = on.slots_of([sources[i] for i in later]).tolist()
            found += [(w, slot) for w, slot in zip(weights[later].tolist(), slots, strict=True) if slot >= 0]
        return [slot for _, slot in sorted(found)[:_CONTRADICTIONS] if on.owner(slot) is not None]

    # -- passages -----------------------------------------------------------------------------------------------------
    def passages(self, entities: Sequence[tuple[str, float]], facts: Sequence[Fact]) -> list[tuple[int, float]]:
        """Return the passages of entities and relations, by what they support, then by how well they fit."""
        z = self.on.z
        top = float(z.max(initial=0.0)) or 1.0
        support: dict[int, float] = {}
        for key, score in entities:
            for slot in self._passages_of(key):
                support[slot] = support.get(slot, 0.0) + score
        for fact in facts:
            for slot in fact.slots:
                support[slot] = support.get(slot, 0.0) + fact.score
        most = max(support.values(), default=1.0)
        scores = {slot: value / most + float(z[slot]) / top for slot, value in support.items()}
        return sorted(scores.items(), key=lambda one: (-round(one[1], 6), int(self.on.ids[one[0]])))

    def _passages_of(self, key: str, most: int = _OF_AN_ENTITY) -> list[int]:
        """The passages that name an entity, those that fit best."""
        on = self.on
        if self._is_popular(on.sources("e:", key)) and (pooled := self._pooled(key, most)):
            return pooled
        slots = on.holders(key)
        reach = min(len(slots), 4 * most + 32)
        while True:
            there = self._ordered.get(key)
            if there is None or len(there) < reach:
                there = self._ordered[key] = self._first(slots, reach)
            found: list[int] = []
            for slot in there.tolist():
                if on.owner(slot) is not None:
                    found.append(slot)
                    if len(found) == most:
                        return found
            if len(there) == len(slots):
                return found
            reach = min(len(slots), 8 * reach)

    def _is_popular(self, mentions: int) -> bool:
        return mentions > _POOL and mentions * _POOL > _ENOUGH * self.on.count

    def _pooled(self, key: str, most: int) -> list[int]:
        """The same, of the passages that fit best of all; none where they are not enough."""
        on = self.on
        if self._pool is None:
            self._pool = _Pool.of(on, self._first)
        found: list[int] = []
        for slot in self._pool.naming(on.graph.numbers(["e:" + name for name in on.who.one(key)])).tolist():
            if on.owner(slot) is not None:
                found.append(slot)
                if len(found) == most:
                    return found
        return []

    def _first(self, slots: Slots, count: int) -> Slots:
        """The passages that fit best, ties by id: O(passages), without putting all of them in order."""
        if self._worst is None:
            self._worst = -self.on.z.round(6)
        ids, worst = self.on.ids[slots], self._worst[slots]
        if count < len(slots):
            last = np.partition(worst, count - 1)[count - 1]
            sure, level = np.flatnonzero(worst < last), np.flatnonzero(worst == last)
            left = count - len(sure)
            if left < len(level):
                level = level[np.argpartition(ids[level], left - 1)[:left]]
            chosen = np.concatenate([sure, level])
            slots, ids, worst = slots[chosen], ids[chosen], worst[chosen]
        return slots[np.lexsort((ids, worst))]

    # -- as served ----------------------------------------------------------------------------------------------------
    def chunk_ids_of(self, key: str) -> tuple[str, ...]:
        """Return all passages that name an entity."""
        return tuple(self._chunk_id(slot) for slot in self._passages_of(key, len(self.on.ids)))

    def written(self, key: str) -> str | None:
        """Return the name that :meth:`entity` shows, without describing it; None where no passage names it."""
        slots = self._passages_of(key)
        return self._name(slots, key) if slots else None

    def _name(self, slots: Sequence[int], key: str) -> str:
        """How an entity is shown: as it was renamed, else as a passage writes its key, else by another of its names."""
        if shown := self.on.who.shown(key):
            return shown
        other = key
        for slot in slots:
            name = self._written_in(slot, key) or key
            if name != key and name.lower() == key:
                return name
            other = name if other == key else other
        return other

    def _written_in(self, slot: int, key: str) -> str | None:
        """How a passage writes a name: under that name, if it uses several of the entity's."""
        found, keys = self._extract(slot), self._keys(slot)
        names = [] if found is None else [name for name, one in zip(found.names, keys, strict=True) if one == key]
        return next((name for name in names if name.lower() == key), names[0] if names else None)

    def entity(self, key: str, score: float) -> ScoredEntity:
        """Describe an entity by the sentences that name it now."""
        on = self.on
        slots = self._passages_of(key)
        sentences, size = dict[str, None](), 0
        type_: str | None = None
        for slot in slots:
            found, keys = self._extract(slot), self._keys(slot)
            if found is None or key not in keys:
                continue
            for number, kind, description in found.about:
                if keys[number] == key:
                    type_ = type_ or kind
                    fits = not size or size + len(description) <= _DESCRIPTION
                    if description and description not in sentences and fits:
                        sentences[description] = None
                        size += len(description)
            text = on.text(slot)
            for start, end in dict.fromkeys(
                [(s, e) for a, b, s, e in found.relations if keys[a] == key or keys[b] == key]
            ):
                sentence = " ".join(text[start:end].split())
                if sentence not in sentences and (not size or size + len(sentence) <= _DESCRIPTION):
                    sentences[sentence] = None
                    size += len(sentence)
            if not sentences:
                sentences[" ".join(text.split())[: _DESCRIPTION // 2]] = None
            if size > _DESCRIPTION // 2:
                break
        ids = tuple(self._chunk_id(slot) for slot in slots)
        return ScoredEntity(
            entity_id=key,
            name=self._name(slots, key),
            type=type_,
            description=" ".join(sentences)[:_DESCRIPTION],
            score=score,
            chunk_ids=ids,
        )

    def relation(self, fact: Fact) -> ScoredRelation:
        """Describe a relation by its best sentence; weight: how many passages support it."""
        on = self.on
        one, other = fact.ends
        slot, start, end = fact.said
        sentence = " ".join(on.text(slot)[start:end].split())
        found = self._extract(slot)
        named = dict(zip(self._keys(slot), found.names, strict=True)) if found else {}
        own = {*one.split(" "), *other.split(" ")}
        keywords = [w for w in dict.fromkeys(tokens(sentence)) if stem(w) and w not in own and len(w) > 3]
        owner = on.owner(slot)
        row = None if owner is None else on.document(owner)
        start_us = None if row is None else row.at_us if row.valid_from is None else to_us(row.valid_from)
        end_us = None if row is None or row.valid_to is None else to_us(row.valid_to)
        if (told := fact.told) is not None and found is not None:
            one, other = self._keys(slot)[told.source], self._keys(slot)[told.target]
            sentence, keywords = told.description or ", ".join(told.keywords), told.keywords
            start_us = told.from_us
            end_us = min(filter(None, (end_us, self._ends_us(slot, told))), default=None)
        return ScoredRelation(
            relation_id="|".join(fact.ends),
            source=on.who.shown(one) or named.get(one, one),
            target=on.who.shown(other) or named.get(other, other),
            description=sentence[:_DESCRIPTION],
            score=fact.score,
            weight=float(self._support(one, other)),
            keywords=tuple(keywords if told else keywords[:3]),
            valid_from_us=start_us,
            valid_to_us=end_us,
            chunk_ids=tuple(self._chunk_id(slot) for slot in fact.slots),
        )

    def _chunk_id(self, slot: int) -> str:
        owner = self.on.owner(slot)
        row = None if owner is None else self.on.document(owner)
        return "" if row is None else row.ids[row.keys.index(int(self.on.ids[slot]))]

    def _extract(self, slot: int) -> Extract | None:
        if slot not in self._read:
            self._read[slot] = self.on.extract(slot)
        return self._read[slot]

    def _keys(self, slot: int) -> list[str]:
        """The entities that a passage names, by number of the name."""
        if slot not in self._entities:
            found = self._extract(slot)
            self._entities[slot] = [] if found is None else self.on.who.canonical_many(found.keys())
        return self._entities[slot]

    def _support(self, one: str, other: str) -> int:
        """How many passages relate two entities, by any of their names."""
        return sum(map(self.on.graph.in_degree, self._relation_nodes(one, other)))

    def _relation_nodes(self, one: str, other: str) -> list[str]:
        who = self.on.who
        return [relation_node(a, b) for a, b in product(who.members(one), who.members(other))]


def in_turn(*lists: Iterable[tuple[T, float]]) -> list[tuple[T, float]]:
    """Take from each list in turn (LightRAG's round robin); what came already keeps its place.

    >>> in_turn([("a", 1.0), ("b", 0.5)], [("b", 2.0), ("c", 1.0)])
    [('a', 1.0), ('b', 2.0), ('c', 1.0)]
    """
    found: dict[T, float] = {}
    for one in chain.from_iterable(zip_longest(*lists)):
        if one is not None:
            found.setdefault(one[0], one[1])
    return list(found.items())


def _ranked(scores: dict[T, float]) -> list[tuple[T, float]]:
    return sorted(scores.items(), key=lambda one: (-round(one[1], 6), one[0]))


def _best_facts(facts: dict[tuple[str, str], Fact]) -> list[Fact]:
    return sorted(facts.values(), key=lambda fact: (-round(fact.score, 6), fact.ends))
