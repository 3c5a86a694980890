"""What a candidate costs beside what is live: how long it takes to answer, and to fold an event.

Both are timed when the gate is asked. Answers in turns, so what else the machine does meanwhile is in both, and the
middle of several rounds counts; what seems too slow is timed again, as a busy machine slows one of the two by chance.
Folds of a hundred recent events, in turns too, the best of each.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from statistics import median

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
        self._found: dict[tuple[str, str, str], tuple[float, Future[list[GateRule]]]] = {}

    def rules(
        self, view: WorkspaceView, candidate: GroupView, live: GroupView, limits: GateLimits
    ) -> Future[list[GateRule]]:
        """What the rules about time say, some time later; who asks meanwhile gets the same future."""
        key = view.name, candidate.group.name, live.group.name
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


def _cost_rules(view: WorkspaceView, candidate: GroupView, live: GroupView, limits: GateLimits) -> list[GateRule]:
    """Time both. Some tenths of a second; the groups are held for one answer at a time."""
    return [*_answering(view, candidate, live, limits), *_folding(view, candidate, live, limits)]


def _answering(view: WorkspaceView, candidate: GroupView, live: GroupView, limits: GateLimits) -> list[GateRule]:
    groups = candidate, live
    asks = [ask for ask in (_question(view, one) for one in groups) if ask is not None]
    if len(asks) < len(groups):
        return []
    for _ in range(_ATTEMPTS):
        mine, theirs = _slowest(view, groups, asks)
        limit = max(limits.p99_ratio * theirs, _FLOOR_S)
        if mine <= limit:
            break
    return [
        GateRule(
            rule="p99", passed=mine <= limit, value=mine * 1000, limit=limit * 1000,
            detail=f"ms for an answer (slowest of {_CALLS}, median of {_ROUNDS} rounds); live {theirs * 1000:.1f}",
        )
    ]  # fmt: skip


def _slowest(view: WorkspaceView, groups: Sequence[GroupView], asks: Sequence[Ask]) -> list[float]:
    """The slowest of some calls of each, the middle of several rounds; call by call in turns."""
    slowest: list[list[float]] = [[] for _ in groups]
    for _ in range(_ROUNDS):
        took = [[_timed(view, group, ask) for group, ask in zip(groups, asks, strict=True)] for _ in range(_CALLS)]
        for rounds, calls in zip(slowest, zip(*took, strict=True), strict=True):
            rounds.append(max(calls))
    return [median(rounds) for rounds in slowest]


def _timed(view: WorkspaceView, group: GroupView, ask: Ask) -> float:
    with view.reading([group]):
        started = time.perf_counter()
        ask()
        return time.perf_counter() - started


def _question(view: WorkspaceView, group: GroupView) -> Ask | None:
    """A typical question to a group: to rank the first items for the first user, or to classify a text."""
    servers = [member.server for member in group.members.values()]
    with view.reading([group]):
        for ranker in (one for one in servers if isinstance(one, Ranker)):
            catalogue = next((one for one in servers if isinstance(one, Catalogue)), None)
            items = catalogue.item_page(after="", limit=_CANDIDATES) if catalogue is not None else []
            if catalogue is not None and items:
                users = catalogue.user_page(after="", limit=1)
                request = RankRequest(
                    user=user_key(users[0].user_id if users else None, None), item_ids=[one.item_id for one in items]
                )
                return lambda ranker=ranker: ranker.rank(request)  # type: ignore[misc]  # mypy: binds the loop's value
        for head in (one for one in servers if isinstance(one, Classifier)):
            for name in head.heads():
                asked = ClassifyRequest(head=name, targets=[Target(text="a text like any other")])
                try:
                    head.classify(asked)
                except WrongTarget:
                    continue  # it is of features
                return lambda head=head, asked=asked: head.classify(asked)  # type: ignore[misc]
    return None


def _folding(view: WorkspaceView, candidate: GroupView, live: GroupView, limits: GateLimits) -> list[GateRule]:
    took: list[list[float]] = [[], []]
    for _ in range(_FOLDS):
        for side, one in zip(took, (candidate, live), strict=True):
            side += [s for s in [seconds_per_event(view.context, view.name, one.group)] if s is not None]
    mine, theirs = (min(side, default=None) for side in took)
    if mine is None or not theirs:
        return []
    return [
        GateRule(
            rule="cost", passed=mine <= limits.cost_ratio * theirs, value=mine / theirs, limit=limits.cost_ratio,
            detail=f"times what live takes to fold an event: {mine * 1e6:,.0f} µs against {theirs * 1e6:,.0f}",
        )
    ]  # fmt: skip
