"""Kafka → log → fold → view through real processes: an ingest, workers, PostgreSQL and Redis."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from typing import Any

import httpx

from streamfold.core import CandidateRequest, CandidateSource
from streamfold.core.fold import verify_group
from streamfold.core.ledger.abc import DeadLetter, Ledger
from streamfold.core.policy import Retrieval, Retriever
from streamfold.pipelines.node import Node
from tests.stand import STRUCTURED, Record, Stand, click, until
from tests.waiting import LONG_S


def next_offset(ledger: Ledger, topic: str) -> int:
    return sum(state.next_offset for state in ledger.intakes("default") if state.topic == topic)


def folded(ledger: Ledger, head: int) -> bool:
    marks = ledger.watermarks("default")
    return bool(marks) and ledger.head("default") >= head and all(mark >= head for mark, _ in marks.values())


def trending(node: Node) -> dict[str, float]:
    """The list of policy ``trending``, seen through a view of this process."""
    view = (node.views or node.start_serving()).workspace("default")
    view.follow()
    ((_, member),) = view.servers(CandidateSource, "trending")
    return dict(member.server.candidates(CandidateRequest(n=50, at_us=node.context.clock.now_us())))


def test_every_form_of_record_is_logged_folded_and_seen(stand: Stand) -> None:
    stand.start("ingest")  # before any topic exists
    stand.start("worker", "--role", "all")
    node = stand.node()
    ledger = node.ledger
    binary = [
        ("ce_specversion", b"1.0"),
        ("ce_id", b"bin-1"),
        ("ce_source", b"/shop"),
        ("ce_type", b"interaction.observed"),
        ("content-type", b"application/json"),
    ]
    stand.create_topics()
    stand.send(click(1), click(2), click(1), (None, b'{"user_id":"u","item_id":"sofa","action":"click"}', binary))
    item = b'{"specversion":"1.0","id":"i1","source":"/shop","type":"item.upserted","data":{"item_id":"vase"}}'
    reused = click(2, item="other")
    stand.send((None, item, []), (b"vase", None, []), (None, b"{not json", STRUCTURED), reused)
    invalid = click(3, data={"user_id": "u", "item_id": "lamp"})
    negative = click(4, data={"user_id": "u", "item_id": "lamp", "action": "rating", "value": -1})
    stand.send(invalid, negative)
    stand.send(
        (None, b'{"document_id":"d1","title":"Lamps","text":"Oil lamps burn oil."}', []), topic=f"{stand.topic}-docs"
    )
    stand.send((None, b'{"n":1,"who":"ada","what":"sofa"}', []), topic=f"{stand.topic}-rows")

    until("all records taken", lambda: next_offset(ledger, stand.topic) == 10, stand)
    until("other topics taken", lambda: ledger.head("default") >= 7, stand)
    until("folded", lambda: folded(ledger, 7), stand)
    assert ledger.head("default") == 7  # 2 clicks, 1 binary, item, its deletion, document, row

    found: dict[str, DeadLetter] = {}

    def four_letters() -> bool:
        found.update({letter.code: letter for letter in ledger.dead_letters("default")})
        return len(found) == 4

    until("dead letters", four_letters, stand)
    malformed = found["malformed"]
    assert (malformed.stage, malformed.offset, malformed.payload) == ("decode", f"{stand.topic}/0/6", b"{not json")
    assert malformed.source == stand.topic
    assert malformed.headers["content-type"].startswith("application/cloudevents+json")
    assert found["event-id-reused"].offset == f"{stand.topic}/0/7"
    assert "/data/value is -1: it must not be negative" in found["invalid-value"].detail
    assert {letter.offset for letter in found.values()} == {f"{stand.topic}/0/{n}" for n in (6, 7, 8, 9)}
    state = next(s for s in ledger.intakes("default") if s.topic == stand.topic)
    assert (state.events, state.duplicates, state.rejected) == (5, 1, 4)

    scores = trending(node)
    assert set(scores) == {"lamp", "sofa"}
    assert node.views is not None
    ((_, member),) = node.views.workspace("default").servers(Retriever, "graph_index")
    passages = member.server.retrieve(Retrieval(query="what do lamps burn?", top_k=1))
    assert [passage.document_id for passage in passages] == ["d1"]


def test_a_killed_ingest_resumes_at_the_ledgers_offset(stand: Stand) -> None:
    stand.create_topics()
    ledger = stand.node().ledger
    stand.send(*(click(n) for n in range(50)))
    first = stand.start("ingest", STREAMFOLD_CRASH="ingest.appended:1")  # appended, the broker never heard of it
    assert first.wait(timeout=LONG_S) == -signal.SIGKILL
    at = next_offset(ledger, stand.topic)
    assert 0 < at <= 50
    assert ledger.head("default") == at
    second = stand.start("ingest", STREAMFOLD_CRASH="ingest.polled:2")
    stand.send(*(click(n) for n in range(50, 60)))
    third: subprocess.Popen[bytes] | None = None

    def all_taken() -> bool:
        nonlocal third
        if second.poll() is not None and third is None:
            third = stand.start("ingest")
        return next_offset(ledger, stand.topic) == 60

    until("all taken", all_taken, stand)
    assert ledger.head("default") == 60
    assert sum(state.duplicates for state in ledger.intakes("default")) == 0  # resumed, not read again
    assert stand.stop(third or second) == 0


def test_two_consumers_of_one_partition_harm_nothing(stand: Stand) -> None:
    """Each is the other's zombie: whoever loses the compare-and-set steps back, and takes over when needed."""
    stand.create_topics(partitions=2)
    ledger = stand.node().ledger
    pair = [stand.start("ingest"), stand.start("ingest")]
    for batch in range(20):
        for partition in (0, 1):
            number = 20 * batch + 10 * partition
            stand.send(*(click(n) for n in range(number, number + 10)), partition=partition)
        time.sleep(0.1)
    until("all taken", lambda: next_offset(ledger, stand.topic) == 400, stand)
    assert ledger.head("default") == 400
    assert sum(state.duplicates for state in ledger.intakes("default")) == 0
    pair[0].kill()
    stand.send(*(click(n) for n in range(400, 410)), partition=0)
    stand.send(*(click(n) for n in range(410, 420)), partition=1)
    until("the other took over", lambda: next_offset(ledger, stand.topic) == 420, stand)
    assert stand.stop(pair[1]) == 0


