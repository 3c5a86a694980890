"""Answer an alarm about a policy, once: a refreshed candidate beside it, or the same folded afresh in its place.

Whoever answers, and however often: an alarm is answered when the policy has such an instance from after it, so asking
again (after a crash, by another process) returns that one. That nothing changed between the look and the new rows is
held by the revision of the ledger's slots. Nothing is promoted here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, Literal

from streamfold.core.context import Context, Group
from streamfold.core.errors import VersionConflict, nearest
from streamfold.core.fold import versions
from streamfold.core.ledger.abc import Instance

_TRIES = 5


def shadow(
    context: Context,
    workspace: str,
    name: str,
    *,
    since_us: int,
    config: Mapping[str, Any],
    start: Literal["start", "now"],
    rate: int,
    actor: str,
    reason: str,
) -> str:
    """Fold a candidate beside a live policy: its configuration with the changes of ``config``. Returns its group.

    ``since_us``: when the alarm was raised.

    Raises
    ------
    VersionConflict : the policy is not live, has a shadow from before, or would be the same again.
    ConfigError, OutOfReach : as ``versions.plan``.
    """

    def make(live: Instance, revision: int) -> Group:
        values = {**json.loads(live.config)["config"], **config}
        rows = versions.plan(
            context, workspace, name=name, use=live.use, values=values, slot="shadow", start=start, rate=rate
        )
        return versions.add(context, workspace, rows, actor=actor, reason=reason, revision=revision)

    def is_one(row: Instance, live: Instance) -> bool:
        said = json.loads(row.config)["config"]
        return all(said.get(name) == value for name, value in config.items())

    return _once(context, workspace, name, since_us, make, is_one)


def consolidate(context: Context, workspace: str, name: str, *, since_us: int, actor: str, reason: str) -> str:
    """Fold what is live afresh beside it; it takes its place when caught up. Returns the new group.

    Raises
    ------
    VersionConflict : the policy is not live here, or is being changed already. OutOfReach : as ``versions.rebuild``.
    """

    def make(live: Instance, revision: int) -> Group:
        group = next((group for group in context.groups(workspace, fresh=True) if group.name == live.group), None)
        if group is None:
            raise VersionConflict(f"the code of {live.group} is not here")
        return versions.rebuild(context, workspace, group, actor=actor, reason=reason, revision=revision)

    return _once(context, workspace, name, since_us, make, lambda row, live: _what(row) == _what(live))


def _what(row: Instance) -> tuple[int, str]:
    return row.version, row.config_hash


def _once(
    context: Context,
    workspace: str,
    name: str,
    since_us: int,
    make: Callable[[Instance, int], Group],
    is_one: Callable[[Instance, Instance], bool],
) -> str:
    """Make a group, unless one was made since; try again where slots change between the look and the making.

    ``is_one``: whether an instance, beside the live one, is of the kind that is made.
    """
    ledger = context.ledger
    for _ in range(_TRIES):
        revision = ledger.slots_revision(workspace)
        rows = ledger.instances(workspace)
        mine = [row for row in rows if row.name == name]
        live = next((row for row in mine if row.slot == "live"), None)
        if live is None:
            raise VersionConflict(f"policy {name!r} is not live{nearest(name, {r.name for r in rows})}")
        made = [row for row in mine if row.created_us >= since_us and is_one(row, live)]
        if made:
            return max(made, key=lambda row: row.created_us).group
        states = {state.group: state for state in ledger.groups(workspace)}
        beside = [row.group for row in mine if row.slot == "shadow" and not states[row.group].retire_us]
        if beside:
            raise VersionConflict(f"{beside[0]} stands beside it already: promote it or retire it first")
        try:
            return make(live, revision).name
        except VersionConflict:
            if ledger.slots_revision(workspace) == revision:
                raise
    raise VersionConflict(f"policy {name!r}: its slots change again and again")
