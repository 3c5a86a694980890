"""Extraction by several worker processes' loops on PostgreSQL: each document once, whoever asks."""

from __future__ import annotations

from pathlib import Path

from streamfold.core.settings import FoldSettings, LedgerSettings, Settings
from streamfold.core.testing.model_server import ModelServer
from streamfold.pipelines.node import Node
from streamfold.pipelines.worker import Worker
from tests.waiting import until

DOCUMENTS = 24


def test_workers_share_the_documents_and_fold_what_the_model_told(tmp_path: Path, postgres_database: str) -> None:
    with ModelServer() as model:
        model.always = lambda body: {"delay_s": 0.05}
        extractor = {"use": "llm", "model": "m", "base_url": model.url, "concurrency": 2}
        settings = Settings(
            data=tmp_path,
            policies={"graph_index": {}},
            backends={"encoder": {"use": "hashing"}, "extractor": extractor},
            ledger=LedgerSettings(url=postgres_database),
            fold=FoldSettings(sweep_s=0.2),
        )
        nodes = [Node(settings) for _ in range(3)]
        ledger = nodes[0].ledger
        ledger.ensure_workspace("default")
        workers = [Worker(node, role, 1) for node, role in zip(nodes, ("prepare", "prepare", "all"), strict=True)]
        for worker in workers:
            worker.start()
        try:
            acceptor, now_us = nodes[0].acceptor, nodes[0].context.clock.now_us
            for number in range(DOCUMENTS):
                data = {"document_id": f"d{number}", "text": f"Person {chr(65 + number)}x works at Acme Works."}
                event = acceptor.accept_data("document.upserted", data, id=str(number), source="t")
                ledger.append("default", [event], recorded_us=now_us())

            def extracted() -> int:
                return len(ledger.read("default", 0, 1000, types=["document.extracted"]).rows)

            def folded() -> bool:
                return [mark for mark, _ in ledger.watermarks("default").values()] == [ledger.head("default")]

            until(lambda: extracted() >= DOCUMENTS and folded())
            assert extracted() == DOCUMENTS
            assert sorted(model.texts) == sorted({*model.texts}), "nothing was asked twice"
            assert len(model.texts) == DOCUMENTS
        finally:
            for worker in workers:
                worker.stop()
            for node in nodes:
                node.close()
