"""A worker's sweep among many workspaces: it meets each once, then looks at those with work, and misses none."""

from __future__ import annotations

from pathlib import Path

from streamfold.core.settings import FoldSettings, LedgerSettings, Settings
from streamfold.pipelines.node import Node
from streamfold.pipelines.worker import Worker
from tests.waiting import until


def test_workspaces_without_work_are_pinned_and_then_left_alone(tmp_path: Path, postgres_database: str) -> None:
    settings = Settings(
        data=tmp_path,
        policies={"trending": {}},
        ledger=LedgerSettings(url=postgres_database),
        fold=FoldSettings(sweep_s=0.1, max_warm_groups=3, lease_s=0.4),
    )
    node = Node(settings)
    names = [f"w{n}" for n in range(8)]
    for name in names:
        node.ledger.ensure_workspace(name)
    worker = Worker(node, "fold", 1)

    def send(name: str, number: int) -> None:
        data = {"user_id": "u", "item_id": "i", "action": "click"}
        event = node.acceptor.accept_data("interaction.observed", data, id=f"{number}", source="t")
        node.ledger.append(name, [event], recorded_us=node.context.clock.now_us())

    def folded(name: str, upto: int) -> bool:
        return any(mark == upto for mark, _ in node.ledger.watermarks(name).values())

    worker.start()
    try:
        until(lambda: all(node.ledger.instances(name) for name in names))
        assert worker.runner.warm() == set()  # nothing to fold, so nothing was recovered
        until(lambda: worker._to_visit() == [])  # the last one is noted after its instances are there
        for number in (1, 2, 3):
            for name in names:
                send(name, number)
            until(lambda upto=number: all(folded(name, upto) for name in names))
        until(lambda: 0 < len(worker.runner.warm()) <= 4)
        assert node.ledger.behind() == []
        assert set(worker._to_visit()) <= worker.runner.warm() | set(names)
    finally:
        worker.stop()
        node.close()
