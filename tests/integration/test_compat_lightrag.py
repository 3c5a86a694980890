"""LightRAG's routes, used as its clients use them: a real server, asked with httpx."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from streamfold.core import Event, EventError, Policy, Tools, hookimpl
from streamfold.core.settings import KeySettings, ServeSettings, Settings
from streamfold.pipelines.node import Node
from streamfold.plugins.graph_index import GraphIndex
from streamfold.plugins.vector_index import PreparedDocument
from tests.waiting import until

sys.path.insert(0, str(Path(__file__).parent))
from test_rest import BACKENDS, serving

sys.path.pop(0)

BASE = "/compat/lightrag"
DOC_STATUS = {
    "id", "content_summary", "content_length", "status", "created_at", "updated_at", "track_id", "chunks_count",
    "error_msg", "metadata", "file_path",
}  # fmt: skip
CURIE = "Marie Curie met Lise Meitner in Paris. Marie Curie studied radium with Pierre Curie."
MEITNER = "Lise Meitner worked with Otto Hahn in Berlin. Otto Hahn received the Nobel Prize."


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with serving(Settings(backends=BACKENDS, data=tmp_path_factory.mktemp("lightrag"))) as client:
        yield client


class LightRAG:
    """What LightRAG's own clients do: post, then ask for the track until nothing is under way."""

    def __init__(self, client: httpx.Client, headers: dict[str, str] | None = None) -> None:
        self._client = client
        self._headers = headers or {}

    def __call__(self, method: str, path: str, **more: Any) -> httpx.Response:
        return self._client.request(method, BASE + path, headers=self._headers, **more)

    def post(self, path: str, body: Any) -> Any:
        response = self("POST", path, json=body)
        assert response.status_code == 200, response.text
        return response.json()

    def get(self, path: str, **params: Any) -> Any:
        response = self("GET", path, params=params)
        assert response.status_code == 200, response.text
        return response.json()

    def wait(self, track_id: str) -> dict[str, Any]:
        def ended() -> dict[str, Any] | None:
            track: dict[str, Any] = self.get(f"/documents/track_status/{track_id}")
            assert track["track_id"] == track_id
            states = {one["status"] for one in track["documents"]}
            assert states <= {"pending", "processing", "processed", "failed"}
            return track if states <= {"processed", "failed"} else None

        found: dict[str, Any] = until(ended)
        return found

    def rest(self) -> None:
        """Wait until what was logged is folded: a deletion hides within milliseconds, not before it is answered."""
        until(lambda: not self.get("/health")["pipeline_busy"])

    def send(self, text: str, source: str) -> dict[str, Any]:
        inserted = self.post("/documents/text", {"text": text, "file_source": source})
        assert set(inserted) == {"status", "message", "track_id"}
        assert inserted["status"] == "success"
        [document] = self.wait(inserted["track_id"])["documents"]
        return dict(document)

    def delete(self, *ids: str) -> dict[str, Any]:
        response = self("DELETE", "/documents/delete_document", json={"doc_ids": list(ids), "delete_file": True})
        assert response.status_code == 200, response.text
        return dict(response.json())


@pytest.fixture
def lightrag(service: httpx.Client) -> Iterator[LightRAG]:
    found = LightRAG(service)
    yield found
    assert found("DELETE", "/documents").json()["status"] == "success"
    found.rest()


def test_a_text_is_tracked_until_it_is_processed_and_then_answers(lightrag: LightRAG) -> None:
    document = lightrag.send(CURIE, "curie.txt")
    assert set(document) == DOC_STATUS
    assert document["id"] == "doc-" + hashlib.md5(b"curie.txt").hexdigest()
    assert document["status"] == "processed"
    assert (document["file_path"], document["content_length"], document["chunks_count"]) == ("curie.txt", len(CURIE), 1)
    assert document["content_summary"] == CURIE
    assert document["error_msg"] is None

    answer = lightrag.post("/query", {"query": "Where did Marie Curie meet Lise Meitner?", "mode": "mix"})
    assert set(answer) == {"response", "references", "response_time", "llm_generated"}
    assert answer["references"] == [{"reference_id": "1", "file_path": "curie.txt", "content": None}]
    assert answer["llm_generated"] is False
    blocks = answer["response"].split("```")
    assert "Knowledge Graph Data (Entity)" in blocks[0]
    entities = [json.loads(line) for line in blocks[1].removeprefix("json").strip().splitlines()]
    assert {"entity", "type", "description"} == set(entities[0])
    assert "Marie Curie" in {one["entity"] for one in entities}
    relations = [json.loads(line) for line in blocks[3].removeprefix("json").strip().splitlines()]
    assert {"entity1", "entity2", "description"} == set(relations[0])
    [chunk] = [json.loads(line) for line in blocks[5].removeprefix("json").strip().splitlines()]
    assert chunk == {"reference_id": "1", "content": CURIE}
    assert blocks[7].strip() == "[1] curie.txt"


