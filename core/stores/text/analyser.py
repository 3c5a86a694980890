"""Text to search terms: fold characters, cut tokens, drop stop and question words, stem.

NFKD, diacritics dropped, ø ł æ œ ß ð þ ı and curly quotes mapped; tokens are alphanumeric with one inner apostrophe,
lower-case, a final 's dropped; what is left is stemmed by Snowball's English stemmer. Scripts without spaces come out
as whole runs: they need another analyser.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from functools import lru_cache
from typing import Any

from streamfold.core.caches import emptied_on_erasure

STOP_WORDS = frozenset(
    """
    a about above after again against all also am an and any are aren't as at be because been before being below between
    both but by can can't cannot could couldn't did didn't do does doesn't doing don't down during each few for from
    further had hadn't has hasn't have haven't having he he'd he'll her here hers herself him himself his i i'd i'll i'm
    i've if in into is isn't it it'll its itself just let me more most mustn't my myself no nor not now of off on once
    only or other ought our ours ourselves out over own same shan't she she'd she'll should shouldn't so some such than
    that the their theirs them themselves then there these they they'd they'll they're they've this those through to too
    under until up upon us very was wasn't we we'd we'll we're we've were weren't while will with won't would wouldn't
    you you'd you'll you're you've your yours yourself yourselves
    what when where which who whom whose why how
    """.split()  # noqa: SIM905 - a list literal would take a page
)

_ASCII_TOKEN = re.compile(r"[a-z0-9]+(?:'[a-z0-9]+)?")
_TOKEN = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
_MAP = str.maketrans(
    {
        "ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ß": "ss", "ẞ": "SS",
        "ð": "d", "Ð": "D", "þ": "th", "Þ": "Th", "ı": "i", "‘": "'", "’": "'", "‛": "'", "ʼ": "'", "“": '"', "”": '"',
        "′": "'", "‵": "'", "＇": "'",
    }
)  # fmt: skip
_stemmer: Any = None
_stemmer_lock = threading.Lock()


def plain_characters(text: str) -> str:
    """Return the text without diacritics and typographic variants, its case kept; ASCII text stays as it is."""
    if text.isascii():
        return text
    decomposed = unicodedata.normalize("NFKD", text.translate(_MAP))
    if decomposed.isascii():
        return decomposed
    return "".join(c for c in decomposed if not unicodedata.combining(c))


def fold_characters(text: str) -> str:
    """Return the text in lower case without diacritics; ASCII text is only lowered."""
    return plain_characters(text).lower()


def tokens(text: str) -> list[str]:
    """Return all tokens in order, stop words included, not stemmed.

    >>> tokens("The Curie’s café, o'clock")
    ['the', 'curie', 'cafe', "o'clock"]
    """
    folded = fold_characters(text)
    found = (_ASCII_TOKEN if folded.isascii() else _TOKEN).findall(folded)
    return [t[:-2] if t.endswith("'s") else t for t in found] if "'" in folded else found


@emptied_on_erasure
@lru_cache(maxsize=1 << 18)
def stem(token: str) -> str:
    """Return the token's stem, or ``""`` for stop and question words (kept for the 262,144 last used tokens)."""
    global _stemmer
    if token in STOP_WORDS:
        return ""
    with _stemmer_lock:  # the stemmer keeps the word that it works on
        if _stemmer is None:
            import Stemmer

            _stemmer = Stemmer.Stemmer("english")
        stemmed: str = _stemmer.stemWord(token)
    return stemmed


def terms(text: str) -> list[str]:
    """Return the search terms in order.

    >>> terms("Who discovered the elements?")
    ['discov', 'element']
    """
    return [s for s in map(stem, tokens(text)) if s]
