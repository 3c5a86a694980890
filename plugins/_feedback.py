"""What was shown and what came of it: exposures joined with the feedback that follows, late and early included.

An exposure stays open for ``window_s``. Feedback that names it, or its user and item, gives an example with the score
that was served; what got none by then was passed over: a negative example (delayed feedback, Chapelle 2014,
doi:10.1145/2623330.2623634). A positive that comes later still, within ``late_s``, swaps that negative for itself.
Feedback naming an exposure that is not logged yet waits one window for it, then counts as organic. Windows close by the
fold's clock, at the next event that examples come of, a bounded number at each: the cost of an event stays flat.

Everything is computed on an overlay over the tables, so that the same code answers ``examples`` (a pure read, before
the event) and folds (:meth:`Joined.write`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from streamfold.core import Event, Example, Table, user_key
from streamfold.plugins import _arms

SEP = "\x1f"
_MOST_CLOSED = 64
"""So many exposures are closed by one event; the rest by the next ones."""
_OPEN, _NEGATIVE, _POSITIVE = 0, 1, 2
_GONE: Any = object()


class ShownItem(NamedTuple):
    """An item of an exposure: served score, propensity, and what was learned of it so far."""

    item: str
    served: float | None
    propensity: float | None
    state: int


class Shown(msgspec.Struct, frozen=True, array_like=True):
    """An exposure that feedback may still join."""

    user: str
    at_us: int
    items: tuple[ShownItem, ...]
    weights: tuple[float, ...] = ()
    """How much examples of its items count (see ``_arms.py``); empty: in full."""


class Early(msgspec.Struct, frozen=True, array_like=True):
    """Feedback that names an exposure which is not there yet."""

    user: str
    item: str
    label: float
    at_us: int


class Due(msgspec.Struct, frozen=True, array_like=True):
    """Something to do at a time: close an exposure, forget it, or take early feedback as organic."""

    key: str
    due_us: int


_QUEUES = ("closing", "leaving", "waiting")
_ENDS = tuple(f"{queue}.{side}" for queue in _QUEUES for side in ("first", "end"))


def tables(max_exposures: int) -> tuple[Table, ...]:
    """Declare what the join remembers; each is bounded by exposures, ten items each counted."""
    return (
        Table("shown", key=str, value=Shown, max_rows=max_exposures),
        Table("shown_to", key=str, value=str, max_rows=10 * max_exposures),
        Table("early", key=str, value=Early, max_rows=max_exposures),
        *(Table(name, key=int, value=Due, max_rows=max_exposures) for name in _QUEUES),
        Table("ends", key=str, value=int, max_rows=2 * len(_QUEUES)),
        _arms.table(),
    )


class Joined:
    """What one event does to the join: its examples, and the changes of the tables.

    Parameters
    ----------
    stores : tables by name (those of :func:`tables`).
    tokens : user and item → their features.
    """

    def __init__(
        self,
        stores: Any,
        event: Event,
        now_us: int,
        *,
        window_us: int,
        late_us: int,
        label: float | None,
        tokens: Callable[[str, str], tuple[tuple[str, ...], tuple[str, ...]]],
    ) -> None:
        self.examples: list[Example] = []
        self._stores = stores
        self._stack: str = getattr(stores, "stack", "")  # a view that nobody folds has none
        self._event = event
        self._now_us = now_us
        self._window_us, self._late_us = window_us, late_us
        self._tokens = tokens
        self._changed: dict[tuple[str, Any], Any] = {}
        self._close_due()
        data = event.data
        if event.type == "exposure.recorded":
            self._show(data)
        elif label is not None and event.type == "feedback.given":
            self._judge(data, label)
        elif label is not None:
            self._act(data, label)

    def write(self) -> None:
        """Write the changes to the tables."""
        for (table, key), value in self._changed.items():
            if value is _GONE:
                self._stores[table].delete(key)
            else:
                self._stores[table].put(key, value)

    # -- the overlay --------------------------------------------------------------------------------------------------
    def _get(self, table: str, key: Any) -> Any:
        value = self._changed.get((table, key))
        if value is None:
            return self._stores[table].get(key)
        return None if value is _GONE else value

    def _put(self, table: str, key: Any, value: Any) -> None:
        self._changed[table, key] = value

    def _delete(self, table: str, key: Any) -> None:
        self._changed[table, key] = _GONE

    # -- windows ------------------------------------------------------------------------------------------------------
    def _enqueue(self, queue: str, key: str, after_us: int) -> None:
        end = self._get("ends", f"{queue}.end") or 0
        self._put(queue, end, Due(key, self._now_us + after_us))
        self._put("ends", f"{queue}.end", end + 1)

    def _due(self, queue: str, first: int, end: int) -> list[str]:
        """Take what is due from the front of a queue; rows that were evicted are passed over."""
        taken: list[str] = []
        at = first
        while at < end and at - first < _MOST_CLOSED:
            row = self._get(queue, at)
            if row is not None:
                if row.due_us > self._now_us:
                    break
                taken.append(row.key)
                self._delete(queue, at)
            at += 1
        if at > first:
            self._put("ends", f"{queue}.first", at)
        return taken

    def _close_due(self) -> None:
        """Do what is due. It comes first, so the queues' ends are those of the table."""
        ends = self._stores["ends"].get_many(_ENDS, 0)
        for exposure_id in self._due("closing", *ends[0:2]):
            shown = self._get("shown", exposure_id)
            if shown is not None:
                self._close(exposure_id, shown)
        for exposure_id in self._due("leaving", *ends[2:4]):
            shown = self._get("shown", exposure_id)
            for one in shown.items if shown is not None else ():
                key = shown.user + SEP + one.item
                if self._get("shown_to", key) == exposure_id:
                    self._delete("shown_to", key)
            self._delete("shown", exposure_id)
        for key in self._due("waiting", *ends[4:6]):
            early = self._get("early", key)
            if early is not None:
                self._delete("early", key)
                self._learn(early.user, early.item, early.label, early.at_us)

    def _close(self, exposure_id: str, shown: Shown) -> None:
        """What got no feedback was passed over."""
        items = []
        for index, one in enumerate(shown.items):
            if one.state == _OPEN:
                weight = _weight(shown, index)
                self._learn(shown.user, one.item, 0.0, shown.at_us, one, exposure=exposure_id, weight=weight)
                one = one._replace(state=_NEGATIVE)
            items.append(one)
        self._put("shown", exposure_id, msgspec.structs.replace(shown, items=tuple(items)))

    # -- events -------------------------------------------------------------------------------------------------------
    def _show(self, data: Any) -> None:
        """Open an exposure; feedback that came before it joins at once."""
        if data.kind not in ("recommend", "rank") or self._get("shown", data.exposure_id) is not None:
            return
        user = user_key(data.user_id, data.session_id)
        items = {
            one.item_id: ShownItem(one.item_id, one.score, one.propensity, _OPEN)
            for one in data.items
            if one.item_id is not None
        }
        if not items:
            return
        told = [(item, *self._tokens(user, item)) for item in items] if user and data.arms else ()
        weights = _arms.weights(data, self._stack, told, self._get, self._put) if told else ()
        self._put("shown", data.exposure_id, Shown(user, self._event.at_us, tuple(items.values()), weights))
        for item in items if user else ():
            self._put("shown_to", user + SEP + item, data.exposure_id)
        self._enqueue("closing", data.exposure_id, self._window_us)
        self._enqueue("leaving", data.exposure_id, self._window_us + self._late_us)
        for item in items:
            early = self._get("early", data.exposure_id + SEP + item)
            if early is not None:
                self._delete("early", data.exposure_id + SEP + item)
                self._join(data.exposure_id, item, early.label)

    def _judge(self, data: Any, label: float) -> None:
        """Feedback on a response as a whole concerns its item where it has one alone."""
        shown = self._get("shown", data.exposure_id)
        item = data.item_id
        if item is None and shown is not None and len(shown.items) == 1:
            item = shown.items[0].item
        if item is None:
            return
        if shown is None:
            self._wait(data.exposure_id, user_key(data.user_id, None), item, label)
        else:
            self._join(data.exposure_id, item, label)

    def _act(self, data: Any, label: float) -> None:
        user = user_key(data.user_id, data.session_id)
        if data.exposure_id is not None and self._get("shown", data.exposure_id) is None:
            self._wait(data.exposure_id, user, data.item_id, label)
            return
        exposure_id = data.exposure_id or self._get("shown_to", user + SEP + data.item_id)
        if exposure_id is None or not self._join(exposure_id, data.item_id, label):
            self._learn(user, data.item_id, label, self._event.at_us)

    def _wait(self, exposure_id: str, user: str, item: str, label: float) -> None:
        key = exposure_id + SEP + item
        if user and self._get("early", key) is None:
            self._put("early", key, Early(user, item, label, self._event.at_us))
            self._enqueue("waiting", key, self._window_us)

    def _join(self, exposure_id: str, item: str, label: float) -> bool:
        """Learn what an exposure led to; False: it is gone, or did not show the item."""
        shown = self._get("shown", exposure_id)
        found = [i for i, one in enumerate(shown.items) if one.item == item] if shown is not None else []
        if not found:
            return False
        index = found[0]
        one = shown.items[index]
        state = _POSITIVE if label > 0 else _NEGATIVE
        if one.state == state or one.state == _POSITIVE:
            return True  # said already; and who liked it may well leave it later
        user = shown.user or user_key(getattr(self._event.data, "user_id", None), None)
        if user:
            swaps, weight = one.state == _NEGATIVE, _weight(shown, index)
            self._learn(user, item, label, shown.at_us, one, swaps=swaps, exposure=exposure_id, weight=weight)
        items = (*shown.items[:index], one._replace(state=state), *shown.items[index + 1 :])
        self._put("shown", exposure_id, msgspec.structs.replace(shown, items=items))
        return True

    def _learn(
        self,
        user: str,
        item: str,
        label: float,
        at_us: int,
        shown: ShownItem | None = None,
        *,
        swaps: bool = False,
        exposure: str = "",
        weight: float = 1.0,
    ) -> None:
        if not user:
            return
        user_tokens, item_tokens = self._tokens(user, item)
        self.examples.append(
            Example(
                self._event.seq, len(self.examples), user, item, label, at_us, user_tokens, item_tokens,
                None if shown is None else shown.served, None if shown is None else shown.propensity, swaps, exposure,
                weight,
            )
        )  # fmt: skip


def _weight(shown: Shown, index: int) -> float:
    return shown.weights[index] if shown.weights else 1.0


def labels(positive: tuple[str, ...], negative: tuple[str, ...]) -> Mapping[str, float]:
    """Map actions to labels."""
    return dict.fromkeys(negative, 0.0) | dict.fromkeys(positive, 1.0)