def test_a_source_that_is_there_is_a_conflict_until_it_is_deleted(lightrag: LightRAG) -> None:
    first = lightrag.post("/documents/text", {"text": CURIE, "file_source": "one.txt"})
    at_once = lightrag("POST", "/documents/text", json={"text": MEITNER, "file_source": "one.txt"})
    assert at_once.status_code == 409, "it is logged, if not folded"
    assert "already contains 'one.txt'" in at_once.json()["detail"]
    [document] = lightrag.wait(first["track_id"])["documents"]
    later = lightrag("POST", "/documents/texts", json={"texts": ["x y", MEITNER], "file_sources": ["b.txt", "one.txt"]})
    assert later.status_code == 409
    assert lightrag.get("/documents/status_counts")["status_counts"]["all"] == 1, "none of the two was taken"

    deleted = lightrag.delete(document["id"])
    assert (deleted["status"], deleted["doc_id"]) == ("deletion_started", document["id"])
    assert lightrag.get(f"/documents/track_status/{first['track_id']}")["documents"] == []
    assert lightrag.post("/query", {"query": "Marie Curie"})["references"] == [], "hidden at once"
    assert lightrag.send(MEITNER, "one.txt")["content_summary"] == MEITNER


def test_put_replaces_a_document_which_lightrag_cannot(lightrag: LightRAG) -> None:
    document = lightrag.send(CURIE, "curie.txt")
    response = lightrag("PUT", f"/documents/{document['id']}", json={"text": MEITNER})
    assert response.status_code == 200, response.text
    body = response.json()
    assert (body["status"], body["doc_id"]) == ("success", document["id"])
    [replaced] = lightrag.wait(body["track_id"])["documents"]
    assert (replaced["id"], replaced["file_path"]) == (document["id"], "curie.txt"), "the source is kept"
    assert replaced["content_summary"] == MEITNER
    found = lightrag.post("/query", {"query": "Who met Lise Meitner in Paris?"})["response"]
    assert "Marie Curie" not in found
    assert "Otto Hahn" in found


def test_texts_are_taken_together(lightrag: LightRAG) -> None:
    body = {"texts": [f"Text number {i} is about pumps." for i in range(3)], "file_sources": ["a", "b", "c"]}
    inserted = lightrag.post("/documents/texts", body)
    track = lightrag.wait(inserted["track_id"])
    assert track["total_count"] == 3
    assert track["status_summary"] == {"processed": 3}
    assert [one["file_path"] for one in track["documents"]] == ["a", "b", "c"]
    assert {one["track_id"] for one in track["documents"]} == {inserted["track_id"]}


def test_a_file_is_uploaded(lightrag: LightRAG) -> None:
    data = f"# On Radium\n\n{CURIE}\n".encode()
    response = lightrag("POST", "/documents/upload", files={"file": ("Grüße.md", data, "text/markdown")})
    assert response.status_code == 200, response.text
    assert response.json()["message"].startswith("File 'Grüße.md' uploaded successfully")
    [document] = lightrag.wait(response.json()["track_id"])["documents"]
    assert document["file_path"] == "Grüße.md"
    assert document["content_summary"] == data.decode()
    again = lightrag("POST", "/documents/upload", files={"file": ("Grüße.md", data, "text/markdown")})
    assert again.status_code == 409
    for name, content, status in (
        ("a.pdf", b"%PDF", 400),
        ("../a.txt", b"text", 400),
        ("a.txt", b"one\ntwo \xff\n", 400),
        ("b.txt", b"", 400),
        ("c.txt", b"x" * (2 << 20), 413),
    ):
        refused = lightrag("POST", "/documents/upload", files={"file": (name, content)})
        assert (refused.status_code, set(refused.json())) == (status, {"detail"}), name
    assert "line 2" in lightrag("POST", "/documents/upload", files={"file": ("a.txt", b"one\n\xff")}).json()["detail"]
    assert lightrag("POST", "/documents/upload", files={"other": ("a.txt", b"text")}).status_code == 422
    assert lightrag("POST", "/documents/upload", json={}).status_code == 415


