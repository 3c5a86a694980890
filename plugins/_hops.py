r"""Passages that answer together: from the best ones over the names in them to others, without a model.

A document's title (or alias) named in another's text is a link, and so is a rare name that two passages share. A
question follows links from its best passages, judging a target by what of the question is not yet covered:

1. :math:`b = BM25/\max`, :math:`d = \max(0, (\cos - m)/(\max - m))`, :math:`z = (b + d)/2 + t` where *t* is the weight
   of the passage's title in the question; :math:`a = z/\max z`; the frontier is the best 8.
2. For each frontier passage *p*: *R* = the question's terms absent from *p* and its path,
   :math:`r(j) = BM25(R, j)/\max`. Title link: :math:`v = a L(p→j)`. Name link over names *t* in n passages,
   2 ≤ n ≤ max(10, .02 N), not wholly in the question: :math:`g = 1 - \ln n/\ln N`, :math:`W = \max g`,
   :math:`K = \max .5 g/(n-1)`, :math:`v = a (W (.3 d_j + .7 r_j) + K)`. The best over links and frontier counts.
3. :math:`s_j = \max(s_j, z_j + 1.3 v_j)`; then once more from the 4 best targets with :math:`a = .7 \min(1, v)`.

Cost: the postings of the question's terms, and some vectorised passes over (terms × passages); no stored links.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from streamfold.core import ScoredChunk, stem
from streamfold.plugins._names import alias_matches, name_spans, short_name, words
from streamfold.plugins._passages import Passages, Slots, Values
from streamfold.plugins._question import alias_tests

FRONTIER, SECOND = 8, 4
_MOST_CHUNKS = 64
"""Of a linked document, so many compete."""
_MOST_SHARING = 16
"""An alias of more documents says too little to be followed."""
_MOST_HOLDERS = 500
"""A name in more passages than this says too little to be followed, however many passages there are."""

Route = tuple[tuple[int, str], ...]
"""How a passage was reached: (passage, the name that led on from it), one for each hop."""
Titles = list[tuple[str, float, list[str]]]
"""An alias: (key, weight, documents), by weight."""


@dataclass(slots=True)
class Hops:
    """The recipe of this module over one question's passages."""

    on: Passages
    hop_weight: float = 1.3
    routes: dict[int, Route] = field(default_factory=dict)
    _holders: dict[str, Slots] = field(default_factory=dict)
    _titles: dict[str, Titles] = field(default_factory=dict)

    def chunks(self) -> list[ScoredChunk]:
        """Return the best passages."""
        scores = self.scores()
        return [self._shown(slot, float(scores[slot])) for slot in self.on.best(scores, self.on.request.top_k)]

    def _shown(self, slot: int, score: float) -> ScoredChunk:
        route = self.routes.get(slot, ())
        if route and self.on.z[route[0][0]] < self.on.z[slot]:
            route = ()  # it was found before the passages that lead to it
        path = [{"document_id": self.on.owner(origin) or "", "name": name} for origin, name in route]
        return self.on.shown(slot, score, more=("graph",) if route else (), path=path)

    def scores(self) -> Values:
        """Score every passage; ``routes`` says afterwards how those were reached for which a link speaks."""
        on = self.on
        self.match_titles()
        z = on.z
        score = z.copy()
        top = float(z.max()) if len(z) else 0.0
        if top <= 0 or not self.hop_weight:
            return score
        strength = {slot: float(z[slot]) / top for slot in on.best(z, FRONTIER)}
        reached = self._expand(strength, dict.fromkeys(strength, ()), z, score)
        nearest = sorted(reached, key=lambda slot: (-round(reached[slot][0], 6), int(on.ids[slot])))
        best = [slot for slot in nearest[: 8 * SECOND] if slot not in strength and on.owner(slot) is not None][:SECOND]
        second = {slot: 0.7 * min(1.0, reached[slot][0]) for slot in best}
        self._expand(second, {slot: reached[slot][1] for slot in best}, z, score)
        return score

    def match_titles(self) -> None:
        """Weigh the passages whose titles the question names."""
        on = self.on
        for match in on.question.matches:
            for _, weight, documents in self._called_by(match.key):
                for document_id in documents:
                    on.add_title(np.array(on.chunks_of(document_id), np.intp), weight)

    def _expand(
        self, strength: dict[int, float], routes: dict[int, Route], z: Values, score: Values
    ) -> dict[int, tuple[float, Route]]:
        """Follow the links of a frontier: raise ``score`` in place; return the best value and route of each target."""
        on = self.on
        frontier = list(strength)
        if not frontier:
            return {}
        paths = [[p, *(slot for slot, _ in routes[p])] for p in frontier]
        absent = np.array([(on.by_term[:, path] <= 0).all(axis=1) for path in paths], np.float32)
        rest = absent @ on.by_term  # what of the question is not covered on the way, by passage
        tops = rest.max(axis=1, initial=0.0)
        reached: dict[int, tuple[float, Route]] = {}
        for row, p in enumerate(frontier):
            scale = np.float32(1 / tops[row] if tops[row] > 0 else 0)
            for slots, values, names in self._links(p, strength[p], rest[row], scale):
                totals = z[slots] + np.float32(self.hop_weight) * values
                for slot, value, total, name in zip(
                    slots.tolist(), values.tolist(), totals.tolist(), names, strict=True
                ):
                    if value <= 0 or slot in paths[row]:
                        continue
                    if slot not in reached or value > reached[slot][0]:
                        reached[slot] = (value, (*routes[p], (p, name)))
                        if total > score[slot]:
                            score[slot] = total
                            self.routes[slot] = reached[slot][1]
        return reached

    def _links(
        self, p: int, strength: float, rest: Values, scale: np.float32
    ) -> Iterable[tuple[Slots, Values, list[str]]]:
        """Yield (targets, values, names) of a passage's title links and of its name links."""
        on = self.on
        owner = on.owner(p)
        ends: list[int] = []
        weights: list[float] = []
        names: list[str] = []
        for key, weight, documents in self._titles_in(p):
            for document_id in documents:
                if document_id == owner:
                    continue
                slots = on.chunks_of(document_id)
                if len(slots) == 1:
                    ends.append(slots[0])
                    weights.append(weight)
                    names.append(key)
                elif slots:
                    yield self._chunks_linked(np.array(slots, np.intp), strength * weight, key, rest, scale)
        if ends:
            yield np.array(ends, np.intp), np.float32(strength) * np.array(weights, np.float32), names
        yield from self._names_in(p, strength, rest, scale)

    def _chunks_linked(
        self, slots: Slots, value: float, key: str, rest: Values, scale: np.float32
    ) -> tuple[Slots, Values, list[str]]:
        """A linked document of several passages: the one that fits best has the whole value."""
        fit = 0.3 * self.on.dense[slots] + 0.7 * (rest[slots] * scale).round(4)
        order = np.argsort(-fit, kind="stable")[:_MOST_CHUNKS]
        slots, fit = slots[order], fit[order]
        part = fit / fit[0] if fit[0] > 0 else np.ones(len(fit))
        return slots, (value * part).astype(np.float32), [key] * len(slots)

    def _titles_in(self, p: int) -> Iterable[tuple[str, float, list[str]]]:
        """Yield (alias, weight, documents) for the titles that a passage names, also by a shorter name of somebody."""
        on = self.on
        cut = words(on.text(p))
        known, begins = alias_tests(on.view)
        seen = set()
        for match in alias_matches(cut, known, begins):
            rare = not match.first or on.view["text"].document_frequency(stem(match.key)) <= 0.02 * on.count
            if rare:
                seen.add(match.key)
                yield from self._called_by(match.key)
        for span in name_spans(cut):
            short = short_name(span.key)
            if short and span.key not in seen and short not in seen and known(short):
                seen.add(short)
                for key, weight, documents in self._called_by(short):
                    yield key, 0.8 * weight, documents

    def _names_in(
        self, p: int, strength: float, rest: Values, scale: np.float32
    ) -> Iterable[tuple[Slots, Values, list[str]]]:
        on = self.on
        found = on.extract(p)
        count = on.count
        if found is None or count < 3:
            return
        asked = set(on.question.words.keys)
        most, log_count = min(_MOST_HOLDERS, max(10, 0.02 * count)), math.log(count)
        parts: list[Slots] = []
        rarity: list[float] = []
        names: list[str] = []
        for key in dict.fromkeys([*found.keys(), *self._own_names(p)]):
            if not 2 <= on.sources("e:", key) <= 2 * most:
                continue
            if asked.issuperset(key.split(" ")) or not on.is_name(key):
                continue
            slots = self._held(key)
            if 2 <= len(slots) <= most:
                parts.append(slots)
                rarity.append(1 - math.log(len(slots)) / log_count)
                names.append(key)
        if not parts:
            return
        lengths = np.fromiter(map(len, parts), np.intp, len(parts))
        slots, inverse = np.unique(np.concatenate(parts), return_inverse=True)
        g = np.repeat(np.array(rarity, np.float32), lengths)
        best_g, best_k = np.zeros(len(slots), np.float32), np.zeros(len(slots), np.float32)
        np.maximum.at(best_g, inverse, g)
        np.maximum.at(best_k, inverse, 0.5 * g / (np.repeat(lengths, lengths) - 1))
        order = np.argsort(g, kind="stable")
        by = np.zeros(len(slots), np.intp)
        by[inverse[order]] = np.repeat(np.arange(len(parts)), lengths)[order]  # the rarest name speaks for a target
        fit = 0.3 * on.dense[slots] + 0.7 * (rest[slots] * scale).round(4)
        values = np.float32(strength) * (best_g * fit + best_k)
        yield slots, values, [names[i] for i in by.tolist()]

    def _own_names(self, p: int) -> list[str]:
        owner = self.on.owner(p)
        if owner is None:
            return []
        ends, _ = self.on.graph.targets("d:" + owner)
        return [end[2:] for end in ends if isinstance(end, str) and end.startswith("e:")]

    def _held(self, key: str) -> Slots:
        """The passages that name an entity, and the first one of each document that is called so."""
        if key not in self._holders:
            found, chunks_of = self.on.holders(key), self.on.chunks_of
            firsts = [slots[0] for document, w in self._documents(key) if w == 1.0 and (slots := chunks_of(document))]
            self._holders[key] = np.unique(np.concatenate([found, np.array(firsts, np.intp)])) if firsts else found
        return self._holders[key]

    def _called_by(self, key: str) -> Titles:
        """The documents of an alias; more documents share it → it says less."""
        if key not in self._titles:
            found = self._documents(key) if self.on.sources("a:", key) <= _MOST_SHARING else []
            shared = math.sqrt(len(found)) if found else 1.0
            self._titles[key] = [
                (key, weight / shared, [document for document, w in found if w == weight])
                for weight in sorted({w for _, w in found}, reverse=True)
            ]
        return self._titles[key]

    def _documents(self, key: str) -> list[tuple[str, float]]:
        """The documents that are called by an entity's names, with the weight of the alias."""
        graph = self.on.graph
        found: dict[str, float] = {}
        for name in self.on.who.one(key):
            if "a:" + name in graph:
                nodes, weights = graph.sources("a:" + name)
                for node, weight in zip(nodes, weights.tolist(), strict=True):
                    found[node[2:]] = max(weight, found.get(node[2:], 0.0))
        return list(found.items())
