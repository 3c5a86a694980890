"""``export`` and ``import`` against a real service."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import networkx as nx
import pyarrow.parquet as pq
import pytest

from streamfold.pipelines.cli.subservice import SubService
from tests.waiting import patient

Run = Callable[..., tuple[int, Any, str]]
CURIE = "Marie Curie met Lise Meitner in Paris. Marie Curie studied radium with Pierre Curie."
MEITNER = "Lise Meitner worked with Otto Hahn in Berlin. Otto Hahn received the Nobel Prize.\x0b"


@pytest.fixture
def api(service: SubService) -> Iterator[httpx.Client]:
    """The service, without documents at the start."""
    hooks = {"request": [patient]}
    with httpx.Client(base_url=service.url, trust_env=False, timeout=120, event_hooks=hooks) as client:
        assert client.delete("/compat/lightrag/documents").status_code == 200
        yield client


def store(api: httpx.Client, id_: str, text: str, **more: Any) -> None:
    assert api.put(f"/v1/documents/{id_}?wait=visible", json={"text": text, **more}).status_code == 200


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()]


def paged(api: httpx.Client, path: str, limit: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor: dict[str, str] = {}
    while True:
        page = api.get(path, params={"limit": limit} | cursor).json()
        found += page["items"]
        if not page["next_cursor"]:
            return found
        cursor = {"cursor": page["next_cursor"]}


# -- listing -----------------------------------------------------------------------------------------------------------
def test_entities_and_relations_come_in_pages_with_all_their_sources(api: httpx.Client) -> None:
    store(api, "curie", CURIE)
    store(api, "meitner", MEITNER)
    entities = paged(api, "/v1/entities", 2)
    assert entities == paged(api, "/v1/entities", 1000)
    ids = [one["entity_id"] for one in entities]
    assert ids == sorted(set(ids))
    assert {"marie curie", "lise meitner", "otto hahn", "paris"} <= set(ids)
    meitner = next(one for one in entities if one["entity_id"] == "lise meitner")
    assert {id_.partition("#")[0] for id_ in meitner["chunk_ids"]} == {"curie", "meitner"}
    assert meitner["score"] == 2

    relations = paged(api, "/v1/relations", 2)
    assert relations == paged(api, "/v1/relations", 1000)
    around = api.get("/v1/graph", params={"entity": "lise meitner"}).json()["relations"]
    listed = {one["relation_id"]: one["chunk_ids"] for one in relations}
    assert around
    assert all(sorted(listed[one["relation_id"]]) == sorted(one["chunk_ids"]) for one in around)

    api.delete("/v1/documents/meitner")
    assert "otto hahn" not in {one["entity_id"] for one in paged(api, "/v1/entities", 3)}, "hidden at once"
    assert not [one for one in paged(api, "/v1/relations", 3) if "otto hahn" in one["relation_id"]]


def test_names_that_were_merged_are_one_entity_with_the_sources_of_both(api: httpx.Client) -> None:
    store(api, "one", "Lise Meitner met Otto Hahn.")
    store(api, "two", "Frau Meitner met Otto Hahn.")

    def merge(id_: str, undo: bool) -> None:
        data = {"entity_id": "Frau Meitner", "into": "Lise Meitner", "undo": undo}
        event = {"specversion": "1.0", "id": id_, "source": "test", "type": "entity.merged", "data": data}
        assert api.post("/v1/events?wait=visible", json=event).status_code == 200

    merge("merge", False)
    entities = {one["entity_id"]: one for one in paged(api, "/v1/entities", 2)}
    assert "frau meitner" not in entities
    assert {id_.partition("#")[0] for id_ in entities["lise meitner"]["chunk_ids"]} == {"one", "two"}
    [relation] = paged(api, "/v1/relations", 2)
    assert relation["relation_id"] == "lise meitner|otto hahn"
    assert {id_.partition("#")[0] for id_ in relation["chunk_ids"]} == {"one", "two"}
    drawn = api.get("/compat/lightrag/graphs", params={"label": "*"}).json()
    assert {node["id"] for node in drawn["nodes"]} == {"Lise Meitner", "Otto Hahn"}
    assert len(drawn["edges"]) == 1
    merge("undo", True)
    assert "frau meitner" in {one["entity_id"] for one in paged(api, "/v1/entities", 2)}


def test_an_entity_of_many_chunks_lists_them_all(api: httpx.Client) -> None:
    for i in range(70):
        store(api, f"{i:02}", f"Number {i}: Lise Meitner met Otto Hahn.")
    found = {one["entity_id"]: one["chunk_ids"] for one in paged(api, "/v1/entities", 1000)}
    assert len(found["lise meitner"]) == 70
    [relation] = [one for one in paged(api, "/v1/relations", 1000) if one["relation_id"] == "lise meitner|otto hahn"]
    assert len(relation["chunk_ids"]) == 70


def test_documents_are_listed_with_their_texts_on_request(api: httpx.Client) -> None:
    store(api, "curie", CURIE, title="Curie")
    [short] = api.get("/v1/documents").json()["items"]
    assert not {"text", "chunks"} & set(short)
    [full] = api.get("/v1/documents?include=text").json()["items"]
    assert full == {k: v for k, v in api.get("/v1/documents/curie").json().items() if k != "version"}
    assert api.get("/v1/documents?include=chunks").status_code == 422
    assert api.get("/v1/entities?cursor=x").status_code == 400
    assert api.get("/v1/relations?limit=0").status_code == 422


# -- export ------------------------------------------------------------------------------------------------------------
def test_an_export_holds_everything_and_can_be_sent_again(api: httpx.Client, run: Run) -> None:
    store(api, "curie", CURIE, title="Marie <Curie>", url="http://x/curie", metadata={"year": 1903})
    store(api, "meitner", MEITNER, valid_from="1979-01-01T00:00:00Z")
    code, report, _ = run("export", "out")
    assert code == 0
    entities, relations = paged(api, "/v1/entities", 1000), paged(api, "/v1/relations", 1000)
    counts = {"documents": 2, "chunks": 2, "entities": len(entities), "relations": len(relations)}
    assert report["counts"] == counts
    assert json.loads(Path("out/export.json").read_text())["counts"] == counts
    assert sorted(file.name for file in Path("out").iterdir()) == [
        "chunks.jsonl", "documents.jsonl", "entities.jsonl", "export.json", "graph.graphml", "relations.jsonl",
    ]  # fmt: skip
    assert rows(Path("out/entities.jsonl")) == entities
    assert run("export", "parquet", "--parquet")[0] == 0
    for what in counts:
        table = pq.read_table(f"parquet/{what}.parquet").to_pylist()
        wanted = rows(Path(f"out/{what}.jsonl"))
        for row in wanted:
            row |= {"metadata": json.dumps(row["metadata"])} if "metadata" in row else {}
        assert [{k: v for k, v in row.items() if k in want} for row, want in zip(table, wanted, strict=True)] == wanted
    assert [one["relation_id"] for one in rows(Path("out/relations.jsonl"))] == [r["relation_id"] for r in relations]
    documents = {one["document_id"]: one for one in rows(Path("out/documents.jsonl"))}
    assert documents["curie"] == {
        "document_id": "curie", "text": CURIE, "title": "Marie <Curie>", "url": "http://x/curie",
        "metadata": {"year": 1903},
    }  # fmt: skip
    for chunk in rows(Path("out/chunks.jsonl")):
        assert documents[chunk["document_id"]]["text"][chunk["start"] : chunk["end"]] == chunk["text"]

    graph = nx.read_graphml("out/graph.graphml")
    assert set(graph) == {one["entity_id"] for one in entities}
    assert graph.number_of_edges() == len(relations)
    assert graph.nodes["lise meitner"]["name"] == "Lise Meitner"
    edge = graph.edges["lise meitner", "otto hahn"]
    assert json.loads(edge["chunk_ids"])[0].startswith("meitner#")

    assert run("export", "out")[0] == 2, "it is there already"
    api.delete("/compat/lightrag/documents")
    code, sent, _ = run("send", "out/documents.jsonl", "--type", "document.upserted", "--wait")
    assert (code, sent["accepted"]) == (0, 2)
    for one in relations:  # the time of the event counts where a document names none
        one["valid_from"] = one["valid_from"] if one["valid_from"].startswith("1979") else None
    again = {one["relation_id"]: one for one in paged(api, "/v1/relations", 1000)}
    assert [again[one["relation_id"]] | {"valid_from": one["valid_from"]} for one in relations] == relations
    assert again["lise meitner|otto hahn"]["valid_from"].startswith("1979")


def test_an_export_of_nothing_and_one_that_fails(api: httpx.Client, run: Run, tmp_path: Path) -> None:
    code, report, _ = run("export", "nothing")
    assert (code, report["counts"]["documents"], report["counts"]["entities"]) == (0, 0, 0)
    assert nx.read_graphml("nothing/graph.graphml").number_of_nodes() == 0
    assert run("export", "none", "--url", "http://127.0.0.1:9")[0] == 4
    assert not Path("none").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nothing"], "nothing half done is left"


# -- LightRAG ----------------------------------------------------------------------------------------------------------
def working_folder(folder: Path) -> Path:
    """Write what LightRAG 1.5 leaves in its working folder, as far as it matters here."""
    folder.mkdir(parents=True)
    documents = {
        "doc-1": {"content": CURIE, "file_path": "curie.txt", "parse_format": "raw"},
        "doc-2": {"content": "# Otto Hahn\n\n" + MEITNER.rstrip("\x0b"), "file_path": "hahn.md"},
        "doc-3": {"content": "", "file_path": "chunks.txt"},
        "doc-4": {"content": "", "file_path": "empty.txt"},
        "doc-5": {"content": "No source is known.", "file_path": "unknown_source"},
    }
    states = {
        "doc-1": {"status": "processed", "file_path": "curie.txt", "created_at": "2025-03-31T12:34:56.123456+02:00"},
        "doc-2": {"status": "processed", "file_path": "hahn.md", "created_at": "9999-01-01T00:00:00+00:00"},
    }
    text = "".join(f"Sentence {i} is about Berlin. " for i in range(40)).strip()
    chunks = {
        "chunk-b": {"content": text[400:], "full_doc_id": "doc-3", "chunk_order_index": 1},
        "chunk-a": {"content": text[:600], "full_doc_id": "doc-3", "chunk_order_index": 0},
    }
    for name, content in (("full_docs", documents), ("doc_status", states), ("text_chunks", chunks)):
        (folder / f"kv_store_{name}.json").write_text(json.dumps(content))
    graph = nx.Graph()
    graph.add_node("Marie Curie", entity_id="Marie Curie", entity_type="person", description="One.<SEP>Two.")
    graph.add_node("Radium", entity_id="Radium", entity_type="concept", description="A metal.")
    graph.add_edge("Marie Curie", "Radium", description="She studied it.", keywords="research,physics", weight=2.0)
    nx.write_graphml(graph, folder / "graph_chunk_entity_relation.graphml")
    return folder


def test_a_lightrag_working_folder_is_imported(api: httpx.Client, run: Run, tmp_path: Path) -> None:
    working_folder(tmp_path / "rag" / "space")
    code, sent, said = run("import", "lightrag", "rag", "--wait")
    assert (code, sent["accepted"], sent["rejected"]) == (3, 4, 1)
    assert [one["file"] for one in sent["results"]] == ["doc-4"]
    assert "5 documents; 2 entities and 1 relations go with their chunks" in said
    assert "0 entities and 0 relations were told of 0 chunks; left out: 2 entities and 1 relations" in said, (
        "no sources"
    )
    documents = {one["document_id"]: one for one in api.get("/v1/documents?include=text").json()["items"]}
    assert set(documents) == {"doc-1", "doc-2", "doc-3", "doc-5"}
    assert documents["doc-1"]["text"] == CURIE
    assert documents["doc-1"]["metadata"] == {"file_path": "curie.txt"}
    assert documents["doc-2"]["title"] == "Otto Hahn"
    assert documents["doc-3"]["text"] == "".join(f"Sentence {i} is about Berlin. " for i in range(40)).strip()
    assert "metadata" not in documents["doc-5"]
    events = api.get("/v1/events", params={"subject": "doc-1"}).json()["items"]
    assert events[-1]["event"]["time"].startswith("2025-03-31T10:34:56")

    answer = api.post("/compat/lightrag/query", json={"query": "Whom did Marie Curie meet?"}).json()
    assert answer["references"][0]["file_path"] == "curie.txt"
    again = run("import", "lightrag", "rag/space")[1]
    assert (again["accepted"], again["duplicates"]) == (0, 4)


def test_what_is_no_working_folder_is_refused(api: httpx.Client, run: Run, tmp_path: Path) -> None:
    assert run("import", "lightrag", "nowhere")[0] == 2
    Path("bare").mkdir()
    assert "kv_store_full_docs.json" in run("import", "lightrag", "bare")[2]
    for name in "ab":
        working_folder(tmp_path / "two" / name)
    code, _, said = run("import", "lightrag", "two")
    assert (code, "several workspaces" in said) == (2, True)
    Path("two/a/kv_store_full_docs.json").write_text('{"doc-1": ')
    assert run("import", "lightrag", "two/a")[0] == 1
    assert api.get("/v1/documents").json()["items"] == []


PARTS = ("Marie Curie studied radium in Paris. ", "Lise Meitner worked with Otto Hahn. ", "The prize came late. ")
PARTED = "\n\n".join(part * 20 for part in PARTS)
FORESEEN = "A chemist whom nobody named in the text foresaw it."


def folder_with_facts(folder: Path, name: str) -> Path:
    """Write a working folder in which a model told of three documents (``name``-1 …); the third has no text."""
    folder.mkdir(parents=True, exist_ok=True)
    one, two, three = (f"{name}-{i}" for i in (1, 2, 3))
    middle = PARTED.index("The prize")
    rows = {
        "full_docs": {one: {"content": PARTED}, two: {"content": CURIE}, three: {"content": ""}},
        "text_chunks": {
            "chunk-1": {"content": PARTED[:middle].strip(), "full_doc_id": one},
            "chunk-2": {"content": PARTED[middle:].strip(), "full_doc_id": one},
            "chunk-3": {"content": CURIE, "full_doc_id": two},
            "chunk-4": {"content": "", "full_doc_id": three},
        },
        "entity_chunks": {"Marie Curie": {"chunk_ids": ["chunk-1", "chunk-3"], "count": 2}},
    }
    for store_, content in rows.items():
        (folder / f"kv_store_{store_}.json").write_text(json.dumps(content))
    graph = nx.Graph()
    for entity, kind, description, source in (
        ("Marie Curie", "person", "She won two prizes.<SEP>A physicist.", "chunk-1"),
        ("Radium", "concept", "A metal that glows.", "chunk-1<SEP>chunk-3"),
        ("Otto Hahn", "UNKNOWN", "He shared the work.", "chunk-1"),
        ("Ida Noddack", "person", FORESEEN, "chunk-2"),
        ("Nobody", "person", "Without a text.", "chunk-4<SEP>chunk-9"),
    ):
        graph.add_node(entity, entity_id=entity, entity_type=kind, description=description, source_id=source)
    told = {"description": "She found out what radium does.", "keywords": "research,physics", "weight": 2.0}
    graph.add_edge("Marie Curie", "Radium", source_id="chunk-1<SEP>chunk-3", **told)
    graph.add_edge("Nobody", "Radium", description="Nothing.", keywords="none", weight=1.0, source_id="chunk-9")
    nx.write_graphml(graph, folder / "graph_chunk_entity_relation.graphml")
    return folder


def told_of(api: httpx.Client, document_id: str) -> list[dict[str, Any]]:
    items = api.get("/v1/events", params={"subject": document_id, "limit": 1000}).json()["items"]
    return [one["event"]["data"] for one in items if one["event"]["type"] == "document.extracted"]


def test_what_lightrags_model_found_goes_with_the_chunks_that_say_it(
    api: httpx.Client, run: Run, tmp_path: Path
) -> None:
    folder_with_facts(tmp_path / "rag", "told")
    code, sent, said = run("import", "lightrag", "rag", "--wait")
    texts = {
        one["chunk_id"].partition("#")[2].partition(".")[0]: one["text"]
        for id_ in ("told-1", "told-2") for one in api.get(f"/v1/documents/{id_}").json()["chunks"]
    }  # fmt: skip
    told = told_of(api, "told-1") + told_of(api, "told-2")
    assert (code, sent["accepted"], sent["rejected"]) == (3, 2 + len(told), 1), "told-3 has no text"
    assert f"4 entities and 1 relations were told of {len(told)} chunks; left out: 1 entities and 1 relations" in said
    assert {one["extractor"] for one in told} == {"lightrag"}
    for one in told:
        text, names = texts[one["chunk_hash"]], {entity["name"] for entity in one["entities"]}
        assert ("Marie Curie" in names, "Otto Hahn" in names) == ("Marie Curie" in text, "Otto Hahn" in text)
        assert bool(one.get("relations")) == ("Marie Curie" in text and "radium" in text)
    [unnamed] = [one for one in told if "Ida Noddack" in {entity["name"] for entity in one["entities"]}]
    assert "The prize came late" in texts[unnamed["chunk_hash"]], "where LightRAG's chunk lies"

    found = api.get("/v1/graph", params={"entity": "Marie Curie"}).json()
    entities = {one["entity_id"]: one for one in found["entities"]}
    assert entities["marie curie"]["type"] == "person"
    assert "She won two prizes.\nA physicist." in entities["marie curie"]["description"]
    assert "glows" in entities["radium"]["description"]
    [relation] = [one for one in found["relations"] if {"Marie Curie", "Radium"} == {one["source"], one["target"]}]
    assert relation["description"] == "She found out what radium does."
    assert set(relation["keywords"]) == {"research", "physics"}
    assert {id_.partition("#")[0] for id_ in relation["chunk_ids"]} == {"told-1", "told-2"}

    api.patch("/v1/documents/told-1?wait=visible", json={"metadata": {"year": 1903}})
    again = run("import", "lightrag", "rag", "--wait")[1]
    assert (again["accepted"], again["duplicates"]) == (0, sent["accepted"]), (
        "a patch leaves the text where it was sent"
    )

    assert FORESEEN in api.post("/v1/query", json={"query": "Ida Noddack", "mode": "local"}).text
    for id_ in ("told-1", "told-2"):
        api.delete(f"/v1/documents/{id_}?wait=visible")
    assert "ida noddack" not in {one["entity_id"] for one in paged(api, "/v1/entities", 1000)}
    assert FORESEEN not in api.post("/v1/query", json={"query": "Ida Noddack", "mode": "local"}).text
    said = run("import", "lightrag", "rag")[2]
    assert "3 documents are not stored here with this text" in said


def test_facts_stay_with_the_text_that_they_were_found_in(api: httpx.Client, run: Run, tmp_path: Path) -> None:
    folder_with_facts(tmp_path / "rag", "kept")
    assert run("import", "lightrag", "rag", "--wait")[0] == 3
    before = api.get("/v1/documents/kept-1").json()
    count = len(told_of(api, "kept-1"))
    changed = before["text"].replace("The prize came late. ", "The prize never came. ")
    store(api, "kept-1", changed)
    entities = {one["entity_id"]: one for one in paged(api, "/v1/entities", 1000)}
    assert "ida noddack" not in entities, "her chunk is gone"
    api.delete("/v1/documents/kept-2?wait=visible")
    found = api.get("/v1/graph", params={"entity": "Radium"}).json()
    assert "glows" in next(one["description"] for one in found["entities"] if one["entity_id"] == "radium")
    assert "3 documents are not stored here with this text" in run("import", "lightrag", "rag")[2]
    assert len(told_of(api, "kept-1")) == count

    store(api, "kept-1", before["text"])
    sent = run("import", "lightrag", "rag", "--wait")[1]
    assert sent["accepted"] == count, "told again, of the text at its new position"
    assert "ida noddack" in {one["entity_id"] for one in paged(api, "/v1/entities", 1000)}


@pytest.mark.parametrize(
    ("graph", "options", "said"),
    [
        ("<graphml><node", [], "is not valid GraphML"),
        (None, [], "there is no graph_chunk_entity_relation.graphml"),
        ("", ["--no-facts"], "found anew in the texts: --no-facts"),
    ],
)
def test_documents_are_imported_without_facts(
    api: httpx.Client, run: Run, tmp_path: Path, graph: str | None, options: list[str], said: str
) -> None:
    name = f"bare{len(said)}"
    file = folder_with_facts(tmp_path / "rag", name) / "graph_chunk_entity_relation.graphml"
    if graph is None:
        file.unlink()
    elif graph:
        file.write_text(graph)
    _, sent, error = run("import", "lightrag", "rag", "--wait", *options)
    assert sent["accepted"] == 2
    assert said in error
    assert api.get(f"/v1/documents/{name}-1").json()["text"] == PARTED
    assert told_of(api, f"{name}-1") == []


# -- graphs ------------------------------------------------------------------------------------------------------------
def test_a_graph_is_imported_from_graphml(api: httpx.Client, run: Run, tmp_path: Path) -> None:
    folder = working_folder(tmp_path / "rag")
    code, sent, said = run(
        "import", "graph", str(folder / "graph_chunk_entity_relation.graphml"), "--prefix", "kg/", "--wait"
    )
    assert (code, sent["accepted"]) == (0, 2)
    assert "2 nodes, 1 relations" in said
    documents = {one["document_id"]: one for one in api.get("/v1/documents?include=text").json()["items"]}
    assert set(documents) == {"kg/Marie Curie", "kg/Radium"}
    curie = documents["kg/Marie Curie"]
    assert (curie["title"], curie["metadata"]) == ("Marie Curie", {"entity_type": "person"})
    assert curie["text"] == "One.\nTwo.\nMarie Curie research, physics Radium. She studied it."
    found = api.get("/v1/graph", params={"entity": "Marie Curie"}).json()
    assert "radium" in {one["entity_id"] for one in found["entities"]}


def test_an_exported_graph_is_imported_again(api: httpx.Client, run: Run) -> None:
    store(api, "curie", CURIE)
    assert run("export", "out")[0] == 0
    count = len(rows(Path("out/entities.jsonl")))
    for name in ("out", "out/graph.graphml"):
        code, sent, _ = run("import", "graph", name, "--dry-run")
        assert (code, sent["accepted"]) == (0, count), name


GRAPHML = (
    '<graphml xmlns="http://graphml.graphdrawing.org/xmlns"><graph edgedefault="undirected"><node id="a"/>{}</graph>'
    "</graphml>"
)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "g.jsonl",
            '{"id": "a"}\n{"source": "a", "target": "b"}\n',
            "g.jsonl, line 2: the relation 'a' → 'b' leads to 'b'",
        ),
        ("g.jsonl", '{"id": "a"}\n{"id": "a"}\n', "line 2: node 'a' is there twice"),
        ("g.jsonl", '{"id": "a"}\n{"source": "a"}\n', "line 2: target is missing"),
        ("g.jsonl", '{"id": "a"}\n{"id": 3}\n', "line 2: name is missing, or no text"),
        ("g.jsonl", '{"id": "a"}\n{"id": \n', "line 2: not JSON"),
        ("g.jsonl", '{"id": "a"}\n{"id": "' + "x" * 300 + '"}\n', "length <= 256"),
        ("g.jsonl", "\n", "no nodes"),
        ("g.graphml", GRAPHML.format('<edge source="a" target="b"/>'), "'a' → 'b' leads to 'b', which is no node"),
        ("g.graphml", "<graphml>", "not valid GraphML"),
        ("g.graphml", GRAPHML.format('<node id="b"><data key="d9">x</data></node>'), "not valid GraphML"),
    ],
)
def test_a_graph_with_anything_wrong_is_refused_as_a_whole(
    api: httpx.Client, run: Run, name: str, content: str, said: str
) -> None:
    Path(name).write_text(content)
    code, _, error = run("import", "graph", name)
    assert (code, said in error, "nothing was sent" in error) == (1, True, True), error
    assert api.get("/v1/documents").json()["items"] == []


def test_what_is_no_graph_file_is_a_usage_error(run: Run) -> None:
    Path("g.txt").write_text("text")
    Path("empty").mkdir()
    assert run("import", "graph", "g.txt")[0] == 2
    assert run("import", "graph", "g.graphml")[0] == 2
    assert run("import", "graph", "empty")[0] == 2