def test_documents_are_listed_in_pages(lightrag: LightRAG) -> None:
    names = [f"{i:02}.txt" for i in range(12)]
    inserted = lightrag.post("/documents/texts", {"texts": [f"Text {n}" for n in names], "file_sources": names})
    lightrag.wait(inserted["track_id"])
    query = {"page": 2, "page_size": 10, "sort_field": "file_path", "sort_direction": "asc"}
    second = lightrag.post("/documents/paginated", query)
    assert [one["file_path"] for one in second["documents"]] == names[10:]
    assert all(set(one) == DOC_STATUS for one in second["documents"])
    assert second["pagination"] == {
        "page": 2, "page_size": 10, "total_count": 12, "total_pages": 2, "has_next": False, "has_prev": True,
    }  # fmt: skip
    assert second["status_counts"]["processed"] == 12
    assert second["status_counts"] == lightrag.get("/documents/status_counts")["status_counts"]
    down = lightrag.post("/documents/paginated", query | {"page": 1, "sort_direction": "desc"})
    assert [one["file_path"] for one in down["documents"]] == names[:1:-1]
    assert lightrag.post("/documents/paginated", {"status_filters": ["failed"]})["documents"] == []
    assert lightrag("POST", "/documents/paginated", json={"page_size": 5}).status_code == 422
    until(lambda: lightrag.get("/documents/pipeline_status")["busy"] is False)
    status = lightrag.get("/documents/pipeline_status")
    assert {"job_name", "job_start", "docs", "batchs", "cur_batch", "latest_message", "history_messages"} <= set(status)


def test_the_stream_brings_references_then_the_answer(lightrag: LightRAG) -> None:
    lightrag.send(CURIE, "curie.txt")
    question = {"query": "Whom did Marie Curie meet?", "include_chunk_content": True}

    def lines(**more: Any) -> list[dict[str, Any]]:
        response = lightrag("POST", "/query/stream", json=question | more)
        assert response.headers["content-type"].startswith("application/x-ndjson")
        return [json.loads(line) for line in response.text.splitlines()]

    first, *rest = lines()
    assert first == {"references": [{"reference_id": "1", "file_path": "curie.txt", "content": [CURIE]}]}
    assert CURIE in "".join(line["response"] for line in rest)
    [whole] = lines(stream=False)
    assert set(whole) == {"response", "llm_generated", "references"}
    progress = lines(include_progress=True, include_references=False)
    assert [next(iter(line)) for line in progress] == ["progress", "progress", "response", "response_time"]


def test_the_data_of_a_query_has_the_shape_that_clients_read(lightrag: LightRAG) -> None:
    lightrag.send(CURIE, "curie.txt")
    lightrag.send(MEITNER, "meitner.txt")
    body = {"query": "Who worked with Lise Meitner?", "mode": "hybrid", "top_k": 3, "ll_keywords": ["Otto Hahn"]}
    found = lightrag.post("/query/data", body)
    assert set(found) == {"status", "message", "data", "metadata"}
    assert found["status"] == "success"
    data = found["data"]
    assert set(data) == {"entities", "relationships", "chunks", "references"}
    sources = {"source_id", "file_path", "created_at"}
    assert set(data["entities"][0]) == {"entity_name", "entity_type", "description"} | sources
    assert set(data["relationships"][0]) == {"src_id", "tgt_id", "description", "keywords", "weight"} | sources
    assert set(data["chunks"][0]) == {"reference_id", "content", "file_path", "chunk_id"}
    assert set(data["references"][0]) == {"reference_id", "file_path"}
    assert len(data["entities"]) == 3
    meitner = next(one for one in data["entities"] if one["entity_name"] == "Lise Meitner")
    assert set(meitner["file_path"].split("<SEP>")) == {"curie.txt", "meitner.txt"}
    assert found["metadata"]["query_mode"] == "hybrid"
    assert found["metadata"]["keywords"] == {"high_level": [], "low_level": ["Otto Hahn"]}
    assert found["metadata"]["processing_info"]["final_chunks_count"] == len(data["chunks"])
    for mode in ("local", "global", "naive", "mix"):
        assert lightrag.post("/query/data", body | {"mode": mode})["data"]["chunks"], mode
    small = lightrag.post("/query/data", body | {"max_entity_tokens": 1, "max_relation_tokens": 1})
    assert (small["data"]["entities"], small["data"]["relationships"]) == ([], [])


