"""``graph_index`` follows links to what answers, and after any changes answers as if built afresh."""

from __future__ import annotations

import dataclasses
import sys
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamfold.core import EventError, Retrieval
from streamfold.plugins import _facts
from streamfold.plugins._passages import Passages
from streamfold.plugins.graph_index import GraphConfig, GraphIndex

FILMS = [
    ("goose", "The Goose Woman", "The Goose Woman is a 1925 film directed by Clarence Brown. It stars Louise Dresser."),
    ("brown", "Clarence Brown", "Clarence Leon Brown was a director. He was born in Clinton and died in Santa Monica."),
    ("brown2", "Brown (color)", "Brown is a colour between red and yellow, made of many pigments."),
    ("dresser", "Louise Dresser", "Louise Dresser was an actress, born in Evansville. She died in Woodland Hills."),
    ("clinton", "Clinton, Massachusetts", "Clinton is a town in Worcester County with a large clock factory."),
    ("paris", "Paris", "Paris is the capital of France. Marie Curie met Lise Meitner in Paris."),
    ("curie", "Marie Curie", "Marie Curie found radium. Marie Curie wrote to Lise Meitner about polonium."),
]
MODES = ("mix", "naive", "local", "global", "hybrid", "ppr")
ALL = ("chunks", "entities", "relations")


def upsert(make_event: Any, seq: int, id_: str, title: str | None, text: str, **more: Any) -> Any:
    return make_event(
        seq, "document.upserted", document_id=id_, text=text, **({"title": title} if title else {}), **more
    )


@pytest.fixture
def films(bench: Any, make_event: Any) -> Any:
    made = bench(GraphIndex())
    made.send(*(upsert(make_event, seq, *film) for seq, film in enumerate(FILMS)))
    return made


def found(bench: Any, query: str, **more: Any) -> list[str]:
    return [chunk.document_id for chunk in bench.server.retrieve(Retrieval(query=query, mode="mix", **more))]


def test_a_title_named_in_a_passage_leads_to_its_document(films: Any) -> None:
    chunks = films.server.retrieve(Retrieval(query="Where did the director of The Goose Woman die?", mode="mix"))
    assert [chunk.document_id for chunk in chunks[:2]] == ["goose", "brown"]
    assert chunks[0].path == ()
    assert chunks[1].path == ({"document_id": "goose", "name": "clarence brown"},)
    assert "graph" in chunks[1].sources
    assert found(films, "Where was the director of the goose woman born?")[:2] == ["goose", "brown"], "lower case"
    assert found(films, "Where did the director of The Gopse Woman die?")[:2] == ["goose", "brown"], "a typing error"


def test_a_hop_that_weighs_nothing_leaves_the_passages_order(bench: Any, make_event: Any) -> None:
    made = bench(GraphIndex(GraphConfig(hop_weight=0.0)))
    made.send(*(upsert(make_event, seq, *film) for seq, film in enumerate(FILMS)))
    chunks = made.server.retrieve(Retrieval(query="Where did the director of The Goose Woman die?", mode="mix"))
    assert all(chunk.path == () for chunk in chunks)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_finds_passages_entities_and_relations(films: Any, mode: str) -> None:
    context = films.server.context(Retrieval(query="What did Marie Curie find?", mode=mode, include=ALL, top_k=3))
    assert "curie" in [chunk.document_id for chunk in context.chunks]
    if mode == "naive":
        assert not context.entities
        return
    curie = next(one for one in context.entities if one.entity_id == "marie curie")
    assert curie.name == "Marie Curie"
    assert "radium" in curie.description or "Lise Meitner" in curie.description
    relation = next(one for one in context.relations if one.relation_id == "lise meitner|marie curie")
    assert {relation.source, relation.target} == {"Marie Curie", "Lise Meitner"}
    assert relation.weight == 2.0
    assert len(relation.chunk_ids) == 2


