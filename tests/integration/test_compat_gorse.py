"""Gorse's routes, used as its clients use them: a real server, asked with httpx."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from streamfold.core.settings import Settings
from tests.integration.test_rest import BACKENDS, serving
from tests.waiting import until

POLICIES: dict[str, dict[str, Any]] = {
    "trending": {}, "most_starred": {"use": "trending"}, "activity": {}, "cooccurrence": {}, "item_vectors": {},
    "newest": {},
}  # fmt: skip
BASE = "/compat/gorse/api"
AT = "2026-01-02T03:04:05Z"


class Gorse:
    """What Gorse's own clients do."""

    def __init__(self, client: httpx.Client) -> None:
        self.client = client

    def __call__(self, method: str, path: str, status: int = 200, **more: Any) -> Any:
        response = self.client.request(method, BASE + path, **more)
        assert response.status_code == status, response.text
        if status >= 400:
            assert response.headers["content-type"].startswith("text/plain")
            return response.text
        return response.json()

    def rest(self) -> None:
        """Wait until answers show all that is logged."""
        until(lambda: (status := self.client.get("/v1/status").json())["view"]["position"] >= status["position"])

    def logged(self, type_: str, **wanted: Any) -> list[dict[str, Any]]:
        """The data of the events in the log that have these values."""
        rows: list[dict[str, Any]] = []
        cursor: dict[str, str] = {}
        while True:
            page = self.client.get("/v1/events", params={"type": type_, "limit": 1000, **cursor}).json()
            rows += [row["event"]["data"] for row in page["items"]]
            if page["next_cursor"] is None:
                return [row for row in rows if wanted.items() <= row.items()]
            cursor = {"cursor": page["next_cursor"]}


def row(type_: str, user: str, item: str, **more: Any) -> dict[str, Any]:
    return {"FeedbackType": type_, "UserId": user, "ItemId": item, **more}


@pytest.fixture(scope="module")
def gorse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gorse]:
    settings = Settings(backends=BACKENDS, data=tmp_path_factory.mktemp("gorse"), policies=POLICIES)
    with serving(settings) as client:
        found = Gorse(client)
        items = [
            {
                "ItemId": "lamp",
                "Categories": ["light", "home"],
                "Timestamp": "2025-01-01T00:00:00Z",
                "Comment": "A lamp",
            },
            {"ItemId": "candle", "Categories": ["light"], "Timestamp": "2025-03-01T00:00:00Z"},
            {"ItemId": "desk", "Categories": ["office", "home"], "Timestamp": "2025-02-01T00:00:00Z"},
            {"ItemId": "chair", "Categories": ["office"], "Timestamp": "2024-01-01T00:00:00Z"},
            {"ItemId": "ghost", "IsHidden": True, "Categories": ["office"], "Timestamp": "2025-04-01T00:00:00Z"},
        ]
        assert found("POST", "/items", json=items) == {"RowAffected": 5}
        liked = [row("star", f"v{n}", item, Timestamp=AT) for n in range(5) for item in ("desk", "chair", "ghost")]
        liked.append(row("buy", "ann", "desk", Timestamp=AT))
        assert found("POST", "/feedback", json=liked) == {"RowAffected": 16}
        found.rest()
        yield found


def test_a_user_gets_what_goes_with_their_feedback_and_nothing_they_met(gorse: Gorse) -> None:
    ids = gorse("GET", "/recommend/ann", params={"n": 3})
    assert ids[0] == "chair"
    assert "desk" not in ids
    assert "ghost" not in gorse("GET", "/recommend/ann", params={"n": 100})
    scored = gorse("GET", "/recommend/ann", params={"n": 3}, headers={"X-API-Version": "2"})
    assert [one["Id"] for one in scored] == ids
    assert set(scored[0]) == {"Id", "Score"}
    assert gorse("GET", "/recommend/ann", params={"n": 2, "offset": 1}) == ids[1:3]
    assert gorse("GET", "/recommend/ann", params={"category": "light"}) == gorse(
        "GET", "/recommend/ann", params={"category": "light", "offset": "0"}
    )
    assert set(gorse("GET", "/recommend/ann", params={"category": "light"})) == {"lamp", "candle"}
    assert gorse("GET", "/recommend/ann", params={"category": ["light", "home"]}) == ["lamp"]
    assert gorse("GET", "/collaborative-filtering/ann", params={"n": 1})[0]["Id"] == "chair"


