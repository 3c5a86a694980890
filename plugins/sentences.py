"""Chunker ``sentences``: pieces of at most ``max_tokens`` words that an edit elsewhere leaves as they were.

A text is cut into paragraphs (a blank line, or a markdown heading, starts one), each paragraph on its own: an edit
in one paragraph changes no other paragraph's chunks. A heading joins the paragraph that follows it. A paragraph that
fits is one chunk; a longer one is cut between sentences, and a chunk past half of its room ends at a sentence whose
hash says so (content-defined chunking, as in LBFS, doi:10.1145/502034.502052), so that also within a long paragraph
the cuts fall back into step soon after an edit. Time and memory are linear in the text, whatever its lines look like.

A token here is a run of at most 48 characters without white space, or two characters of Chinese, Japanese or Korean.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any
from zlib import crc32

from streamfold.core import Backend, Chunk, ConfigError

_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_TOKEN = re.compile(rf"[{_CJK}]{{1,2}}|[^\s{_CJK}]{{1,48}}")
_HEADING = re.compile(r"#{1,6}[ \t]")
# "d." and "St." end no sentence: a full stop counts after three letters, a digit or a closing sign.
_END = re.compile('(?:[!?…。！？]|(?:\\w{3}|[\\d)\\]"”’])\\.)["\'”’)\\]]*$')

Span = tuple[int, int]


class Sentences:
    """Chunker that cuts at sentence and paragraph boundaries.

    Parameters
    ----------
    max_tokens : words that a chunk holds at most.

    Examples
    --------
    >>> [chunk.text for chunk in Sentences().split("One idea.\\n\\nAnother idea.")]
    ['One idea.', 'Another idea.']
    """

    name = "sentences"

    def __init__(self, max_tokens: int = 200) -> None:
        if max_tokens < 2:
            raise ConfigError(f"sentences: max_tokens is {max_tokens}: it must be at least 2")
        self.max_tokens = max_tokens
        self.version = f"1-{max_tokens}"

    def split(self, text: str) -> list[Chunk]:
        """Return the chunks in order: ``chunk.text == text[chunk.start:chunk.end]``, without space at either end."""
        chunks = []
        for start, end in _paragraphs(text):
            tokens = [match.span() for match in _TOKEN.finditer(text, start, end)]
            for first, last in self._pack(text, tokens):
                a, b = tokens[first][0], tokens[last - 1][1]
                chunks.append(Chunk(text=text[a:b], start=a, end=b))
        return chunks

    def _pack(self, text: str, tokens: list[Span]) -> Iterator[Span]:
        """Group a paragraph's tokens into chunks: yield (first token, one past the last)."""
        if len(tokens) <= self.max_tokens:
            if tokens:
                yield 0, len(tokens)
            return
        first = 0
        for a, b in self._pieces(text, tokens):
            if b - first > self.max_tokens:
                yield first, a
                first = a
            if b - first >= self.max_tokens // 2 and _hash(text, tokens[a][0], tokens[b - 1][1]) & 3 == 0:
                yield first, b
                first = b
        if first < len(tokens):
            yield first, len(tokens)

    def _pieces(self, text: str, tokens: list[Span]) -> Iterator[Span]:
        """Yield the sentences, those longer than a chunk in parts that end at words chosen by their hash."""
        first, half = 0, max(1, self.max_tokens // 2)
        for i, (a, b) in enumerate(tokens):
            length = i + 1 - first
            if (
                _END.search(text, max(a, b - 8), b)
                or length == self.max_tokens
                or (length >= half and _hash(text, a, b) & 31 == 0)
            ):
                yield first, i + 1
                first = i + 1
        if first < len(tokens):
            yield first, len(tokens)


def _hash(text: str, start: int, end: int) -> int:
    return crc32(text[start:end].encode("utf-8", "surrogatepass"))


def _paragraphs(text: str) -> Iterator[Span]:
    """Yield the spans of paragraphs, a heading with the paragraph after it."""
    start: int | None = None
    only_heading = False
    position, size = 0, len(text)
    while position < size:
        newline = text.find("\n", position)
        end = size if newline < 0 else newline + 1
        if text[position:end].isspace():
            if start is not None and not only_heading:
                yield start, position
                start = None
        elif _HEADING.match(text, position, end):
            if start is not None:
                yield start, position
            start, only_heading = position, True
        else:
            if start is None:
                start = position
            only_heading = False
        position = end
    if start is not None:
        yield start, size


def make(config: Mapping[str, Any]) -> Sentences:
    """Build the chunker from its settings."""
    unknown = sorted(set(config) - {"max_tokens"})
    if unknown:
        raise ConfigError(f"sentences: unknown setting {unknown[0]!r}; valid: max_tokens")
    return Sentences(**config)


BACKEND = Backend(kind="chunker", name="sentences", make=make, doc="Cuts at sentences; stable under edits elsewhere.")