@pytest.mark.parametrize("mode", ["mix", "local", "hybrid"])
def test_a_popular_entity_is_described_alike_from_the_best_passages_alone(
    bench: Any, make_event: Any, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    made = bench(GraphIndex())
    places = ("Warsaw", "Berlin", "Boston", "Geneva", "Prague", "Vienna", "Lisbon")
    for i in range(60):
        text = f"Marie Curie wrote letter {i} from {places[i % 7]}. " + (
            "It tells of radium." if i % 3 else "It is short."
        )
        made.send(upsert(make_event, i, f"letter {i}", None, text))
    made.send(make_event(60, "entity.aliased", entity_id="Marie Curie", aliases=["Madame Curie"]))
    made.send(upsert(make_event, 61, "other", None, "Then Madame Curie told Boston of radium."))
    whole: list[str] = []
    holders = Passages.holders
    asked = Retrieval(query="What of radium in Boston did Marie Curie tell?", mode=mode, include=ALL, top_k=5)
    monkeypatch.setattr(Passages, "holders", lambda on, key: (whole.append(key), holders(on, key))[1])
    before = made.server.context(asked)
    assert "marie curie" in whole
    whole.clear()
    monkeypatch.setattr(_facts, "_POOL", 40)
    assert made.server.context(asked) == before
    assert "marie curie" not in whole, "not all that name her were looked at"
    nobody = dataclasses.replace(asked, matches=lambda fields: fields["document_id"] == "letter 0")
    assert [one.entity_id for one in made.server.context(nobody).entities if one.chunk_ids]
    assert "marie curie" in whole, "too few of the best may be used"


def test_what_a_deleted_document_said_is_in_no_answer(films: Any, make_event: Any) -> None:
    films.send(make_event(20, "document.deleted", document_id="curie"))
    for mode in MODES:
        context = films.server.context(Retrieval(query="What did Marie Curie find?", mode=mode, include=ALL))
        assert "curie" not in [chunk.document_id for chunk in context.chunks]
        told = " ".join([*(e.description for e in context.entities), *(r.description for r in context.relations)])
        assert "radium" not in told
        assert "polonium" not in told
    assert "e:marie curie" in films.view["graph"], "another document still names her"
    films.send(make_event(21, "document.deleted", document_id="paris"))
    assert "e:marie curie" not in films.view["graph"]
    assert films.server.graph("Marie Curie", depth=1, limit=10) is None


def test_an_update_redoes_the_changed_chunks_alone(bench: Any, make_event: Any) -> None:
    made = bench(GraphIndex())
    parts = [f"Ada Lovelace met Person {n} in Town {n}." for n in ("One", "Two", "Three")]
    made.send(upsert(make_event, 1, "d", "T", "\n\n".join(parts)))
    made.tools.encoder.calls.clear()
    made.send(upsert(make_event, 2, "d", "T", "\n\n".join([parts[0], "Ada Lovelace met Person Four.", parts[2]])))
    drained = made.changes[-1]
    assert len(made.view["graph"]) == 4, "three chunks and the document"
    assert "e:person two" not in made.view["graph"]
    assert "e:person four" in made.view["graph"]
    assert set(drained) >= {"graph", "extracts", "words"}
    assert len(drained["graph"]) < 400


def test_the_graph_around_an_entity_is_bounded_and_filtered(films: Any) -> None:
    near = films.server.graph("marie curie", depth=1, limit=10)
    assert {one.entity_id for one in near.entities} >= {"marie curie", "lise meitner"}
    assert not near.truncated
    few = films.server.graph("marie curie", depth=3, limit=1)
    assert (len(few.entities), few.truncated) == (1, True)
    only = films.server.graph("marie curie", depth=1, limit=10, matches=lambda fields: fields["document_id"] == "paris")
    assert {chunk.split("#")[0] for one in only.relations for chunk in one.chunk_ids} == {"paris"}
    assert films.server.graph("nobody", depth=1, limit=10) is None


def test_documents_are_left_out_before_they_were_valid_and_after(bench: Any, make_event: Any) -> None:
    made = bench(GraphIndex())
    made.send(
        upsert(make_event, 1, "old", "King", "The king in Oslo is Harald Hardrada.", valid_to="2020-01-01T00:00:00Z"),
        upsert(make_event, 2, "new", "King", "The king in Oslo is Olav Kyrre.", valid_from="2020-01-01T00:00:00Z"),
    )
    start = int(1_577_836_800e6)  # 2020-01-01
    for at_us, kings in ((start, ["new"]), (start - 1, []), (start + 10**15, ["new"])):
        for mode in MODES:
            context = made.server.context(Retrieval(query="Who is king?", mode=mode, as_of_us=at_us, include=ALL))
            assert {chunk.document_id for chunk in context.chunks} == set(kings), (at_us, mode)
    made.send(make_event(3, "document.upserted", at_us=start - 10, document_id="old", title="King",
                         text="The king in Oslo is Harald Hardrada.", valid_to="2020-01-01T00:00:00Z"))  # fmt: skip
    assert found(made, "Who is king?", as_of_us=start - 5) == ["old"]


def test_a_budget_bounds_the_context(films: Any) -> None:
    whole = films.server.context(Retrieval(query="Marie Curie", mode="mix", include=ALL))
    small = films.server.context(Retrieval(query="Marie Curie", mode="mix", include=ALL, budget_tokens=25))
    size = sum(len(c.text) for c in small.chunks) + sum(len(e.description) for e in small.entities)
    assert 0 < size <= 100
    assert len(small.chunks) < len(whole.chunks)


def test_a_filter_keeps_names_of_other_documents_out(films: Any) -> None:
    context = films.server.context(
        Retrieval(query="Where did the director of The Goose Woman die?", mode="mix", include=ALL,
                  matches=lambda fields: fields["document_id"] != "goose")
    )  # fmt: skip
    assert "goose" not in [chunk.document_id for chunk in context.chunks]
    assert all(step["document_id"] != "goose" for chunk in context.chunks for step in chunk.path)
    assert all(chunk.split("#")[0] != "goose" for one in context.entities for chunk in one.chunk_ids)


def test_a_name_of_documents_that_a_filter_leaves_out_is_no_entity_of_the_answer(bench: Any, make_event: Any) -> None:
    made = bench(GraphIndex())
    made.send(upsert(make_event, 0, "a", None, "Ada Lovelace met Charles Babbage in London."))
    made.send(upsert(make_event, 1, "b", None, "The pump stands in Bergen."))
    request = Retrieval(query="Who was Ada Lovelace?", mode="mix", include=ALL)
    assert "ada lovelace" in {one.entity_id for one in made.server.context(request).entities}
    without = dataclasses.replace(request, matches=lambda fields: fields["document_id"] != "a")
    assert not {one.entity_id for one in made.server.context(without).entities} & {"ada lovelace", "charles babbage"}


def test_the_whole_graph_is_listed_with_all_sources(bench: Any, make_event: Any) -> None:
    made = bench(GraphIndex())
    made.send(upsert(make_event, 0, "a", "Pumps of Norway", "Ada Lovelace met Charles Babbage. It was London."))
    made.send(upsert(make_event, 1, "b", None, "There, in Paris, she wrote: Ada Lovelace met Charles Babbage."))
    names = dict(made.server.names())
    assert (names["ada lovelace"], names["charles babbage"]) == (2, 2)
    assert "pumps of norway" not in names, "no chunk says it"
    [entity] = made.server.entities(["ada lovelace", "nobody"], matches=None)
    assert {one.partition("#")[0] for one in entity.chunk_ids} == {"a", "b"}
    assert made.server.labels(["ada lovelace", "nobody"], matches=None) == ["Ada Lovelace"]
    pairs = made.server.pairs()
    assert ("ada lovelace", "charles babbage") in pairs
    [relation] = made.server.relations([("ada lovelace", "charles babbage"), ("a", "b")], matches=None)
    assert (relation.weight, len(relation.chunk_ids)) == (2.0, 2)

    def only_b(fields: Any) -> bool:
        return bool(fields["document_id"] == "b")

    [entity] = made.server.entities(["ada lovelace"], matches=only_b)
    assert [one.partition("#")[0] for one in entity.chunk_ids] == ["b"]
    assert made.server.relations(pairs, matches=lambda fields: False) == []


def test_a_document_without_a_title_goes_by_its_first_name(bench: Any, make_event: Any) -> None:
    made = bench(GraphIndex())
    made.send(*(upsert(make_event, seq, id_, None, text) for seq, (id_, _, text) in enumerate(FILMS)))
    assert found(made, "Where did the director of The Goose Woman die?", top_k=3)[0] == "goose"
    chunks = made.server.retrieve(Retrieval(query="Where did the director of The Goose Woman die?", mode="mix"))
    brown = next(chunk for chunk in chunks if chunk.document_id == "brown")
    assert brown.path == ({"document_id": "goose", "name": "clarence brown"},)


def test_questions_of_any_kind_are_answered(films: Any) -> None:
    for query in ("?", "the of and", "\u200b", "日本語", "a" * 10_000, "Zqxj Wvkp", "I", "'s"):
        for mode in MODES:
            films.server.context(Retrieval(query=query, mode=mode, include=ALL))


NAMES = ["Ada Lovelace", "Ada", "Mary Somerville", "London", "Charles Babbage", "Kings of Norway", "NORWAY"]
TEXTS = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from(["met", "wrote to", "in 1840 saw"]), st.sampled_from(NAMES)),
    min_size=1, max_size=4,
).map(lambda parts: "\n\n".join(f"{a} {verb} {b}. The london fog was grey." for a, verb, b in parts))  # fmt: skip
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("upsert"), st.integers(0, 3), st.sampled_from([*NAMES, None]), TEXTS),
        st.tuples(st.just("delete"), st.integers(0, 3)),
        st.tuples(st.just("patch"), st.integers(0, 3), st.sampled_from([*NAMES, None])),
    ),
    max_size=12,
)  # fmt: skip


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_after_any_changes_it_answers_as_if_built_afresh(bench: Any, make_event: Any, steps: list[Any]) -> None:
    changed, fresh = bench(GraphIndex()), bench(GraphIndex())
    last: dict[str, tuple[str | None, str]] = {}
    for seq, (kind, number, *rest) in enumerate(steps):
        id_ = f"d{number}"
        if kind == "upsert":
            last[id_] = (rest[0], rest[1])
            changed.send(upsert(make_event, seq, id_, rest[0], rest[1]))
        elif kind == "delete":
            last.pop(id_, None)
            changed.send(make_event(seq, "document.deleted", document_id=id_))
        elif id_ in last:
            last[id_] = (rest[0], last[id_][1])
            changed.send(make_event(seq, "document.patched", document_id=id_, title=rest[0]))
            changed.send(upsert(make_event, seq, id_, *last[id_]))  # a patch leaves the vectors until the next upsert
    for seq, (id_, (title, text)) in enumerate(sorted(last.items())):
        fresh.send(upsert(make_event, 100 + seq, id_, title, text))
    for store in ("graph", "extracts", "words", "text", "chunks"):
        assert changed.view[store].fingerprint() == fresh.view[store].fingerprint(), store
    assert sorted(changed.server.names()) == sorted(fresh.server.names())
    keys, pairs = sorted(dict(fresh.server.names())), sorted(fresh.server.pairs())
    assert sorted(changed.server.pairs()) == pairs
    assert changed.server.entities(keys, matches=None) == fresh.server.entities(keys, matches=None)
    named = [one.name for one in fresh.server.entities(keys, matches=None)]
    assert changed.server.labels(keys, matches=None) == named
    for mode in MODES:
        request = Retrieval(query="Who did Ada Lovelace meet in London?", mode=mode, include=ALL)
        one, two = changed.server.context(request), fresh.server.context(request)
        assert [(c.chunk_id, c.text, c.path) for c in one.chunks] == [
            (c.chunk_id, c.text, c.path) for c in two.chunks
        ], mode
        assert [c.score for c in one.chunks] == pytest.approx([c.score for c in two.chunks], abs=2e-3)
        assert [(e.entity_id, e.description) for e in one.entities] == [
            (e.entity_id, e.description) for e in two.entities
        ]
        assert [(r.relation_id, r.description) for r in one.relations] == [
            (r.relation_id, r.description) for r in two.relations
        ]


