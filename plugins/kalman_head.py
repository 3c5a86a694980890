"""Policy ``kalman_head``: classify by weights that drift, followed by a Kalman filter (arXiv:2306.08448).

It remembers what ``label_statistics`` remembers, rows of labels, and answers as it does; another thing is made of them:
the filters of ``_kalman.py``, over the labels in order of their times. Newer labels count for more, by how many came
since, and how much more is learned: the γ that predicted best of late.

The rows are the state, not the filters. A covariance of d = 384 has 1.2 MB for each γ, which every commit that holds a
label would write; and a filter cannot take a label back, so the rows are needed for that in any case. Who is forgotten,
or corrects a label, leaves nothing: the serving side filters again without it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from streamfold.core import ConfigError, View
from streamfold.plugins._budget import MAX_BYTES
from streamfold.plugins._filtered import FilteredState
from streamfold.plugins._head_quality import RowsServer
from streamfold.plugins._heads import HeadsServer
from streamfold.plugins._settings import within
from streamfold.plugins.label_statistics import SHARED_BOUNDS, LabelStatistics


@dataclass(frozen=True, slots=True, kw_only=True)
class KalmanHeadConfig:
    """How weights drift, and bounds; past a bound events wait and the policy says so.

    Parameters
    ----------
    gammas : how much of the weights remains after a label, one filter for each; which is right is learned.
    weight_variance : σ_w², of the weights where nothing is known; for features of about unit variance (those of texts
        are scaled to it).
    noise : σ², of a label.
    prior_weight : κ, how many labels the name of a class counts for, at the time when it was given.
    max_labels, max_classes : of all heads together.
    max_bytes, wait_s, max_waiting, arms : as of ``label_statistics``.
    """

    gammas: tuple[float, ...] = (0.997, 0.999, 0.9997)
    weight_variance: float = 0.003
    noise: float = 0.3
    prior_weight: float = 1.0
    max_labels: int = 1_000_000
    max_classes: int = 10_000
    max_bytes: int = MAX_BYTES
    wait_s: float = 86_400.0
    max_waiting: int = 10_000
    arms: str = ""
    read_out: ClassVar[str] = "kalman"

    def __post_init__(self) -> None:
        if not 1 <= len(set(self.gammas)) == len(self.gammas) <= 8 or not all(0.5 <= g <= 0.99999 for g in self.gammas):
            raise ConfigError(f"kalman_head: gammas is {self.gammas}: 1 to 8 different numbers in 0.5…0.99999")
        within(
            "kalman_head", self,
            weight_variance=(1e-9, 1e6), noise=(1e-6, 1e6), prior_weight=(1e-6, 1e6), max_labels=(1, 2**40),
            max_classes=(1, 2**40), **SHARED_BOUNDS,
        )  # fmt: skip


class KalmanHead(LabelStatistics):
    """Labelled rows, over which Kalman filters run."""

    name = "kalman_head"
    version = 1
    Config = KalmanHeadConfig

    def serve(self, view: View) -> HeadsServer:
        """Classify from the view."""
        return RowsServer(self.config, view, FilteredState)
