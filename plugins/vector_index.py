"""Policy ``vector_index``: documents cut into chunks, searched by vector and by BM25, fresh after every event.

Five stores move together: ``documents`` (fields and the list of chunks), ``chunks`` (int64 key → document),
``vectors``, ``text`` (BM25 postings) and ``texts`` (the documents' text, on disk).

A chunk's hash covers what is embedded: its title and its text. Its id is ``document_id#hash``, with ``.1``, ``.2`` …
for repeats within a document; its key is 63 bits of BLAKE2b of the id (two of 2 million chunks collide with
probability 2e-7). So an update redoes the chunks that changed and leaves the others' vectors and postings alone; a
changed title changes them all.

A patched title is searched by BM25 at once; the vectors keep the title that they were made with until the document is
sent again, because prepare sees one event and a patch brings no text. Chunk ids keep their hash as well, which is how
the next upsert knows that it has to embed anew.

Cost of an event: its own chunks, whatever else is stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from hashlib import blake2b
from typing import Any, ClassVar

import msgspec
import numpy as np
from msgspec import UNSET

from streamfold.core import (
    Batch,
    Blobs,
    Declaration,
    Event,
    EventError,
    Policy,
    Stores,
    Subject,
    Table,
    Text,
    Tools,
    Vectors,
    View,
)
from streamfold.plugins._retriever import VectorRetriever


class PreparedDocument(msgspec.Struct, array_like=True):
    """The chunks of one document: spans (characters), hashes and ``vectors (n, d) float32``."""

    starts: list[int]
    ends: list[int]
    hashes: list[str]
    vectors: np.ndarray


class Document(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A row of ``documents``; the last four run over the chunks in order of the text.

    No list and ``gc=False``: there are as many rows as documents, and Python's garbage collector would go through all.
    """

    content_hash: str
    event_id: str
    position: int
    updated_us: int
    at_us: int = 0
    """When its text was sent, as the event says."""
    text_position: int = 0
    """Where its text was sent: a patch, or a retry, comes later."""
    title: str | None = None
    called: str | None = None
    """What stands for a title where there is none."""
    url: str | None = None
    metadata: dict[str, Any] = {}
    language: str | None = None
    media_type: str | None = None
    valid_from: datetime | None = None
    valid_to: datetime | None = None
    starts: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    ids: tuple[str, ...] = ()
    keys: tuple[int, ...] = ()

    def fields(self) -> dict[str, Any]:
        """Return the document's own fields, those that are set."""
        names = ("title", "url", "metadata", "language", "media_type", "valid_from", "valid_to")
        return {name: value for name in names if (value := getattr(self, name)) not in (None, {})}


