"""Recommend, rank, similar: from what was folded a moment ago, logged as exposures, and joined with feedback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamfold.core.testing.service import EmbeddedService
from streamfold.pipelines.cli import main
from tests.waiting import exposure

POLICIES: dict[str, dict[str, Any]] = {
    "trending": {},
    "activity": {"window_s": 1.0, "late_s": 3600.0},
    "cooccurrence": {},
    "graph_walk": {},
    "item_vectors": {},
    "newest": {},
}


def like(user: str, item: str, action: str = "click", **more: Any) -> tuple[str, dict[str, Any]]:
    return "interaction.observed", {"user_id": user, "item_id": item, "action": action, **more}


def item(item_id: str, *categories: str, **more: Any) -> tuple[str, dict[str, Any]]:
    return "item.upserted", {"item_id": item_id, "title": f"The {item_id}", "categories": list(categories), **more}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedService]:
    service = EmbeddedService(tmp_path_factory.mktemp("shop"), policies=POLICIES)
    service.send(
        [
            item("lamp", "light", properties={"price": 20}),
            item("candle", "light", properties={"price": 5}),
            item("desk", "office", properties={"price": 200}),
            item("chair", "office", text="An office chair that turns.", properties={"price": 90}),
            item("old", "office", available=False),
            item("past", "office", expires_at="2020-01-01T00:00:00Z"),
            *[like(f"v{n}", "desk") for n in range(5)],
            *[like(f"v{n}", "chair") for n in range(5)],
            *[like("v0", one) for one in ("old", "past")],
            like("ann", "desk", "purchase"),
        ]
    )
    yield service
    service.stop()


def ask(shop: EmbeddedService, path: str, status: int = 200, **body: Any) -> Any:
    answer = shop.client.post(f"/v1/{path}", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def listed(answer: Any) -> list[str]:
    return [one["item_id"] for one in answer["items"]]


def test_a_user_gets_what_goes_with_their_history(shop: EmbeddedService) -> None:
    answer = ask(shop, "recommend", user_id="ann", n=3, explain=True)
    assert listed(answer)[0] == "chair"  # bought with the desk by five others
    assert {"cooccurrence", "graph_walk"} <= set(answer["items"][0]["sources"])
    assert answer["fallback"] is None
    assert {one["rank"] for one in answer["items"]} == {1, 2, 3}
    assert set(answer["items"][0]["explain"]) == {"base_score", "correction", "features"}
    assert answer["version"]["policies"]["activity"] == "1"


def test_what_may_not_be_shown_never_is(shop: EmbeddedService) -> None:
    everything = listed(ask(shop, "recommend", user_id="ann", n=100))
    assert {"old", "past"}.isdisjoint(everything)
    assert {"desk", "chair", "lamp", "candle"} <= set(everything)
    assert "desk" not in listed(ask(shop, "recommend", user_id="ann", n=100, exclude_seen=["purchase"]))
    assert "desk" in listed(ask(shop, "recommend", user_id="ann", n=100, exclude_seen=["click"]))
    typo = shop.client.post("/v1/recommend", json={"user_id": "ann", "exclude_seen": ["click", "purchased"]})
    assert typo.status_code == 422, "it would leave nothing out"
    [error] = typo.json()["errors"]
    assert (error["pointer"], "did you mean 'purchase'" in error["message"]) == ("/exclude_seen/1", True)
    assert "chair" not in listed(ask(shop, "recommend", user_id="ann", n=100, exclude_item_ids=["chair"]))
    cheap = {"field": "properties.price", "op": "lt", "value": 50}
    assert set(listed(ask(shop, "recommend", user_id="ann", n=100, filter=cheap))) == {"lamp", "candle"}


def test_nobody_known_gets_what_is_popular_and_items_get_what_goes_with_them(shop: EmbeddedService) -> None:
    cold = ask(shop, "recommend", user_id="nobody", n=2)
    assert cold["fallback"] == "popular"
    assert set(listed(cold)) <= {"desk", "chair", "lamp", "candle"}
    warm = ask(shop, "recommend", item_ids=["desk"], n=2)
    assert warm["fallback"] == "content"
    assert listed(warm)[0] == "chair"
    assert "desk" not in listed(warm)


def test_similar_items_and_the_catalogue(shop: EmbeddedService) -> None:
    found = shop.get("/v1/similar/desk", n=3)
    assert listed(found)[0] == "chair"
    assert shop.client.get("/v1/similar/nothing").status_code == 404
    chair = shop.get("/v1/items/chair")
    assert (chair["title"], chair["text"], chair["categories"]) == (
        "The chair",
        "An office chair that turns.",
        ["office"],
    )
    assert [one["item_id"] for one in shop.get("/v1/items", limit=2)["items"]] == ["candle", "chair"]
    shop.send([("user.upserted", {"user_id": "ann", "properties": {"country": "NO"}})])
    assert shop.get("/v1/users/ann")["properties"] == {"country": "NO"}
    shop.send([("user.patched", {"user_id": "ann", "properties": {"country": None, "age": 3}})])
    assert shop.get("/v1/users/ann")["properties"] == {"age": 3}
    assert shop.client.get("/v1/users/bob").status_code == 404


def test_a_deleted_item_is_gone_at_once_and_stays_gone(shop: EmbeddedService) -> None:
    shop.send([item("fad", "light"), *[like(f"f{n}", "fad") for n in range(9)]])
    assert "fad" in listed(ask(shop, "recommend", user_id="ann", n=100))
    shop.send([("item.deleted", {"item_id": "fad"})])
    assert "fad" not in listed(ask(shop, "recommend", user_id="ann", n=100))
    shop.send([like("late", "fad")])  # from a page that was still open
    assert "fad" not in listed(ask(shop, "recommend", user_id="ann", n=100))
    assert shop.client.get("/v1/items/fad").status_code == 404


def test_exploration_says_with_what_probability(shop: EmbeddedService) -> None:
    answer = ask(shop, "recommend", user_id="ann", n=3, explore=0.5)
    m = len(listed(ask(shop, "recommend", user_id="ann", n=100)))
    for place, one in enumerate(answer["items"]):
        chance = 0.5 / (m - place)
        assert one["propensity"] in (pytest.approx(chance), pytest.approx(0.5 + chance))
    assert ask(shop, "recommend", user_id="ann")["items"][0]["propensity"] is None


def test_diversity_brings_another_category_forward(shop: EmbeddedService) -> None:
    mixed = listed(ask(shop, "recommend", user_id="ann", n=2, diversity=0.9))
    assert {"light", "office"} == {shop.get(f"/v1/items/{one}")["categories"][0] for one in mixed}


def exposures(shop: EmbeddedService, exposure_id: str) -> list[Any]:
    exposure(shop.client, exposure_id)
    return list(shop.get("/v1/events", type="exposure.recorded", subject=exposure_id)["items"])


def test_an_answer_is_an_exposure_in_the_log(shop: EmbeddedService) -> None:
    answer = ask(shop, "recommend", user_id="ann", n=2, context={"page": "home"})
    [row] = exposures(shop, answer["exposure_id"])
    data = row["event"]["data"]
    assert data["user_id"] == "ann"
    assert data["context"] == {"page": "home"}
    assert [(one["item_id"], one["rank"], one["score"]) for one in data["items"]] == [
        (one["item_id"], one["rank"], one["score"]) for one in answer["items"]
    ]
    assert data["policies"]["cooccurrence"] == "1"
    silent = ask(shop, "recommend", user_id="ann", n=2, log_exposure=False)
    assert silent["exposure_id"] is None


@pytest.mark.parametrize(
    ("path", "body", "pointer"),
    [
        ("recommend", {}, "/user_id"),
        ("recommend", {"user_id": ""}, "/user_id"),
        ("recommend", {"user_id": "x" * 300}, "/user_id"),
        ("recommend", {"user_id": "a", "n": 0}, "/n"),
        ("recommend", {"user_id": "a", "explore": 2}, "/explore"),
        ("recommend", {"user_id": "a", "diversty": 1}, "/diversty"),
        ("recommend", {"user_id": "a", "policy": "trendin"}, "/policy"),
        ("recommend", {"user_id": "a", "filter": {"field": "colour", "op": "eq", "value": 1}}, "/filter/field"),
        ("rank", {"user_id": "a", "item_ids": []}, "/item_ids"),
        ("rank", {"user_id": "a", "item_ids": ["i"] * 100_000}, "/item_ids"),
    ],
)
def test_bad_input_is_named(shop: EmbeddedService, path: str, body: dict[str, Any], pointer: str) -> None:
    problem = ask(shop, path, 422, **body)
    assert problem["errors"][0]["pointer"] == pointer


def test_without_a_ranker_rank_says_what_to_do(shop: EmbeddedService) -> None:
    assert "ranker" in ask(shop, "rank", 404, user_id="a", item_ids=["desk"])["detail"]
    assert "ranks none" in ask(shop, "rank", 422, user_id="a", item_ids=["desk"], policy="trending")["detail"]


def test_the_commands(
    shop: EmbeddedService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STREAMFOLD_URL", shop.url)
    assert main(["recommend", "ann", "-n", "2", "--explain"]) == 0
    said = capsys.readouterr()
    assert "chair" in said.out
    assert "exposure" in said.err
    assert main(["recommend", "ann", "--policy", "trending@1", "--explain", "--no-log"]) == 0
    assert "trending" in capsys.readouterr().out
    assert main(["similar", "desk"]) == 0
    assert "chair" in capsys.readouterr().out
    assert main(["recommend"]) == 1
    assert "user_id" in capsys.readouterr().err


def test_whoever_deletes_here_sees_it_no_more(shop: EmbeddedService) -> None:
    shop.send([one for n in range(20) for one in (item(f"brief{n}", "light"), like("bea", f"brief{n}"))])
    for n in range(20):
        assert shop.client.delete(f"/v1/items/brief{n}").status_code == 202  # logged: nobody waits for a fold
        everything = ask(shop, "recommend", user_id="cas", n=100, log_exposure=False)
        assert f"brief{n}" not in listed(everything)
