"""The HTTP client of the commands: the contract's problems as exceptions, and retries that are safe.

Sending is retried on 429, 503 and lost connections: events carry ids, so what arrived twice is counted as a duplicate.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from streamfold.pipelines.cli.state import FAILED, TIMED_OUT, UNREACHABLE, CliError

T = TypeVar("T")
READ_TIMEOUT_S = 60.0
FIRST_BACKOFF_S, LAST_BACKOFF_S = 0.2, 8.0
_POLL_FIRST_S, _POLL_LAST_S = 0.05, 1.0
_TIMED_OUT_CODES = frozenset(("position-not-reached", "too-stale"))


class Unreachable(CliError):
    """Nobody answers at the address, or the answer was lost on the way."""

    def __init__(self, url: str, error: Exception, *, timed_out: bool = False) -> None:
        what = "did not answer in time" if timed_out else "cannot be reached"
        detail = str(error) or type(error).__name__
        hint = "" if timed_out else "; start one with `streamfold serve`, or name another with --url"
        super().__init__(f"{url} {what}: {detail}{hint}", TIMED_OUT if timed_out else UNREACHABLE)


class Problem(CliError):
    """The service answered with a problem (RFC 9457)."""

    def __init__(self, response: httpx.Response) -> None:
        self.status = response.status_code
        body = _json_or_none(response)
        problem: Mapping[str, Any] = body if isinstance(body, dict) else {}
        self.code = str(problem.get("code") or f"http-{self.status}")
        self.detail = str(
            problem.get("detail") or problem.get("title") or response.text[:300] or response.reason_phrase
        )
        self.errors = [e for e in problem.get("errors") or () if isinstance(e, dict)]
        self.gate = [rule for rule in problem.get("gate") or () if isinstance(rule, dict)]
        """The rules of a gate that refused."""
        self.retry_after_s = _seconds(response.headers.get("retry-after"))
        lines = [f"{self.code}: {self.detail}"]
        more = [e for e in self.errors if str(e.get("message", "")) != self.detail]  # one error alone is the detail
        lines += [f"  {e.get('pointer', '')}: {e.get('message', '')}" for e in more[:20]]
        if request_id := problem.get("request_id") or response.headers.get("x-request-id"):
            lines.append(f"  request {request_id}")
        exit_code = TIMED_OUT if self.code in _TIMED_OUT_CODES else FAILED
        super().__init__("\n".join(lines), exit_code, body=dict(problem) or None)

    @property
    def may_pass(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status in (429, 502, 503, 504)


class Client:
    """A service by its URL. Methods return decoded bodies, or raise ``Unreachable`` or ``Problem``."""

    def __init__(
        self,
        url: str,
        *,
        workspace: str = "",
        key: str = "",
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        headers = {"Accept": "application/json"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        if workspace:
            headers["X-Workspace"] = workspace
        self.url = url.rstrip("/")
        self._sleep = sleep
        try:
            self._http = httpx.Client(
                base_url=self.url,
                headers=headers,
                timeout=httpx.Timeout(READ_TIMEOUT_S, connect=5.0),
                transport=transport,
                trust_env=False,  # a proxy of the environment must not stand between a shell and its own host
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise CliError(f"--url {url!r} is no URL: {error}", 2) from error

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send one request; a status of 400 and above raises ``Problem``."""
        try:
            response = self._http.request(method, path, **options)
        except httpx.TimeoutException as error:
            raise Unreachable(self.url, error, timed_out=not isinstance(error, httpx.ConnectTimeout)) from error
        except (httpx.TransportError, httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise Unreachable(self.url, error) from error
        if response.status_code >= 400:
            raise Problem(response)
        return response

    def get(self, path: str, **params: Any) -> Any:
        return _body(self.request("GET", path, params=_given(params)))

    def post(self, path: str, body: Mapping[str, Any] | None = None, **params: Any) -> Any:
        return _body(self.request("POST", path, json=dict(body or {}), params=_given(params)))

    def put(self, path: str, body: Mapping[str, Any], **params: Any) -> Any:
        return _body(self.request("PUT", path, json=dict(body), params=_given(params)))

    def delete(self, path: str, **params: Any) -> Any:
        return _body(self.request("DELETE", path, params=_given(params)))

    # -- sending ------------------------------------------------------------------------------------------------------
    def send_lines(
        self,
        lines: list[bytes],
        *,
        wait_ms: int = 0,
        retry_for_s: float = 60.0,
        away_for_s: float | None = None,
        on_retry: Callable[[str], None] = lambda reason: None,
    ) -> Mapping[str, Any]:
        """Send structured events, one JSON a line, until they are taken or ``retry_for_s`` have passed in vain.

        Who cannot be reached at all is tried for ``away_for_s``, if it is given.

        A batch of which every event was refused is an answer like any other: its body is returned.
        """
        params: dict[str, Any] = {"wait": "visible", "wait_ms": wait_ms} if wait_ms else {}
        options = {"content": b"\n".join(lines), "headers": {"Content-Type": "application/x-ndjson"}, "params": params}

        def send() -> Mapping[str, Any]:
            try:
                body = _body(self.request("POST", "/v1/events", **options))
            except Problem as problem:
                if problem.status == 422 and problem.body and "results" in problem.body:
                    return problem.body
                raise
            return body if isinstance(body, dict) else {}

        return self._patiently(send, retry_for_s, on_retry, away_for_s)

    def get_patiently(self, path: str, *, retry_for_s: float = 60.0, **params: Any) -> Any:
        """Read one of many: what may pass is waited for."""
        return self._patiently(lambda: self.get(path, **params), retry_for_s)

    def _patiently(
        self,
        ask: Callable[[], T],
        retry_for_s: float,
        on_retry: Callable[[str], None] = lambda reason: None,
        away_for_s: float | None = None,
    ) -> T:
        give_up = time.monotonic() + retry_for_s
        come_back = give_up if away_for_s is None else time.monotonic() + away_for_s
        backoff_s = FIRST_BACKOFF_S
        while True:
            try:
                return ask()
            except Problem as problem:
                if not problem.may_pass or time.monotonic() > give_up:
                    raise
                on_retry(problem.code)
                pause_s = problem.retry_after_s if problem.retry_after_s is not None else backoff_s
            except Unreachable as error:
                if time.monotonic() >= come_back:
                    raise
                on_retry(str(error).partition(";")[0])
                pause_s = backoff_s
            self._sleep(min(pause_s, LAST_BACKOFF_S * 4))
            backoff_s = min(backoff_s * 2, LAST_BACKOFF_S)

    def has_graph(self) -> bool:
        """Whether a policy here keeps entities and relations."""
        try:
            self.get("/v1/entities", limit=1)
        except Problem as problem:
            if problem.code != "not-found":
                raise
            return False
        return True

    # -- jobs and pages -----------------------------------------------------------------------------------------------
    def wait_job(
        self, job_id: str, *, timeout_s: float, progress: Callable[[float], None] = lambda done: None
    ) -> Mapping[str, Any]:
        """Follow a job to its end; a failed one raises, one that takes too long is ``TIMED_OUT`` (it goes on)."""
        end = time.monotonic() + timeout_s
        pause_s = _POLL_FIRST_S
        while True:
            job = self.get(f"/v1/jobs/{segment(job_id)}")
            progress(float(job.get("progress") or 0))
            if job["state"] == "done":
                return dict(job)
            if job["state"] in ("failed", "cancelled"):
                raise CliError(f"job {job_id} {job['state']}: {job.get('error') or 'no reason given'}", body=job)
            if time.monotonic() > end:
                raise CliError(f"job {job_id} is still {job['state']} after {timeout_s:g} s", TIMED_OUT, body=job)
            self._sleep(pause_s)
            pause_s = min(pause_s * 1.5, _POLL_LAST_S)

    def pages(self, path: str, *, at_most: int, page_size: int = 1000, **params: Any) -> Iterator[Any]:
        """Go through the items of a paged list."""
        left, cursor = at_most, None
        while left > 0:
            page = self.get(path, limit=min(left, page_size), cursor=cursor, **params)
            yield from page["items"][:left]
            left -= len(page["items"])
            cursor = page.get("next_cursor")
            if not cursor:
                return


def segment(text: str) -> str:
    """Percent-encode an id for a path."""
    return quote(text, safe="")


def _given(params: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what was not given; a trailing underscore keeps Python's own words apart (``from_``)."""
    return {name.rstrip("_"): value for name, value in params.items() if value is not None and value != ""}


def _body(response: httpx.Response) -> Any:
    if not response.content:
        return {}
    body = _json_or_none(response)
    if body is None:
        raise CliError(f"{response.url} answered {response.status_code} with something that is not JSON")
    return body


def _json_or_none(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return None


def _seconds(text: str | None) -> float | None:
    try:
        return max(float(text), 0.0) if text else None
    except ValueError:
        return None