def test_an_entity_with_many_mentions_takes_the_newest_fact_at_once(bench: Any, make_event: Any) -> None:
    made = bench(GraphIndex())
    texts = [f"Acme Steel sold rails to Town {n} in the year of the flood." for n in range(1500)]
    made.send(*(upsert(make_event, n, f"d{n}", None, text) for n, text in enumerate(texts)))
    made.send(upsert(make_event, 5000, "new", None, "Acme Steel swallowed Zenith Forge overnight."))
    for mode in ("mix", "local", "global", "hybrid"):
        request = Retrieval(query="Whom has Acme Steel swallowed?", mode=mode, include=ALL)
        context = made.server.context(request)
        assert context.chunks[0].document_id == "new", mode
        assert "acme steel|zenith forge" in [one.relation_id for one in context.relations], mode
    made.send(make_event(5001, "document.deleted", document_id="new"))
    assert "Zenith" not in str(made.server.context(Retrieval(query="Zenith Forge", mode="mix", include=ALL)))


def test_what_was_looked_up_before_other_writes_is_looked_up_right_after_them(bench: Any, make_event: Any) -> None:
    """Places of passages are remembered: deletions renumber them, and numbers are used again."""
    made, fresh = bench(GraphIndex()), bench(GraphIndex())
    texts = [f"Acme Steel sold rails to Town {n % 7} in the year of flood {n}." for n in range(600)]
    events = [upsert(make_event, n, f"d{n}", None, text) for n, text in enumerate(texts)]
    changes = [make_event(1000 + n, "document.deleted", document_id=f"d{n}") for n in range(0, 600, 2)]
    changes += [upsert(make_event, 2000 + n, f"d{n}", None, texts[(n * 7) % 600] + " Twice.") for n in range(300)]
    made.send(*events)
    request = Retrieval(query="Whom did Acme Steel sell rails to in Town 3?", mode="mix", include=ALL)
    for start in range(0, len(changes), 100):
        assert made.server.context(request).entities
        made.send(*changes[start : start + 100])
    fresh.send(*events, *changes)
    assert made.server.context(request) == fresh.server.context(request)