def test_without_anything_found_the_answers_say_so(lightrag: LightRAG) -> None:
    answer = lightrag.post("/query", {"query": "Who was Marie Curie?"})
    assert answer["response"].endswith("[no-context]")
    assert lightrag.post("/query/data", {"query": "Who was Marie Curie?"})["status"] == "failure"
    assert "generator" in lightrag.post("/query", {"query": "hi", "mode": "bypass"})["response"]
    assert lightrag.post("/query/data", {"query": "hi", "mode": "bypass"})["data"]["chunks"] == []
    assert lightrag.get("/graph/label/list") == []
    assert lightrag.get("/graphs", label="*") == {"nodes": [], "edges": [], "is_truncated": False}


def test_the_graph_is_drawn(lightrag: LightRAG) -> None:
    lightrag.send(CURIE, "curie.txt")
    lightrag.send(MEITNER, "meitner.txt")
    labels = lightrag.get("/graph/label/list")
    assert labels == sorted(labels)
    assert {"Marie Curie", "Lise Meitner", "Otto Hahn"} <= set(labels)
    assert lightrag.get("/graph/label/popular", limit=1) == ["Lise Meitner"]
    assert lightrag.get("/graph/label/search", q="curie") == ["Marie Curie", "Pierre Curie"]
    assert lightrag.get("/graph/entity/exists", name="Otto Hahn") == {"exists": True}
    assert lightrag.get("/graph/entity/exists", name="Nobody") == {"exists": False}

    around = lightrag.get("/graphs", label="Otto Hahn", max_depth=1, max_nodes=100)
    assert set(around) == {"nodes", "edges", "is_truncated"}
    ids = {node["id"] for node in around["nodes"]}
    assert {"Otto Hahn", "Lise Meitner"} <= ids
    node = around["nodes"][0]
    assert set(node) == {"id", "labels", "properties"}
    assert node["labels"] == [node["id"]] == ["Otto Hahn"]
    properties = {"description", "source_id", "file_path", "created_at", "truncate"}
    assert set(node["properties"]) == {"entity_id", "entity_type"} | properties
    edge = around["edges"][0]
    assert set(edge) == {"id", "type", "source", "target", "properties"}
    assert set(edge["properties"]) == {"weight", "keywords"} | properties
    assert all({edge["source"], edge["target"]} <= ids for edge in around["edges"])

    whole = lightrag.get("/graphs", label="*", max_nodes=3)
    assert (len(whole["nodes"]), whole["is_truncated"]) == (3, True)
    assert {node["id"] for node in lightrag.get("/graphs", label="*")["nodes"]} == set(labels)
    assert lightrag.get("/graphs", label="Nobody")["nodes"] == []
    [cause] = lightrag("GET", "/graphs").json()["detail"]
    assert (cause["type"], cause["loc"], cause["msg"]) == ("missing", ["query", "label"], "Field required")


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/documents/text", {"text": "x"}, 400),
        ("/documents/text", {"text": "x", "file_source": "unknown_source"}, 400),
        ("/documents/text", {"text": " ", "file_source": "a"}, 422),
        ("/documents/text", {"file_source": "a"}, 422),
        ("/documents/text", {"text": 3, "file_source": "a"}, 422),
        ("/documents/texts", {"texts": ["a b", "c d"], "file_sources": ["a"]}, 400),
        ("/documents/texts", {"texts": ["a b", "c d"], "file_sources": ["a", "a"]}, 400),
        ("/documents/texts", {"texts": []}, 422),
        ("/documents/texts", {"texts": ["x"] * 1001, "file_sources": ["x"] * 1001}, 413),
        ("/query", {"query": ""}, 422),
        ("/query", {"query": "  "}, 422),
        ("/query", {"query": "ab"}, 422),
        ("/query", {"query": "x" * 1_000_000}, 422),
        ("/query", {"query": "abc", "mode": "best"}, 422),
        ("/query", {"query": "abc", "top_k": 0}, 422),
        ("/query/stream", {"query": ""}, 422),
    ],
)
def test_what_is_not_valid_is_refused_in_lightrags_shape(
    lightrag: LightRAG, path: str, body: dict[str, Any], status: int
) -> None:
    response = lightrag("POST", path, json=body)
    assert response.status_code == status, response.text
    detail = response.json()["detail"]
    if status == 422:
        assert {"type", "loc", "msg", "input"} == set(detail[0])
        assert detail[0]["loc"][0] == "body"
    else:
        assert isinstance(detail, str)
    assert lightrag.get("/documents/status_counts")["status_counts"]["all"] == 0


