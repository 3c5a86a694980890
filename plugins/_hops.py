r"""Passages that answer together: from the best ones over the names in them to others, without a model.

A document's title (or alias) named in another's text is a link, and so is a rare name that two passages share. A
question follows links from its best passages, judging a target by what of the question is not yet covered:

1. :math:`b = BM25/\max`, :math:`d = \max(0, (\cos - m)/(\max - m))`, :math:`z = (b + d)/2 + t` where *t* is the weight
   of the passage's title in the question; :math:`a = z/\max z`; the frontier is the best 8.
2. For each frontier passage *p*: *R* = the question's terms absent from *p* and its path,
   :math:`r(j) = BM25(R, j)/\max`. Title link: :math:`v = a L(p→j)`. Name link over names *t* in n passages,
   2 ≤ n ≤ min(128, max(10, .02 N)), not wholly in the question: :math:`g = 1 - \ln n/\ln N`, :math:`W = \max g`,
   :math:`K = \max .5 g/(n-1)`, :math:`v = a (W (.3 d_j + .7 r_j) + K)`. The best over links and frontier counts.
3. :math:`s_j = \max(s_j, z_j + 1.3 v_j)`; then once more from the 4 best targets with :math:`a = .7 \min(1, v)`.

Cost: the postings of the question's terms, and some vectorised passes over (terms × passages); no stored links.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from streamfold.core import ScoredChunk, best_slots, stem
from streamfold.plugins._names import alias_matches, name_spans, short_name, words
from streamfold.plugins._passages import Passages, Slots, Values
from streamfold.plugins._question import alias_tests

FRONTIER, SECOND = 8, 4
_MOST_CHUNKS = 64
"""Of a linked document, so many compete."""
_MOST_SHARING = 16
"""An alias of more documents says too little to be followed."""
_MOST_HOLDERS = 128
"""A name in more passages than this says too little to be followed, however many passages there are."""

Route = tuple[tuple[int, str], ...]
"""How a passage was reached: (passage, the name that led on from it), one for each hop."""


@dataclass(frozen=True, slots=True)
class _Title:
    """The documents of an alias that it means to the same degree, with their passages.

    Attributes
    ----------
    short : the passages of those that have one.
    long : (document, its passages) of those that have more.
    """

    key: str
    weight: float
    short: Slots
    long: list[tuple[str, Slots]]


@dataclass(slots=True)
class _Links:
    """What links of a frontier lead to: for each the target, what it is worth, from which passage (row), by what name.

    Links of a row stand in the order in which they count: of equal ones the first speaks for its target.
    """

    slots: list[Slots] = field(default_factory=list)
    values: list[Values] = field(default_factory=list)
    rows: list[Slots] = field(default_factory=list)
    names: list[Slots] = field(default_factory=list)

    def add(self, slots: Slots, values: Values, rows: Slots, names: Slots) -> None:
        self.slots.append(slots)
        self.values.append(values)
        self.rows.append(rows)
        self.names.append(names)

    def best(self, paths: Sequence[Sequence[int]], count: int) -> _Reached:
        """Return each target's best link; none leads back to where it came from. ``count``: how many passages."""
        slots, values = np.concatenate(self.slots), np.concatenate(self.values)
        rows, names = np.concatenate(self.rows), np.concatenate(self.names)
        back = np.array([row * count + slot for row, path in enumerate(paths) for slot in path], np.intp)
        values[np.isin(rows * count + slots, back)] = 0
        top = np.zeros(count, np.float32)
        np.maximum.at(top, slots, values)
        best = np.flatnonzero((values > 0) & (values == top[slots]))
        speaks = np.full(count, -1, np.intp)
        for row in range(len(paths) - 1, -1, -1):  # what is written last stands
            of_row = best[rows[best] == row][::-1]
            speaks[slots[of_row]] = of_row
        found = np.flatnonzero(speaks >= 0)
        best = speaks[found]
        return _Reached(found, values[best], rows[best], names[best])


@dataclass(slots=True)
class _Reached:
    """Targets, ascending, each with its best link: columns as in :class:`_Links`."""

    slots: Slots
    values: Values
    rows: Slots
    names: Slots


