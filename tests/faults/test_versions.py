"""kill -9 in the midst of adding, promoting, rolling back and rebuilding: the old version serves, or the new.

One installation lives through all kills. After each, exactly one group of the policy is live, slots and times agree
with each other and with the audit trail, every version holds what the oracle says, and ``verify`` is equal.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness import (
    FOLD,
    LONG_S,
    SEED,
    Load,
    Proc,
    Sender,
    Service,
    check_state,
    logged_ids,
    open_node,
    wait_for,
    write_settings,
)

from streamfold.core.settings import Settings, load_settings
from streamfold.pipelines.node import Node

MINUTE = [86_400.0, 60.0]
"""Half-lives of the added version: it answers for 60 s, which the declared one refuses."""
KILLS = [
    ("add", "versions.add.in"), ("add", "versions.add.after"),
    ("promote", "versions.promote.before"), ("promote", "versions.promote.in"), ("promote", "versions.promote.after"),
    ("rollback", "versions.promote.before"), ("rollback", "versions.promote.in"),
    ("rollback", "versions.promote.after"),
    ("rebuild", "versions.replace.before"), ("rebuild", "versions.replace.in"), ("rebuild", "versions.replace.after"),
]  # fmt: skip


def post(service: Service, path: str, **body: Any) -> dict[str, Any] | None:
    """Ask for an operation; None when the process was killed over it."""
    try:
        answer = service._client.post(path, json={"reason": "test"} | body, timeout=LONG_S)
    except httpx.HTTPError:
        return None
    assert answer.status_code == 202, answer.text
    made: dict[str, Any] = answer.json()
    return made


def add(service: Service) -> dict[str, Any] | None:
    return post(service, "/v1/policies", name="trending", config={"half_lives_s": MINUTE}, rate=100_000)


def act(service: Service, action: str, **body: Any) -> dict[str, Any] | None:
    return post(service, f"/v1/policies/trending/{action}", **body)


def slots(node: Node) -> dict[str, str]:
    return {i.group: i.slot for i in node.ledger.instances("default") if i.slot != "retired"}


def live(node: Node) -> str:
    [group] = [name for name, slot in slots(node).items() if slot == "live"]
    return group


def is_at_rest(node: Node) -> bool:
    """Has every version folded all there is, and every rebuild taken its place?"""
    marks = node.ledger.watermarks("default")
    pending = [state.replaces for state in node.ledger.groups("default") if state.group in slots(node)]
    return not any(pending) and all(
        not node.ledger.read("default", marks[g.name][0], 1, types=sorted(g.handles)).rows
        for g in node.context.groups("default", fresh=True)
    )


def check_slots(node: Node) -> None:
    """Slots, times of retirement and the audit trail tell one story."""
    serving = live(node)
    for state in node.ledger.groups("default"):
        if state.group == serving:
            assert (state.retire_us, state.replaces, state.paused) == (0, None, False)
    trail = [a.action for a in node.ledger.audits("default", limit=1000)]
    swaps = trail.count("promote") + trail.count("rollback")
    demoted = [state.group for state in node.ledger.groups("default") if state.retire_us]
    assert (swaps == 0) <= (not demoted)
    assert len(node.ledger.instances("default")) == 1 + trail.count("add") + trail.count("rebuild")


class Installation:
    def __init__(self, folder: Path) -> None:
        config = write_settings(folder, policies={"trending": {}})
        self.settings = load_settings(config)
        self.service = Service(folder, config)
        self.sender = Sender(Load("v", SEED), SEED)

    def check(self) -> str:
        """Check what a killed process left, then let it come to rest and check all stores; return who is live."""
        sender = self.sender
        node = open_node(self.settings)
        try:
            left = live(node)
            check_slots(node)
            logged = set(logged_ids(node))
        finally:
            node.close()
        under_way = [event["id"] in logged for event in sender.pending]
        assert all(under_way) or not any(under_way)
        settle(self.settings, sender.acknowledged + (sender.pending if any(under_way) else []))
        return left


def settle(settings: Settings, events: list[Any]) -> None:
    node = open_node(settings)
    try:
        node.start_serving()
        wait_for("every version to catch up", lambda: is_at_rest(node))
    finally:
        node.close()
    node = open_node(settings)
    try:
        check_slots(node)
        check_state(node, events)
    finally:
        node.close()


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    made = Installation(tmp_path_factory.mktemp("versions"))
    made.service.start()  # a first life, in which the declared policy is pinned
    made.service.wait_ready()
    for _ in range(5):
        made.sender.send_one(made.service)
    made.service.stop()
    yield made
    made.service.close()


@pytest.mark.parametrize(("action", "point"), KILLS, ids=[f"{a}-{p}" for a, p in KILLS])
def test_a_kill_leaves_the_old_version_or_the_new(installation: Installation, action: str, point: str) -> None:
    service, sender = installation.service, installation.sender
    node = open_node(installation.settings)
    before, shadows = live(node), [group for group, slot in slots(node).items() if slot == "shadow"]
    node.close()
    service.start(crash=point)
    service.wait_ready()
    if action == "promote":
        target = shadows[0]
        wait_for("the shadow", lambda: service.get("/v1/trending?half_life_s=60&policy=" + target) == 200)

    def operate() -> None:
        done = add(service) if action == "add" else act(service, action)
        if action == "add":
            assert done is None, "it was to be killed over it"

    thread = threading.Thread(target=operate)
    thread.start()
    sender.send_until_dead(service, least=1, after=lambda: None, timeout_s=LONG_S)
    thread.join()
    assert service.was_killed(), f"{point} was never reached; {service.tail()}"
    left = installation.check()
    node = open_node(installation.settings)
    try:
        now = slots(node)
        if action == "add":
            assert left == before
            assert len(now) == (1 if point.endswith(".in") else 2)
        elif action in ("promote", "rollback"):
            assert (left != before) == point.endswith(".after")
            assert set(now.values()) == {"live", "shadow"}
        else:  # the next life has ended the rebuild, if this one had not
            assert (left != before) == point.endswith(".after")
            assert live(node) != before
            assert before not in now
    finally:
        node.close()


def test_replicas_and_workers_on_postgresql_switch_and_survive_kills(tmp_path: Path, postgres_database: str) -> None:
    """Two API hosts and a worker: a promotion reaches both without a restart; kills in its midst leave old or new."""
    config = write_settings(
        tmp_path, policies={"trending": {}}, ledger={"url": postgres_database}, fold=FOLD | {"sweep_s": 0.2}
    )
    settings = load_settings(config)
    open_node(settings).close()  # migrates
    one, other = Service(tmp_path, config), Service(tmp_path, config)
    other.log = tmp_path / "other.log"
    worker = Proc(tmp_path, "worker", "streamfold.pipelines.worker", "--config", str(config), "--role", "all")
    sender = Sender(Load("p", SEED), SEED)

    def answers_new(service: Service) -> bool:
        return service.get("/v1/trending?half_life_s=60") == 200

    def swap(action: str, **body: Any) -> None:
        assert act(one, action, **body) is not None, one.tail()

    try:
        for process in (one, other, worker):
            process.start()
        for service in (one, other):
            service.wait_ready()
        for _ in range(5):
            assert sender.send_one(one)
        added = add(one)
        assert added is not None
        wait_for("the shadow on the other host", lambda: other.get(
            f"/v1/trending?half_life_s=60&policy={added['policy']}") == 200)  # fmt: skip
        assert not answers_new(one)
        wait_for("the backfill", lambda: one._client.get(f"/v1/jobs/{added['job_id']}").json()["state"] == "done")
        swap("promote")
        for service in (one, other):
            wait_for(f"{service.name} to switch", lambda service=service: answers_new(service))  # type: ignore[misc]  # a bound default
        swap("rollback")
        wait_for("the other to switch back", lambda: not answers_new(other))

        one.kill()
        one.start(crash="versions.promote.in")  # the demoted version is the one shadow: named, it may be promoted
        one.wait_ready()
        assert act(one, "promote", version=added["policy"].partition("@")[2]) is None
        wait_for("the kill", one.was_killed)
        assert not answers_new(other), "half of a promotion was seen"
        assert sender.send_one(other)
        one.start()
        one.wait_ready()
        swap("rollback")
        wait_for("the other to switch again", lambda: answers_new(other))

        worker.kill()
        worker.start(crash="versions.replace.in")
        assert act(one, "rebuild") is not None
        wait_for("the worker's kill", worker.was_killed)
        assert answers_new(other)
        worker.start()
        node = open_node(settings)
        try:
            wait_for("the rebuild to take its place", lambda: live(node).endswith(".1"))
            wait_for("every version to catch up", lambda: is_at_rest(node))
            wait_for("the other host to serve it", lambda: answers_new(other))
            check_slots(node)
            check_state(node, sender.acknowledged)
        finally:
            node.close()
    finally:
        worker.kill()
        one.close()
        other.close()
