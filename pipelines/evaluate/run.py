"""Test-then-train: every method scores what is tested with the state from before it, then the event is folded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from streamfold.core import Catalogue, Example, Ranker, RankRequest
from streamfold.core.events.model import Event
from streamfold.core.quality import first_of, ndcg_of_one
from streamfold.pipelines.evaluate.baselines import Baseline
from streamfold.pipelines.evaluate.examples import Exposure, Slices, TestSet
from streamfold.pipelines.evaluate.metrics import Codes, Flags, Floats
from streamfold.pipelines.evaluate.stack import PolicyFailed, Stack

MOST_EXPOSURES = 2000
"""So many of the exposures with logged propensities are estimated on; of more, a sample."""
ITEM_EVENTS = ("item.upserted", "item.patched")
"""Events that name an item which may be there to be shown."""


class Method(Protocol):
    """What scores pairs, and learns from examples (policies learn by folding)."""

    name: str
    kind: str
    predicts: bool

    def score(self, example: Example) -> float: ...
    def rank(self, user: str, items: Sequence[str], at_us: int) -> Floats: ...
    def learn(self, example: Example) -> None: ...


class PolicyMethod:
    """A policy's ranker."""

    kind, predicts = "policy", True

    def __init__(self, name: str, ranker: Ranker) -> None:
        self.name = name
        self._ranker = ranker

    def score(self, example: Example) -> float:
        return float(self._checked(self._ranker.score(example), (), f"{example.item!r} for {example.user!r}"))

    def rank(self, user: str, items: Sequence[str], at_us: int) -> Floats:
        found = self._ranker.rank(RankRequest(user=user, item_ids=items, at_us=at_us)).scores
        return self._checked(found, (len(items),), f"{len(items)} items for {user!r}")

    def _checked(self, found: Any, shape: tuple[int, ...], what: str) -> Floats:
        scores = np.asarray(found, np.float64)
        if scores.shape != shape or not np.isfinite(scores).all():
            raise PolicyFailed(f"policy {self.name!r} scored {what} with {found!r}: a finite number for each is needed")
        return scores

    def learn(self, example: Example) -> None:
        pass


class BaselineMethod:
    """A baseline."""

    kind = "baseline"

    def __init__(self, baseline: Baseline) -> None:
        self.name, self.predicts = baseline.name, baseline.predicts
        self._baseline = baseline

    def score(self, example: Example) -> float:
        return float(self._baseline.rank(example.user, (example.item,))[0])

    def rank(self, user: str, items: Sequence[str], at_us: int) -> Floats:
        return self._baseline.rank(user, items)

    def learn(self, example: Example) -> None:
        self._baseline.learn(example)


@dataclass(slots=True, kw_only=True)
class Slot:
    """A place of an exposure whose propensity was logged, and what came of it."""

    exposure: Exposure
    place: int
    reward: float


@dataclass(slots=True, kw_only=True)
class Scores:
    """What a method gave: ``(n,)`` each, ``nan`` where it was not asked.

    ``single``: at the example's own time. ``together``: at that of its session or exposure. ``ndcg``: of the sample.
    ``chosen predicted expected``: ``(slots,)``, see :func:`~streamfold.pipelines.evaluate.offpolicy.estimate`.
    """

    name: str
    kind: str
    predicts: bool
    single: Floats
    together: Floats
    ndcg: Floats
    listed: set[str] = field(default_factory=set)
    chosen: Floats = field(default_factory=lambda: np.empty(0))
    predicted: Floats = field(default_factory=lambda: np.empty(0))
    expected: Floats = field(default_factory=lambda: np.empty(0))


@dataclass(slots=True, kw_only=True)
class _Step:
    """What is scored before an event is folded."""

    alone: list[int] = field(default_factory=list)
    together: list[int] = field(default_factory=list)
    sample: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Plan:
    """Which examples are tested, and what is scored when."""

    test: TestSet
    tested: Flags
    sample: Codes
    """Positives whose place among all unseen items is measured."""
    slots: list[Slot]
    steps: dict[int, _Step]
    members: dict[int, list[int]]
    """Tested examples of a group that is scored together."""


def plan(test: TestSet, about: Slices, tested: Flags, *, sample: int, seed: int) -> Plan:
    """Decide what is scored when: only what a measure needs."""
    labels, group = test.labels, test.group
    steps: dict[int, _Step] = {}

    def at(seq: int) -> _Step:
        return steps.setdefault(seq, _Step())

    positives = np.bincount(group[tested], weights=labels[tested], minlength=len(test.groups))
    counts = np.bincount(group[tested], minlength=len(test.groups))
    mixed = (positives > 0) & (positives < counts)
    members: dict[int, list[int]] = {}
    for i in np.flatnonzero(tested).tolist():
        one = test.groups[group[i]]
        if one.exposure is None:
            at(test.examples[i].seq).alone.append(i)
        if one.exposure is not None or mixed[group[i]]:
            members.setdefault(int(group[i]), []).append(i)
    for g in members:
        at(test.groups[g].seq).together.append(g)
    rng = np.random.default_rng([seed, 1])
    fitting = np.flatnonzero(tested & (labels > 0) & ~about.met_before)
    chosen = np.sort(rng.choice(fitting, min(sample, len(fitting)), replace=False)) if sample else fitting[:0]
    for i in chosen.tolist():
        one = test.groups[group[i]]
        at(test.examples[i].seq if one.exposure is None else one.seq).sample.append(i)
    slots = _slots(test, members, rng)
    for s, slot in enumerate(slots):
        at(slot.exposure.seq).slots.append(s)
    return Plan(test=test, tested=tested, sample=chosen, slots=slots, steps=steps, members=members)


