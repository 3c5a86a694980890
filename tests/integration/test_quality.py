"""A ranker's stack is measured live, shadowed, judged, promoted and rolled back as one."""

from __future__ import annotations

import json
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamfold.core.testing.service import EmbeddedService, send_lines
from streamfold.pipelines.cli import main
from tests.waiting import ended_job, exposure

POLICIES: dict[str, dict[str, Any]] = {
    "trending": {},
    "activity": {"window_s": 4.0},
    "count_stack": {"ids": 4096, "crosses": 8192},
    "quality": {"ranker": "count_stack", "rank_budget": 10.0},
}
DAY_S = 86_400


def interactions(n: int, seed: int) -> list[dict[str, Any]]:
    """Users who like one of two genres, on different days."""
    rng = np.random.default_rng(seed)
    start = time.time() - 30 * DAY_S
    events = []
    for i in range(n):
        user, item = int(rng.integers(300)), int(rng.integers(40))
        liked = rng.random() < (0.9 if user % 2 == item % 2 else 0.1)
        data = {"user_id": f"u{user}", "item_id": f"i{item}", "action": "like" if liked else "dislike"}
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(start + 2 * DAY_S * i / n))
        events.append(
            {"specversion": "1.0", "id": f"{seed}-{i}", "source": "/t", "type": "interaction.observed", "time": at,
             "data": data}
        )  # fmt: skip
    return events


def post(service: EmbeddedService, events: list[dict[str, Any]]) -> None:
    assert send_lines(service.client, map(json.dumps, events))["rejected"] == 0


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedService]:
    service = EmbeddedService(tmp_path_factory.mktemp("shop"), policies=POLICIES)
    items = [("item.upserted", {"item_id": f"i{n}", "categories": [("a", "b")[n % 2]]}) for n in range(40)]
    service.send(items)
    post(service, interactions(4000, 1))
    yield service
    service.stop()


def job(service: EmbeddedService, answer: Any) -> Any:
    found = ended_job(service.client, answer)
    assert found["state"] == "done", found
    return found


def test_rank_puts_first_what_the_user_likes(shop: EmbeddedService) -> None:
    body = {"user_id": "u0", "item_ids": ["i1", "i2", "i3", "i4", "new"], "explain": True, "log_exposure": False}
    answer = shop.client.post("/v1/rank", json=body).raise_for_status().json()
    order = [one["item_id"] for one in answer["items"]]
    assert set(order[:2]) == {"i2", "i4"}
    known = {one["item_id"]: one["known"] for one in answer["items"]}
    assert known == {"i1": True, "i2": True, "i3": True, "i4": True, "new": False}
    why = answer["items"][0]["explain"]
    assert {"user x item tokens"} & {one["name"] for one in why["features"]}
    recommended = shop.client.post("/v1/recommend", json={"user_id": "u1", "n": 5, "log_exposure": False}).json()
    assert {int(one["item_id"][1:]) % 2 for one in recommended["items"]} == {1}


