"""``vector_index`` redoes what changed, leaves nothing behind, and finds what is there."""

from __future__ import annotations

from typing import Any

import pytest

from streamfold.core import EventError, Retrieval
from streamfold.plugins.vector_index import VectorIndex

PARAGRAPHS = [
    f"Paragraph {name} is about {name} and nothing else." for name in ("apples", "bridges", "clouds", "dunes")
]


def upsert(make_event: Any, seq: int, id_: str, text: str, **more: Any) -> Any:
    return make_event(seq, "document.upserted", document_id=id_, text=text, **more)


def ids(bench: Any, query: str, **more: Any) -> list[str]:
    return [hit.document_id for hit in bench.server.retrieve(Retrieval(query=query, **more))]


@pytest.fixture
def index(bench: Any) -> Any:
    return bench(VectorIndex())


def test_an_update_embeds_posts_and_drops_only_the_changed_chunks(index: Any, make_event: Any) -> None:
    index.send(upsert(make_event, 1, "d", "\n\n".join(PARAGRAPHS)))
    before = index.server.document("d")
    written: list[tuple[str, int]] = []
    for name in ("vectors", "text"):
        store = index.stores[name]
        for method in ("upsert", "put", "delete"):
            if hasattr(store, method):
                real = getattr(store, method)

                def spy(keys: Any, *rest: Any, real: Any = real, label: str = f"{name}.{method}") -> None:
                    written.append((label, len(keys)))
                    real(keys, *rest)

                setattr(store, method, spy)
    index.send(upsert(make_event, 2, "d", "\n\n".join(["New words first.", *PARAGRAPHS[:1], *PARAGRAPHS[2:]])))
    after = index.server.document("d")
    assert sorted(written) == [("text.delete", 1), ("text.put", 1), ("vectors.delete", 1), ("vectors.upsert", 1)]
    assert len(set(before.chunk_ids) & set(after.chunk_ids)) == 3
    assert [c.text for c in after.chunks] == ["New words first.", *PARAGRAPHS[:1], *PARAGRAPHS[2:]]
    assert (after.position, after.event_id) == (2, "e2")


def test_updates_end_where_a_single_upsert_of_the_last_text_ends(bench: Any, make_event: Any) -> None:
    one, two = bench(VectorIndex()), bench(VectorIndex())
    for seq in range(4):
        one.send(upsert(make_event, seq, "d", "\n\n".join(PARAGRAPHS[seq:] + PARAGRAPHS[:seq] * 2), title="T" * seq))
    last = upsert(make_event, 9, "d", PARAGRAPHS[0], title="End")
    one.send(last)
    two.send(last)
    assert one.fingerprint() == two.fingerprint()


@pytest.mark.parametrize("how", ["document.deleted", "document.erased", "forget"])
def test_a_removed_document_leaves_no_trace(index: Any, bench: Any, make_event: Any, how: str) -> None:
    kept = upsert(make_event, 1, "kept", PARAGRAPHS[0])
    gone = upsert(make_event, 2, "gone", "\n\n".join(PARAGRAPHS), title="Gone")
    index.send(kept, gone)
    if how == "forget":
        index.forget("document", "gone", gone)
    else:
        index.send(make_event(3, how, document_id="gone"))
    other = bench(VectorIndex())
    other.send(kept)
    assert index.fingerprint() == other.fingerprint()
    assert index.server.document("gone") is None
    assert ids(index, "bridges dunes") == ["kept"]


def test_a_patch_merges_fields_keeps_the_text_and_reposts_the_title(index: Any, make_event: Any) -> None:
    index.send(upsert(make_event, 1, "d", PARAGRAPHS[0], title="Old", metadata={"a": 1, "b": "x"}))
    index.send(upsert(make_event, 2, "e", PARAGRAPHS[1]))
    index.send(make_event(3, "document.patched", document_id="d", title="Zanzibar", metadata={"a": None, "c": True}))
    row = index.server.document("d")
    assert row.fields["title"] == "Zanzibar"
    assert row.fields["metadata"] == {"b": "x", "c": True}
    assert row.fields["text"] == PARAGRAPHS[0]
    assert ids(index, "zanzibar", sources=("bm25",)) == ["d"]
    index.send(upsert(make_event, 4, "d", PARAGRAPHS[0], title="Old", metadata={"a": 1, "b": "x"}))
    assert ids(index, "zanzibar", sources=("bm25",)) == []


