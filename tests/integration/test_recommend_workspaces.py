"""A recommender in two workspaces: what one switches off, shows or is told is nothing to the other; bad input."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from streamfold.core.settings import Settings
from tests.waiting import until

sys.path.insert(0, str(Path(__file__).parent))
from test_keys import by, make
from test_rest import BACKENDS, is_problem, serving

sys.path.pop(0)

POLICIES: dict[str, dict[str, Any]] = {
    "trending": {},
    "activity": {"window_s": 3600.0},
    "newest": {},
    "diag_linucb": {"clusters": 4},
    "count_stack": {"ids": 1024, "crosses": 1024},
    "factorization": {"rows": 1024},
    "ensemble": {},
    "residual_table": {"rows": 1024},
}


class Shop:
    """One workspace of a service."""

    def __init__(self, client: httpx.Client, key: str, name: str) -> None:
        self.client, self.name = client, name
        self.headers = by(key, name)
        self._count = 0

    def get(self, path: str, **params: Any) -> Any:
        return self.client.get(path, params=params, headers=self.headers).raise_for_status().json()

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.client.post(path, json=body, headers=self.headers)

    def ask(self, path: str, **body: Any) -> Any:
        return self.post(path, **body).raise_for_status().json()

    def events(self, *events: dict[str, Any]) -> httpx.Response:
        """Send events as they are, and wait until answers show them."""
        made = []
        for event in events:
            self._count += 1
            made.append({"specversion": "1.0", "id": f"{id(self)}-{self._count}", "source": "/shop"} | event)

        def sent() -> httpx.Response:
            params = {"wait": "visible", "wait_ms": 30_000, "results": "all"}
            return self.client.post("/v1/events", params=params, json=made, headers=self.headers)

        answer = sent()
        if answer.is_success and not answer.json()["visible"]:
            until(lambda: sent().json()["visible"])
        return answer

    def send(self, *given: tuple[str, dict[str, Any]]) -> None:
        sent = self.events(*({"type": type_, "data": data} for type_, data in given)).json()
        assert sent["accepted"] == len(given), sent

    def done(self, answer: httpx.Response) -> None:
        """Wait for a job."""
        assert answer.status_code == 202, answer.text
        assert until(lambda: self.job(answer)["state"] in ("done", "failed"))
        assert self.job(answer)["state"] == "done", self.job(answer)

    def job(self, answer: httpx.Response) -> Any:
        return self.get(f"/v1/jobs/{answer.json()['job_id']}")

    def letters(self) -> list[Any]:
        return list(self.get("/v1/dead-letters")["items"])


def like(user: str, item: str, action: str = "like", **more: Any) -> tuple[str, dict[str, Any]]:
    return "interaction.observed", {"user_id": user, "item_id": item, "action": action, **more}


def fill(shop: Shop) -> None:
    titles = {"jazz": "trumpet and brushes", "rock": "loud guitar amplifier", "folk": "fiddle", "noise": "feedback"}
    shop.send(
        ("user.upserted", {"user_id": "ann", "properties": {"country": "NO"}}),
        *[
            ("item.upserted", {"item_id": item, "title": title, "categories": ["music"]})
            for item, title in titles.items()
        ],
        *[like(f"u{n % 7}", "jazz" if n % 2 else "rock", "like" if n % 3 else "dislike") for n in range(60)],
        *[like("ann", "jazz") for _ in range(5)],
    )


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Shop, Shop]]:
    folder = tmp_path_factory.mktemp("shops")
    with serving(Settings(backends=BACKENDS, data=folder, policies=POLICIES)) as client:
        key = make(client, "operator")
        made = []
        for name in ("one", "two"):
            assert client.put(f"/v1/workspaces/{name}", headers=by(key)).status_code == 200
            made.append(Shop(client, key, name))
            fill(made[-1])
        yield made[0], made[1]


def corrected(shop: Shop) -> tuple[bool, float]:
    """Whether an explained ranking tells of λ, and how far its first score was corrected."""
    body = {"user_id": "ann", "item_ids": ["jazz", "rock"], "explain": True, "log_exposure": False}
    why = shop.ask("/v1/rank", **body)["items"][0]["explain"]
    return "residual_table.lambda" in {one["name"] for one in why["features"]}, why["correction"]


def nearly(found: tuple[bool, float]) -> Any:
    """The same a moment later: what is remembered decays with time."""
    return found[0], pytest.approx(found[1], rel=1e-4)


def test_one_workspace_switches_its_error_memory_off_and_on_again(shops: tuple[Shop, Shop]) -> None:
    one, two = shops
    before = [corrected(shop) for shop in shops]
    assert [(told, correction != 0) for told, correction in before] == [(True, True)] * 2
    off = {"rows": 1024, "enabled": False}
    one.done(one.post("/v1/policies", name="residual_table", config=off, reason="off"))
    [shadow] = [v for v in one.get("/v1/policies")["items"] if (v["policy"], v["slot"]) == ("residual_table", "shadow")]
    assert corrected(one) == nearly(before[0]), "a shadow changes no answer"
    one.done(one.post(f"/v1/policies/residual_table@{shadow['label']}/promote", reason="off"))
    assert corrected(one) == (False, 0.0)
    assert corrected(two) == nearly(before[1])
    one.send(like("ann", "rock", "dislike"))
    assert corrected(one) == (False, 0.0)
    one.done(one.post("/v1/policies/residual_table/rollback", reason="on"))
    told, correction = corrected(one)
    assert told
    assert abs(correction - before[0][1]) > 1e-4, "it has learned on while it was off"
    assert corrected(two) == nearly(before[1])


def test_a_restart_leaves_off_what_was_switched_off(tmp_path: Path) -> None:
    settings = Settings(backends=BACKENDS, data=tmp_path, policies=POLICIES)
    with serving(settings) as client:
        key = make(client, "operator")
        shop = Shop(client, key, "default")
        fill(shop)
        assert corrected(shop)[0]
        shop.done(shop.post("/v1/policies", name="residual_table", config={"enabled": False}, reason="off"))
        labels = {v["slot"]: v["label"] for v in shop.get("/v1/policies")["items"] if v["policy"] == "residual_table"}
        shop.done(shop.post(f"/v1/policies/residual_table@{labels['shadow']}/promote", reason="off"))
        assert corrected(shop) == (False, 0.0)
    with serving(settings) as client:
        shop = Shop(client, key, "default")
        shop.send(("item.upserted", {"item_id": "late", "title": "late"}))
        assert corrected(shop) == (False, 0.0)
        live = [v for v in shop.get("/v1/policies")["items"] if (v["policy"], v["slot"]) == ("residual_table", "live")]
        assert [v["label"] for v in live] == [labels["shadow"]]


def test_feedback_on_an_exposure_of_another_workspace_joins_nothing_there(shops: tuple[Shop, Shop]) -> None:
    one, two = shops
    shown = one.ask("/v1/rank", user_id="eve", item_ids=["folk", "noise"])["exposure_id"]
    until(lambda: one.get("/v1/events", type="exposure.recorded", subject=shown)["items"])
    assert two.client.get(f"/v1/events/{shown}", headers=two.headers).status_code == 404
    before = ranked(one)
    two.send(
        like("eve", "folk", exposure_id=shown),
        ("feedback.given", {"exposure_id": shown, "value": 1, "item_id": "folk"}),
    )
    assert ranked(one) == pytest.approx(before, rel=1e-4)
    assert [shop.letters() for shop in shops] == [[], []]
    one.send(like("eve", "folk", exposure_id=shown))  # still open here: the other's feedback did not answer it
    assert ranked(one)["folk"] > before["folk"]


def ranked(shop: Shop) -> dict[str, float]:
    items = ["folk", "noise", "jazz"]
    found = shop.ask("/v1/rank", user_id="eve", item_ids=items, log_exposure=False)["items"]
    return {one["item_id"]: one["score"] for one in found}


@pytest.mark.parametrize("policy", [None, "diag_linucb"])
def test_propensities_of_all_that_could_have_come_first_sum_to_one(
    shops: tuple[Shop, Shop], policy: str | None
) -> None:
    first: dict[str, float] = {}
    for _ in range(500):
        body = {"user_id": "ann", "n": 4, "explore": 0.6, "policy": policy, "log_exposure": False}
        items = shops[1].ask("/v1/recommend", **body)["items"]
        assert len(items) == len({one["item_id"] for one in items}) > 1
        assert items[-1]["propensity"] == 1.0 or len(items) == 4, "what is left alone is sure to come"
        first[items[0]["item_id"]] = items[0]["propensity"]
        if len(first) == len(items):
            break
    assert sum(first.values()) == pytest.approx(1.0)
    assert max(first.values()) == pytest.approx(0.4 + 0.6 / len(first))


# -- bad input ---------------------------------------------------------------------------------------------------------
SOON = (datetime.now(UTC) + timedelta(minutes=30)).isoformat()
RATED = {"user_id": "u", "item_id": "jazz", "action": "rating"}


@pytest.mark.parametrize(
    ("event", "code", "pointer"),
    [
        ({"type": "interaction.observed", "data": RATED}, "invalid-event", "/data/value"),
        ({"type": "interaction.observed", "data": RATED | {"value": 4.0}, "time": SOON}, "invalid-event", "/time"),
        ({"type": "interaction.observed", "data": RATED | {"value": -3.0}}, "invalid-value", "/data/value"),
        (
            {"type": "interaction.observed", "data": RATED | {"action": "click", "value": -1}},
            "invalid-value",
            "/data/value",
        ),
        ({"type": "feedback.given", "data": {"exposure_id": "x", "value": -1.5}}, "invalid-value", "/data/value"),
        ({"type": "interaction.observed", "data": RATED | {"item_id": ""}}, "invalid-value", "/data/item_id"),
    ],
    ids=["rating without a value", "future", "negative rating", "negative value", "below -1", "no item"],
)
def test_bad_events_are_refused_and_named(shops: tuple[Shop, Shop], event: Any, code: str, pointer: str) -> None:
    refused = shops[0].events(event)
    assert refused.status_code == 422, refused.text
    [result] = refused.json()["results"]
    assert (result["problem"]["code"], result["problem"]["pointer"]) == (code, pointer)


def test_feedback_on_what_nobody_knows_counts_or_not_and_breaks_nothing(shops: tuple[Shop, Shop]) -> None:
    one, _ = shops
    shown = one.ask("/v1/rank", user_id="zoe", item_ids=["folk"])["exposure_id"]
    one.send(
        ("feedback.given", {"exposure_id": shown, "value": 1, "item_id": "was never shown"}),
        ("feedback.given", {"exposure_id": "was never", "value": -1, "item_id": "folk"}),
        like("zoe", "is not in the catalogue", exposure_id="was never"),
        ("interaction.observed", RATED | {"user_id": "zoe", "value": 0.0}),
    )
    assert one.letters() == []
    items = one.ask("/v1/recommend", user_id="zoe", n=100)["items"]
    assert {"jazz", "folk"} <= {item["item_id"] for item in items}


@pytest.mark.parametrize("path", ["/v1/rank", "/v1/recommend"])
def test_what_is_no_number_or_too_much_is_refused(shops: tuple[Shop, Shop], path: str) -> None:
    one, _ = shops
    nan = json.dumps({"user_id": "u", "item_ids": ["jazz"], "context": {"hour": float("nan")}})
    headers = one.headers | {"Content-Type": "application/json"}
    is_problem(one.client.post(path, content=nan, headers=headers), 400, "malformed")
    is_problem(one.post(path, user_id="u", item_ids=[f"i{n}" for n in range(100_000)]), 422, "invalid-value")


def test_an_item_whose_property_is_no_number_is_refused(shops: tuple[Shop, Shop]) -> None:
    one, _ = shops
    nan = json.dumps(
        {"specversion": "1.0", "id": "nan", "source": "/s", "type": "item.upserted",
         "data": {"item_id": "odd", "properties": {"price": float("nan")}}}
    )  # fmt: skip
    headers = one.headers | {"Content-Type": "application/cloudevents+json"}
    is_problem(one.client.post("/v1/events", content=nan, headers=headers), 400, "malformed")
    assert one.client.get("/v1/items/odd", headers=one.headers).status_code == 404


def test_an_erased_user_is_a_stranger_to_every_member_and_the_report_says_how(shops: tuple[Shop, Shop]) -> None:
    two = shops[1]
    items = ["jazz", "rock", "folk"]

    def scores(user: str) -> list[float]:
        found = two.ask("/v1/rank", user_id=user, item_ids=items, log_exposure=False)["items"]
        return [one["score"] for one in sorted(found, key=lambda one: items.index(one["item_id"]))]

    assert scores("u3") != pytest.approx(scores("stranger"), rel=1e-3)
    answer = two.post("/v1/erasures", user_id="u3")
    assert answer.status_code == 202, answer.text
    path = f"/v1/erasures/{answer.json()['erasure_id']}"
    until(lambda: two.get(path)["state"] in ("complete", "failed"))
    report = two.get(path)
    assert report["state"] == "complete", report
    methods = {one["policy"].partition("@")[0]: one["method"] for one in report["policies"]}
    assert {methods[name] for name in ("activity", "count_stack", "factorization", "ensemble", "residual_table")} == {
        "rebuild"
    }
    assert methods["newest"] == "exact"
    assert all(one["residue"] == 0 for one in report["stores"]), report["stores"]
    assert scores("u3") == pytest.approx(scores("stranger"), rel=1e-6)
