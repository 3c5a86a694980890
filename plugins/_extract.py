"""What a chunk says of whom, without a model: the names in it, and which of them stand side by side in a sentence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import msgspec

from streamfold.plugins._names import Words, name_spans, words

MAX_NAMES, MAX_RELATIONS = 64, 64
"""Of a chunk: those that come first."""


class Told(msgspec.Struct, array_like=True, frozen=True):
    """A relation that an extractor told: from one name to another (their numbers), and since when until when."""

    source: int
    target: int
    keywords: list[str]
    description: str
    from_us: int
    to_us: int | None = None


class Extract(msgspec.Struct, array_like=True):
    """The names of a chunk and their relations.

    Attributes
    ----------
    names : as written where each comes first; an entity's key is the name in lower case.
    counts : how often each stands there.
    relations : (name, other name, start, end): numbers of names, and the sentence (characters of the chunk).
    about : (name, type, description) that an extractor told.
    told : relations that an extractor told.
    """

    names: list[str]
    counts: list[int]
    relations: list[tuple[int, int, int, int]]
    about: list[tuple[int, str | None, str]] = []
    told: list[Told] = []

    def keys(self) -> list[str]:
        return [name.lower() for name in self.names]


def extract(text: str) -> Extract:
    """Find the names of a chunk; neighbours in a sentence are related, once for each pair.

    >>> found = extract("Marie Curie met Lise Meitner in Paris. Curie left.")
    >>> found.names
    ['Marie Curie', 'Lise Meitner', 'Paris', 'Curie']
    >>> [(found.names[a], found.names[b]) for a, b, _, _ in found.relations]
    [('Marie Curie', 'Lise Meitner'), ('Lise Meitner', 'Paris')]
    """
    cut = words(text)
    numbers: dict[str, int] = {}
    shown: list[str] = []
    counts: Counter[int] = Counter()
    pairs: dict[tuple[int, int], tuple[int, int, int, int]] = {}
    sentences = _sentences(cut, len(text))
    sentence, before = 0, None
    for span in name_spans(cut):
        number = numbers.get(span.key)
        if number is None:
            if len(numbers) == MAX_NAMES:
                continue
            number = numbers[span.key] = len(numbers)
            shown.append(span.shown)
        counts[number] += 1
        while sentence + 1 < len(sentences) and sentences[sentence + 1][0] <= span.start:
            sentence, before = sentence + 1, None
        if before is not None and before != number and len(pairs) < MAX_RELATIONS:
            _, start, end = sentences[sentence]
            pairs.setdefault((min(before, number), max(before, number)), (before, number, start, end))
        before = number
    return Extract(shown, [counts[i] for i in range(len(shown))], list(pairs.values()))


def relation_node(one: str, other: str) -> str:
    """Return the graph's node for the relation of two entities, whichever comes first."""
    return f"r:{min(one, other)}\x1f{max(one, other)}"


def _sentences(cut: Words, size: int) -> list[tuple[int, int, int]]:
    """Return (first word, start, end) of each sentence; the end is where the next one starts."""
    firsts = [i for i in range(len(cut)) if cut.first[i]]
    starts = [cut.start[i] for i in firsts]
    return list(zip(firsts, starts, [*starts, size][1:], strict=True))


def case_counts(texts: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Count each word of some texts in lower case and with a capital."""
    lower: Counter[str] = Counter()
    upper: Counter[str] = Counter()
    for text in texts:
        cut = words(text)
        for key, capital in zip(cut.keys, cut.capital, strict=True):
            (upper if capital else lower)[key] += 1
    return {key: (lower[key], upper[key]) for key in {**lower, **upper}}
