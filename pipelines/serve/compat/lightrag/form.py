"""Forms: the two encodings of browsers, as far as LightRAG's clients use them."""

from __future__ import annotations

from dataclasses import dataclass
from email.message import Message
from urllib.parse import parse_qsl

from streamfold.pipelines.serve.call import Call
from streamfold.pipelines.serve.compat.lightrag.dialect import MISSING
from streamfold.pipelines.serve.problems import Problem, at

_END = b"\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field of a form; a file has a name of its own."""

    name: str
    value: bytes
    filename: str | None = None


async def read_form(call: Call) -> dict[str, Field]:
    """Read a body in ``multipart/form-data`` or ``application/x-www-form-urlencoded``; of equal names the first."""
    content_type = call.request.headers.get("content-type", "")
    head = Message()
    head["content-type"] = content_type
    media, boundary = head.get_content_type(), head.get_boundary()
    body = await call.body()
    if media == "multipart/form-data" and boundary:
        fields = _parts(body, boundary.encode("utf-8", "surrogateescape"))
    elif media == "application/x-www-form-urlencoded":
        pairs = parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=100)
        fields = [Field(name=name, value=value.encode()) for name, value in pairs]
    else:
        raise Problem("unsupported-media-type", f"send a form, not '{content_type[:80]}'")
    found: dict[str, Field] = {}
    for field in fields:
        found.setdefault(field.name, field)
    return found


def required(form: dict[str, Field], name: str) -> Field:
    """Return a field that has to be there."""
    if name not in form:
        raise at(f"/{name}", "invalid-value", MISSING)
    return form[name]


def _parts(body: bytes, boundary: bytes) -> list[Field]:
    """Split at ``CRLF--boundary``; what stands before the first and after the last is no part (RFC 2046)."""
    fields: list[Field] = []
    for part in (_END + body).split(_END + b"--" + boundary)[1:]:
        if part.startswith(b"--"):
            return fields
        head, blank, value = part.partition(_END + _END)
        disposition = Message()
        for line in head.decode("utf-8", "replace").split("\r\n"):
            name, _, text = line.partition(":")
            if name.strip().lower() == "content-disposition":
                disposition["content-disposition"] = text.strip()
        named = disposition.get_param("name", header="content-disposition")
        if not blank or not isinstance(named, str):
            raise Problem("malformed", "a part of the form has no name")
        fields.append(Field(name=named, value=value, filename=disposition.get_filename()))
    raise Problem("malformed", "the form ends before its last boundary")
