"""An example plugin: how long people stay with an item.

One file with all that a plugin can bring: a policy (``dwell``), an event type (``page.dwelled``) and a Kafka decoder
(``pipe``: lines ``item|user|seconds``). Enable it in ``streamfold.toml``::

    plugins = ["dwell"]

    [policies.dwell]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from streamfold.core import (
    Candidates,
    CloudEvent,
    Event,
    EventError,
    EventType,
    InvalidEvent,
    KafkaRecord,
    Policy,
    Prepared,
    Stores,
    Subject,
    Table,
    View,
    hookimpl,
)


class PageDwelled(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Data of ``page.dwelled``: a user stayed ``seconds`` with an item."""

    item_id: str
    user_id: str
    seconds: float


class Dwell(Policy):
    """Mean seconds per item, longest first."""

    name = "dwell"
    version = 1
    handles = ("interaction.observed", "page.dwelled", "item.deleted")
    stores = (
        Table("total", key=str, value=tuple[float, int], max_rows=100_000),
        Table("mean", key=str, value=float, max_rows=100_000),
    )

    def fold(self, event: Event, prepared: Prepared, stores: Stores) -> None:
        data = event.data
        if event.type == "item.deleted":
            stores["total"].delete(data.item_id)
            stores["mean"].delete(data.item_id)
            return
        if event.type == "page.dwelled":
            seconds = data.seconds
        elif data.action == "view" and data.value is not None:
            seconds = data.value
        else:
            return
        if not 0 <= seconds <= 86_400:
            raise EventError(f"a dwell time of {seconds:g} s is not within 0 s and one day")
        total, count = stores["total"].get(data.item_id, (0.0, 0))
        stores["total"].put(data.item_id, (total + seconds, count + 1))
        stores["mean"].put(data.item_id, (total + seconds) / (count + 1))

    def serve(self, view: View) -> Candidates:
        return Candidates(lambda request: view["mean"].top(request.n))


def decode_pipe(record: KafkaRecord, mapping: Any) -> CloudEvent:
    """Decode ``item|user|seconds``; the record's place is the event's id."""
    fields = (record.value or b"").decode("utf-8", "replace").split("|")
    try:
        item_id, user_id, seconds = fields[0], fields[1], float(fields[2])
    except (IndexError, ValueError):
        raise InvalidEvent("malformed", "a record must read item|user|seconds, as 7|ann|12.5") from None
    data = PageDwelled(item_id=item_id, user_id=user_id, seconds=seconds)
    return CloudEvent(
        specversion="1.0",
        id=record.place,
        source=f"kafka:{record.topic}",
        type="page.dwelled",
        data=msgspec.Raw(msgspec.json.encode(data)),
    )


@hookimpl
def register_policies() -> list[type[Policy]]:
    return [Dwell]


@hookimpl
def register_event_types() -> list[EventType]:
    def subjects(data: PageDwelled) -> tuple[Subject, ...]:
        return (Subject("user", data.user_id), Subject("item", data.item_id))

    return [EventType(name="page.dwelled", data=PageDwelled, subjects=subjects, doc="A user stayed with an item.")]


@hookimpl
def register_decoders() -> Mapping[str, Callable[..., Any]]:
    return {"pipe": decode_pipe}