def calls(work: Any) -> int:
    """Count the calls of functions, Python's and C's, that some work makes."""
    count = 0

    def counted(_frame: Any, what: str, _argument: Any) -> None:
        nonlocal count
        count += what in ("call", "c_call")

    sys.setprofile(counted)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def test_what_an_extractor_told_costs_the_same_however_much_is_stored(bench: Any, make_event: Any) -> None:
    made = bench(GraphIndex(GraphConfig(single_valued=("works at",))))
    sent = 0

    def fill(count: int) -> None:
        nonlocal sent
        texts = [f"Acme Steel sold rails to Town {n}. Ada Byron works at Works {n}." for n in range(sent, count)]
        made.send(*(upsert(make_event, n, f"d{n}", None, text) for n, text in enumerate(texts, sent)))
        sent = count

    def told(n: int) -> Any:
        row = made.view["documents"].get(f"d{n}")
        data = {
            "document_id": f"d{n}", "input_position": row.text_position, "extractor": "somebody",
            "chunk_hash": row.ids[0].split("#")[1],
            "entities": [{"name": "Acme Steel", "type": "Organization", "description": "A forge."}],
            "relations": [{"source": "Ada Byron", "target": f"Works {n}", "keywords": ["works at"]}],
        }  # fmt: skip
        return make_event(100_000 + n, "document.extracted", **data)

    def cost(first: int) -> int:
        for n in range(first, first + 20):  # lists have grown, caches are filled
            made.send(told(n))
        events = [told(n) for n in range(first + 20, first + 50)]
        return sum(calls(partial(made.send, event)) for event in events)

    fill(60)
    few = cost(5)
    fill(1500)
    for n in range(60, 1400):
        made.send(told(n))
    many = cost(1440)
    assert many <= 1.05 * few, f"{few} calls with 60 documents, {many} with 1,500"
    entity = made.server.context(Retrieval(query="Ada Byron", mode="local", include=ALL)).entities[0]
    assert entity.entity_id == "ada byron"


