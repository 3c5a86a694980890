"""What a candidate costs beside what is live: how long it takes to answer, and to fold an event.

Both are timed when the gate is asked. Answers in turns, so what else the machine does meanwhile is in both, and the
middle of several rounds counts; what seems too slow is timed again, as a busy machine slows one of the two by chance.
Folds of a hundred recent events, in turns too, the best of each. What is live is all that the candidate would replace:
for folds their sum; for answers, member by member, whoever is live under that name.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from statistics import median
from typing import NamedTuple

from streamfold.core.classifying import Classifier, ClassifyRequest, Target, WrongTarget
from streamfold.core.fold.estimate import seconds_per_event
from streamfold.core.gate import GateLimits
from streamfold.core.hooks import GateRule
from streamfold.core.recommending import Catalogue, Ranker, RankRequest, user_key
from streamfold.core.views import GroupView, WorkspaceView

_ATTEMPTS, _ROUNDS, _CALLS, _FOLDS = 3, 5, 20, 3
_CANDIDATES = 100
_REMEMBERED_S = 15.0
_FLOOR_S = 0.005
"""A candidate that answers within so long is fast enough whatever live takes."""
Ask = Callable[[], object]


class GateCosts:
    """Times candidates for one serving process, one at a time, in a thread of its own, and remembers for some seconds:
    many may look, and what answers users waits for none of it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(1, "gate-costs")
        self._found: dict[tuple[str, ...], tuple[float, Future[list[GateRule]]]] = {}

    def rules(
        self, view: WorkspaceView, candidate: GroupView, live: Sequence[GroupView], limits: GateLimits
    ) -> Future[list[GateRule]]:
        """What the rules about time say, some time later; who asks meanwhile gets the same future."""
        key = view.name, *(group.group.name for group in (candidate, *live))
        with self._lock:
            self._found = {key: one for key, one in self._found.items() if _holds(*one)}
            if key not in self._found:
                self._found[key] = time.monotonic(), self._pool.submit(_cost_rules, view, candidate, live, limits)
            return self._found[key][1]

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def _holds(asked_at: float, found: Future[list[GateRule]]) -> bool:
    """Whether what was asked for then answers today's question."""
    if not found.done():
        return True
    return not found.cancelled() and found.exception() is None and time.monotonic() - asked_at < _REMEMBERED_S


def _cost_rules(
    view: WorkspaceView, candidate: GroupView, live: Sequence[GroupView], limits: GateLimits
) -> list[GateRule]:
    """Time both. A second or so; the groups are held for one answer at a time."""
    return [*_answering(view, candidate, live, limits), *_folding(view, candidate, live, limits)]


class _Question(NamedTuple):
    """What a member of a group is asked."""

    name: str
    group: GroupView
    ask: Ask


def _answering(
    view: WorkspaceView, candidate: GroupView, live: Sequence[GroupView], limits: GateLimits
) -> list[GateRule]:
    """Hold each member that answers against what is live under its name; a new name against the slowest that is live.

    The rule is about the one that comes out worst.
    """
    mine = _questions(view, candidate)
    theirs = [one for group in live for one in _questions(view, group)]
    if not mine or not theirs:
        return []
    for _ in range(_ATTEMPTS):
        took = _slowest(view, [*mine, *theirs])
        before = list(zip(theirs, took[len(mine) :], strict=True))
        found = []
        for one, took_s in zip(mine, took, strict=False):
            same = [s for other, s in before if other.name == one.name] or [s for _, s in before]
            found.append((took_s, max(same), one.name))
        worst = max(found, key=lambda one: one[0] / _limit(limits, one[1]))
        if worst[0] <= _limit(limits, worst[1]):
            break
    took_s, live_s, name = worst
    of = f"{name}: " if len(mine) > 1 else ""
    return [
        GateRule(
            rule="p99", passed=took_s <= _limit(limits, live_s), value=took_s * 1000,
            limit=_limit(limits, live_s) * 1000,
            detail=f"{of}ms for an answer (slowest of {_CALLS}, median of {_ROUNDS} rounds); live {live_s * 1000:.1f}",
        )
    ]  # fmt: skip


def _limit(limits: GateLimits, live_s: float) -> float:
    return max(limits.p99_ratio * live_s, _FLOOR_S)


def _slowest(view: WorkspaceView, questions: Sequence[_Question]) -> list[float]:
    """The slowest of some calls of each, the middle of several rounds; call by call in turns."""
    slowest: list[list[float]] = [[] for _ in questions]
    for _ in range(_ROUNDS):
        took = [[_timed(view, one) for one in questions] for _ in range(_CALLS)]
        for rounds, calls in zip(slowest, zip(*took, strict=True), strict=True):
            rounds.append(max(calls))
    return [median(rounds) for rounds in slowest]


def _timed(view: WorkspaceView, question: _Question) -> float:
    with view.reading([question.group]):
        started = time.perf_counter()
        question.ask()
        return time.perf_counter() - started


def _questions(view: WorkspaceView, group: GroupView) -> list[_Question]:
    """A typical question to each member that answers: to rank the first items for the first user, or to classify a
    text."""
    with view.reading([group]):
        catalogue = next((one.server for one in group.members.values() if one.serves(Catalogue)), None)
        found = {
            name: _to_rank(member.server, catalogue) if member.serves(Ranker) else _to_classify(member.server)
            for name, member in group.members.items()
            if member.serves(Ranker) or member.serves(Classifier)
        }
    return [_Question(name, group, ask) for name, ask in found.items() if ask is not None]


def _to_rank(ranker: Ranker, catalogue: Catalogue | None) -> Ask | None:
    items = [] if catalogue is None else catalogue.item_page(after="", limit=_CANDIDATES)
    if catalogue is None or not items:
        return None
    users = catalogue.user_page(after="", limit=1)
    user = user_key(users[0].user_id if users else None, None)
    return partial(ranker.rank, RankRequest(user=user, item_ids=[one.item_id for one in items]))


def _to_classify(head: Classifier) -> Ask | None:
    for name in head.heads():
        asked = ClassifyRequest(head=name, targets=[Target(text="a text like any other")])
        try:
            head.classify(asked)
        except WrongTarget:
            continue  # it is of features
        return partial(head.classify, asked)
    return None


def _folding(
    view: WorkspaceView, candidate: GroupView, live: Sequence[GroupView], limits: GateLimits
) -> list[GateRule]:
    """An event of the candidate against one of each that it would replace, together."""
    took: dict[str, list[float]] = {}
    for _ in range(_FOLDS):
        for one in (candidate, *live):
            if (seconds := seconds_per_event(view.context, view.name, one.group)) is not None:
                took.setdefault(one.group.name, []).append(seconds)
    mine = min(took.pop(candidate.group.name, ()), default=None)
    theirs = sum(map(min, took.values()))
    if mine is None or not theirs:
        return []
    return [
        GateRule(
            rule="cost", passed=mine <= limits.cost_ratio * theirs, value=mine / theirs, limit=limits.cost_ratio,
            detail=f"times what live takes to fold an event: {mine * 1e6:,.0f} µs against {theirs * 1e6:,.0f}",
        )
    ]  # fmt: skip
