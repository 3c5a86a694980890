"""Metarank's routes, used as its clients use them: a real server, asked with httpx."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from streamfold.core.settings import Settings
from tests.integration.test_rest import BACKENDS, serving
from tests.waiting import until

POLICIES: dict[str, dict[str, Any]] = {
    "trending": {}, "activity": {"window_s": 1.0}, "cooccurrence": {}, "xgboost": {"use": "count_stack"},
}  # fmt: skip
BASE = "/compat/metarank"
AT = 1767323045000
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


class Metarank:
    """What Metarank's own clients do."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client

    def __call__(self, method: str, path: str, status: int = 200, **more: Any) -> Any:
        response = self.client.request(method, BASE + path, **more)
        assert response.status_code == status, response.text
        found = response.json()
        assert status < 400 or set(found) == {"status", "error"}
        return found

    def send(self, *events: dict[str, Any]) -> Any:
        """As its documentation does: with curl, which calls the body a form."""
        return self("POST", "/feedback", content="\n".join(map(json.dumps, events)), headers=FORM)

    def logged(self, type_: str, **wanted: Any) -> list[dict[str, Any]]:
        """The events in the log whose data have these values."""
        page = self.client.get("/v1/events", params={"type": type_, "limit": 1000}).json()
        rows = [row["event"] for row in page["items"]]
        return [row for row in rows if wanted.items() <= row["data"].items()]

    def rank(self, *items: str, **more: Any) -> Any:
        body = {"event": "ranking", "id": "asked", "timestamp": str(AT), "items": [{"id": one} for one in items]}
        return self("POST", "/rank/xgboost", json=body | more)


def item(item_id: str, **fields: Any) -> dict[str, Any]:
    named = [{"name": name, "value": value} for name, value in fields.items()]
    return {"event": "item", "id": "same", "timestamp": str(AT), "item": item_id, "fields": named}


def ranking(ranking_id: str, *items: str, **more: Any) -> dict[str, Any]:
    shown = [{"id": one, "relevancy": float(n)} for n, one in enumerate(items)]
    return {"event": "ranking", "id": ranking_id, "timestamp": AT, "items": shown, **more}


def click(ranking_id: str | None, item_id: str, type_: str = "click", **more: Any) -> dict[str, Any]:
    told = {"event": "interaction", "id": f"{ranking_id}-{item_id}-{type_}", "timestamp": "2026-01-02T03:04:05Z"}
    return {**told, "ranking": ranking_id, "item": item_id, "type": type_, **more}


@pytest.fixture(scope="module")
def metarank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Metarank]:
    settings = Settings(backends=BACKENDS, data=tmp_path_factory.mktemp("metarank"), policies=POLICIES)
    with serving(settings) as client:
        yield Metarank(client)


def test_items_and_users_become_ours(metarank: Metarank) -> None:
    sent = [
        item("lamp", title="A lamp", description="It shines.", colour=["red", "blue"], sizes=[1, 2.5], cute=True),
        item("desk", title=7, categories="office"),
        {"event": "user", "id": "same", "timestamp": AT, "user": "ann", "fields": [{"name": "age", "value": 33}]},
    ]
    answer = metarank.send(*sent)
    assert (answer["accepted"], answer["status"]) == (3, "ok")
    assert set(answer) == {"accepted", "status", "tookMillis", "updated"}
    until(lambda: metarank.client.get("/v1/users/ann").status_code == 200)
    lamp = metarank.client.get("/v1/items/lamp").json()
    assert (lamp["title"], lamp["text"]) == ("A lamp", "It shines.")
    assert lamp["properties"] == {"colour": ["red", "blue"], "sizes": "[1, 2.5]", "cute": True}
    assert metarank.client.get("/v1/items/desk").json()["properties"] == {"title": 7, "categories": "office"}
    assert metarank.client.get("/v1/users/ann").json()["properties"] == {"age": 33}
    metarank.send(*sent)
    assert len(metarank.logged("item.upserted")) == 2  # sent twice, though all have one id


def test_a_ranking_is_an_exposure_and_a_click_joins_it(metarank: Metarank) -> None:
    fields = [{"name": "query", "value": "light"}]
    metarank.send(ranking("r1", "lamp", "desk", "lamp", user="bob", session="b1", fields=fields))
    metarank.send(click("r1", "desk", user="bob", session="b1", fields=[{"name": "count", "value": 1}]))
    [shown] = metarank.logged("exposure.recorded", exposure_id="r1")
    assert shown["time"].startswith("2026-01-02T03:04:05")
    assert [(one["item_id"], one["rank"], one["score"]) for one in shown["data"]["items"]] == [
        ("lamp", 1, 2.0), ("desk", 2, 1.0),
    ]  # fmt: skip
    assert shown["data"]["context"] == {"query": "light"}
    [clicked] = metarank.logged("interaction.observed", exposure_id="r1")
    assert clicked["data"] == {
        "user_id": "bob", "session_id": "b1", "item_id": "desk", "action": "click", "exposure_id": "r1",
        "context": {"count": 1},
    }  # fmt: skip


def test_who_is_nobody_is_a_session_named_by_the_ranking(metarank: Metarank) -> None:
    metarank.send(ranking("r2", "lamp"), click("r2", "lamp", "add_to_cart"), click(None, "desk", "Purchase"))
    [shown] = metarank.logged("exposure.recorded", exposure_id="r2")
    [clicked] = metarank.logged("interaction.observed", exposure_id="r2")
    assert shown["data"]["session_id"] == clicked["data"]["session_id"] == "r2"
    assert clicked["data"]["action"] == "cart"
    assert clicked["data"]["context"] == {"feedback_type": "add_to_cart"}
    [alone] = metarank.logged("interaction.observed", session_id="None-desk-Purchase")
    assert alone["data"]["action"] == "purchase"


