"""Threads shared by workspaces: one that floods or hangs leaves the others their turn."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from streamfold.pipelines.serve.fair import FairPool


@pytest.fixture
def pool() -> Iterator[FairPool]:
    made = FairPool(2, "test")
    yield made
    made.close()


def test_results_and_errors_come_back(pool: FairPool) -> None:
    assert pool.submit("a", lambda x, y: x + y, 1, 2).result(10) == 3
    with pytest.raises(ZeroDivisionError):
        pool.submit("a", lambda: 1 / 0).result(10)


def test_work_that_hangs_in_one_workspace_leaves_the_others_a_thread(pool: FairPool) -> None:
    hang = threading.Event()
    stuck = [pool.submit("stuck", hang.wait) for _ in range(100)]
    assert [pool.submit("other", lambda: 7).result(10) for _ in range(20)] == [7] * 20
    assert not any(future.done() for future in stuck)
    hang.set()
    assert all(future.result(10) for future in stuck)


def test_who_comes_late_waits_for_one_piece_of_work_not_for_the_whole_queue() -> None:
    pool, gate, order = FairPool(1, "test"), threading.Event(), list[str]()
    first = [pool.submit("first", gate.wait), pool.submit("second", gate.wait)]  # both threads are busy
    flood = [pool.submit("flood", order.append, "flood") for _ in range(50)]
    late = [pool.submit("late", order.append, "late") for _ in range(2)]
    gate.set()
    for future in (*first, *flood, *late):
        future.result(10)
    assert sorted(order) == ["flood"] * 50 + ["late"] * 2
    assert [i for i, name in enumerate(order) if name == "late"][-1] < 10
    pool.close()


def test_one_workspace_alone_has_all_its_threads() -> None:
    pool, barrier = FairPool(4, "test"), threading.Barrier(4)
    assert len([pool.submit("a", barrier.wait, 10).result for _ in range(4)]) == 4
    pool.submit("a", int).result(10)  # runs only after the four met
    assert not barrier.broken
    pool.close()


def test_cancelled_work_is_not_run() -> None:
    pool, gate, ran = FairPool(1, "test"), threading.Event(), list[int]()
    pool.submit("a", gate.wait)
    waiting = pool.submit("a", ran.append, 1)
    assert waiting.cancel()
    gate.set()
    assert pool.submit("a", ran.append, 2).result(10) is None
    assert ran == [2]
    pool.close()
