"""Erasure of a user with 1,000 events among many: until hidden, and until nothing is left, embedded."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import harness
import numpy as np
from harness import Figure

from streamfold.core import Event, Policy, Stores, Subject, Table
from streamfold.core.settings import Settings
from streamfold.pipelines.node import Node

OWN = 1_000
_BATCH = 10_000


class Users(Policy):
    """Each user's interactions counted: a policy that forgets exactly."""

    name, version, handles = "users", 1, ("interaction.observed",)
    stores: ClassVar = (Table("count", key=str, value=int),)

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        user = event.data.user_id
        stores["count"].put(user, stores["count"].get(user, 0) + 1)

    def forget(self, subject: Subject, events: Any, stores: Stores) -> None:
        stores["count"].delete(subject.id)


def erasure(quick: bool, repeats: int) -> list[Figure]:
    """An exact policy alone, then ``trending``, which is folded afresh."""
    del repeats
    total = 100_000 if quick else 1_000_000
    figures = []
    for name in ("users", "trending"):
        hidden = Figure(f"erasure hidden, {name}, {OWN:,} events among {total:,}", "ms", 20)
        bar = 10 if name == "users" else float("inf")
        complete = Figure(f"erasure complete, {name}, {OWN:,} events among {total:,}", "s", bar)
        with tempfile.TemporaryDirectory(prefix="streamfold-erasure-") as folder:
            _measure(Path(folder), name, total, hidden, complete)
        figures += [hidden, complete]
    return figures


def _measure(folder: Path, policy: str, total: int, hidden: Figure, complete: Figure) -> None:
    settings = Settings(data=folder, backends={"encoder": {"use": "hashing"}, "chunker": {"use": "sentences"}},
                        policies={"trending": {}} if policy == "trending" else {})  # fmt: skip
    node = Node(settings)
    if policy == "users":
        node.registry.policies["users"] = Users
        node.settings.policies["users"] = {}
    view = node.start_serving().workspace("default")
    rng = np.random.default_rng(harness.SEED)
    own = set(rng.choice(total, 2 * OWN, replace=False).tolist())
    subjects = ["first-subject", "second-subject"]
    for start in range(0, total, _BATCH):
        made = [harness.interaction(n, rng) for n in range(start, start + _BATCH)]
        for n, event in enumerate(made, start):
            if n in own:
                event["data"]["user_id"] = subjects[n % 2]
        events = [node.acceptor.accept_data(e["type"], e["data"], id=e["id"], source=e["source"]) for e in made]
        done = node.ledger.append("default", events, recorded_us=node.context.clock.now_us())
        node.appended("default")
        view.wait(done.head, None, 120)
    for subject in subjects:
        event = node.acceptor.accept_data("user.erased", {"user_id": subject}, id=f"erase-{subject}", source="bench")
        begun = time.monotonic()
        position = node.ledger.append("default", [event], recorded_us=node.context.clock.now_us()).head
        node.appended("default")
        assert node.views is not None
        assert node.runner is not None
        node.views.wake("default")
        _until(lambda position=position: view.hides_upto >= position)
        hidden.repeats.append((time.monotonic() - begun) * 1e3)
        node.runner.wake_erase()
        _until(lambda position=position: node.ledger.erasure("default", position).completed_us > 0)
        complete.repeats.append(time.monotonic() - begun)
        found = node.ledger.erasure("default", position)
        assert found is not None
        assert found.state == "complete", found
    complete.notes = hidden.notes = {"load": harness.load(), "ledger MB": round(_size(folder) / 1e6)}
    node.close()


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 600
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError("an erasure took more than 600 s")
        time.sleep(0.001)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