def test_the_series_says_how_good_it_is(shop: EmbeddedService) -> None:
    found = shop.get("/v1/policies/count_stack/quality")
    assert sum(point["events"] for point in found["series"]) == 4000
    late = [point for point in found["series"] if point["auc"] is not None][-20:]
    assert np.mean([point["auc"] for point in late]) > 0.8
    assert 0 < np.mean([point["calibration_error"] for point in late]) < 0.25
    assert found["gate"] == []  # it is the live one itself
    parts = {}
    for name in ("known", "new_user", "new_item", "new_both"):
        one = shop.get("/v1/policies/count_stack/quality", slice=name)
        assert one["slice"] == name
        parts[name] = sum(point["events"] for point in one["series"])
    assert sum(parts.values()) == 4000
    total = found["total"]
    assert (total["events"], total["at"]) == (4000, found["series"][0]["at"])
    longer = shop.get("/v1/policies/count_stack/quality", stretch_s=7 * 86_400)
    assert sum(point["events"] for point in longer["series"]) == 4000
    assert len(longer["series"]) < len(found["series"])
    assert longer["total"] | {"at": total["at"]} == total
    [whole_time] = shop.get("/v1/policies/count_stack/quality", stretch_s=1e11)["series"]
    assert whole_time | {"at": total["at"]} == total
    losses = [point["logloss"] * point["events"] for point in found["series"]]
    assert total["logloss"] == pytest.approx(sum(losses) / 4000)
    assert shop.client.get("/v1/policies/count_stack/quality", params={"stretch_s": "day"}).status_code == 422
    whole = found["ranking"]
    assert 50 < whole["positives"] == sum(point["ranked"] for point in found["series"])
    assert (whole["items"], whole["why"]) == (40, None)
    assert whole["ndcg_at_10"] > 0.2  # by chance: .11 of 40 items
    assert max(point["coverage"] or 0 for point in found["series"]) < whole["coverage"] <= 1
    deciles = [shop.get("/v1/policies/count_stack/quality", slice=f"item_decile_{n}") for n in range(1, 11)]
    events = [sum(point["events"] for point in one["series"]) for one in deciles]
    assert sum(events) == 4000
    assert min(events) > 200, "ten parts of about equally many examples, of 40 items that are liked alike"
    assert sum(one["ranking"]["positives"] for one in deciles) == whole["positives"]
    assert all(one["ranking"]["coverage"] is None for one in deciles)
    assert min(parts["known"], parts["new_user"]) > parts["new_both"] > 0, "300 users are new longer than 40 items"
    assert shop.client.get("/v1/policies/count_stack/quality", params={"slice": "old"}).status_code == 422
    assert shop.client.get("/v1/policies/trending/quality").status_code == 404
    assert shop.client.get("/v1/policies/count_stak/quality").status_code == 404


