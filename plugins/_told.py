"""What an extractor told about a chunk, put together with what was found in it offline."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import cache
from typing import Any

from streamfold.plugins._extract import Extract, Told, extract, relation_node
from streamfold.plugins._names import MAX_WORDS, words

_ZERO_S = 2**36
"""Seconds added to a time, so that all times are positive: edges have weights > 0."""
_SCALE = 1e-18
"""Such weights are for order alone: PageRank does not walk along them."""
TOLERANCE = 1 - 2**-20
"""Weights are float32: two times that are nearer than this share one."""


def with_told(text: str, entities: Sequence[Any], relations: Sequence[Any], since_us: int) -> Extract:
    """Return a chunk's extract with what was told of it.

    A relation of two names that was told stands in the place of the sentence that both stand in. Without a time of its
    own it holds since ``since_us``.
    """
    found = extract(text)
    numbers = {key: number for number, key in enumerate(found.keys())}

    @cache  # a name comes with each relation that it is an end of
    def number(name: str) -> int | None:
        shown = " ".join(words(name).shown[:MAX_WORDS])
        if not shown:
            return None
        if shown.lower() not in numbers:
            numbers[shown.lower()] = len(found.names)
            found.names.append(shown)
            found.counts.append(1)
        return numbers[shown.lower()]

    about = [(number(one.name), one.type, one.description or "") for one in entities]
    told: list[Told] = []
    for one in relations:
        source, target = number(one.source), number(one.target)
        if source is None or target is None or source == target:
            continue
        start = since_us if one.valid_from is None else _to_us(one.valid_from)
        end = None if one.valid_to is None else _to_us(one.valid_to)
        told.append(Told(source, target, [k.lower() for k in one.keywords or ()], one.description or "", start, end))
    pairs = {frozenset((one.source, one.target)) for one in told}
    kept = [one for one in found.relations if frozenset(one[:2]) not in pairs]
    return Extract(found.names, found.counts, kept, [(n, t, d) for n, t, d in about if n is not None], told)


def told_edges(one: Extract, single_valued: Iterable[str]) -> dict[str, float]:
    """Return a chunk's edges for what was told: ``t:`` entities, relations, and ``s:`` facts that close others."""
    keys, single = one.keys(), frozenset(single_valued)
    edges = {"t:" + keys[number]: _SCALE for number in {n for n, _, _ in one.about}}
    for told in one.told:
        edges["t:" + keys[told.source]] = edges["t:" + keys[told.target]] = _SCALE
        edges[relation_node(keys[told.source], keys[told.target])] = 1.0
        for keyword in single.intersection(told.keywords):
            node = fact_node(keys[told.source], keyword)
            edges[node] = max(edges.get(node, 0.0), weight(told.from_us))
    return edges


def fact_node(subject: str, keyword: str) -> str:
    """Return the graph's node for what a subject has one of at a time; its sources are the chunks that say it."""
    return f"s:{subject}\x1f{keyword}"


def weight(from_us: int) -> float:
    """Return an edge's weight that grows with time."""
    return max(1.0, from_us / 1e6 + _ZERO_S) * _SCALE


def _to_us(time: datetime) -> int:
    return round(time.timestamp() * 1_000_000)
