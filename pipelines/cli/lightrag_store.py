"""The files of a LightRAG working folder: documents, and what its model found in them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamfold.pipelines.cli.lightrag_facts import SOURCE, Fact, counted, read_facts
from streamfold.pipelines.cli.state import FAILED, USAGE, CliError
from streamfold.pipelines.texts import SUFFIXES, media_type_of, title_of

if TYPE_CHECKING:
    from streamfold.pipelines.cli.rows import Line

_DOCUMENTS = "kv_store_full_docs.json"
_GRAPH = "graph_chunk_entity_relation.graphml"
_OVERLAP = 4_000
"""Characters of two chunks in a row that are looked at for what both hold."""
_NO_PATHS = (None, "", "unknown_source", "no-file-path")
Rows = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LightRAGStore:
    """A working folder: documents, their states, their chunks, and the entities and relations of its graph.

    ``problem``: why there are none of these.
    """

    folder: Path
    documents: Rows
    states: Rows
    chunks: Rows
    facts: Sequence[Fact]
    problem: str

    @classmethod
    def open(cls, source: Path, *, with_facts: bool) -> LightRAGStore:
        """Read a working folder, or the one workspace below it."""
        folder = _folder(source)
        facts, problem = _facts(folder) if with_facts else ([], "--no-facts")
        return cls(
            folder=folder,
            documents=_rows(folder / _DOCUMENTS),
            states=_rows(folder / "kv_store_doc_status.json"),
            chunks=_rows(folder / "kv_store_text_chunks.json"),
            facts=facts,
            problem=problem,
        )

    def told(self) -> str:
        """Say what is imported and what is not."""
        known = f"; {counted(self.facts)} go with their chunks"
        anew = f"; entities and relations are found anew in the texts: {self.problem}"
        return f"{self.folder}: {len(self.documents)} documents{anew if self.problem else known}"

    def lines(self) -> Iterator[Line]:
        """Make an event of each document."""
        from streamfold.pipelines.cli.imports import as_lines

        return as_lines((self._document(id_) for id_ in self.documents), SOURCE)

    def facts_by_document(self) -> dict[str, dict[Fact, list[str]]]:
        """Return what is said in each document, and in which of LightRAG's chunks."""
        found: defaultdict[str, defaultdict[Fact, list[str]]] = defaultdict(lambda: defaultdict(list))
        for fact in self.facts:
            for chunk_id in fact.sources:
                document_id = str(self.chunks.get(chunk_id, {}).get("full_doc_id"))
                if document_id in self.documents:
                    found[document_id][fact].append(chunk_id)
        return {document_id: dict(facts) for document_id, facts in found.items()}

    def text(self, document_id: str) -> Any:
        """Return a document's text."""
        return self.documents[document_id].get("content") or self._joined(document_id)

    def _document(self, document_id: str) -> dict[str, Any]:
        row, state = self.documents[document_id], self.states.get(document_id, {})
        text = self.text(document_id)
        if not isinstance(text, str) or not text.strip():
            return {"document_id": document_id, "problem": f"{_DOCUMENTS} has no text for it, nor are there chunks"}
        path = next((p for p in (row.get("file_path"), state.get("file_path")) if p not in _NO_PATHS), None)
        path = str(path) if path is not None else None
        return {
            "document_id": document_id,
            "text": text,
            "title": title_of(text, path) if path is not None and path.lower().endswith(SUFFIXES) else None,
            "media_type": media_type_of(path or ""),
            "metadata": {"file_path": path} if path is not None else None,
            "time": _time(state.get("created_at")),
        }

    def _joined(self, document_id: str) -> str:
        """Put a document together from its chunks, which overlap."""
        own = [row for row in self.chunks.values() if row.get("full_doc_id") == document_id]
        own.sort(key=lambda row: row.get("chunk_order_index") or 0)
        text = ""
        for row in own:
            chunk = str(row.get("content") or "")
            longest = min(len(text), len(chunk), _OVERLAP)
            common = next((size for size in range(longest, 0, -1) if text.endswith(chunk[:size])), 0)
            text += chunk[common:] if common or not text else f"\n{chunk}"
        return text


def _folder(source: Path) -> Path:
    if not source.is_dir():
        raise CliError(f"{source}: no such folder", USAGE)
    if (source / _DOCUMENTS).exists():
        return source
    found = sorted(file.parent for file in source.glob(f"*/{_DOCUMENTS}"))
    if len(found) == 1:
        return found[0]
    if found:
        raise CliError(f"{source} holds several workspaces: name one of {', '.join(map(str, found))}", USAGE)
    hint = "export them from LightRAG's database first, if it keeps them in one"
    raise CliError(f"{source}: no {_DOCUMENTS}, so this is no working folder of LightRAG's JSON storage; {hint}", USAGE)


def _rows(file: Path) -> Rows:
    if not file.exists():
        return {}
    try:
        rows = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CliError(f"{file}: not valid JSON: {error}; nothing was sent", FAILED) from error
    if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        raise CliError(f"{file}: not an object of objects by id; nothing was sent", FAILED)
    return rows


def _facts(folder: Path) -> tuple[list[Fact], str]:
    """Read the graph; a folder without one, or with a broken one, is imported all the same."""
    graph = folder / _GRAPH
    if not graph.exists():
        return [], f"there is no {_GRAPH}"
    try:
        facts = read_facts(graph, *(_rows(folder / f"kv_store_{what}_chunks.json") for what in ("entity", "relation")))
    except CliError as error:
        return [], str(error).removesuffix("; nothing was sent")
    except ValueError as error:
        return [], f"{_GRAPH} is not valid GraphML ({error})"
    return facts, "" if facts else f"{_GRAPH} holds none"


def _time(value: Any) -> str | None:
    """Return when a document was first stored, in UTC, as far as that can be read and lies in the past."""
    try:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            found = datetime.fromtimestamp(value, UTC)
        else:
            found = datetime.fromisoformat(str(value))
    except (ValueError, OverflowError, OSError):
        return None
    found = found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    known = datetime.fromtimestamp(0, UTC) <= found <= datetime.now(UTC)
    return found.isoformat().replace("+00:00", "Z") if known else None
