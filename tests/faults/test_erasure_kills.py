"""kill -9 at each step of an erasure: the next life completes it, and the others lose nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness import FOLD, KILLS, Load, Sender, Service, open_node, wait_for, write_settings

from streamfold.core.fold import verify_group
from streamfold.core.ledger.abc import ERASED
from streamfold.core.settings import load_settings

POINTS = [
    "erase.forgotten", "erase.rebuilt", "erase.swap.in", "checkpoint.in", "erase.checkpointed", "erase.before_scrub",
    "erase.scrub.in", "erase.scrubbed", "erase.looked", "erase.finish.in", "erase.settled",
]  # fmt: skip


class Installation:
    def __init__(self, folder: Path) -> None:
        config = write_settings(folder, fold=FOLD | {"checkpoint_min_bytes": 1 << 30})
        self.folder = folder
        self.settings = load_settings(config)
        self.service = Service(folder, config)
        self.sender = Sender(Load("e", 1), 1)
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.service.port}", timeout=60)

    def start(self, crash: str = "") -> None:
        self.service.start(crash=crash)
        self.service.wait_ready()

    def report(self, position: int) -> dict[str, Any]:
        found: dict[str, Any] = self.http.get(f"/v1/erasures/{position}").json()
        return found

    def files_with(self, *needles: str) -> list[str]:
        files = [file for file in (self.folder / "data").rglob("*") if file.is_file()]
        return [f"{n} in {file}" for file in files for n in needles if n.encode() in file.read_bytes()]


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    made = Installation(tmp_path_factory.mktemp("erasure-kills"))
    yield made
    made.service.close()
    made.http.close()


def about(user: str, document: str) -> list[dict[str, Any]]:
    def event(id_: str, type_: str, **data: Any) -> dict[str, Any]:
        return {"specversion": "1.0", "id": id_, "source": "erased", "type": type_, "data": data}

    clicks = [
        event(f"{user}-{i}", "interaction.observed", user_id=user, item_id=f"i{i % 9}", action="click")
        for i in range(30)
    ]
    text = f"What only {document} says, in a sentence that is long enough to be looked for."
    return [*clicks, event(f"{document}-1", "document.upserted", document_id=document, text=text)]


@pytest.mark.parametrize("point", POINTS if KILLS > 15 else POINTS[1::2])
def test_a_killed_erasure_is_completed_by_the_next_life(installation: Installation, point: str) -> None:
    user, document = f"user-of-{point}", f"document-of-{point}"
    own = about(user, document)
    one = installation
    one.start(crash=f"{point}:1")
    assert one.sender.send_one(one.service)
    assert one.service.send(own, wait=True) is not None
    positions = []
    for body in ({"user_id": user}, {"document_id": document}):
        try:
            positions.append(one.http.post("/v1/erasures", json=body).json()["position"])
        except httpx.HTTPError:
            break  # killed while it was answered, or before
    wait_for(f"{point} to be reached", lambda: one.service.was_killed())
    one.start()
    if len(positions) < 2:
        positions.append(one.http.post("/v1/erasures", json={"document_id": document}).json()["position"])
    for position in positions:
        wait_for(f"erasure {position}", lambda p=position: one.report(p)["state"] in ("complete", "failed"))  # type: ignore[misc]  # bound now
        report = one.report(position)
        assert report["state"] == "complete", report
        assert all(store["residue"] == 0 for store in report["stores"]), report
    again = one.service.send(own)
    assert again is not None
    assert (again["accepted"], again["duplicates"]) == (0, len(own)), "a redelivery has no effect"
    assert one.service.stop() in (0, -15), one.service.tail()
    assert one.files_with(user, document) == []
    node = open_node(one.settings)
    try:
        left = [row for row in node.ledger.read("default", 0, 10_000).rows if row.effect != ERASED]
        ids = [node.registry.event_types.decode(row).id for row in left]
        assert sorted(ids) == sorted(event["id"] for event in one.sender.acknowledged), "the others lose nothing"
        for group in node.context.groups("default", fresh=True):
            verdict = verify_group(node.context, "default", group)
            assert verdict.equal, verdict.differences
    finally:
        node.close()
