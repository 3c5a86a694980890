"""Full text search: :func:`terms` makes words of text, :class:`BM25` ranks, :class:`LiveText` is the store."""

from streamfold.core.stores.text.analyser import STOP_WORDS, plain_characters, stem, terms, tokens
from streamfold.core.stores.text.bm25 import BM25
from streamfold.core.stores.text.store import LiveText

__all__ = ["BM25", "STOP_WORDS", "LiveText", "plain_characters", "stem", "terms", "tokens"]