# -- names that are one -----------------------------------------------------------------------------------------------
@pytest.fixture
def companies(bench: Any, make_event: Any) -> Any:
    made = bench(GraphIndex())
    texts = {
        "a": "International Business Machines built Deep Blue in Armonk.",
        "b": "IBM sold its laptops to Lenovo in 2005.",
        "c": "Garry Kasparov lost to Deep Blue.",
    }
    made.send(*(upsert(make_event, seq, id_, None, text) for seq, (id_, text) in enumerate(texts.items())))
    return made


def around(bench: Any, name: str) -> set[str]:
    near = bench.server.graph(name, depth=1, limit=50)
    return set() if near is None else {one.entity_id for one in near.entities} - {name}


def test_merged_names_are_one_entity_until_the_merge_is_taken_back(companies: Any, make_event: Any) -> None:
    full = "international business machines"
    before = around(companies, "ibm"), around(companies, full)
    companies.send(make_event(10, "entity.merged", entity_id="IBM", into="International Business Machines"))
    for name in ("ibm", "IBM", full):
        near = companies.server.graph(name, depth=1, limit=50)
        assert near.entities[0].entity_id == full
        assert near.entities[0].name == "International Business Machines"
        assert {one.entity_id for one in near.entities} >= {"deep blue", "lenovo"}
        assert near.entities[0].score == 2.0
    context = companies.server.context(Retrieval(query="What did IBM do?", mode="local", include=ALL))
    assert {chunk.document_id for chunk in context.chunks} >= {"a", "b"}
    companies.send(upsert(make_event, 11, "d", None, "IBM bought Red Hat in 2019."))
    assert "red hat" in around(companies, full), "it survives later updates"
    companies.send(make_event(12, "document.deleted", document_id="d"))
    companies.send(make_event(13, "entity.merged", entity_id="IBM", into="International Business Machines", undo=True))
    assert (around(companies, "ibm"), around(companies, full)) == before
    assert len(companies.view["names"]) == 0


