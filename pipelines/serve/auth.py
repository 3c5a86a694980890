"""Who asks: keys of the settings and of the ledger, known by their SHA-256, compared in constant time.

A key of the ledger reads ``sf_<key id>_<secret>``: its id finds the row, its hash decides. The secret has 256 random
bits, so that a plain hash of it cannot be turned back.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from streamfold.core.errors import ConfigError
from streamfold.core.ledger.abc import ApiKey, Ledger
from streamfold.core.settings import ServeSettings
from streamfold.pipelines.serve.access import Access
from streamfold.pipelines.serve.problems import Problem

SCOPES = ("ingest", "query", "admin", "operator")
OPERATOR = "operator"
"""Every other scope, in every workspace."""
GUEST = "guest"
"""What clients of other services send where no key is asked for; it counts as none."""
_NO_HASH = "0" * 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who asks: a workspace, what is allowed, and a name for the audit trail."""

    workspace: str
    scopes: frozenset[str]
    name: str

    @property
    def is_operator(self) -> bool:
        return OPERATOR in self.scopes


LOCAL = Principal(workspace="default", scopes=frozenset(SCOPES), name="local")
"""Whoever reaches a server without keys, which listens on loopback only."""


def new_key(*, workspace: str, name: str, scopes: Sequence[str], created_by: str, now_us: int) -> tuple[ApiKey, str]:
    """Make a key: what the ledger keeps of it, and the key itself, to be shown once."""
    key_id = secrets.token_hex(6)
    key = f"sf_{key_id}_{secrets.token_urlsafe(32)}"
    kept = ApiKey(
        workspace=workspace,
        key_id=key_id,
        name=name,
        scopes=tuple(scope for scope in SCOPES if scope in scopes),
        sha256=_digest(key),
        created_by=created_by,
        created_us=now_us,
    )
    return kept, key


class Keys:
    """The configured keys, and those of the ledger."""

    def __init__(self, settings: ServeSettings, access: Access) -> None:
        self._keys = settings.keys
        self._access = access
        self._on_loopback = _is_loopback(settings.host)

    @property
    def is_open(self) -> bool:
        """Whether whoever reaches the port may do everything: on loopback, until there is a key that can make keys.

        Revoking the last one does not open it again.
        """
        return self._on_loopback and not self._keys and not self._access.has_admin

    def workspaces(self) -> tuple[str, ...]:
        """Return the workspaces whose views are opened at the start; others are opened when first asked for."""
        configured = {key.workspace for key in self._keys}
        return tuple(sorted(configured | ({LOCAL.workspace} if self.is_open else set())))

    def principal(self, headers: Mapping[str, str]) -> Principal:
        """Tell who asks, and in which workspace: its own, or for an operator the one in ``X-Workspace``."""
        sent = _sent(headers)
        found = self._find(sent) if sent else None
        if found is None:
            if not self.is_open or (sent and self._access.keys):
                hint = (
                    "the key is not known" if sent else "send a key as 'Authorization: Bearer KEY' or 'X-API-Key: KEY'"
                )
                raise Problem("unauthenticated", hint, headers={"WWW-Authenticate": "Bearer"})
            found = LOCAL
        named = headers.get("x-workspace")
        if named is None or named == found.workspace:
            return found
        if not found.is_operator or not self._access.knows(named):
            raise Problem("not-found", "no such workspace for this key")
        return replace(found, workspace=named)

    def _find(self, sent: str) -> Principal | None:
        digest = _digest(sent)
        match = None
        for key in self._keys:  # all of them, so that the time taken does not tell which one is near
            if hmac.compare_digest(key.sha256, digest):
                match = key
        if match is not None:
            return _principal(match.workspace, match.scopes, f"key:{match.sha256[:8]}")
        row = self._access.keys.get(sent.split("_", 2)[1] if sent.count("_") >= 2 else "")
        if not hmac.compare_digest(row.sha256 if row else _NO_HASH, digest) or row is None or row.revoked_us:
            return None
        return _principal(row.workspace, row.scopes, f"key:{row.key_id}")


def _principal(workspace: str, scopes: Sequence[str], name: str) -> Principal:
    every = SCOPES if OPERATOR in scopes else scopes
    return Principal(workspace=workspace, scopes=frozenset(every), name=name)


def _sent(headers: Mapping[str, str]) -> str | None:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip() not in ("", GUEST):
        return token.strip()
    return headers.get("x-api-key")


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def require(principal: Principal, scope: str) -> None:
    """Refuse a key that lacks a scope."""
    if scope not in principal.scopes:
        raise Problem(
            "scope-missing", f"this needs the scope '{scope}'; the key has {', '.join(sorted(principal.scopes))}"
        )


def check_binding(settings: ServeSettings, ledger: Ledger) -> None:
    """Refuse to listen beyond loopback without keys: whoever reached the port could read and write everything."""
    if settings.keys or _is_loopback(settings.host) or any(not key.revoked_us for key in ledger.api_keys()):
        return
    raise ConfigError(
        f"serve.host is {settings.host!r} and there is no key: without keys the server listens on loopback only. "
        "Make one with `streamfold keys create NAME --bootstrap`, add [[serve.keys]] with sha256 = <SHA-256 of a key>, "
        "or set serve.host to 127.0.0.1"
    )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
