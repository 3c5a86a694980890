"""Names in a text without a model: runs of capitalised words, and the names that other texts go by (aliases).

A **name span** is a run of capitalised words, or of numbers after one, with at most two small connecting words
between ("Duke of Normandy", "Ludwig van der Rohe"); a sentence's first word begins one too, but no stop word does.
Its key is its words in lower case, without diacritics, joined by spaces: ``"duke of normandy"``.

An **alias** is what a document may be named by in another's text: its title, the title without what stands in
brackets, the part before its first comma. Where it has no title, the first name in its text stands for one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate, islice
from operator import add

from streamfold.core import STOP_WORDS, plain_characters, stem

MAX_WORDS = 12
"""Longer names and aliases are cut here, or not looked for."""
_WORD = re.compile(r"([^\W_]+(?:['’][^\W_]+)*)")
_ASCII_WORD = re.compile(r"([A-Za-z0-9]+(?:'[A-Za-z0-9]+)*)")
_JOINING = frozenset((" ", "  ", "-", "- ", " -", "'", "’", "\n", "' ", "’ ", " & ", ""))
_CONNECTORS = frozenset(
    "of de la le les du des da do dos das di del della der den van von vom zu bin ibn al el and the y e et i".split()  # noqa: SIM905
)
_SENTENCE_END = re.compile(r"[.!?…]|\n\s*\n")
_BRACKETS = re.compile(r"\s*\([^()]*\)")


@dataclass(frozen=True, slots=True)
class Words:
    """A text's words in order.

    Attributes
    ----------
    keys : in lower case, without diacritics.
    capital : whether it begins with a capital or a digit.
    broken : whether punctuation stands between it and the word before.
    first : whether it begins a sentence.
    start : where it begins in the text (characters).
    """

    keys: list[str]
    shown: list[str]
    capital: list[bool]
    broken: list[bool]
    first: list[bool]
    start: list[int]

    def __len__(self) -> int:
        return len(self.keys)


def words(text: str) -> Words:
    """Cut a text into words; O(text), some .3 µs a word."""
    is_ascii = text.isascii()
    parts = _ASCII_WORD.split(text) if is_ascii else _WORD.split(unicodedata.normalize("NFC", text))
    pieces, gaps = parts[1::2], parts[2::2]
    shown = pieces if is_ascii else list(map(plain_characters, pieces))
    if "'" in text or not is_ascii:
        shown = [word[:-2] if word.endswith(("'s", "'S")) else word for word in shown]
    count = len(shown)
    broken, first = [False] * (count + 1), [False] * (count + 1)  # one more: what stands after the last word
    broken[0] = first[0] = True
    for i, gap in enumerate(gaps, start=1):
        if gap != " " and (kind := _kind_of_gap(gap)) != _JOINS:
            # a full stop after one or two letters ends no sentence: an initial, or "St."
            ends = first[i] = kind == _ENDS or (kind == _STOP and len(shown[i - 1]) > 2)
            broken[i] = ends or kind == _BREAKS
    starts = accumulate(map(add, map(len, pieces), map(len, gaps)), initial=len(parts[0]))
    return Words(
        keys=" ".join(shown).lower().split() if is_ascii else [word.lower() for word in shown],
        shown=shown,
        # of ASCII's letters and digits those before "a" are digits and capitals
        capital=[w < "a" for w in shown] if is_ascii else [w[:1].isupper() or w[:1].isdigit() for w in shown],
        broken=broken[:-1],
        first=first[:-1],
        start=list(islice(starts, count)),
    )


_JOINS, _BREAKS, _STOP, _ENDS = range(4)


@lru_cache(maxsize=4096)
def _kind_of_gap(gap: str) -> int:
    """What stands between two words: nothing that parts them, a break, a full stop, the end of a sentence."""
    if gap in _JOINING:
        return _JOINS
    if gap[:1] == "." and not gap.strip(". \n"):
        return _STOP
    return _ENDS if _SENTENCE_END.search(gap) else _BREAKS


@dataclass(frozen=True, slots=True)
class Span:
    """A name in a text: words ``start`` to ``end`` (one past the last), its key, and how it is written."""

    start: int
    end: int
    key: str
    shown: str


def name_spans(text: Words) -> list[Span]:
    """Return the names in order of the text, each where it stands.

    >>> [span.key for span in name_spans(words("In 1035 William, Duke of Normandy, met Dr. Ada B. King."))]
    ['william', 'duke of normandy', 'dr ada b king']
    """
    found: list[Span] = []
    keys, capital, broken = text.keys, text.capital, text.broken
    count, free = len(text), 0
    for i in [i for i, is_capital in enumerate(capital) if is_capital]:
        if i < free or keys[i] in STOP_WORDS or keys[i][0].isdigit():
            continue
        end = i + 1
        while end < count and not broken[end] and end - i < MAX_WORDS:
            if capital[end]:
                end += 1
                continue
            ahead = end
            while ahead < count and ahead - end < 2 and not broken[ahead] and keys[ahead] in _CONNECTORS:
                ahead += 1
            if ahead == end or ahead >= count or broken[ahead] or not capital[ahead] or ahead - i >= MAX_WORDS:
                break
            end = ahead + 1
        if end - i > 1 or len(keys[i]) >= 3:
            found.append(Span(i, end, " ".join(keys[i:end]), " ".join(text.shown[i:end])))
        free = end
    return found


def aliases(title: str) -> dict[str, float]:
    """Return what a title may be called by: key → weight.

    >>> aliases("Lambert, Margrave of Tuscany")
    {'lambert margrave of tuscany': 1.0, 'lambert': 0.5}
    >>> aliases("Radium (film)")
    {'radium film': 1.0, 'radium': 1.0}
    """
    found: dict[str, float] = {}
    bare = _BRACKETS.sub("", title)
    before, comma, _ = bare.partition(",")
    for text, weight in ((title, 1.0), (bare, 1.0), (before if comma else "", 0.8)):
        keys = words(text).keys
        if keys and len(keys) <= MAX_WORDS and not all(key in STOP_WORDS for key in keys):
            found.setdefault(" ".join(keys), 0.5 if weight < 1 and len(keys) == 1 else weight)
    return found


def short_name(key: str) -> str | None:
    """Return what somebody of three names or more may be called by: the first and the last.

    >>> short_name("frank william george lloyd")
    'frank lloyd'
    """
    parts = key.split(" ")
    return None if len(parts) < 3 or not _CONNECTORS.isdisjoint(parts) else f"{parts[0]} {parts[-1]}"


@dataclass(frozen=True, slots=True)
class Match:
    """An alias found in a text, from word ``start`` on; ``first``: a single word at the start of a sentence."""

    start: int
    key: str
    first: bool


def alias_matches(
    text: Words, known: Callable[[str], bool], begins: Callable[[str], bool], *, any_case: bool = False
) -> Iterator[Match]:
    """Yield the aliases in a text, left to right, the longest at each place.

    One counts if enough of its words are capitalised: at least one, and .6 of those that are no stop words.

    Parameters
    ----------
    known : whether a key is an alias.
    begins : whether an alias begins with these two words.
    any_case : take aliases of two words or more whatever their case (questions are typed carelessly).
    """
    keys, capital = text.keys, text.capital
    size, free = len(text), 0
    for i in range(size) if any_case else _capitals(keys, capital):
        if i < free:
            continue
        longest = min(size, i + MAX_WORDS) if i + 1 < size and begins(f"{keys[i]} {keys[i + 1]}") else i + 1
        for end in range(longest, i, -1):
            key = " ".join(keys[i:end])
            if known(key) and _written_as_name(keys, capital, i, end, any_case):
                yield Match(i, key, end == i + 1 and text.first[i])
                free = end
                break


def _capitals(keys: list[str], capital: list[bool]) -> Iterator[int]:
    """Yield where names may begin: at capitals, and at stop words before one."""
    before = -1
    for i, is_capital in enumerate(capital):
        if is_capital:
            if i - 1 > before and keys[i - 1] in STOP_WORDS:
                yield i - 1
            yield i
            before = i


def _written_as_name(keys: list[str], capital: list[bool], start: int, end: int, any_case: bool) -> bool:
    content = sum(key not in STOP_WORDS for key in keys[start:end])
    if any_case and end - start >= 2 and content:
        return True
    return sum(capital[start:end]) >= max(1.0, 0.6 * content)


def content_terms(text: Words) -> list[str]:
    """Return the distinct stems of a text's words that are no stop words, in order."""
    return [term for term in dict.fromkeys(map(stem, text.keys)) if term]


_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def one_letter_away(word: str) -> list[str]:
    """Return what a word may have been before one letter was changed, dropped, added or swapped with the next."""
    cuts = [(word[:i], word[i:]) for i in range(len(word) + 1)]
    found = [head + tail[1:] for head, tail in cuts if tail]
    found += [head + tail[1] + tail[0] + tail[2:] for head, tail in cuts if len(tail) > 1]
    found += [head + letter + tail[1:] for head, tail in cuts if tail for letter in _LETTERS]
    found += [head + letter + tail for head, tail in cuts for letter in _LETTERS]
    return found
