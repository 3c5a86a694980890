"""Small deterministic backends for policies under test: no weights, no cache, equal in every process."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from streamfold.core.policy import Backend, Chunk

_DIM = 16


class KitEncoder:
    """Hashes words into ``(n, 16) float32`` unit rows."""

    name, version, dim = "kit", "1", _DIM

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        rows = np.zeros((len(texts), _DIM), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in text.lower().split() or [""]:
                code = int.from_bytes(blake2b(word.encode("utf-8", "surrogatepass"), digest_size=4).digest(), "little")
                row[code % _DIM] += 1.0 if code & 1 << 20 else -1.0
            if not row.any():
                row[0] = 1.0
        unit: npt.NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return unit


class KitChunker:
    """Cuts a text every 40 characters."""

    name, version = "kit", "1"

    def split(self, text: str) -> list[Chunk]:
        cuts = range(0, len(text), 40)
        return [Chunk(text=text[i : i + 40], start=i, end=min(i + 40, len(text))) for i in cuts]


BACKENDS = (
    Backend(kind="encoder", name="kit", make=lambda config: KitEncoder(), doc="For tests."),
    Backend(kind="chunker", name="kit", make=lambda config: KitChunker(), doc="For tests."),
)
