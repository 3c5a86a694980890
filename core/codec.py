"""Rows and arrays as bytes, without pickle: msgpack, with numpy arrays as an extension type.

Used for changes in the feed, prepared values and backend results. Struct and dataclass types decode back to
themselves when the type is given; arrays keep dtype and shape and are read-only views of the bytes.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import msgspec
import numpy as np

_ARRAY = 1


def _enc_hook(value: object) -> object:
    if isinstance(value, np.ndarray):
        head = msgspec.msgpack.encode((value.dtype.str, value.shape))
        body = np.ascontiguousarray(value).tobytes()
        return msgspec.msgpack.Ext(_ARRAY, len(head).to_bytes(2, "little") + head + body)
    if isinstance(value, np.generic):
        return value.item()
    raise NotImplementedError(f"{type(value).__name__} has no stored form: use numbers, str, bytes, arrays or Structs")


def _ext_hook(code: int, data: memoryview) -> object:
    if code != _ARRAY:
        raise ValueError(f"unknown extension type {code} in stored bytes")
    n = int.from_bytes(data[:2], "little")
    dtype, shape = msgspec.msgpack.decode(data[2 : 2 + n])
    return np.frombuffer(data, dtype=np.dtype(dtype), offset=2 + n).reshape(shape)


def _dec_hook(kind: type, value: Any) -> Any:
    if kind is np.ndarray and isinstance(value, np.ndarray):
        return value
    raise NotImplementedError(f"cannot decode to {kind!r}")


_encoder = msgspec.msgpack.Encoder(enc_hook=_enc_hook)


@lru_cache(maxsize=512)
def _decoder(kind: Any) -> msgspec.msgpack.Decoder[Any]:
    return msgspec.msgpack.Decoder(kind, ext_hook=_ext_hook, dec_hook=_dec_hook)


def pack(value: object) -> bytes:
    """Encode a value to bytes; raises ``NotImplementedError`` (a TypeError to users) for types without a form."""
    return _encoder.encode(value)


def unpack(data: bytes | memoryview, kind: Any = Any) -> Any:
    """Decode bytes written by :func:`pack` into ``kind``; raises ``msgspec.ValidationError`` on a mismatch."""
    return _decoder(kind).decode(data)
