"""API keys: SHA-256 of what the client sends, compared in constant time with the configured ones."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

from streamfold.core.errors import ConfigError
from streamfold.core.settings import ServeSettings
from streamfold.pipelines.serve.problems import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who asks: a workspace, what is allowed, and a name for the audit trail."""

    workspace: str
    scopes: frozenset[str]
    name: str


LOCAL = Principal(workspace="default", scopes=frozenset(("ingest", "query", "admin")), name="local")
"""Whoever reaches a server without keys, which listens on loopback only."""


class Keys:
    """The configured keys."""

    def __init__(self, settings: ServeSettings) -> None:
        self._keys = settings.keys

    def workspaces(self) -> tuple[str, ...]:
        """Return the workspaces that this server answers for."""
        return tuple(sorted({key.workspace for key in self._keys})) or (LOCAL.workspace,)

    def principal(self, headers: Mapping[str, str]) -> Principal:
        """Tell who asks; ``X-Workspace`` may only repeat the key's own workspace (others are not found)."""
        found = self._find(headers) if self._keys else LOCAL
        named = headers.get("x-workspace")
        if named is not None and named != found.workspace:
            raise Problem("not-found", "no such workspace for this key")
        return found

    def _find(self, headers: Mapping[str, str]) -> Principal:
        sent = headers.get("x-api-key")
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and token.strip():
            sent = token.strip()
        if not sent:
            raise _unauthenticated("send a key as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'")
        digest = hashlib.sha256(sent.encode("utf-8", "surrogateescape")).hexdigest()
        match = None
        for key in self._keys:  # all of them, so that the time taken does not tell which one is near
            if hmac.compare_digest(key.sha256, digest):
                match = key
        if match is None:
            raise _unauthenticated("the key is not known")
        return Principal(workspace=match.workspace, scopes=frozenset(match.scopes), name=f"key:{match.sha256[:8]}")


def _unauthenticated(detail: str) -> Problem:
    return Problem("unauthenticated", detail, headers={"WWW-Authenticate": "Bearer"})


def require(principal: Principal, scope: str) -> None:
    """Refuse a key that lacks a scope."""
    if scope not in principal.scopes:
        raise Problem(
            "scope-missing", f"this needs the scope '{scope}'; the key has {', '.join(sorted(principal.scopes))}"
        )


def check_binding(settings: ServeSettings) -> None:
    """Refuse to listen beyond loopback without keys: whoever reached the port could read and write everything."""
    if settings.keys or _is_loopback(settings.host):
        return
    raise ConfigError(
        f"serve.host is {settings.host!r} and no key is configured: without keys the server listens on loopback only. "
        "Add [[serve.keys]] with sha256 = <SHA-256 of the key>, or set serve.host to 127.0.0.1"
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
