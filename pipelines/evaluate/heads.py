"""Test-then-train of heads: labels are scored in blocks by the state from before the block, then folded.

A block ends after so many labels (solving a head for each would take longer than everything else), or as many as its
head had before (so a new head has blocks of 1, 1, 2, 4, …), and before a class is declared or a label whose target was
written in it; so what is labelled is known whenever it could have been.

Each policy is folded alone, with what it reads: what it costs is what its labels take, embedding texts apart.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from streamfold.core import Classifier, ClassifyRequest, Prediction, Subject, WrongTarget
from streamfold.core.events.model import Event
from streamfold.pipelines.evaluate.labels import CLASS_EVENTS, LABEL, LabelSet
from streamfold.pipelines.evaluate.metrics import Floats
from streamfold.pipelines.evaluate.stack import PolicyFailed, Stack

_MOST_EVENTS = 1024
"""A block of anything ends here: what is prepared for it is held."""


@dataclass(slots=True, kw_only=True)
class Cost:
    """What a policy took: CPU seconds for labels that it folded and was asked about, and what it holds."""

    folded: int = 0
    fold_s: float = 0.0
    asked: int = 0
    ask_s: float = 0.0
    blocks: int = 0
    skipped: int = 0
    state_bytes: int = 0


@dataclass(slots=True, kw_only=True)
class Answers:
    """What a method said of each label, ``(n,)``; ``nan`` where it was not asked or could not tell.

    ``chance``: the probability of the right class (0: the class was not there yet). ``sure``: that of the likeliest,
    ``right``: whether it was the right one.
    """

    name: str
    kind: str
    chance: Floats
    sure: Floats
    right: Floats
    predicts: bool = True
    cost: Cost | None = None

    @classmethod
    def of(cls, name: str, kind: str, size: int, *, predicts: bool = True) -> Answers:
        """None yet."""
        chance, sure, right = np.full((3, size), np.nan)
        return cls(name=name, kind=kind, chance=chance, sure=sure, right=right, predicts=predicts)

    def say(self, index: int, truth: str, chances: dict[str, float]) -> None:
        """Note the probabilities of classes, likeliest first."""
        likeliest = max(chances, key=lambda one: chances[one]) if chances else None
        self.chance[index] = chances.get(truth, 0.0)
        self.sure[index] = chances[likeliest] if likeliest is not None else 0.0
        self.right[index] = likeliest == truth


def run(
    stack: Stack,
    name: str,
    test: LabelSet,
    tested: Sequence[int],
    events: Iterable[Event],
    *,
    block: int,
    progress: Callable[[], None] = lambda: None,
) -> Answers:
    """Fold the events in one policy's stack and ask it on the way; ``tested``: places in ``test.labels``."""
    asking = _Asking(stack, name, test, tested)
    for events_of_block in blocks(events, block):
        asking.close(events_of_block)
        for _ in events_of_block:
            progress()
    return asking.done()


def blocks(events: Iterable[Event], most: int) -> Iterator[list[Event]]:
    """Cut a stream into what is scored by one state each."""
    before: Counter[str] = Counter()
    pending = _Block(most)
    for event in events:
        if pending.ends_before(event):
            before.update(pending.labels)
            yield pending.events
            pending = _Block(most)
        pending.add(event)
        if pending.full(event, before):
            before.update(pending.labels)
            yield pending.events
            pending = _Block(most)
    yield pending.events


@dataclass(slots=True)
class _Block:
    """Events that are scored by one state; ``labels``: how many of each head."""

    most: int
    events: list[Event] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)
    _written: set[Subject] = field(default_factory=set)

    def ends_before(self, event: Event) -> bool:
        return event.type in CLASS_EVENTS or (event.type == LABEL and event.subject in self._written)

    def add(self, event: Event) -> None:
        self.events.append(event)
        if event.type == LABEL:
            self.labels[event.data.head] += 1
        else:
            self._written.add(event.subject)

    def full(self, event: Event, before: Mapping[str, int]) -> bool:
        """Whether the event is the block's last one; ``before``: labels of heads in blocks before."""
        if event.type != LABEL:
            return len(self.events) >= _MOST_EVENTS
        head = event.data.head
        return self.labels.total() >= self.most or self.labels[head] >= max(1, before[head])