def test_what_is_clicked_is_ranked_above_what_is_passed_over(metarank: Metarank) -> None:
    for n in range(40):
        metarank.send(ranking(f"s{n}", "good", "bad", user=f"u{n}"), click(f"s{n}", "good", user=f"u{n}"))
        metarank.send(click(f"s{n}", "bad", "dislike", user=f"u{n}"))
    until(lambda: metarank.rank("bad", "good")["items"][0]["item"] == "good")
    found = metarank.rank("bad", "good", "bad", "unheard", user="u1")
    assert set(found) == {"took", "items"}
    assert found["items"][0]["item"] == "good"
    assert sorted(one["item"] for one in found["items"]) == ["bad", "good", "unheard"]
    assert set(found["items"][0]) == {"item", "score"}
    assert metarank.logged("exposure.recorded", exposure_id="asked") == []
    told = metarank("POST", "/rank/default?explain=true", json={"items": [{"id": "good"}], "user": "u1"})
    [one] = told["items"]
    features = {feature["name"]: feature["value"] for feature in one["features"]}
    assert features["base_score"] == pytest.approx(one["score"])
    assert len(features) > 2


def test_recommendations_are_of_a_user_of_items_or_of_nobody(metarank: Metarank) -> None:
    for n in range(5):
        metarank.send(*[click(None, one, user=f"w{n}", id=f"w{n}{one}") for one in ("desk", "chair")])
    until(
        lambda: (
            [
                one["item"]
                for one in metarank("POST", "/recommend/cooccurrence", json={"count": 1, "items": ["desk"]})["items"]
            ]
            == ["chair"]
        )
    )
    found = metarank("POST", "/recommend/default", json={"count": 3, "user": "w1"})
    assert set(found) == {"took", "items"}
    assert len(found["items"]) == 3
    assert metarank("POST", "/recommend/trending", json={"count": 2})["items"]
    until(lambda: bool(metarank.logged("exposure.recorded", user_id="w1")))


def test_events_come_alone_as_an_array_and_as_lines(metarank: Metarank) -> None:
    one, two = click(None, "lamp", user="ida"), click(None, "desk", user="ida")
    assert metarank("POST", "/feedback", content=json.dumps(one, indent=2))["accepted"] == 1
    assert metarank("POST", "/feedback", json=[one, two])["accepted"] == 2
    assert metarank("POST", "/feedback", content=f"{json.dumps(one)}\n\n{json.dumps(two)}\n")["accepted"] == 2
    assert len(metarank.logged("interaction.observed", user_id="ida")) == 2


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/feedback", b""),
        ("/feedback", b"{"),
        ("/feedback", b'{"event": "party", "id": "1"}'),
        ("/feedback", b'{"event": "item", "id": "1", "timestamp": 1}'),
        ("/feedback", b'{"event": "item", "id": "1", "item": "i", "fields": {"a": 1}}'),
        ("/feedback", b'{"event": "item", "id": "1", "item": "i", "timestamp": "99999999999999"}'),
        ("/feedback", b'{"event": "item", "id": "1", "item": "i", "timestamp": "soon"}'),
        ("/feedback", b'{"event": "ranking", "id": "1", "items": []}'),
        ("/feedback", b'{"event": "ranking", "items": [{"id": "a"}]}'),
        ("/feedback", b'{"event": "interaction", "id": "1", "item": "i", "user": "u"}'),
        ("/feedback", b'{"event": "interaction", "id": "1", "item": "i", "user": "u", "type": "rating"}'),
        (
            "/feedback",
            b'{"event": "interaction", "id": "1", "item": "i", "user": "u", "type": "rating",'
            b' "fields": [{"name": "rating", "value": -1}]}',
        ),
        ("/feedback", b'{"event": "interaction", "id": "1", "item": "\\ud800", "user": "u", "type": "click"}'),
        ("/feedback", b'{"event": "user", "user": "' + b"x" * 300 + b'"}'),
        ("/rank/xgboost", b'{"items": []}'),
        ("/rank/xgboost", b'{"items": [{"id": ""}]}'),
        ("/rank/xgboost", json.dumps({"items": [{"id": str(n)} for n in range(1001)]}).encode()),
        ("/rank/xgboost?explain=perhaps", b'{"items": [{"id": "a"}]}'),
        ("/recommend/default", b'{"count": 0}'),
        ("/recommend/default", b'{"count": "many"}'),
        ("/recommend/default", b'{"count": 1, "items": ["\\u0000"]}'),
    ],
)
def test_what_is_not_valid_is_a_400(metarank: Metarank, path: str, body: bytes) -> None:
    assert metarank("POST", path, 400, content=body)["status"] == "error"


def test_one_bad_event_is_named_and_refuses_the_request(metarank: Metarank) -> None:
    events = [click(None, "lamp", user="jo"), click(None, "", user="jo")]
    assert metarank("POST", "/feedback", 400, json=events)["error"] == "row 2: item is missing or empty"
    assert metarank.logged("interaction.observed", user_id="jo") == []


def test_a_model_that_is_not_there_is_named_with_the_nearest(metarank: Metarank) -> None:
    assert "xgboost" in metarank("POST", "/rank/xgbost", 404, json={"items": [{"id": "a"}]})["error"]
    assert "known" in metarank("POST", "/recommend/similar", 404, json={"count": 1})["error"]


def test_health_and_metrics(metarank: Metarank) -> None:
    assert metarank.client.get(f"{BASE}/health").text == ""
    assert "streamfold_" in metarank.client.get(f"{BASE}/metrics").text
