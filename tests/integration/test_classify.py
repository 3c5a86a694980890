"""Labels in, labels out, over REST: fresh, logged, refused by name, forgotten; and the command."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streamfold.core.testing.service import EmbeddedService
from streamfold.pipelines.cli import main
from tests.waiting import ended_erasure, exposure, until

SPAM = ["cheap pills now", "win cheap money now", "cheap loans, pills, money", "you win a prize now"]
HAM = ["the meeting is on monday", "minutes of the meeting", "notes for monday's review", "the review is done"]


def label(value: Any, head: str = "mail", **target: Any) -> tuple[str, dict[str, Any]]:
    return "label.observed", {"head": head, "target": target, "label": value}


@pytest.fixture(scope="module")
def mail(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedService]:
    service = EmbeddedService(tmp_path_factory.mktemp("mail"), policies={"label_statistics": {}})
    service.send([label("spam", text=text) for text in SPAM] + [label("ham", text=text) for text in HAM])
    service.send([("class.upserted", {"head": "empty", "class": "a"})])
    yield service
    service.stop()


def ask(mail: EmbeddedService, status: int = 200, **body: Any) -> Any:
    answer = mail.client.post("/v1/classify", json={"head": "mail"} | body)
    assert answer.status_code == status, answer.text
    return answer.json()


def best(mail: EmbeddedService, head: str = "mail", **target: Any) -> str:
    return str(ask(mail, head=head, targets=[target])["predictions"][0]["labels"][0]["label"])


def test_a_text_is_classified_by_labels_of_a_moment_ago(mail: EmbeddedService) -> None:
    answer = ask(mail, targets=[{"text": "cheap pills"}, {"text": "monday's meeting"}], top_k=2, explain=True)
    one, other = answer["predictions"]
    assert (one["labels"][0]["label"], other["labels"][0]["label"]) == ("spam", "ham")
    assert sum(found["score"] for found in one["labels"]) == pytest.approx(1, abs=1e-5)
    assert 0 <= one["unknown"] <= 1
    assert one["explain"]["read_out"] == "ridge"
    assert answer["version"]["policies"] == {"label_statistics": "1"}
    assert ask(mail, targets=[{"text": "cheap pills"}])["predictions"][0]["explain"] is None
    mail.send([label("travel", text=text) for text in ("a train to paris", "the train ticket to paris")])
    assert best(mail, text="the paris train") == "travel"
    mail.send([label("ham", text=text) for text in ("a train to paris", "the train ticket to paris")])
    assert best(mail, text="the paris train") == "ham"


def test_whoever_waits_for_a_label_is_answered_by_it_each_time(mail: EmbeddedService) -> None:
    """A head is solved off the requests' path; a label that is visible is in every answer."""
    for n in range(40):
        value = "ab"[n % 2]
        mail.send([label(value, "flip", text="one and the same text"), label("c", "flip", text=f"another {n}")])
        assert best(mail, "flip", text="one and the same text") == value


