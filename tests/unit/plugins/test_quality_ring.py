"""What a gate takes of ``quality`` is what it measures of the last examples, before and after the ring is full."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from streamfold.core import Scored, ScoredReport
from streamfold.core.testing import World
from streamfold.plugins import builtin

RING = 16


@pytest.mark.parametrize("examples", [0, 5, RING, 3 * RING, 3 * RING + 7])
def test_the_scored_examples_alone_are_those_measured(tmp_path: Path, examples: int) -> None:
    policies = {"activity": {}, "count_stack": {"ids": 64, "crosses": 64}}
    with World(tmp_path, [builtin], {**policies, "quality": {"ranker": "count_stack", "ring": RING}}) as world:
        for n in range(examples):
            world.send("interaction.observed", {"user_id": f"u{n % 7}", "item_id": f"i{n}", "action": "like"})
        world.fold()
        server = world.view.member("quality").server
        assert isinstance(server, ScoredReport)
        found, measured = server.scored(), server.measured().scored()
        kept = range(max(0, examples - RING) + 1, examples + 1)
        assert found.key[:, 0].tolist() == list(kept), "in order of the log"
        for field in fields(Scored):
            assert np.array_equal(getattr(found, field.name), getattr(measured, field.name)), field.name
        held = found.key[:, 0].copy()
        world.send("interaction.observed", {"user_id": "later", "item_id": "later", "action": "like"})
        world.fold()
        assert world.view.member("quality").server.scored().key[-1, 0] == examples + 1
        assert found.key[:, 0].tolist() == held.tolist(), "a copy: what is folded later does not change it"
