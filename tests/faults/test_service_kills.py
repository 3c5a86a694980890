"""kill -9 of the embedded service under load, at each of its crash points and at random moments.

One installation lives through all kills. After each: every acknowledged event is in the log once, the batch under way
is there wholly or not at all, the stores hold what the oracle says, and ``verify`` is equal. The next life begins with
the batch under way being sent again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import (
    LONG_S,
    SEED,
    Load,
    Sender,
    Service,
    check_everything,
    kill_later,
    logged_ids,
    open_node,
    pick,
    share_of_kills,
    wait_for,
    write_settings,
)

from streamfold.core.settings import load_settings

POINTS = [
    "append.in", "commit.in", "checkpoint.in", "append.before", "append.after", "commit.before", "commit.after",
    "checkpoint.written", "checkpoint.pointer.after", "random", "checkpoint.pointer.before", "fold.committed",
]  # fmt: skip
KILLS = list(enumerate(pick(POINTS, share_of_kills(2 / 3), SEED)))


class Installation:
    def __init__(self, folder: Path) -> None:
        config = write_settings(folder)
        self.settings = load_settings(config)
        self.service = Service(folder, config)
        self.sender = Sender(Load("a", SEED), SEED)

    def check_after_kill(self) -> None:
        """Acknowledged ⊆ log ⊆ acknowledged + pending, the pending batch wholly or not at all, and all that follows."""
        sender = self.sender
        node = open_node(self.settings)
        try:
            logged = set(logged_ids(node))
        finally:
            node.close()
        under_way = [event["id"] in logged for event in sender.pending]
        assert all(under_way) or not any(under_way), "half of a batch is in the log"
        check_everything(self.settings, sender.acknowledged + (sender.pending if any(under_way) else []))


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    made = Installation(tmp_path_factory.mktemp("service"))
    yield made
    made.service.close()


@pytest.mark.parametrize(("number", "point"), KILLS, ids=[f"{n}-{p}" for n, p in KILLS])
def test_a_killed_service_loses_and_doubles_nothing(installation: Installation, number: int, point: str) -> None:
    seed = SEED * 1000 + number
    print(f"seed={seed} point={point}")
    rng = random.Random(seed)
    service, sender = installation.service, installation.sender
    count = rng.randint(1, 2) if point.startswith("checkpoint") else rng.randint(5, 12)
    service.start(crash="" if point == "random" else f"{point}:{count}")
    service.wait_ready()
    least = rng.randint(50, 400)
    moment = rng.uniform(0, 0.3)
    progress = sender.send_until_dead(
        service,
        least=least,
        after=(lambda: kill_later(service, moment)) if point == "random" else (lambda: None),
        timeout_s=LONG_S,
    )
    assert service.was_killed(), f"{point}:{count} was never reached; {service.tail()}"
    assert progress > 0, "killed before any progress"
    installation.check_after_kill()


def test_the_last_life_takes_what_was_under_way(installation: Installation) -> None:
    """After all the kills a client that goes on sending has everything in, once; a graceful stop ends cleanly."""
    service, sender = installation.service, installation.sender
    service.start()
    service.wait_ready()
    wait_for("it to take them", lambda: sender.send_one(service) and len(sender.acknowledged) >= 200)
    answer = service.send(sender.acknowledged[-1:], wait=True)
    assert answer is not None
    assert answer["visible"]
    assert answer["duplicates"] == 1
    assert service.stop() in (0, -15), service.tail()
    check_everything(installation.settings, sender.acknowledged)
