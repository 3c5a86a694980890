"""Vectors by id, searched by inner product.

:class:`VectorIndex` is the contract, :class:`ExactVectors` the exact reference behind it, :class:`LayeredVectors` the
one for streams; :class:`LiveVectors` is the store around either (staging per event, changes per commit, bound,
checkpoint).
"""

from __future__ import annotations

from streamfold.core.stores.vectors.abc import VectorIndex
from streamfold.core.stores.vectors.exact import ExactVectors
from streamfold.core.stores.vectors.layered import LayeredVectors, VectorStats
from streamfold.core.stores.vectors.store import LiveVectors

__all__ = ["ExactVectors", "LayeredVectors", "LiveVectors", "VectorIndex", "VectorStats"]
