"""The client of chat completions against a server that fails as real ones do."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from streamfold.core import BackendUnavailable, ConfigError, InvalidAnswer, Usage
from streamfold.core.testing.model_server import ModelServer
from streamfold.plugins.llm._client import Client, Connection

ASKED = [{"role": "system", "content": "s"}, {"role": "user", "content": "hello there"}]


@pytest.fixture
def server() -> Iterator[ModelServer]:
    with ModelServer(lambda messages: "one two three") as made:
        yield made
    while _MADE:
        _MADE.pop().close()


_MADE: list[Client] = []


def test_servers_differ_in_what_they_take(server: ModelServer) -> None:
    client = Client(Connection(base_url=server.url), "m", options={"seed": 1}, omit=["temperature", "stream_options"])
    client.ask(ASKED, lambda usage: None, temperature=0)
    list(client.stream(ASKED, lambda usage: None, max_tokens=5))
    client.close()
    assert [sorted(body) for body in server.requests] == [
        ["messages", "model", "seed"],
        ["max_tokens", "messages", "model", "seed", "stream"],
    ]


class Asking:
    """A client that notes pauses instead of sleeping, and what it spent."""

    def __init__(self, server: ModelServer, **how: Any) -> None:
        self.pauses: list[float] = []
        self.spent: list[Usage] = []
        self.client = Client(Connection(base_url=server.url, **how), "m", sleep=self.pauses.append)
        _MADE.append(self.client)

    def ask(self) -> str:
        return self.client.ask(ASKED, self.spent.append, temperature=0).text

    def stream(self) -> Iterator[str]:
        return self.client.stream(ASKED, self.spent.append)


def test_an_answer_comes_with_what_it_cost(server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    asking = Asking(server)
    assert asking.ask() == "one two three"
    assert server.requests[0]["model"] == "m"
    assert server.requests[0]["messages"] == ASKED
    assert server.headers[0]["authorization"] == "Bearer sk-very-secret"
    assert asking.spent == [Usage(tokens_in=len(str(ASKED).replace("'", '"')) // 4, tokens_out=3)]


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 500},
        {"status": 503},
        {"cut": 40},
        {"cut": 0},
        {"status": 408},
    ],
)
def test_what_fails_once_is_asked_again(server: ModelServer, fault: dict[str, Any]) -> None:
    server.faults.extend([fault, fault])
    asking = Asking(server, backoff_s=0.5)
    assert asking.ask() == "one two three"
    assert asking.pauses == [0.5, 1.0]
    assert len(asking.spent) == 1


def test_a_slow_server_is_given_up_and_asked_again(server: ModelServer) -> None:
    server.faults.append({"delay_s": 3})
    asking = Asking(server, timeout_s=0.3)
    assert asking.ask() == "one two three"
    assert len(asking.pauses) == 1


def test_retry_after_is_obeyed_and_a_long_one_is_passed_on(server: ModelServer) -> None:
    server.faults.append({"status": 429, "retry_after": 7})
    asking = Asking(server)
    assert asking.ask() == "one two three"
    assert asking.pauses == [7.0]
    server.faults.append({"status": 429, "retry_after": 900})
    with pytest.raises(BackendUnavailable) as caught:
        asking.ask()
    assert caught.value.retry_after_s == 900
    assert asking.pauses == [7.0], "not waited for"


def test_a_refused_request_is_not_repeated(server: ModelServer) -> None:
    server.faults.append({"status": 400, "message": "too long"})
    asking = Asking(server)
    with pytest.raises(InvalidAnswer, match="too long"):
        asking.ask()
    assert len(server.requests) == 1


def test_a_wrong_key_is_said_without_showing_it(
    server: ModelServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    caplog.set_level(logging.DEBUG)
    server.faults.extend([{"status": 500}, {"status": 401, "message": "bad key sk-very-secret"}])
    with pytest.raises(BackendUnavailable, match="MY_KEY") as caught:
        Asking(server, api_key_env="MY_KEY").ask()
    assert "sk-very-secret" not in str(caught.value)
    assert "sk-very-secret" not in caplog.text
    client = Client(Connection(base_url="http://me:sk-very-secret@127.0.0.1:9/v1", retries=0), "m")
    with pytest.raises(BackendUnavailable) as caught:
        client.ask(ASKED, lambda usage: None)
    client.close()
    assert "sk-very-secret" not in str(caught.value)


def test_after_failures_in_a_row_nothing_is_sent_until_one_request_tries(server: ModelServer) -> None:
    server.always = lambda body: {"status": 500}
    asking = Asking(server, retries=0, breaker_failures=2, breaker_s=0.3)
    for _ in range(2):
        with pytest.raises(BackendUnavailable, match="500"):
            asking.ask()
    with pytest.raises(BackendUnavailable, match="in a row") as caught:
        asking.ask()
    assert len(server.requests) == 2, "the third was not sent"
    server.always = lambda body: None
    asking.client._open_until -= caught.value.retry_after_s  # as if so long had passed
    assert asking.ask() == "one two three"
    assert asking.ask() == "one two three"


def test_no_more_than_so_many_requests_run_at_a_time(server: ModelServer) -> None:
    server.always = lambda body: {"delay_s": 0.1}
    asking = Asking(server, concurrency=2)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: asking.ask(), range(8))) == {"one two three"}
    assert server.most_at_once == 2


def test_an_answer_streams_and_is_paid_for(server: ModelServer) -> None:
    asking = Asking(server)
    assert list(asking.stream()) == ["one ", "two ", "three"]
    assert [usage.tokens_out for usage in asking.spent] == [3]


def test_a_stream_that_has_not_begun_is_repeated_and_half_a_stream_is_an_error(server: ModelServer) -> None:
    server.faults.extend([{"status": 500}, {"pieces": 0}])
    asking = Asking(server)
    assert "".join(asking.stream()) == "one two three"
    server.faults.append({"pieces": 2})
    half = asking.stream()
    assert [next(half), next(half)] == ["one ", "two "]
    with pytest.raises(BackendUnavailable, match="broke off"):
        next(half)
    assert len(asking.spent) == 2, "half an answer is paid for, too"


def test_a_stream_that_nobody_reads_to_its_end_frees_its_place(server: ModelServer) -> None:
    asking = Asking(server, concurrency=1)
    stream = asking.stream()
    next(stream)
    stream.close()  # type: ignore[attr-defined]  # a generator
    assert asking.ask() == "one two three"


def test_a_server_that_is_not_there_is_unavailable() -> None:
    client = Client(Connection(base_url="http://127.0.0.1:9/v1", retries=1), "m", sleep=lambda s: None)
    with pytest.raises(BackendUnavailable, match="127"):
        client.ask(ASKED, lambda usage: None)
    client.close()


def test_closing_ends_the_wait_for_another_try(server: ModelServer) -> None:
    server.always = lambda body: {"status": 500}
    client = Client(Connection(base_url=server.url, backoff_s=25.0), "m")
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.ask, ASKED, lambda usage: None)
        while not server.requests:
            pass
        client.close()
        with pytest.raises(BackendUnavailable):
            asked.result(20)
    with pytest.raises(BackendUnavailable, match="closed"):
        client.ask(ASKED, lambda usage: None)


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="base_url"):
        Connection(base_url="localhost:1")
    with pytest.raises(ConfigError, match="concurrency"):
        Connection(base_url="http://x", concurrency=0)
