"""The size of a candidate's state, estimated before it is folded."""

from __future__ import annotations

from pathlib import Path

from streamfold.core.fold import versions
from streamfold.core.fold.estimate import estimate
from streamfold.core.testing import World
from streamfold.plugins import builtin


def test_arrays_of_a_fixed_size_are_counted_once(tmp_path: Path) -> None:
    """A ranker's hashed tables are there after the first event; what grows are the histories of users."""
    tables = {"activity": {}, "count_stack": {}}
    with World(tmp_path, [builtin], tables) as world:
        rated = [(f"u{k % 50}", f"i{k % 40}", k % 5 + 1) for k in range(600)]
        world.send_many(
            ("interaction.observed", {"user_id": user, "item_id": item, "action": "rating", "value": value})
            for user, item, value in rated
        )
        rows = versions.plan(
            world.context, world.workspace, name="count_stack", use="count_stack", values={"rate": 0.03}
        )
        found = estimate(world.context, world.workspace, rows)
        assert found.events == 600
        [group] = world.view.live()
        there = sum(store.state_bytes() for store in group.stores.stores.values())
        assert found.state_bytes is not None
        assert there > 1_000_000, "most of it is of a fixed size"
        assert there <= found.state_bytes < 2 * there