def test_the_command_shows_the_series_and_draws_it(
    shop: EmbeddedService, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(["policies", "quality", *arguments, "--url", shop.url])
        said = capsys.readouterr()
        return code, " ".join(said.out.split()), said.err

    plot = tmp_path / "quality.svg"
    code, out, err = run("count_stack", "--last", "5", "--plot", str(plot))
    assert (code, "drawn: " in err) == (0, True)
    assert "count_stack, all" in out
    assert "per-user AUC" not in out  # nothing was shown: nothing is compared within exposures
    for words in ("AUC", "log loss", "calibration", "earlier ones", "gate: nothing to compare"):
        assert words in out
    whole = shop.get("/v1/policies/count_stack/quality")["ranking"]
    assert f"NDCG@10 {whole['ndcg_at_10']:.4f} of {whole['positives']:,} liked items" in out
    assert f"coverage {whole['coverage']:.4f} of 40 items by {whole['lists']:,} rankings" in out
    svg = "{http://www.w3.org/2000/svg}"
    root = ET.parse(plot).getroot()
    titles = {one.text for one in root.iter(f"{svg}text")}
    assert {"calibration over time", "NDCG@10 of all over time", "coverage over time"} <= titles
    lines = [one.attrib["points"].split() for one in root.iter(f"{svg}polyline")]
    assert len(lines) == 5
    height = int(root.attrib["height"])
    assert all(0 < float(point.split(",")[1]) < height - 60 for line in lines for point in line)
    code, out, _ = run("count_stack", "--slice", "item_decile_10", "--json")
    assert (code, json.loads(out)["slice"]) == (0, "item_decile_10")
    code, _, err = run("count_stak")
    assert (code, "did you mean 'count_stack'" in err) == (1, True)
    code, _, err = run("count_stack", "--slice", "old")
    assert (code, "slice is 'old'" in err) == (1, True)
    assert run("count_stack", "--plot", "quality.png")[0] == 2


def test_a_worse_shadow_is_refused_a_better_promoted_and_rolled_back(
    shop: EmbeddedService, capsys: pytest.CaptureFixture[str]
) -> None:
    body = {"name": "count_stack", "config": {"ids": 8, "crosses": 8}, "slot": "shadow", "reason": "smaller"}
    job(shop, shop.client.post("/v1/policies", json=body))
    versions = shop.get("/v1/policies")["items"]
    shadow = next(v for v in versions if v["policy"] == "count_stack" and v["slot"] == "shadow")
    label = f"count_stack@{shadow['label']}"
    found, live = shop.get(f"/v1/policies/{label}/quality"), shop.get("/v1/policies/count_stack/quality")
    assert found["ranking"]["positives"] == live["ranking"]["positives"], "both rank the same liked items"
    assert found["ranking"]["ndcg_at_10"] < live["ranking"]["ndcg_at_10"]
    gate = {rule["rule"]: rule for rule in found["gate"]}
    assert gate["not_worse"]["passed"] is False
    assert main(["policies", "quality", label, "--url", shop.url]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "the gate refuses it: not_worse" in said
    assert gate["negative_flips"]["detail"].split()[0] in said
    refused = shop.client.post(f"/v1/policies/{label}/promote", json={"reason": "try"})
    assert refused.status_code == 409
    assert refused.json()["code"] == "gate-failed"
    assert {rule["rule"] for rule in refused.json()["gate"]} == {
        *("not_worse", "negative_flips", "worst_slice", "bytes", "p99", "cost")
    }
    forced = shop.client.post(f"/v1/policies/{label}/promote", json={"reason": "forced", "force": True})
    job(shop, forced)
    now_live = {v["policy"]: v["label"] for v in shop.get("/v1/policies")["items"] if v["slot"] == "live"}
    assert now_live["count_stack"] == shadow["label"]
    # what was live is a candidate again, and a better one
    old = next(v for v in shop.get("/v1/policies")["items"] if v["policy"] == "count_stack" and v["slot"] == "shadow")
    gate = {r["rule"]: r for r in shop.get(f"/v1/policies/count_stack@{old['label']}/quality")["gate"]}
    assert gate["not_worse"]["passed"] is True, gate
    job(shop, shop.client.post("/v1/policies/count_stack/rollback", json={"reason": "back"}))
    now_live = {v["policy"]: v["label"] for v in shop.get("/v1/policies")["items"] if v["slot"] == "live"}
    assert now_live["count_stack"] == old["label"]


def test_an_undecided_candidate_is_refused_with_the_rule_that_is_undecided(shop: EmbeddedService) -> None:
    before = {v["label"] for v in shop.get("/v1/policies")["items"] if v["policy"] == "count_stack"}
    body = {"name": "count_stack", "config": POLICIES["count_stack"] | {"rate": 0.0601}, "reason": "try"}
    job(shop, shop.client.post("/v1/policies", json=body))
    [label] = {v["label"] for v in shop.get("/v1/policies")["items"] if v["policy"] == "count_stack"} - before
    refused = shop.client.post(f"/v1/policies/count_stack@{label}/promote", json={"reason": "try"})
    assert refused.status_code == 409, refused.text
    assert refused.json()["code"] == "gate-failed"
    rule = {one["rule"]: one for one in refused.json()["gate"]}["not_worse"]
    assert rule["passed"] is False
    assert rule["detail"].startswith("undecided")
    assert f"not_worse ({rule['detail']})" in refused.json()["detail"]


def test_an_exposure_is_tested_when_its_outcome_is_known(shop: EmbeddedService) -> None:
    body = {"user_id": "u2", "item_ids": ["i1", "i2", "i3"]}
    answer = shop.client.post("/v1/rank", json=body).raise_for_status().json()
    exposure(shop.client, answer["exposure_id"])
    click = {"user_id": "u2", "item_id": "i2", "action": "click", "exposure_id": answer["exposure_id"]}
    shop.send([("interaction.observed", click)])
    time.sleep(4.1)  # the window itself
    shop.send([("interaction.observed", {"user_id": "u2", "item_id": "i9", "action": "view"})])
    last = shop.get("/v1/policies/count_stack/quality")["series"][-1]
    assert last["events"] == 3
    assert last["user_auc"] == 1.0
    assert last["ndcg_at_10"] == 1.0


def test_what_is_recommended_and_liked_is_ranked_among_everything_unseen(tmp_path: Path) -> None:
    """From a response to its place in the whole catalogue, and what is said where the catalogue is too large."""
    quality = {"ranker": "count_stack", "rank_budget": 1e9, "rank_limit": 30}
    table: dict[str, dict[str, Any]] = {**POLICIES, "newest": {}, "quality": quality}
    service = EmbeddedService(tmp_path, policies=table)
    try:
        service.send([("item.upserted", {"item_id": f"i{n}", "categories": [("a", "b")[n % 2]]}) for n in range(30)])
        before = service.get("/v1/policies/quality/quality")["ranking"]
        assert before["why"].startswith("none yet: one example in about 1 is drawn")
        for n in range(3):
            body = {"user_id": f"u{n}", "n": 5}
            answer = service.client.post("/v1/recommend", json=body).raise_for_status().json()
            exposure(service.client, answer["exposure_id"])
            item = answer["items"][0]["item_id"]
            click = {"user_id": f"u{n}", "item_id": item, "action": "click", "exposure_id": answer["exposure_id"]}
            service.send([("interaction.observed", click)])
        found = service.get("/v1/policies/quality/quality")
        ranking = found["ranking"]
        assert (ranking["positives"], ranking["lists"], ranking["items"]) == (3, 3, 30)
        assert 0 < ranking["ndcg_at_10"] <= 1
        assert 10 / 30 <= ranking["coverage"] < 1
        assert found["series"][-1]["ranked"] == 3
        service.send([("item.upserted", {"item_id": "one more"})])
        said = service.get("/v1/policies/quality/quality")["ranking"]["why"]
        assert said == "the catalogue has 31 items or more, and rank_limit is 30"
    finally:
        service.stop()


def test_heads_are_judged_by_the_labels_they_had_not_seen(tmp_path: Any) -> None:
    """A head that cannot tell its classes apart is refused; while few targets are labelled nothing is decided."""
    service = EmbeddedService(tmp_path, policies={"label_statistics": {}, "gradient_head": {"dim": 4},
                                                  "head_quality": {}},
                              settings={"gate": {"p99_ratio": 1e6, "cost_ratio": 1e6}})  # fmt: skip
    try:
        rng = np.random.default_rng(2)
        start = time.time() - 10 * DAY_S

        def labels(first: int, n: int) -> list[dict[str, Any]]:
            found = []
            for i in range(first, first + n):
                code = int(rng.integers(2))
                features = {f"f{j}": float(v) for j, v in enumerate(rng.normal(size=4) + 2.5 * code)}
                at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(start + 600 * i))
                found.append(
                    {"specversion": "1.0", "id": f"l{i}", "source": "/t", "type": "label.observed", "time": at,
                     "data": {"head": "kind", "target": {"features": features}, "label": "ab"[code]}}
                )  # fmt: skip
            return found

        def candidate(name: str, config: dict[str, Any]) -> str:
            body = {"name": name, "config": config, "slot": "shadow", "reason": "try"}
            job(service, service.client.post("/v1/policies", json=body))
            rows = service.get("/v1/policies")["items"]
            return f"{name}@{[row['label'] for row in rows if row['policy'] == name and row['slot'] == 'shadow'][-1]}"

        def refused(name: str) -> Any:
            answer = service.client.post(f"/v1/policies/{name}/promote", json={"reason": "try"})
            assert answer.status_code == 409, answer.text
            assert answer.json()["code"] == "gate-failed"
            return {rule["rule"]: rule for rule in answer.json()["gate"]}["not_worse"]["detail"]

        post(service, labels(0, 120))
        blunt = candidate("label_statistics", {"gamma": 1e9})
        assert refused(blunt).startswith("undecided")
        post(service, labels(120, 700))
        assert refused(blunt).startswith("fail")
        slow = candidate("gradient_head", {"dim": 4, "rate": 1e-6})
        assert refused(slow).startswith("fail")
        for name in ("label_statistics", "gradient_head"):
            found = service.get(f"/v1/policies/{name}/quality", slice="kind")
            assert found["gate"] == []
            assert found["series"][-1]["accuracy"] > 0.9, name
            assert found["series"][-1]["min_accuracy"] > 0.7, name
            assert found["series"][-1]["auc"] is None
            assert found["ranking"] is None
        forced = service.client.post(f"/v1/policies/{blunt}/promote", json={"reason": "see", "force": True})
        job(service, forced)
        rows = service.get("/v1/policies")["items"]
        sharp = next(row["label"] for row in rows if row["policy"] == "label_statistics" and row["slot"] == "shadow")
        answer = service.client.post(f"/v1/policies/label_statistics@{sharp}/promote", json={"reason": "it is better"})
        job(service, answer)
    finally:
        service.stop()