class VectorIndex(Policy):
    """Chunks, vectors and BM25 postings of documents, kept equal to the last event of each."""

    name = "vector_index"
    version = 1
    handles: ClassVar[tuple[str, ...]] = (
        "document.upserted",
        "document.patched",
        "document.deleted",
        "document.erased",
    )
    backends = ("encoder", "chunker")
    newest_suffices = True
    stores: tuple[Declaration, ...] = (
        Table("documents", key=str, value=Document, on_full="refuse"),
        Table("chunks", key=int, value=str, max_rows=2_000_000, on_full="refuse", fold_reads=False),
        Vectors("vectors"),
        Text("text"),
        Blobs("texts", fold_reads=True),  # read by the fold when a patched title has to be indexed again
    )
    Prepared: type[PreparedDocument] = PreparedDocument

    # -- prepare ------------------------------------------------------------------------------------------------------
    def prepare(self, event: Event, tools: Tools) -> PreparedDocument | None:
        """Chunk and embed one document."""
        return self.prepare_batch([event], tools)[0]

    def prepare_batch(self, events: Sequence[Event], tools: Tools) -> list[PreparedDocument | None]:
        """Chunk all texts and embed all distinct chunks in one call."""
        rows: dict[str, int] = {}
        found: list[tuple[list[int], list[int], list[str], list[int]] | None] = []
        for event in events:
            if event.type != "document.upserted":
                found.append(None)
                continue
            chunks = tools.chunker.split(event.data.text)
            texts = [embedded(event.data.title, chunk.text) for chunk in chunks]
            numbers = [rows.setdefault(text, len(rows)) for text in texts]
            hashes = [chunk_hash(event.data.title, chunk.text) for chunk in chunks]
            found.append(([c.start for c in chunks], [c.end for c in chunks], hashes, numbers))
        vectors = tools.encoder.encode(list(rows)) if rows else np.zeros((0, tools.encoder.dim), np.float32)
        return [None if one is None else PreparedDocument(*one[:3], vectors[one[3]]) for one in found]

    # -- fold ---------------------------------------------------------------------------------------------------------
    def fold(self, event: Event, prepared: PreparedDocument | None, stores: Stores) -> None:
        """Bring the stores to what the event says."""
        if event.type == "document.upserted":
            if prepared is None:
                raise EventError(f"document {event.data.document_id!r} has no prepared chunks", code="not-prepared")
            self._upsert(event, prepared, stores)
        elif event.type == "document.patched":
            self._patch(event, stores)
        else:
            self._remove(event.data.document_id, stores)

    def _upsert(self, event: Event, prepared: PreparedDocument, stores: Stores) -> None:
        data = event.data
        old: Document | None = stores["documents"].get(data.document_id)
        ids = chunk_ids(data.document_id, prepared.hashes)
        keys = [chunk_key(id_) for id_ in ids]
        before = set(old.keys) if old else set()
        fresh = [i for i, key in enumerate(keys) if key not in before]
        if old and (gone := sorted(before.difference(keys))):
            self._drop_chunks(data.document_id, old, gone, stores)
        if fresh:
            self._add_chunks(data, prepared, keys, fresh, stores)
        called = None if data.title else self._called(data.text)
        # Another title shows in the postings of chunks that are otherwise unchanged (it was patched, or is made up).
        posted = range(len(keys)) if old and (old.title, old.called) != (data.title, called) else fresh
        self._post(posted, keys, prepared.starts, prepared.ends, data.title or called, data.text, stores)
        content_hash = blake2b(_utf8(data.text), digest_size=16).hexdigest()
        if old is None or old.content_hash != content_hash:
            stores["texts"].put(data.document_id, _utf8(data.text))
        if old is None or (old.title, old.called) != (data.title, called):
            self._named(data.document_id, data.title, called, stores)
        row = Document(
            content_hash=content_hash,
            event_id=event.id,
            position=event.seq,
            updated_us=event.recorded_us,
            at_us=event.at_us,
            text_position=event.seq if event.retry_of is None else event.retry_of,
            title=data.title,
            called=called,
            url=data.url,
            metadata={key: value for key, value in (data.metadata or {}).items() if value is not None},
            language=data.language,
            media_type=data.media_type,
            valid_from=data.valid_from,
            valid_to=data.valid_to,
            starts=tuple(prepared.starts),
            ends=tuple(prepared.ends),
            ids=tuple(ids),
            keys=tuple(keys),
        )
        stores["documents"].put(data.document_id, row)

    def _patch(self, event: Event, stores: Stores) -> None:
        """Merge title, url and metadata (RFC 7396); the text stays."""
        data = event.data
        old: Document | None = stores["documents"].get(data.document_id)
        if old is None:
            raise EventError(
                f"document {data.document_id!r} is not stored, so it cannot be patched: send document.upserted first",
                code="unknown-document",
            )
        changes: dict[str, Any] = {"event_id": event.id, "position": event.seq, "updated_us": event.recorded_us}
        for name in ("title", "url"):
            if (value := getattr(data, name)) is not UNSET:
                changes[name] = value
        if data.metadata is not UNSET:
            merged = {**old.metadata, **data.metadata} if data.metadata is not None else {}
            changes["metadata"] = {key: value for key, value in merged.items() if value is not None}
        new: Document = msgspec.structs.replace(old, **changes)
        if new.title != old.title:
            text = (stores["texts"].get(data.document_id) or b"").decode("utf-8", "surrogatepass")
            new = msgspec.structs.replace(new, called=None if new.title else self._called(text))
            self._post(range(len(new.keys)), new.keys, new.starts, new.ends, new.title or new.called, text, stores)
            self._named(data.document_id, new.title, new.called, stores)
        stores["documents"].put(data.document_id, new)

    def _add_chunks(
        self, data: Any, prepared: PreparedDocument, keys: Sequence[int], fresh: Sequence[int], stores: Stores
    ) -> None:
        """Store the chunks numbered ``fresh``, which the document did not have."""
        stores["vectors"].upsert(np.array([keys[i] for i in fresh], np.int64), prepared.vectors[fresh])
        for i in fresh:
            stores["chunks"].put(keys[i], data.document_id)

    def _drop_chunks(self, document_id: str, old: Document, gone: Sequence[int], stores: Stores) -> None:
        """Remove chunks that the document has no more."""
        stores["vectors"].delete(np.array(gone, np.int64))
        stores["text"].delete(gone)
        for key in gone:
            stores["chunks"].delete(key)

    def _post(
        self,
        which: Iterable[int],
        keys: Sequence[int],
        starts: Sequence[int],
        ends: Sequence[int],
        title: str | None,
        text: str,
        stores: Stores,
    ) -> None:
        """Index title and text of the chunks numbered ``which``."""
        numbers = list(which)
        if numbers:
            rows: list[Mapping[str, str]] = [{"title": title or "", "text": text[starts[i] : ends[i]]} for i in numbers]
            stores["text"].put([keys[i] for i in numbers], rows)

    def _called(self, text: str) -> str | None:
        """Return what stands for the title of a document without one."""
        return None

    def _named(self, document_id: str, title: str | None, called: str | None, stores: Stores) -> None:
        """The document has another title, or another name in its place."""

    def _remove(self, document_id: str, stores: Stores) -> None:
        """Remove a document from every store; an unknown one is no error."""
        old: Document | None = stores["documents"].get(document_id)
        if old is None:
            return
        if old.keys:
            self._drop_chunks(document_id, old, old.keys, stores)
        stores["texts"].delete(document_id)
        stores["documents"].delete(document_id)

    def skipped(self, event: Event, stores: Stores) -> None:
        """Withdraw the old text of a document whose new one could not be folded: it is known to be stale."""
        if event.type == "document.upserted":
            self._remove(event.data.document_id, stores)

    def forget(self, subject: Subject, events: Batch, stores: Stores) -> None:
        """Remove a document, exactly: no store mixes documents."""
        if subject.kind == "document":
            self._remove(subject.id, stores)

    def serve(self, view: View) -> VectorRetriever:
        """Serve retrieval (mode ``naive``) and the documents."""
        return VectorRetriever(view)


def embedded(title: str | None, text: str) -> str:
    """Return what is embedded for a chunk."""
    return f"{title}. {text}" if title else text


def chunk_hash(title: str | None, text: str) -> str:
    """Return 16 hexadecimal digits over title and text of a chunk."""
    return blake2b(_utf8(f"{title or ''}\0{text}"), digest_size=8).hexdigest()


def chunk_ids(document_id: str, hashes: Iterable[str]) -> list[str]:
    """Return ids that survive edits elsewhere: by content, then by occurrence.

    >>> chunk_ids("d", ["aa", "bb", "aa"])
    ['d#aa', 'd#bb', 'd#aa.1']
    """
    seen: dict[str, int] = {}
    ids = []
    for value in hashes:
        count = seen.get(value, 0)
        seen[value] = count + 1
        ids.append(f"{document_id}#{value}.{count}" if count else f"{document_id}#{value}")
    return ids


def chunk_key(chunk_id: str) -> int:
    """Return the int64 ≥ 0 by which vectors and postings know a chunk."""
    return int.from_bytes(blake2b(_utf8(chunk_id), digest_size=8).digest(), "little") >> 1


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
