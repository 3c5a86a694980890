"""Averages of a gradient head's weights over its own checkpoints, kept up lazily: only rows that change are touched.

After every ``every``-th step of a head there is a checkpoint of its weights. An average is over checkpoints of one
base, by construction: it lies beside the weights in the same instance's stores, begins anew with a class, and no other
instance's weights reach it. It is never trained on, so what is served is immutable between checkpoints.

======== =============================================================================================================
``ema``  ``a ← d a + (1 − d) W`` at each checkpoint (temporal ensembling, Laine and Aila 2016, arXiv:1610.02242)
``swa``  the mean of all checkpoints (Izmailov et al. 2018, arXiv:1803.05407)
``lawa`` the mean of the latest ``keep`` (Kaddour 2022, arXiv:2209.14981)
======== =============================================================================================================

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
UPTO, COUNT = 0, 1
"""Columns of ``averaged``: the newest checkpoint that a row's average holds, and how many it holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Averages:
    """What kind of average is kept of rows of ``width``, and where: ``averages (rows, kept, width)``, ``averaged``."""

    kind: str
    every: int
    decay: float
    keep: int

    def stores(self, rows: int, width: int) -> tuple[Array, Array]:
        kept = self.keep if self.kind == "lawa" else 1
        return (
            Array("averages", shape=(rows, kept, width), dtype="float32" if self.kind == "lawa" else "float64"),
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
        if self.kind == "lawa":
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
        if self.kind == "lawa":
            now = steps // self.every
            some = np.minimum(counts[:, COUNT], self.keep)
            average = np.zeros_like(live)
            for i, count in enumerate(some.tolist()):
                latest = [number % self.keep for number in range(now - count + 1, now + 1)]
                average[i] = held[i, latest].mean(axis=0, dtype=np.float64) if latest else live[i]
        else:
            average = np.where(counts[:, COUNT, None] > 0, held[:, 0], live)
        found: Floats = blend * average + (1 - blend) * live
        return found
