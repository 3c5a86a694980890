"""Averages of a gradient head's weights over its own checkpoints, kept up lazily: only rows that change are touched.

After every ``every``-th step of a head there is a checkpoint of its weights. An average is over checkpoints of one
base, by construction: it lies beside the weights in the same instance's stores, begins anew with a class, and no other
instance's weights reach it. It is never trained on, so what is served is immutable between checkpoints.

========= ============================================================================================================
``ema``   ``a ← d a + (1 − d) W`` at each checkpoint (temporal ensembling, Laine and Aila 2016, arXiv:1610.02242)
``swa``   the mean of all checkpoints (Izmailov et al. 2018, arXiv:1803.05407)
``lawa``  the mean of the latest ``keep`` (Kaddour 2022, arXiv:2209.14981)
``stock`` ``t a + (1 − t) W₀``: that mean, drawn back to the first checkpoint the more the later ones point apart from
          there (model stock, Jang et al. 2024, arXiv:2403.19522)
========= ============================================================================================================

Served is ``b a + (1 − b) W``: with ``lawa``, ``keep = 1`` and b = ½ that is the interpolation of old and new weights by
which updates turn fewer right answers into wrong ones (BCWI, Schumann et al. 2023, arXiv:2301.10546).

Between two changes a row is the same at every checkpoint, so it is enough to count how many there were.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from streamfold.core import Array
from streamfold.plugins._sums import Floats

Counts = npt.NDArray[np.int64]
_RINGS = ("lawa", "stock")
"""Averages for which checkpoints are kept one by one."""
UPTO, COUNT = 0, 1
"""Columns of ``averaged``: the newest checkpoint that a row's average holds, and how many it holds."""


def model_stock(anchor: Floats, points: Floats) -> Floats:
    """Average ``points (k, width)`` and go back towards ``anchor (width,)`` by the angle between them.

    With the mean cosine c between two of ``w_i − w_0`` the ratio is ``t = k c / ((k − 1) c + 1)``: then
    ``t w̄ + (1 − t) w_0`` is the point of their plane that is nearest to the centre around which fine-tuned weights lie
    on a shell (model stock, arXiv:2403.19522). One that did not move agrees with none; c below 0 counts as 0.

    >>> model_stock(np.zeros(2), np.array([[1.0, 0.0], [0.0, 1.0]])).tolist()  # no agreement
    [0.0, 0.0]
    >>> model_stock(np.zeros(2), np.array([[1.0, 0.0], [3.0, 0.0]])).tolist()  # the same way
    [2.0, 0.0]
    """
    k = len(points)
    away = points - anchor
    away = away / np.maximum(np.linalg.norm(away, axis=1, keepdims=True), 1e-30)
    cosine = 1.0
    if k > 1:
        total = away.sum(axis=0)
        cosine = max(0.0, float(total @ total - (away * away).sum()) / (k * (k - 1)))
    ratio = k * cosine / ((k - 1) * cosine + 1)
    found: Floats = ratio * points.mean(axis=0) + (1 - ratio) * anchor
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Averages:
    """What kind of average is kept of rows of ``width``, and where: ``averages (rows, kept, width)``, ``averaged``."""

    kind: str
    every: int
    decay: float
    keep: int

    def stores(self, rows: int, width: int) -> tuple[Array, Array]:
        kept = {"lawa": self.keep, "stock": self.keep + 1}.get(self.kind, 1)  # the last one of stock: its anchor
        return (
            Array("averages", shape=(rows, kept, width), dtype="float32" if self.kind in _RINGS else "float64"),
            Array("averaged", shape=(rows, 2), dtype="int64"),
        )

    def begin(self, slot: int, steps: int, stores: Any) -> None:
        """A class begins, or ends: its average holds no checkpoint."""
        averages = stores["averages"]
        averages.put([slot], np.zeros((1, *averages.shape[1:]), averages.values.dtype))
        stores["averaged"].put([slot], [(steps // self.every, 0)])

    def follow(self, slots: Any, steps: int, stores: Any) -> None:
        """Before rows change: take in the checkpoints since they last did. Most steps have none."""
        late = np.asarray(slots)[stores["averaged"].get(slots)[:, UPTO] < steps // self.every]
        if len(late):
            held, counts = self.caught_up(late, steps, stores)
            stores["averages"].put(late, held)
            stores["averaged"].put(late, counts)

    def caught_up(self, slots: Any, steps: int, stores: Any) -> tuple[Any, Counts]:
        """What ``averages`` and ``averaged`` of rows are once the checkpoints until now are in them; a pure read."""
        held, counts = stores["averages"].get(slots), stores["averaged"].get(slots)
        rows = stores["weights"].get(slots)
        now = steps // self.every
        new = now - counts[:, UPTO]
        if self.kind in _RINGS:
            if self.kind == "stock":
                first = (counts[:, COUNT] == 0) & (new > 0)
                held[first, self.keep] = rows[first]
            for i, upto in enumerate(counts[:, UPTO].tolist()):
                for number in range(max(upto, now - self.keep) + 1, now + 1):
                    held[i, number % self.keep] = rows[i]
        else:
            if self.kind == "swa":
                share = new / np.maximum(counts[:, COUNT] + new, 1)
            else:
                share = np.where(counts[:, COUNT] > 0, 1 - self.decay**new, new > 0)
            held[:, 0] += share[:, None] * (rows - held[:, 0])
        return held, np.stack([np.full_like(new, now), counts[:, COUNT] + new], axis=1)

    def read(self, slots: Any, steps: int, blend: float, stores: Any) -> Floats:
        """Rows as they are served; ``blend``: how much the average counts. Without a checkpoint the weights serve."""
        live = stores["weights"].get(slots).astype(np.float64)
        held, counts = self.caught_up(slots, steps, stores)
        if self.kind in _RINGS:
            now = steps // self.every
            stock = self.kind == "stock"
            some = np.minimum(counts[:, COUNT] - stock, self.keep)  # the anchor is none of them
            average = np.zeros_like(live)
            for i, count in enumerate(some.tolist()):
                points = held[i, [number % self.keep for number in range(now - count + 1, now + 1)]].astype(np.float64)
                if count <= 0:
                    average[i] = held[i, self.keep] if count == 0 and stock else live[i]
                else:
                    average[i] = model_stock(held[i, self.keep].astype(np.float64), points) if stock else points.mean(0)
        else:
            average = np.where(counts[:, COUNT, None] > 0, held[:, 0], live)
        found: Floats = blend * average + (1 - blend) * live
        return found
