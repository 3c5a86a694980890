"""The id map of the vector index against a dict: random operations, and keys that want the same places."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from streamfold.core.stores.vectors.idmap import IdMap

INVERSE = pow(0x9E3779B97F4A7C15, -1, 1 << 64)
"""Of the golden ratio by which a Fibonacci hash multiplies: ``small · INVERSE`` hash to one place, all of them."""
LAST = 2**63 - 1
COLLIDING = [key for n in range(400) if (key := n * INVERSE % (1 << 64)) <= LAST]
KEYS = st.one_of(
    st.integers(0, 40),
    st.integers(0, 60).map(lambda n: n << 56),
    st.integers(0, 200).map(lambda n: n << 32),
    st.sampled_from(COLLIDING),
    st.sampled_from([0, 1, LAST, LAST - 1, 1 << 62]),
    st.integers(0, LAST),
)
VALUES = st.integers(0, LAST)
BATCH = st.lists(KEYS, unique=True, max_size=60)


def arrays(*columns: Any) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    return [np.array(column, np.int64) for column in columns]


class IdMapMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.map = IdMap()
        self.held: dict[int, int] = {}

    def expected(self, keys: list[int]) -> list[int]:
        return [self.held.get(key, -1) for key in keys]

    @rule(keys=BATCH)
    def get(self, keys: list[int]) -> None:
        assert self.map.get(*arrays(keys)).tolist() == self.expected(keys)

    @rule(keys=BATCH, value=st.integers(0, LAST - 100))
    def exchange(self, keys: list[int], value: int) -> None:
        values = [value + i for i in range(len(keys))]
        assert self.map.exchange(*arrays(keys, values)).tolist() == self.expected(keys)
        self.held.update(zip(keys, values, strict=True))

    @rule(start=KEYS, count=st.integers(1, 500), step=st.sampled_from([1, 1 << 10, 1 << 20, 1 << 44]))
    def exchange_many(self, start: int, count: int, step: int) -> None:
        keys = [(start + i * step) % (1 << 63) for i in range(count)]
        self.exchange(keys, start % 1000)

    @rule(keys=BATCH)
    def remove(self, keys: list[int]) -> None:
        assert self.map.remove(*arrays(keys)).tolist() == self.expected(keys)
        for key in keys:
            self.held.pop(key, None)

    @rule(part=st.integers(2, 5))
    def remove_many(self, part: int) -> None:
        self.remove(sorted(self.held)[::part])

    @rule(key=KEYS)
    def get_one(self, key: int) -> None:
        assert self.map.get1(key) == self.held.get(key, -1)

    @rule(key=KEYS, value=VALUES)
    def exchange_one(self, key: int, value: int) -> None:
        assert self.map.exchange1(key, value) == self.held.get(key, -1)
        self.held[key] = value

    @rule(key=KEYS)
    def remove_one(self, key: int) -> None:
        assert self.map.remove1(key) == self.held.pop(key, -1)

    @invariant()
    def holds_what_the_dict_holds(self) -> None:
        assert len(self.map) == len(self.held)
        keys = list(self.held)
        assert self.map.get(*arrays(keys)).tolist() == list(self.held.values())


IdMapMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestIdMap = IdMapMachine.TestCase


@pytest.mark.parametrize("batch", [1, 7, 64, 5000])
def test_rows_that_come_and_go_for_long_leave_neither_trace_nor_slowness(batch: int) -> None:
    """A sliding window of new ids: removed keys are swept by rehashing, the map does not grow with the stream."""
    ids, width = IdMap(), 5000
    total = 60_000 if batch > 1 else 20_000
    for start in range(0, total, batch):
        keys = np.arange(start, start + batch, dtype=np.int64) << 20
        assert (ids.exchange(keys, keys + 1) == -1).all()
        if start >= width:
            assert (ids.remove(keys - (width << 20)) > 0).all()
    live = np.arange(max(0, total - width), total, dtype=np.int64) << 20
    found = ids.get(live)
    assert (found[-batch:] == live[-batch:] + 1).all()
    assert width <= len(ids) <= width + batch
    assert ids.nbytes < 16 * 16 * (width + batch)


@pytest.mark.parametrize("size", [8, 9, 100, len(COLLIDING)])
def test_keys_that_all_want_one_place_are_kept_apart(size: int) -> None:
    ids = IdMap(1)
    keys, values = arrays(COLLIDING[:size], range(size))
    ids.exchange(keys, values)
    assert ids.get(keys).tolist() == values.tolist()
    assert ids.remove(keys[::2]).tolist() == values[::2].tolist()
    assert ids.get(keys).tolist() == [-1 if i % 2 == 0 else i for i in range(size)]
    assert ids.exchange(keys, values + 7).tolist() == [-1 if i % 2 == 0 else i for i in range(size)]
    assert len(ids) == size
