"""Applying a ``*.patched`` value to the stored one (RFC 7396, JSON merge patch)."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from msgspec import UNSET

S = TypeVar("S", bound=msgspec.Struct)


def patched(base: S, patch: msgspec.Struct) -> S:
    """Return ``base`` (an upserted value) with a patch applied as RFC 7396 says; maps merge one level deep.

    Examples
    --------
    >>> from streamfold.core.events.types import UserPatched, UserUpserted
    >>> old = UserUpserted(user_id="u", properties={"age": 3, "city": "Rome"})
    >>> patched(old, UserPatched(user_id="u", properties={"age": None})).properties
    {'city': 'Rome'}
    """
    changes: dict[str, Any] = {}
    defaults = {field.name: field.default for field in msgspec.structs.fields(base)}
    for name in patch.__struct_fields__:
        value = getattr(patch, name)
        if value is UNSET:
            continue
        if value is None:
            value = defaults[name]
        elif isinstance(value, dict):
            merged = {**(getattr(base, name) or {}), **value}
            value = {key: item for key, item in merged.items() if item is not None}
        changes[name] = value
    return msgspec.structs.replace(base, **changes)
