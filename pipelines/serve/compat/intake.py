"""Writing for other services' routes: what their clients send becomes events, all of it or none."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from streamfold.core.errors import InvalidEvent
from streamfold.core.events import CloudEvent, NewEvent
from streamfold.core.events.problems import DECODING_ERRORS
from streamfold.pipelines.peers.rows import Made
from streamfold.pipelines.serve.call import Call
from streamfold.pipelines.serve.problems import Problem, of_invalid

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """What was appended: how many events, of which types, and the last one's position."""

    position: int
    count: int
    types: frozenset[str]


async def log_all(call: Call, made: Callable[[], Sequence[CloudEvent]]) -> Logged:
    """Make events in a thread and append them: all, or none where one is not valid."""
    logged = await call.in_thread(call.service.intake_pool, _append, call, made)
    call.log |= {"events": logged.count, "position": logged.position}
    return logged


def _append(call: Call, made: Callable[[], Sequence[CloudEvent]]) -> Logged:
    service, view = call.service, call.view
    raws = made()
    service.charge_events(view.name, len(raws))
    events: list[NewEvent] = []
    for number, event in enumerate(service.accept(view.name, raws), 1):
        if isinstance(event, InvalidEvent):
            problem = of_invalid(event, strip="/data")
            raise problem if len(raws) == 1 else nth(problem, number)
        events.append(event)
    most, position = service.settings.limits.max_batch_events, 0
    for start in range(0, len(events), most):
        done = service.append(view, events[start : start + most])
        position = max(done.positions, default=position)
    return Logged(position=position, count=len(events), types=frozenset(event.type for event in events))


def nth(problem: Problem, number: int) -> Problem:
    """Say of which row of a request a problem is."""
    return Problem(problem.code, f"row {number}: {problem.detail}", errors=problem.errors)


def make(rows: Iterable[R], maker: Callable[[R], Made]) -> list[Made]:
    """Make an event of each row; what is wrong with one is a problem that names it."""
    made: list[Made] = []
    for number, row in enumerate(rows, 1):
        try:
            made.append(maker(row))
        except (ValueError, RecursionError) as error:
            raise nth(_unreadable(error), number) from error
    return made


def event(made: Made, source: str, *, unique: bool = False) -> CloudEvent:
    """Make a CloudEvent; ``unique``: it counts however often the same is sent."""
    try:
        data = msgspec.Raw(msgspec.json.encode(made.data))
    except (UnicodeEncodeError, RecursionError) as error:
        raise _unreadable(error) from error
    id_ = uuid.uuid4().hex if unique else made.content_id
    return CloudEvent(specversion="1.0", id=id_, source=source, type=made.type, time=made.time, data=data)


def read(body: bytes, kind: type[T]) -> T:
    """Decode JSON of another service's shape."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise Problem("invalid-value", _printable(error)) from error
    except DECODING_ERRORS as error:
        raise Problem("malformed", f"not valid JSON: {_printable(error)}") from error


def _unreadable(error: Exception) -> Problem:
    if isinstance(error, RecursionError):
        return Problem("invalid-value", "a value is nested too deeply")
    if isinstance(error, UnicodeError):
        return Problem("invalid-value", "a text contains a lone surrogate: send valid Unicode")
    return Problem("invalid-value", _printable(error))


def _printable(error: Exception) -> str:
    return str(error)[:300].encode("utf-8", "replace").decode().replace("\0", "\\0")