def test_workers_share_the_work_and_survive_a_kill(stand: Stand) -> None:
    stand.create_topics()
    node = stand.node()
    stand.start("ingest")
    workers = [stand.start("worker", "--role", "fold"), stand.start("worker", "--role", "fold")]
    stand.start("worker", "--role", "prepare", "--concurrency", "2")
    stand.send(*(click(n) for n in range(500)))
    documents: list[Record] = [
        (None, json.dumps({"document_id": f"d{n}", "text": f"Text {n}."}).encode(), []) for n in range(20)
    ]
    stand.send(*documents, topic=f"{stand.topic}-docs")
    until("folded", lambda: folded(node.ledger, 520), stand)
    workers[0].kill()
    stand.send(*(click(n) for n in range(500, 1000)))
    until("the other took over", lambda: folded(node.ledger, 1020), stand)
    assert trending(node).keys() == {"lamp"}
    assert stand.stop(workers[1]) == 0
    assert all(state.owner is None for state in node.ledger.groups("default") if state.group.startswith("trending"))
    for group in node.context.groups("default"):
        assert verify_group(node.context, "default", group).equal


def test_without_a_broker_the_sweep_keeps_everything_going(stand: Stand) -> None:
    stand.create_topics()
    node = stand.node()
    nowhere = {"STREAMFOLD_BROKER__URL": "redis://127.0.0.1:9/0"}
    stand.start("ingest", **nowhere)
    worker = stand.start("worker", **nowhere)
    stand.send(*(click(n) for n in range(30)))
    stand.send((None, b'{"document_id":"d1","text":"Oil lamps burn oil."}', []), topic=f"{stand.topic}-docs")
    until("folded", lambda: folded(node.ledger, 31), stand)
    assert stand.stop(worker) == 0


def test_a_position_is_reached_without_waiting_for_a_sweep(stand: Stand) -> None:
    """No policy here handles users; their watermarks move past each of them nevertheless, in a worker too."""
    seldom = {"STREAMFOLD_FOLD__SWEEP_S": "3600"}
    stand.start("worker", **seldom)
    stand.start("cli", "serve", "--port", "0", **seldom)
    said = until("serving", lambda: re.search(r"streamfold serves on (http://\S+)", stand.logs()), stand)
    node = stand.node()
    with httpx.Client(base_url=said[1], timeout=120.0, trust_env=False) as client:

        def post(number: int, type_: str, data: dict[str, Any]) -> int:
            event = {"specversion": "1.0", "id": f"e{number}", "source": "/t", "type": type_, "data": data}
            return int(client.post("/v1/events", json=[event]).raise_for_status().json()["position"])

        def heard() -> bool:
            """Whether the worker follows the broker by now: it is told of each event, and looks at nothing else.

            Only when it starts does it look by itself: then nobody has told it of the second of two events.
            """
            for _ in range(2):
                position = post(node.ledger.head("default"), "item.upserted", {"item_id": "lamp", "title": "A lamp"})
                end = time.monotonic() + 20
                while not folded(node.ledger, position):
                    if time.monotonic() > end:
                        return False
                    time.sleep(0.05)
                time.sleep(0.5)  # it looks once more after a fold
            return True

        until("ready", lambda: client.get("/readyz").status_code == 200, stand)
        until("the worker hears", heard, stand)
        for number in range(30):
            position = post(1000 + number, "user.upserted", {"user_id": f"u{number}"})
            answer = client.get("/v1/trending", params={"min_position": position, "wait_ms": 30_000})
            assert answer.status_code == 200, f"{answer.text}\n{stand.logs()}"
            assert answer.json()["version"]["position"] >= position
