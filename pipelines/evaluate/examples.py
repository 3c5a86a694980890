"""The test set of a stream: which pairs are tested, when each is scored, and which are compared with each other.

Delayed progressive validation: what was shown is scored at its exposure, with the state from before it, and tested
against what came of it later. An interaction that follows no exposure is scored just before it is learned. A late
positive replaces the negative that stood for it. For the AUC per user the items of one exposure are compared, and those
of one session (interactions of a user with no gap over 24 h), scored with the state from before the session's first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from streamfold.core import Example, user_key
from streamfold.core.clock import US
from streamfold.core.events.model import Event
from streamfold.pipelines.evaluate.metrics import Codes, Flags, Floats
from streamfold.pipelines.evaluate.stack import Stack

GAP_US = 24 * 3600 * US


class Exposure(NamedTuple):
    """What one response showed: items in order, each with the propensity that was logged."""

    seq: int
    user: str
    at_us: int
    items: tuple[str, ...]
    propensities: tuple[float | None, ...]


class Together(NamedTuple):
    """Examples that are compared: those of a session or an exposure, all scored at one state."""

    seq: int
    user: str
    at_us: int
    exposure: Exposure | None


@dataclass(slots=True)
class TestSet:
    """Examples in the order in which they were completed, with arrays beside them.

    ``labels``: the last word on each. ``group``: of ``groups``. ``learned``: every example in order, late positives
    too, for who learns from examples.
    """

    __test__ = False  # no class of tests

    examples: list[Example] = field(default_factory=list)
    learned: list[Example] = field(default_factory=list)
    groups: list[Together] = field(default_factory=list)
    exposures: int = 0
    _labels: list[float] = field(default_factory=list)
    _group: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def labels(self) -> Floats:
        return np.array(self._labels)

    @property
    def group(self) -> Codes:
        return np.array(self._group, np.int64)

    def group_of(self, index: int) -> int:
        return self._group[index]

    def add(self, example: Example, group: int) -> None:
        self.examples.append(example)
        self._labels.append(example.label)
        self._group.append(group)

    def swap(self, index: int, label: float) -> None:
        self._labels[index] = label


def collect(
    stack: Stack, catalogue: str, events: Iterable[Event], progress: Callable[[], None] = lambda: None
) -> TestSet:
    """Fold the policy that makes the examples, alone, and list them. O(events)."""
    found = _Collecting()
    server = stack.servers[catalogue]
    for event in events:
        if event.type == "exposure.recorded":
            found.show(event)
        for example in server.examples(event, event.recorded_us):
            found.take(example)
        stack.fold(event)
        progress()
    return found.set


class _Collecting:
    def __init__(self) -> None:
        self.set = TestSet()
        self._shown: dict[str, int] = {}
        self._index: dict[tuple[str, str], int] = {}
        self._session: dict[str, tuple[int, int]] = {}

    def show(self, event: Event) -> None:
        data = event.data
        if data.kind not in ("recommend", "rank"):
            return
        user = user_key(data.user_id, data.session_id)
        shown = sorted((one for one in data.items if one.item_id is not None), key=lambda one: one.rank)
        exposure = Exposure(
            event.seq, user, event.at_us, tuple(one.item_id for one in shown), tuple(one.propensity for one in shown)
        )
        self._shown.setdefault(data.exposure_id, len(self.set.groups))
        self.set.groups.append(Together(event.seq, user, event.at_us, exposure))
        self.set.exposures += 1

    def take(self, example: Example) -> None:
        self.set.learned.append(example)
        key = example.exposure, example.item
        if example.swaps and key in self._index:
            self.set.swap(self._index[key], example.label)
            return
        group = self._shown.get(example.exposure) if example.exposure else None
        if group is None:
            group = self._session_of(example)
        else:
            self._index[key] = len(self.set)
        self.set.add(example, group)

    def _session_of(self, example: Example) -> int:
        last_us, group = self._session.get(example.user, (0, -1))
        if group < 0 or example.at_us - last_us > GAP_US:
            group = len(self.set.groups)
            self.set.groups.append(Together(example.seq, example.user, example.at_us, None))
        self._session[example.user] = max(last_us, example.at_us), group
        return group


class Slices(NamedTuple):
    """Codes of what each example is about, and what was known of it before."""

    user: Codes
    item: Codes
    user_before: Codes
    item_before: Codes
    met_before: Flags
    decile: Codes

    def of(self, rows: Codes) -> Slices:
        """Those of some examples."""
        return Slices(
            self.user[rows], self.item[rows], self.user_before[rows], self.item_before[rows], self.met_before[rows],
            self.decile[rows],
        )  # fmt: skip


def slices(examples: Sequence[Example]) -> Slices:
    """Code users and items, count what came before, and put items into ten parts of equal mass, rarest first."""
    users, items = dict[str, int](), dict[str, int]()
    user = np.array([users.setdefault(one.user, len(users)) for one in examples], np.int64)
    item = np.array([items.setdefault(one.item, len(items)) for one in examples], np.int64)
    met: set[tuple[int, int]] = set()
    met_before = np.zeros(len(examples), bool)
    for i, pair in enumerate(zip(user.tolist(), item.tolist(), strict=True)):
        met_before[i] = pair in met
        met.add(pair)
    counts = np.bincount(item, minlength=len(items))
    order = np.lexsort((np.arange(len(items)), counts))
    upto = np.cumsum(counts[order])
    part = np.empty(len(items), np.int64)
    part[order] = np.minimum((upto - counts[order] / 2) * 10 // max(1, len(examples)), 9).astype(np.int64)
    return Slices(user, item, _before(user), _before(item), met_before, part[item])


def _before(codes: Codes) -> Codes:
    """How often each code came before."""
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], codes[order])
    before = np.empty(len(codes), np.int64)
    before[order] = np.arange(len(codes)) - starts
    return before
