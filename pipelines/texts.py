"""Text files: what is one, its encoding, its title; for ``send DIR``, uploads and imports alike."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

MARKDOWN = (".md", ".markdown")
PLAIN = (".txt",)
SUFFIXES = (*PLAIN, *MARKDOWN)
MAX_TITLE = 300
_HEADING = re.compile(r" {0,3}#{1,6}[ \t]+(.*?)(?:[ \t]+#+)?[ \t]*")
_UNDERLINE = re.compile(r" {0,3}(=+|-+)[ \t]*")
_FENCE = re.compile(r" {0,3}(```|~~~)")
_FRONT_MATTER = re.compile(r"---[ \t]*\r?\n.{0,20000}?\n---[ \t]*\r?(?:\n|$)", re.DOTALL)
_LOOKED_AT = 400
"""Lines in which a heading is looked for."""
_LONGEST = 1000
"""Characters of a line that are looked at."""


class NotText(ValueError):
    """Bytes that are no text; ``line``: where that shows."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"line {line}: {reason}")
        self.line = line
        self.reason = reason


def decode_text(data: bytes) -> str:
    """Decode UTF-8, with or without a byte order mark; raises ``NotText`` for anything else.

    >>> decode_text("café".encode("latin-1"))
    Traceback (most recent call last):
        ...
    streamfold.pipelines.texts.NotText: line 1: byte 0xe9 is not UTF-8: save the file in UTF-8
    """
    nul = data.find(b"\0")
    if nul >= 0:
        raise NotText(_line(data, nul), "a NUL byte: this is a binary file, or one in UTF-16")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        start = error.start if error.object is data else error.start + len(data) - len(error.object)
        reason = f"byte 0x{data[start]:02x} is not UTF-8: save the file in UTF-8"
        raise NotText(_line(data, start), reason) from None


def title_of(text: str, name: str) -> str:
    """Return a text's title: its first Markdown heading, where its name says Markdown, else the name without suffix.

    >>> title_of("---\\n\\n# Pumps and *levers* #\\n", "manuals/pump.md")
    'Pumps and levers'
    >>> title_of("# no heading in plain text", "manuals/pump.txt")
    'pump'
    """
    path = PurePosixPath(name)
    heading = _heading(text) if path.suffix.lower() in MARKDOWN else ""
    return (heading or (path.stem if path.suffix.lower() in SUFFIXES else path.name))[:MAX_TITLE]


def media_type_of(name: str) -> str:
    """Return the media type that a file's name says."""
    return "text/markdown" if PurePosixPath(name).suffix.lower() in MARKDOWN else "text/plain"


def _heading(text: str) -> str:
    fenced, before = False, ""
    for line in _without_front_matter(text).split("\n", _LOOKED_AT)[:_LOOKED_AT]:
        line = line[:_LONGEST].rstrip("\r")
        if _FENCE.match(line):
            fenced, before = not fenced, ""
            continue
        if fenced:
            continue
        if (found := _HEADING.fullmatch(line)) and (title := _plain(found[1])):
            return title
        if before and _UNDERLINE.fullmatch(line):
            return before
        before = _plain(line)
    return ""


def _without_front_matter(text: str) -> str:
    """Take a block of settings between ``---`` lines off the start."""
    found = _FRONT_MATTER.match(text)
    return text[found.end() :] if found else text


def _plain(heading: str) -> str:
    """Take links and emphasis off a heading."""
    linked = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[*`]+|(?<!\w)_+|_+(?!\w)", "", linked).strip()


def _line(data: bytes, offset: int) -> int:
    return data.count(b"\n", 0, offset) + 1
