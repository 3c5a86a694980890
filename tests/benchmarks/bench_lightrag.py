"""``graph_index`` under LightRAG's own sweep: the same corpus, fake embedder, meters and questions, in one process.

The requests go through the whole service (routes, acceptor, SQLite ledger with fsync, fold, view), only without a
socket. What LightRAG cannot do (an update, a hundred deletions at once) is measured beside.

    python tests/benchmarks/bench_lightrag.py --top 1000
    python tests/benchmarks/bench_lightrag.py --top 10000 --step 2000
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from streamfold.core import Backend
from streamfold.core.settings import Settings
from streamfold.core.testing.world import plugin

SHARED = Path(__file__).parents[3] / "shared" / "peers" / "lightrag"
sys.path.insert(0, str(SHARED))
import bench_common as common  # noqa: E402  # the peers' harness lies beside the repository


class FakeEncoder(common.FakeEmbedder):  # type: ignore[misc]  # untyped harness
    """The harness's embedder as a backend."""

    name, version = "fake", "1"

    def encode(self, texts: Any) -> Any:
        return self.embed(list(texts))


class Streamfold(common.Adapter):  # type: ignore[misc]  # untyped harness
    """The embedded service."""

    name = "streamfold/graph_index"
    modes = ("naive", "local", "global", "hybrid", "mix", "ppr")

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.encoder = FakeEncoder()
        self._sent = 0

    async def start(self) -> None:
        from streamfold.pipelines.node import Node
        from streamfold.pipelines.serve.app import create_app

        settings = Settings(
            data=Path(self.folder),
            backends={"encoder": {"use": "fake"}, "chunker": {"use": "sentences"}},
            policies={"graph_index": {}},
        )
        offered = plugin([], [Backend(kind="encoder", name="fake", make=lambda _: self.encoder)])
        self._node = Node(settings, plugins=[offered])
        app = create_app(self._node)
        self._life = app.router.lifespan_context(app)
        await self._life.__aenter__()
        transport = httpx.ASGITransport(app=app, client=("127.0.0.1", 1))
        self._http = httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=300)
        while (await self._http.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.005)

    async def stop(self) -> None:
        await self._http.aclose()
        await self._life.__aexit__(None, None, None)
        self._node.close()

    async def insert(self, ids: list[str], texts: list[str]) -> None:
        events = []
        for id_, text in zip(ids, texts, strict=True):
            self._sent += 1
            data = {"document_id": id_, "text": text}
            type_ = "document.upserted"
            events.append({"specversion": "1.0", "id": f"b{self._sent}", "source": "/b", "type": type_, "data": data})
        answer = await self._http.post("/v1/events", json=events, params={"wait": "visible", "wait_ms": 30000})
        assert answer.status_code == 200, answer.text
        assert answer.json()["visible"], answer.text

    async def delete(self, doc_id: str) -> None:
        answer = await self._http.delete(f"/v1/documents/{doc_id}", params={"wait": "visible"})
        assert answer.json()["visible"], answer.text

    async def query(self, text: str, mode: str) -> str:
        body = {"query": text, "mode": mode, "top_k": 20, "log_exposure": False}
        answer = await self._http.post("/v1/query", json=body)
        assert answer.status_code == 200, answer.text
        found = answer.json()
        parts = [f"{one['name']}: {one['description']}" for one in found["entities"]]
        parts += [f"{one['source']} – {one['target']}: {one['description']}" for one in found["relations"]]
        return "\n".join([*parts, *(one["text"] for one in found["chunks"])])

    async def sizes(self) -> dict[str, int]:
        assert self._node.views is not None
        member = self._node.views.workspace("default").member("graph_index")
        nodes = [node for node in member["graph"].nodes() if isinstance(node, str)]
        kinds = {kind: sum(node.startswith(kind) for node in nodes) for kind in ("e:", "r:")}
        return {"chunks": len(member["chunks"]), "entities": kinds["e:"], "relations": kinds["r:"]}

    def path(self) -> str:
        return self.folder

    def counters(self) -> dict[str, int]:
        return {"embed_texts": self.encoder.texts, "llm_calls": 0, "llm_summaries": 0, "llm_prompt_words": 0}