def test_refusals_that_have_shapes_of_their_own(lightrag: LightRAG) -> None:
    bad = lightrag("POST", "/query/data", json={"query": "ab"})
    assert bad.status_code == 400
    assert (bad.json()["status"], bad.json()["data"]) == ("failure", {})
    assert lightrag("POST", "/query", content=b"{").status_code == 422
    assert lightrag("DELETE", "/documents/delete_document", json={"doc_ids": []}).status_code == 422
    assert lightrag("DELETE", "/documents/delete_document", json={"doc_ids": ["a", "a"]}).status_code == 422
    assert lightrag.get("/documents/track_status/nobody")["documents"] == []
    assert lightrag.get("/documents/track_status/insert_20260131_120000_5b0c1d2e_9999", x="1")["total_count"] == 0
    assert lightrag.post("/query", {"query": "東京は", "what": "unknown fields are passed over"})["references"] == []


class Picky(GraphIndex):
    """An index that will not have some texts."""

    name = "picky"

    def prepare_batch(self, events: Sequence[Event], tools: Tools) -> list[PreparedDocument | None]:
        for event in events:
            if "unreadable" in getattr(event.data, "text", ""):
                raise EventError("this text is unreadable", code="unreadable")
        return super().prepare_batch(events, tools)


class PickyPlugin:
    @hookimpl
    def register_policies(self) -> list[type[Policy]]:
        return [Picky]


def test_a_document_that_the_policy_skips_is_failed_until_it_is_deleted(tmp_path: Path) -> None:
    settings = Settings(backends=BACKENDS, data=tmp_path, policies={"picky": {}})
    with serving(settings, Node(settings, plugins=[PickyPlugin()])) as client:
        lightrag = LightRAG(client)
        texts = [CURIE, "This is unreadable.", "So is this unreadable one."]
        inserted = lightrag.post("/documents/texts", {"texts": texts, "file_sources": ["a", "b", "c"]})
        track = lightrag.wait(inserted["track_id"])
        assert track["status_summary"] == {"processed": 1, "failed": 2}
        assert [one["status"] for one in track["documents"]] == ["processed", "failed", "failed"]
        assert track["documents"][1]["error_msg"] == "unreadable: this text is unreadable"
        page = lightrag.post("/documents/paginated", {"status_filter": "failed"})
        assert {one["file_path"] for one in page["documents"]} == {"b", "c"}
        assert (page["status_counts"]["failed"], page["status_counts"]["all"]) == (2, 3)

        lightrag.delete(track["documents"][1]["id"])
        replaced = lightrag("PUT", f"/documents/{track['documents'][2]['id']}", json={"text": MEITNER}).json()
        assert lightrag.wait(replaced["track_id"])["status_summary"] == {"processed": 1}
        counts = lightrag.get("/documents/status_counts")["status_counts"]
        assert (counts["processed"], counts["failed"]) == (2, 0)
        assert [one["status"] for one in lightrag.wait(inserted["track_id"])["documents"]] == ["processed", "processed"]


def test_documents_that_were_sent_otherwise_are_there_too(lightrag: LightRAG) -> None:
    stored = lightrag._client.put("/v1/documents/own?wait=visible", json={"text": MEITNER, "url": "http://x/own"})
    assert stored.status_code == 200
    [document] = lightrag.post("/documents/paginated", {})["documents"]
    assert (document["id"], document["file_path"], document["track_id"]) == ("own", "http://x/own", None)
    [reference] = lightrag.post("/query", {"query": "Otto Hahn"})["references"]
    assert reference["file_path"] == "http://x/own"


