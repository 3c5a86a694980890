"""The whole graph, listed: which names and relations there are, and what is said of each, for pages and exports."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from streamfold.core import Retrieval, ScoredEntity, ScoredRelation, View
from streamfold.plugins._facts import Facts
from streamfold.plugins._passages import Passages

Matches = Callable[[Mapping[str, Any]], bool]


def names(view: View) -> list[tuple[str, int]]:
    """Return every entity and how often chunks name it; what stands in titles alone is left out: O(nodes)."""
    on = _facts(view, None).on
    graph, canonical, is_name = on.graph, on.who.canonical, on.is_name
    found: Counter[str] = Counter()
    for node in graph.nodes():
        if type(node) is str and node[:2] == "e:" and is_name(node[2:]) and (count := graph.count_ids(node)):
            found[canonical(node[2:])] += count
    return list(found.items())


def entities(view: View, entity_ids: Sequence[str], matches: Matches | None) -> list[ScoredEntity]:
    """Describe entities; the score is in how many chunks they stand."""
    facts = _facts(view, matches)
    found = []
    for key in entity_ids:
        if chunk_ids := facts.chunk_ids_of(key):
            described = facts.entity(key, float(len(chunk_ids)))
            found.append(dataclasses.replace(described, chunk_ids=chunk_ids))
    return found


def labels(view: View, entity_ids: Sequence[str], matches: Matches | None) -> list[str]:
    """Return the names as they are written."""
    facts = _facts(view, matches)
    return [name for key in entity_ids if (name := facts.written(key)) is not None]


def pairs(view: View) -> list[tuple[str, str]]:
    """Return which entities are related: O(nodes)."""
    on = _facts(view, None).on
    canonical, is_name = on.who.canonical, on.is_name
    found: dict[tuple[str, str], None] = {}
    for node in on.graph.nodes():
        if type(node) is str and node[:2] == "r:":
            a, _, b = node[2:].partition("\x1f")
            one, other = canonical(a), canonical(b)
            if one != other and is_name(a) and is_name(b):
                found[min(one, other), max(one, other)] = None
    return list(found)


def relations(view: View, pairs: Sequence[tuple[str, str]], matches: Matches | None) -> list[ScoredRelation]:
    """Describe relations; the score is how many chunks support them."""
    facts = _facts(view, matches)
    found = []
    for ends in pairs:
        fact = facts.between(ends)
        if fact is not None:
            fact.score = float(len(fact.slots))
            found.append(facts.relation(fact))
    return found


def _facts(view: View, matches: Matches | None) -> Facts:
    return Facts(Passages.of(view, Retrieval(query="", sources=("bm25",), matches=matches)))
