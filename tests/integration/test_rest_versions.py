"""Versions over REST: add a shadow, ask it, promote and roll back under load, rebuild, skip, audit."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest

from streamfold.core import (
    Backend,
    Candidates,
    Event,
    GateRule,
    NeedsRebuild,
    Policy,
    Stores,
    Table,
    View,
    hookimpl,
)
from streamfold.core.settings import Settings
from streamfold.pipelines.node import Node
from streamfold.plugins import builtin
from tests.waiting import ended_erasure, until

sys.path.insert(0, str(Path(__file__).parent))
from test_rest import BACKENDS, JSON, is_problem, serving, view_event, wait_job

sys.path.pop(0)


class First(Policy):
    """Counts views of items; breaks on items of ``broken``."""

    name, version, handles = "first", 1, ("interaction.observed",)
    stores = (Table("count", value=float),)
    broken: ClassVar[set[str]] = set()
    weight = 1.0

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        item = event.data.item_id
        if item in First.broken:
            raise RuntimeError(f"a bug at {item}")
        stores["count"].put(item, stores["count"].get(item, 0.0) + self.weight)

    def serve(self, view: View) -> Candidates:
        return Candidates(lambda request: view["count"].top(request.n))


class Second(First):
    """The same in thousandths: each answer tells who gave it."""

    name, version, weight = "second", 2, 0.001


class WithTestPolicies:
    """The built-in plugins and the two policies of this test."""

    @hookimpl
    def register_policies(self) -> list[type[Policy]]:
        return [*builtin.register_policies(), First, Second]

    @hookimpl
    def register_backends(self) -> list[Backend]:
        return builtin.register_backends()


@pytest.fixture(autouse=True)
def plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    First.broken.clear()
    monkeypatch.setattr("streamfold.pipelines.node.builtin", WithTestPolicies())


@contextmanager
def shop(folder: Path, **more: Any) -> Iterator[tuple[httpx.Client, Node]]:
    """A service whose policy ``shop`` is the first version."""
    settings = Settings(backends=BACKENDS, data=folder, policies={"shop": {"use": "first"}}, **more)
    node = Node(settings)
    with serving(settings, node) as client:
        yield client, node


def send(client: httpx.Client, first: int, count: int, *, wait: bool = True) -> None:
    events = [
        view_event(f"e{i}", data={"user_id": "u", "item_id": f"i{i % 3}", "action": "view"})
        for i in range(first, first + count)
    ]
    response = client.post(f"/v1/events?wait={'visible' if wait else 'accepted'}", json=events)
    assert response.status_code == (200 if wait else 202), response.text


def add(client: httpx.Client, **more: Any) -> dict[str, Any]:
    response = client.post("/v1/policies", json={"name": "shop", "use": "second", "reason": "test"} | more)
    assert response.status_code == 202, response.text
    body: dict[str, Any] = response.json()
    return body


def act(client: httpx.Client, action: str, name: str = "shop", **more: Any) -> httpx.Response:
    return client.post(f"/v1/policies/{name}/{action}", json={"reason": "test"} | more)


def lines(client: httpx.Client) -> dict[str, dict[str, Any]]:
    return {line["group"]: line for line in client.get("/v1/status").json()["policies"]}


def top(client: httpx.Client, **params: Any) -> dict[str, Any]:
    response = client.get("/v1/trending", params={"wait_ms": 30_000} | params)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


def scores(body: dict[str, Any]) -> dict[str, float]:
    return {item["item_id"]: round(item["score"], 6) for item in body["items"]}


class ErasedMeanwhile:
    """A plugin in whose rule of the gate somebody is erased, whom nobody has forgotten before the answer."""

    def __init__(self) -> None:
        self.erase: Callable[[], object] = lambda: None

    @hookimpl
    def promotion_gate(self) -> list[GateRule]:
        self.erase()
        return []


def test_an_erasure_that_begins_while_a_promotion_is_asked_for_refuses_it_by_its_criterion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, forgets = ErasedMeanwhile(), threading.Event()

    def forget(*_: Any) -> None:
        assert forgets.wait(60)
        raise NeedsRebuild("it cannot")

    monkeypatch.setattr(First, "forget", forget)
    settings = Settings(backends=BACKENDS, data=tmp_path, policies={"shop": {"use": "first"}})
    with serving(settings, Node(settings, plugins=[asked])) as client:
        send(client, 0, 9)
        added = add(client)
        wait_job(client, added["job_id"])
        erasing = {"specversion": "1.0", "id": "gone", "source": "/t", "type": "user.erased", "data": {"user_id": "u"}}
        asked.erase = lambda: client.post("/v1/events", json=erasing).raise_for_status()
        try:
            body = is_problem(act(client, "promote", force=True), 409, "policy-conflict")
            assert [rule["rule"] for rule in body["gate"]] == ["not_erased_from"]
            assert lines(client)[added["policy"]]["slot"] == "shadow"
        finally:
            forgets.set()


def test_a_shadow_is_estimated_folded_asked_promoted_and_rolled_back(tmp_path: Path) -> None:
    with shop(tmp_path) as (client, _):
        send(client, 0, 30)
        added = add(client, rate=5000)
        assert added["estimate"]["events"] == 30
        assert added["estimate"]["seconds"] >= 30 / 5000
        job = wait_job(client, added["job_id"])
        assert (job["kind"], job["state"]) == ("backfill", "done"), job
        assert scores(top(client)) == {"i0": 10.0, "i1": 10.0, "i2": 10.0}
        shadow = top(client, policy="shop@2")
        assert (scores(shadow)["i0"], shadow["version"]["policies"]) == (0.01, {"shop": "2"})
        line = lines(client)[added["policy"]]
        assert (line["slot"], line["version"], line["rate"]) == ("shadow", "2", 5000)
        assert added["policy"] == f"shop@{line['label']}"

        promoted = act(client, "promote")
        assert promoted.status_code == 202, promoted.text
        assert (promoted.json()["group"], promoted.json()["position"]) == (added["policy"], 30)
        assert client.get(f"/v1/jobs/{promoted.json()['job_id']}").json()["state"] == "done"
        answer = top(client, min_position=30)
        assert (answer["version"]["policies"], scores(answer)["i0"]) == ({"shop": "2"}, 0.01)
        send(client, 30, 3)
        [old] = promoted.json()["demoted"]
        assert (lines(client)[old]["slot"], bool(lines(client)[old]["retires_at"])) == ("shadow", True)

        back = act(client, "rollback")
        assert (back.status_code, back.json()["group"]) == (202, old)
        answer = top(client, min_position=33)
        assert (answer["version"]["policies"], scores(answer)["i0"]) == ({"shop": "1"}, 11.0)

        audit = client.get("/v1/audit?limit=2").json()
        assert [(i["actor"], i["action"], i["reason"]) for i in audit["items"]] == [
            ("local", "rollback", "test"), ("local", "promote", "test")
        ]  # fmt: skip
        rest = client.get("/v1/audit", params={"cursor": audit["next_cursor"]}).json()
        assert [i["action"] for i in rest["items"]] == ["add"]
        assert rest["next_cursor"] is None


def test_a_backfill_is_seen_goes_at_its_rate_and_is_resumed_after_a_restart(tmp_path: Path) -> None:
    with shop(tmp_path) as (client, node):
        send(client, 0, 300)
        added = add(client, rate=1)
        send(client, 300, 3)  # visible at once: the live fold does not wait for the backfill
        line = lines(client)[added["policy"]]
        assert (line["state"], line["lag_events"] > 0) == ("backfilling", True)
        body = is_problem(act(client, "promote"), 409, "not-ready")
        assert body["lag_events"] > 0
        is_problem(act(client, "promote", force=True), 409, "not-ready")
        until(lambda: node.ledger.group("default", added["policy"]).watermark)
    with shop(tmp_path) as (client, node):
        state = node.ledger.group("default", added["policy"])
        assert 0 < state.watermark < 303
        assert lines(client)[added["policy"]]["rate"] == 1
        # lift the limit, as nobody wants to wait: a new generation without one goes to the end
        act(client, "retire", version="2")
        again = add(client)
        assert wait_job(client, again["job_id"])["state"] == "done"
        assert scores(top(client, policy="shop@2"))["i0"] == 0.101
        assert act(client, "promote").status_code == 202


def test_a_backfill_that_is_done_is_seen_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamfold.core.views.view._BACKFILL_BYTES", 1)  # a look takes one commit of a shadow
    with shop(tmp_path, fold={"batch_events": 5, "view_poll_ms": 50}) as (client, node):
        send(client, 0, 150)
        added = add(client)
        assert wait_job(client, added["job_id"])["state"] == "done"
        assert node.ledger.watermarks("default")[added["policy"]][1] > 20, "there were many commits to look at"
        shadow = top(client, policy="shop@2")
        assert (scores(shadow)["i0"], shadow["version"]["position"]) == (0.05, 150)


def test_promotions_under_load_fail_no_request_and_mix_no_versions(tmp_path: Path) -> None:
    with shop(tmp_path) as (client, _):
        send(client, 0, 30)
        wait_job(client, add(client)["job_id"])
        stop = threading.Event()
        asked = [0] * 3
        wrong: list[Any] = []

        def ask(number: int) -> None:
            last = 0
            with httpx.Client(base_url=client.base_url, timeout=60) as mine:
                while not stop.is_set():
                    response = mine.get("/v1/trending")
                    asked[number] += 1
                    if response.status_code != 200:
                        wrong.append(response.text)
                        continue
                    body = response.json()
                    weights = {"1" if item["score"] >= 1 else "2" for item in body["items"]}
                    if weights != set(body["version"]["policies"].values()) or body["version"]["position"] < last:
                        wrong.append(body | {"last": last})
                    last = body["version"]["position"]

        def write() -> None:
            at = 1000
            with httpx.Client(base_url=client.base_url, timeout=60) as mine:
                while not stop.is_set():
                    send(mine, at, 5, wait=False)
                    at += 5

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(3)] + [threading.Thread(target=write)]
        for thread in threads:
            thread.start()
        try:
            done = [act(client, "promote"), *(act(client, "rollback") for _ in range(9))]
            until(lambda: min(asked) > 10)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert [response.status_code for response in done] == [202] * 10, [response.text for response in done]
        positions = [response.json()["position"] for response in done]
        assert positions == sorted(positions)
        assert not wrong, wrong[:3]


def test_a_rebuild_takes_its_place_when_it_has_caught_up(tmp_path: Path) -> None:
    with shop(tmp_path) as (client, _):
        send(client, 0, 30)
        before = next(iter(lines(client)))
        started = act(client, "rebuild")
        job = wait_job(client, started.json()["job_id"])
        assert (job["kind"], job["state"], job["result"]["slot"]) == ("rebuild", "done", "live"), job
        assert lines(client).keys() == {f"{before}.1"}
        assert scores(top(client, min_position=30))["i0"] == 10.0
        assert wait_job(client, act(client, "verify").json()["job_id"])["result"]["equal"] is True
        assert [i["action"] for i in client.get("/v1/audit").json()["items"]] == ["verify", "replace", "rebuild"]


def test_a_halt_tells_policy_event_and_what_to_do_and_one_event_is_skipped(tmp_path: Path) -> None:
    First.broken.add("bad")
    with shop(tmp_path) as (client, _):
        client.post("/v1/events", json=view_event("poison", data={"user_id": "u", "item_id": "bad", "action": "view"}))
        send(client, 0, 3, wait=False)
        until(lambda: next(iter(lines(client).values()))["last_error"])
        line = next(iter(lines(client).values()))
        assert line["state"] == "failed"
        assert {k: line["halt"][k] for k in ("policy", "position", "event_id", "source", "type")} == {
            "policy": "shop@1", "position": 1, "event_id": "poison", "source": "test", "type": "interaction.observed"
        }  # fmt: skip
        assert "skip" in line["halt"]["next"]
        assert "Traceback" in line["last_error"]
        until(lambda: client.get("/v1/health").status_code != 200)  # the view looks at states once a second
        [fold] = [check for check in client.get("/v1/health").json()["checks"] if check["name"] == "fold"]
        for words in ("shop@1 raised at position 1", "poison", "a bug at bad", "streamfold policies skip shop poison"):
            assert words in fold["detail"]
        trace = client.get("/v1/events/poison").json()
        assert [s["step"] for s in trace["steps"]] == ["happened", "logged", "pending", "halted"]
        assert trace["policies"][0]["error"]["code"] == "halted"

        is_problem(act(client, "skip"), 422, "invalid-value")
        is_problem(act(client, "skip", event_id="nobody"), 404, "not-found")
        is_problem(act(client, "skip", event_id="e1"), 409, "policy-conflict")
        skipped = act(client, "skip", event_id="poison")
        assert (skipped.status_code, skipped.json()["position"]) == (202, 1)
        is_problem(act(client, "skip", event_id="poison"), 409, "policy-conflict")
        answer = top(client, min_position=4)  # "visible" leaves halted groups out for up to a second
        assert scores(answer) == {"i0": 1.0, "i1": 1.0, "i2": 1.0}
        [letter] = client.get("/v1/dead-letters").json()["items"]
        assert (letter["policy"], letter["position"], letter["code"]) == ("shop@1", 1, "skipped-by-hand")
        trace = client.get("/v1/events/poison").json()
        assert (trace["policies"][0]["state"], trace["policies"][0]["error"]["code"]) == ("skipped", "skipped-by-hand")
        steps = client.get("/v1/events/e1").json()["steps"]
        assert [s["step"] for s in steps] == ["happened", "logged", "folded", "visible"]
        assert all(s["at"] for s in steps[:3])
        assert wait_job(client, act(client, "verify").json()["job_id"])["result"]["equal"] is True


def test_a_policy_that_is_not_declared_may_be_added_promoted_and_retired(tmp_path: Path) -> None:
    with shop(tmp_path) as (client, _):
        send(client, 0, 3)
        added = add(client, name="fresh", use="second", **{"from": "now"})
        is_problem(client.get("/v1/trending?policy=fresh"), 422, "invalid-value")
        send(client, 3, 3)
        wait_job(client, added["job_id"])
        assert act(client, "promote", "fresh").status_code == 202
        send(client, 6, 1)
        assert scores(top(client, policy="fresh", min_position=7))["i0"] == 0.002
    with shop(tmp_path) as (client, _):
        assert scores(top(client, policy="fresh"))["i0"] == 0.002
        is_problem(act(client, "retire", "fresh"), 409, "policy-conflict")  # there is no shadow to retire
        assert act(client, "retire", "fresh", version=2).status_code == 202
        assert "fresh" not in {line["policy"] for line in lines(client).values()}
        assert add(client, name="fresh", use="first", slot="live")["policy"].startswith("fresh@1")


BAD: list[tuple[dict[str, Any], int, str, str]] = [
    ({}, 422, "invalid-value", "name"),
    ({"name": "x"}, 422, "invalid-value", "reason"),
    ({"name": "x", "reason": " "}, 422, "invalid-value", "reason"),
    ({"name": "../x", "reason": "r"}, 422, "invalid-value", "letters"),
    ({"name": "a" * 65, "reason": "r"}, 422, "invalid-value", "letters"),
    ({"name": "trendign", "reason": "r"}, 422, "invalid-value", "trending"),
    ({"name": "x", "use": "trendign", "reason": "r"}, 422, "invalid-value", "trending"),
    ({"name": "x", "use": "a\0", "reason": "r"}, 422, "invalid-value", "NUL"),
    ({"name": "x", "use": "\ud800", "reason": "r"}, 400, "malformed", "surrogate"),
    ({"name": "trending", "config": {"max_item": 1}, "reason": "r"}, 422, "invalid-value", "max_items"),
    ({"name": "trending", "config": {"max_items": "x"}, "reason": "r"}, 422, "invalid-value", "max_items"),
    ({"name": "trending", "config": {"half_lives_s": [-1]}, "reason": "r"}, 422, "invalid-value", "half_lives_s"),
    ({"name": "trending", "config": [], "reason": "r"}, 422, "invalid-value", "config"),
    ({"name": "trending", "slot": "retired", "reason": "r"}, 422, "invalid-value", "slot"),
    ({"name": "trending", "from": "yesterday", "reason": "r"}, 422, "invalid-value", "from"),
    ({"name": "trending", "rate": 0, "reason": "r"}, 422, "invalid-value", "rate"),
    ({"name": "trending", "raet": 5, "reason": "r"}, 422, "unknown-field", "rate"),
    ({"name": "shop", "use": "first", "reason": "r"}, 409, "policy-conflict", "runs already"),
    ({"name": "shop", "use": "second", "slot": "live", "reason": "r"}, 409, "policy-conflict", "live already"),
]


def test_bad_requests_are_refused_and_change_nothing(tmp_path: Path) -> None:
    with shop(tmp_path) as (client, node):
        send(client, 0, 3)
        for body, status, code, hint in BAD:
            assert (
                hint
                in is_problem(client.post("/v1/policies", content=json.dumps(body), headers=JSON), status, code)[
                    "detail"
                ]
            ), body
        for action in ("promote", "rollback", "retire", "rebuild", "skip", "pause", "resume"):
            is_problem(client.post(f"/v1/policies/shop/{action}", json={}), 422, "invalid-value")
            is_problem(act(client, action, "nobody"), 404, "not-found")
            is_problem(act(client, action, version="9", event_id="e1"), *(
                (409, "policy-conflict") if action == "rollback" else (404, "not-found")))  # fmt: skip
            is_problem(act(client, action, version="\0"), 422, "invalid-value")
            is_problem(act(client, action, vresion="1"), 422, "unknown-field")
        is_problem(act(client, "promote"), 409, "policy-conflict")
        is_problem(act(client, "rollback"), 409, "policy-conflict")
        is_problem(act(client, "promote", version="1"), 409, "policy-conflict")  # live already
        for cursor in ("!!", "IjEi", "MTAwMDAwMDAwMDAwMDAwMDAwMDAwMDAw"):
            is_problem(client.get("/v1/audit", params={"cursor": cursor}), 400, "bad-cursor")
        is_problem(client.get("/v1/audit?limit=0"), 422, "invalid-value")
        assert client.get("/v1/audit").json()["items"] == []
        assert len(node.ledger.instances("default")) == 1


def test_what_a_version_still_holds_of_an_erased_user_keeps_it_from_serving(tmp_path: Path) -> None:
    with shop(tmp_path) as (client, _):
        send(client, 0, 30)
        gone = view_event("gone", data={"user_id": "gone", "item_id": "i9", "action": "view"})
        assert client.post("/v1/events?wait=visible", json=gone).status_code == 200
        added = add(client)
        assert wait_job(client, added["job_id"])["state"] == "done"
        [old] = act(client, "promote").json()["demoted"]
        version = old.partition("@")[2]
        assert "i9" in scores(top(client, policy=old))
        paused = act(client, "pause", version=version)
        assert wait_job(client, paused.json()["job_id"])["state"] == "done"
        erasure = client.post("/v1/erasures", json={"user_id": "gone"}).json()["erasure_id"]
        assert f"erasure {erasure} removes" in is_problem(act(client, "rollback"), 409, "policy-conflict")["detail"]
        act(client, "resume", version=version)
        report = ended_erasure(client, erasure)
        assert report["state"] == "complete", report
        lines_of = {(line["policy"], line["slot"]): (line["method"], line["state"]) for line in report["policies"]}
        assert lines_of["shop@1", "shadow"] == lines_of["shop@2", "live"] == ("rebuild", "done")
        assert "i9" not in scores(top(client))
        assert act(client, "rollback").status_code == 202
        assert scores(top(client)) == {"i0": 10.0, "i1": 10.0, "i2": 10.0}
        send(client, 30, 3)
        assert scores(top(client))["i0"] == 11.0


def test_a_halted_candidate_of_a_split_makes_health_red_until_the_split_is_ended(tmp_path: Path) -> None:
    with shop(tmp_path) as (client, node):
        send(client, 0, 3)
        added = add(client)
        assert wait_job(client, added["job_id"])["state"] == "done"
        group = added["policy"]
        assert lines(client)[group]["answering"] is None
        assert act(client, "split", share=0.5).status_code == 202
        assert {one["group"]: one["answering"] for one in lines(client).values()} == {
            group: True, next(one for one in lines(client) if one != group): None
        }  # fmt: skip
        assert client.get("/v1/health").status_code == 200
        node.ledger.set_halted("default", group, "a bug in the candidate")
        until(lambda: client.get("/v1/health").status_code != 200)  # the view looks at states once a second
        health = client.get("/v1/health")
        assert [one["name"] for one in health.json()["checks"] if not one["ok"]] == ["fold"]
        assert f"{group}: a bug in the candidate" in health.text
        assert act(client, "split", share=0).status_code == 202
        until(lambda: client.get("/v1/health").status_code == 200)
