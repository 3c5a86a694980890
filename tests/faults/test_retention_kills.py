"""kill -9 at each step of what leaves the log: nothing is lost, nothing is archived twice, no nameless file stays."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness import (
    FOLD,
    KILLS,
    LONG_S,
    Expected,
    Load,
    Sender,
    Service,
    _check_group,
    fold_to_the_end,
    open_node,
    wait_for,
    write_settings,
)

from streamfold.core.archive.files import Reader
from streamfold.core.fold import verify_group
from streamfold.core.settings import load_settings
from streamfold.pipelines.node import Node

LEAVING = [
    "retention.writing", "retention.written", "retention.depart.in", "retention.departed", "retention.clear.in",
    "retention.cleared",
]  # fmt: skip
ERASING = ["erase.archive_written", "erase.scrub.in", "erase.scrubbed", "erase.archive_swept"]
AWAY = ["retention.depart.in", "retention.away"]
IDS = ["retention.prune.in", "retention.pruned"]


class Installation:
    def __init__(self, folder: Path, **retention: Any) -> None:
        given = {"keep_s": 1.0, "compact": True, "compact_after_s": 0.5, "every_s": 0.5, "dedup_window_s": 0}
        config = write_settings(folder, fold=FOLD, retention=given | retention)
        self.settings = load_settings(config)
        self.service = Service(folder, config)
        self.sender = Sender(Load("r", 1), 1)
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.service.port}", timeout=60)

    def start(self, crash: str = "") -> None:
        """Start; one that is to be killed may be dead before it is ready."""
        self.service.start(crash=crash)
        wait_for("a life", lambda: self.service.get("/readyz") == 200 or self.service.was_killed())

    def send_until(self, true: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LONG_S
        while not true():
            assert time.monotonic() < deadline, self.service.tail()
            self.sender.send_one(self.service)
            time.sleep(0.05)

    def get(self, path: str) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get(path).json()
        return found

    def run_once_more(self) -> None:
        """Let the retention run from its beginning to its end in this life."""
        job = self.http.post("/v1/retention", json={}).json()["job_id"]
        wait_for("the retention", lambda: self.get(f"/v1/jobs/{job}")["state"] in ("done", "failed"))
        assert self.get(f"/v1/jobs/{job}")["state"] == "done", self.get(f"/v1/jobs/{job}")

    def stop(self) -> None:
        assert self.service.stop() in (0, -15), self.service.tail()
        fold_to_the_end(self.settings)

    def close(self) -> None:
        self.service.close()
        self.http.close()


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    made = Installation(tmp_path_factory.mktemp("retention-kills"))
    yield made
    made.close()


def ids_of(node: Node) -> list[str]:
    ids, after = [], 0
    while rows := node.context.history.read("default", after, 1000).rows:
        ids += [node.registry.event_types.decode(row).id for row in rows if row.effect == 0]
        after = rows[-1].seq
    return ids


def check_archive(one: Installation) -> None:
    """Log and archive hold each event once; files, departures and what was folded agree."""
    node = open_node(one.settings)
    try:
        ids, expected = ids_of(node), Expected.of(one.sender.acknowledged)
        assert not [id_ for id_, count in Counter(ids).items() if count > 1]
        own = {id_ for id_ in ids if id_ in expected.ids}
        assert own == expected.ids, sorted(expected.ids - own)[:5]
        history, departures = node.context.history, node.ledger.departures("default")
        seqs = [seq for d in departures for seq in Reader(history.path("default", d)).seqs()]
        assert seqs
        assert len(seqs) == len(set(seqs)), "an event is in one file"
        assert {d.name for d in departures} == {file.name for file in history.folder("default").iterdir()}
        for group in node.context.groups("default", fresh=True):
            _check_group(node, "default", group, expected)
            verdict = verify_group(node.context, "default", group)
            assert verdict.equal, verdict.differences
    finally:
        node.close()


@pytest.mark.parametrize("point", LEAVING if KILLS > 15 else LEAVING[1::2])
def test_a_killed_run_is_taken_up_by_the_next_life(installation: Installation, point: str) -> None:
    one = installation
    one.start(crash=f"{point}:1")
    one.send_until(one.service.was_killed)
    one.start()
    before = len(one.sender.acknowledged)
    one.send_until(lambda: len(one.sender.acknowledged) > before + 50)
    one.run_once_more()
    one.stop()
    check_archive(one)


@pytest.mark.parametrize("point", ERASING if KILLS > 15 else ERASING[::3])
def test_a_killed_erasure_leaves_nothing_in_the_archive(installation: Installation, point: str) -> None:
    one, user = installation, f"user-of-{point}"
    data = {"user_id": user, "item_id": f"item-of-{user}", "action": "click"}
    mine = [
        {"specversion": "1.0", "id": f"{user}-{i}", "source": "e", "type": "interaction.observed", "data": data}
        for i in range(20)
    ]
    one.start(crash=f"{point}:1")
    answer = one.service.send(mine)
    assert answer is not None
    one.send_until(
        lambda: (one.get("/v1/retention")["report"] or {"expired_upto": 0})["expired_upto"] >= answer["position"]
    )
    position = one.http.post("/v1/erasures", json={"user_id": user}).json()["position"]
    wait_for(f"{point} to be reached", one.service.was_killed)
    one.start()
    wait_for("the erasure", lambda: one.get(f"/v1/erasures/{position}")["state"] in ("complete", "failed"))
    report = one.get(f"/v1/erasures/{position}")
    assert report["state"] == "complete", report
    assert report["removed"]["archive_files"] > 0
    assert not [line for line in report["stores"] if line["residue"]]
    one.run_once_more()
    one.stop()
    check_archive(one)
    node = open_node(one.settings)
    try:
        assert not [id_ for id_ in ids_of(node) if id_.startswith(user)]
        history = node.context.history
        for file in history.folder("default").iterdir():
            reader = Reader(file)
            rows = [row for number in reader.groups(0, 2**62) for row in reader.rows(number)]
            assert not [row for row in rows if user.encode() in row.body]
    finally:
        node.close()


@pytest.mark.parametrize("point", AWAY if KILLS > 15 else AWAY[:1])
def test_without_an_archive_a_killed_run_loses_nothing_that_is_folded(tmp_path: Path, point: str) -> None:
    one = Installation(tmp_path, archive=False)
    try:
        one.start(crash=f"{point}:2")
        one.send_until(one.service.was_killed)
        one.start()
        one.send_until(lambda: not one.sender.pending)
        one.run_once_more()
        one.stop()
        node = open_node(one.settings)
        try:
            assert sum(d.events for d in node.ledger.departures("default")) > 0
            for group in node.context.groups("default", fresh=True):
                _check_group(node, "default", group, Expected.of(one.sender.acknowledged))
                if node.context.reach("default", group).rebuild != "impossible":
                    assert verify_group(node.context, "default", group).equal
        finally:
            node.close()
    finally:
        one.close()


@pytest.mark.parametrize("point", IDS if KILLS > 15 else IDS[:1])
def test_a_killed_run_forgets_the_ids_in_the_next_life(tmp_path: Path, point: str) -> None:
    one = Installation(tmp_path, keep_s=0, compact=False, dedup_window_s=1.0)
    try:
        one.start(crash=f"{point}:1")
        sent = one.sender.load.batch(50)
        assert one.service.send(sent) is not None
        wait_for(f"{point} to be reached", one.service.was_killed)
        one.start()
        wait_for("the window to pass", lambda: one.get("/v1/retention")["report"] is not None)
        time.sleep(1.1)  # the window itself
        one.run_once_more()
        one.stop()
        node = open_node(one.settings)
        try:
            assert node.ledger.find_seqs("default", sent[0]["id"]) == []
            assert sorted(ids_of(node)) == sorted(event["id"] for event in sent)
        finally:
            node.close()
    finally:
        one.close()
