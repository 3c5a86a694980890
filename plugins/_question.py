"""A question, read with the help of what is stored: typing errors mended, its terms, the titles that it names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from streamfold.core import View, plain_characters
from streamfold.plugins._names import Match, Words, alias_matches, content_terms, one_letter_away, words

_MENDED_FROM = 4
"""Shorter words are too like each other to be mended."""
_LONGEST = 48
_MOST_MENDED = 8


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked.

    Attributes
    ----------
    text : with mended words.
    words : its words.
    terms : its distinct content terms (stems).
    matches : the aliases that it names.
    """

    text: str
    words: Words
    terms: list[str]
    matches: list[Match]
    mended: dict[str, str] = field(default_factory=dict)


def read_question(text: str, view: View) -> Question:
    """Read a question: words that no text holds are taken for one that is one letter away, if there is one."""
    cut = words(text)
    counts = view["words"]
    mended: dict[str, str] = {}
    for key, capital in zip(cut.keys, cut.capital, strict=True):
        unknown = _MENDED_FROM <= len(key) <= _LONGEST and key not in counts and not key.isdigit()
        look = unknown and key not in mended and len(mended) < _MOST_MENDED
        if look and (better := _nearest(key, capital, counts.get_many)):
            mended[key] = better
    if mended:
        shown = [_as_written(mended[key], word) if key in mended else word for key, word in _pairs(cut)]
        text = " ".join(shown)
        cut = Words([mended.get(key, key) for key in cut.keys], shown, cut.capital, cut.broken, cut.first, cut.start)
    matches = list(alias_matches(cut, *alias_tests(view), any_case=True))
    return Question(plain_characters(text) if mended else text, cut, content_terms(cut), matches, mended)


def alias_tests(view: View) -> tuple[Callable[[str], bool], Callable[[str], bool]]:
    """Return what says whether a key is an alias of a document, and whether one begins with two words."""
    there = view["graph"].contains()
    if not len(view["names"]):
        return (lambda key: there("a:" + key)), (lambda two: there("b:" + two))
    return (lambda key: there("a:" + key) or there("m:" + key)), (lambda two: there("b:" + two))


def _pairs(cut: Words) -> zip[tuple[str, str]]:
    return zip(cut.keys, cut.shown, strict=True)


def _as_written(mended: str, word: str) -> str:
    return mended.capitalize() if word[:1].isupper() else mended


def _nearest(key: str, capital: bool, get_many: Callable[[Sequence[str]], list[tuple[int, int] | None]]) -> str | None:
    """Return the stored word one letter away: one that is written with a capital as this one is, the most frequent."""
    best: tuple[bool, int, str] | None = None
    near = one_letter_away(key)
    for word, found in zip(near, get_many(near), strict=True):
        if found is not None:
            lower, upper = found
            one = (capital and upper >= lower, lower + upper, word)
            best = one if best is None or one[:2] > best[:2] or (one[:2] == best[:2] and word < best[2]) else best
    return None if best is None else best[2]
