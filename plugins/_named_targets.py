"""Targets of a ridge regression that know what classes are called: classes of similar names get similar targets.

A one-hot target says that each class is as unlike any other. LingoCL (Ni et al., Enhancing Visual Continual Learning
with Language-Guided Supervision, 2024, arXiv:2403.16124) learns to predict the embedding ``t_c`` of the class's name
instead, of length 1 and fixed, and the class whose embedding is nearest is the answer. Over sums that is ridge with
``Y = T`` and the scores ``φᵀ(G + γI)⁻¹Sᵀ T Tᵀ``: the regression on one-hot targets, with the cosines ``T Tᵀ`` of names
in the place of the identity. So a class with few labels is found by what it shares with the others: of "red square",
"red circle" and "blue square" much is known of "blue circle".

A class without a name has a direction of its own, orthogonal to all others; where none has a name, targets are one-hot.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from streamfold.plugins._sums import Floats
from streamfold.plugins._targets import TEXT, unpacked

Named = Mapping[str, tuple[bytes, ...]]
"""Of each class, the packed embeddings of its name and of those merged into it."""


def names_of(priors: Iterable[tuple[str | None, bytes]]) -> Named:
    """Collect the embeddings of names by the class that they are read as; None: retired."""
    found: dict[str, tuple[bytes, ...]] = {}
    for label, prior in priors:
        if label is not None and prior:
            found[label] = (*found.get(label, ()), prior)
    return found


def named_targets(names: Sequence[str], named: Named) -> Floats | None:
    """Return the cosines ``(C, C)`` of the classes' names; None: one-hot, because fewer than two have one."""
    known = [number for number, name in enumerate(names) if name in named]
    if len(known) < 2:
        return None
    rows = np.stack([np.mean([unpacked(one, TEXT) for one in named[names[i]]], axis=0) for i in known])
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    found = np.eye(len(names))
    found[np.ix_(known, known)] = rows @ rows.T
    found.flat[:: len(names) + 1] = 1.0
    return found