def test_what_recommend_answers_is_an_exposure_and_a_raw_list_is_none(gorse: Gorse) -> None:
    assert gorse("GET", "/recommend/eve", params={"n": 2, "offset": 1})
    assert gorse("GET", "/collaborative-filtering/bob")
    until(lambda: bool(gorse.logged("exposure.recorded", user_id="eve")))
    [shown] = gorse.logged("exposure.recorded", user_id="eve")
    assert len(shown["items"]) == 2
    assert gorse.logged("exposure.recorded", user_id="bob") == []


def test_feedback_is_in_the_next_answer(gorse: Gorse) -> None:
    assert gorse("PUT", "/feedback", json=[row("star", "carl", "chair", Timestamp=AT)]) == {"RowAffected": 1}
    until(lambda: "chair" not in gorse("GET", "/recommend/carl"))
    assert gorse("GET", "/recommend/carl")[0] == "desk"


def test_a_row_with_a_time_counts_once_and_one_without_each_time_by_post(gorse: Gorse) -> None:
    dated = row("like", "dora", "lamp", Timestamp=AT, Value=2, Comment="so red", Labels={"page": "home"})
    for method in ("POST", "POST", "PUT"):
        assert gorse(method, "/feedback", json=[dated]) == {"RowAffected": 1}
    [told] = gorse.logged("interaction.observed", user_id="dora")
    assert told == {
        "user_id": "dora", "item_id": "lamp", "action": "like", "value": 2.0,
        "context": {"comment": "so red", "label.page": "home"},
    }  # fmt: skip
    for _ in range(2):
        gorse("PUT", "/feedback", json=[row("read", "dora", "candle")])
    assert len(gorse.logged("interaction.observed", user_id="dora", item_id="candle")) == 1
    for _ in range(2):
        gorse("POST", "/feedback", json=[row("read", "dora", "desk")])
    assert len(gorse.logged("interaction.observed", user_id="dora", item_id="desk")) == 2


def test_types_become_actions_and_keep_their_name(gorse: Gorse) -> None:
    types = ["star", "read", "purchase", "bookmarked"]
    gorse("POST", "/feedback", json=[row(one, "fred", one, Timestamp=AT) for one in types])
    found = {one["item_id"]: one for one in gorse.logged("interaction.observed", user_id="fred")}
    assert {name: found[name]["action"] for name in types} == {
        "star": "like", "read": "view", "purchase": "purchase", "bookmarked": "click",
    }  # fmt: skip
    assert found["bookmarked"]["context"] == {"feedback_type": "bookmarked"}
    assert "context" not in found["purchase"]


def test_what_was_shown_can_be_written_back(gorse: Gorse) -> None:
    params = {"n": 2, "write-back-type": "read", "write-back-delay": "10m"}
    first = gorse("GET", "/recommend/gina", params=params)
    assert {one["item_id"] for one in gorse.logged("interaction.observed", user_id="gina")} == set(first)
    until(lambda: not set(first) & set(gorse("GET", "/recommend/gina", params={"n": 2})))


def test_lists_for_everybody(gorse: Gorse) -> None:
    newest = gorse("GET", "/latest", params={"n": 2})
    assert [one["Id"] for one in newest] == ["candle", "desk"]  # and not ghost, which is hidden
    assert newest[0]["Score"] == datetime(2025, 3, 1, tzinfo=UTC).timestamp()
    assert [one["Id"] for one in gorse("GET", "/latest", params={"n": 1, "offset": 1})] == ["desk"]
    assert [one["Id"] for one in gorse("GET", "/latest", params={"category": "office"})] == ["desk", "chair"]
    popular = [one["Id"] for one in gorse("GET", "/non-personalized/popular", params={"n": 4})]
    assert {"desk", "chair"} <= set(popular)
    assert "ghost" not in popular
    assert [one["Id"] for one in gorse("GET", "/non-personalized/most_starred", params={"n": 4})] == popular
    assert "most_loved" in gorse("GET", "/non-personalized/most_loved", 404)
    alike = gorse("GET", "/item-to-item/neighbors/desk", params={"n": 3})
    assert alike[0]["Id"] == "chair"
    light = gorse("GET", "/item-to-item/neighbors/desk", params={"category": "light"})
    assert {one["Id"] for one in light} <= {"lamp", "candle"}
    assert gorse("GET", "/item-to-item/neighbors/unheard-of") == []
    assert "similar users" in gorse("GET", "/user-to-user/neighbors/ann", 404)


def test_a_session_gets_what_goes_with_it(gorse: Gorse) -> None:
    now = [row("star", "", "desk", Timestamp=AT), row("read", "", "lamp", Timestamp=AT)]
    found = gorse("POST", "/session/recommend", json=now, params={"n": 5})
    assert found[0]["Id"] == "chair"
    assert not {"desk", "lamp", "ghost"} & {one["Id"] for one in found}
    assert gorse("POST", "/session/recommend", json=[])  # what is popular


