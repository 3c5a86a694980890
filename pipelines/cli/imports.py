"""``streamfold import``: others' stores as events; sending the same again gives duplicates."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamfold.pipelines.cli.state import FAILED, CliError, Globals

if TYPE_CHECKING:
    from streamfold.pipelines.cli.client import Client
    from streamfold.pipelines.cli.lightrag_store import LightRAGStore
    from streamfold.pipelines.cli.peer_files import PeerFile
    from streamfold.pipelines.cli.rows import Line
    from streamfold.pipelines.cli.send import Tally

LIGHTRAG_HELP = """Import a LightRAG working folder (its JSON files): the documents, and what its model found in them.

Each document of kv_store_full_docs.json is sent with its id, text and file path; one without a text is put together
from its chunks. When they are visible, the entities and relations of the graph file are told of the chunks here that
hold their names where LightRAG's chunks did, as document.extracted events (--no-facts leaves them out); what no chunk
is found for is counted. Vectors are made anew: the vector files and the cache of LLM answers are left out.

\b
Examples:
  streamfold import lightrag ./rag_storage --wait
  streamfold import lightrag ./rag_storage/my_workspace --dry-run
  streamfold import lightrag ./rag_storage --no-facts
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
NoFacts = Annotated[bool, typer.Option("--no-facts", help="Leave out LightRAG's entities and relations.")]
Rate = Annotated[float, typer.Option(min=0, help="At most so many documents a second; 0: no limit.")]


def register(app: typer.Typer) -> None:
    group = typer.Typer(no_args_is_help=True, help="Import another program's store.")
    group.command("lightrag", help=LIGHTRAG_HELP)(lightrag)
    group.command("graph", help=GRAPH_HELP)(graph)
    group.command("gorse", help=GORSE_HELP)(gorse)
    group.command("metarank", help=METARANK_HELP)(metarank)
    app.add_typer(group, name="import")


def lightrag(
    ctx: typer.Context, source: Source, no_facts: NoFacts = False, dry_run: DryRun = False, wait: Wait = False,
    rate: Rate = 0,
) -> None:  # fmt: skip
    from streamfold.pipelines.cli.lightrag_store import LightRAGStore
    from streamfold.pipelines.cli.send import Tally, conclude, deliver, send_all

    options: Globals = ctx.obj
    store = LightRAGStore.open(source, with_facts=not no_facts)
    options.note(store.told())
    with_facts = bool(store.facts) and not dry_run
    if with_facts:
        with options.client() as client:
            with_facts = client.has_graph()
        if not with_facts:
            options.note("no policy here keeps entities and relations: LightRAG's are left out")
    if not with_facts:
        deliver(options, store.lines(), size=None, rate=rate, dry_run=dry_run, wait=wait)
        return
    tally = Tally()
    with options.client() as client:
        send_all(options, client, store.lines(), tally, size=None, rate=rate, wait=True, patient=True)
        late = bool(tally.position) and not tally.visible
        if late:
            options.note("the documents are not visible yet: import again then, for their entities and relations")
        elif tally.position:
            _tell(options, client, store, tally, rate=rate, wait=wait)
    conclude(options, tally, wait=late or wait)


def _tell(options: Globals, client: Client, store: LightRAGStore, tally: Tally, *, rate: float, wait: bool) -> None:
    """Send what LightRAG found in the documents, which are visible."""
    from streamfold.pipelines.cli.lightrag_facts import Telling
    from streamfold.pipelines.cli.send import send_all

    telling = Telling(store, client)
    size = len(store.facts_by_document())
    send_all(options, client, telling.lines(tally.position), tally, size=size, rate=rate, wait=wait)
    options.note(telling.said())


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
    from streamfold.pipelines.cli.rows import Line

    for number, document in enumerate(documents, 1):
        data = {key: value for key, value in document.items() if key not in ("time", "problem") and value is not None}
        name = str(document["document_id"])
        if document.get("problem"):
            yield Line(number=number, problem=document["problem"], name=name)
        else:
            yield as_line("document.upserted", data, source, document.get("time"), number=number, name=name)


def as_line(
    type_: str, data: Mapping[str, Any], source: str, time: str | None, *, number: int, name: str, bytes_read: int = 0
) -> Line:
    """Make an event of data; its id follows from them."""
    import json
    from hashlib import blake2b

    from streamfold.pipelines.cli.rows import Line

    digest = blake2b(json.dumps(data, sort_keys=True).encode(), digest_size=16).hexdigest()
    event = {"specversion": "1.0", "id": digest, "source": source, "type": type_, "data": data}
    if time:
        event["time"] = time
    return Line(number=number, event=json.dumps(event).encode(), name=name, bytes_read=bytes_read)


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
