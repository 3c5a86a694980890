"""A group's watermark moves when its servers have worked out what changed, and never for what is not worked out."""

from __future__ import annotations

import threading
from collections.abc import Callable

from streamfold.core.views.lock import ReadWriteLock
from streamfold.core.views.settle import Settling


class Slow:
    """A server whose work takes until it is let go."""

    def __init__(self) -> None:
        self.changed = False
        self.begun, self.go = threading.Semaphore(0), threading.Semaphore(0)
        self.looks = 0
        self.fails = False

    def unsettled(self) -> bool:
        return self.changed

    def look(self) -> Callable[[], None]:
        self.looks += 1

        def work() -> None:
            self.begun.release()
            self.go.acquire()
            if self.fails:
                raise RuntimeError("broken")

        return work


class Group:
    """What a view does with it."""

    def __init__(self) -> None:
        self.server, self.lock = Slow(), ReadWriteLock()
        self.positions: list[int] = []
        self.told = threading.Semaphore(0)
        self.settling = Settling([self.server], self.lock, self.positions.append, self.told.release)

    def apply(self, position: int) -> None:
        with self.lock.write():
            self.settling.moved(position)


def test_where_nothing_is_to_be_worked_out_a_position_is_reached_at_once() -> None:
    group = Group()
    group.apply(3)
    assert group.positions == [3]
    assert group.server.looks == 0


def test_a_position_is_reached_when_its_work_is_done_and_what_came_meanwhile_is_worked_out_together() -> None:
    group = Group()
    group.server.changed = True
    group.apply(3)
    group.server.begun.acquire()
    assert group.positions == []
    with group.lock.read():  # the work holds nobody up
        pass
    for position in (4, 5, 6):
        group.apply(position)
    group.server.go.release()
    group.told.acquire()
    assert group.positions == [3]
    group.server.begun.acquire()
    group.server.go.release()
    group.told.acquire()
    assert group.positions == [3, 6]
    assert group.server.looks == 2
    group.server.changed = False
    group.apply(7)
    assert group.positions == [3, 6, 7]


def test_positions_that_are_only_passed_wait_for_what_is_worked_out_and_for_nothing_more() -> None:
    group = Group()
    group.settling.passed(2)
    assert group.positions == [2]
    group.server.changed = True
    group.apply(3)
    group.server.begun.acquire()
    group.settling.passed(5)
    assert group.positions == [2]
    group.server.go.release()
    group.told.acquire()
    assert group.positions == [2, 5]
    assert group.server.looks == 1


def test_a_position_that_is_passed_after_a_change_waits_for_the_work_on_that_change() -> None:
    group = Group()
    group.server.changed = True
    group.apply(3)
    group.server.begun.acquire()
    group.apply(4)
    group.settling.passed(6)
    group.server.go.release()
    group.told.acquire()
    assert group.positions == [3]
    group.server.go.release()
    group.told.acquire()
    assert group.positions == [3, 6]


def test_work_that_fails_keeps_no_position_back() -> None:
    group = Group()
    group.server.changed, group.server.fails = True, True
    group.apply(3)
    group.server.go.release()
    group.told.acquire()
    assert group.positions == [3]


def test_nothing_is_reached_once_the_stores_are_closed() -> None:
    group = Group()
    group.server.changed = True
    group.apply(3)
    group.server.begun.acquire()
    with group.lock.write():
        group.settling.close()
    group.server.go.release()
    for thread in threading.enumerate():
        if thread.name == "settle":
            thread.join()
    assert group.positions == []
