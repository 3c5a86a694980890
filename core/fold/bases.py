"""Weights are averaged over a shared base only: the same backends, features, layers and start.

A candidate brings a copy of what it averages its weights with, so what is averaged is of one group. What is live under
that name may be of another base by then: the average is then none with what is live, and taking over would undo the
change. Not so where the settings declare both: they are changed together, and what is live makes way.
"""

from __future__ import annotations

from streamfold.core.context import Context, Group, Runtime, backend_identities
from streamfold.core.errors import ConfigError, WrongBase
from streamfold.core.ledger.abc import Instance


def other_bases(context: Context, workspace: str, group: Group) -> list[str]:
    """Say where a group averages weights with those of another base, be it in its own copy or in what is live."""
    if not any(runtime.policy.averages_with for runtime in group.runtimes):
        return []
    own = {runtime.instance.name: runtime.instance for runtime in group.runtimes}
    live = {row.name: row for row in context.ledger.instances(workspace) if row.slot == "live"}
    sides = [("its copy of", own), *([] if context.declares(group) else [("the live", live)])]
    found = []
    for runtime in group.runtimes:
        for name in runtime.policy.averages_with:
            for what, rows in sides:
                if name in rows and (why := _differs(context, runtime, rows[name])):
                    found.append(f"{runtime.instance.name} averages its weights with {what} {name}: {why}")
    return found


def _differs(context: Context, runtime: Runtime, other: Instance) -> str | None:
    mine, theirs = backend_identities(runtime.instance), backend_identities(other)
    for kind in sorted(mine.keys() & theirs.keys()):
        if mine[kind] != theirs[kind]:
            return f"another {kind} ({theirs[kind]} beside {mine[kind]})"
    try:
        runtime.policy.check_reads({other.name: context.registry.make_policy(other.use, other.config)})
    except WrongBase as error:
        return str(error)
    except ConfigError:
        return f"{other.name} is a {other.use} now"
    return None
