"""The documents of a workspace as LightRAG counts them: each with a state, as far as it is folded.

``processed`` is what the view serves; ``processing`` what is logged past it; ``failed`` what the policy skipped, until
the document is sent again or deleted. An event id ``TRACK.n`` of :data:`SOURCE` leads back to its track.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from streamfold.core.errors import InvalidEvent
from streamfold.core.events import Subject
from streamfold.core.ledger.abc import ERASED, Ledger, LogRow
from streamfold.core.policy import StoredDocument
from streamfold.core.views import GroupView, MemberView, WorkspaceView
from streamfold.pipelines.serve.call import Call, rfc3339
from streamfold.pipelines.serve.compat.lightrag.dialect import server

SOURCE = "streamfold:lightrag"
"""``source`` of the events that these routes make."""
STATES = ("pending", "parsing", "analyzing", "processing", "preprocessed", "processed", "failed")
MOST_UNDER_WAY = 1000
"""Of the documents past the view so many are listed."""
_MOST_FAILED = 50
_EVERY = 2**31
_SUMMARY = 250
_TRACK = re.compile(r"(?:insert|upload|update)_\d{8}_\d{6}_[0-9a-f]{8}_([1-9]\d{0,3})")
T = TypeVar("T")


async def reading(call: Call, work: Callable[[Shelf], T]) -> T:
    """Run a read over the documents, at one cut of the view."""
    view = call.view

    def read() -> T:
        group, member = server(view)
        return work(Shelf(call, view, group, member))

    return await call.ask(view.asked, read)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A document that was sent and is not served: under way, or failed (``error``)."""

    document_id: str
    track_id: str | None
    text: str
    sent_us: int
    metadata: dict[str, Any]
    error: str | None = None


class Shelf:
    """The documents at a cut."""

    def __init__(self, call: Call, view: WorkspaceView, group: GroupView, member: MemberView) -> None:
        self._call = call
        self._view = view
        self._group = group
        self._member = member
        # Before anything is read: what is folded meanwhile is then seen twice rather than not at all.
        self._watermark = group.watermark

    @property
    def _ledger(self) -> Ledger:
        return self._call.service.node.ledger

    # -- one document -------------------------------------------------------------------------------------------------
    def state(self, document_id: str) -> str | None:
        """Return a document's state; None: there is none, or its deletion is logged."""
        if (row := self._newer(document_id)) is not None:
            return None if row.type in ("document.deleted", "document.erased") else "processing"
        return None if self.stored(document_id) is None else "processed"

    def stored(self, document_id: str) -> StoredDocument | None:
        """Return a document with its text, if it is served."""
        with self._view.reading([self._group]):
            if self._view.hidden(self._group, [Subject("document", document_id)]):
                return None
            found: StoredDocument | None = self._member.server.document(document_id)
            return found

    def file_path(self, document_id: str) -> str:
        """Return the source's name, as far as it is known; else the id."""
        found = self.stored(document_id)
        return document_id if found is None else file_path(document_id, found.fields)

    def _newer(self, document_id: str) -> LogRow | None:
        seq = self._ledger.newest_seq(self._call.workspace, "document", document_id, after=self._watermark)
        rows = [] if seq is None else self._ledger.rows(self._call.workspace, [seq])
        return rows[0] if rows else None

    # -- all of them --------------------------------------------------------------------------------------------------
    def served(self) -> list[StoredDocument]:
        """Return all documents that are served, without texts: O(documents)."""
        with self._view.reading([self._group]):
            found = self._member.server.documents(after="", limit=_EVERY)
            return [one for one in found if not self._view.hidden(self._group, [Subject("document", one.document_id)])]

    def under_way(self) -> dict[str, Sent]:
        """Return what is logged and not folded, the newest of each document."""
        ledger, workspace = self._ledger, self._call.workspace
        found: dict[str, Sent] = {}
        after = self._watermark
        while len(found) < MOST_UNDER_WAY:
            rows = ledger.page(workspace, after=after, limit=MOST_UNDER_WAY)
            for row in rows:
                if row.type in ("document.deleted", "document.erased") and (event := self._event(row)) is not None:
                    found.pop(event.data.document_id, None)
                elif row.type == "document.upserted" and (sent := self._sent(row)) is not None:
                    found[sent.document_id] = sent
            if len(rows) < MOST_UNDER_WAY:
                break
            after = rows[-1].seq
        return found

    def failed(self, served: set[str]) -> dict[str, Sent]:
        """Return what the policy skipped and what has not been sent again or deleted since."""
        ledger, workspace = self._ledger, self._call.workspace
        letters = ledger.dead_letters(workspace, limit=1000, policy=self._member.runtime.instance.key)
        found: dict[str, Sent] = {}
        for letter in [one for one in letters if one.position is not None][-_MOST_FAILED:]:
            for row in ledger.rows(workspace, [letter.position or 0]):
                sent = self._sent(row, error=f"{letter.code}: {letter.detail}")
                if sent is None or row.type != "document.upserted" or sent.document_id in served:
                    continue
                if ledger.newest_seq(workspace, "document", sent.document_id, after=row.seq) is None:
                    found[sent.document_id] = sent
        return found

    def ids(self) -> list[str]:
        """Return the ids of all documents, those under way included."""
        return list(dict.fromkeys([*(one.document_id for one in self.served()), *self.under_way()]))

    def waiting(self) -> int:
        """How many events about documents are logged that answers do not show yet; more than a page are not counted."""
        ledger, workspace = self._ledger, self._call.workspace
        if self._watermark >= ledger.head(workspace):
            return 0
        rows = ledger.page(workspace, after=self._watermark, limit=MOST_UNDER_WAY)
        return sum(row.type.startswith("document.") for row in rows)

    # -- tracks -------------------------------------------------------------------------------------------------------
    def tracked(self, track_id: str) -> list[dict[str, Any]]:
        """Return the documents of a track with their states; those deleted since are none."""
        match = _TRACK.fullmatch(track_id)
        found = []
        for i in range(int(match[1]) if match else 0):
            for row in self._ledger.find(self._call.workspace, f"{track_id}.{i}", SOURCE):
                sent = self._sent(row)
                shown = None if sent is None else self._tracked(row, sent)
                if shown is not None:
                    found.append(shown)
        return found

    def _tracked(self, row: LogRow, sent: Sent) -> dict[str, Any] | None:
        if row.seq > self._watermark:
            state = self.state(sent.document_id)
            return None if state is None else shown_sent(sent)
        stored = self.stored(sent.document_id)
        if stored is not None:
            return shown(stored) | {"track_id": sent.track_id}
        if self._newer(sent.document_id) is not None:
            return None
        if self._member.runtime.instance.lineage in self._ledger.skips_of(self._call.workspace, row.seq):
            known = self.failed(set()).get(sent.document_id)
            return None if known is None else shown_sent(known)
        return None

    def _sent(self, row: LogRow, error: str | None = None) -> Sent | None:
        event = self._event(row)
        if event is None:
            return None
        return Sent(
            document_id=event.data.document_id,
            track_id=track_of(event.id),
            text=getattr(event.data, "text", ""),
            sent_us=row.recorded_us,
            metadata=dict(getattr(event.data, "metadata", None) or {}),
            error=error,
        )

    def _event(self, row: LogRow) -> Any:
        if row.effect == ERASED or not row.type.startswith("document."):
            return None
        try:
            return self._call.service.node.registry.event_types.decode(row)
        except InvalidEvent:
            return None


