"""The contract of policies that classify: labels of texts, features, documents, items and users, by head.

``POST /v1/classify`` asks the first :class:`Classifier` that knows the head. Labels come in as ``label.observed``
events; what a head has learned is whatever its policy keeps of them. Then each live :class:`Corrector` may overrule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

from streamfold.core.events.types import LabelTarget

Target = LabelTarget
"""What is classified: exactly one of ``document_id``, ``item_id``, ``user_id``, ``text``, ``features``."""


_WHOLE = 1e15


def class_name(label: str | float) -> str:
    """Name a label's class: numbers as they are written.

    >>> class_name(3.0), class_name("spam"), class_name(0.5)
    ('3', 'spam', '0.5')
    """
    if isinstance(label, str):
        return label
    return str(int(label)) if float(label).is_integer() and abs(label) < _WHOLE else repr(label)


class ClassState(Protocol):
    """What became of a class: its last change's position, what it was merged into, or that it was retired."""

    @property
    def seq(self) -> int: ...
    @property
    def into(self) -> str | None: ...
    @property
    def retired(self) -> bool: ...


def merged_into(label: str, classes: Mapping[str, ClassState]) -> str | None:
    """Follow merges; None: retired. In a circle of merges everything is what was merged last."""
    path = [label]
    while (row := classes.get(path[-1])) is not None and row.into is not None:
        if row.into in path:
            circle = path[path.index(row.into) :]
            return max(circle, key=lambda one: classes[one].seq)
        path.append(row.into)
    return None if row is not None and row.retired else path[-1]


class ScoredLabel(NamedTuple):
    """A label and its probability; ``name``: what a ``class.upserted`` event called it."""

    label: str
    score: float
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifyRequest:
    """Classify targets by a head; ``top_k``: how many labels of each."""

    head: str
    targets: Sequence[Target]
    top_k: int = 5
    explain: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """What a target is.

    Parameters
    ----------
    labels : the likeliest ones, best first; the probabilities of all labels of the head sum up to 1.
    unknown : how unlike everything labelled the target is, in 0…1.
    explain : what the answer rests on; None unless it was asked for.
    """

    labels: Sequence[ScoredLabel]
    unknown: float
    explain: Mapping[str, Any] | None = None


class WrongTarget(ValueError):
    """A target cannot be classified by the head; ``index``: which one."""

    def __init__(self, index: int, detail: str) -> None:
        super().__init__(detail)
        self.index = index


@runtime_checkable
class Classifier(Protocol):
    """Classifies targets; a pure read, in one batch."""

    def heads(self) -> Mapping[str, int]:
        """Every head, with how many labels (and priors of named classes) it has."""
        ...

    def classify(self, request: ClassifyRequest) -> list[Prediction]:
        """Classify by a head that has labels. Raises ``WrongTarget``."""
        ...


@runtime_checkable
class Corrector(Protocol):
    """Knows better than any head what some targets are; a pure read."""

    def corrections(self, request: ClassifyRequest) -> Mapping[int, Prediction]:
        """Which targets of a request, by their place in it, are something else than a head says: this."""
        ...
