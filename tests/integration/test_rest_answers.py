"""Generated answers over a real server and a real model server: whole, streamed, kept, broken off, never stale."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from streamfold.core.settings import Settings
from streamfold.core.testing.model_server import ModelServer
from tests.integration.test_rest import BACKENDS, is_problem, serving
from tests.waiting import until

ADA = "Ada Byron works at Acme Works since the war."
QUESTION = "Where does Ada Byron work?"


@pytest.fixture
def model() -> Iterator[ModelServer]:
    with ModelServer() as server:
        yield server


def settings(folder: Path, model: ModelServer, **more: Any) -> Settings:
    reached = {"base_url": model.url, "retries": 1, "backoff_s": 0.01, "breaker_failures": 100}
    generator = {"use": "llm", "model": "m", **reached, **more}
    extractor = {"use": "llm", "model": "m", **reached}
    return Settings(backends={**BACKENDS, "generator": generator, "extractor": extractor}, data=folder)


@pytest.fixture
def client(tmp_path: Path, model: ModelServer) -> Iterator[httpx.Client]:
    with serving(settings(tmp_path, model)) as client:
        put(client, "ada", ADA)
        until_extracted(client, 1)
        model.requests.clear()
        yield client


def put(client: httpx.Client, id_: str, text: str) -> None:
    answer = client.put(f"/v1/documents/{id_}?wait=visible&wait_ms=30000", json={"text": text})
    assert answer.json()["visible"], answer.text


def until_extracted(client: httpx.Client, count: int) -> None:
    """Wait until so many extractions are visible."""

    def extracted() -> bool:
        items = client.get("/v1/events", params={"type": "document.extracted", "limit": 1000}).json()["items"]
        return len(items) >= count

    until(extracted)
    position = client.get("/v1/status").json()["position"]
    answer = client.post("/v1/query", params={"min_position": position}, json={"query": "x"})
    assert answer.status_code == 200, answer.text


def ask(client: httpx.Client, **more: Any) -> dict[str, Any]:
    answer = client.post("/v1/query", json={"query": QUESTION, "generate": True, **more})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def streamed(client: httpx.Client, **more: Any) -> list[tuple[str, dict[str, Any]]]:
    body = {"query": QUESTION, "generate": True, "stream": True, **more}
    with client.stream("POST", "/v1/query", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        blocks = "".join(answer.iter_text()).strip().split("\n\n")
    events = []
    for block in blocks:
        name, data = block.split("\n")
        events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return events


def test_an_answer_cites_its_passages(client: httpx.Client, model: ModelServer) -> None:
    found = ask(client)
    assert found["answer"]["text"] == f"{ADA} [1]"
    [citation] = found["answer"]["citations"]
    assert citation == {"chunk_id": found["chunks"][0]["chunk_id"], "document_id": "ada"}
    assert found["timings_ms"]["generate"] > 0
    system = model.requests[0]["messages"][0]["content"]
    assert f"[1] {ADA}" in system
    assert "Ada Byron (Person): Ada Byron as the text tells." in system, "what the extractor told is in the context"


def test_an_answer_rests_on_everything_whatever_is_shown(client: httpx.Client) -> None:
    found = ask(client, include=["entities"])
    assert found["chunks"] == []
    assert found["answer"]["citations"] == [{"chunk_id": found["entities"][0]["chunk_ids"][0], "document_id": "ada"}]


def test_an_answer_is_streamed(client: httpx.Client) -> None:
    events = streamed(client)
    names = [name for name, _ in events]
    assert names[0] == "context"
    assert names[-1] == "done"
    assert set(names[1:-1]) == {"delta"}
    assert len(names) > 5
    context, done = events[0][1], events[-1][1]
    assert context["chunks"][0]["document_id"] == "ada"
    assert "".join(data["text"] for name, data in events if name == "delta") == done["answer"]["text"] == f"{ADA} [1]"
    assert done["answer"]["citations"][0]["document_id"] == "ada"
    assert done["version"] == context["version"]
    assert [name for name, _ in streamed(client, generate=False)] == ["context", "done"]


def test_a_kept_answer_is_given_again_until_what_it_rests_on_changes(client: httpx.Client, model: ModelServer) -> None:
    first = ask(client)["answer"]
    assert ask(client)["answer"] == first
    assert streamed(client)[-1][1]["answer"] == first
    assert len(model.requests) == 1
    put(client, "ada", "Ada Byron works at Beta Labs now.")
    after = ask(client)["answer"]["text"]
    assert "Acme" not in after
    assert after.startswith("Ada Byron works at Beta Labs now.")
    assert client.delete("/v1/documents/ada").status_code == 202
    assert ask(client)["answer"]["text"] == "I do not know.", "hidden at once"


def test_a_model_that_fails_costs_the_answer_alone(client: httpx.Client, model: ModelServer) -> None:
    model.faults.append({"status": 500})
    assert ask(client)["answer"]["text"] == f"{ADA} [1]", "once is tried again"
    model.always = lambda body: {"status": 503}
    found = ask(client, top_k=3, mode="naive")
    assert found["answer"] is None
    assert found["version"]["degraded"] == ["answer-not-generated"]
    assert found["chunks"][0]["document_id"] == "ada"
    name, problem = streamed(client, mode="naive")[-1]
    assert (name, problem["code"], problem["status"]) == ("error", "generator-unavailable", 503)
    assert problem["request_id"]


def test_half_a_stream_ends_with_an_error_and_is_not_kept(client: httpx.Client, model: ModelServer) -> None:
    model.faults.append({"pieces": 3})
    events = streamed(client)
    assert [name for name, _ in events] == ["context", "delta", "delta", "delta", "error"]
    assert streamed(client)[-1][1]["answer"]["text"] == f"{ADA} [1]"


def test_a_slow_model_holds_no_question_up(tmp_path: Path, model: ModelServer) -> None:
    with serving(settings(tmp_path, model, timeout_s=1.0, retries=0)) as client:
        put(client, "ada", ADA)
        until_extracted(client, 1)
        model.always = lambda body: {"delay_s": 3}
        assert ask(client)["answer"] is None


def test_who_hangs_up_in_the_midst_harms_nobody(client: httpx.Client, model: ModelServer) -> None:
    model.always = lambda body: {"piece_s": 0.05}
    for _ in range(6):  # more than there are places at the model
        body = {"query": QUESTION, "generate": True, "stream": True}
        with client.stream("POST", "/v1/query", json=body) as answer:
            next(answer.iter_text())
    model.always = lambda body: None
    assert ask(client)["answer"]["text"] == f"{ADA} [1]"


def test_a_budget_that_is_used_up_ends_answers(tmp_path: Path, model: ModelServer) -> None:
    with serving(settings(tmp_path, model, tokens_total=10)) as client:
        put(client, "ada", ADA)
        until_extracted(client, 1)
        assert ask(client)["answer"]["text"]
        assert ask(client, query="Who is Ada Byron?")["answer"] is None


def test_what_could_not_be_extracted_is_retried_by_hand(client: httpx.Client, model: ModelServer) -> None:
    model.always = lambda body: {"text": "Sorry."} if "Ben" in body["messages"][1]["content"] else None
    put(client, "ben", "Ben Cole founded Beta Labs.")

    def letters() -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = client.get("/v1/dead-letters?code=extraction-failed").json()["items"]
        return items

    for _ in range(2):  # the second time after a retry that failed as well
        until(lambda: len(letters()) == 1)
        [letter] = letters()
        assert (letter["policy"], letter["stage"]) == ("graph_index@1", "prepare")
        assert client.post(f"/v1/dead-letters/{letter['dead_letter_id']}/retry").status_code == 202
    until(lambda: len(letters()) == 1)
    model.always = lambda body: None
    assert client.post(f"/v1/dead-letters/{letters()[0]['dead_letter_id']}/retry").status_code == 202
    until_extracted(client, 2)
    found = client.post("/v1/query", json={"query": "Who founded Beta Labs?"}).json()
    assert [one["type"] for one in found["entities"] if one["entity_id"] == "ben cole"] == ["Person"]
    assert letters() == []
    assert client.post("/v1/policies/graph_index/verify", json={"reason": "t"}).status_code == 202


def test_how_far_extraction_is_shows_in_the_status(client: httpx.Client) -> None:
    [line] = [one for one in client.get("/v1/status").json()["intakes"] if one["kind"] == "extract"]
    assert line["name"].startswith("extract:streamfold/llm:m@")
    assert line["spent"]["tokens"] == line["spent"]["tokens_today"] > 100


def test_what_a_policy_will_cost_is_told_before(client: httpx.Client) -> None:
    body = {"name": "other", "use": "graph_index", "config": {"hop_weight": 1.0}, "reason": "trial"}
    answer = client.post("/v1/policies", json=body)
    assert answer.status_code == 202
    assert answer.json()["estimate"]["llm_calls"] == 0, "what was told once is known"


def test_without_a_generator_answers_are_refused(tmp_path: Path) -> None:
    with serving(Settings(backends=BACKENDS, data=tmp_path)) as client:
        for field in ("generate", "stream"):
            problem = is_problem(client.post("/v1/query", json={"query": "q", field: True}), 422, "invalid-value")
            assert problem["errors"][0]["pointer"] == f"/{field}"


def test_lightrags_clients_get_the_models_answer(client: httpx.Client, model: ModelServer) -> None:
    put(client, "d", "Marie Curie found radium in Paris.")
    body = {"query": "What did Marie Curie find?"}
    whole = client.post("/compat/lightrag/query", json=body).json()
    own = ask(client, query=body["query"], generate=True)["answer"]["text"]
    assert whole["llm_generated"]
    assert whole["response"]
    assert own
    context = client.post("/compat/lightrag/query", json=body | {"only_need_context": True}).json()
    assert not context["llm_generated"]
    assert "radium" in context["response"]
    lines = [json.loads(line) for line in client.post("/compat/lightrag/query/stream", json=body).text.splitlines()]
    assert "references" in lines[0]
    assert "".join(line.get("response", "") for line in lines[1:]) == whole["response"]
