"""Texts of a batch of events as vectors, by one call of the encoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from streamfold.core import Tools


def embedded_texts(texts: Sequence[str], tools: Tools) -> list[Any]:
    """Return each text's vector ``(d,) float32``, ``None`` where it is empty; equal texts are embedded once."""
    distinct = list(dict.fromkeys(text for text in texts if text))
    rows = dict(zip(distinct, tools.encoder.encode(distinct), strict=True)) if distinct else {}
    return [np.asarray(rows[text], np.float32) if text else None for text in texts]
