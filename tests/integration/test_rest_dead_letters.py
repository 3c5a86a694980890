"""Dead letters over REST: undecoded inputs and skipped events, retried and dropped."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from streamfold.core.ledger.abc import DeadLetter
from streamfold.core.settings import KafkaSettings, Settings, TopicSettings
from streamfold.pipelines.node import Node

sys.path.insert(0, str(Path(__file__).parent))
from test_rest import BACKENDS, is_problem, serving, view_event, wait_job

sys.path.pop(0)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[httpx.Client, Node]]:
    kafka = KafkaSettings(topics={"orders": TopicSettings()})
    settings = Settings(backends=BACKENDS, data=tmp_path, kafka=kafka)
    node = Node(settings)
    with serving(settings, node) as client:
        yield client, node


def undecoded(payload: bytes, offset: int) -> DeadLetter:
    return DeadLetter(
        stage="decode",
        code="unknown-type",
        detail="test",
        source="orders",
        offset=f"orders/0/{offset}",
        payload=payload,
        at_us=1_700_000_000_000_000,
    )


def test_an_undecoded_input_is_taken_as_an_ordinary_event_once_it_decodes(served: tuple[httpx.Client, Node]) -> None:
    client, node = served
    letters = [undecoded(json.dumps(view_event("late")).encode(), 4), undecoded(b"{", 5)]
    node.ledger.append("default", [], recorded_us=1, dead=letters)
    shown = client.get("/v1/dead-letters").json()["items"]
    assert [letter["offset"] for letter in shown] == ["orders/0/4", "orders/0/5"]
    good, bad = (letter["dead_letter_id"] for letter in shown)
    assert client.get(f"/v1/dead-letters/{bad}").json()["payload_base64"] == "ew=="
    retried = client.post(f"/v1/dead-letters/{good}/retry")
    assert retried.status_code == 202, retried.text
    assert retried.json()["event_id"] == "late"
    is_problem(client.post(f"/v1/dead-letters/{bad}/retry"), 400, "malformed")
    assert client.post(f"/v1/dead-letters/{bad}/drop").status_code == 204
    assert client.get("/v1/dead-letters").json()["items"] == []


def skip(client: httpx.Client, node: Node, event_id: str, item_id: str) -> int:
    """Record that trending skipped an event (as a fold's commit would)."""
    client.post("/v1/events?wait=visible", json=view_event(event_id, type="item.upserted", data={"item_id": item_id}))
    position: int = client.get(f"/v1/events/{event_id}").json()["position"]
    [instance] = [i for i in node.ledger.instances("default") if i.name == "trending"]
    letter = DeadLetter(
        stage="fold", code="full", detail="test", policy=instance.key, skipped_by=instance.lineage, position=position,
        event_id=event_id,
    )  # fmt: skip
    node.ledger.append("default", [], recorded_us=1, dead=[letter])
    return position


def test_a_skipped_event_is_appended_anew_for_those_that_skipped_it(served: tuple[httpx.Client, Node]) -> None:
    client, node = served
    position = skip(client, node, "skipped", "lamp")
    trace = client.get("/v1/events/skipped").json()["policies"]
    line = next(line for line in trace if line["policy"] == "trending@1")
    assert line["state"] == "skipped"
    assert line["error"]["code"] == "full"
    retried = client.post(f"/v1/dead-letters/{line['dead_letter_id']}/retry")
    assert retried.status_code == 202, retried.text
    again = client.get(f"/v1/events/{retried.json()['event_id']}").json()
    assert again["retry_of"] == position
    assert again["event"]["data"] == {"item_id": "lamp"} | again["event"]["data"]
    assert client.get("/v1/dead-letters").json()["items"] == []


def test_a_retry_is_refused_when_the_subject_has_a_newer_event(served: tuple[httpx.Client, Node]) -> None:
    client, node = served
    skip(client, node, "old", "chair")
    client.put("/v1/items/chair?wait=visible", json={"title": "newer"})
    [letter] = client.get("/v1/dead-letters?policy=trending@1").json()["items"]
    is_problem(client.post(f"/v1/dead-letters/{letter['dead_letter_id']}/retry"), 409, "policy-conflict")
    started = client.post("/v1/dead-letters/retry", json={"policy": "trending@1"})
    job = wait_job(client, started.json()["job_id"])
    assert job["state"] == "done", job
    assert (job["result"]["retried"], job["result"]["refused"]) == (0, 1)
    is_problem(client.post("/v1/dead-letters/retry", json={}), 422, "invalid-value")
