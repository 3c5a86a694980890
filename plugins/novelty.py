"""Policy ``novelty``: raises an alarm when labelled inputs come that are unlike everything seen before.

Each head's inputs (φ of its labels: texts by the encoder, features as they are, things by what was said of them) go
through an incremental Gaussian mixture (``_igmm.py``). One stray input begins a component and says nothing; when others
have joined it the alarm is raised, once: a new kind of input is there, whatever it is labelled. Heads are not changed.

A policy beside ``drift``, which watches errors, because this one needs vectors: ``drift`` embeds nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from streamfold.core import Alarm, Event, Stores, Table, View
from streamfold.plugins._igmm import MOST_DIM, Limits, projected
from streamfold.plugins._mixture_store import mixture_stores, read_mixture, write_mixture
from streamfold.plugins._of_targets import THINGS, THINGS_STORE, OfTargets
from streamfold.plugins._settings import within
from streamfold.plugins._targets import unpacked
from streamfold.plugins.drift import Alarms


@dataclass(frozen=True, slots=True, kw_only=True)
class NoveltyConfig:
    """What is novel, about whom the alarms are, and bounds.

    Parameters
    ----------
    about : the policy that alarms name: which learns from these labels.
    dim : longer vectors are projected on so many random directions; at most 64. seed : of these.
    chance : share of known inputs that are taken for novel.
    first : inputs of a head that are known, whatever they are. support : inputs that make a novelty an alarm.
    patience : inputs after which a novelty without support is dropped. max_components : of a head.
    max_heads, max_alarms : that are kept; past it what was written longest ago goes.
    """

    about: str = "label_statistics"
    dim: int = 32
    seed: int = 0
    chance: float = 0.001
    first: int = 128
    support: int = 10
    patience: int = 500
    max_components: int = 16
    max_heads: int = 1000
    max_alarms: int = 1000

    def __post_init__(self) -> None:
        within(
            "novelty", self, dim=(1, MOST_DIM), seed=(0, 2**63), chance=(1e-12, 0.5), first=(2, 1000),
            support=(2, 100_000), patience=(1, 10_000_000), max_components=(1, 1000), max_heads=(1, 1_000_000),
            max_alarms=(1, 10_000_000),
        )  # fmt: skip


class Novelty(OfTargets):
    """A mixture of Gaussians over the inputs of each head."""

    name = "novelty"
    version = 1
    handles: ClassVar[tuple[str, ...]] = ("label.observed", *THINGS)
    Config: ClassVar[type] = NoveltyConfig

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        c: NoveltyConfig = self.config
        self._limits = Limits(
            chance=c.chance, first=c.first, support=float(c.support), patience=c.patience, most=c.max_components
        )
        self.stores = (
            *mixture_stores(c.max_heads, c.first, c.max_components),
            Table("alarms", key=str, value=Alarm, max_rows=c.max_alarms),
            THINGS_STORE,
        )

    def text_in(self, event: Event) -> str:
        """Return what a label's target says."""
        is_label = event.type == "label.observed" and event.data.label is not None
        return (event.data.target.text or "") if is_label else ""

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        """Hold an input against what its head has seen."""
        if event.type != "label.observed":
            self.fold_thing(event, prepared, stores)
            return
        data, c = event.data, self.config
        if data.label is None or self.unseen(data.target, stores) is not None:
            return  # a label that waits for its target is no input yet
        space, phi = self._phi(data.target, prepared, stores)
        key = f"{data.head}\0{space}"
        mixture = read_mixture(key, stores)
        fired = mixture.learn(projected(unpacked(phi, space), c.dim, c.seed), self._limits)
        write_mixture(key, mixture, stores, most=c.max_heads)
        if fired is not None:
            alarm = Alarm(c.about, f"igmm:{data.head}", fired.statistic, fired.threshold, event.seq, event.recorded_us)
            stores["alarms"].put(str(event.seq), alarm)

    def serve(self, view: View) -> Alarms:
        """Tell the alarms from the view."""
        return Alarms(view)