def test_names_that_may_be_one_are_suggested_with_the_reason(bench: Any, make_event: Any) -> None:
    made = bench(GraphIndex())
    texts = [
        "International Business Machines opened in Armonk. IBM hired many people there.",
        "The Acme Widgets Company sued Acme Widget over a name in Boston.",
        "Ada King met Babbage. Ada King knew Somerville. Ada King read Menabrea.",
        "Babbage wrote to Lovelace. Somerville taught Lovelace. Menabrea cited Lovelace.",
    ]
    made.send(*(upsert(make_event, seq, f"d{seq}", None, text) for seq, text in enumerate(texts)))

    def suggested(name: str) -> dict[str, str]:
        near = made.server.graph(name, depth=1, limit=50)
        return {one.entity_id: one.reason for one in near.merge_candidates}

    assert suggested("IBM") == {"international business machines": "acronym"}
    assert suggested("international business machines")["ibm"] == "acronym"
    assert suggested("Lovelace").get("ada king") == "neighbours"
    assert suggested("Boston") == {}
    made.send(make_event(9, "entity.merged", entity_id="IBM", into="International Business Machines"))
    assert suggested("IBM") == {}


def test_names_that_look_alike_are_suggested_where_they_share_some_company(bench: Any, make_event: Any) -> None:
    made = bench(GraphIndex())
    texts = [
        "Katarzyna Nowakowska met Babbage. Katarzyna Nowakowska knew Somerville. Katarzyna Nowakowska read Menabrea.",
        "Katarzyna Nowakowski met Babbage. Katarzyna Nowakowski knew Somerville. Katarzyna Nowakowski saw Paris.",
        "Katarzyna Nowakowski read Menabrea. Katarzyna Nowakowski saw Vienna. Katarzyna Nowakowski saw Milan.",
        "Katarzyna Nowakowski left Lisbon.",
        "Babbage met Adam Zielinski. Somerville met Adam Zielinski. Menabrea met Adam Zielinski.",
        "Adam Zielinski saw Oslo. Adam Zielinski saw Riga. Adam Zielinski saw Cork. Adam Zielinski saw Bonn.",
        "Zenith Corporation built radios in Chicago.",
        "Detroit admired the Zenith towers.",
    ]
    made.send(*(upsert(make_event, seq, f"d{seq}", None, text) for seq, text in enumerate(texts)))

    def suggested(name: str) -> dict[str, str]:
        near = made.server.graph(name, depth=1, limit=50)
        return {one.entity_id: one.reason for one in near.merge_candidates}

    assert suggested("Katarzyna Nowakowska").get("katarzyna nowakowski") == "embedding"
    assert "adam zielinski" not in suggested("Katarzyna Nowakowska"), "as much company, another name"
    assert suggested("Zenith Corporation") == {"zenith": "normal form"}, "without a common neighbour"


