"""Encoder ``hashing``: signed feature hashing of words and character 3-grams; no weights, no torch.

For tests, for tiny machines, and as a floor that a trained encoder has to beat. With ``f`` running over the words and
the 3-grams of ``^word$``, ``h(f)`` a bucket and ``s(f) = ±1`` (both from BLAKE2b, so equal in every process)::

    x_j = Σ_{f: h(f) = j} w_f s(f) n_f,    row = u/‖u‖,  u_j = sign(x_j) √|x_j|

where ``n_f`` counts ``f`` in the text, ``w_f`` is 1 for a word and 0.3 for a 3-gram; the root damps frequent words.
Cost: one look-up per word and one ``bincount`` per text.

Reference: Weinberger et al., Feature Hashing for Large Scale Multitask Learning, ICML 2009, arXiv:0902.2206.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

from streamfold.core import Backend, ConfigError, emptied_on_erasure

_WORD = re.compile(r"\w{1,64}")
_TRIGRAM_WEIGHT = 0.3
_CACHED_WORDS = 1 << 16
"""Words whose features are kept; the least recently used go."""


class Hashing:
    """Encoder by feature hashing; ``dim`` buckets, unit rows. Deterministic, thread-safe.

    Examples
    --------
    >>> rows = Hashing().encode(["a red apple", "red apples", "tax law"])
    >>> bool(rows[0] @ rows[1] > rows[0] @ rows[2])
    True
    """

    name = "hashing"

    def __init__(self, dim: int = 256) -> None:
        if not 8 <= dim <= 1 << 16:
            raise ConfigError(f"hashing: dim is {dim}: it must be in 8…65536")
        self.dim = dim
        self.version = f"1-{dim}"
        self._codes = emptied_on_erasure(lru_cache(maxsize=_CACHED_WORDS)(self._word_codes))

    def encode(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Return ``(n, dim) float32``, unit rows; a text without a word gets the first axis."""
        dim, codes = self.dim, self._codes
        rows = np.empty((len(texts), dim), np.float32)
        for i, text in enumerate(texts):
            found = np.frombuffer(b"".join(map(codes, _WORD.findall(text.lower()))), np.int32)
            counts = np.bincount(found, minlength=4 * dim).reshape(4, dim)
            x = (counts[0] - counts[1]) + _TRIGRAM_WEIGHT * (counts[2] - counts[3])
            magnitude = np.abs(x)
            norm = np.sqrt(magnitude.sum())
            if norm > 0:
                rows[i] = np.copysign(np.sqrt(magnitude), x) / norm
            else:
                rows[i] = 0
                rows[i, 0] = 1
        return rows

    def _word_codes(self, word: str) -> bytes:
        """Codes of a word's features as int32: bucket + dim · (0 or 1 by sign, + 2 for a 3-gram)."""
        edged = f"^{word}$"
        features = [word, *(edged[i : i + 3] for i in range(len(edged) - 2))]
        codes = []
        for i, feature in enumerate(features):
            key = feature.encode("utf-8", "surrogatepass")
            value = int.from_bytes(blake2b(key, digest_size=8, person=b"3gram" if i else b"word").digest(), "little")
            codes.append((value >> 1) % self.dim + self.dim * ((value & 1) + (2 if i else 0)))
        return np.asarray(codes, np.int32).tobytes()


def make(config: Mapping[str, Any]) -> Hashing:
    """Build the encoder from its settings."""
    unknown = sorted(set(config) - {"dim"})
    if unknown:
        raise ConfigError(f"hashing: unknown setting {unknown[0]!r}; valid: dim")
    return Hashing(**config)


BACKEND = Backend(kind="encoder", name="hashing", make=make, doc="Hashed words and 3-grams; no weights to load.")
