"""A client of chat completions as OpenAI's API has them and everybody else serves them.

What fails is told apart by what can be done about it: ``InvalidAnswer`` concerns this one request (refused, too long),
``BackendUnavailable`` concerns all of them (no connection, rate limit, wrong key, circuit open). A request is repeated
``retries`` times with exponential backoff, or after as long as ``Retry-After`` says, if that is not too long. After
``breaker_failures`` requests in a row that failed with all their retries, nothing is sent for ``breaker_s``; then one
request tries. The key comes from the environment and is in no message and no log.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from streamfold.core import BackendUnavailable, Budget, ConfigError, InvalidAnswer, Spend, Usage

if TYPE_CHECKING:
    import httpx

log = logging.getLogger("streamfold.llm")
Messages = Sequence[Mapping[str, str]]
CHARACTERS_PER_TOKEN = 4
"""Counted so where the server does not say how many tokens it used."""
_REPEATED = frozenset((408, 409, 425, 429, 500, 502, 503, 504, 529))
_REFUSED = frozenset((400, 413, 422))
_PATIENCE_S = 30.0
"""A longer ``Retry-After`` is not waited for here: whoever asked is told."""
_MOST_BYTES = 8 * 1024 * 1024
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection(Budget):
    """How a model is reached, and what may be spent on it: none of it decides what it answers.

    Parameters
    ----------
    base_url : as ``https://api.openai.com/v1``; ``/chat/completions`` is added.
    api_key_env : the environment variable with the key; unset: none is sent.
    timeout_s : longest silence of the server.
    retries : how often a request is repeated; the first pause is ``backoff_s``, each next one twice as long.
    concurrency : requests at a time, in this process.
    breaker_failures, breaker_s : after so many failures in a row nothing is sent for so long.
    tokens_per_day … usd_per_million_out : see ``Budget``.
    """

    base_url: str
    api_key_env: str = "OPENAI_API_KEY"
    timeout_s: float = 60.0
    retries: int = 4
    backoff_s: float = 1.0
    concurrency: int = 4
    breaker_failures: int = 5
    breaker_s: float = 30.0

    def __post_init__(self) -> None:
        if not self.base_url.startswith(("http://", "https://")):
            raise ConfigError(f"llm: base_url is {self.base_url!r}: give a URL, as https://api.openai.com/v1")
        for name, least in (("concurrency", 1), ("breaker_failures", 1), ("retries", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"llm: {name} is {getattr(self, name)}: it must be at least {least}")
        if self.timeout_s <= 0:
            raise ConfigError(f"llm: timeout_s is {self.timeout_s}: it must be positive")


OPERATIONAL = tuple(one.name for one in fields(Connection))


def make(kind: type[T], what: str, config: Mapping[str, Any]) -> tuple[Connection, T]:
    """Build a connection, and ``kind`` of the rest of a settings table; ``ConfigError`` names what is wrong."""
    mine = {one.name for one in fields(kind)}  # type: ignore[arg-type]  # a dataclass
    if unknown := sorted(set(config) - mine - set(OPERATIONAL)):
        valid = ", ".join(sorted(mine | set(OPERATIONAL)))
        raise ConfigError(f"[backends.{what}] llm: unknown setting {unknown[0]!r}; valid: {valid}")
    try:
        how = msgspec.convert({k: v for k, v in config.items() if k in OPERATIONAL}, Connection, strict=False)
        return how, msgspec.convert({k: v for k, v in config.items() if k in mine}, kind, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(f"[backends.{what}] llm: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """A whole answer; ``cut``: it ended because it became too long."""

    text: str
    cut: bool


class Client:
    """Asks one model; safe to use from several threads.

    ``options`` are added to each request, members named in ``omit`` are left out: servers differ in what they take.
    """

    def __init__(
        self,
        how: Connection,
        model: str,
        *,
        options: Mapping[str, Any] | None = None,
        omit: Sequence[str] = (),
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        self.how = how
        self.model = model
        self._where = re.sub(r"//[^/@]*@", "//", how.base_url)  # as messages name it
        self._options = dict(options or {})
        self._omit = frozenset(omit)
        self._closed = threading.Event()
        self._sleep = sleep or self._closed.wait
        self._slots = threading.BoundedSemaphore(how.concurrency)
        self._lock = threading.Lock()
        self._http: httpx.Client | None = None
        self._failures = 0
        self._open_until = 0.0

    def close(self) -> None:
        """Close the connections; what waits to be repeated is given up."""
        self._closed.set()
        with self._lock:
            if self._http is not None:
                self._http.close()
                self._http = None

    # -- asking -------------------------------------------------------------------------------------------------------
    def ask(self, messages: Messages, spend: Spend, **options: Any) -> Reply:
        """Return the whole answer. Raises ``InvalidAnswer`` or ``BackendUnavailable``."""

        def once() -> Reply:
            with self._sent(messages, options) as response:
                body = _read(response)
                reply, usage = _reply(body)
            spend(usage or _guess(messages, reply.text))
            return reply

        return self._patiently(once)

    def stream(self, messages: Messages, spend: Spend, **options: Any) -> Iterator[str]:
        """Yield the answer piece by piece; only a request that has not answered at all is repeated.

        An answer that breaks off raises ``BackendUnavailable``.
        """
        options = {**options, "stream": True, "stream_options": {"include_usage": True}}
        pieces: Iterator[str | Usage] | None = None

        def begun() -> tuple[str | Usage | None, Iterator[str | Usage]]:
            nonlocal pieces
            pieces = self._pieces(messages, options)
            return next(pieces, None), pieces

        said: list[str] = []
        usage: Usage | None = None
        try:
            piece, rest = self._patiently(begun)
            while piece is not None:
                if isinstance(piece, Usage):
                    usage = piece
                else:
                    said.append(piece)
                    yield piece
                piece = next(rest, None)
        except _Failed as failed:
            self._note(failed=True)
            raise BackendUnavailable(str(failed)) from failed
        finally:
            if pieces is not None:
                pieces.close()  # type: ignore[attr-defined]  # a generator
            if said or usage:
                spend(usage or _guess(messages, "".join(said)))

    def _pieces(self, messages: Messages, options: Mapping[str, Any]) -> Iterator[str | Usage]:
        import httpx

        ended = False
        with self._sent(messages, options) as response:
            try:
                for line in response.iter_lines():
                    name, _, value = line.partition(":")
                    if name != "data":
                        continue
                    if value.strip() == "[DONE]":
                        ended = True
                        break
                    chunk = _json(value)
                    if isinstance(chunk, dict) and "error" in chunk:
                        raise _Failed(f"the model stopped: {_shown(str(chunk['error']))}")
                    if usage := _usage(chunk):
                        yield usage
                    choice = _choice(chunk)
                    ended = ended or choice.get("finish_reason") is not None
                    if isinstance(text := (choice.get("delta") or {}).get("content"), str) and text:
                        yield text
            except httpx.HTTPError as error:
                raise _Failed(f"the answer broke off: {error!r}") from error
        if not ended:
            raise _Failed("the answer broke off")

    # -- one request --------------------------------------------------------------------------------------------------
    @contextmanager
    def _sent(self, messages: Messages, options: Mapping[str, Any]) -> Iterator[httpx.Response]:
        import httpx

        body = {"model": self.model, "messages": list(messages), **options, **self._options}
        body = {name: value for name, value in body.items() if name not in self._omit}
        try:
            with (
                self._slots,
                self._opened().stream("POST", "chat/completions", json=body, headers=self._headers()) as response,
            ):
                if response.status_code != 200:
                    raise self._refusal(response)
                yield response
        except httpx.HTTPError as error:
            raise _Failed(f"{self._where}: {error!r}") from error

    def _refusal(self, response: httpx.Response) -> Exception:
        """What a status other than 200 means."""
        status = response.status_code
        try:
            detail = f"{self._where} answered {status}: {_shown(_read(response).decode('utf-8', 'replace'))}"
        except _Failed:
            detail = f"{self._where} answered {status}"
        key = self._key()
        detail = detail.replace(key, "***") if key else detail
        if status in _REPEATED:
            pause_s = _retry_after_s(response.headers.get("retry-after"))
            return _Failed(detail, retry_after_s=pause_s, suspect=status != 429)
        if status in _REFUSED:
            return InvalidAnswer(detail)
        if status in (401, 403):
            detail += f"; the key is taken from the environment variable {self.how.api_key_env}"
        return BackendUnavailable(detail, retry_after_s=60.0)

    def _opened(self) -> httpx.Client:
        import httpx

        with self._lock:
            if self._http is None:
                limits = httpx.Limits(max_connections=self.how.concurrency)
                base = self.how.base_url.rstrip("/") + "/"
                self._http = httpx.Client(base_url=base, timeout=self.how.timeout_s, limits=limits)
            return self._http

    def _key(self) -> str:
        return os.environ.get(self.how.api_key_env, "")

    def _headers(self) -> dict[str, str]:
        key = self._key()
        return {"Authorization": f"Bearer {key}"} if key else {}

    # -- patience -----------------------------------------------------------------------------------------------------
    def _patiently(self, once: Callable[[], T]) -> T:
        """Repeat what failed and may do better; count failures for the circuit breaker."""
        self._check_circuit()
        for attempt in range(self.how.retries + 1):
            try:
                done = once()
            except _Failed as failed:
                pause_s = failed.retry_after_s or self.how.backoff_s * 2**attempt
                if attempt == self.how.retries or pause_s > _PATIENCE_S or self._closed.is_set():
                    self._note(failed=True)
                    raise BackendUnavailable(str(failed), retry_after_s=pause_s, suspect=failed.suspect) from failed
                log.info("llm_repeats model=%s in_s=%.1f because=%s", self.model, pause_s, failed)
                self._sleep(pause_s)
            except (BackendUnavailable, InvalidAnswer) as error:
                self._note(failed=isinstance(error, BackendUnavailable))
                raise
            else:
                self._note(failed=False)
                return done
        raise AssertionError("unreachable")

    def _check_circuit(self) -> None:
        if self._closed.is_set():
            raise BackendUnavailable("the client is closed")
        with self._lock:
            left_s = self._open_until - time.monotonic()
            if left_s > 0:
                detail = f"{self._where} failed {self._failures} times in a row: asked again in {left_s:.0f} s"
                raise BackendUnavailable(detail, retry_after_s=left_s)
            if self._failures >= self.how.breaker_failures:  # half open: this one request tries
                self._open_until = time.monotonic() + self.how.breaker_s

    def _note(self, *, failed: bool) -> None:
        with self._lock:
            self._failures = self._failures + 1 if failed else 0
            broken = self._failures >= self.how.breaker_failures
            self._open_until = time.monotonic() + self.how.breaker_s if broken else 0.0


class _Failed(Exception):
    """A request that may do better when it is repeated."""

    def __init__(self, detail: str, *, retry_after_s: float = 0.0, suspect: bool = True) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s
        self.suspect = suspect


def _read(response: httpx.Response) -> bytes:
    """Read a body, up to a bound."""
    import httpx

    parts, size = [], 0
    try:
        for part in response.iter_bytes():
            size += len(part)
            if size > _MOST_BYTES:
                raise _Failed(f"the answer has more than {_MOST_BYTES} bytes")
            parts.append(part)
    except httpx.HTTPError as error:
        raise _Failed(f"the answer broke off: {error!r}") from error
    return b"".join(parts)


def _json(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _Failed(f"the answer is no JSON: {_shown(str(text))}") from error


def _reply(body: bytes) -> tuple[Reply, Usage | None]:
    value = _json(body)
    choice = _choice(value)
    text = (choice.get("message") or {}).get("content")
    if not isinstance(text, str):
        raise _Failed(f"the answer has no choices[0].message.content: {_shown(body.decode('utf-8', 'replace'))}")
    return Reply(text=text, cut=choice.get("finish_reason") == "length"), _usage(value)


def _choice(value: Any) -> dict[str, Any]:
    choices = value.get("choices") if isinstance(value, dict) else None
    first = choices[0] if isinstance(choices, list) and choices else None
    return first if isinstance(first, dict) else {}


def _usage(value: Any) -> Usage | None:
    found = value.get("usage") if isinstance(value, dict) else None
    if not isinstance(found, dict):
        return None
    counts = [found.get(name) for name in ("prompt_tokens", "completion_tokens")]
    given = [count if isinstance(count, int) and count >= 0 else 0 for count in counts]
    return Usage(tokens_in=given[0], tokens_out=given[1]) if any(given) else None


def _guess(messages: Messages, said: str) -> Usage:
    asked = sum(len(one["content"]) for one in messages)
    return Usage(tokens_in=-(-asked // CHARACTERS_PER_TOKEN), tokens_out=-(-len(said) // CHARACTERS_PER_TOKEN))


def _retry_after_s(value: str | None) -> float:
    """Seconds, given as a number or as a date; 0: not given."""
    if not value:
        return 0.0
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _shown(text: str) -> str:
    return " ".join(text.split())[:200]
