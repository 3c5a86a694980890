"""The graph index over a real server: modes, paths, times, names that are one, what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from streamfold.core.settings import Settings
from tests.integration.test_rest import BACKENDS, is_problem, serving
from tests.waiting import ended_job, until

DOCUMENTS = {
    "goose": ("The Goose Woman", "The Goose Woman is a 1925 film directed by Clarence Brown. It stars Louise Dresser."),
    "brown": ("Clarence Brown", "Clarence Leon Brown was a director. He died in Santa Monica in 1987."),
    "dresser": ("Louise Dresser", "Louise Dresser was an actress. She was born in Evansville."),
    "radium": ("Marie Curie", "Marie Curie found radium in Paris. Marie Curie wrote to Lise Meitner from Paris."),
}
QUESTION = "Where did the director of The Goose Woman die?"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with serving(Settings(backends=BACKENDS, data=tmp_path_factory.mktemp("graph"))) as client:
        for id_, (title, text) in DOCUMENTS.items():
            answer = client.put(f"/v1/documents/{id_}?wait=visible", json={"title": title, "text": text})
            assert answer.json()["visible"], answer.text
        yield client


def ask(client: httpx.Client, question: str, **more: Any) -> dict[str, Any]:
    answer = client.post("/v1/query", json={"query": question, **more})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def test_the_default_mode_reaches_a_passage_over_a_name_and_says_so(client: httpx.Client) -> None:
    found = ask(client, QUESTION)
    assert [chunk["document_id"] for chunk in found["chunks"][:2]] == ["goose", "brown"]
    assert found["chunks"][1]["path"] == [{"document_id": "goose", "name": "clarence brown"}]
    assert "graph" in found["chunks"][1]["sources"]
    assert found["version"]["policies"]["graph_index"]
    assert {"total", "retrieve"} <= found["timings_ms"].keys()


@pytest.mark.parametrize("mode", ["mix", "naive", "local", "global", "hybrid", "ppr"])
def test_every_mode_answers_with_what_is_asked_for(client: httpx.Client, mode: str) -> None:
    found = ask(client, "What did Marie Curie find?", mode=mode)
    assert "radium" in [chunk["document_id"] for chunk in found["chunks"]]
    if mode != "naive":
        curie = next(one for one in found["entities"] if one["entity_id"] == "marie curie")
        assert curie["name"] == "Marie Curie"
        assert all(id_.startswith("radium#") for id_ in curie["chunk_ids"])
        assert {"lise meitner|marie curie", "marie curie|paris"} & {one["relation_id"] for one in found["relations"]}
    only = ask(client, "What did Marie Curie find?", mode=mode, include=["relations"])
    assert (only["chunks"], only["entities"]) == ([], [])


def test_an_update_and_a_deletion_leave_nothing_of_the_old_text(client: httpx.Client) -> None:
    put = {"title": "Wilhelm Roentgen", "text": "Wilhelm Roentgen saw the bones of Anna Bertha Ludwig in Wuerzburg."}
    client.put("/v1/documents/x?wait=visible", json=put)
    assert client.get("/v1/graph", params={"entity": "Anna Bertha Ludwig"}).status_code == 200
    put["text"] = "Wilhelm Roentgen worked in Munich with Abram Joffe."
    client.put("/v1/documents/x?wait=visible", json=put)
    is_problem(client.get("/v1/graph", params={"entity": "Anna Bertha Ludwig"}), 404, "not-found")
    for mode in ("mix", "local", "global"):
        assert "Ludwig" not in str(ask(client, "Whom did Wilhelm Roentgen see in Wuerzburg?", mode=mode))
    client.delete("/v1/documents/x?wait=visible")
    assert "Joffe" not in str(ask(client, "Who worked with Wilhelm Roentgen?"))
    is_problem(client.get("/v1/graph", params={"entity": "Abram Joffe"}), 404, "not-found")


def test_the_graph_shows_what_lies_around_an_entity(client: httpx.Client) -> None:
    found = client.get("/v1/graph", params={"entity": "Marie CURIE"}).json()
    assert {one["entity_id"] for one in found["entities"]} == {"marie curie", "lise meitner", "paris"}
    relation = next(one for one in found["relations"] if one["relation_id"] == "lise meitner|marie curie")
    assert "wrote to Lise Meitner" in relation["description"]
    assert (relation["weight"], found["truncated"]) == (1.0, False)
    assert client.get("/v1/graph", params={"entity": "marie curie", "limit": 1}).json()["truncated"]


def test_names_are_merged_by_an_event(client: httpx.Client) -> None:
    def send(event_id: str, **data: Any) -> dict[str, Any]:
        event = {"specversion": "1.0", "id": event_id, "source": "/test", "type": "entity.merged", "data": data}
        sent: dict[str, Any] = client.post("/v1/events?wait=visible", json=event).json()
        return sent

    assert send("m1", entity_id="Mme Curie", into="Marie Curie")["visible"]
    assert client.get("/v1/graph", params={"entity": "mme curie"}).json()["entities"][0]["entity_id"] == "marie curie"
    assert send("m2", entity_id="Mme Curie", into="Marie Curie", undo=True)["visible"]
    is_problem(client.get("/v1/graph", params={"entity": "mme curie"}), 404, "not-found")
    refused = send("m3", entity_id="Marie Curie", into="marie curie")
    letters = client.get("/v1/dead-letters").json()["items"]
    assert [one["code"] for one in letters if one["position"] == refused["position"]] == ["merge-circle"]


def test_a_question_about_the_past_is_answered_from_what_was_valid(client: httpx.Client) -> None:
    for id_, king, times in (
        ("k1", "Harald Hardrada", {"valid_from": "2010-01-01T00:00:00Z", "valid_to": "2020-01-01T00:00:00Z"}),
        ("k2", "Olav Kyrre", {"valid_from": "2020-01-01T00:00:00Z"}),
    ):
        text = f"The king of Norway in Nidaros is {king}."
        client.put(f"/v1/documents/{id_}?wait=visible", json={"title": f"King {king}", "text": text, **times})
    for as_of, king in (("2015-06-01T00:00:00Z", "k1"), ("2024-06-01T00:00:00+02:00", "k2")):
        for mode in ("mix", "naive", "local", "hybrid"):
            found = ask(client, "Who is king of Norway in Nidaros?", mode=mode, as_of=as_of)
            assert {chunk["document_id"] for chunk in found["chunks"]} == {king}, (as_of, mode)
    assert {c["document_id"] for c in ask(client, "king of Norway in Nidaros")["chunks"][:2]} == {"k1", "k2"}
    for as_of in ("2999-01-01T00:00:00Z", "yesterday", "2024-01-01T00:00:00"):
        is_problem(client.post("/v1/query", json={"query": "x", "as_of": as_of}), 422, "invalid-value")


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/v1/graph", "entity"),
        ("/v1/graph?entity=", "entity"),
        ("/v1/graph?entity=x&depth=9", "depth"),
        ("/v1/graph?entity=x&limit=0", "limit"),
        ("/v1/graph?entity=x&policy=trending", "trending"),
    ],
)
def test_a_look_at_the_graph_that_cannot_be_is_refused(client: httpx.Client, path: str, says: str) -> None:
    assert says in is_problem(client.get(path), 422, "invalid-value")["detail"]


def test_long_and_odd_questions_and_texts_are_taken_or_refused_whole(client: httpx.Client) -> None:
    assert client.post("/v1/query", json={"query": "x" * 1_000_000}).status_code == 422
    for text in ("word " * 200_000, "A" * 900_000, "Ünïcode Ñame met Łódź. " * 5_000, "\u202e\ufeff" * 1_000):
        answer = client.put("/v1/documents/odd?wait=visible&wait_ms=30000", json={"text": text})
        assert answer.json()["visible"], answer.text
        ask(client, "Unicode Name of Lodz")
    assert client.put("/v1/documents/odd", json={"text": "a\u0000b"}).status_code == 422
    assert client.delete("/v1/documents/odd?wait=visible").json()["visible"]


def test_a_new_encoder_is_built_beside_the_old_and_then_promoted(tmp_path: Path) -> None:
    """Live answers go on with the old vectors until the shadow, folded from the log, takes over at one position."""
    old = {**BACKENDS, "encoder": {"use": "hashing", "dim": 64}}
    new = {**BACKENDS, "encoder": {"use": "hashing", "dim": 128}}
    with serving(Settings(backends=old, data=tmp_path, policies={"graph_index": {}})) as client:
        for id_, (title, text) in DOCUMENTS.items():
            client.put(f"/v1/documents/{id_}?wait=visible", json={"title": title, "text": text})
        before = ask(client, QUESTION)
    settings = Settings(backends=new, data=tmp_path, policies={"graph_index": {}}, on_change="manual")
    with serving(settings) as client:
        assert [c["chunk_id"] for c in ask(client, QUESTION)["chunks"]] == [c["chunk_id"] for c in before["chunks"]]
        client.put("/v1/documents/late?wait=visible", json={"title": "Santa Monica", "text": "Santa Monica is a city."})
        rows = {row["slot"]: row for row in client.get("/v1/status").json()["policies"]}
        assert rows.keys() == {"live", "shadow"}
        until(lambda: not any(one["lag_events"] for one in client.get("/v1/status").json()["policies"]))
        body = {"version": rows["shadow"]["label"], "reason": "a wider encoder"}
        job = client.post("/v1/policies/graph_index/promote", json=body)
        assert ended_job(client, job)["state"] == "done"
        after = ask(client, QUESTION)
        assert [chunk["document_id"] for chunk in after["chunks"][:2]] == ["goose", "brown"]
        live = next(row for row in client.get("/v1/status").json()["policies"] if row["slot"] == "live")
        assert live["label"] == rows["shadow"]["label"]
        assert "late" in [chunk["document_id"] for chunk in ask(client, "What is Santa Monica?")["chunks"]]


def test_sure_merges_are_made_by_events_of_our_own_and_whoever_takes_one_back_is_not_overruled(tmp_path: Path) -> None:
    texts = {
        "a": "International Business Machines opened in Armonk. IBM hired many people there.",
        "b": "Acme Inc sued Zenith in Boston.",
        "c": "Peter Miller wrote to Acme about chairs. Acme answered.",
    }
    policies: dict[str, dict[str, Any]] = {"graph_index": {"merges": "auto"}}

    def known(client: httpx.Client, name: str) -> set[str]:
        found = client.get("/v1/graph", params={"entity": name})
        return {one["entity_id"] for one in found.json()["entities"]} if found.status_code == 200 else set()

    def merged(client: httpx.Client) -> list[Any]:
        items = client.get("/v1/events", params={"type": "entity.merged"}).json()["items"]
        return [one["event"] for one in items]

    with serving(Settings(backends=BACKENDS, data=tmp_path, policies=policies)) as client:
        for id_, text in texts.items():
            client.put(f"/v1/documents/{id_}?wait=visible", json={"text": text})
        until(lambda: "peter miller" in known(client, "Acme Inc") and "armonk" in known(client, "IBM"))
        events = merged(client)
        assert {(one["data"]["entity_id"], one["data"]["into"], one["source"]) for one in events} == {
            ("acme", "acme inc", "/streamfold/merges"),
            ("ibm", "international business machines", "/streamfold/merges"),
        }
        assert "zenith" in known(client, "acme")
        kinds = {one["kind"]: one for one in client.get("/v1/status").json()["intakes"]}
        assert "merge" in kinds
        undo = {"entity_id": "acme", "into": "acme inc", "undo": True}
        event = {"specversion": "1.0", "id": "no", "source": "/desk", "type": "entity.merged", "data": undo}
        assert client.post("/v1/events?wait=visible", json=event).json()["visible"]
        assert "peter miller" not in known(client, "Acme Inc")
        client.put("/v1/documents/d?wait=visible", json={"text": "Acme Inc hired Paula Price. Zora Quell left IBM."})
        client.put(
            "/v1/documents/e?wait=visible", json={"text": "International Business Machines honoured Zora Quell."}
        )
        head = client.get("/v1/status").json()["position"]
        until(lambda: next(iter(merge_line(client)["offsets"].values())) >= head)
        assert len(merged(client)) == 3, "two of our own, and the one that takes back"
        assert "zenith" not in known(client, "acme")
    with serving(Settings(backends=BACKENDS, data=tmp_path, policies=policies)) as client:
        assert "armonk" in known(client, "IBM"), "after a restart"
        assert "zenith" not in known(client, "acme")


def merge_line(client: httpx.Client) -> dict[str, Any]:
    return next(one for one in client.get("/v1/status").json()["intakes"] if one["kind"] == "merge")
