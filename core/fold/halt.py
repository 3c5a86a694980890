"""What a halted group says: the policy, the event, what to do next."""

from __future__ import annotations

import traceback

from streamfold.core.events.model import Event


def halt_reason(policy: str, event: Event, error: BaseException, *, step: str) -> str:
    """Say which policy failed at which event, what to do next, and the traceback."""
    name = policy.partition("@")[0]
    text = "".join(traceback.format_exception(error))
    return (
        f"{policy} raised at position {event.seq} in {step} (event {event.id!r} of {event.source!r}, {event.type}): "
        f"{error!r}. It is tried again with a growing pause. What to do: look at the event with `streamfold trace "
        f"{event.id}`; fix the policy and restart; or leave this one event out with `streamfold policies skip {name} "
        f'{event.id} --reason "..."`.\n{text[-4000:]}'
    )
