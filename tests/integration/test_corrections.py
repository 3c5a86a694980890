"""A wrong answer is corrected over REST: obeyed by the next one, taken back, forgotten with who gave it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from streamfold.core.testing.service import EmbeddedService
from tests.waiting import ended_erasure

SPAM = ["cheap pills now", "win cheap money now", "cheap loans, pills, money", "you win a prize now"]
HAM = ["the meeting is on monday", "minutes of the meeting", "notes for monday's review", "the review is done"]
WRONG = "cheap pills from the pharmacy"


@pytest.fixture(scope="module")
def mail(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedService]:
    policies: dict[str, Any] = {"kalman_head": {}, "corrections": {}}
    service = EmbeddedService(tmp_path_factory.mktemp("mail"), policies=policies)
    labels = [
        (label, text) for pair in zip(SPAM, HAM, strict=True) for label, text in zip(("spam", "ham"), pair, strict=True)
    ]
    service.send([
        ("label.observed", {"head": "mail", "target": {"text": text}, "label": label}) for label, text in labels
    ])  # fmt: skip
    service.send([("class.upserted", {"head": "mail", "class": "ham", "name": "wanted mail"})])
    yield service
    service.stop()


def ask(mail: EmbeddedService, *texts: str, **body: Any) -> Any:
    body = {"head": "mail", "targets": [{"text": text} for text in texts]} | body
    answer = mail.client.post("/v1/classify", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def best(mail: EmbeddedService, text: str) -> str:
    return str(ask(mail, text)["predictions"][0]["labels"][0]["label"])


def correction(label: str | None, text: str = WRONG, exposure: str = "e", **more: Any) -> tuple[str, dict[str, Any]]:
    said = {"exposure_id": exposure, "value": -1, "head": "mail", "target": {"text": text}, "correction": label}
    return "feedback.given", said | more


def test_a_correction_is_obeyed_by_the_next_answer_and_taken_back(mail: EmbeddedService) -> None:
    before = ask(mail, WRONG, *SPAM, *HAM)
    first = before["predictions"][0]
    assert first["labels"][0]["label"] == "spam"
    mail.send([correction("ham", exposure=before["exposure_id"])])
    after = ask(mail, WRONG, *SPAM, *HAM, explain=True)
    pinned = after["predictions"][0]
    assert pinned["labels"] == [{"label": "ham", "score": 1.0, "name": "wanted mail"}]
    assert pinned["unknown"] == 0.0
    assert pinned["explain"]["distance"] == 0.0
    assert pinned["explain"]["head"]["spam"] > 0.5
    assert set(after["version"]["policies"]) == {"kalman_head", "corrections"}
    assert [one["labels"] for one in after["predictions"][1:]] == [one["labels"] for one in before["predictions"][1:]]
    mail.send([correction(None)])
    assert ask(mail, WRONG)["predictions"][0] == first


def test_who_corrected_is_erased_with_what_they_pinned_and_whom_they_overruled_counts_again(
    mail: EmbeddedService,
) -> None:
    mail.send([correction("press", user_id="bob"), correction("ham", user_id="ann")])
    mail.send([correction("art", "an opera", user_id="ann")])
    assert (best(mail, WRONG), best(mail, "an opera")) == ("ham", "art")
    erasure = mail.client.post("/v1/erasures", json={"user_id": "ann"}).json()["erasure_id"]
    found = ended_erasure(mail.client, erasure)
    assert {one["policy"]: one["method"] for one in found["policies"]} == {
        "corrections@1": "rebuild",
        "kalman_head@1": "exact",
    }
    assert not any(one["residue"] for one in found["stores"])
    assert best(mail, WRONG) == "press"
    assert best(mail, "an opera") != "art"


@pytest.mark.parametrize(
    ("change", "says"),
    [({"target": None}, "come together"), ({"head": None}, "come together"), ({"target": {}}, "exactly one")],
)
def test_half_a_correction_is_refused(mail: EmbeddedService, change: dict[str, Any], says: str) -> None:
    type_, data = correction("ham")
    event = {"specversion": "1.0", "id": "half", "source": "t", "type": type_, "data": data | change}
    refused = mail.client.post("/v1/events", json=event)
    assert refused.status_code == 422
    assert says in refused.text
