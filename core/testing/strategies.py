"""Event strategies for hypothesis, which need not be installed for the rest of the kit.

>>> from hypothesis import given
>>> from streamfold.core.testing.strategies import streams
>>> @given(events=streams(["interaction.observed", "item.deleted"]))
... def test_any_stream(events): ...
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from streamfold.core.events import EventType, EventTypes, builtin_types
from streamfold.core.testing.streams import Given, Maker

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy


def _strategies() -> Any:
    try:
        from hypothesis import strategies
    except ImportError as error:
        raise ImportError(
            "streamfold.core.testing.strategies needs hypothesis: pip install hypothesis (the checks themselves do not)"
        ) from error
    return strategies


def _types(extra: Iterable[EventType]) -> EventTypes:
    return EventTypes([*builtin_types(), *extra])


def event_data(type_: str, *, event_types: Iterable[EventType] = (), odd: bool = False) -> SearchStrategy[Any]:
    """Strategy: data that an event type accepts; ``odd``: at the edges of what it allows."""
    st, types = _strategies(), _types(event_types)
    found: SearchStrategy[Any] = st.randoms(use_true_random=False).map(
        lambda random: Maker(types, random, odd=odd).data(type_)
    )
    return found


def streams(
    handles: Sequence[str], *, event_types: Iterable[EventType] = (), max_size: int = 30, odd: bool = False
) -> SearchStrategy[list[Given]]:
    """Strategy: lists of events ``(type, data)``, as ``World.send_many`` takes them.

    Parameters
    ----------
    handles : event types to draw from, as a policy's ``handles``.
    event_types : types of plugins.
    odd : values at the edges.
    """
    st, types = _strategies(), _types(event_types)

    def made(names: list[str], random: Random) -> list[Given]:
        maker = Maker(types, random, odd=odd)
        return [(name, maker.data(name)) for name in names]

    names = st.lists(st.sampled_from(sorted(handles)), max_size=max_size)
    found: SearchStrategy[list[Given]] = st.builds(made, names, st.randoms(use_true_random=False))
    return found
