"""Keywords, summaries and reranking by a model, over a real service and a real model server that fails as such do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from streamfold.core.settings import Settings
from streamfold.core.testing.model_server import Messages, ModelServer
from tests.integration.test_rest import BACKENDS, serving
from tests.integration.test_rest_answers import put
from tests.waiting import until

CURIE = "Marie Curie found radium in Paris. Marie Curie wrote to Lise Meitner about polonium. " * 3
MEITNER = (
    "Lise Meitner explained fission on a walk near Kungälv. Lise Meitner left Berlin for Stockholm in the summer. "
    "Lise Meitner shared many letters with Otto Frisch. Lise Meitner declined to come to Los Alamos."
)
SUMMARY = "Lise Meitner was a physicist."


def helping(messages: Messages) -> str:
    """A model that finds Meitner in every question, prefers her passages and sums everything up alike."""
    system, user = messages[0]["content"], messages[-1]["content"]
    if "high_level_keywords" in system:
        return json.dumps({"high_level_keywords": ["fission", 7, "fission"], "low_level_keywords": ["Lise Meitner"]})
    if '"summary"' in system:
        return json.dumps({"summary": SUMMARY})
    passages = user.split("---Passages---\n")[1].split("\n\n[")
    return json.dumps({"scores": [10 if "fission" in one else 1 for one in passages]})


@pytest.fixture
def model() -> Iterator[ModelServer]:
    with ModelServer(helping) as server:
        yield server


def opened(folder: Path, model: ModelServer, *kinds: str, **more: Any) -> Any:
    reached = {"base_url": model.url, "model": "m", "retries": 0, "breaker_failures": 100, "patience_s": 60, **more}
    backends = {**BACKENDS, **{kind: {"use": "llm", **reached} for kind in kinds}}
    return serving(Settings(backends=backends, data=folder))


def ask(client: httpx.Client, query: str = "What did Marie Curie find?", **more: Any) -> dict[str, Any]:
    answer = client.post("/v1/query", json={"query": query, "top_k": 2, "log_exposure": False, **more})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def filled(client: httpx.Client) -> None:
    put(client, "curie", CURIE)
    put(client, "meitner", MEITNER)


WRONG = (
    {"status": 500},
    {"status": 400},
    {"text": "I cannot."},
    {"text": "[1, 2]"},
    {"text": "{}"},
    {"text": '{"scores": [1], "summary": "", "high_level_keywords": 3'},
    {"cut": 30},
    {"delay_s": 2},
)
"""Failing, refusing, invalid, empty, cut off in the midst of the object, broken off, slow."""


def test_a_models_keywords_decide_which_entities_and_relations_are_near(tmp_path: Path, model: ModelServer) -> None:
    with opened(tmp_path, model, "keywords") as client:
        filled(client)
        found = ask(client, mode="local")
        assert found["entities"][0]["entity_id"] == "lise meitner"
        assert "lise meitner" in ask(client)["relations"][0]["relation_id"]
        assert len(model.requests) == 1, "the same question is asked about once"
        ask(client, mode="naive")
        ask(client, mode="mix", include=["chunks"])
        assert len(model.requests) == 1, "where keywords decide nothing, nobody is asked"


def test_without_keywords_the_graphs_own_words_decide(tmp_path: Path, model: ModelServer) -> None:
    def shown(found: dict[str, Any]) -> Any:
        relations = [one | {"valid_from": None} for one in found["relations"]]  # when it was sent
        return found["entities"], relations, found["chunks"]

    with opened(tmp_path / "plain", model) as client:
        filled(client)
        offline = shown(ask(client, mode="local"))
    with opened(tmp_path / "helped", model, "keywords", patience_s=0.5, timeout_s=1.0) as client:
        filled(client)
        for fault in WRONG:
            model.faults.append(fault)
            found = ask(client, mode="local")
            assert found["version"]["degraded"] == ["keywords-not-found"], fault
            assert shown(found) == offline, fault
    assert offline[0][0]["entity_id"] == "marie curie"


def test_passages_come_in_the_models_order(tmp_path: Path, model: ModelServer) -> None:
    with opened(tmp_path, model, "reranker") as client:
        filled(client)
        found = ask(client)
        assert [one["document_id"] for one in found["chunks"]] == ["meitner", "curie"]
        assert [one["score"] for one in found["chunks"]] == [1.0, 0.1]
        assert [one["document_id"] for one in ask(client, top_k=1)["chunks"]] == ["meitner"], "from further down"
        assert len(model.requests) == 1, "of the same passages the scores are known"
        client.delete("/v1/documents/meitner", params={"wait": "visible"})
        assert [one["document_id"] for one in ask(client)["chunks"]] == ["curie"]
        assert ask(client, budget_tokens=2000)["chunks"][0]["document_id"] == "curie"


def test_without_the_models_order_passages_come_as_they_were_found(tmp_path: Path, model: ModelServer) -> None:
    with opened(tmp_path, model, "reranker", patience_s=0.5, timeout_s=1.0) as client:
        filled(client)
        for fault in WRONG:
            model.faults.append(fault)
            found = ask(client)
            assert found["version"]["degraded"] == ["not-reranked"], fault
            assert [one["document_id"] for one in found["chunks"]] == ["curie", "meitner"], fault


def descriptions(client: httpx.Client) -> dict[str, str]:
    found = ask(client, "Lise Meitner", mode="local", top_k=5)
    return {one["entity_id"]: one["description"] for one in found["entities"]}


def test_a_summary_is_made_beside_the_questions_and_gone_with_a_mention(tmp_path: Path, model: ModelServer) -> None:
    with opened(tmp_path, model, "summarizer") as client:
        filled(client)
        offline = descriptions(client)["lise meitner"]
        assert "fission" in offline, "nobody waits for a summary"
        until(lambda: descriptions(client)["lise meitner"] == SUMMARY)
        assert "fission" in next(
            one["messages"][-1]["content"] for one in model.requests if "Lise Meitner" in str(one["messages"])
        )
        client.delete("/v1/documents/meitner", params={"wait": "visible"})
        after = descriptions(client)["lise meitner"]
        assert after == "Marie Curie wrote to Lise Meitner about polonium.", "what it was made from is gone"
        model.requests.clear()
        put(client, "later", MEITNER.replace("fission", "beta decay"))
        until(lambda: descriptions(client)["lise meitner"] == SUMMARY)
        assert "beta decay" in str(model.requests)
        assert "fission" not in str(model.requests)


@pytest.mark.parametrize("fault", [{"status": 500}, {"text": "I cannot."}, {"cut": 30}, {"delay_s": 2}], ids=str)
def test_without_summaries_sentences_are_shown(tmp_path: Path, model: ModelServer, fault: Any) -> None:
    model.always = lambda body: fault
    with opened(tmp_path, model, "summarizer", timeout_s=1.0) as client:
        filled(client)
        offline = descriptions(client)

        def degraded() -> bool:
            return "summaries-not-made" in ask(client, "Lise Meitner", mode="local")["version"]["degraded"]

        until(degraded)
        assert descriptions(client) == offline


def test_a_budget_that_is_used_up_ends_help_and_an_open_circuit_asks_nothing(
    tmp_path: Path, model: ModelServer
) -> None:
    with opened(tmp_path / "a", model, "keywords", tokens_total=10) as client:
        filled(client)
        assert ask(client, "Who is Marie Curie?")["version"]["degraded"] == []
        assert ask(client, "Who is Lise Meitner?")["version"]["degraded"] == ["keywords-not-found"]
        assert len(model.requests) == 1
    model.always = lambda body: {"status": 503}
    with opened(tmp_path / "b", model, "reranker", breaker_failures=2, breaker_s=600) as client:
        filled(client)
        for _ in range(5):
            assert ask(client)["version"]["degraded"] == ["not-reranked"]
        assert len(model.requests) == 3


def test_an_erasure_takes_what_helped_with_it(tmp_path: Path, model: ModelServer) -> None:
    with opened(tmp_path, model, "summarizer") as client:
        filled(client)
        until(lambda: descriptions(client)["lise meitner"] == SUMMARY)

        def asked_twice() -> bool:
            prompts = [str(one["messages"]) for one in list(model.requests)]
            return len(prompts) > len(set(prompts))

        put(client, "other", "Otto Hahn stayed in Berlin.")
        assert descriptions(client)["lise meitner"] == SUMMARY
        assert not asked_twice(), "events about something else spoil no summary"
        assert client.post("/v1/erasures", json={"document_id": "other"}).status_code == 202
        until(lambda: descriptions(client) and asked_twice())
