"""A folder of text files to events: each ``*.txt``, ``*.md``, ``*.markdown`` below it is a document.

A document's id is the file's path below the folder. The event id is a hash of path, content and the time of the last
change (ctime, which no tool sets back): an untouched file is a duplicate, and one that was changed back is news.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from streamfold.pipelines.cli.rows import Line
from streamfold.pipelines.cli.state import USAGE, CliError
from streamfold.pipelines.texts import SUFFIXES, NotText, decode_text, media_type_of, title_of

_MOST_BYTES = 12 << 20
"""An event longer than this is refused here: the service takes no request that could hold it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFile:
    """A file below the folder: its name is its path from there."""

    name: str
    path: Path
    size: int


def text_files(folder: Path) -> list[TextFile]:
    """List the text files below a folder in order of name; hidden files and folders are passed over."""
    found = []
    for here, folders, names in os.walk(folder, onerror=_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(here, name)
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                size = path.stat().st_size if path.exists() else 0
                found.append(TextFile(name=path.relative_to(folder).as_posix(), path=path, size=size))
    if not found:
        raise CliError(f"{folder}: no {', '.join(f'*{suffix}' for suffix in SUFFIXES)} below this folder", USAGE)
    return sorted(found, key=lambda file: file.name)


def read_folder(files: Sequence[TextFile], source: str) -> Iterator[Line]:
    """Make an event of each file; one that is no text is returned as a problem, not raised."""
    bytes_read = 0
    for number, file in enumerate(files, 1):
        bytes_read += file.size
        event, problem = b"", ""
        try:
            event = _event(file, source) if file.size <= _MOST_BYTES else b""
        except NotText as error:
            problem = str(error)
        except OSError as error:
            problem = f"cannot be read: {error.strerror or error}"
        except UnicodeEncodeError:
            problem = "the file's name is not UTF-8: rename it"
        if file.size > _MOST_BYTES or len(event) > _MOST_BYTES:
            event, problem = b"", f"the file is too large: {file.size} bytes"
        name = file.name.encode("utf-8", "backslashreplace").decode()
        yield Line(number=number, event=event, problem=problem, bytes_read=bytes_read, name=name)


def _event(file: TextFile, source: str) -> bytes:
    with file.path.open("rb") as opened:
        changed_ns = os.fstat(opened.fileno()).st_ctime_ns
        data = opened.read()
    text = decode_text(data)
    document = {
        "document_id": file.name,
        "text": text,
        "title": title_of(text, file.name),
        "media_type": media_type_of(file.name),
    }
    digest = blake2b(f"{changed_ns}\0{file.name}\0".encode() + data, digest_size=16).hexdigest()
    event = {"specversion": "1.0", "id": digest, "source": source, "type": "document.upserted", "data": document}
    return json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()


def _unreadable(error: OSError) -> None:
    raise CliError(f"{error.filename}: {error.strerror or error}", USAGE) from error
