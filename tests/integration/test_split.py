"""A live A/B over REST: a share of the users is answered by a candidate, exposures say so, its end is a promotion."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamfold.core.testing.service import EmbeddedService, send_lines
from streamfold.pipelines.cli import main
from tests.waiting import ended_erasure, ended_job, exposure

POLICIES: dict[str, dict[str, Any]] = {
    "trending": {},
    "activity": {},
    "count_stack": {"ids": 4096, "crosses": 8192},
    "quality": {"ranker": "count_stack"},
}
ITEMS = [f"i{n}" for n in range(12)]
USERS = [f"u{n}" for n in range(60)]


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[EmbeddedService]:
    service = EmbeddedService(tmp_path / "shop", policies=POLICIES)
    rng = np.random.default_rng(3)
    events: list[tuple[str, dict[str, Any]]] = [
        ("item.upserted", {"item_id": one, "categories": [("a", "b")[n % 2]]}) for n, one in enumerate(ITEMS)
    ]
    for _ in range(600):
        user, item = int(rng.integers(60)), int(rng.integers(12))
        action = "like" if rng.random() < (0.9 if user % 2 == item % 2 else 0.1) else "dislike"
        data = {"user_id": f"u{user}", "item_id": f"i{item}", "action": action}
        events.append(("interaction.observed", data))
    service.send(events)
    yield service
    service.stop()


def act(shop: EmbeddedService, action: str, status: int = 202, name: str = "count_stack", **body: Any) -> Any:
    answer = shop.client.post(f"/v1/policies/{name}/{action}", json={"reason": "test", **body})
    assert answer.status_code == status, answer.text
    return answer.json()


def shadow(shop: EmbeddedService, **config: Any) -> str:
    """Add a version of the ranker whose weights stay as they are; returns its full version once it has caught up."""
    body = {"name": "count_stack", "config": {"ids": 4096, "crosses": 8192, "rate": 0.0, **config}, "reason": "test"}
    added = shop.client.post("/v1/policies", json=body)
    assert added.status_code == 202, added.text
    assert ended_job(shop.client, added)["state"] == "done"
    return label(shop, group=added.json()["policy"])


def label(shop: EmbeddedService, **fields: str) -> str:
    """The full version of the ranker whose line in the list of policies has these values."""
    wanted = {"policy": "count_stack", **fields}
    lines = shop.get("/v1/policies")["items"]
    return next(str(one["label"]) for one in lines if wanted.items() <= one.items())


def live_label(shop: EmbeddedService) -> str:
    return label(shop, slot="live")


def ask(shop: EmbeddedService, path: str, **body: Any) -> Any:
    answer = shop.client.post(f"/v1/{path}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def rank(shop: EmbeddedService, user: str | None, **more: Any) -> Any:
    who = {} if user is None else {"user_id": user}
    return ask(shop, "rank", item_ids=ITEMS, **who, **{"log_exposure": False, **more})


def arm(answer: Any) -> str | None:
    [one] = answer["version"].get("arms", [None])
    return None if one is None else str(one["arm"])


def logged(shop: EmbeddedService, exposure_id: str) -> Any:
    return exposure(shop.client, exposure_id)["data"]


def test_a_share_of_the_users_gets_the_candidate_until_it_is_promoted(shop: EmbeddedService) -> None:
    assert arm(rank(shop, "u1")) is None
    new, old = shadow(shop), live_label(shop)
    begun = act(shop, "split", share=0.4)
    arms = {user: arm(rank(shop, user)) for user in USERS}
    assert {"live", "candidate"} == set(arms.values())
    assert arms == {user: arm(rank(shop, user)) for user in USERS}
    for user, mine in arms.items():
        by_label = {one: rank(shop, user, policy=f"count_stack@{one}") for one in (old, new)}
        answer = rank(shop, user)
        assert answer["items"] == by_label[new if mine == "candidate" else old]["items"]
        assert by_label[old]["items"] != by_label[new]["items"]
        assert arm(by_label[new]) is None  # who names a version is in no experiment
        assert arm(ask(shop, "recommend", user_id=user, log_exposure=False)) == mine
    nobody = rank(shop, None)
    assert (arm(nobody), nobody["items"]) == (None, rank(shop, None, policy=f"count_stack@{old}")["items"])
    assert arm(ask(shop, "rank", item_ids=ITEMS, session_id="u1")) is None

    mine = next(user for user in USERS if arms[user] == "candidate")
    answer = rank(shop, mine, explain=True, log_exposure=True)
    said = {"experiment": begun["experiment"], "arm": "candidate"}
    assert answer["version"]["arms"] == [said]
    assert answer["items"][0]["explain"]["arms"] == [said]
    [noted] = logged(shop, answer["exposure_id"])["arms"]
    assert begun["group"].startswith(noted["candidate"])  # without the generation
    assert noted == {**said, "share": 0.4, "candidate": noted["candidate"], "live": noted["live"]}
    assert noted["candidate"] not in noted["live"]
    theirs = next(user for user in USERS if arms[user] == "live")
    [noted] = logged(shop, rank(shop, theirs, log_exposure=True)["exposure_id"])["arms"]
    assert (noted["arm"], noted["experiment"]) == ("live", begun["experiment"])

    line = next(one for one in shop.get("/v1/policies")["items"] if one["group"] == begun["group"])
    assert (line["share"], line["experiment"], line["slot"]) == (0.4, begun["experiment"], "shadow")
    assert shop.get("/v1/audit", limit=1)["items"][0]["action"] == "split"

    act(shop, "promote", force=True)
    assert live_label(shop) == new
    assert {arm(rank(shop, user)) for user in USERS} == {None}
    assert rank(shop, theirs)["items"] == rank(shop, theirs, policy=f"count_stack@{new}")["items"]
    act(shop, "rollback")
    assert {arm(rank(shop, user)) for user in USERS} == {None}


def test_a_restart_goes_on_with_the_same_arms_and_zero_ends_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "shop"
    service = EmbeddedService(folder, policies=POLICIES)
    try:
        service.send([("interaction.observed", {"user_id": "u1", "item_id": "i1", "action": "like"})])
        shadow(service)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("STREAMFOLD_URL", service.url)
        assert main(["policies", "split", "count_stack", "--share", "0.3", "--reason", "a test"]) == 0
        assert "answers 0.3 of the users" in capsys.readouterr().out
        before = {user: arm(rank(service, user)) for user in USERS}
    finally:
        service.stop()
    service = EmbeddedService(folder, policies=POLICIES)
    try:
        assert {user: arm(rank(service, user)) for user in USERS} == before
        assert set(before.values()) == {"live", "candidate"}
        act(service, "split", share=0.3)
        assert {user: arm(rank(service, user)) for user in USERS} != before  # another experiment, another salt
        act(service, "split", share=0)
        assert {arm(rank(service, user)) for user in USERS} == {None}
        problem = act(service, "split", 409, share=0)
        assert problem["code"] == "policy-conflict"
        act(service, "split", share=0.5)
        act(service, "retire", version=label(service, slot="shadow"))
        assert {arm(rank(service, user)) for user in USERS} == {None}
    finally:
        service.stop()


@pytest.mark.parametrize("share", [-0.1, 1, 1.5, 0.0001, None, "half"])
def test_a_bad_share_is_refused(shop_for_refusals: EmbeddedService, share: Any) -> None:
    body = {"reason": "test"} if share is None else {"reason": "test", "share": share}
    answer = shop_for_refusals.client.post("/v1/policies/count_stack/split", json=body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["pointer"] == "/share"


@pytest.fixture(scope="module")
def shop_for_refusals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedService]:
    service = EmbeddedService(tmp_path_factory.mktemp("refusals"), policies=POLICIES)
    service.send([("interaction.observed", {"user_id": f"u{n}", "item_id": "i1", "action": "like"}) for n in range(50)])
    shadow(service)
    yield service
    service.stop()


def test_what_lags_or_is_no_shadow_or_stands_still_is_refused(shop_for_refusals: EmbeddedService) -> None:
    shop = shop_for_refusals
    assert act(shop, "split", 409, share=0.5, version=live_label(shop))["code"] == "policy-conflict"
    assert act(shop, "split", 409, name="trending", share=0.5)["code"] == "policy-conflict"  # it has no shadow
    assert act(shop, "split", 404, name="count_stak", share=0.5)["code"] == "not-found"
    slow = {"name": "count_stack", "config": {"ids": 512}, "rate": 1, "reason": "slow"}
    added = shop.client.post("/v1/policies", json=slow).json()
    slow_one = label(shop, group=added["policy"])
    refused = act(shop, "split", 409, share=0.5, version=slow_one)
    assert (refused["code"], refused["lag_events"] > 0) == ("not-ready", True)
    act(shop, "pause", version=slow_one)
    assert act(shop, "split", 409, share=0.5, version=slow_one)["code"] == "policy-conflict"
    act(shop, "retire", version=slow_one)
    first = act(shop, "split", share=0.5)
    other = shadow(shop, ids=1024)
    assert first["group"] in act(shop, "split", 409, share=0.5, version=other)["detail"]


def test_a_user_of_either_arm_reads_what_was_written(shop: EmbeddedService) -> None:
    shadow(shop)
    act(shop, "split", share=0.5)
    arms = {arm(rank(shop, user)): user for user in USERS}
    assert set(arms) == {"live", "candidate"}
    for _ in range(20):
        told = {"user_id": "x", "item_id": "i3", "action": "view"}
        position = shop.send([("interaction.observed", told)])["position"]
        for name, user in arms.items():
            answer = rank(shop, user)
            assert arm(answer) == name
            assert answer["version"]["position"] >= position


def test_quality_tells_what_each_arm_led_to(shop: EmbeddedService) -> None:
    candidate = shadow(shop)
    begun = act(shop, "split", share=0.5)
    liked = {"live": 0, "candidate": 0}
    shown = dict(liked)
    for user in USERS:
        answer = rank(shop, user, log_exposure=True)
        mine = arm(answer)
        assert mine is not None
        shown[mine] += 1
        logged(shop, answer["exposure_id"])
        if mine == "candidate" or int(user[1:]) % 3 == 0:
            data = {"user_id": user, "item_id": "i3", "action": "click", "exposure_id": answer["exposure_id"]}
            shop.send([("interaction.observed", data)])
            liked[mine] += 1
    told = {"user_id": "x", "item_id": "i3", "action": "view"}
    position = shop.send([("interaction.observed", told)])["position"]
    for name in ("count_stack", f"count_stack@{candidate}"):  # each version has seen all
        found = shop.get(f"/v1/policies/{name}/quality", min_position=position, wait_ms=30_000)
        [told] = found["arms"]
        assert (told["experiment"], told["share"]) == (begun["experiment"], 0.5)
        for one, count in shown.items():
            assert (told[one]["users"], told[one]["exposures"], told[one]["liked"]) == (count, count, liked[one])
            assert (told[one]["counted"], told[one]["rate"]) == (0, None)  # no window of a day has closed
        assert (told["difference"], told["verdict"]) == (None, "undecided")


def test_who_is_erased_is_forgotten_by_both_arms_while_they_answer(shop: EmbeddedService) -> None:
    shadow(shop)
    act(shop, "split", share=0.5)
    arms = {user: arm(rank(shop, user)) for user in USERS}
    for name in ("candidate", "live"):
        user = next(one for one in USERS if arms[one] == name)
        exposure_id = rank(shop, user, log_exposure=True)["exposure_id"]
        logged(shop, exposure_id)
        erasure = shop.client.post("/v1/erasures", json={"user_id": user}).raise_for_status().json()["erasure_id"]
        report = ended_erasure(shop.client, erasure)
        assert report["state"] == "complete", report
        assert {one["residue"] for one in report["stores"]} == {0}
        assert shop.get("/v1/events", type="exposure.recorded", subject=exposure_id)["items"] == []
        assert arm(rank(shop, user)) == name  # an id decides, whatever is known of it


def test_a_user_s_texts_are_classified_in_the_user_s_arm(tmp_path: Path) -> None:
    service = EmbeddedService(tmp_path / "mail", policies={"label_statistics": {}})
    try:
        texts = {"spam": ["cheap pills now", "win cheap money"], "ham": ["the meeting is on monday", "the minutes"]}
        rows = [(name, text) for name, said in texts.items() for text in said]
        service.send([("label.observed", {"head": "mail", "target": {"text": t}, "label": n}) for n, t in rows])
        body = {"name": "label_statistics", "config": {"read_out": "prototype"}, "reason": "test"}
        assert ended_job(service.client, service.client.post("/v1/policies", json=body))["state"] == "done"
        act(service, "split", name="label_statistics", share=0.5)

        def classified(**more: Any) -> tuple[Any, str | None]:
            found = ask(service, "classify", head="mail", **{"targets": [{"text": "cheap"}], "explain": True, **more})
            return found, arm(found)

        used = {"candidate": "prototype", "live": "ridge", None: "ridge"}
        arms = {}
        for user in USERS[:20]:
            found, arms[user] = classified(user_id=user)
            assert found["predictions"][0]["explain"]["read_out"] == used[arms[user]]
            data = logged(service, found["exposure_id"])
            assert (data["user_id"], data["arms"][0]["arm"]) == (user, arms[user])
        assert set(arms.values()) == {"live", "candidate"}
        found, nobody = classified()
        assert (nobody, found["predictions"][0]["explain"]["read_out"]) == (None, "ridge")
        targets = [{"text": "cheap"}, {"text": "monday"}]
        assert {user: classified(user_id=user, targets=targets)[1] for user in arms} == arms
        refused = service.client.post("/v1/classify", json={"head": "mail", "targets": targets, "user_id": ""})
        assert refused.status_code == 422
        assert refused.json()["errors"][0]["pointer"] == "/user_id"
    finally:
        service.stop()


def test_a_split_head_tells_how_often_each_arm_was_right(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = EmbeddedService(tmp_path / "mail", policies={"head_arms": {}, "label_statistics": {"arms": "head_arms"}})

    def post_at(moment: str, type_: str, data: dict[str, Any]) -> None:
        event = {"specversion": "1.0", "id": f"{type_}{data['exposure_id']}", "source": "/x", "type": type_}
        assert send_lines(service.client, [json.dumps({**event, "time": moment, "data": data})])["accepted"] == 1

    try:
        rows = [("spam", "cheap pills now"), ("spam", "win cheap money"), ("ham", "the meeting"), ("ham", "minutes")]
        service.send([("label.observed", {"head": "mail", "target": {"text": t}, "label": n}) for n, t in rows])
        config = {"read_out": "prototype", "arms": "head_arms"}
        body = {"name": "label_statistics", "config": config, "reason": "test"}
        assert ended_job(service.client, service.client.post("/v1/policies", json=body))["state"] == "done"
        begun = act(service, "split", name="label_statistics", share=0.5)
        answered = dict.fromkeys(("live", "candidate"), 0)
        for user in USERS[:20]:
            found = ask(service, "classify", head="mail", targets=[{"text": "cheap"}], user_id=user)
            mine, said = arm(found), found["predictions"][0]["labels"][0]["label"]
            assert mine is not None
            answered[mine] += 1
            logged(service, found["exposure_id"])
            truth = said if mine == "candidate" else {"spam": "ham", "ham": "spam"}[said]
            told = {"head": "mail", "target": {"text": f"cheap {user}"}, "label": truth}
            service.send([("label.observed", {**told, "exposure_id": found["exposure_id"]})])
        assert min(answered.values()) > 0
        shadow_label = label(service, policy="label_statistics", slot="shadow")
        for name in ("label_statistics", f"label_statistics@{shadow_label}"):
            [told] = service.get(f"/v1/policies/{name}/quality")["arms"]
            assert (told["experiment"], told["measure"], told["verdict"]) == (begun["experiment"], "right", "undecided")
            for one, count in answered.items():
                said = told[one]["users"], told[one]["exposures"], told[one]["labelled"], told[one]["liked"]
                assert said == (count, count, count, count if one == "candidate" else 0)
                assert (told[one]["counted"], told[one]["rate"], told[one]["logloss"]) == (0, None, None)
        [noted] = logged(service, found["exposure_id"])["arms"]
        for n in range(12):  # sent by somebody else, of days ago: these users' windows have closed
            data = {"exposure_id": f"old{n}", "kind": "classify", "user_id": f"old{n}", "context": {"head": "mail"}}
            items = [{"label": "spam", "rank": 1, "score": 0.9}, {"label": "ham", "rank": 2, "score": 0.1}]
            arms = [{**noted, "arm": ("live", "candidate")[n % 2]}]
            right = {"head": "mail", "target": {"text": f"old {n}"}, "label": "spam" if n % 4 else "ham"}
            post_at("2025-01-01T00:00:00Z", "exposure.recorded", data | {"items": items, "arms": arms})
            post_at("2025-01-01T00:01:00Z", "label.observed", right | {"exposure_id": f"old{n}"})
        told = service.get("/v1/policies/label_statistics/quality")["arms"][0]
        assert (told["live"]["counted"], told["live"]["rate"]) == (6, 0.5)
        assert (told["candidate"]["counted"], told["candidate"]["rate"]) == (6, 1.0)
        assert told["live"]["logloss"]["mean"] == pytest.approx(-(math.log(0.9) + math.log(0.1)) / 2)
        assert told["difference"] == 0.5
        assert told["logloss"]["lower"] < told["logloss"]["mean"] < 0
        monkeypatch.setenv("STREAMFOLD_URL", service.url)
        assert main(["policies", "quality", "label_statistics"]) == 0
        assert "candidate" in capsys.readouterr().out
    finally:
        service.stop()