@dataclass(slots=True)
class _Uncovered:
    """What of the question is in a passage, and not yet on the way to a frontier passage (row), scaled to 0…1.

    Attributes
    ----------
    absent : ``(rows, terms) float32``: 1 where a term stands in no passage on the way.
    scale : ``(rows,) float32``: 1 over the most that any passage has of it; 0 where nothing is left.
    """

    by_term: Values
    absent: Values
    scale: Values

    @classmethod
    def of(cls, on: Passages, paths: Sequence[Sequence[int]]) -> _Uncovered:
        """Look for the most among the best passages first: others have no more of a part than of the whole."""
        by_term = on.by_term
        absent = np.array([(by_term[:, path] <= 0).all(axis=1) for path in paths], np.float32)
        total = by_term.sum(axis=0)
        pool = best_slots(total, min(len(total), _POOL))
        tops = (absent @ by_term[:, pool]).max(axis=1, initial=0.0)
        if len(pool) < len(total):
            open_ = np.flatnonzero(absent.any(axis=1) & (tops < total[pool].min() * _ROUNDED))
            if len(open_):
                tops[open_] = (absent[open_] @ by_term).max(axis=1)
        return cls(by_term, absent, np.array([1 / top if top > 0 else 0 for top in tops], np.float32))

    def at(self, rows: Slots, slots: Slots) -> Values:
        """The share of each passage in what its row leaves over; ``rows``, ``slots``: ``(n,)``."""
        held = np.einsum("nt,tn->n", self.absent[rows], self.by_term[:, slots])
        found: Values = (held * self.scale[rows]).round(4)
        return found


_POOL = 512
_ROUNDED = 1 + 1e-5
_NOTHING = np.empty(0, np.intp)
_NOWHERE = _Reached(_NOTHING, np.empty(0, np.float32), _NOTHING, _NOTHING)