def test_items_come_back_as_they_were_sent(gorse: Gorse) -> None:
    sent = {
        "ItemId": "sofa/red", "IsHidden": False, "Categories": ["home"], "Timestamp": "2025-01-01T00:00:00Z",
        "Labels": {"colour": "red", "tags": ["soft", "big"], "vector": [0.5, 1], "size": {"w": 2}, "seats": 3},
        "Comment": "A red sofa",
    }  # fmt: skip
    gorse("POST", "/item", json=sent)
    assert gorse("GET", "/item/sofa%2Fred") == sent
    gorse("PATCH", "/item/sofa%2Fred", json={"IsHidden": True, "Labels": {"colour": "blue"}})
    changed = gorse("GET", "/item/sofa%2Fred")
    assert changed == sent | {"IsHidden": True, "Labels": {"colour": "blue"}}
    for category in ("office", "sale"):
        gorse("PUT", f"/item/sofa%2Fred/category/{category}")
    gorse("DELETE", "/item/sofa%2Fred/category/home")
    assert gorse("GET", "/item/sofa%2Fred")["Categories"] == ["office", "sale"]
    assert gorse.client.get("/v1/items/sofa%2Fred").json()["properties"] == {"colour": "blue"}
    with ThreadPoolExecutor(4) as pool:  # none of them loses another's
        list(pool.map(lambda n: gorse("PUT", f"/item/sofa%2Fred/category/c{n}"), range(4)))
    assert set(gorse("GET", "/item/sofa%2Fred")["Categories"]) == {"office", "sale", "c0", "c1", "c2", "c3"}
    gorse("DELETE", "/item/sofa%2Fred")
    assert gorse("GET", "/item/sofa%2Fred", 404) == "item not found: sofa/red"
    gorse("PUT", "/item/sofa%2Fred/category/home", 404)


def test_users_come_back_as_they_were_sent_and_deleting_one_erases_them(gorse: Gorse) -> None:
    users = [
        {"UserId": "u1", "Labels": {"country": "NO"}, "Comment": "first"},
        {"UserId": "u2", "Labels": ["vip", "new"], "Comment": ""},
        {"UserId": "u3", "Labels": None, "Comment": ""},
    ]
    assert gorse("POST", "/users", json=users) == {"RowAffected": 3}
    assert [gorse("GET", f"/user/{one['UserId']}") for one in users] == users
    first = gorse("GET", "/users", params={"n": 2, "cursor": ""})
    assert first["Users"] == users[:2]
    assert gorse("GET", "/users", params={"n": 2, "cursor": first["Cursor"]}) == {"Cursor": "", "Users": users[2:]}
    gorse("PATCH", "/user/u1", json={"Labels": {"age": 3}})
    assert gorse("GET", "/user/u1") == {"UserId": "u1", "Labels": {"age": 3}, "Comment": "first"}
    assert gorse("DELETE", "/user/u1") == {"RowAffected": 1}
    gorse("GET", "/user/u1", 404)
    assert gorse.client.get("/v1/events", params={"type": "user.erased"}).json()["items"]


