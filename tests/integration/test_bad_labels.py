"""All that labels, targets and versions of heads can get wrong, over REST: refused or a dead letter, never folded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from streamfold.core.testing.service import EmbeddedService
from tests.waiting import until

CLASSES = {"spam": ["cheap pills now", "win cheap money"], "ham": ["the meeting is on monday", "monday's minutes"]}
HEADS: dict[str, dict[str, Any]] = {
    "prototype": {"use": "label_statistics", "read_out": "prototype", "max_classes": 4, "wait_s": 0.0},
    "kalman_head": {"max_classes": 4, "wait_s": 0.0},
    "gradient_head": {"dim": 64, "max_classes": 5, "wait_s": 0.0},
    "small": {"use": "label_statistics", "max_bytes": 12_000, "wait_s": 0.0},
}


BACKENDS = {"encoder": {"use": "hashing", "dim": 64}, "chunker": {"use": "sentences"}}


def label(value: Any, head: str = "mail", **target: Any) -> tuple[str, dict[str, Any]]:
    return "label.observed", {"head": head, "target": target, "label": value}


@pytest.fixture(scope="module")
def mail(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedService]:
    service = EmbeddedService(tmp_path_factory.mktemp("mail"), policies=HEADS, backends=BACKENDS)
    service.send([label(value, text=text) for value, texts in CLASSES.items() for text in texts])
    service.send([label(value, features={"x": x, "y": 1.0}) for value, x in (("spam", 1.0), ("ham", -1.0))])
    yield service
    service.stop()


def answers(mail: EmbeddedService) -> list[Any]:
    """What each head says of a text and of features, to the last bit."""
    found = []
    for policy in HEADS:
        for target in ({"text": "cheap meeting"}, {"features": {"x": 0.3, "y": 1.0}}):
            body = {"head": "mail", "targets": [target], "policy": policy, "log_exposure": False}
            found += mail.client.post("/v1/classify", json=body).raise_for_status().json()["predictions"]
    return found


def letters(mail: EmbeddedService) -> list[tuple[str, str]]:
    """Policy and code of all dead letters, which are dropped."""
    found = mail.get("/v1/dead-letters", limit=1000)["items"]
    for one in found:
        assert mail.client.post(f"/v1/dead-letters/{one['dead_letter_id']}/drop").status_code == 204
        assert one["stage"] == "fold"
        assert one["detail"]
    return sorted((one["policy"].partition("@")[0], one["code"]) for one in found)


@pytest.mark.parametrize(
    ("target", "code"),
    [
        ({"features": {"x": 0.0, "y": 0.0}}, "zero-vector"),
        ({"features": {"x": "red", "y": 1.0}}, "wrong-features"),
        ({"features": {"x": 1e300, "y": 1.0}}, "wrong-features"),
        ({"features": {}}, "zero-vector"),
        ({"text": ""}, "empty-text"),
        ({"document_id": "never seen"}, "unknown-target"),
    ],
)
def test_a_label_that_no_head_can_use_is_a_dead_letter_of_each_and_changes_no_answer(
    mail: EmbeddedService, target: dict[str, Any], code: str
) -> None:
    before = answers(mail)
    mail.send([label("spam", **target)])
    assert letters(mail) == sorted((policy, code) for policy in HEADS)
    assert answers(mail) == before


def test_a_vector_of_another_dimension_is_a_dead_letter_or_refused_when_asked(mail: EmbeddedService) -> None:
    before = answers(mail)
    wide = {f"x{n}": 1.0 for n in range(256)}
    for policy in HEADS:
        refused = mail.client.post(
            "/v1/classify", json={"head": "mail", "targets": [{"features": wide}], "policy": policy}
        )
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid-value"), policy
        assert "no labels of 256 features of these names" in refused.json()["detail"]
    zero = mail.client.post("/v1/classify", json={"head": "mail", "targets": [{"features": {"x": 0.0, "y": 0.0}}]})
    assert (zero.status_code, zero.json()["errors"][0]["pointer"]) == (422, "/targets/0"), zero.text
    assert "no direction" in zero.json()["detail"]
    mail.send([label("spam", features=wide)])
    assert letters(mail) == [("gradient_head", "wrong-dimension")], "others have a space of its own for it"
    assert answers(mail) == before


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        ({"weight": -1}, 422, "invalid-value"),
        ({"weight": float("nan")}, 400, "malformed"),
        ({"target": {"features": {"x": float("nan")}}}, 400, "malformed"),
        ({"target": {"features": {"x": [float("inf")]}}}, 400, "malformed"),
        ({"target": {"text": "t", "item_id": "i"}}, 422, "invalid-event"),
        ({"target": {}}, 422, "invalid-event"),
        ({"label": float("inf")}, 400, "malformed"),
        ({"label": ["a"]}, 422, "invalid-value"),
        ({"head": ""}, 422, "invalid-value"),
    ],
)
def test_a_label_that_is_none_is_refused(mail: EmbeddedService, data: dict[str, Any], status: int, code: str) -> None:
    before, position = answers(mail), mail.get("/v1/status")["position"]
    event = {"specversion": "1.0", "id": "bad", "source": "t", "type": "label.observed",
             "data": {"head": "mail", "target": {"text": "t"}, "label": "spam"} | data}  # fmt: skip
    refused = mail.client.post("/v1/events", content=json.dumps(event), headers={"Content-Type": "application/json"})
    assert refused.status_code == status, refused.text
    assert refused.json()["code"] == code
    assert mail.get("/v1/status")["position"] == position
    assert answers(mail) == before


def test_a_class_too_many_or_a_head_too_large_is_a_dead_letter_and_the_others_go_on(mail: EmbeddedService) -> None:
    before = answers(mail)
    mail.send([label(f"c{n}", "colours", text=f"the colour number {n}") for n in range(4)])
    mail.send([label("big", "texts", text=f"a text number {n}") for n in range(40)])
    found = letters(mail)
    assert found.count(("prototype", "too-many-classes")) == found.count(("kalman_head", "too-many-classes")) == 42
    assert found.count(("gradient_head", "too-many-classes")) == 43
    assert ("small", "byte-budget") in found
    states = {one["policy"].partition("@")[0]: one["state"] for one in mail.get("/v1/status")["policies"]}
    assert set(states.values()) == {"running"}, states
    assert answers(mail) == before
    mail.send([label("spam", text="more cheap pills")])
    assert letters(mail) == []
    assert answers(mail) != before, "what needs no further room is learned"


def test_an_unknown_head_is_named_with_the_nearest_and_one_without_labels_says_what_to_send(
    mail: EmbeddedService,
) -> None:
    def ask(head: str) -> httpx.Response:
        return mail.client.post("/v1/classify", json={"head": head, "targets": [{"text": "t"}]})

    unknown = ask("mial")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "not-found")
    assert "no head 'mial'; did you mean 'mail'?" in unknown.json()["detail"]
    mail.send([("class.upserted", {"head": "empty", "class": "a"})])
    letters(mail)
    without = ask("empty")
    assert (without.status_code, without.json()["code"]) == (409, "not-ready")
    assert "send label.observed events with head 'empty', a target and a label" in without.json()["detail"]


def test_a_candidate_that_is_undecided_lags_or_holds_who_is_erased_is_not_promoted(tmp_path: Path) -> None:
    """Each with 409 and what stands in its way; only the first is a question of ``force``."""
    service = EmbeddedService(tmp_path, policies={"label_statistics": {}})
    body = {"name": "label_statistics", "config": {"read_out": "prototype"}, "reason": "try"}

    def promote(**more: Any) -> httpx.Response:
        return service.client.post("/v1/policies/label_statistics/promote", json={"reason": "try", **more})

    def rules(refused: httpx.Response, code: str) -> set[str]:
        """The rules that a refusal names."""
        assert (refused.status_code, refused.json()["code"]) == (409, code), refused.text
        return {rule["rule"] for rule in refused.json()["gate"] if not rule["passed"]}

    try:
        service.send([("user.upserted", {"user_id": "ann", "properties": {"about": "pills"}})])
        service.send([label("spam", user_id="ann"), *[label("ham", text=f"t {n}") for n in range(5)]])
        added = service.client.post("/v1/policies", json=body)
        assert added.status_code == 202, added.text
        version = added.json()["policy"].partition("@")[2]
        until(lambda: all(one["state"] == "running" for one in service.get("/v1/status")["policies"]))
        undecided = promote()
        assert "not_worse" in rules(undecided, "gate-failed")
        assert "not_worse (undecided" in undecided.json()["detail"], undecided.text

        act = {"version": version, "reason": "try"}
        assert service.client.post("/v1/policies/label_statistics/pause", json=act).status_code == 202
        erasure = service.client.post("/v1/erasures", json={"user_id": "ann"}).json()["erasure_id"]
        until(lambda: service.get(f"/v1/erasures/{erasure}")["policies"])
        for force in (False, True):  # while it is paused it forgets nobody
            assert rules(promote(force=force), "policy-conflict") == {"not_paused", "not_erased_from"}
        assert service.client.post("/v1/policies/label_statistics/resume", json=act).status_code == 202
        until(lambda: service.get(f"/v1/erasures/{erasure}")["state"] == "complete")

        service.send([label("ham", text=f"later {n}") for n in range(600)])
        slow = {**body, "config": {"read_out": "lda"}, "rate": 1}
        version = service.client.post("/v1/policies", json=slow).json()["policy"].partition("@")[2]
        lagging = promote(force=True, version=version)
        assert rules(lagging, "not-ready") == {"caught_up"}
        assert "not_worse" in rules(promote(version=version), "gate-failed")
    finally:
        service.stop()