async def more(adapter: Streamfold, corpus: Any, repeats: int = 5) -> dict[str, Any]:
    """Measure what the sweep does not: an update, a hundred deletions, whether a question's own document is found."""
    spans = []
    for n in range(repeats):
        with common.Span(adapter) as span:
            await adapter.insert([corpus.doc_id(n)], [corpus.text(n) + f" Amended on day {n} by Renata."])
        spans.append(span)
        await adapter.insert([corpus.doc_id(n)], [corpus.text(n)])
    ids = [20_000_000 + i for i in range(100)]
    await adapter.insert([corpus.doc_id(i) for i in ids], [corpus.text(i) for i in ids])
    with common.Span(adapter) as deleted:
        await asyncio.gather(*(adapter.delete(corpus.doc_id(i)) for i in ids))
    count = (await adapter.sizes())["chunks"]
    hits = {}
    for mode in adapter.modes:
        asked = [(q * 7919) % count for q in range(100)]
        hits[mode] = sum([f"record {i} " in await adapter.query(corpus.query(i), mode) for i in asked]) / len(asked)
    return {
        "event": "more", "update1_cpu_ms": round(1e3 * common.pct([s.cpu for s in spans], 50), 2),
        "update1_written_kb": round(common.pct([s.written for s in spans], 50) / 1e3, 1),
        "delete100_s": round(deleted.wall, 3), "delete100_cpu_s": round(deleted.cpu, 3), "hit": hits,
    }  # fmt: skip


async def run(options: argparse.Namespace, folder: str) -> None:
    corpus = common.Corpus()
    adapter = Streamfold(folder)
    sweep = {"step": options.step, "top": options.top, "budget_s": options.budget, "queries": options.queries}
    stop, adapter.stop = adapter.stop, _nothing  # type: ignore[method-assign]  # the sweep ends with it
    await common.run_sweep(adapter, corpus, **sweep)
    print(json.dumps({"system": adapter.name, **await more(adapter, corpus)}), flush=True)
    await stop()


async def _nothing() -> None:
    return None


async def reopen(folder: str) -> None:
    """Open what a run left, in a fresh process."""
    import faiss  # noqa: F401  # as LightRAG's figure, opening is timed after the imports

    import streamfold.core.ledger.migrate
    import streamfold.core.ledger.sqlite
    import streamfold.pipelines.node
    import streamfold.pipelines.serve.app  # noqa: F401

    started = time.perf_counter()
    adapter = Streamfold(folder)
    imported = time.perf_counter()
    await adapter.start()
    opened = time.perf_counter()
    found = await adapter.query(common.Corpus().query(3), "mix")
    row = {
        "event": "reopen", "open_s": round(opened - imported, 3), "with_imports_s": round(opened - started, 3),
        "first_query_ms": round(1e3 * (time.perf_counter() - opened), 1), "ctx_chars": len(found),
        "rss_mb": round(common.peak_rss_mb(), 1), "torch": "torch" in sys.modules, **await adapter.sizes(),
    }  # fmt: skip
    print(json.dumps({"system": adapter.name, **row}), flush=True)
    await adapter.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--top", type=int, default=1000)
    parser.add_argument("--step", type=int, default=200)
    parser.add_argument("--budget", type=float, default=1800)
    parser.add_argument("--queries", type=int, default=40)
    parser.add_argument("--reopen", default=None, help="a folder that a run left: measure opening it")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    if options.reopen:
        asyncio.run(reopen(options.reopen))
        return
    folder = tempfile.mkdtemp(prefix="streamfold-lightrag-")
    try:
        asyncio.run(run(options, folder))
        subprocess.run([sys.executable, __file__, "--reopen", folder], check=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
