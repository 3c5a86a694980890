"""The REST contract over a real server: a uvicorn thread on a free port, asked with httpx."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from streamfold.core.settings import Settings
from streamfold.pipelines.node import Node
from streamfold.pipelines.serve import create_app
from tests.waiting import ended, patient, until

BACKENDS: dict[str, dict[str, Any]] = {"encoder": {"use": "hashing"}, "chunker": {"use": "sentences"}}
JSON = {"content-type": "application/json"}


@contextmanager
def serving(settings: Settings, node: Node | None = None) -> Iterator[httpx.Client]:
    """Run a node and its application in this process; yields a client of it."""
    node = node or Node(settings)
    server = uvicorn.Server(uvicorn.Config(create_app(node), port=0, log_config=None, access_log=False, lifespan="on"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=120, event_hooks={"request": [patient]}
        ) as client:
            until(lambda: client.get("/readyz").status_code == 200)
            yield client
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        node.close()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with serving(Settings(backends=BACKENDS, data=tmp_path_factory.mktemp("rest"))) as client:
        yield client


def view_event(event_id: str, **changes: Any) -> dict[str, Any]:
    data = {"user_id": "u", "item_id": "lamp", "action": "view"}
    event = {"specversion": "1.0", "id": event_id, "source": "test", "type": "interaction.observed", "data": data}
    return event | changes


def is_problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check the whole shape of a problem."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["code"] == code
    assert body["type"] == f"urn:streamfold:problem:{code}"
    assert body["status"] == status
    assert body["request_id"] == response.headers["x-request-id"]
    assert {"title", "detail", "errors"} <= body.keys()
    return body


# -- events ----------------------------------------------------------------------------------------------
def test_an_event_is_logged_then_a_redelivery_is_a_duplicate_and_other_content_is_refused(client: httpx.Client) -> None:
    first = client.post("/v1/events", json=view_event("dup"))
    assert first.status_code == 202
    assert first.json()["accepted"] == 1
    again = client.post("/v1/events?results=all", json=view_event("dup")).json()
    assert (again["accepted"], again["duplicates"]) == (0, 1)
    assert again["results"][0]["status"] == "duplicate"
    assert again["results"][0]["position"] == first.json()["position"]
    other = view_event("dup", data={"user_id": "u", "item_id": "other", "action": "view"})
    is_problem(client.post("/v1/events", json=other), 409, "event-id-reused")


@pytest.mark.parametrize("media", ["application/cloudevents+json", "application/json", "binary", "ndjson", "batch"])
def test_every_content_type_of_the_contract_is_taken(client: httpx.Client, media: str) -> None:
    event = view_event(f"media-{media}")
    headers, body = {"content-type": media}, json.dumps(event)
    if media == "binary":
        headers = {f"ce-{k}": event[k] for k in ("specversion", "id", "source", "type")} | JSON
        body = json.dumps(event["data"])
    elif media == "ndjson":
        headers = {"content-type": "application/x-ndjson"}
        body += "\n"
    elif media == "batch":
        headers, body = {"content-type": "application/cloudevents-batch+json"}, f"[{body}]"
    response = client.post("/v1/events?wait=visible", content=body, headers=headers)
    assert response.status_code == 200, response.text
    assert response.json()["visible"] is True


def test_a_batch_is_taken_item_by_item(client: httpx.Client) -> None:
    batch = [view_event("mixed-1"), view_event("mixed-2", type="interaction.obsreved"), view_event("mixed-1")]
    body = client.post("/v1/events", json=batch).json()
    assert (body["accepted"], body["duplicates"], body["rejected"]) == (1, 1, 1)
    [refused] = body["results"]
    assert refused["index"] == 1
    assert refused["problem"]["code"] == "unknown-type"
    assert "interaction.observed" in refused["problem"]["detail"]


def test_a_batch_of_refused_events_is_a_problem_that_names_each(client: httpx.Client) -> None:
    body = is_problem(client.post("/v1/events", json=[view_event(""), {"id": 3}]), 422, "invalid-event")
    assert [error["index"] for error in body["errors"]] == [0, 1]


DEEP = '{"specversion":"1.0","id":"deep","source":"t","type":"item.upserted","data":' + "[" * 5000 + "]" * 5000 + "}"
BAD = {
    "not JSON": (b"{not json", 400, "malformed"),
    "empty": (b"", 400, "malformed"),
    "wrong schema": (json.dumps(view_event("s", data={"user_id": 3})).encode(), 422, "invalid-value"),
    "unknown field": (
        json.dumps(view_event("f", data={"user_id": "u", "item_id": "i", "action": "view", "rnak": 1})).encode(),
        422,
        "unknown-field",
    ),
    "unknown type": (json.dumps(view_event("t", type="item.upsert")).encode(), 422, "unknown-type"),
    "null byte": (json.dumps(view_event("n\0")).encode(), 422, "invalid-event"),
    "wrong encoding": (b'{"specversion":"1.0","id":"\xff\xfe","source":"t","type":"x"}', 400, "malformed"),
    "deep nesting": (DEEP.encode(), 400, "malformed"),
    "NaN": (
        json.dumps(view_event("nan", data={"user_id": "u", "item_id": "i", "action": "rating", "value": float("nan")}))
        .encode(),
        400,
        "malformed",
    ),
    "year 9999": (json.dumps(view_event("y", time="9999-12-31T23:59:59Z")).encode(), 422, "invalid-event"),
    "empty id": (json.dumps(view_event("")).encode(), 422, "invalid-event"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_events_are_refused_with_a_code(client: httpx.Client, name: str) -> None:
    body, status, code = BAD[name]
    before = client.get("/v1/status").json()["position"]
    is_problem(client.post("/v1/events", content=body, headers=JSON), status, code)
    assert client.get("/v1/status").json()["position"] == before


def test_a_body_past_the_limit_is_refused_by_its_length_and_while_it_streams(client: httpx.Client) -> None:
    is_problem(client.post("/v1/events", content=b" " * 50_000_000, headers=JSON), 413, "too-large")

    def parts() -> Iterator[bytes]:
        for _ in range(50):
            yield b" " * 1_000_000

    is_problem(client.post("/v1/events", content=parts(), headers=JSON), 413, "too-large")


def test_an_unsupported_content_type_is_415(client: httpx.Client) -> None:
    for media in ("text/plain", "application/json; charset=utf-16"):
        response = client.post("/v1/events", content=b"{}", headers={"content-type": media})
        is_problem(response, 415, "unsupported-media-type")


def test_the_trace_of_an_event_says_what_each_policy_did(client: httpx.Client) -> None:
    client.post("/v1/events?wait=visible", json=view_event("traced"))
    body = client.get("/v1/events/traced").json()
    states = {line["policy"]: line["state"] for line in body["policies"]}
    assert states == {"trending@1": "folded", "graph_index@1": "ignored"}
    assert body["event"]["data"]["item_id"] == "lamp"
    is_problem(client.get("/v1/events/nobody"), 404, "not-found")
    is_problem(client.get("/v1/events/traced", params={"source": "other"}), 404, "not-found")


def test_the_log_is_paged(client: httpx.Client) -> None:
    client.post("/v1/events", json=[view_event(f"page-{i}") for i in range(5)])
    seen: list[int] = []
    cursor = None
    while True:
        params = {"limit": "2", "type": "interaction.observed"} | ({"cursor": cursor} if cursor else {})
        body = client.get("/v1/events", params=params).json()
        seen += [item["position"] for item in body["items"]]
        cursor = body["next_cursor"]
        if cursor is None:
            break
    assert seen == sorted(set(seen))
    assert len(seen) >= 5
    is_problem(client.get("/v1/events?cursor=%21%21"), 400, "bad-cursor")


# -- documents and questions -----------------------------------------------------------------------------
def test_a_document_is_found_after_put_changed_after_patch_and_gone_after_delete(client: httpx.Client) -> None:
    url = "/v1/documents/manual%2Fp%C3%BCmp"
    put = client.put(
        f"{url}?wait=visible",
        json={"text": "The zirconium pump is started by the green lever.", "metadata": {"lang": "en"}},
    )
    assert put.status_code == 200, put.text
    stored = client.get(url).json()
    assert stored["document_id"] == "manual/pümp"
    assert stored["position"] == put.json()["position"]
    assert stored["chunks"][0]["text"].startswith("The zirconium")
    assert stored["version"]["position"] >= put.json()["position"]
    answer = client.post("/v1/query", json={"query": "zirconium pump", "top_k": 1}).json()
    assert [c["document_id"] for c in answer["chunks"]] == ["manual/pümp"]
    assert client.patch(f"{url}?wait=visible", json={"title": "Pump", "metadata": {"lang": None}}).status_code == 200
    assert client.get(url).json()["title"] == "Pump"
    gone = client.delete(f"{url}?wait=visible")
    assert gone.status_code == 200
    is_problem(client.get(url), 404, "not-found")
    found = client.post("/v1/query", json={"query": "zirconium pump"}).json()["chunks"]
    assert "manual/pümp" not in [c["document_id"] for c in found]


def test_an_idempotency_key_makes_a_put_count_once(client: httpx.Client) -> None:
    headers = {"Idempotency-Key": "key-1"}
    one = client.put("/v1/items/lamp", json={"title": "Lamp"}, headers=headers).json()
    two = client.put("/v1/items/lamp", json={"title": "Lamp"}, headers=headers).json()
    assert one["event_id"] == two["event_id"] == "key-1"
    assert one["position"] == two["position"]
    is_problem(client.put("/v1/items/lamp", json={"title": "Desk"}, headers=headers), 409, "event-id-reused")


def test_paths_with_bad_ids_are_refused(client: httpx.Client) -> None:
    for path in ("/v1/documents/a%00b", "/v1/documents/%FF", f"/v1/documents/{'x' * 257}", "/v1/documents/"):
        is_problem(client.put(path, json={"text": "t"}), 422, "invalid-value")
        is_problem(client.get(path), 422, "invalid-value")


def test_a_put_with_a_bad_body_points_into_the_body(client: httpx.Client) -> None:
    body = is_problem(client.put("/v1/documents/x", json={"text": "t", "titel": "T"}), 422, "unknown-field")
    assert body["errors"][0]["pointer"] == "/titel"
    assert "title" in body["detail"]
    is_problem(client.put("/v1/documents/x", json={"text": "t", "document_id": "y"}), 422, "invalid-value")
    is_problem(client.put("/v1/documents/x", content=b"[1]", headers=JSON), 400, "malformed")
    is_problem(client.put("/v1/documents/x", content=b"{}", headers={"content-type": "text/xml"}), 415,
               "unsupported-media-type")  # fmt: skip


@pytest.mark.parametrize(
    ("body", "code", "hint"),
    [
        ({"query": "x", "topk": 3}, "unknown-field", "top_k"),
        ({"query": "x", "mode": "naiv"}, "invalid-value", "naive"),
        ({"query": "x", "generate": True}, "invalid-value", "generator"),
        ({"query": "x", "top_k": 0}, "invalid-value", "top_k"),
        ({"query": "x", "top_k": 101}, "invalid-value", "top_k"),
        ({"query": "x", "sources": ["bm52"]}, "invalid-value", "bm25"),
        ({"query": "x", "filter": {"field": "metadata.a", "op": "eqq", "value": 1}}, "invalid-value", "eq"),
        ({"query": "x", "filter": {"feild": "metadata.a"}}, "unknown-field", "field"),
        ({}, "invalid-value", "query"),
        ({"query": ""}, "invalid-value", "query"),
        ({"query": "x", "policy": "nobody"}, "invalid-value", "nobody"),
    ],
)
def test_bad_questions_are_422_and_say_what_is_near(
    client: httpx.Client, body: dict[str, Any], code: str, hint: str
) -> None:
    assert hint in is_problem(client.post("/v1/query", json=body), 422, code)["detail"]


def test_hostile_questions_never_fail_the_server(client: httpx.Client) -> None:
    deep = b'{"query":"x","filter":' + b'{"not":' * 5000 + b"1" + b"}" * 5000 + b"}"
    for body in (deep, b"", b"[]", b"\xff", b'{"query":"\\ud800"}', b'{"query":"a\\u0000b"}', b'{"query":NaN}'):
        response = client.post("/v1/query", content=body, headers=JSON)
        assert response.status_code < 500, response.text


def test_a_filter_selects_by_metadata_and_id(client: httpx.Client) -> None:
    for name, year in (("f-1", 2001), ("f-2", 2002), ("f-3", 2003)):
        client.put(
            f"/v1/documents/{name}?wait=visible",
            json={"text": "Quartz is a mineral.", "metadata": {"year": year, "tags": ["a", name]}},
        )

    def ask(condition: dict[str, Any]) -> list[str]:
        body = {"query": "quartz mineral", "filter": condition, "top_k": 100}
        return sorted(c["document_id"] for c in client.post("/v1/query", json=body).json()["chunks"])

    year = {"field": "metadata.year", "op": "gte", "value": 2002}
    assert ask(year) == ["f-2", "f-3"]
    assert ask({"and": [year, {"not": {"field": "document_id", "op": "eq", "value": "f-3"}}]}) == ["f-2"]
    assert ask(
        {"or": [{"field": "metadata.tags", "op": "in", "value": ["f-1"]}, {"field": "document_id", "value": "f-3"}]}
    ) == ["f-1", "f-3"]
    assert ask({"field": "metadata.year", "op": "lt", "value": "2002"}) == []


def test_trending_lists_items_by_attention(client: httpx.Client) -> None:
    events = [
        view_event(f"trend-{i}", data={"user_id": f"u{i}", "item_id": f"t{i % 2 or 3}", "action": "purchase"})
        for i in range(40)
    ]
    position = client.post("/v1/events", json=events).json()["position"]
    body = client.get("/v1/trending", params={"n": 2, "min_position": position, "wait_ms": 30_000}).json()
    assert {item["item_id"] for item in body["items"]} == {"t1", "t3"}
    assert [item["rank"] for item in body["items"]] == [1, 2]
    assert body["version"]["position"] >= position
    is_problem(client.get("/v1/trending?half_life_s=3"), 422, "invalid-value")
    is_problem(client.get("/v1/trending?n=0"), 422, "invalid-value")
    is_problem(client.get("/v1/trending?half_lief_s=3"), 422, "unknown-field")


def test_a_position_that_is_not_reached_is_503_with_the_position(client: httpx.Client) -> None:
    response = client.post("/v1/query?min_position=999999999&wait_ms=20", json={"query": "x"})
    body = is_problem(response, 503, "position-not-reached")
    assert body["position"] < 999_999_999
    assert response.headers["retry-after"]


# -- operating ---------------------------------------------------------------------------------------------
def test_unknown_paths_and_methods_are_problems(client: httpx.Client) -> None:
    is_problem(client.get("/v1/nothing"), 404, "not-found")
    response = client.delete("/v1/status")
    is_problem(response, 405, "method-not-allowed")
    assert "GET" in response.headers["allow"]


def test_the_request_id_is_echoed(client: httpx.Client) -> None:
    assert client.get("/healthz", headers={"X-Request-Id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert client.get("/healthz", headers={"X-Request-Id": "a b\tc"}).headers["x-request-id"] != "a b\tc"


def test_verify_runs_as_a_job_and_finds_the_stores_equal(client: httpx.Client) -> None:
    started = client.post("/v1/policies/trending/verify", json={"reason": "test"})
    assert started.status_code == 202
    job = wait_job(client, started.json()["job_id"])
    assert job["state"] == "done", job
    assert job["result"]["equal"] is True
    is_problem(client.get("/v1/jobs/none"), 404, "not-found")
    is_problem(client.post("/v1/policies/trendign/verify", json={}), 404, "not-found")


def wait_job(client: httpx.Client, job_id: str) -> dict[str, Any]:
    return ended(client, f"/v1/jobs/{job_id}", "done", "failed", "cancelled")


def test_a_paused_policy_waits_and_goes_on_when_resumed(client: httpx.Client) -> None:
    is_problem(client.post("/v1/policies/trending/pause", json={}), 422, "invalid-value")
    paused = client.post("/v1/policies/trending/pause", json={"reason": "test"})
    assert wait_job(client, paused.json()["job_id"])["state"] == "done"
    states = {p["policy"]: p["state"] for p in client.get("/v1/status").json()["policies"]}
    assert states["trending"] == "paused"
    resumed = client.post("/v1/policies/trending/resume", json={"reason": "test"})
    assert wait_job(client, resumed.json()["job_id"])["state"] == "done"
    assert client.post("/v1/events?wait=visible", json=view_event("after-pause")).json()["visible"]


def test_what_is_registered_is_shown(client: httpx.Client) -> None:
    assert "item.upserted" in [t["type"] for t in client.get("/v1/event-types").json()["items"]]
    assert client.get("/v1/event-types/item.upserted").json()["schema"]["title"] == "item.upserted"
    is_problem(client.get("/v1/event-types/item.upsert"), 404, "not-found")
    assert client.get("/v1/plugins").json()["policies"]
    assert client.get("/v1/dead-letters").json() == {"items": [], "next_cursor": None}
    is_problem(client.get("/v1/dead-letters/7"), 404, "not-found")


def test_health_metrics_and_the_document(client: httpx.Client) -> None:
    assert all(check["ok"] for check in client.get("/v1/health").json()["checks"])
    text = client.get("/metrics").text
    for name in ("streamfold_events_total", "streamfold_lag_events", "streamfold_visible_seconds_bucket",
                 "streamfold_commit_seconds_bucket", "streamfold_http_requests_total", "streamfold_store_bytes",
                 "streamfold_dead_letters"):  # fmt: skip
        assert name in text
    document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.")
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], (path, method)
            bodiless = path.endswith("/category/{category}")
            if (method in ("put", "patch") and not bodiless) or (
                path in ("/v1/query", "/v1/events") and method == "post"
            ):
                assert all("example" in c for c in operation["requestBody"]["content"].values()), (path, method)


def test_state_survives_a_restart(tmp_path: Path) -> None:
    settings = Settings(backends=BACKENDS, data=tmp_path)
    with serving(settings) as first:
        first.put("/v1/documents/kept?wait=visible", json={"text": "Basalt cools fast."})
    with serving(settings) as second:
        assert second.get("/v1/documents/kept").json()["text"] == "Basalt cools fast."
