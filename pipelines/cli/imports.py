"""``streamfold import``: others' stores as events; sending the same again gives duplicates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamfold.pipelines.cli.state import FAILED, CliError, Globals

if TYPE_CHECKING:
    from streamfold.pipelines.cli.peer_files import PeerFile
    from streamfold.pipelines.cli.rows import Line

LIGHTRAG_HELP = """Import the documents of a LightRAG working folder (its JSON files).

Each document of kv_store_full_docs.json is sent with its id, text and file path; one without a text is put together
from its chunks. Entities and relations are found anew in the texts, and vectors made anew: the graph file, the vector
files and the cache of LLM answers are left out.

\b
Examples:
  streamfold import lightrag ./rag_storage --wait
  streamfold import lightrag ./rag_storage/my_workspace --dry-run
"""
GRAPH_HELP = """Import a knowledge graph: GraphML, JSON lines, or a folder of `streamfold export`.

Each node becomes a document: its title is the node's name, its text the node's description and a sentence for each
relation that starts there. In JSON lines a row with source and target is a relation, any other a node (id, name, type,
description). An edge to a node that is not there, or anything else that is wrong, refuses the whole file: nothing is
sent.

\b
Examples:
  streamfold import graph people.graphml --wait
  streamfold import graph graph.jsonl --prefix wiki/
"""
GORSE_HELP = """Import Gorse's users, items and feedback: JSON lines as /api/bulk gives them, or CSV; also as .gz.

SRC is a folder with users.jsonl, items.jsonl and feedback.jsonl (or .csv, .tsv; any of them), or one such file. A row
becomes the event that /compat/gorse makes of it; its id is made of its content, so that running the import again, after
an interruption or beside live traffic, logs nothing twice. Bad rows are named and left out (exit code 3).

\b
Examples:
  streamfold import gorse ./dump --dry-run
  streamfold import gorse ./dump --wait
  streamfold import gorse feedback.csv.gz --rate 5000
"""
METARANK_HELP = """Import Metarank's events: JSON lines, also as .gz, as its own import reads them.

SRC is a file, or a folder of files, read in order of their names. An event becomes the one that /compat/metarank makes
of it; its id is made of its content, so that running the import again logs nothing twice. Bad events are named and left
out (exit code 3).

\b
Examples:
  streamfold import metarank events.jsonl.gz --dry-run
  streamfold import metarank ./events --wait
"""
Source = Annotated[Path, typer.Argument(metavar="SRC", exists=False)]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check everything here; send nothing.")]
Wait = Annotated[bool, typer.Option("--wait", help="Return when answers show the documents (up to 30 s).")]
Rate = Annotated[float, typer.Option(min=0, help="At most so many documents a second; 0: no limit.")]


def register(app: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True, help="Import another program's store.")
    group.command("lightrag", help=LIGHTRAG_HELP)(lightrag)
    group.command("graph", help=GRAPH_HELP)(graph)
    group.command("gorse", help=GORSE_HELP)(gorse)
    group.command("metarank", help=METARANK_HELP)(metarank)
    app.add_typer(group, name="import")


def lightrag(ctx: typer.Context, source: Source, dry_run: DryRun = False, wait: Wait = False, rate: Rate = 0) -> None:
    from streamfold.pipelines.cli.lightrag_store import LightRAGStore
    from streamfold.pipelines.cli.send import deliver

    options: Globals = ctx.obj
    store = LightRAGStore.open(source)
    options.note(store.told())
    deliver(options, store.lines(), size=None, rate=rate, dry_run=dry_run, wait=wait)


def graph(
    ctx: typer.Context,
    source: Source,
    prefix: Annotated[str | None, typer.Option(help="Before each node's id (default: the file's name and /).")] = None,
    dry_run: DryRun = False,
    wait: Wait = False,
    rate: Rate = 0,
) -> None:
    from streamfold.pipelines.cli.knowledge_graph import read_graph
    from streamfold.pipelines.cli.send import deliver

    options: Globals = ctx.obj
    found = read_graph(source)
    options.note(f"{source}: {len(found.nodes)} nodes, {len(found.edges)} relations")
    lines = list(as_lines(found.documents(prefix if prefix is not None else f"{source.stem}/"), "/import/graph"))
    _check(options, source, lines)
    deliver(options, iter(lines), size=None, rate=rate, dry_run=dry_run, wait=wait)


def gorse(ctx: typer.Context, source: Source, dry_run: DryRun = False, wait: Wait = False, rate: Rate = 0) -> None:
    from streamfold.pipelines.cli.peer_files import gorse_files

    _peer(ctx.obj, gorse_files, source, dry_run=dry_run, wait=wait, rate=rate)


def metarank(ctx: typer.Context, source: Source, dry_run: DryRun = False, wait: Wait = False, rate: Rate = 0) -> None:
    from streamfold.pipelines.cli.peer_files import metarank_files

    _peer(ctx.obj, metarank_files, source, dry_run=dry_run, wait=wait, rate=rate)


def _peer(
    options: Globals, find: Callable[[Path, frozenset[str]], list[PeerFile]], source: Path, *,
    dry_run: bool, wait: bool, rate: float,
) -> None:  # fmt: skip
    from streamfold.pipelines.cli.peer_files import read_files
    from streamfold.pipelines.cli.send import deliver
    from streamfold.pipelines.peers.rows import actions

    files = find(source, actions(options.settings().limits.actions))
    options.note(f"{source}: {', '.join(file.path.name for file in files)}")
    size = sum(file.path.stat().st_size for file in files)
    deliver(options, read_files(files), size=size, rate=rate, dry_run=dry_run, wait=wait)


def as_lines(documents: Iterable[Mapping[str, Any]], source: str) -> Iterator[Line]:
    """Make an event of each document; its id follows from the content. ``time`` and ``problem`` are not the data's."""
    import json
    from hashlib import blake2b

    from streamfold.pipelines.cli.rows import Line

    for number, document in enumerate(documents, 1):
        data = {key: value for key, value in document.items() if key not in ("time", "problem") and value is not None}
        name = str(document["document_id"])
        if document.get("problem"):
            yield Line(number=number, problem=document["problem"], name=name)
            continue
        digest = blake2b(json.dumps(data, sort_keys=True).encode(), digest_size=16).hexdigest()
        event = {"specversion": "1.0", "id": digest, "source": source, "type": "document.upserted", "data": data}
        if document.get("time"):
            event["time"] = document["time"]
        yield Line(number=number, event=json.dumps(event).encode(), name=name)


def _check(options: Globals, source: Path, lines: Iterable[Line]) -> None:
    """Refuse all where one would be refused."""
    from streamfold.core.clock import SystemClock
    from streamfold.core.errors import InvalidEvent
    from streamfold.core.events import Acceptor, EventTypes, builtin_types
    from streamfold.core.events.codecs import decode_structured

    limit = options.settings().limits.max_event_bytes
    acceptor = Acceptor(EventTypes(builtin_types()), SystemClock(), max_event_bytes=limit)
    for line in lines:
        try:
            acceptor.accept(decode_structured(line.event))
        except InvalidEvent as error:
            raise CliError(f"{source}: node {line.name!r}: {error.detail}; nothing was sent", FAILED) from error
