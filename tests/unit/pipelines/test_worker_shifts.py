"""A prepare worker leaves no hint lying, whenever it comes."""

from __future__ import annotations

import threading

from streamfold.pipelines.worker import Shifts


def test_a_hint_that_comes_while_all_threads_are_at_work_is_taken_by_who_is_done() -> None:
    looking, go_on = threading.Event(), threading.Event()
    done: list[str] = []

    def work(workspace: str) -> None:
        done.append(workspace)
        looking.set()
        assert go_on.wait(60)

    shifts = Shifts(1, work)
    thread = threading.Thread(target=shifts.run, args=("a",))
    thread.start()
    assert looking.wait(60)
    for workspace in ("a", "b", "a"):  # all threads are busy: left to the one that is
        shifts.run(workspace)
    assert done == ["a"]
    go_on.set()
    thread.join(10)
    assert done == ["a", "a", "b"]


def test_no_more_threads_than_asked_for_work_at_once() -> None:
    lock = threading.Lock()
    at_once = [0, 0]
    meet = threading.Barrier(2)

    def work(workspace: str) -> None:
        with lock:
            at_once[0] += 1
            at_once[1] = max(at_once)
        if workspace < "w2":
            meet.wait(60)
        with lock:
            at_once[0] -= 1

    shifts = Shifts(2, work)
    threads = [threading.Thread(target=shifts.run, args=(f"w{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert at_once == [0, 2]


def test_a_failure_frees_the_thread_for_the_next() -> None:
    done: list[str] = []

    def work(workspace: str) -> None:
        if not done:
            done.append("failed")
            raise RuntimeError("the ledger is away")
        done.append(workspace)

    shifts = Shifts(1, work)
    try:
        shifts.run("a")
    except RuntimeError:
        pass
    shifts.run("b")
    assert done == ["failed", "b"]
