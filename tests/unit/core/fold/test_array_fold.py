"""A policy that changes an array in place: folded afresh by ``verify``, and to forget somebody."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from streamfold.core import Array, Event, Policy, Stores
from streamfold.core.testing import World, plugin


class Tally(Policy):
    """Counts interactions by the length of the item's id, in place."""

    name, version, handles = "tally", 1, ("interaction.observed", "user.erased")
    stores = (Array("count", shape=(8, 1), dtype="float64"),)

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        if event.type == "interaction.observed":
            rows = stores["count"].touch([len(event.data.item_id)])
            stores["count"].values[rows] += 1.0


def test_what_is_folded_afresh_may_change_arrays_in_place(tmp_path: Path) -> None:
    with World(tmp_path, [plugin([Tally])], {"tally": {}}) as world:
        for user, item in (("ada", "x"), ("ada", "yy"), ("bob", "yy")):
            world.send("interaction.observed", {"user_id": user, "item_id": item, "action": "view"})
        world.fold()
        assert [verdict.equal for verdict in world.verify().values()] == [True]
        world.send("user.erased", {"user_id": "ada"})
        world.erase()
        assert world.store("tally", "count").values[:3, 0].tolist() == [0.0, 0.0, 1.0]
