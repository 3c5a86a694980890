"""The chunker is exact, bounded, stable and linear."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamfold.core import ConfigError
from streamfold.plugins.sentences import Sentences, make

WORDS = st.sampled_from(["alpha", "beta", "gamma.", "Delta!", "d.", "日本語。", "x" * 130, "42.", "#"])
PARAGRAPH = st.lists(WORDS, min_size=1, max_size=60).map(" ".join).map(lambda text: "P " + text)


@given(st.text(max_size=400) | st.lists(st.sampled_from([" ", "\n", "# ", "a.", "B", "\n\n"])).map("".join))
def test_a_chunk_is_exactly_its_span_and_no_word_is_lost(text: str) -> None:
    end = 0
    for chunk in Sentences(5).split(text):
        assert chunk.text == text[chunk.start : chunk.end]
        assert chunk.text == chunk.text.strip() != ""
        assert not text[end : chunk.start].strip()
        end = chunk.end
    assert not text[end:].strip()


@given(st.lists(PARAGRAPH, min_size=1, max_size=5), st.integers(2, 50))
def test_a_chunk_holds_at_most_max_tokens_words(paragraphs: list[str], limit: int) -> None:
    assert all(len(chunk.text.split()) <= limit for chunk in Sentences(limit).split("\n\n".join(paragraphs)))


@given(st.lists(PARAGRAPH, min_size=2, max_size=6), PARAGRAPH, st.data())
def test_an_edit_of_one_paragraph_leaves_all_other_chunks_equal(old: list[str], new: str, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(old) - 1))
    chunker = Sentences(12)
    edited = [*old[:at], new, *old[at + 1 :]]

    def elsewhere(paragraphs: list[str]) -> list[str]:
        start = sum(len(p) + 2 for p in paragraphs[:at])
        end = start + len(paragraphs[at])
        chunks = chunker.split("\n\n".join(paragraphs))
        return [c.text for c in chunks if c.end <= start or c.start >= end]

    assert elsewhere(old) == elsewhere(edited)


def test_within_a_long_paragraph_the_cuts_fall_back_into_step_after_an_edit() -> None:
    text = " ".join(f"Sentence number {i} says something about topic {i * 7919 % 101}." for i in range(2000))
    before = {chunk.text for chunk in Sentences(50).split(text)}
    after = {chunk.text for chunk in Sentences(50).split("A new first sentence. " + text)}
    assert len(after - before) <= 5


def test_a_heading_starts_a_chunk_and_joins_the_paragraph_after_it() -> None:
    text = "Intro.\n# One\n\nBody one.\n\nMore.\n## Two\nBody two."
    assert [c.text for c in Sentences().split(text)] == ["Intro.", "# One\n\nBody one.", "More.", "## Two\nBody two."]


def test_sentences_are_kept_whole_where_they_fit() -> None:
    text = "Dr. A. Smith came in 849. He said: no! Then a third sentence follows. And the last one is here."
    chunks = [chunk.text for chunk in Sentences(8).split(text)]
    assert all(chunk[-1] in ".!" for chunk in chunks)


@pytest.mark.parametrize("piece", ["word ", "x", "日", "end. ", "# a\n", "\n", " ", "\n \n"])
def test_a_megabyte_of_anything_is_cut_without_losing_a_word(piece: str) -> None:
    text = piece * (1_000_000 // len(piece))
    chunks = Sentences().split(text)
    assert "".join("".join(c.text.split()) for c in chunks) == "".join(text.split())


def test_settings_are_checked_and_are_part_of_the_version() -> None:
    assert make({"max_tokens": 50}).version != make({}).version
    with pytest.raises(ConfigError, match="max_tokens"):
        make({"max_token": 5})
    with pytest.raises(ConfigError, match="at least 2"):
        make({"max_tokens": 1})
