"""Fixed random directions in the space of the encoder's vectors: the same in each process, version of numpy and replay.

Signs drawn by a seed keep inner products on average, the closer the more directions there are (Achlioptas 2003,
doi:10.1016/S0022-0000(03)00025-4). They are not fitted, so what was learned along them keeps its meaning as long as
the configuration stands, and a replay needs no order of items.
"""

from __future__ import annotations

import math
from functools import lru_cache
from hashlib import shake_256

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def products(vector: Floats, count: int, seed: int) -> Floats:
    """Return the products of a vector with ``count`` directions, ``(count,) float32``."""
    # rounded: how rows lie in memory decides the last bits of a product, of a double one far beyond these digits
    found = directions(count, seed, len(vector)).astype(np.float64) @ vector.astype(np.float64)
    near: Floats = np.round(found, 5).astype(np.float32)
    return near


@lru_cache(8)
def directions(count: int, seed: int, dim: int) -> Floats:
    """Return unit vectors ``(count, dim) float32`` of ±1."""
    bits = np.frombuffer(shake_256(f"clusters {seed} {dim}".encode()).digest((count * dim + 7) // 8), np.uint8)
    signs = np.unpackbits(bits)[: count * dim].reshape(count, dim).astype(np.float32)
    found: Floats = (2 * signs - 1) / np.float32(math.sqrt(dim))
    return found