def test_an_alias_leads_to_the_document_of_that_title(bench: Any, make_event: Any) -> None:
    made = bench(GraphIndex())
    made.send(
        upsert(make_event, 1, "ibm", "International Business Machines", "A company with its seat in Armonk."),
        upsert(make_event, 2, "chess", "Deep Blue", "Deep Blue was a chess computer built by Big Blue engineers."),
        *(upsert(make_event, 3 + n, f"x{n}", f"Town {n}", "A town with a river.") for n in range(20)),
    )
    question = "Where is the seat of the company that built Deep Blue?"

    def path() -> Any:
        return {c.document_id: c.path for c in made.server.retrieve(Retrieval(query=question, mode="mix"))}.get("ibm")

    assert not path()
    made.send(make_event(50, "entity.aliased", entity_id="International Business Machines", aliases=["Big Blue"]))
    assert path() == ({"document_id": "chess", "name": "big blue"},)
    made.send(
        make_event(51, "entity.aliased", entity_id="international business machines", aliases=["Big Blue"], undo=True)
    )
    assert not path()


def test_a_split_takes_names_out_and_a_new_name_is_shown(companies: Any, make_event: Any) -> None:
    companies.send(make_event(10, "entity.merged", entity_id="IBM", into="Lenovo"))
    assert companies.server.graph("ibm", depth=1, limit=9).entities[0].entity_id == "lenovo"
    companies.send(make_event(11, "entity.split", entity_id="Lenovo", into=["IBM"]))
    assert companies.server.graph("ibm", depth=1, limit=9).entities[0].entity_id == "ibm"
    companies.send(make_event(12, "entity.renamed", entity_id="ibm", name="I.B.M."))
    assert companies.server.graph("ibm", depth=1, limit=9).entities[0].name == "I.B.M."
    companies.send(make_event(13, "entity.renamed", entity_id="ibm", name="I.B.M.", undo=True))
    assert companies.server.graph("ibm", depth=1, limit=9).entities[0].name == "IBM"


@pytest.mark.parametrize(
    ("type_", "data", "code"),
    [
        ("entity.merged", {"entity_id": "!!!", "into": "ibm"}, "no-name"),
        ("entity.merged", {"entity_id": "lenovo", "into": "big"}, "merge-circle"),
        ("entity.merged", {"entity_id": "a", "into": ["b", "c"]}, "invalid-event"),
        ("entity.split", {"entity_id": "lenovo", "into": ["ibm"]}, "not-merged"),
        ("entity.aliased", {"entity_id": "lenovo", "undo": True}, "invalid-event"),
        ("entity.aliased", {"entity_id": "lenovo", "aliases": ["Lenovo"]}, "merge-circle"),
    ],
)
def test_a_merge_that_cannot_be_is_refused_whole(
    companies: Any, make_event: Any, type_: str, data: dict[str, Any], code: str
) -> None:
    companies.send(make_event(10, "entity.aliased", entity_id="Lenovo", aliases=["Big"]))
    before = companies.fingerprint()
    with pytest.raises(EventError) as refused:
        companies.send(make_event(11, type_, **data))
    assert refused.value.code == code
    assert companies.fingerprint() == before
