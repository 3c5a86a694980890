r"""How much an example of a live A/B counts for each arm, so that arms that learn from one log do not spoil each other.

Each arm learns from what both have shown. But they show different things: a candidate that shows only what it is sure
of profits from what the other one has found out, and the difference that is measured is not the one that there would be
if each were alone. With Z = 1 where the candidate was the one to show, and X what it showed, the candidate's training
weighs an example with :math:`\mathrm{E}[Z \mid X]`, the live one's with :math:`1 - \mathrm{E}[Z \mid X]` (weighted
training, Si 2023, arXiv:2310.17496): then each learns from the distribution of what it shows itself, and where both
show the same nothing is lost but a constant factor. Weights that are not known from X (Z itself: an arm learns from its
own users alone) have the same mean and more variance.

E[Z | X] is a logistic model of the item, its tokens, and both with the user's tokens (each kind averaged), from the
log-odds of the share; never of the user, who decides Z alone. It takes a step of AdaGrad for each item that is shown,
after the weights of that exposure are made, so a weight is made of nothing that comes later, and stays with the
exposure: what comes of it later, and what takes that back, counts alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

from streamfold.core import ArmName, Table

_MOST_USER_TOKENS, _MOST_ITEM_TOKENS = 4, 8
_RATE = 0.5
_LEAST_SHARE = 1e-6
_MOST_ROWS = 1 << 18
Tokens = tuple[str, ...]
Get = Callable[[str, str], Any]
Put = Callable[[str, str, Any], None]
Features = Sequence[tuple[str, float]]
"""Each with how much it applies."""


class OfArm(Protocol):
    """What is kept of a user of an arm."""

    @property
    def experiment(self) -> str: ...
    @property
    def arm(self) -> ArmName: ...
    @property
    def first_us(self) -> int: ...


U = TypeVar("U", bound=OfArm)


class Odds(NamedTuple):
    """What a feature adds to the log-odds of the candidate, and AdaGrad's sum of squares."""

    value: float
    squares: float


def by_arm(users: Iterable[tuple[str, U]]) -> list[list[U]]:
    """The users of each arm, by experiment and arm, in the order in which their windows close. O(users log users)."""
    found: dict[tuple[str, ArmName], list[tuple[int, str, U]]] = {}
    for key, user in users:
        found.setdefault((user.experiment, user.arm), []).append((user.first_us, key, user))
    return [[user for *_, user in sorted(found[arm])] for arm in sorted(found)]


def table() -> Table:
    """Declare what the model remembers."""
    return Table("arm_odds", key=str, value=Odds, max_rows=_MOST_ROWS)


def weights(data: Any, stack: str, told: Sequence[tuple[str, Tokens, Tokens]], get: Get, put: Put) -> tuple[float, ...]:
    """How much each item of an exposure counts for a stack; nothing where all count in full.

    Parameters
    ----------
    data : of the exposure.
    stack : whose training it is.
    told : of each item its id, the user's tokens and its own.
    get, put : read and write rows of a table.
    """
    arm = weighing(data.arms, stack)
    if arm is None:
        return ()
    features = [_features(arm.experiment, *one) for one in told]
    shares = [probability(arm.share, one, get) for one in features]
    for one in features:
        learn(arm.share, one, arm.arm == "candidate", get, put)
    return tuple(said if arm.candidate == stack else 1.0 - said for said in shares)


def weighing(arms: Sequence[Any] | None, stack: str) -> Any | None:
    """The arm of an exposure by which a stack's training is weighed: the stack is one arm of it, and not both (the same
    version and configuration against itself)."""
    return next((one for one in arms or () if one.weighted and (one.candidate == stack) != (stack in one.live)), None)


def _features(experiment: str, item: str, of_user: Tokens, of_item: Tokens) -> list[tuple[str, float]]:
    of_user, of_item = of_user[:_MOST_USER_TOKENS], of_item[:_MOST_ITEM_TOKENS]
    crosses = [f"{g}\x1e{t}" for g in of_item for t in of_user]
    kinds = (("i", (item,)), ("g", of_item), ("it", tuple(f"{item}\x1e{t}" for t in of_user)), ("gt", crosses))
    return [(f"{experiment}\x1f{kind}\x1f{name}", 1.0 / len(names)) for kind, names in kinds for name in names]


def probability(share: float, features: Features, get: Get) -> float:
    """How likely it is that the candidate was the one to show what has these features."""
    share = min(max(share, _LEAST_SHARE), 1.0 - _LEAST_SHARE)  # others that send exposures may say 0 or 1
    z = math.log(share / (1.0 - share))
    for key, x in features:
        row = get("arm_odds", key)
        if row is not None:
            z += row.value * x
    return 1.0 / (1.0 + math.exp(-max(-30.0, min(30.0, z))))


def learn(share: float, features: Features, was_candidate: bool, get: Get, put: Put) -> None:
    """Take a step by who showed it."""
    slope = probability(share, features, get) - was_candidate
    for key, x in features:
        old = get("arm_odds", key) or Odds(0.0, 0.0)
        squares = old.squares + (slope * x) ** 2
        put("arm_odds", key, Odds(old.value - _RATE * slope * x / math.sqrt(1.0 + squares), squares))