def test_an_answer_is_an_exposure_in_the_log(mail: EmbeddedService) -> None:
    answer = ask(mail, targets=[{"text": "cheap pills"}])
    data = exposure(mail.client, answer["exposure_id"])["data"]
    assert (data["kind"], data["context"]) == ("classify", {"head": "mail"})
    shown = answer["predictions"][0]["labels"]
    assert [(one["label"], one["rank"], one["score"]) for one in data["items"]] == [
        (one["label"], rank, one["score"]) for rank, one in enumerate(shown, 1)
    ]
    assert ask(mail, targets=[{"text": "cheap pills"}], log_exposure=False)["exposure_id"] is None
    mail.send([label(f"c{n}", "many", features={"x": 1.0 + n}) for n in range(25)])
    large = ask(mail, head="many", targets=[{"features": {"x": 3.0}}] * 100, top_k=50)
    assert len(large["predictions"]) == 100
    assert large["exposure_id"] is None
    assert "exposure-not-logged" in large["version"]["degraded"]


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (404, {"head": "mial", "targets": [{"text": "t"}]}, "did you mean 'mail'"),
        (409, {"head": "empty", "targets": [{"text": "t"}]}, "send label.observed"),
        (422, {"targets": [{"features": {"x": 1}}]}, "no labels of 1 features"),
        (422, {"targets": [{"text": "t"}, {"text": ""}]}, "empty"),
        (422, {"targets": [{"document_id": "nobody"}]}, "document nobody"),
        (422, {"targets": [{"text": "t", "item_id": "i"}]}, "exactly one"),
        (422, {"targets": []}, "targets"),
        (422, {"targets": [{"text": "t"}], "top_k": 0}, "top_k"),
        (422, {"targets": [{"text": "t"}], "policy": "label_statistic"}, "did you mean 'label_statistics'"),
        (422, {"targets": [{"text": "t"}], "explian": True}, "explain"),
    ],
)
def test_bad_input_is_named(mail: EmbeddedService, status: int, body: dict[str, Any], says: str) -> None:
    problem = ask(mail, status, **body)
    assert says in problem["detail"] + str(problem["errors"])


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_a_feature_that_is_no_number_is_refused(mail: EmbeddedService, number: str) -> None:
    features = f'{{"features": {{"x": {number}}}}}'
    asked = mail.client.post("/v1/classify", content=f'{{"head": "mail", "targets": [{features}]}}')
    data = f'{{"head": "mail", "target": {features}, "label": "a"}}'
    body = f'{{"specversion": "1.0", "id": "nan", "source": "t", "type": "label.observed", "data": {data}}}'
    told = mail.client.post("/v1/events", content=body, headers={"Content-Type": "application/json"})
    assert {asked.status_code, told.status_code} <= {400, 422}, f"{asked.text}\n{told.text}"


def test_a_bad_label_is_refused_or_a_dead_letter(mail: EmbeddedService) -> None:
    bad = {"head": "mail", "target": {"text": "t"}, "label": "a", "weight": -1}
    refused = mail.client.post("/v1/events", json={"specversion": "1.0", "id": "w", "source": "t",
                                                   "type": "label.observed", "data": bad})  # fmt: skip
    assert refused.status_code == 422
    mail.send([label("spam", text="")])
    letters = mail.get("/v1/dead-letters", policy="label_statistics@1")["items"]
    assert [one["code"] for one in letters] == ["empty-text"]


def test_a_label_waits_for_its_target_and_is_retried_when_it_came_too_late(tmp_path: Path) -> None:
    service = EmbeddedService(tmp_path, policies={"label_statistics": {"wait_s": 8.0}})
    try:
        service.send([label("old", document_id="soon"), label("new", text="a lamp")])
        service.send([("document.upserted", {"document_id": "soon", "text": "an oak desk"})])
        assert best(service, document_id="soon") == "old"
        service.send([label("late", document_id="later")])
        numbers = itertools.count()

        def given_up() -> list[Any]:
            service.send([label("new", text=f"a lamp {next(numbers)}")])  # time passes with events
            return list(service.get("/v1/dead-letters", policy="label_statistics@1")["items"])

        letters = until(given_up)
        assert [(one["code"], one["stage"]) for one in letters] == [("unknown-target", "fold")]
        assert "document.upserted, then retry this event" in letters[0]["detail"]
        service.send([("document.upserted", {"document_id": "later", "text": "a mahogany chest"})])
        answer = service.client.post(f"/v1/dead-letters/{letters[0]['dead_letter_id']}/retry")
        assert answer.status_code == 202, answer.text
        service.send([label("new", text="the last lamp")])
        assert best(service, document_id="later") == "late"
        assert service.get("/v1/dead-letters")["items"] == []
    finally:
        service.stop()


