"""What every route gets (``Call``), how a route is declared (``Endpoint``), and reading of requests.

Routes parse by hand through these helpers and not through FastAPI's parameter machinery: events come at thousands a
second, and every refusal has to be a problem that names the nearest valid field.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote_to_bytes

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from streamfold.core.clock import to_rfc3339
from streamfold.core.errors import InvalidEvent, nearest
from streamfold.core.events import check_text
from streamfold.core.events.accept import is_json
from streamfold.core.events.problems import DECODING_ERRORS
from streamfold.core.events.problems import problem as explain
from streamfold.pipelines.serve.auth import Principal
from streamfold.pipelines.serve.fair import FairPool
from streamfold.pipelines.serve.problems import Problem, at, of_invalid

if TYPE_CHECKING:
    from streamfold.core.views import WorkspaceView
    from streamfold.pipelines.serve.service import Service

T = TypeVar("T")
S = TypeVar("S", bound=msgspec.Struct)
_encode = msgspec.json.Encoder().encode
READ_PARAMS = ("min_position", "wait_ms", "max_age_ms")
WRITE_PARAMS = ("wait", "wait_ms")
PAGE_PARAMS = ("limit", "cursor")


@dataclass(slots=True)
class Call:
    """One request, who makes it, and the service that answers it."""

    request: Request
    service: Service
    principal: Principal
    query: Mapping[str, str]
    path: Mapping[str, str]
    log: dict[str, Any] = field(default_factory=dict)
    """What the access log says beside method, path and status (event ids, positions)."""

    @property
    def workspace(self) -> str:
        return self.principal.workspace

    @property
    def view(self) -> WorkspaceView:
        return self.service.view(self.principal.workspace)

    async def in_thread(self, pool: FairPool, work: Callable[..., T], *args: Any) -> T:
        return await asyncio.wrap_future(pool.submit(self.workspace, work, *args))

    async def ask(self, work: Callable[..., T], *args: Any) -> T:
        """Run a read that may block (locks, encoder, ledger) in the query threads."""
        return await self.in_thread(self.service.query_pool, work, *args)

    # -- query parameters -------------------------------------------------------------------------
    def integer(self, name: str, default: int, *, least: int, most: int) -> int:
        value = self.query.get(name)
        if value is None:
            return default
        if not (value.removeprefix("-").isascii() and value.removeprefix("-").isdecimal() and len(value) < 20):
            raise at(f"/{name}", "invalid-value", f"{name} must be an integer, not {value[:40]!r}")
        number = int(value)
        if not least <= number <= most:
            raise at(f"/{name}", "invalid-value", f"{name} is {number}: it must be in {least}..{most}")
        return number

    def real(self, name: str) -> float | None:
        value = self.query.get(name)
        if value is None:
            return None
        try:
            return msgspec.convert(value, float, strict=False)
        except msgspec.ValidationError:
            raise at(f"/{name}", "invalid-value", f"{name} must be a number, not {value[:40]!r}") from None

    def choice(self, name: str, valid: tuple[str, ...]) -> str:
        value = self.query.get(name, valid[0])
        if value not in valid:
            raise at(f"/{name}", "invalid-value", f"{name} is {value[:40]!r}{nearest(value[:64], valid)}")
        return value

    def id(self, name: str = "id") -> str:
        """Return an identifier of the path, strictly decoded."""
        value = self.path[name]
        raw: bytes | None = self.request.scope.get("raw_path")
        try:
            if raw is not None:
                unquote_to_bytes(raw).decode("utf-8")
            check_text(value, f"/{name}")
        except UnicodeDecodeError:
            raise at(f"/{name}", "invalid-value", "the id in the path is not percent-encoded UTF-8") from None
        except InvalidEvent as error:
            raise of_invalid(error) from error
        return value

    # -- bodies -----------------------------------------------------------------------------------
    async def body(self) -> bytes:
        """Read the body; past the limit it is refused without reading the rest."""
        limit = self.service.settings.serve.max_body_bytes
        length = self.request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > limit:
            raise _too_large(limit, length)
        parts, size = [], 0
        try:
            async for part in self.request.stream():
                size += len(part)
                if size > limit:
                    raise _too_large(limit, f"more than {limit}")
                parts.append(part)
        except ClientDisconnect:
            raise Problem("malformed", "the client closed the connection before the body was complete") from None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def json_body(self) -> bytes:
        """Read a body that must be JSON."""
        content_type = self.request.headers.get("content-type", "application/json")
        media, _, parameters = content_type.partition(";")
        charset = parameters.lower().partition("charset=")[2].partition(";")[0].strip().strip('"')
        if not is_json(media) or charset not in ("", "utf-8", "utf8", "us-ascii"):
            raise Problem("unsupported-media-type", f"send application/json in UTF-8, not '{content_type[:80]}'")
        return await self.body()

    async def struct(self, kind: type[S], *, default: bytes = b"") -> S:
        """Read a JSON object with the fields of a struct."""
        return decode(await self.json_body() or default, kind)

    # -- pages ------------------------------------------------------------------------------------
    def limit(self) -> int:
        return self.integer("limit", 50, least=1, most=1000)

    def cursor(self, kind: type[T], first: T) -> T:
        """Return the place where the page starts."""
        sent = self.query.get("cursor")
        if sent is None:
            return first
        try:
            place = msgspec.json.decode(base64.urlsafe_b64decode(sent.encode() + b"=" * (-len(sent) % 4)), type=kind)
            if isinstance(place, int) and not 0 <= place < 2**63:
                raise ValueError("no position of ours")
            return place
        except (*DECODING_ERRORS, binascii.Error):
            raise Problem("bad-cursor", "pass next_cursor of the page before unchanged") from None


def _too_large(limit: int, length: str) -> Problem:
    return Problem("too-large", f"the body has {length} bytes: at most {limit} are allowed; send smaller batches")


def decode(body: bytes, kind: type[S]) -> S:
    """Decode a request body; problems name the field and the nearest valid one."""
    try:
        return msgspec.json.decode(body, type=kind)
    except DECODING_ERRORS as error:
        invalid = explain(error, kind)
        code = "invalid-value" if invalid.code == "invalid-event" else invalid.code
        raise of_invalid(
            InvalidEvent(code, invalid.detail.replace("the event", "the request"), invalid.pointer)
        ) from error


def page(items: list[dict[str, Any]], place: Any) -> dict[str, Any]:
    """Make a page; ``place``: where the next one starts, None at the end."""
    cursor = None if place is None else base64.urlsafe_b64encode(_encode(place)).rstrip(b"=").decode()
    return {"items": items, "next_cursor": cursor}


def answer(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Write JSON."""
    return Response(_encode(value), status, headers=headers, media_type="application/json")


def rfc3339(us: int | None) -> str | None:
    return to_rfc3339(us) if us else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A route: what it takes, who may call it, and how the OpenAPI document shows it."""

    method: str
    path: str
    run: Callable[[Call], Awaitable[Response]]
    summary: str
    scope: str | None = "query"
    """None: no key is asked for."""
    params: tuple[str, ...] = ()
    body: type[msgspec.Struct] | None = None
    media: tuple[str, ...] = ("application/json",)
    example: Any = None
    """Of the request."""
    returns: Any = None
    """Example of the response."""
    stream: str = ""
    """Example of the response as server-sent events, where it can be asked for."""
    status: int = 200
    tag: str = "operate"
    errors: tuple[int, ...] = ()
    refuse: Callable[[Problem, str], Response] | None = None
    """A route of another service's: writes refusals as that one does; unknown query parameters are passed over."""
    view: bool = True
    """Whether it looks at the workspace's view, which is then kept open."""

    @property
    def opens(self) -> bool:
        return self.view and self.scope is not None
