"""``vector_index`` on layered vectors: checkpoints, restarts and damaged segment files of a whole service."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from harness import (
    SEED,
    Event,
    Load,
    check_everything,
    is_caught_up,
    open_node,
    wait_for,
    write_settings,
)

from streamfold.core.events import NewEvent, decode_http
from streamfold.core.events.codecs import BATCH
from streamfold.core.settings import Settings, load_settings
from streamfold.core.stores.vectors import LayeredVectors
from streamfold.pipelines.node import Node

W = "default"
SMALL = {"exact_rows": 64, "probe_every": 20}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    fold = {"checkpoint_min_bytes": 500, "min_free_bytes": 0}
    return load_settings(write_settings(tmp_path, policies={"vector_index": {}}, vectors=SMALL, fold=fold))


def documents(name: str, count: int) -> list[Event]:
    """Upserts, updates and deletions of documents."""
    load = Load(name, SEED, documents=count)
    made: list[Event] = []
    while len(made) < count:
        made += [event for event in load.batch(50) if event["type"].startswith("document")]
    return made


def send(node: Node, events: Sequence[Event]) -> None:
    import msgspec

    for start in range(0, len(events), 50):
        batch = events[start : start + 50]
        found = node.acceptor.accept_many(decode_http(BATCH, {}, msgspec.json.encode(batch)))
        good = [event for event in found if isinstance(event, NewEvent)]
        assert len(good) == len(batch)
        node.ledger.append(W, good, recorded_us=node.context.clock.now_us())
        node.appended(W)
        wait_for("the folds", lambda: is_caught_up(node))


def served(node: Node) -> Any:
    """The view's vectors, everything folded being in them."""
    assert node.views is not None
    view = node.views.workspace(W)
    assert view.wait(node.ledger.head(W), None, 20), "the views do not serve what was folded"
    return view.member("vector_index")["vectors"]


def check_served(vectors: Any) -> None:
    """The served index is a layered one, its rows have left the exact buffer, and each finds itself."""
    index = vectors._index
    assert isinstance(index, LayeredVectors)
    index.wait()
    assert sum(index.stats().segments) > 0, index.stats()
    ids, rows = index.export()
    assert len(vectors) == len(ids) > SMALL["exact_rows"]
    found, scores = vectors.search(rows, 5)
    exact = np.sort(rows @ rows.T, axis=1)[:, ::-1]
    np.testing.assert_allclose(scores[:, 0], exact[:, 0], atol=2e-3)
    recall = float(np.mean(scores[:, 4] >= exact[:, 4] - 2e-3))
    assert recall >= 0.9, recall
    assert (np.sort(found, axis=1)[:, 1:] != np.sort(found, axis=1)[:, :-1]).all()


def run(settings: Settings, events: Sequence[Event]) -> None:
    node = open_node(settings)
    try:
        node.context.pin(W)
        node.start_serving()
        send(node, events)
        wait_for("a checkpoint", lambda: all(state.checkpoint for state in node.ledger.groups(W)))
        check_served(served(node))
    finally:
        node.close()


def newest_checkpoint(settings: Settings) -> Path:
    node = open_node(settings)
    try:
        (state,) = node.ledger.groups(W)
        return Path(settings.checkpoint_root) / W / state.group / str(state.checkpoint)
    finally:
        node.close()


def test_a_service_lives_on_layered_vectors_through_restarts(settings: Settings) -> None:
    events: list[Event] = []
    for life in range(2):
        more = documents(f"life{life}", 150)
        run(settings, more)
        events += more
    check_everything(settings, events)


@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_a_damaged_segment_is_found_and_refolded_from_the_log(
    settings: Settings, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[Event] = []
    files: list[Path] = []
    while not files:  # a checkpoint is written from a fresh copy, whose merges may still be under way
        assert len(events) < 1000
        more = documents(f"before{len(events)}", 150)
        run(settings, more)
        events += more
        files = list(newest_checkpoint(settings).rglob("*.faiss"))
    file = files[0]
    data = bytearray(file.read_bytes())
    file.unlink()
    if damage == "flip":
        data[random.Random(SEED).randrange(len(data))] ^= 0x10
        file.write_bytes(data)
    more = documents("after", 50)
    caplog.clear()
    run(settings, more)
    assert "checkpoint_corrupt" in caplog.text
    assert file.name in caplog.text
    check_everything(settings, events + more)


def test_other_parameters_of_the_index_change_no_content(settings: Settings, tmp_path: Path) -> None:
    """Between two starts the sizes and the kind may change: the rows are those of the log all the same."""
    events = documents("before", 150)
    run(settings, events)
    changed = settings.model_copy(
        update={"vectors": settings.vectors.model_copy(update={"exact_rows": 100, "index": "hnsw"})}
    )
    more = documents("after", 50)
    run(changed, more)
    check_everything(changed, events + more)
    check_everything(settings, events + more)
