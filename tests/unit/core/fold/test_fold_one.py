"""One event in one member's stores: kept, skipped without a trace, or as it was."""

from __future__ import annotations

from typing import Any

import pytest

from streamfold.core import Event, EventError, Policy, Stores, Table
from streamfold.core.fold.one import fold_one
from streamfold.core.testing.lab import Case, Lab


class Fussy(Policy):
    """Counts items; refuses some half-way, breaks at others, and notes what it was told was skipped."""

    name, version, handles = "fussy", 1, ("interaction.observed",)
    stores = (Table("count", key=str, value=int, max_rows=100), Table("skipped", key=str, value=int, max_rows=100))

    def fold(self, event: Event, prepared: Any, stores: Stores) -> None:
        item = event.data.item_id
        stores["count"].put(item, stores["count"].get(item, 0) + 1)
        if item == "refused":
            raise EventError("not this one")
        if item == "broken":
            raise ValueError("a bug")

    def skipped(self, event: Event, stores: Stores) -> None:
        stores["skipped"].put(event.data.item_id, event.seq)


@pytest.fixture
def lab() -> Any:
    with Lab(Case(make=Fussy)) as lab:
        yield lab


def test_an_event_is_kept_skipped_without_a_trace_or_leaves_the_stores_as_they_were(lab: Lab) -> None:
    names = ["fine", "refused", "broken", "unprepared", "said"]
    given = [("interaction.observed", {"user_id": "u", "item_id": n, "action": "click"}) for n in names]
    fine, refused, broken, unprepared, said = lab.logged(given)
    bench = lab.bench()
    stores, runtime = bench.stores(), bench.runtime

    def held() -> tuple[dict[str, int], dict[str, int]]:
        return dict(stores["count"].items()), dict(stores["skipped"].items())

    assert fold_one(runtime, fine, None, stores) is None
    assert (stores.seq, stores.now_us) == (fine.seq, fine.recorded_us)
    error = fold_one(runtime, refused, None, stores)
    assert error is not None
    assert str(error) == "not this one"
    assert held() == ({"fine": 1}, {"refused": refused.seq})
    with pytest.raises(ValueError, match="a bug"):
        fold_one(runtime, broken, None, stores)
    assert held() == ({"fine": 1}, {"refused": refused.seq})
    unfit = EventError("prepare refused it")
    assert fold_one(runtime, unprepared, unfit, stores) is unfit
    assert fold_one(runtime, said, None, stores, skip=True) is None
    assert held() == ({"fine": 1}, {one: e.seq for one, e in zip(names[1::2], (refused, unprepared), strict=True)} | {
        "said": said.seq
    })  # fmt: skip
