"""The test set of a stream of labels: each target of a head once, when it is labelled first.

What is right is the last word on the target: a later label replaces the earlier, and what was retracted, or weighs
nothing, is not tested. So nobody is asked about what he was told before. Classes that were merged in the end are one,
and labels of a class that was retired are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from streamfold.core import Subject, Target, class_name, merged_into
from streamfold.core.events.model import Event

LABEL = "label.observed"
CLASS_EVENTS = ("class.upserted", "class.merged", "class.retired")


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """A target when it was labelled first; ``truth``: the class that it is held to be in the end."""

    seq: int
    at_us: int
    head: str
    target: Target
    subject: Subject
    truth: str


class Changed(NamedTuple):
    """The last change of a class: its position, what it was merged into, or that it was retired."""

    seq: int
    into: str | None
    retired: bool


@dataclass(slots=True)
class LabelSet:
    """Labels in order of the log, and how classes are read in the end."""

    labels: list[Label] = field(default_factory=list)
    observed: int = 0
    """Label events."""
    classes: dict[str, set[str]] = field(default_factory=dict)
    """By head, every name that a class ever had."""
    _changed: dict[str, dict[str, Changed]] = field(default_factory=dict)
    """By head, what became of classes in the end."""

    def read_as(self, head: str, label: str) -> str | None:
        """The class that a label counts for in the end, after merges; None: it was retired."""
        return merged_into(label, self._changed.get(head, {}))

    def declare(self, event: Event) -> None:
        """Note a class that is merged, retired, or there again."""
        data = event.data
        self.classes.setdefault(data.head, set()).add(data.class_)
        into = data.into if event.type == "class.merged" else None
        change = Changed(event.seq, into, event.type == "class.retired")
        self._changed.setdefault(data.head, {})[data.class_] = change


def collect(events: Iterable[Event], progress: Callable[[], None] = lambda: None) -> LabelSet:
    """List what can be tested. O(events)."""
    found = LabelSet()
    first: dict[tuple[str, Subject], Event] = {}
    last: dict[tuple[str, Subject], str | None] = {}
    for event in events:
        if event.type == LABEL:
            found.observed += 1
            key, data = (event.data.head, event.subject), event.data
            if data.label is not None:
                first.setdefault(key, event)
                found.classes.setdefault(data.head, set()).add(class_name(data.label))
            last[key] = None if data.label is None or data.weight == 0 else class_name(data.label)
        else:
            found.declare(event)
        progress()
    for (head, subject), event in first.items():
        label = last[head, subject]
        truth = None if label is None else found.read_as(head, label)
        if truth is not None:
            one = Label(
                seq=event.seq, at_us=event.at_us, head=head, target=event.data.target, subject=subject, truth=truth
            )
            found.labels.append(one)
    return found
