"""Problem details (RFC 9457): the one shape of every error response."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from starlette.responses import Response

from streamfold.core.errors import InvalidEvent

STATUS = {
    "malformed": 400,
    "bad-cursor": 400,
    "unauthenticated": 401,
    "scope-missing": 403,
    "not-found": 404,
    "method-not-allowed": 405,
    "event-id-reused": 409,
    "policy-conflict": 409,
    "not-ready": 409,
    "gate-failed": 409,
    "too-large": 413,
    "unsupported-media-type": 415,
    "invalid-event": 422,
    "invalid-value": 422,
    "unknown-field": 422,
    "unknown-type": 422,
    "rate-limited": 429,
    "backpressure": 429,
    "internal": 500,
    "store-unavailable": 503,
    "generator-unavailable": 503,
    "position-not-reached": 503,
    "too-stale": 503,
}
TITLES = {
    "malformed": "The request cannot be parsed",
    "bad-cursor": "The cursor is not one of ours",
    "unauthenticated": "A valid key is needed",
    "scope-missing": "The key lacks the scope",
    "not-found": "Not found",
    "method-not-allowed": "This path has no such method",
    "event-id-reused": "The event's id was used with another content",
    "policy-conflict": "The policy does not allow this now",
    "not-ready": "Not ready",
    "gate-failed": "The quality gate failed",
    "too-large": "The request is too large",
    "unsupported-media-type": "The content type is not supported",
    "invalid-event": "The event is not valid",
    "invalid-value": "A value is not valid",
    "unknown-field": "A field is not known",
    "unknown-type": "The event type is not known",
    "rate-limited": "Too many requests",
    "backpressure": "Intake is held back",
    "internal": "The server failed",
    "store-unavailable": "The store cannot be reached",
    "generator-unavailable": "The language model cannot answer",
    "position-not-reached": "The position is not visible yet",
    "too-stale": "The view is too old",
}
_encode = msgspec.json.Encoder().encode


class Problem(Exception):
    """Raised anywhere below a route: becomes the response.

    Parameters
    ----------
    code : the contract's problem code; it decides the status.
    detail : what is wrong, where, and what to do.
    errors : single causes: ``pointer``, ``code``, ``message`` and, in a batch, ``index``.
    headers : further response headers (``Retry-After``).
    extra : further members of the body (``position``).
    """

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        errors: Sequence[Mapping[str, Any]] = (),
        headers: Mapping[str, str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.detail = detail
        self.errors = list(errors)
        self.headers = dict(headers or {})
        self.extra = dict(extra or {})

    @property
    def status(self) -> int:
        return STATUS.get(self.code, 422)


def at(pointer: str, code: str, detail: str) -> Problem:
    """Make the problem of one value of the request."""
    return Problem(code, detail, errors=[{"pointer": pointer, "code": code, "message": detail}])


def of_invalid(error: InvalidEvent, *, strip: str = "") -> Problem:
    """Turn a refusal of core into a problem; ``strip``: a prefix of its pointers that the request does not have."""
    return Problem(error.code, _plain(error.detail, strip), errors=[one(error, strip=strip)])


def one(error: InvalidEvent, *, index: int | None = None, strip: str = "") -> dict[str, Any]:
    """Make one member of ``errors``."""
    pointer = error.pointer.removeprefix(strip) if strip else error.pointer
    value: dict[str, Any] = {"pointer": pointer, "code": error.code, "message": _plain(error.detail, strip)}
    if index is not None:
        value["index"] = index
    return value


def _plain(detail: str, strip: str) -> str:
    if strip:
        detail = detail.replace(f"{strip}/", "/").replace(strip, "the body")
    return detail


def respond(problem: Problem, request_id: str) -> Response:
    """Write a problem."""
    body = _encode(members(problem, request_id))
    return Response(body, problem.status, headers=problem.headers, media_type="application/problem+json")


def members(problem: Problem, request_id: str) -> dict[str, Any]:
    """Return a problem as it is written."""
    return {
        "type": f"urn:streamfold:problem:{problem.code}",
        "title": TITLES.get(problem.code, problem.code),
        "status": problem.status,
        "detail": problem.detail,
        "code": problem.code,
        "request_id": request_id,
        "errors": problem.errors,
        **problem.extra,
    }


def rate_limited(detail: str, retry_after_s: float) -> Problem:
    """Make the problem of a quota that is used up; whole seconds, at most an hour."""
    return Problem("rate-limited", detail, headers={"Retry-After": str(max(1, math.ceil(min(retry_after_s, 3600))))})


def unavailable(detail: str, retry_after_s: int = 1) -> Problem:
    """Make the problem of a store that cannot be reached just now."""
    return Problem("store-unavailable", detail, headers={"Retry-After": str(retry_after_s)})
