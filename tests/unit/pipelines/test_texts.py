"""Text files: encodings and titles."""

from __future__ import annotations

import pytest

from streamfold.pipelines.texts import MAX_TITLE, NotText, decode_text, media_type_of, title_of


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("# Pumps\n\ntext", "Pumps"),
        ("text before\n\n## A *second* [level](http://x) ##\n", "A second level"),
        ("Pumps\n=====\ntext", "Pumps"),
        ("Pumps\r\n---\r\ntext", "Pumps"),
        ("---\ntitle: x\n---\n# After front matter", "After front matter"),
        ("```\n# a comment\n```\n# Real", "Real"),
        ("~~~\n# a comment\n~~~\n", "notes"),
        ("#hashtag\n", "notes"),
        ("#\n# Second", "Second"),
        ("snake_case\n\n# a_b `c`", "a_b c"),
        ("", "notes"),
        ("# " + "x" * 1000, "x" * MAX_TITLE),
    ],
)
def test_the_title_of_markdown_is_its_first_heading_else_its_name(text: str, title: str) -> None:
    assert title_of(text, "a/notes.md") == title


def test_the_title_of_plain_text_is_its_name() -> None:
    assert title_of("# no heading", "a/b/notes.v2.txt") == "notes.v2"
    assert title_of("text", "README") == "README"
    assert (media_type_of("a.MD"), media_type_of("a.txt")) == ("text/markdown", "text/plain")


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"one\ntwo\xff", 2),
        (b"\xef\xbb\xbfone\ntwo\nthr\xe9e", 3),
        (b"one\0two", 1),
        ("one\ntwo".encode("utf-16"), 1),
        (b"\xff", 1),
    ],
)
def test_what_is_not_utf8_is_refused_with_its_line(data: bytes, line: int) -> None:
    with pytest.raises(NotText) as caught:
        decode_text(data)
    assert caught.value.line == line
    assert f"line {line}: " in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_the_text() -> None:
    assert decode_text(b"\xef\xbb\xbfone") == "one"
    assert decode_text("zwölf".encode()) == "zwölf"
