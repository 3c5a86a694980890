"""Look for what is left of a subject: its id and its texts in checkpoints, feed, dead letters and the log.

What other events hold too proves nothing, and is not counted: an item may have the user's id, two documents the same
passage. Ids count where a stored string is the id (or that of a document's chunk), not where its letters occur.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec

from streamfold.core.codec import unpack
from streamfold.core.context import Context
from streamfold.core.events.model import Envelope, Subject
from streamfold.core.fold.erasure import is_about, patterns
from streamfold.core.fold.stores import checkpoint_root
from streamfold.core.ledger.abc import DeadLetter, Erasure, LogRow
from streamfold.core.stores.checkpoint import CheckpointRoot

_TEXTS, _LEAST, _LONG = 8, 24, 64
_envelope = msgspec.msgpack.Decoder(Envelope).decode


@dataclass(frozen=True, slots=True, kw_only=True)
class Needles:
    """What is looked for. ``subject`` is None when its id proves nothing."""

    subject: Subject | None
    texts: tuple[str, ...]

    def raw(self) -> list[bytes]:
        """Return bytes without which there is no hit."""
        return [*([self.subject.id.encode()] if self.subject else []), *(text.encode() for text in self.texts)]

    def hits(self, value: Any) -> int:
        """Count hits in a decoded value, whatever its shape."""
        if isinstance(value, str):
            return self._is_id(value) + sum(text in value for text in self.texts)
        if isinstance(value, bytes | bytearray | memoryview):
            return sum(bytes(value).count(text.encode()) for text in self.texts)
        if isinstance(value, dict):
            return sum(self.hits(key) + self.hits(item) for key, item in value.items())
        if isinstance(value, list | tuple):
            return sum(map(self.hits, value))
        return 0

    def _is_id(self, value: str) -> bool:
        subject = self.subject
        if subject is None:
            return False
        return value == subject.id or (subject.kind == "document" and value.startswith(f"{subject.id}#"))


def choose_needles(context: Context, workspace: str, erasure: Erasure, rows: Sequence[LogRow]) -> Needles:
    """Choose the id and a few passages of the subject's own events, without those that other events hold."""
    subject = erasure.subject
    texts = _passages(rows, subject)
    going = {row.seq for row in rows} | {erasure.position}
    forms = [*patterns(subject), *(_in_json(text) for text in texts)]
    shared: set[str] = set()
    alone = True
    ledger = context.ledger
    for row in context.history.scan(workspace, ledger.head(workspace), [], forms):
        if row.seq not in going:
            alone = alone and not any(form in row.body for form in patterns(subject))
            shared.update(text for text in texts if _in_json(text) in row.body)
    return Needles(subject=subject if alone else None, texts=tuple(t for t in texts if t not in shared))


def _passages(rows: Sequence[LogRow], subject: Subject) -> list[str]:
    found: set[str] = set()
    for row in rows:
        envelope = _envelope(row.body)
        if Subject(envelope.subject_kind, envelope.subject_id) == subject:
            for text in _strings(msgspec.json.decode(envelope.data)):
                if len(text.encode()) >= _LEAST and text != subject.id:
                    middle = max(0, len(text) // 2 - _LONG // 2)
                    found.add(text[middle : middle + _LONG])
    return sorted(found, key=len, reverse=True)[:_TEXTS]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _in_json(text: str) -> bytes:
    return msgspec.json.encode(text)[1:-1]


# -- stores -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Looked:
    """A store's bytes that were looked through, and what was found."""

    group: str
    store: str
    scanned: int
    residue: int


def look_through_stores(context: Context, workspace: str, needles: Needles) -> list[Looked]:
    """Look through every checkpoint and the feed of every group of a workspace."""
    found: list[Looked] = []
    for state in context.ledger.groups(workspace):
        scanned: Counter[str] = Counter()
        residue: Counter[str] = Counter()
        root = CheckpointRoot(checkpoint_root(context, workspace, state.group))
        for name in root.names():
            with root.reading(name) as folder:
                for store, file in _files(folder):
                    scanned[store] += file.stat().st_size
                    residue[store] += _in_file(file, needles)
        commit_no = state.checkpoint_commit
        while commits := context.ledger.feed(workspace, {state.group: commit_no}):
            for commit in commits:
                commit_no = commit.commit_no
                for store, changes in unpack(commit.changes, dict[str, bytes]).items():
                    scanned[store] += len(changes)
                    residue[store] += _in_packed(changes, needles)
        found += [Looked(state.group, store, scanned[store], residue[store]) for store in sorted(scanned)]
    return found


def _files(folder: Path) -> Iterable[tuple[str, Path]]:
    for part in sorted(folder.iterdir()) if folder.is_dir() else []:
        if part.is_dir():
            for file in sorted(part.rglob("*")):
                if file.is_file():
                    yield unquote(part.name.removeprefix("s-")), file


def _in_file(file: Path, needles: Needles) -> int:
    """Arrays and blobs hold no ids, perhaps texts; packed rows are decoded only where something like a hit is."""
    packed = file.suffix == ".msgpack"
    wanted = needles.raw() if packed else [text.encode() for text in needles.texts]
    if not wanted or not file.stat().st_size:
        return 0
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        counts = [_count(data, needle) for needle in wanted]
    return needles.hits(unpack(file.read_bytes())) if packed and any(counts) else 0 if packed else sum(counts)


def _count(data: mmap.mmap, needle: bytes) -> int:
    count, at = 0, data.find(needle)
    while at >= 0:
        count, at = count + 1, data.find(needle, at + 1)
    return count


def _in_packed(data: bytes, needles: Needles) -> int:
    return needles.hits(unpack(data)) if any(raw in data for raw in needles.raw()) else 0


# -- ledger -----------------------------------------------------------------------------------------------------------
def mentions(letter: DeadLetter, subject: Subject) -> bool:
    """Whether a dead letter names a subject: as a JSON string of what came in, quoted in the reason, or as its key."""
    payload = any(form in letter.payload for form in patterns(subject))
    quoted = any(f"{mark}{subject.id}{mark}" in letter.detail for mark in "'\"")
    return payload or quoted or subject.id in letter.headers.values()


def letters_about(context: Context, workspace: str, subject: Subject, seqs: set[int]) -> list[int]:
    """Return the dead letters that name a subject or are about one of its events."""
    after, found = 0, []
    while letters := context.ledger.dead_letters(workspace, after=after, limit=1000):
        after = letters[-1].dead_letter_id
        found += [d.dead_letter_id for d in letters if d.position in seqs or mentions(d, subject)]
    return found


def look_through_ledger(context: Context, workspace: str, erasure: Erasure) -> list[dict[str, Any]]:
    """Look for events and dead letters of a subject that an erasure has left."""
    ledger, types, subject = context.ledger, context.registry.event_types, erasure.subject
    before = erasure.position - 1
    rows = ledger.scan(workspace, before, [subject], patterns(subject))
    left = sum(is_about(types, row, subject) for row in rows)
    letters = letters_about(context, workspace, subject, set())
    archived = context.history.scan_archive(workspace, before, [subject], patterns(subject))
    in_archive = sum(is_about(types, row, subject) for row in archived)
    files = [d for d in ledger.departures(workspace) if d.name]
    return [
        *([{"store": "archive", "scanned": sum(d.events for d in files), "residue": in_archive}] if files else []),
        {"store": "ledger/log", "scanned": before, "residue": left},
        {"store": "ledger/dead_letters", "scanned": ledger.dead_letter_count(workspace), "residue": len(letters)},
    ]
