"""What a label is about, as a vector: texts by the encoder, features as they are, things by what was said of them.

Documents, items and users are embedded when they are upserted, by their texts: a document's title and the beginning
of its text, what ``item_vectors`` embeds of an item (once for both), a user's properties. A label of one takes the
vector that it has at that moment; a change of the text afterwards is not a change of what was labelled.

Vectors of different **spaces** (the encoder's, or that of one set of feature names) are never mixed: each head has a
state for each space that its labels are of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from streamfold.core import Event, EventError, Target, View, WrongTarget
from streamfold.plugins._sums import Floats
from streamfold.plugins.item_vectors import item_text

TEXT = "text"
KINDS = ("document", "item", "user")
_MOST_TEXT = 2000
_MOST = 1e12
"""The largest feature: squares of such still add up."""


def thing_of(target: Target) -> str | None:
    """Name the document, item or user that a target is, as ``kind:id``; None for a text or features."""
    if target.document_id is not None:
        return f"document:{target.document_id}"
    if target.item_id is not None:
        return f"item:{target.item_id}"
    return f"user:{target.user_id}" if target.user_id is not None else None


def text_of(event: Event) -> str:
    """Return what is embedded for an upserted document, item or user."""
    data = event.data
    if event.type == "document.upserted":
        return "\n".join(part for part in (data.title or "", data.text[:_MOST_TEXT]) if part)
    if event.type == "item.upserted":
        return item_text(data)
    said = sorted((data.properties or {}).items())
    return "\n".join(f"{name}: {value}" for name, value in said if value is not None)[:_MOST_TEXT]


def vector_of(features: Mapping[str, Any]) -> tuple[str, Floats]:
    """Turn a flat map of numbers into its space and its vector, in order of the names. Raises ``EventError``.

    >>> space, vector = vector_of({"width": 2, "height": 1.5, "depth": None})
    >>> vector.tolist(), space == vector_of({"height": 0.5, "width": True})[0]
    ([1.5, 2.0], True)
    """
    names = sorted([name for name, value in features.items() if value is not None])
    vector = _numbers(names, [features[name] for name in names])
    if not vector.any():
        raise EventError("all features are 0: such a vector has no direction", code="zero-vector")
    digest = blake2b("\0".join(names).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    return f"{len(names)} features {digest}", vector


def _numbers(names: Sequence[str], values: Sequence[Any]) -> Floats:
    if {*map(type, values)} <= {float, bool}:  # by far the most: then they are looked at together
        vector = np.array(values, np.float64)
        if (np.abs(vector) <= _MOST).all():
            return vector
    for name, value in zip(names, values, strict=True):
        if isinstance(value, str | list):
            raise EventError(f"feature '{name[:64]}' is {value!r:.40}: features are numbers", code="wrong-features")
        if not -_MOST <= value <= _MOST:
            raise EventError(f"feature '{name[:64]}' is {value!r}: at most {_MOST:g} in size", code="wrong-features")
    return np.array([float(value) for value in values])


def vectors_of(view: View, targets: Sequence[Target]) -> list[tuple[str, Floats]]:
    """Return spaces and vectors of targets to be classified; texts are embedded in one call. Raises ``WrongTarget``."""
    texts = [one.text for one in targets if one.text]
    rows = dict(zip(texts, view.tools.encoder.encode(texts), strict=True)) if texts else {}
    return [_vector(view, index, one, rows) for index, one in enumerate(targets)]


def _vector(view: View, index: int, target: Target, rows: Mapping[str, Any]) -> tuple[str, Floats]:
    if target.features is not None:
        try:
            return vector_of(target.features)
        except EventError as error:
            raise WrongTarget(index, str(error)) from error
    if (thing := thing_of(target)) is not None:
        kept = view["things"].get(thing)
        if kept is None:
            raise WrongTarget(index, f"nothing is known of {thing.replace(':', ' ', 1)[:80]!r}, or it has no text")
        return TEXT, unpacked(kept, TEXT)
    if not target.text:
        raise WrongTarget(index, "the text is empty")
    return TEXT, np.asarray(rows[target.text], np.float64)


def packed(vector: Any) -> bytes:
    """Return a vector's bytes: float32 of the encoder's, float64 of features."""
    found: bytes = np.asarray(vector).tobytes()
    return found


def unpacked(data: bytes, space: str) -> Floats:
    found: Floats = stored(data, space).astype(np.float64)
    return found


def stored(data: bytes, space: str) -> Any:
    """Vectors as they are kept, one after the other."""
    return np.frombuffer(data, np.float32 if space == TEXT else np.float64)