def _slots(test: TestSet, members: dict[int, list[int]], rng: np.random.Generator) -> list[Slot]:
    labels = test.labels
    shown = [(g, one) for g in members if (one := test.groups[g].exposure) is not None]
    shown = [(g, one) for g, one in shown if any(p is not None for p in one.propensities)]
    if len(shown) > MOST_EXPOSURES:
        shown = [shown[i] for i in np.sort(rng.choice(len(shown), MOST_EXPOSURES, replace=False)).tolist()]
    slots = []
    for g, exposure in shown:
        reward = {test.examples[i].item: float(labels[i]) for i in members[g]}
        for place, (item, propensity) in enumerate(zip(exposure.items, exposure.propensities, strict=True)):
            if propensity is not None and item in reward:
                slots.append(Slot(exposure=exposure, place=place, reward=reward[item]))
    return slots


def run(
    stack: Stack,
    plan: Plan,
    methods: Sequence[Method],
    catalogue: str,
    events: Iterable[Event],
    progress: Callable[[], None] = lambda: None,
) -> tuple[list[Scores], int]:
    """Fold the events and score on the way; returns the scores, and how many items there are at the end."""
    scoring = _Scoring(plan, methods, stack.servers[catalogue])
    learned = iter(plan.test.learned)
    ahead = next(learned, None)
    for event in events:
        step = plan.steps.get(event.seq)
        if step is not None:
            scoring.score(step, event.recorded_us)
        stack.fold(event)
        if event.type in ITEM_EVENTS:
            scoring.items[event.subject.id] = None
        while ahead is not None and ahead.seq == event.seq:
            scoring.learn(ahead)
            ahead = next(learned, None)
        progress()
    return scoring.scores, len(scoring.listed())


class _Scoring:
    """The methods, the items that there are, and whom each was met by."""

    def __init__(self, plan: Plan, methods: Sequence[Method], catalogue: Catalogue) -> None:
        n, self._plan, self._methods, self._catalogue = len(plan.test), plan, methods, catalogue
        self._now_us = 0
        self.items: dict[str, None] = {}
        self._met: dict[str, set[str]] = {}

        def empty(size: int) -> Floats:
            return np.full(size, np.nan)

        self.scores = [
            Scores(
                name=m.name, kind=m.kind, predicts=m.predicts, single=empty(n), together=empty(n), ndcg=empty(n),
                chosen=empty(len(plan.slots)), predicted=empty(len(plan.slots)), expected=empty(len(plan.slots)),
            )
            for m in methods
        ]  # fmt: skip

    def listed(self) -> list[str]:
        """What could be shown: items that there are and that nothing keeps from being shown."""
        items = list(self.items)
        shown = self._catalogue.listed(items, self._now_us) if items else ()
        return [item for item, may in zip(items, shown, strict=True) if may]

    def learn(self, example: Example) -> None:
        for method in self._methods:
            method.learn(example)
        self.items.setdefault(example.item)
        self._met.setdefault(example.user, set()).add(example.item)

    def score(self, step: _Step, now_us: int) -> None:
        self._now_us = now_us
        for i in step.alone:
            example = self._plan.test.examples[i]
            for method, scores in zip(self._methods, self.scores, strict=True):
                scores.single[i] = method.score(example)
        for g in step.together:
            self._together(g)
        for i in step.sample:
            self._among_all(i)
        if step.slots:
            self._slots(step.slots)

    def _together(self, g: int) -> None:
        """Score the members of a session or an exposure in one batch."""
        test, members = self._plan.test, self._plan.members[g]
        one = test.groups[g]
        place: dict[str, int] = {}
        at = [place.setdefault(test.examples[i].item, len(place)) for i in members]
        for method, scores in zip(self._methods, self.scores, strict=True):
            found = method.rank(one.user, list(place), one.at_us)[at]
            scores.together[members] = found
            if one.exposure is not None:
                scores.single[members] = found

    def _unseen(self, user: str, also: Iterable[str]) -> list[str]:
        """What could be shown to a user: every item that was not met yet, and those named."""
        met, first = self._met.get(user, ()), list(dict.fromkeys(also))
        there = {*first}
        return first + [item for item in self.listed() if item not in met and item not in there]

    def _among_all(self, i: int) -> None:
        example = self._plan.test.examples[i]
        one = self._plan.test.groups[self._plan.test.group_of(i)]
        at_us = example.at_us if one.exposure is None else one.at_us
        items = self._unseen(example.user, (example.item,))
        for method, scores in zip(self._methods, self.scores, strict=True):
            found = method.rank(example.user, items, at_us)
            scores.ndcg[i] = ndcg_of_one(float(found[0]), found[1:])
            scores.listed.update(items[j] for j in first_of(found))

    def _slots(self, slots: Sequence[int]) -> None:
        """What each method would have put at the places of an exposure, given what stands above them."""
        exposure = self._plan.slots[slots[0]].exposure
        items = self._unseen(exposure.user, exposure.items)
        for method, scores in zip(self._methods, self.scores, strict=True):
            found = method.rank(exposure.user, items, exposure.at_us)
            where: dict[str, Any] = {item: j for j, item in enumerate(items[: len(exposure.items)])}
            open_ = np.ones(len(items), bool)
            before = 0
            for s in slots:
                place = self._plan.slots[s].place
                for item in exposure.items[before:place]:
                    open_[where[item]] = False
                before = place
                mine = where[exposure.items[place]]
                left = found[open_]
                top = left.max()
                scores.chosen[s] = (found[mine] == top) / np.count_nonzero(left == top)
                scores.predicted[s], scores.expected[s] = found[mine], top