def key(name: str, **values: Any) -> KeySettings:
    return KeySettings(sha256=hashlib.sha256(name.encode()).hexdigest(), **values)


def test_keys_take_the_part_of_accounts(tmp_path: Path) -> None:
    keys = (key("all", workspace="a"), key("other", workspace="b"), key("ask", workspace="a", scopes=("query",)))
    with serving(Settings(backends=BACKENDS, data=tmp_path, serve=ServeSettings(keys=keys))) as client:
        nobody = LightRAG(client)
        assert nobody.get("/auth-status")["auth_configured"] is True
        refused = nobody("POST", "/query", json={"query": "Marie Curie"})
        assert (refused.status_code, set(refused.json())) == (401, {"detail"})
        assert "configuration" not in nobody.get("/health")
        assert nobody("POST", "/login", data={"username": "u", "password": "wrong"}).status_code == 401
        in_parts = {"username": (None, "u"), "password": (None, "all")}
        forms: list[dict[str, Any]] = [{"data": {"username": "u", "password": "all"}}, {"files": in_parts}]
        for form in forms:
            token = nobody("POST", "/login", **form).json()
            assert (token["token_type"], token["auth_mode"]) == ("bearer", "enabled")

        mine = LightRAG(client, {"Authorization": f"Bearer {token['access_token']}"})
        mine.send(CURIE, "curie.txt")
        assert mine.get("/health")["configuration"]["workspace"] == "a"
        other = LightRAG(client, {"X-API-Key": "other"})
        assert other.post("/query", {"query": "Marie Curie"})["references"] == []
        assert other.get("/graph/label/list") == []
        reader = LightRAG(client, {"X-API-Key": "ask"})
        assert len(reader.post("/query", {"query": "Marie Curie"})["references"]) == 1
        body = {"text": MEITNER, "file_source": "m.txt"}
        assert reader("POST", "/documents/text", json=body).status_code == 403


def test_without_keys_everyone_is_a_guest(lightrag: LightRAG) -> None:
    status = lightrag.get("/auth-status")
    assert (status["auth_configured"], status["auth_mode"]) == (False, "disabled")
    assert {"core_version", "api_version", "access_token", "token_type"} <= set(status)
    assert lightrag("POST", "/login", data={"username": "u", "password": "p"}).json()["auth_mode"] == "disabled"
    guest = LightRAG(lightrag._client, {"Authorization": f"Bearer {status['access_token']}"})
    health = guest.get("/health")
    assert (health["status"], health["auth_mode"]) == ("healthy", "disabled")
    assert {"configuration", "working_directory", "pipeline_busy"} <= set(health)


def test_a_guest_gets_in_beside_keys_that_open_nothing(tmp_path: Path) -> None:
    with serving(Settings(backends=BACKENDS, data=tmp_path)) as client:
        assert client.post("/v1/keys", json={"name": "reader", "scopes": ["query"]}).status_code == 201
        lightrag = LightRAG(client)
        token = lightrag.get("/auth-status")["access_token"]
        guest = LightRAG(client, {"Authorization": f"Bearer {token}"})
        assert guest.get("/documents/status_counts")["status_counts"]["all"] == 0


def test_a_service_without_a_graph_answers_naive(tmp_path: Path) -> None:
    settings = Settings(backends=BACKENDS, data=tmp_path, policies={"vector_index": {}})
    with serving(settings) as client:
        lightrag = LightRAG(client)
        lightrag.send(CURIE, "curie.txt")
        found = lightrag.post("/query/data", {"query": "Whom did Marie Curie meet?", "mode": "mix"})
        assert found["metadata"]["query_mode"] == "naive"
        assert len(found["data"]["chunks"]) == 1
        assert lightrag.get("/graphs", label="*")["nodes"] == []


def test_two_requests_at_once_for_one_source_make_one_document(lightrag: LightRAG) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def send(i: int) -> int:
        return lightrag("POST", "/documents/text", json={"text": f"Text {i}", "file_source": "same"}).status_code

    with ThreadPoolExecutor(8) as pool:
        statuses = sorted(pool.map(send, range(16)))
    assert statuses == [200, *[409] * 15]