def track_of(event_id: str) -> str | None:
    """Return the track that an event belongs to."""
    track, dot, number = event_id.rpartition(".")
    return track if dot and number.isdecimal() and _TRACK.fullmatch(track) else None


def file_path(document_id: str, fields: Any) -> str:
    """Return what LightRAG calls a document's file: where it came from, as far as it is known."""
    path = (fields.get("metadata") or {}).get("file_path")
    return str(path or fields.get("url") or document_id)


def shown(document: StoredDocument) -> dict[str, Any]:
    """Show a served document (with its text) as a ``DocStatus``."""
    text = document.fields.get("text", "")
    at = rfc3339(document.updated_us)
    return _status(
        document.document_id, text, "processed", at, track_of(document.event_id), len(document.chunks), None,
        dict(document.fields.get("metadata") or {}), file_path(document.document_id, document.fields),
    )  # fmt: skip


def shown_sent(sent: Sent) -> dict[str, Any]:
    """Show a document that is not served as a ``DocStatus``."""
    state = "processing" if sent.error is None else "failed"
    path = file_path(sent.document_id, {"metadata": sent.metadata})
    at = rfc3339(sent.sent_us)
    return _status(sent.document_id, sent.text, state, at, sent.track_id, None, sent.error, sent.metadata, path)


def _status(
    document_id: str,
    text: str,
    state: str,
    at: str | None,
    track_id: str | None,
    chunks: int | None,
    error: str | None,
    metadata: dict[str, Any],
    path: str,
) -> dict[str, Any]:
    return {
        "id": document_id,
        "content_summary": text if len(text) <= _SUMMARY else text[:_SUMMARY] + "...",
        "content_length": len(text),
        "status": state,
        "created_at": at,
        "updated_at": at,
        "track_id": track_id,
        "chunks_count": chunks,
        "error_msg": error,
        "metadata": {key: value for key, value in metadata.items() if key != "file_path"},
        "file_path": path,
    }