def test_patching_an_unknown_document_is_an_event_error_that_says_what_to_do(index: Any, make_event: Any) -> None:
    with pytest.raises(EventError, match=r"'nobody'.*document\.upserted"):
        index.send(make_event(1, "document.patched", document_id="nobody", title="x"))


def test_a_skipped_upsert_withdraws_the_old_text(index: Any, make_event: Any) -> None:
    index.send(upsert(make_event, 1, "d", PARAGRAPHS[0]))
    index.fold(lambda: index.policy.skipped(upsert(make_event, 2, "d", "new"), index.stores))
    index.commit()
    assert index.server.document("d") is None


def test_a_batch_is_embedded_in_one_call_of_distinct_texts(index: Any, make_event: Any) -> None:
    events = [upsert(make_event, n, f"d{n}", f"{PARAGRAPHS[0]}\n\nOwn {n}.") for n in range(3)]
    index.send(*events, make_event(4, "document.deleted", document_id="d0"))
    assert [len(call) for call in index.tools.encoder.calls] == [4]


def test_repeated_paragraphs_are_chunks_of_their_own(index: Any, make_event: Any) -> None:
    index.send(upsert(make_event, 1, "d", "Same.\n\nSame.\n\nSame."))
    assert len(set(index.server.document("d").chunk_ids)) == 3
    assert {hit.start for hit in index.server.retrieve(Retrieval(query="same"))} == {0, 7, 14}


def test_both_sources_find_and_are_named(index: Any, make_event: Any) -> None:
    index.send(*[upsert(make_event, n, f"d{n}", text, url=f"u{n}") for n, text in enumerate(PARAGRAPHS)])
    best = index.server.retrieve(Retrieval(query="bridges", top_k=2))[0]
    assert (best.document_id, best.text, best.url) == ("d1", PARAGRAPHS[1], "u1")
    assert best.sources == ("vector", "bm25")
    assert best.score == pytest.approx(2.0)
    for source in ("vector", "bm25"):
        assert ids(index, "bridges", sources=(source,), top_k=1) == ["d1"]


def test_a_filter_is_answered_in_full_however_rare_its_rows(
    index: Any, make_event: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamfold.plugins._retriever.EXACT", 4)
    monkeypatch.setattr("streamfold.plugins._retriever.OVER_FETCH", 1)
    text = "The same words about rivers {}."
    index.send(*[upsert(make_event, n, f"d{n:03}", text.format(n), metadata={"rare": n % 40 == 0}) for n in range(120)])
    found = ids(index, "rivers", matches=lambda row: row["metadata"]["rare"], top_k=3)
    assert sorted(found) == ["d000", "d040", "d080"]
    assert ids(index, "rivers", matches=lambda row: False) == []


def test_an_empty_index_and_an_empty_text_answer_with_nothing(index: Any, make_event: Any) -> None:
    assert index.server.retrieve(Retrieval(query="x")) == []
    index.send(upsert(make_event, 1, "d", " \n "))
    assert index.server.retrieve(Retrieval(query="x")) == []
    assert index.server.document("d").chunks == ()


def test_documents_come_in_pages_by_id(index: Any, make_event: Any) -> None:
    index.send(*[upsert(make_event, n, id_, "Text.") for n, id_ in enumerate("dacb")])
    assert [d.document_id for d in index.server.documents(after="a", limit=2)] == ["b", "c"]


def test_unknown_modes_and_sources_are_refused(index: Any) -> None:
    for bad in (Retrieval(query="x", mode="ppr"), Retrieval(query="x", sources=("dense",))):
        with pytest.raises(ValueError, match=r"naive|vector"):
            index.server.retrieve(bad)
