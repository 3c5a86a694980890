"""Gradient heads over REST: labels of a moment ago, a shadow beside sums, and an erasure by folding afresh."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamfold.core.testing.service import EmbeddedService
from tests.waiting import ended_erasure

SPAM = ["cheap pills now", "win cheap money now", "cheap loans, pills, money", "you win a prize now"]
HAM = ["the meeting is on monday", "minutes of the meeting", "notes for monday's review", "the review is done"]


def label(value: Any, head: str = "mail", **target: Any) -> tuple[str, dict[str, Any]]:
    return "label.observed", {"head": head, "target": target, "label": value}


@pytest.fixture(scope="module")
def mail(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedService]:
    policies: dict[str, dict[str, Any]] = {
        "label_statistics": {},
        "gradient_head": {},
        "averaged": {"use": "gradient_head", "average": "swa", "every": 2},
        "head_ensemble": {"members": ["gradient_head", "averaged"]},
    }
    service = EmbeddedService(tmp_path_factory.mktemp("mail"), policies=policies)
    service.send([label("spam", text=text) for text in SPAM] + [label("ham", text=text) for text in HAM])
    yield service
    service.stop()


def ask(mail: EmbeddedService, status: int = 200, **body: Any) -> Any:
    answer = mail.client.post("/v1/classify", json={"head": "mail", "policy": "gradient_head"} | body)
    assert answer.status_code == status, answer.text
    return answer.json()


def test_the_policy_that_is_named_answers(mail: EmbeddedService) -> None:
    answer = ask(mail, targets=[{"text": "cheap pills"}, {"text": "monday's meeting"}], explain=True)
    one, other = answer["predictions"]
    assert (one["labels"][0]["label"], other["labels"][0]["label"]) == ("spam", "ham")
    assert one["explain"]["read_out"] == "linear"
    assert answer["version"]["policies"]["gradient_head"] == "1"
    assert "did you mean 'mail'" in ask(mail, 404, head="mial", targets=[{"text": "t"}])["detail"]
    for policy in ("gradient_head", "averaged", "head_ensemble"):
        ask(mail, 422, targets=[{"features": {"x": 1}}], policy=policy)
        ask(mail, 422, targets=[{"text": ""}], policy=policy)


def test_averaged_weights_and_a_mixture_answer_by_name(mail: EmbeddedService) -> None:
    for policy in ("averaged", "head_ensemble"):
        [found] = ask(mail, targets=[{"text": "cheap pills"}], policy=policy, explain=True)["predictions"]
        assert found["labels"][0]["label"] == "spam"
        assert sum(one["score"] for one in found["labels"]) == pytest.approx(1, abs=1e-5)
    assert set(found["explain"]["members"]) == {"gradient_head", "averaged"}
    assert sum(found["explain"]["members"].values()) == pytest.approx(1, abs=1e-5)


def test_a_mixture_of_other_heads_is_refused(mail: EmbeddedService) -> None:
    body = {"name": "head_ensemble", "config": {"members": ["gradient_head", "label_statistics"]}, "reason": "try"}
    answer = mail.client.post("/v1/policies", json=body)
    assert answer.status_code == 422
    assert "'label_statistics' is a label_statistics" in answer.json()["detail"]


def test_who_is_erased_is_unlearned_by_folding_afresh(mail: EmbeddedService) -> None:
    mail.send([
        ("user.upserted", {"user_id": "ann", "properties": {"about": "violins and cellos"}}),
        ("user.upserted", {"user_id": "bob", "properties": {"about": "cellos and violins"}}),
        label("music", "interest", user_id="ann"),
        label("sport", "interest", text="football and tennis"),
    ])  # fmt: skip
    asked = {"head": "interest", "targets": [{"user_id": "bob"}]}
    assert ask(mail, **asked)["predictions"][0]["labels"][0]["label"] == "music"
    erasure = mail.client.post("/v1/erasures", json={"user_id": "ann"}).json()["erasure_id"]
    found = ended_erasure(mail.client, erasure)
    methods = {one["policy"]: (one["method"], one["removed"]) for one in found["policies"]}
    assert methods.pop("label_statistics@1") == ("exact", 2)
    assert set(methods) == {"gradient_head@1", "averaged@1", "head_ensemble@2"}
    assert set(methods.values()) == {("rebuild", 2)}
    assert not any(one["residue"] for one in found["stores"])
    [told] = ask(mail, **asked)["predictions"][0]["labels"]
    assert told["label"] == "sport"
    assert ask(mail, targets=[{"text": "cheap pills"}])["predictions"][0]["labels"][0]["label"] == "spam"


def test_weights_of_two_bases_are_not_averaged_and_the_refusal_names_the_criterion(tmp_path: Path) -> None:
    """Interpolation with what is live, added and promoted: over its base alone, ``force`` or not."""
    service = EmbeddedService(tmp_path, policies={"topics": {"use": "gradient_head"}, "label_statistics": {}})

    def add(name: str, **config: Any) -> Any:
        body = {"name": name, "use": "gradient_head", "config": config, "reason": "try"}
        return service.client.post("/v1/policies", json=body)

    def promote(name: str) -> Any:
        return service.client.post(f"/v1/policies/{name}/promote", json={"reason": "try", "force": True})

    def is_same_base(refused: Any, says: str) -> None:
        assert (refused.status_code, refused.json()["code"]) == (409, "policy-conflict"), refused.text
        [rule] = refused.json()["gate"]
        assert (rule["rule"], rule["passed"]) == ("same_base", False)
        assert says in rule["detail"]

    try:
        service.send([label("spam", text=text) for text in SPAM] + [label("ham", text=text) for text in HAM])
        is_same_base(add("mixed", blend_with="topics", expansion=64), "expansion 0 beside 64")
        kind = add("mixed", blend_with="label_statistics")
        assert (kind.status_code, kind.json()["code"]) == (422, "invalid-value")
        assert add("mixed", blend_with="topics", blend=0.5, rate=1.0).status_code == 202
        other = add("topics", expansion=64)
        assert other.status_code == 202
        service.send([label("spam", text="money, money")])
        taken = promote(other.json()["policy"])
        assert taken.status_code == 202, taken.text
        is_same_base(promote("mixed"), "expansion 64 beside 0")
        rolled = service.client.post("/v1/policies/topics/rollback", json={"reason": "the base that was"})
        assert rolled.status_code == 202, rolled.text
        assert promote("mixed").status_code == 202
        [found] = ask(service, targets=[{"text": "cheap pills"}], policy="mixed")["predictions"]
        assert found["labels"][0]["label"] == "spam"
    finally:
        service.stop()
