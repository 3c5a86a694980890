"""``streamfold size``: what so many documents, items and interactions take, by kind of vector index.

The figures per document, item and event were measured with documents of 120 words, one chunk each, and the built-in
policies (docs/explanation/vectors.md); longer documents take more in proportion to their chunks.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from streamfold.pipelines.cli.state import Globals

SIZE_HELP = """Estimate memory and disk, by kind of vector index.

\b
Examples:
  streamfold size --docs 300000 --dim 384
  streamfold size --docs 50000 --chunks 4 --items 20000 --events 5000000

Memory is that of one serving process; every replica holds it. Settings: [vectors] index = "…"."""

TEXT_BYTES = 8_500
"""Memory per chunk beside its vector: postings, tables, ids."""
DOCUMENT_DISK = 6_500
"""Per chunk at rest: log, feed, two checkpoints, the text itself."""
ITEM_BYTES, EVENT_DISK = 100, 420
BASE_BYTES = 120_000_000
"""A service without data, the encoder's weights apart."""


def register(app: typer.Typer) -> None:
    app.command("size", help=SIZE_HELP)(size)


def size(
    ctx: typer.Context,
    docs: Annotated[int, typer.Option(min=0, help="Documents.")] = 10_000,
    chunks: Annotated[float, typer.Option(min=0.1, help="Chunks per document.")] = 1.0,
    dim: Annotated[int, typer.Option(min=1, help="Length of an embedding (minilm: 384).")] = 384,
    items: Annotated[int, typer.Option(min=0, help="Items.")] = 0,
    users: Annotated[int, typer.Option(min=0, help="Users.")] = 0,
    events: Annotated[int, typer.Option(min=0, help="Interactions kept in the log.")] = 0,
) -> None:
    options: Globals = ctx.obj
    result = estimate(docs=docs, chunks=chunks, dim=dim, items=items, users=users, events=events)
    from rich.table import Table

    chosen = options.settings().vectors.index
    table = Table("vector index", "vectors", "all memory", "disk", title=f"{docs:,} documents, {items:,} items")
    for row in result["kinds"]:
        name = f"{row['index']} (settings)" if row["index"] == chosen else row["index"]
        table.add_row(name, _mb(row["vector_bytes"]), _mb(row["memory_bytes"]), _mb(row["disk_bytes"]))
    options.render(table, result)


def estimate(*, docs: int, chunks: float, dim: int, items: int, users: int, events: int) -> dict[str, Any]:
    """Bytes by kind of vector index, for one serving process and the ledger beside it."""
    from streamfold.core.stores.vectors.choose import KINDS, bytes_for

    rows = int(docs * chunks)
    rest = BASE_BYTES + rows * TEXT_BYTES + (items + users) * ITEM_BYTES
    disk = rows * DOCUMENT_DISK + events * EVENT_DISK + (items + users) * ITEM_BYTES
    kinds = []
    for kind in KINDS:
        vectors = bytes_for(kind, rows, dim)
        kinds.append(
            {"index": kind, "vector_bytes": vectors, "memory_bytes": rest + vectors, "disk_bytes": disk + 2 * vectors}
        )
    return {"documents": docs, "chunks": rows, "dim": dim, "items": items, "users": users, "kinds": kinds}


def _mb(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
