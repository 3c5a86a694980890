"""``streamfold export``: documents, chunks and the graph with its sources, as JSON lines or Parquet, and GraphML."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamfold.pipelines.cli.state import USAGE, CliError, Globals, console

if TYPE_CHECKING:
    from streamfold.pipelines.cli.client import Client
    from streamfold.pipelines.cli.row_files import RowFile

HELP = """Write what is served into a new folder: documents, chunks, and the graph with its sources.

\b
  documents.jsonl   the documents; `streamfold send documents.jsonl --type document.upserted` takes them again
  chunks.jsonl      the passages, each with its document and its place there
  entities.jsonl    the entities, with the chunks that name them
  relations.jsonl   the relations, with the chunks that support them
  graph.graphml     entities and relations, for networkx, Gephi and others
  export.json       how many of each, and at which positions of the log they were read

\b
Examples:
  streamfold export backup-of-today
  streamfold export today --parquet     # documents.parquet and so on in place of .jsonl
  streamfold export /tmp/graph --json
"""
_COLUMNS = {
    "documents": (
        "document_id", "text", "title", "url", "media_type", "language", "metadata", "valid_from", "valid_to",
    ),
    "chunks": ("chunk_id", "document_id", "text", "start", "end"),
    "entities": ("entity_id", "name", "type", "description", "score", "chunk_ids"),
    "relations": (
        "relation_id", "source", "target", "source_id", "target_id", "keywords", "description", "weight", "valid_from",
        "valid_to", "score", "chunk_ids",
    ),
}  # fmt: skip
_ALL = 2**31
_DOCUMENTS_PER_PAGE = 100
_NO_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""Characters that XML 1.0 has no way to write."""


def register(app: typer.Typer) -> None:
    app.command("export", help=HELP)(export)


def export(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new folder.")],
    parquet: Annotated[bool, typer.Option("--parquet", help="Parquet in place of JSON lines.")] = False,
) -> None:
    from streamfold.pipelines.cli.row_files import ParquetFile, RowFile

    options: Globals = ctx.obj
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CliError(f"{folder} is there already: name a new folder", USAGE)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        with options.client() as client:
            report = _Export(client, partial, ParquetFile if parquet else RowFile, quiet=options.quiet).run()
        partial.chmod(0o755)
        partial.replace(folder)  # all of it, or none
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    counts = ", ".join(f"{count} {what}" for what, count in report["counts"].items())
    options.print(f"exported {counts} to {folder}", report | {"folder": str(folder)})


class _Export:
    """One export: reads page by page, writes line by line; the graph alone is held in memory, for GraphML."""

    def __init__(self, client: Client, folder: Path, files: type[RowFile], *, quiet: bool) -> None:
        self._client = client
        self._folder = folder
        self._files = files
        self._quiet = quiet

    def run(self) -> dict[str, Any]:
        import networkx as nx
        from rich.progress import Progress, SpinnerColumn, TextColumn

        first = self._position()
        counts = {"documents": 0, "chunks": 0, "entities": 0, "relations": 0}
        graph: nx.Graph[str] = nx.Graph()
        columns = (SpinnerColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=console(stderr=True), disable=self._quiet, transient=True) as progress:
            task = progress.add_task("exporting")

            def count(what: str, n: int = 1) -> None:
                counts[what] += n
                progress.update(task, description=", ".join(f"{n} {what}" for what, n in counts.items()))

            self._documents(count)
            if self._client.has_graph():
                self._write("entities", self._entities(graph, count))
                self._write("relations", self._relations(graph, count))
        nx.write_graphml(graph, self._folder / "graph.graphml")
        report = {"counts": counts, "positions": {"from": first, "to": self._position()}}
        (self._folder / "export.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")
        return report

    def _position(self) -> int:
        return int(self._client.get("/v1/documents", limit=1)["version"]["position"])

    def _documents(self, count: Any) -> None:
        with self._opened("documents") as documents, self._opened("chunks") as chunks:
            for one in self._client.pages("/v1/documents", at_most=_ALL, page_size=_DOCUMENTS_PER_PAGE, include="text"):
                documents.write(one)
                for chunk in one["chunks"]:
                    chunks.write(chunk | {"document_id": one["document_id"]})
                count("documents")
                count("chunks", len(one["chunks"]))

    def _entities(self, graph: Any, count: Any) -> Iterator[Mapping[str, Any]]:
        for one in self._client.pages("/v1/entities", at_most=_ALL):
            graph.add_node(
                _xml(one["entity_id"]),
                name=_xml(one["name"]),
                type=_xml(one["type"] or ""),
                description=_xml(one["description"]),
                chunk_ids=_xml(json.dumps(one["chunk_ids"], ensure_ascii=False)),
            )
            count("entities")
            yield one

    def _relations(self, graph: Any, count: Any) -> Iterator[Mapping[str, Any]]:
        from streamfold.core.policy import relation_ends

        for one in self._client.pages("/v1/relations", at_most=_ALL):
            ends = relation_ends(_xml(one["relation_id"]), graph)
            if ends is None:
                continue  # an entity came after its page had been read
            graph.add_edge(
                *ends,
                description=_xml(one["description"]),
                keywords=_xml(",".join(one["keywords"])),
                weight=one["weight"],
                valid_from=one["valid_from"] or "",
                valid_to=one["valid_to"] or "",
                chunk_ids=_xml(json.dumps(one["chunk_ids"], ensure_ascii=False)),
            )
            count("relations")
            yield {**one, "source_id": ends[0], "target_id": ends[1]}

    def _write(self, what: str, rows: Iterable[Mapping[str, Any]]) -> None:
        with self._opened(what) as file:
            for row in rows:
                file.write(row)

    def _opened(self, what: str) -> RowFile:
        return self._files(self._folder / f"{what}{self._files.suffix}", _COLUMNS[what])


def _xml(text: str) -> str:
    """Leave out what XML cannot hold."""
    return _NO_XML.sub("", text)