class _Asking:
    """One policy."""

    def __init__(self, stack: Stack, name: str, test: LabelSet, tested: Sequence[int]) -> None:
        self._stack, self._server, self._test = stack, stack.classifier(name), test
        self._at = {test.labels[index].seq: index for index in tested}
        self._cost = Cost()
        self._answers = Answers.of(name, "policy", len(test.labels))

    def close(self, events: Sequence[Event]) -> None:
        """Score the labels of a block, then fold it."""
        self._stack.prepare(events)
        by_head: dict[str, list[int]] = {}
        for event in events:
            if event.type == LABEL and event.seq in self._at:
                by_head.setdefault(event.data.head, []).append(self._at[event.seq])
        for head, indices in by_head.items():
            self._ask(head, indices)
        for event in events:
            started = time.process_time()
            self._stack.fold(event)
            if event.type == LABEL:
                self._cost.fold_s += time.process_time() - started
                self._cost.folded += 1

    def _ask(self, head: str, indices: list[int]) -> None:
        labels = self._test.labels
        if not self._server.heads().get(head):
            return
        started = time.process_time()
        said = answered(self._server, self._answers.name, head, indices, self._request)
        self._cost.ask_s += time.process_time() - started
        self._cost.asked += len(indices)
        self._cost.blocks += 1
        for index, prediction in said:
            chances: dict[str, float] = {}
            for one in prediction.labels:
                read_as = self._test.read_as(head, one.label)
                if read_as is not None:
                    chances[read_as] = chances.get(read_as, 0.0) + float(one.score)
            if not np.isfinite(list(chances.values())).all():
                raise PolicyFailed(f"policy {self._answers.name!r} said {prediction.labels!r:.200}: not finite")
            self._answers.say(index, labels[index].truth, chances)

    def _request(self, head: str, indices: Sequence[int]) -> ClassifyRequest:
        targets = [self._test.labels[index].target for index in indices]
        return ClassifyRequest(head=head, targets=targets, top_k=len(self._test.classes[head]))

    def done(self) -> Answers:
        self._cost.skipped = self._stack.skipped
        self._cost.state_bytes = self._stack.state_bytes()
        self._answers.cost = self._cost
        return self._answers


def answered(
    server: Classifier,
    name: str,
    head: str,
    indices: Sequence[int],
    request: Callable[[str, Sequence[int]], ClassifyRequest],
) -> list[tuple[int, Prediction]]:
    """Ask about all labels that the policy can say something of."""
    left = list(indices)
    while left:
        try:
            return list(zip(left, server.classify(request(head, left)), strict=True))
        except WrongTarget as error:
            del left[error.index]
        except Exception as error:
            raise PolicyFailed(f"policy {name!r} failed to classify by head {head!r}: {error!r}") from error
    return []


def baselines(test: LabelSet, tested: Sequence[int]) -> list[Answers]:
    """What knows nothing of targets: ``class shares`` so far, and ``last label`` (the no-change classifier)."""
    size = len(test.labels)
    shares = Answers.of("class shares", "baseline", size)
    last = Answers.of("last label", "baseline", size, predicts=False)
    counts: dict[str, dict[str, int]] = {}
    before: dict[str, str] = {}
    asked = set(tested)
    for index, label in enumerate(test.labels):
        seen = counts.setdefault(label.head, {})
        if index in asked and seen:
            total = sum(seen.values())
            shares.say(index, label.truth, {name: count / total for name, count in seen.items()})
            last.say(index, label.truth, {before[label.head]: 1.0})
        seen[label.truth] = seen.get(label.truth, 0) + 1
        before[label.head] = label.truth
    return [shares, last]
