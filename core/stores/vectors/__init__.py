"""Vectors by id, searched by inner product.

:class:`VectorIndex` is the contract, :class:`ExactVectors` the exact reference behind it, :class:`LayeredVectors` the
one for streams; :class:`LiveVectors` is the store around either (staging per event, changes per commit, bound,
checkpoint). FAISS is imported with the first ``LayeredVectors``, not before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from streamfold.core.stores.vectors.abc import VectorIndex, VectorStats
from streamfold.core.stores.vectors.exact import ExactVectors
from streamfold.core.stores.vectors.store import LiveVectors

if TYPE_CHECKING:
    from streamfold.core.stores.vectors.layered import LayeredVectors

__all__ = ["ExactVectors", "LayeredVectors", "LiveVectors", "VectorIndex", "VectorStats"]


def __getattr__(name: str) -> Any:
    if name == "LayeredVectors":
        from streamfold.core.stores.vectors.layered import LayeredVectors

        return LayeredVectors
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