@dataclass(slots=True)
class Hops:
    """The recipe of this module over one question's passages."""

    on: Passages
    hop_weight: float = 1.3
    _hops: list[tuple[Sequence[tuple[int, Route]], _Reached, npt.NDArray[np.bool_]]] = field(default_factory=list)
    """Frontier, what it reached, and for which of that its links speak."""
    _names: list[str] = field(default_factory=list)
    """All names that led on, by number."""
    _numbers: dict[str, int] = field(default_factory=dict)
    _followed: dict[str, Slots | None] = field(default_factory=dict)
    _titles: dict[str, list[_Title]] = field(default_factory=dict)

    def chunks(self) -> list[ScoredChunk]:
        """Return the best passages."""
        scores = self.scores()
        return [self._shown(slot, float(scores[slot])) for slot in self.on.best(scores, self.on.request.top_k)]

    def _shown(self, slot: int, score: float) -> ScoredChunk:
        route = self.route(slot)
        if route and self.on.z[route[0][0]] < self.on.z[slot]:
            route = ()  # it was found before the passages that lead to it
        path = [{"document_id": self.on.owner(origin) or "", "name": name} for origin, name in route]
        return self.on.shown(slot, score, more=("graph",) if route else (), path=path)

    def route(self, slot: int) -> Route:
        """Return how a passage was reached for which a link speaks."""
        for frontier, reached, raised in reversed(self._hops):
            at = int(np.searchsorted(reached.slots, slot))
            if at < len(raised) and reached.slots[at] == slot and raised[at]:
                return self._route(frontier, reached, at)
        return ()

    def _route(self, frontier: Sequence[tuple[int, Route]], reached: _Reached, at: int) -> Route:
        origin, route = frontier[reached.rows[at]]
        return (*route, (origin, self._names[reached.names[at]]))

    def scores(self) -> Values:
        """Score every passage; ``route`` says afterwards how those were reached for which a link speaks."""
        on = self.on
        self.match_titles()
        z = on.z
        score = z.copy()
        top = float(z.max()) if len(z) else 0.0
        if top <= 0 or not self.hop_weight:
            return score
        first = [(slot, ()) for slot in on.nearest(FRONTIER)]
        reached = self._expand(first, [float(z[slot]) / top for slot, _ in first], score)
        order = np.lexsort((on.ids[reached.slots], -reached.values.astype(np.float64).round(6)))
        there = {slot for slot, _ in first}
        best = [
            at
            for at in order[: 8 * SECOND].tolist()
            if (slot := int(reached.slots[at])) not in there and on.owner(slot) is not None
        ][:SECOND]
        second = [(int(reached.slots[at]), self._route(first, reached, at)) for at in best]
        self._expand(second, [0.7 * min(1.0, float(reached.values[at])) for at in best], score)
        return score

    def match_titles(self) -> None:
        """Weigh the passages whose titles the question names."""
        on = self.on
        for match in on.question.matches:
            for title in self._called_by(match.key):
                for slots in (title.short, *(slots for _, slots in title.long)):
                    on.add_title(slots, title.weight)

    def _expand(self, frontier: Sequence[tuple[int, Route]], strength: Sequence[float], score: Values) -> _Reached:
        """Follow the links of a frontier (passages, with the routes to them): raise ``score`` in place."""
        on = self.on
        if not frontier:
            return _NOWHERE
        paths = [[p, *(slot for slot, _ in route)] for p, route in frontier]
        rest = _Uncovered.of(on, paths)
        links = _Links()
        for row, (p, _) in enumerate(frontier):
            self._titles_from(p, row, strength[row], rest, links)
        self._names_from([p for p, _ in frontier], np.array(strength, np.float32), rest, links)
        if not links.slots:
            return _NOWHERE
        reached = links.best(paths, len(score))
        totals = on.z[reached.slots] + np.float32(self.hop_weight) * reached.values
        raised = totals > score[reached.slots]
        score[reached.slots[raised]] = totals[raised]
        self._hops.append((frontier, reached, raised))
        return reached

    def _number(self, name: str) -> int:
        number = self._numbers.get(name)
        if number is None:
            number = self._numbers[name] = len(self._names)
            self._names.append(name)
        return number

    def _titles_from(self, p: int, row: int, strength: float, rest: _Uncovered, links: _Links) -> None:
        """Add the links of a passage to the documents whose titles it names."""
        owner = self.on.owner(p)
        ends: list[Slots] = []
        weights: list[float] = []
        names: list[int] = []
        for title, factor in self._titles_in(p):
            weight = factor * title.weight
            for document_id, slots in title.long:
                if document_id != owner:
                    left = rest.at(np.full(len(slots), row), slots)
                    some, values = self._chunks_linked(slots, strength * weight, left)
                    links.add(some, values, np.full(len(some), row), np.full(len(some), self._number(title.key)))
            if len(title.short):
                ends.append(title.short)
                weights.append(weight)
                names.append(self._number(title.key))
        if ends:
            lengths = [len(slots) for slots in ends]
            found = np.concatenate(ends)
            values = np.float32(strength) * np.repeat(np.array(weights, np.float32), lengths)
            links.add(found, values, np.full(len(found), row), np.repeat(names, lengths))

    def _chunks_linked(self, slots: Slots, value: float, rest: Values) -> tuple[Slots, Values]:
        """A linked document of several passages: the one that fits best has the whole value."""
        fit = 0.3 * self.on.dense[slots] + 0.7 * rest
        order = np.argsort(-fit, kind="stable")[:_MOST_CHUNKS]
        slots, fit = slots[order], fit[order]
        part = fit / fit[0] if fit[0] > 0 else np.ones(len(fit))
        return slots, (value * part).astype(np.float32)

    def _titles_in(self, p: int) -> Iterator[tuple[_Title, float]]:
        """Yield the titles that a passage names, also by a shorter name of somebody, and how much each counts."""
        on = self.on
        cut = words(on.text(p))
        known, begins = alias_tests(on.view)
        seen = set()
        for match in alias_matches(cut, known, begins):
            rare = not match.first or on.view["text"].document_frequency(stem(match.key)) <= 0.02 * on.count
            if rare:
                seen.add(match.key)
                for title in self._called_by(match.key):
                    yield title, 1.0
        if b"\1\1\1" not in bytes(cut.capital):
            return  # nobody is called by three names in a row
        for span in name_spans(cut):
            short = short_name(span.key) if span.end - span.start >= 3 else None
            if short and span.key not in seen and short not in seen and known(short):
                seen.add(short)
                for title in self._called_by(short):
                    yield title, 0.8

    def _names_from(self, passages: Sequence[int], strength: Values, rest: _Uncovered, links: _Links) -> None:
        """Add the links of passages to others that share a rare name with them."""
        on = self.on
        count = on.count
        if count < 3:
            return
        log_count = math.log(count)
        keys = [[*found.keys(), *self._own_names(p)] if (found := on.extract(p)) else [] for p in passages]
        self._follow(list(dict.fromkeys(key for some in keys for key in some)), count)
        parts: list[Slots] = []
        rarity: list[float] = []
        rows: list[int] = []
        names: list[int] = []
        for row, some in enumerate(keys):
            for key in dict.fromkeys(some):
                slots = self._followed[key]
                if slots is not None:
                    parts.append(slots)
                    rarity.append(1 - math.log(len(slots)) / log_count)
                    rows.append(row)
                    names.append(self._number(key))
        if not parts:
            return
        lengths = np.fromiter(map(len, parts), np.intp, len(parts))
        width = len(on.ids)
        targets, cells = np.unique(np.repeat(rows, lengths) * width + np.concatenate(parts), return_inverse=True)
        g = np.repeat(np.array(rarity, np.float32), lengths)
        best_g, best_k = np.zeros((2, len(targets)), np.float32)
        np.maximum.at(best_g, cells, g)
        np.maximum.at(best_k, cells, 0.5 * g / (np.repeat(lengths, lengths) - 1))
        by = np.zeros(len(targets), np.intp)
        rarest = np.flatnonzero(g == best_g[cells])
        by[cells[rarest]] = np.repeat(names, lengths)[rarest]  # the rarest name speaks for a target
        row_of, slots = np.divmod(targets, width)
        fit = 0.3 * on.dense[slots] + 0.7 * rest.at(row_of, slots)
        links.add(slots, strength[row_of] * (best_g * fit + best_k), row_of, by)

    def _follow(self, keys: Sequence[str], count: int) -> None:
        """Find the passages that share each name, where it says enough: not too many, and not asked about anyway.

        Those are the passages that name an entity, and the first one of each document that is called so.
        """
        on = self.on
        asked, most = set(on.question.words.keys), min(_MOST_HOLDERS, max(10, 0.02 * count))
        new = [key for key in keys if key not in self._followed]
        self._followed.update(dict.fromkeys(new))
        new = [
            key
            for key, mentions in zip(new, on.sources_many("e:", new), strict=True)
            if 2 <= mentions <= 2 * most and not asked.issuperset(key.split(" ")) and on.is_name(key)
        ]
        for key, found in zip(new, on.holders_many(new), strict=True):
            if len(found) <= most:
                firsts = [there[0] for name, w in self._documents(key) if w == 1.0 and (there := on.chunks_of(name))]
                slots = np.unique(np.concatenate([found, np.array(firsts, np.intp)])) if firsts else found
                if 2 <= len(slots) <= most:
                    self._followed[key] = slots

    def _own_names(self, p: int) -> list[str]:
        owner = self.on.owner(p)
        if owner is None:
            return []
        ends, _ = self.on.graph.targets("d:" + owner)
        return [end[2:] for end in ends if isinstance(end, str) and end.startswith("e:")]

    def _called_by(self, key: str) -> list[_Title]:
        """The documents of an alias, by weight; more documents share it → it says less."""
        if key not in self._titles:
            found = self._documents(key) if self.on.sources("a:", key) <= _MOST_SHARING else []
            shared = math.sqrt(len(found)) if found else 1.0
            there = [(w, document, slots) for document, w in found if (slots := self.on.chunks_of(document))]
            self._titles[key] = [
                _Title(
                    key,
                    weight / shared,
                    np.array([slots[0] for w, _, slots in there if w == weight and len(slots) == 1], np.intp),
                    [(name, np.array(slots, np.intp)) for w, name, slots in there if w == weight and len(slots) > 1],
                )
                for weight in sorted({w for w, _, _ in there}, reverse=True)
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
