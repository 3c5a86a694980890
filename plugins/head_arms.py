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

Heads read this policy (their setting ``arms``) and are folded before it; it needs no vectors, hence prepares nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
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
    version = 1
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
        )

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        """Note an answer, or hold it against what was right."""
        if event.type == "exposure.recorded":
            self._answered(event, stores)
            return
        data = event.data
        answer: Answer | None = stores["answers"].get(data.exposure_id) if data.exposure_id is not None else None
        if answer is None or data.head != answer.head:
            return
        if event.type == "label.observed" and data.label is not None and data.weight != 0:
            if (by := answer.weighing) is not None:
                _arms.learn(by.share, _features(by.experiment, data), by.answered, _get(stores), _put(stores))
            self._told(answer, class_name(data.label), event, stores)
        elif event.type == "feedback.given" and data.correction is not None:
            self._told(answer, data.correction, event, stores)

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

    def _told(self, answer: Answer, label: str, event: Event, stores: Stores) -> None:
        """Count what was right, once, for a user who still counts."""
        if not answer.labels or answer.is_told:
            return
        chances = dict(answer.labels)
        chance = chances.get(label, 1.0 - sum(chances.values()))
        loss = min(MOST_LOSS, -math.log(min(1.0, max(chance, math.exp(-MOST_LOSS)))))
        for key in answer.users:
            old: ArmUser | None = stores["arm_users"].get(key)
            if old is not None and self._is_open(old, event.at_us):
                right = old.right + (answer.labels[0][0] == label)
                new = msgspec.structs.replace(old, labelled=old.labelled + 1, right=right, loss=old.loss + loss)
                stores["arm_users"].put(key, new)
        stores["answers"].put(event.data.exposure_id, msgspec.structs.replace(answer, is_told=True))

    def _is_open(self, user: ArmUser, at_us: int) -> bool:
        closes_us: float = user.first_us + self.config.window_s * _US
        return at_us < closes_us

    def forget(self, subject: Subject, events: Batch, stores: Stores) -> None:
        """What an answer in an arm taught is in the weights of labels after it; others have left nothing."""
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
