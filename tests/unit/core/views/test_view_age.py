"""How old an answer is: since the first event was logged that it does not know of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from streamfold.core import Event, Policy, Stores, Table
from streamfold.core.testing import World, plugin


class Items(Policy):
    """Counts items."""

    name, version, handles = "items", 1, ("item.upserted",)
    stores = (Table("count", value=int),)

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        stores["count"].put(event.subject.id, stores["count"].get(event.subject.id, 0) + 1)


def test_an_answer_is_as_old_as_the_first_event_that_it_lacks_wherever_it_stands(tmp_path: Path) -> None:
    with World(tmp_path / "w", [plugin([Items])], {"items": {}}) as world:
        view = world.view
        for item in ("a", "b", "c"):
            world.send("item.upserted", {"item_id": item})
            world.clock.advance(100)
        view.follow()
        head = view.head
        for _ in range(2):  # asked again, the log is not
            assert [view.age_ms(head - lacks) // 1000 for lacks in (3, 2, 1)] == [300, 200, 100]
        world.clock.advance(100)
        assert [view.age_ms(head - lacks) // 1000 for lacks in (1, 2, 3)] == [200, 300, 400]
        assert view.age_ms(head) < 100_000
        world.send("item.upserted", {"item_id": "d"})
        view.follow()
        assert view.age_ms(head) // 1000 == 0
