"""Where entities and relations come from, as LightRAG writes it: chunks and files joined by ``<SEP>``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from streamfold.core.policy import ScoredEntity, ScoredRelation, StoredDocument
from streamfold.core.views import GroupView, MemberView, WorkspaceView
from streamfold.pipelines.serve.compat.lightrag.dialect import SEPARATOR
from streamfold.pipelines.serve.compat.lightrag.shelf import file_path

_US = 1_000_000


@dataclass(slots=True)
class Sources:
    """Shows what a question or the graph found; each document is looked up once. The group is being read."""

    view: WorkspaceView
    group: GroupView
    member: MemberView
    _documents: dict[str, StoredDocument | None] = field(default_factory=dict)

    def entity(self, one: ScoredEntity) -> dict[str, Any]:
        """Show an entity of ``query/data``."""
        about = {"entity_name": one.name, "entity_type": one.type or "UNKNOWN", "description": one.description}
        return about | self._of(one.chunk_ids)

    def relation(self, one: ScoredRelation) -> dict[str, Any]:
        """Show a relation of ``query/data``."""
        return {"src_id": one.source, "tgt_id": one.target} | self._said(one)

    def node(self, one: ScoredEntity) -> dict[str, Any]:
        """Show an entity of ``graphs``."""
        about = {"entity_id": one.name, "entity_type": one.type or "UNKNOWN", "description": one.description}
        return {"id": one.name, "labels": [one.name], "properties": about | self._of(one.chunk_ids) | {"truncate": ""}}

    def edge(self, one: ScoredRelation, source: str, target: str) -> dict[str, Any]:
        """Show a relation of ``graphs`` between two nodes."""
        return {
            "id": f"{source}-{target}",
            "type": "DIRECTED",
            "source": source,
            "target": target,
            "properties": self._said(one) | {"truncate": ""},
        }

    def _said(self, one: ScoredRelation) -> dict[str, Any]:
        keywords = ",".join(one.keywords)
        said = {"description": one.description, "keywords": keywords, "weight": one.weight}
        return said | self._of(one.chunk_ids)

    def _of(self, chunk_ids: Iterable[str]) -> dict[str, Any]:
        ids = list(chunk_ids)
        documents = dict.fromkeys(chunk_id.rpartition("#")[0] for chunk_id in ids)
        rows = [row for document_id in documents if (row := self._document(document_id)) is not None]
        paths = dict.fromkeys(file_path(row.document_id, row.fields) for row in rows)
        return {
            "source_id": SEPARATOR.join(ids),
            "file_path": SEPARATOR.join(paths) or "unknown_source",
            "created_at": min((row.updated_us for row in rows), default=0) // _US,
        }

    def _document(self, document_id: str) -> StoredDocument | None:
        if document_id not in self._documents:
            self._documents[document_id] = self.member.server.document(document_id)
        return self._documents[document_id]
