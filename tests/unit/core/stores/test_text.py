"""The analyser, and BM25 beside tantivy."""

from __future__ import annotations

import numpy as np
import pytest

from streamfold.core.errors import StoreError
from streamfold.core.stores import LiveText, Text
from streamfold.core.stores.text import BM25, terms, tokens


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Curie’s O'Neil rock'n'roll", ["the", "curie", "o'neil", "rock'n", "roll"]),
        ("Łódź smørrebrød Œuvre Straße Þór", ["lodz", "smorrebrod", "oeuvre", "strasse", "thor"]),
        ("cafe\u0301 ﬁne x² A_b", ["cafe", "fine", "x2", "a", "b"]),
        ("Москва́ 東京", ["москва", "東京"]),
        ("' '' a' 's", ["a", "s"]),
        ("", []),
    ],
)
def test_tokens_fold_characters(text: str, expected: list[str]) -> None:
    assert tokens(text) == expected


def test_terms_leave_out_stop_and_question_words_and_stem() -> None:
    assert terms("Which cities were the capitals of Poland?") == ["citi", "capit", "poland"]


def test_title_counts_three_times_and_unknown_fields_are_refused() -> None:
    store = LiveText(Text("x"))
    store.put([1, 2], [{"title": "radium", "text": "other words"}, {"title": "other words", "text": "radium"}])
    assert len(store.search("radium", 5)[0]) == 0
    store.keep()
    assert store.search("radium", 5)[0].tolist() == [1, 2]
    assert store.search("the of", 5)[0].tolist() == []
    with pytest.raises(StoreError, match="did you mean 'title'"):
        store.put([3], [{"titel": "x"}])
    with pytest.raises(StoreError, match="id -1"):
        store.delete([-1])
    with pytest.raises(StoreError, match="k must"):
        store.search("radium", 0)


def test_scores_agree_with_tantivy() -> None:
    tantivy = pytest.importorskip("tantivy")
    rng = np.random.default_rng(5)
    # Tantivy rounds lengths above 40 to a byte: shorter passages compare exactly.
    texts = [" ".join(f"w{int(w)}" for w in rng.zipf(1.3, n) % 200) for n in rng.integers(5, 40, 500)]
    builder = tantivy.SchemaBuilder()
    builder.add_integer_field("id", stored=True)
    builder.add_text_field("text", tokenizer_name="whitespace")
    index = tantivy.Index(builder.build())
    writer = index.writer(heap_size=15_000_000, num_threads=1)
    ours = BM25()
    for key, text in enumerate(texts):
        writer.add_document(tantivy.Document(id=key, text=text))
        counts: dict[str, float] = {}
        for word in text.split():
            counts[word] = counts.get(word, 0.0) + 1
        ours.put(key, counts)
    writer.commit()
    writer.wait_merging_threads()
    index.reload()
    searcher = index.searcher()
    for _ in range(20):
        question = sorted({f"w{int(w)}" for w in rng.zipf(1.3, 6) % 200})
        found, scores = ours.search(question, 10)
        hits = searcher.search(index.parse_query(" ".join(question), ["text"]), 10).hits
        np.testing.assert_allclose(scores, [score for score, _ in hits], rtol=1e-4)
        assert len(found) == len(hits)
