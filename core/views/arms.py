"""Who answers a user while a share of the users goes to candidates: groups, and the arms of what they belong to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamfold.core.arms import MILLION, in_share
from streamfold.core.ledger.abc import GroupState
from streamfold.core.quality import ArmName

if TYPE_CHECKING:
    from streamfold.core.views.switch import Serving
    from streamfold.core.views.view import GroupView


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """The arm of one experiment that a user is in. ``candidate`` and ``live`` name stacks (``Group.stack``)."""

    experiment: str
    arm: ArmName
    share: float
    candidate: str
    live: tuple[str, ...]
    weighted: bool
    groups: frozenset[str]
    """The groups that answer in this arm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answering:
    """The groups that answer a user: what is live, with candidates in its place where the user is in their share."""

    groups: frozenset[str]
    arms: tuple[Arm, ...] = ()

    def of(self, used: Iterable[GroupView]) -> tuple[Arm, ...]:
        """The arms that an answer made from these groups belongs to."""
        if not self.arms:
            return ()
        names = {view.group.name for view in used}
        return tuple(arm for arm in self.arms if arm.groups & names)


def answering(
    serving: Serving, states: Sequence[GroupState], views: Mapping[str, GroupView], user_id: str | None
) -> Answering:
    """Choose who answers a user; nobody, or a session alone, gets what is live, outside of all experiments.

    ``states``: of the groups that are given a share. One that this process does not have is left out: all users get
    what is live, and no arm is noted.
    """
    groups, arms = serving.live, []
    for state in states if user_id is not None else ():
        view = views.get(state.group)
        if view is None or state.group in serving.live:
            continue
        replaced = frozenset(one for one in serving.live if serving.policies[one] & view.group.names and one in views)
        if not replaced:
            continue
        assert user_id is not None
        chosen = in_share(state.experiment, state.share_ppm, user_id)
        arms.append(
            Arm(
                experiment=state.experiment,
                arm="candidate" if chosen else "live",
                share=state.share_ppm / MILLION,
                candidate=view.group.stack,
                live=tuple(sorted(views[one].group.stack for one in replaced)),
                weighted=state.weighted,
                groups=frozenset({state.group}) if chosen else replaced,
            )
        )
        if chosen:
            groups = groups - replaced | {state.group}
    return Answering(groups=groups, arms=tuple(arms))
