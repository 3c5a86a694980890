"""The client: the contract's problems, retries, jobs and pages, against a scripted transport."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from streamfold.pipelines.cli.client import Client, Problem, Unreachable, segment
from streamfold.pipelines.cli.state import FAILED, TIMED_OUT, UNREACHABLE, CliError

TAKEN = {"position": 7, "accepted": 1, "duplicates": 0, "rejected": 0, "visible": False, "results": []}


class Script:
    """Answers requests in order; an exception is raised, as by a lost connection."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.slept: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def client(self, **options: Any) -> Client:
        sleep: Callable[[float], None] = self.slept.append
        return Client("http://service", transport=httpx.MockTransport(self), sleep=sleep, **options)


def problem(status: int, code: str, headers: dict[str, str] | None = None, **more: Any) -> httpx.Response:
    body = {"type": f"urn:streamfold:problem:{code}", "status": status, "code": code, "detail": "why", **more}
    return httpx.Response(status, json=body, headers=headers)


def test_problems_carry_code_detail_and_pointers() -> None:
    errors = [{"pointer": "/data/x", "code": "unknown-field", "message": "did you mean y?"}]
    with pytest.raises(Problem) as caught:
        Script(problem(422, "unknown-field", errors=errors, request_id="r1")).client().get("/v1/status")
    assert (caught.value.status, caught.value.code, caught.value.exit_code) == (422, "unknown-field", FAILED)
    assert "did you mean y?" in str(caught.value)
    assert "r1" in str(caught.value)


@pytest.mark.parametrize("code", ["position-not-reached", "too-stale"])
def test_what_was_not_reached_in_time_is_timed_out(code: str) -> None:
    with pytest.raises(Problem) as caught:
        Script(problem(503, code)).client().get("/v1/trending")
    assert caught.value.exit_code == TIMED_OUT


def test_an_answer_that_is_no_problem_document_is_still_an_error() -> None:
    with pytest.raises(Problem, match="http-502"):
        Script(httpx.Response(502, text="<html>bad gateway</html>")).client().get("/v1/status")
    with pytest.raises(CliError, match="not JSON"):
        Script(httpx.Response(200, text="hello")).client().get("/v1/status")


def test_lost_and_late_answers_are_told_apart() -> None:
    with pytest.raises(Unreachable) as lost:
        Script(httpx.ConnectError("refused")).client().get("/")
    with pytest.raises(Unreachable) as late:
        Script(httpx.ReadTimeout("late")).client().get("/")
    assert (lost.value.exit_code, late.value.exit_code) == (UNREACHABLE, TIMED_OUT)


def test_key_and_workspace_are_sent() -> None:
    script = Script(httpx.Response(200, json={}))
    script.client(key="k", workspace="w").get("/v1/status", type="", from_=3)
    [request] = script.requests
    assert (request.headers["authorization"], request.headers["x-workspace"]) == ("Bearer k", "w")
    assert request.url.query == b"from=3"


def test_a_service_that_recovers_is_waited_for_though_one_that_is_away_is_not() -> None:
    recovers = httpx.Response(503, json={"code": "store-unavailable", "detail": "the views are being recovered"})
    taken = httpx.Response(202, json={"accepted": 1, "position": 1})
    assert Script(recovers, recovers, taken).client().send_lines([b"{}"], away_for_s=0)["accepted"] == 1
    with pytest.raises(Unreachable):
        Script(httpx.ConnectError("gone"), taken).client().send_lines([b"{}"], away_for_s=0)


def test_sending_is_retried_until_it_is_taken_and_heeds_retry_after() -> None:
    script = Script(
        httpx.ConnectError("gone"),
        problem(429, "backpressure", {"Retry-After": "3"}),
        httpx.ReadError("cut"),
        problem(503, "store-unavailable"),
        httpx.Response(202, json=TAKEN),
    )
    reasons: list[str] = []
    assert script.client().send_lines([b"{}", b"{}"], on_retry=reasons.append)["accepted"] == 1
    assert len({request.content for request in script.requests}) == 1
    assert script.slept[1] == 3
    assert script.slept[0] < script.slept[2] < script.slept[3]
    assert len(reasons) == 4


def test_sending_gives_up_at_last_and_never_retries_a_refusal() -> None:
    with pytest.raises(Unreachable):
        Script(httpx.ConnectError("gone")).client().send_lines([b"{}"], retry_for_s=-1)
    with pytest.raises(Problem, match="unauthenticated"):
        Script(problem(401, "unauthenticated")).client().send_lines([b"{}"])


def test_a_batch_of_which_nothing_was_taken_is_an_answer() -> None:
    results = [{"index": 0, "status": "rejected", "problem": {"code": "unknown-type"}}]
    refused = problem(422, "invalid-event", accepted=0, rejected=1, results=results)
    assert Script(refused).client().send_lines([b"{}"])["rejected"] == 1


def test_jobs_are_followed_to_their_end() -> None:
    states = [{"job_id": "j", "state": s, "progress": p} for s, p in (("queued", 0), ("running", 0.5), ("done", 1))]
    seen: list[float] = []
    script = Script(*(httpx.Response(200, json=state) for state in states))
    assert script.client().wait_job("j", timeout_s=60, progress=seen.append)["state"] == "done"
    assert seen == [0, 0.5, 1]
    failed = {"job_id": "j", "state": "failed", "error": "disk full"}
    with pytest.raises(CliError, match="disk full"):
        Script(httpx.Response(200, json=failed)).client().wait_job("j", timeout_s=60)
    with pytest.raises(CliError) as late:
        Script(httpx.Response(200, json=states[0])).client().wait_job("j", timeout_s=-1)
    assert late.value.exit_code == TIMED_OUT


def test_pages_are_followed_by_cursor() -> None:
    script = Script(
        httpx.Response(200, json={"items": [1, 2], "next_cursor": "c"}),
        httpx.Response(200, json={"items": [3], "next_cursor": None}),
    )
    assert list(script.client().pages("/v1/events", at_most=10)) == [1, 2, 3]
    assert script.requests[1].url.params["cursor"] == "c"


def test_ids_are_encoded_in_paths() -> None:
    assert segment("a/b c?é") == "a%2Fb%20c%3F%C3%A9"
    script = Script(httpx.Response(200, json={}))
    script.client().put(f"/v1/documents/{segment('a/b')}", {"text": "x"}, wait="visible")
    assert script.requests[0].url.raw_path == b"/v1/documents/a%2Fb?wait=visible"
    assert json.loads(script.requests[0].content) == {"text": "x"}