def test_everything_goes_out_and_comes_in_as_lines(gorse: Gorse) -> None:
    def export(name: str) -> list[Any]:
        response = gorse.client.get(f"{BASE}/bulk/{name}")
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("application/jsonl")
        return [json.loads(line) for line in response.text.splitlines()]

    items = {one["ItemId"]: one for one in export("items")}
    assert items["lamp"] == {
        "ItemId": "lamp", "IsHidden": False, "Categories": ["light", "home"], "Timestamp": "2025-01-01T00:00:00Z",
        "Labels": None, "Comment": "A lamp",
    }  # fmt: skip
    [bought] = [one for one in export("feedback") if one["UserId"] == "ann" and one["ItemId"] == "desk"]
    assert (bought["FeedbackType"], bought["Timestamp"]) == ("buy", "2026-01-02T03:04:05Z")
    before = len(gorse.logged("interaction.observed"))
    dated = [json.dumps(one) for one in export("feedback") if one["Timestamp"] == AT]
    assert len(dated) > 16
    assert gorse("POST", "/bulk/feedback", content="\n".join(dated)) == {"RowAffected": len(dated)}
    assert len(gorse.logged("interaction.observed")) == before
    file = {"file": ("users.jsonl", b'{"UserId":"b1"}\n\n{"UserId":"b2","Labels":{"a":"b"}}\n')}
    assert gorse("POST", "/bulk/users", files=file) == {"RowAffected": 2}
    until(lambda: {"b1", "b2"} <= {one["UserId"] for one in export("users")})
    broken = b'{"ItemId": "ok"}\n{"ItemId": 7}\n'
    assert gorse("POST", "/bulk/items", 400, content=broken).startswith("row 2:")
    assert gorse("GET", "/item/ok", 404)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/feedback", b"{"),
        ("POST", "/feedback", b"{}"),
        ("POST", "/feedback", b'[{"FeedbackType": "like", "UserId": "u"}]'),
        ("POST", "/feedback", b'[{"FeedbackType": "like", "UserId": "", "ItemId": "i"}]'),
        ("POST", "/feedback", b'[{"FeedbackType": "", "UserId": "u", "ItemId": "i"}]'),
        ("POST", "/feedback", b'[{"FeedbackType": "rating", "UserId": "u", "ItemId": "i"}]'),
        ("POST", "/feedback", b'[{"FeedbackType": "like", "UserId": "u", "ItemId": "i", "Timestamp": "soon"}]'),
        ("POST", "/feedback", b'[{"FeedbackType": "like", "UserId": "u", "ItemId": "i", "Timestamp": "2999-01-01"}]'),
        ("POST", "/feedback", b'[{"FeedbackType": "like", "UserId": "u", "ItemId": "i", "Value": NaN}]'),
        ("POST", "/feedback", b'[{"FeedbackType": "rate", "UserId": "u", "ItemId": "i", "Value": -0.5}]'),
        ("PUT", "/feedback", b'[{"FeedbackType": "like", "UserId": "u", "ItemId": "i", "Value": -1}]'),
        ("POST", "/session/recommend", b'[{"FeedbackType": "like", "UserId": "u", "ItemId": "i", "Value": -1}]'),
        ("POST", "/feedback", b'[{"FeedbackType": "like", "UserId": "u", "ItemId": "\\ud800"}]'),
        ("POST", "/item", b'{"ItemId": "i", "Labels": ' + b'{"a":' * 5000 + b"1" + b"}" * 5001),
        ("POST", "/item", b'{"ItemId": "i", "Labels": {"a": 123456789012345678901234567890}}'),
        ("PATCH", "/item/i", b'{"Timestamp": "9999-12-31T23:59:59-14:00"}'),
        ("POST", "/user", b'{"UserId": "' + b"x" * 300 + b'"}'),
        ("GET", "/recommend/u?n=0", b""),
        ("GET", "/recommend/u?n=many", b""),
        ("GET", "/recommend/u?write-back-type=read&write-back-delay=soon", b""),
        ("GET", "/users?cursor=abc", b""),
        ("POST", "/session/recommend", b'[{"FeedbackType": "like", "UserId": "u", "ItemId": ""}]'),
    ],
)
def test_what_is_not_valid_is_a_400_in_text(gorse: Gorse, method: str, path: str, body: bytes) -> None:
    assert gorse(method, path, 400, content=body)


def test_one_bad_row_is_named_and_refuses_the_request(gorse: Gorse) -> None:
    rows = [row("like", "hugo", "lamp", Timestamp=AT), row("like", "hugo", "desk", Timestamp="never")]
    assert gorse("POST", "/feedback", 400, json=rows).startswith("row 2: Timestamp is 'never'")
    rows[1] = row("rate", "hugo", "desk", Value=-2)
    assert gorse("POST", "/feedback", 400, json=rows).startswith("row 2: Value is -2: it must not be negative")
    assert gorse.logged("interaction.observed", user_id="hugo") == []


def test_health_needs_no_key_and_the_key_is_gorses_header(gorse: Gorse) -> None:
    assert gorse("GET", "/health/live")["Ready"] is True
    made = gorse.client.post("/v1/keys", json={"name": "reader", "scopes": ["query"]}).json()["key"]
    admin = gorse.client.post("/v1/keys", json={"name": "admin", "scopes": ["admin", "ingest", "query"]}).json()["key"]
    gorse("GET", "/recommend/ann", 401)
    assert gorse("GET", "/health/ready")["DataStoreConnected"] is True
    reader = {"X-API-Key": made}
    assert gorse("GET", "/recommend/ann", headers=reader)
    gorse("POST", "/feedback", 403, json=[], headers=reader)
    gorse("GET", "/recommend/ann", 403, headers=reader, params={"write-back-type": "read"})
    assert gorse("POST", "/feedback", json=[], headers={"X-API-Key": admin}) == {"RowAffected": 0}