def test_a_late_label_is_retried_unless_its_own_head_has_a_newer_one_of_its_target(tmp_path: Path) -> None:
    """What another head says of the same target is not undone by it."""
    service = EmbeddedService(tmp_path, policies={"label_statistics": {"wait_s": 0.0}})
    try:
        service.send([label("late", document_id="d"), label("oak", "wood", document_id="d")])
        letters = service.get("/v1/dead-letters")["items"]
        assert [one["code"] for one in letters] == ["unknown-target", "unknown-target"]
        service.send([("document.upserted", {"document_id": "d", "text": "a mahogany chest"})])
        service.send(
            [label("ash", "wood", document_id="d"), label("new", text="a lamp"), label("ash", "wood", text="x")]
        )
        first, second = (f"/v1/dead-letters/{one['dead_letter_id']}/retry" for one in letters)
        refused = service.client.post(second)
        assert (refused.status_code, refused.json()["code"]) == (409, "policy-conflict")
        assert "has a newer event at position 4" in refused.json()["detail"]
        answer = service.client.post(first)
        assert answer.status_code == 202, answer.text
        service.send([label("new", text="the last lamp")])
        assert best(service, document_id="d") == "late"
        assert best(service, "wood", document_id="d") == "ash"
        assert [one["dead_letter_id"] for one in service.get("/v1/dead-letters")["items"]] == [
            letters[1]["dead_letter_id"]
        ]
    finally:
        service.stop()


def test_a_label_over_the_budget_is_retried_when_others_were_retracted(tmp_path: Path) -> None:
    service = EmbeddedService(tmp_path, policies={"label_statistics": {"max_bytes": 2500}})
    try:
        service.send([label("a lamp", text="one"), label("a desk", text="two")])
        assert service.get("/v1/dead-letters")["items"] == [], "two texts of 1 kB each fit"
        service.send([label("a lamp", text="three")])
        [letter] = service.get("/v1/dead-letters")["items"]
        assert (letter["code"], letter["stage"]) == ("byte-budget", "fold")
        assert "its budget is 2,500 (max_bytes)" in letter["detail"]
        service.send([label(None, text="two")])
        answer = service.client.post(f"/v1/dead-letters/{letter['dead_letter_id']}/retry")
        assert answer.status_code == 202, answer.text
        service.send([("user.upserted", {"user_id": "u", "properties": {"about": "lamps"}})])
        assert service.get("/v1/dead-letters")["items"] == []
        assert {one["label"] for one in ask(service, targets=[{"text": "one"}])["predictions"][0]["labels"]} == {
            "a lamp"
        }
    finally:
        service.stop()


def test_who_is_erased_is_gone_from_what_is_answered(mail: EmbeddedService) -> None:
    mail.send([
        ("user.upserted", {"user_id": "ann", "properties": {"about": "violins and cellos"}}),
        ("user.upserted", {"user_id": "bob", "properties": {"about": "cellos and violins"}}),
        label("music", "interest", user_id="ann"),
        label("sport", "interest", text="football and tennis"),
    ])  # fmt: skip
    assert best(mail, "interest", user_id="bob") == "music"
    erasure = mail.client.post("/v1/erasures", json={"user_id": "ann"}).json()["erasure_id"]
    found = ended_erasure(mail.client, erasure)
    assert [(one["policy"], one["method"], one["removed"]) for one in found["policies"]] == [
        ("label_statistics@1", "exact", 2)
    ]
    assert not any(one["residue"] for one in found["stores"])
    answer = ask(mail, head="interest", targets=[{"user_id": "bob"}])["predictions"][0]
    assert [one["label"] for one in answer["labels"]] == ["sport"]


def test_the_command(
    mail: EmbeddedService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STREAMFOLD_URL", mail.url)
    assert main(["classify", "mail", "cheap pills", "--explain"]) == 0
    said = capsys.readouterr()
    assert "spam" in said.out
    assert "unknown" in said.err
    assert main(["classify", "mial", "cheap pills"]) == 1
    assert "did you mean 'mail'" in capsys.readouterr().err
