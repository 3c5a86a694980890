"""Policy ``drift``: watches the errors that live heads and rankers make, and raises an alarm when they change.

What a head said is in the exposures of its answers, what was right comes later, as ``label.observed`` with the
``exposure_id`` or as a correction; the two make an error of 0 or 1, of the score that was served, from before the head
knew the label. The errors of each policy and head go through the detectors of ``_detectors.py``. An alarm becomes a
``drift.detected`` event, a line in the log of the service and a count in its metrics; weights it changes never.

Of answers about several targets the exposure does not tell which label was whose: these are passed over.

Of a ranker the numbers are the log losses that a ``quality`` policy (named by ``quality``) notes: of scores from before
the outcome was learned. They are read at the next event, as ``quality`` folds after those who read it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import msgspec

from streamfold.core import LEARNED_FROM, Alarm, ConfigError, Event, LossReport, Policy, Stores, Table, View
from streamfold.plugins._detectors import Adwin, Cusum, PageHinkley
from streamfold.plugins._labels import label_name
from streamfold.plugins._settings import within

DETECTORS = ("adwin", "page_hinkley", "cusum")
_NO_HEADS = ("corrections", "head_arms")


@dataclass(frozen=True, slots=True, kw_only=True)
class DriftConfig:
    """Who watches, and bounds; past a bound what was written longest ago goes.

    Parameters
    ----------
    detectors : of ``adwin``, ``page_hinkley``, ``cusum`` (of rising errors alone).
    quality : the ``quality`` policy whose ranker is watched too; empty: none.
    max_answers : that may still be labelled. max_heads, max_alarms : that are kept.
    """

    detectors: tuple[str, ...] = ("adwin", "page_hinkley")
    quality: str = ""
    max_answers: int = 50_000
    max_heads: int = 1000
    max_alarms: int = 1000

    def __post_init__(self) -> None:
        if not self.detectors or set(self.detectors) - set(DETECTORS):
            raise ConfigError(f"drift: detectors is {self.detectors}: some of {', '.join(DETECTORS)}")
        within("drift", self, **dict.fromkeys(("max_answers", "max_heads", "max_alarms"), (1, 10_000_000)))


class Answer(msgspec.Struct, frozen=True, array_like=True):
    """What was said: by whom, of which head."""

    policy: str
    head: str
    label: str


class Watched(msgspec.Struct):
    """The detectors of one policy and head."""

    adwin: Adwin = msgspec.field(default_factory=Adwin)
    page_hinkley: PageHinkley = msgspec.field(default_factory=PageHinkley)
    cusum: Cusum = msgspec.field(default_factory=Cusum)


class Drift(Policy):
    """Detectors over errors of heads and of a ranker."""

    name = "drift"
    version = 1
    handles: ClassVar[tuple[str, ...]] = ("exposure.recorded", "label.observed", "feedback.given")
    Config = DriftConfig

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        c: DriftConfig = self.config
        self.stores = (
            Table("answers", key=str, value=Answer, max_rows=c.max_answers),
            Table("watched", key=str, value=Watched, max_rows=c.max_heads),
            Table("alarms", key=str, value=Alarm, max_rows=c.max_alarms),
        )
        if c.quality:
            self.reads = (c.quality,)
            self.handles = tuple(dict.fromkeys((*type(self).handles, *LEARNED_FROM)))  # type: ignore[misc]  # of this one
            self.stores = (*self.stores, Table("seen", key=str, value=int, max_rows=1))

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        """Keep what was said, or hold it against what was right."""
        if self.config.quality:
            self._watch_ranker(event, stores)
        data = event.data
        if event.type == "exposure.recorded":
            first = [one.label for one in data.items if one.rank == 1 and one.label is not None]
            head = (data.context or {}).get("head")
            if data.kind == "classify" and len(first) == 1 and isinstance(head, str):
                stores["answers"].put(data.exposure_id, Answer(_who(data.policies or {}), head, first[0]))
            return
        if event.type == "interaction.observed":
            return
        label = data.label if event.type == "label.observed" else data.correction
        said: Answer | None = stores["answers"].get(data.exposure_id) if data.exposure_id is not None else None
        if said is None or label is None or data.head != said.head:
            return
        wrong = float(label_name(label) != said.label)
        stores["answers"].delete(data.exposure_id)
        self._watch(said.policy, said.head, [(event.seq, wrong)], event, stores)

    def _watch_ranker(self, event: Event, stores: Stores) -> None:
        """Take the losses that were noted since the last event."""
        report = stores.of(self.config.quality).server
        if not isinstance(report, LossReport):
            raise ConfigError(
                f"drift: quality is {self.config.quality!r}, which notes no losses: name a quality policy"
            )
        seen: int = stores["seen"].get("examples", 0)
        count, losses = report.losses(seen)
        if losses:
            stores["seen"].put("examples", count)
            self._watch(report.ranker, "log_loss", losses, event, stores)

    def _watch(self, policy: str, what: str, values: Sequence[tuple[int, float]], event: Event, stores: Stores) -> None:
        """Pass values, each with its position, through the detectors."""
        key = f"{policy}\0{what}"
        watched = copy.deepcopy(stores["watched"].get(key) or Watched())
        for position, value in values:
            for name in self.config.detectors:
                if (fired := getattr(watched, name).update(value)) is not None:
                    detector, at_us = f"{name}:{what}", event.recorded_us
                    alarm = Alarm(policy, detector, fired.statistic, fired.threshold, position, at_us)
                    stores["alarms"].put(f"{position}:{detector}", alarm)
        stores["watched"].put(key, watched)

    def serve(self, view: View) -> Alarms:
        """Tell the alarms from the view."""
        return Alarms(view)


class Alarms:
    """A ``Watcher`` over the view."""

    def __init__(self, view: View) -> None:
        self._view = view

    def alarms(self) -> list[Alarm]:
        """Oldest first."""
        return sorted((row for _, row in self._view["alarms"].items()), key=lambda one: (one.at_position, one.detector))


def _who(policies: dict[str, str]) -> str:
    """Name who answered; what looks on in a head's group is no head."""
    named = [f"{name}@{version}" for name, version in sorted(policies.items()) if name not in _NO_HEADS]
    return "+".join(named)[:256] or "unknown"
