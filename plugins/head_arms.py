r"""Policy ``head_arms``: what users of each arm of a live A/B got from heads, and how much labels count for either arm.

While a share of the users is answered by a candidate, both arms learn all labels. Which labels come may depend on what
was answered: a desk corrects what is wrong, looks through what was called spam, labels what a head was unsure of. So
each arm learns from what the other one's answers have brought in (interference by training loops, Si 2023,
arXiv:2310.17496). A label that names the exposure of an answer counts for the candidate by :math:`\mathrm{E}[Z \mid X]`
and for the live version by :math:`1 - \mathrm{E}[Z \mid X]` (``_arms.py``), where Z = 1 if the candidate answered and
X is the labelled example: head and label, words of the text or features, the document or the item; never the user, who
decides Z alone. The model learns from each such label after heads have taken its weight. A label that names no answer
came whoever had answered: it counts in full, and in no arm.

What is told of an arm: of the answers about one target, of how many the right label came, and of these how often the
likeliest label was right, and the log loss of the probability that was served. Right is the first label, or correction,
that names the answer. A label that was not among those shown is given what they leave over. A user counts for
``window_s`` from the first answer, once; what comes later does not count. Of answers about several targets nobody knows
whose label is whose: their labels are weighed, and counted as answers alone.

Exposures are written a moment after they are answered, so a label may stand in the log before the answer that it names.
The first such label waits until the answer is there, and is counted then, as of when it was given. It is not weighed:
heads have learned it in full by then, so the model of who brings in what is not told of it. How long it waits is
counted in positions of the log (``_BLOCK``), so a replay does the same.

Heads read this policy (their setting ``arms``) and are folded before it; it needs no vectors, hence prepares nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import takewhile
from typing import Any, ClassVar

import msgspec
import numpy as np

from streamfold.core import (
    ArmName,
    ArmOutcome,
    Batch,
    ConfigError,
    Event,
    NeedsRebuild,
    Policy,
    Stores,
    Subject,
    Table,
    Target,
    View,
    class_name,
    tokens,
)
from streamfold.plugins import _arms
from streamfold.plugins._settings import at_least

MOST_LOSS = 3.0
"""Nats: a worse answer counts as this one, so that a mean of few is bounded."""
_LEAST_WEIGHT = 1e-3
_MOST_WORDS = 32
_MOST_LABEL = 512
"""Characters of a label that waits; heads take no longer ones."""
_BLOCK = 1 << 13
"""A label waits for its answer during the block of so many positions of the log in which it came, and the next one."""
_US = 1_000_000
Read = Callable[[str, str], Any]


class Weighing(msgspec.Struct, frozen=True, array_like=True):
    """How labels of an answer are weighed. ``ours``: this stack is the candidate; ``theirs``: it has answered."""

    experiment: str
    share: float
    ours: bool
    answered: bool


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """What was said of one target, likeliest first; nothing where there were several. ``users``: keys in the arms."""

    head: str
    labels: tuple[tuple[str, float], ...]
    users: tuple[str, ...]
    weighing: Weighing | None
    is_told: bool = False


class ArmUser(msgspec.Struct, frozen=True, array_like=True):
    """What a user of an arm got: answers, those of which the right label came, those that were right, and the loss."""

    experiment: str
    arm: ArmName
    share: float
    first_us: int
    answers: int = 0
    labelled: int = 0
    right: int = 0
    loss: float = 0.0


class Early(msgspec.Struct, frozen=True, array_like=True):
    """The first of the labels that named an answer and a head before the answer was logged; how many there were, and
    the positions of the first and the last."""

    label: str
    at_us: int
    labels: int
    first_seq: int
    seq: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadArmsConfig:
    """How long users count, and bounds; past a bound what was written longest ago goes.

    Parameters
    ----------
    window_s : so long a user counts in an arm, from the first answer.
    max_answers : whose labels may still come. max_users : of arms, that are kept.
    """

    window_s: float = 86_400.0
    max_answers: int = 50_000
    max_users: int = 500_000

    def __post_init__(self) -> None:
        if not 0 < self.window_s < math.inf:
            raise ConfigError(f"head_arms: window_s is {self.window_s}: give a positive number of seconds")
        at_least("head_arms", self, 1, "max_answers", "max_users")


class HeadArms(Policy):
    """Answers of heads in live A/Bs, and what came of them."""

    name = "head_arms"
    version = 2
    handles: ClassVar[tuple[str, ...]] = ("exposure.recorded", "label.observed", "feedback.given")
    Config = HeadArmsConfig

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        c: HeadArmsConfig = self.config
        self.stores = (
            Table("answers", key=str, value=Answer, max_rows=c.max_answers),
            Table("arm_users", key=str, value=ArmUser, max_rows=c.max_users),
            Table("arms_seen", key=str, value=int, max_rows=1),
            _arms.table(),
            Table("early", key=str, value=Early, max_rows=2 * _BLOCK),
        )

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        """Note an answer, or hold it against what was right."""
        if event.type == "exposure.recorded":
            self._answered(event, stores)
            return
        data, label = event.data, _right(event)
        if label is None:
            return
        answer: Answer | None = stores["answers"].get(data.exposure_id)
        if answer is None:
            self._wait(event, label, stores)
        elif data.head == answer.head:
            if event.type == "label.observed" and (by := answer.weighing) is not None:
                _arms.learn(by.share, _features(by.experiment, data), by.answered, _get(stores), _put(stores))
            self._told(data.exposure_id, answer, label, event.at_us, stores)

    def _wait(self, event: Event, label: str, stores: Stores) -> None:
        """Keep a label whose answer is not there, and no longer those of two blocks ago. O(1) each on average."""
        early = stores["early"]
        for key in [key for key, _ in takewhile(lambda one: _block(one[1].seq) < _block(event.seq) - 1, early.items())]:
            early.delete(key)
        key = _early_key(event.data)
        old: Early = early.get(key) or Early(label[:_MOST_LABEL], event.at_us, 0, event.seq, event.seq)
        early.put(key, msgspec.structs.replace(old, labels=old.labels + 1, seq=event.seq))

    def _answered(self, event: Event, stores: Stores) -> None:
        data = event.data
        arms, head = _mine(data, stores.stack), (data.context or {}).get("head")
        if not arms or not isinstance(head, str) or data.exposure_id in stores["answers"]:
            return
        users = []
        for one in arms:
            key = f"{one.experiment}\x1f{one.arm}\x1f{_hash(data.user_id)}"
            old = stores["arm_users"].get(key) or ArmUser(one.experiment, one.arm, one.share, event.at_us)
            if self._is_open(old, event.at_us):
                stores["arm_users"].put(key, msgspec.structs.replace(old, answers=old.answers + 1))
                users.append(key)
        by = _arms.weighing(arms, stores.stack)
        weighing = None
        if by is not None:
            weighing = Weighing(by.experiment, by.share, by.candidate == stores.stack, by.arm == "candidate")
        shown = [(one.label, one.score or 0.0) for one in data.items if one.label is not None]
        is_one = sum(one.rank == 1 for one in data.items) == 1
        answer = Answer(head, tuple(shown) if is_one else (), tuple(users), weighing)
        stores["answers"].put(data.exposure_id, answer)
        stores["arms_seen"].put("us", max(event.at_us, stores["arms_seen"].get("us") or 0))
        early: Early | None = stores["early"].get(f"{data.exposure_id}\x1f{head}")
        if early is not None and _block(early.seq) >= _block(event.seq) - 1:  # whether others came to let it go or not
            self._told(data.exposure_id, answer, early.label, early.at_us, stores)

    def _told(self, exposure_id: str, answer: Answer, label: str, at_us: int, stores: Stores) -> None:
        """Count what was right, once, for a user who still counts when the label was given."""
        if not answer.labels or answer.is_told:
            return
        chances = dict(answer.labels)
        chance = chances.get(label, 1.0 - sum(chances.values()))
        loss = min(MOST_LOSS, -math.log(min(1.0, max(chance, math.exp(-MOST_LOSS)))))
        for key in answer.users:
            old: ArmUser | None = stores["arm_users"].get(key)
            if old is not None and self._is_open(old, at_us):
                right = old.right + (answer.labels[0][0] == label)
                new = msgspec.structs.replace(old, labelled=old.labelled + 1, right=right, loss=old.loss + loss)
                stores["arm_users"].put(key, new)
        stores["answers"].put(exposure_id, msgspec.structs.replace(answer, is_told=True))

    def _is_open(self, user: ArmUser, at_us: int) -> bool:
        closes_us: float = user.first_us + self.config.window_s * _US
        return at_us < closes_us

    def forget(self, subject: Subject, events: Batch, stores: Stores) -> None:
        """What an answer in an arm taught is in the weights of labels after it; of others there is what waits."""
        answers = stores["answers"]
        is_full = len(answers) >= self.config.max_answers  # whose answer has left may have been counted before
        for event, _ in events:
            data = event.data
            left = _mine(data, stores.stack) if event.type == "exposure.recorded" else (
                data.exposure_id is not None and (is_full or data.exposure_id in answers)
            )  # fmt: skip
            if left:
                raise NeedsRebuild(
                    f"labels were weighed by answers about {subject.kind} {subject.id!r}: it is done afresh"
                )
        self._forget_early([event for event, _ in events if event.type != "exposure.recorded"], stores)

    def _forget_early(self, events: Sequence[Event], stores: Stores) -> None:
        """Take out what waits for an answer, where nothing of others went or stayed because of it. O(what waits)."""
        early, mine = stores["early"], Counter[str]()
        for event in events:
            if _right(event) is not None:
                row: Early | None = early.get(key := _early_key(event.data))
                mine[key] += row is not None and row.first_seq <= event.seq
        left = [(key, row) for key, row in early.items() if mine[key] < row.labels]
        if any(mine[key] for key, _ in left):
            raise NeedsRebuild("others have labelled the same answer, which is not there: it is done afresh")
        gone = [key for key, labels in mine.items() if labels]
        newest = max((_block(row.seq) for _, row in early.items()), default=0)
        if gone and newest > 1 and all(_block(row.seq) < newest for _, row in left):
            raise NeedsRebuild("labels of others went when the one to forget came: it is done afresh")
        for key in gone:
            early.delete(key)

    def serve(self, view: View) -> HeadArmsServer:
        """Tell what arms led to, and weights to heads."""
        return HeadArmsServer(self.config, view)


class HeadArmsServer:
    """An ``ArmsReport``; heads ask it what a label counts for."""

    def __init__(self, config: HeadArmsConfig, view: View) -> None:
        self._config, self._view = config, view

    def weight(self, data: Any) -> float:
        """How much a label counts for the stack that this is of, by the labels before it; 1 where no A/B weighs it."""
        if data.exposure_id is None:
            return 1.0
        answer: Answer | None = self._view["answers"].get(data.exposure_id)
        if answer is None or answer.weighing is None or answer.head != data.head or data.label is None:
            return 1.0
        by = answer.weighing
        said = _arms.probability(by.share, _features(by.experiment, data), _get(self._view))
        return max(_LEAST_WEIGHT, said if by.ours else 1.0 - said)

    def arms(self) -> list[ArmOutcome]:
        """What users of each arm got, users in the order in which their windows closed. O(users)."""
        upto_us = (self._view["arms_seen"].get("us") or 0) - self._config.window_s * _US
        return [_outcome(users, upto_us) for users in _arms.by_arm(self._view["arm_users"].items())]


def _outcome(users: Sequence[ArmUser], upto_us: float) -> ArmOutcome:
    first = users[0]
    counted = [one for one in users if one.first_us <= upto_us and one.labelled]
    return ArmOutcome(
        experiment=first.experiment, arm=first.arm, share=first.share, first_us=first.first_us, users=len(users),
        exposures=sum(one.answers for one in users), liked=sum(one.right for one in users),
        values=np.array([one.right / one.labelled for one in counted]),
        labelled=sum(one.labelled for one in users),
        losses=np.array([one.loss / one.labelled for one in counted]) / MOST_LOSS,
        most_loss=MOST_LOSS,
    )  # fmt: skip


def _mine(data: Any, stack: str) -> list[Any]:
    """The arms of an answer of heads that a stack is in, on either side."""
    if data.kind != "classify" or data.user_id is None:
        return []
    return [one for one in data.arms or () if one.candidate == stack or stack in one.live]


def _right(event: Event) -> str | None:
    """What an event says is the right label of an answer that it names; None: nothing."""
    data = event.data
    if event.type == "exposure.recorded" or data.exposure_id is None or data.head is None:
        return None
    if event.type == "feedback.given":
        correction: str | None = data.correction
        return correction
    return class_name(data.label) if data.label is not None and data.weight != 0 else None


def _early_key(data: Any) -> str:
    return f"{data.exposure_id}\x1f{data.head}"


def _block(seq: int) -> int:
    return seq // _BLOCK


def _get(stores: Any) -> Read:
    return lambda table, key: stores[table].get(key)


def _put(stores: Stores) -> Callable[[str, str, Any], None]:
    return lambda table, key, value: stores[table].put(key, value)


def _features(experiment: str, data: Any) -> list[tuple[str, float]]:
    """Of a labelled example: its head, its label, what its target says, and the two together."""
    start, label = f"{experiment}\x1f{data.head}\x1f", class_name(data.label)
    found = [(start, 1.0), (f"{start}y\x1f{label}", 1.0)]
    for name, x in _said(data.target):
        found += [(f"{start}x\x1f{name}", x), (f"{start}xy\x1f{label}\x1f{name}", x)]
    return found


def _said(target: Target) -> list[tuple[str, float]]:
    """What tells targets apart, of length 1."""
    if target.text is not None:
        words = list(dict.fromkeys(tokens(target.text)))[:_MOST_WORDS]
        return [(f"w:{word[:64]}", 1.0 / math.sqrt(len(words))) for word in words]
    if target.features is not None:
        numbers = {n: float(x) for n, x in sorted(target.features.items()) if isinstance(x, int | float) and x}
        length = math.sqrt(sum(x * x for x in numbers.values()))
        return [(f"f:{name}", x / length) for name, x in numbers.items()] if 0 < length < math.inf else []
    id_ = target.document_id or target.item_id
    return [] if id_ is None else [(f"i:{id_}", 1.0)]


def _hash(user_id: str) -> int:
    return int.from_bytes(blake2b(f"u:{user_id}".encode(), digest_size=8).digest(), "big")
